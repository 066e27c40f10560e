"""Where the bins of a spectrum lie: shapes in, transform lengths, kept bins and multiplicities out."""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from lit_methods.federated._fft import irfft, rfft

SpectralLayout = Literal["global_1d", "per_layer_1d", "per_layer_2d"]
RatioConvention = Literal["half", "full"]


def smooth_length(length: int) -> int:
    """Returns the least number that is at least `length` and has no prime factor above 7, which transforms fast."""
    candidate = length
    while True:
        rest = candidate
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return candidate
        candidate += 1


@dataclass(frozen=True)
class Block:
    """One real transform: `rows` is None for a 1-D one of `size` values, else the matrix is `(rows, size / rows)`."""

    start: int
    size: int
    rows: int | None
    length: int

    @property
    def bins(self) -> int:
        """Number of complex values of the half spectrum."""
        return (self.length // 2 + 1) * (self.rows or 1)


@dataclass(frozen=True)
class SpectralPlan:
    """How a flat weight vector is cut, transformed and truncated; two calls of `make` with equal arguments are one.

    Attributes:
        shapes: Shapes of the weight tensors, in the order in which they are concatenated.
        layout: One transform of everything, or one for each tensor, flattened or as a matrix `(out, rest)`.
        ratio: Part of the bins that is kept, the lowest frequencies, in (0, 1].
        convention: Whether `ratio` counts bins of the half spectrum, or the first indices of the full one.
        smooth: Whether 1-D transforms are padded with zeros to a length without prime factors above 7.
    """

    shapes: tuple[tuple[int, ...], ...]
    layout: SpectralLayout = "global_1d"
    ratio: float = 1.0
    convention: RatioConvention = "half"
    smooth: bool = False

    @staticmethod
    @lru_cache(maxsize=128)
    def make(
        shapes: tuple[tuple[int, ...], ...],
        layout: SpectralLayout = "global_1d",
        ratio: float = 1.0,
        convention: RatioConvention = "half",
        smooth: bool = False,
    ) -> "SpectralPlan":
        """Checks the arguments and returns the plan.

        Raises:
            ValueError: If an argument is out of its range or there is no weight.
        """
        if layout not in get_args(SpectralLayout):
            raise ValueError(f"layout={layout!r} must be one of {get_args(SpectralLayout)}.")
        if convention not in get_args(RatioConvention):
            raise ValueError(f"convention={convention!r} must be one of {get_args(RatioConvention)}.")
        check_ratio(ratio)
        if convention == "full" and layout == "per_layer_2d":
            raise ValueError(
                "convention='full' counts the indices of a 1-D transform; take convention='half' with "
                "layout='per_layer_2d'."
            )
        if not sum(math.prod(shape) for shape in shapes):
            raise ValueError("weights must hold at least one value; a spectrum of nothing is not defined.")
        return SpectralPlan(shapes, layout, ratio, convention, smooth)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The transforms, in the order of their bins."""
        sizes = [math.prod(shape) for shape in self.shapes]
        if self.layout == "global_1d":
            total = sum(sizes)
            return (Block(0, total, None, smooth_length(total) if self.smooth else total),)
        blocks, start = [], 0
        for shape, size in zip(self.shapes, sizes, strict=True):
            if size and self.layout == "per_layer_2d" and len(shape) > 1:
                blocks.append(Block(start, size, shape[0], size // shape[0]))
            elif size:
                blocks.append(Block(start, size, None, smooth_length(size) if self.smooth else size))
            start += size
        return tuple(blocks)

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(block.size for block in self.blocks)

    @cached_property
    def bins(self) -> int:
        """Number of bins before truncation."""
        return sum(block.bins for block in self.blocks)

    @cached_property
    def _layout_of_bins(self) -> tuple[Tensor | None, Tensor, Tensor]:
        kept, multiplicity, mirrored, offset = [], [], [], 0
        for block in self.blocks:
            full = _mirrored(block)
            chosen, count = self._keep(block, full)
            kept.append(chosen + offset)
            multiplicity.append(count)
            mirrored.append(full[chosen])
            offset += block.bins
        chosen = torch.cat(kept)
        everything = len(chosen) == self.bins
        return None if everything else chosen, torch.cat(multiplicity), torch.cat(mirrored)

    def _keep(self, block: Block, full: Tensor) -> tuple[Tensor, Tensor]:
        if self.convention == "full":
            index = torch.arange(max(1, math.floor(self.ratio * block.length)))
            times = torch.bincount(torch.minimum(index, block.length - index)).to(torch.float64)
            return torch.arange(len(times)), times
        count = math.ceil(self.ratio * block.bins)
        if block.rows is None:
            chosen = torch.arange(count)
        else:
            vertical = torch.fft.fftfreq(block.rows, dtype=torch.float64).unsqueeze(1)
            horizontal = torch.fft.rfftfreq(block.length, dtype=torch.float64)
            radius = (vertical.square() + horizontal.square()).flatten()
            chosen = torch.sort(radius, stable=True).indices[:count].sort().values
        return chosen, full[chosen]

    @property
    def kept(self) -> Tensor | None:
        """Positions of the kept bins, ascending; None where all are kept."""
        return self._layout_of_bins[0]

    @property
    def multiplicity(self) -> Tensor:
        """How many entries of the full spectrum each kept bin stands for, float64."""
        return self._layout_of_bins[1]

    @property
    def unfolding(self) -> Tensor:
        """Multiplicity over what an inverse real transform counts by itself; 1 but at a cut of the full spectrum."""
        return self._layout_of_bins[1] / self._layout_of_bins[2]


def check_ratio(ratio: float) -> None:
    """Refuses a kept ratio outside (0, 1]."""
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio={ratio} must lie in (0, 1]: it is the part of the frequencies that is kept.")


def _mirrored(block: Block) -> Tensor:
    width = block.length // 2 + 1
    count = torch.full((width,), 2.0, dtype=torch.float64)
    count[0] = 1
    if block.length % 2 == 0:
        count[-1] = 1
    return count if block.rows is None else count.repeat(block.rows)


def transform(flat: Tensor, plan: SpectralPlan) -> Tensor:
    """Half spectra `(K, bins)`, complex and not truncated, of weight vectors `(K, D)`."""
    if not len(flat):  # FFT libraries refuse what a process without clients has
        return flat.new_zeros(0, plan.bins, dtype=flat.dtype.to_complex())
    parts = []
    for block in plan.blocks:
        rows = flat[:, block.start : block.start + block.size]
        if block.rows is None:
            parts.append(rfft(rows, block.length))
        else:
            parts.append(torch.fft.rfft2(rows.reshape(len(flat), block.rows, block.length)).flatten(1))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def adjoint(spectra: Tensor, plan: SpectralPlan) -> Tensor:
    """Gradient `(K, D)` of `sum_k m_k Re(conj(X_k) z_k)` over the half spectrum, `X (K, bins)`; one inverse FFT."""
    parts, start = [], 0
    for block in plan.blocks:
        part = spectra[:, start : start + block.bins]
        start += block.bins
        if block.rows is None:
            parts.append(irfft(part, block.length)[:, : block.size])
        else:
            matrix = part.reshape(len(part), block.rows, -1)
            parts.append(torch.fft.irfft2(matrix, s=(block.rows, block.length), norm="forward").flatten(1))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


@lru_cache(maxsize=64)
def constants(
    plan: SpectralPlan, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor | slice, Tensor, Tensor | None]:
    """Kept bins, multiplicities and unfolding of a plan on a device; the latter None where it is 1 throughout."""
    kept, unfolding = plan.kept, plan.unfolding
    where: Tensor | slice = slice(None)
    if kept is not None:
        prefix = torch.equal(kept, torch.arange(len(kept)))
        where = slice(0, len(kept)) if prefix else kept.to(device)
    uneven = unfolding.to(device, dtype) if bool((unfolding != 1).any()) else None
    return where, plan.multiplicity.to(device, dtype), uneven
