"""Spectra of weights, their divergence with its closed-form gradient, and aggregation: pure functions on tensors.

Notation of Chen et al. (NeurIPS 2023, arXiv 2401.17124): `s = |DFT(w)|`, `p = s / sum(s)`, `D` is the
Kullback-Leibler divergence. A real vector's spectrum mirrors itself, so only half of it is computed; bin `k` counts
`m_k` times, `p_k = m_k s_k / sum_j m_j s_j`, and every divergence equals that of the full spectra.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_methods.federated._plan import (
    RatioConvention,
    SpectralLayout,
    SpectralPlan,
    adjoint,
    constants,
    smooth_length,
    transform,
)

__all__ = [
    "RatioConvention",
    "SpectralLayout",
    "SpectralPlan",
    "SpectralTarget",
    "aggregate",
    "flat_spectral_divergence",
    "multiplicities",
    "smooth_length",
    "spectral_distribution",
    "spectral_divergence",
    "spectrum",
]

# Below what rounding leaves of a probability or of a magnitude in float32, and safe to divide by in turn.
_LEAST_PROBABILITY = 1e-16
_LEAST_MAGNITUDE = 1e-12


def spectrum(
    weights: Sequence[Tensor], layout: SpectralLayout = "global_1d", ratio: float = 1.0, smooth: bool = False
) -> Tensor:
    """Magnitudes of the DFT of weights, the spectrum `s` of the paper, as a half spectrum.

    Args:
        weights: Real tensors of any shapes with D values together.
        layout: `"global_1d"` is one DFT of their concatenation (the paper's), `"per_layer_1d"` one for each flattened
            tensor, `"per_layer_2d"` one for each tensor as a matrix `(out, rest)`; bins are concatenated.
        ratio: Part of the bins to keep, of each transform the lowest frequencies, in (0, 1].
        smooth: Whether 1-D transforms are padded with zeros to a length without prime factors above 7.

    Returns:
        Magnitudes `(K,)`, differentiable; 0 has the gradient 0. For `global_1d` K is `ceil(ratio * (D // 2 + 1))`.

    Raises:
        ValueError: If `layout` or `ratio` is none of these, or there are no weights.
    """
    plan = SpectralPlan.make(_shapes(weights), layout, ratio, "half", smooth)
    where, _, _ = constants(plan, weights[0].device, _real(weights[0]))
    return transform(_flat(weights), plan).abs()[:, where].squeeze(0)


def multiplicities(
    shapes: Sequence[Sequence[int]],
    layout: SpectralLayout = "global_1d",
    ratio: float = 1.0,
    convention: RatioConvention = "half",
    smooth: bool = False,
) -> Tensor:
    """How many entries of the full spectrum each bin of `spectrum` stands for, float64 `(K,)`.

    Args:
        shapes: Shapes of the weights.
        layout: See `spectrum`.
        ratio: See `spectrum`.
        convention: `"half"` keeps that part of the half spectrum's bins; `"full"` the first `floor(ratio * D)`
            indices of the full DFT, which reach frequencies twice as high.
        smooth: See `spectrum`.
    """
    return SpectralPlan.make(tuple(tuple(shape) for shape in shapes), layout, ratio, convention, smooth).multiplicity


def spectral_distribution(flat: Tensor, plan: SpectralPlan) -> Tensor:
    """Normalised truncated spectra `p`, each a distribution over the kept bins.

    Args:
        flat: Weight vectors `(K, D)`, or one `(D,)`.
        plan: Layout and truncation.

    Returns:
        Distributions `(K, bins)` or `(bins,)`, without a graph; they sum to 1 after the truncation.
    """
    with torch.no_grad():
        _, _, mass, total = _masses(flat.reshape(-1, plan.size), plan)
        return mass.div_(total).reshape(*flat.shape[:-1], mass.shape[1])


def _masses(flat: Tensor, plan: SpectralPlan) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Kept bins, their magnitudes `s_k`, the masses `m_k s_k`, and the sum of these `(K, 1)`."""
    flat = flat.to(_real(flat))
    where, multiplicity, _ = constants(plan, flat.device, flat.dtype)
    spectra = transform(flat, plan)[:, where]
    magnitude = spectra.abs().clamp_min_(_LEAST_MAGNITUDE)
    mass = magnitude * multiplicity
    return spectra, magnitude, mass, mass.sum(dim=1, keepdim=True)


class SpectralTarget:
    """The distributions of K teachers, prepared for many divergences `D` of students from them.

    With `p` a student's distribution, `q` its teacher's and `S` the student's mass, `dD(p|q)/ds_k` is
    `m_k (ln(p_k / q_k) - D) / S` and `dD(q|p)/ds_k` is `m_k (1 - q_k / p_k) / S`; `ds_k/dw` is the adjoint DFT of
    the phase `z_k / |z_k|`, taken as 0 where `z_k` is 0: one FFT and one inverse in all.

    Args:
        teacher: The teachers' distributions `(K, bins)`, or one `(bins,)` for all, from `spectral_distribution`.
        plan: Their layout and truncation.
        student_first: `D(student | teacher)`, the paper's personal stage; else `D(teacher | student)`.
    """

    def __init__(self, teacher: Tensor, plan: SpectralPlan, student_first: bool = True) -> None:
        self.plan, self.student_first = plan, student_first
        self.teacher = teacher.to(_real(teacher)).clamp_min(_LEAST_PROBABILITY)
        self._inverse = self.teacher.reciprocal()

    def take(self, rows: Tensor | slice) -> "SpectralTarget":
        """Some of the teachers, in the given order."""
        taken = copy.copy(self)
        taken.teacher, taken._inverse = self.teacher[rows], self._inverse[rows]
        return taken

    def divergence(self, flat: Tensor) -> Tensor:
        """Divergences `(K,)` of students `(K, D)`, without a graph."""
        with torch.no_grad():
            return self._compare(flat)[0].squeeze(1)

    def divergence_and_gradient(self, flat: Tensor, factor: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Divergences `(K,)` of students `(K, D)` and their gradients `(K, D)`, these times `factor (K, 1)`."""
        with torch.no_grad():
            value, slope, spectra, magnitude, total = self._compare(flat)
            slope = slope.sub_(value) if self.student_first else slope.neg_().exp_().neg_().add_(1.0)
            slope.div_(magnitude).mul_((1.0 if factor is None else factor) / total)
            where, _, unfolding = constants(self.plan, slope.device, slope.dtype)
            if unfolding is not None:
                slope *= unfolding
            scaled = spectra.mul_(slope)
            if where != slice(None):
                whole = scaled.new_zeros(len(scaled), self.plan.bins)
                whole[:, where] = scaled
                scaled = whole
            return value.squeeze(1), adjoint(scaled, self.plan)

    def _compare(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Divergences `(K, 1)`, `ln(p / q)`, kept bins, their magnitudes, and the students' mass `(K, 1)`."""
        spectra, magnitude, mass, total = _masses(flat, self.plan)
        log_ratio = (mass * self._inverse).div_(total).log_()
        if self.student_first:
            value = mass.mul_(log_ratio).sum(dim=1, keepdim=True).div_(total)
        else:
            value = (self.teacher * log_ratio).sum(dim=1, keepdim=True).neg_()
        return value, log_ratio, spectra, magnitude, total


class _FlatSpectralDivergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, flat: Tensor, teacher: Tensor, plan: SpectralPlan, student_first: bool) -> Tensor:
        target = SpectralTarget(teacher, plan, student_first)
        if not flat.requires_grad:
            return target.divergence(flat)
        value, gradient = target.divergence_and_gradient(flat)
        ctx.save_for_backward(gradient.to(flat.dtype))
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0].unsqueeze(1).to(gradient.dtype), None, None, None


