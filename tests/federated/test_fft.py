"""Transforms in two steps against torch's of the whole length."""

import pytest
import torch

from lit_methods.federated import _fft

LENGTHS = [12, 16, 15, 35, 2 * 11, 16 * 31, 13]


@pytest.fixture(autouse=True)
def _short_rows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fft, "_LEAST_LENGTH", 2)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    ("rows", "dtype"), [(1, torch.float64), (2, torch.float64), (3, torch.float64), (1, torch.float32)]
)
@pytest.mark.parametrize("padding", [0, 3])
def test_both_directions_are_torchs(length: int, rows: int, dtype: torch.dtype, padding: int) -> None:
    generator = torch.Generator().manual_seed(length)
    values = torch.randn(rows, length - padding, generator=generator, dtype=dtype)
    expected = torch.fft.rfft(values, n=length)
    tolerance = {"rtol": 0, "atol": 1e-12 if dtype == torch.float64 else 1e-4}
    torch.testing.assert_close(_fft.rfft(values, length), expected, **tolerance)
    bins = torch.randn(rows, length // 2 + 1, 2, generator=generator, dtype=dtype)
    spectra = torch.view_as_complex(bins)
    inverse = torch.fft.irfft(spectra, n=length, norm="forward")
    torch.testing.assert_close(_fft.irfft(spectra, length), inverse, **tolerance)
    assert torch.equal(torch.view_as_real(spectra), bins)


@pytest.mark.parametrize("length", [35, 16 * 31])
def test_gradients_pass_through(length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    values = torch.randn(1, length, generator=generator, dtype=torch.float64, requires_grad=True)
    found, expected = (
        torch.autograd.grad(transform(values, length).abs().sqrt().sum(), values)[0]
        for transform in (_fft.rfft, torch.fft.rfft)
    )
    torch.testing.assert_close(found, expected)


def test_a_long_row_goes_in_two_steps_and_many_rows_do_not() -> None:
    assert _fft._in_steps(torch.zeros(1, 9872), 9872)
    assert not _fft._in_steps(torch.zeros(20, 9872), 9872)
    assert not _fft._in_steps(torch.zeros(1, 7919), 7919)
    assert (_fft._short(9872), _fft._short(10000), _fft._short(7919)) == (16, 100, 1)
