"""Real Fourier transforms of a few long rows: torch's results, without the price of its plan for a long length.

On a CPU torch makes a new plan for each call, which for one row of ten thousand values costs more than the transform,
and several times more where the length has a large prime factor. Two short transforms (Cooley and Tukey 1965) give the
same numbers.
"""

import math
from functools import lru_cache
from typing import NamedTuple, cast

import torch
from torch import Tensor

# Measured with MKL: below this length, or with more rows, one plan of the whole length is cheaper.
_LEAST_LENGTH = 6000
_MOST_ROWS = 2


class _Steps(NamedTuple):
    """Constants of a transform of `P * M` values as one over P and one over M values, with `h = P // 2 + 1`.

    Attributes:
        twiddle: Factors between the two, complex `(h, M)`.
        twiddle_back: Their conjugates.
        natural: Place of each bin of the half spectrum among the `h * M` results.
        natural_sign: -1 where the result is the bin's conjugate, else 1.
        stepped: Place of each of the results in the half spectrum.
        stepped_sign: -1 where the bin is the result's conjugate, else 1.
    """

    twiddle: Tensor
    twiddle_back: Tensor
    natural: Tensor
    natural_sign: Tensor
    stepped: Tensor
    stepped_sign: Tensor


@lru_cache(maxsize=64)
def _short(length: int) -> int:
    """The largest divisor up to the square root, 1 for a prime."""
    return next(m for m in range(math.isqrt(length), 0, -1) if length % m == 0)


@lru_cache(maxsize=16)
def _steps(length: int, dtype: torch.dtype) -> _Steps:
    short = _short(length)
    long = length // short
    rows, columns = torch.arange(long // 2 + 1).unsqueeze(1), torch.arange(short)
    angle = -2 * math.pi / length * (rows * columns).to(torch.float64)
    twiddle = torch.polar(torch.ones_like(angle), angle).to(dtype.to_complex())
    frequency = (rows + long * columns).flatten()
    bins = torch.arange(length // 2 + 1)
    mirrored = bins % long > long // 2
    found = torch.where(mirrored, length - bins, bins)
    return _Steps(
        twiddle,
        twiddle.conj().resolve_conj(),
        natural=(found % long * short + found // long).to(torch.int32),
        natural_sign=torch.where(mirrored, -1.0, 1.0).to(dtype),
        stepped=torch.minimum(frequency, length - frequency).to(torch.int32),
        stepped_sign=torch.where(frequency > length // 2, -1.0, 1.0).to(dtype),
    )


def _in_steps(rows: Tensor, length: int) -> bool:
    return rows.device.type == "cpu" and len(rows) <= _MOST_ROWS and length >= _LEAST_LENGTH and _short(length) > 1


def rfft(rows: Tensor, length: int) -> Tensor:
    """`torch.fft.rfft(rows, n=length)` of rows `(K, D)`, `D <= length`: half spectra `(K, length // 2 + 1)`."""
    if not _in_steps(rows, length):
        return cast(Tensor, torch.fft.rfft(rows, n=length))
    steps, short = _steps(length, rows.dtype), _short(length)
    if rows.shape[1] < length:
        rows = torch.nn.functional.pad(rows, (0, length - rows.shape[1]))
    halves = torch.fft.rfft(rows.reshape(len(rows), length // short, short), dim=1).mul_(steps.twiddle)
    spectra: Tensor = torch.fft.fft(halves, dim=2).reshape(len(rows), -1).index_select(1, steps.natural)
    torch.view_as_real(spectra)[..., 1].mul_(steps.natural_sign)
    return spectra


def irfft(spectra: Tensor, length: int) -> Tensor:
    """`torch.fft.irfft(spectra, n=length, norm="forward")`: the inverse without its factor, rows `(K, length)`."""
    if not _in_steps(spectra, length):
        return cast(Tensor, torch.fft.irfft(spectra, n=length, norm="forward"))
    steps, short = _steps(length, spectra.dtype.to_real()), _short(length)
    results = spectra.index_select(1, steps.stepped)
    torch.view_as_real(results)[..., 1].mul_(steps.stepped_sign)
    halves = torch.fft.ifft(results.view(len(spectra), -1, short), dim=2, norm="forward").mul_(steps.twiddle_back)
    long = length // short
    rows: Tensor = torch.fft.irfft(halves, n=long, dim=1, norm="forward")
    return rows.reshape(len(spectra), length)