def flat_spectral_divergence(flat: Tensor, teacher: Tensor, plan: SpectralPlan, student_first: bool = True) -> Tensor:
    """Divergences `(K,)` of `SpectralTarget` as one differentiable operation on `flat (K, D)`."""
    return _FlatSpectralDivergence.apply(flat, teacher, plan, student_first)  # type: ignore[no-any-return, no-untyped-call]  # torch does not type it


def spectral_divergence(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    ratio: float = 1.0,
    layout: SpectralLayout = "global_1d",
    student_first: bool = True,
    convention: RatioConvention = "half",
    smooth: bool = False,
) -> Tensor:
    """Kullback-Leibler divergence `D(p | q)` of the normalised spectra of two models' weights.

    Args:
        student: Weights that receive the gradient, D values together.
        teacher: Weights of the same shapes; constants.
        ratio: Part of the frequencies that is compared, the lowest, in (0, 1]; both sides are renormalised after the
            cut, so that the divergence is never negative.
        layout: See `spectrum`.
        student_first: `D(student | teacher)` if true, else `D(teacher | student)`.
        convention: How `ratio` counts, see `multiplicities`.
        smooth: See `spectrum`.

    Returns:
        A scalar: 0 for equal spectra, and unchanged if either side's weights are scaled.

    Raises:
        ValueError: If the shapes differ or an argument is out of its range.
    """
    if _shapes(student) != _shapes(teacher):
        raise ValueError(f"teacher has the shapes {_shapes(teacher)}, student {_shapes(student)}; they must agree.")
    plan = SpectralPlan.make(_shapes(student), layout, ratio, convention, smooth)
    distribution = spectral_distribution(_flat(teacher), plan)
    return flat_spectral_divergence(_flat(student), distribution, plan, student_first).squeeze(0)


def aggregate(models: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of K models `(K, D)` with weights `(K,)` that need not sum to 1, such as numbers of examples.

    Raises:
        ValueError: If a weight is negative, or none is positive.
    """
    if bool((weights < 0).any()) or not float(weights.sum()) > 0:
        raise ValueError(f"weights={weights.tolist()} must be non-negative with a positive sum.")
    shares = (weights.to(torch.float64) / weights.sum()).to(models.dtype)
    with torch.autocast(models.device.type, enabled=False):
        return shares @ models


def _shapes(weights: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(weight.shape) for weight in weights)


def _flat(weights: Sequence[Tensor]) -> Tensor:
    return torch.cat([weight.reshape(-1) for weight in weights]).unsqueeze(0)


def _real(tensor: Tensor) -> torch.dtype:
    """The type in which a tensor is transformed: FFTs know no half precision."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
