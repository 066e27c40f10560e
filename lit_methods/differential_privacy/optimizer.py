"""Opacus optimizers that add correlated noise: clipping as in DP-SGD, noise from a matrix factorization."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from opacus.optimizers import (
    DistributedDPOptimizer,
    DistributedDPOptimizerFastGradientClipping,
    DPOptimizer,
    DPOptimizerFastGradientClipping,
)
from opacus.optimizers.optimizer import _check_processed_flag, _mark_as_processed
from torch import Tensor, distributed
from torch.optim import Optimizer

from lit_methods.differential_privacy.noise import CorrelatedNoise
from lit_methods.errors import check_above, check_at_least

_FIXED = ("noise_multiplier", "_adjusted_noise_multiplier", "max_grad_norm", "expected_batch_size", "gradient_scale")


class GradientSource(Protocol):
    """What fills the gradients that an optimizer clips or sums."""

    def check(self) -> bool:
        """Refuses gradients that can't be trusted; returns whether one such check is enough."""


class CorrelatedNoiseMixin:
    """Noise of a matrix factorization for any of Opacus' optimizers, which says how to clip.

    The noise lives in ``optimizer.noise``, apart from ``state_dict``, which is the wrapped optimizer's: it is secret
    (``optimizer.noise.state_dict()``). Each process sums its own examples; the first adds the noise; one sum over the
    processes follows, also where the base is one of Opacus' distributed optimizers.

    Args:
        optimizer: Any optimizer; it sees ordinary gradients in ``p.grad``.
        noise: The noise in unit scale, over all trainable parameters in the optimizer's order.
        noise_std: Standard deviation of ``z`` for clip norm 1: noise multiplier times sensitivity.
        max_grad_norm: Clip norm ``zeta`` of an example's gradient.
        expected_batch_size: The constant that the sum of a step is divided by, over all processes.
        gradient_scale: Undoes a constant that the loss was divided by (gradient accumulation) before clipping.
        gradients: What fills the gradients; its ``check`` is asked before they are clipped.

    Attributes:
        examples: Rows of per-sample gradients that the coming step holds so far; under ghost clipping whoever calls the
            backward pass counts them.

    Guarantees:
        - Every trainable parameter gets noise in every step, with or without a gradient.
        - One noise vector per step, scaled by ``noise_std * max_grad_norm``, divided by the constant batch size.
        - None of these constants changes during the run: a schedule or an adaptive clip norm is refused.

    Raises:
        ValueError: If the noise's dimension is not the number of trained scalars, or a constant is out of range.
    """

    params: list[Any]  # Opacus keeps summed_grad and grad_sample on the parameters
    noise_multiplier: float
    max_grad_norm: float
    expected_batch_size: int

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        noise: CorrelatedNoise,
        noise_std: float,
        max_grad_norm: float,
        expected_batch_size: int,
        gradient_scale: float = 1.0,
        gradients: GradientSource | None = None,
    ) -> None:
        for name, value in (
            ("max_grad_norm", max_grad_norm),
            ("expected_batch_size", expected_batch_size),
            ("gradient_scale", gradient_scale),
        ):
            check_above(name, value)
        check_at_least("noise_std", noise_std)
        super().__init__(  # type: ignore[call-arg]  # the mixin's next class is one of Opacus's optimizers
            optimizer,
            noise_multiplier=noise_std,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size,
        )
        size = sum(p.numel() for p in self.params)
        if size != noise.dimension:
            raise ValueError(
                f"The noise has dimension {noise.dimension}, but {size} scalars are trained. Make it for these."
            )
        self.noise = noise
        shared = distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank() if shared else 0
        self.world_size = distributed.get_world_size() if shared else 1
        self.gradient_scale = gradient_scale
        self._gradients = gradients
        self._trained = [id(p) for p in self.params]
        self.examples = 0

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets anything but the constants that the noise was calibrated for.

        Raises:
            RuntimeError: On a new value of one of these.
        """
        old = self.__dict__.get("noise_multiplier" if name == "_adjusted_noise_multiplier" else name, value)
        if name in _FIXED and old != value:
            raise RuntimeError(
                f"{name.lstrip('_')} can't change from {old!r} to {value!r} during private training: the correlated"
                " noise was calibrated once for the whole run. Remove the noise or clipping schedule, or adaptive"
                " clipping."
            )
        super().__setattr__(name, value)

    @property
    def accumulated_iterations(self) -> int:
        """Read by Opacus' own accountants alone.

        Raises:
            RuntimeError: Always: they assume independent noise and Poisson sampling.
        """
        raise RuntimeError(
            "Opacus' accountants take the noise of each step as independent, which correlated noise is not: their"
            " epsilon would be wrong. Use the privacy plan's epsilon_after, or an accountant for matrix factorizations."
        )

    @property
    def pending(self) -> bool:
        """Whether clipped gradients wait for their step, as in the middle of an accumulation."""
        return any(getattr(p, "summed_grad", None) is not None for p in self.params)

    def clip_and_accumulate(self) -> None:
        """Adds the clipped sum of a batch to ``p.summed_grad`` (float32) and drops the gradients that it came from."""
        raise NotImplementedError

    def _check_gradients(self) -> None:
        seen = any(p.grad is not None for p in self.params)
        if seen and self._gradients is not None and self._gradients.check():
            self._gradients = None

    def _accumulate(self, p: Any, clipped: Tensor) -> None:
        summed = p.summed_grad
        p.summed_grad = clipped if summed is None else summed.add_(clipped)

    @torch.no_grad()
    def add_noise(self) -> None:
        """Puts the noisy sum of all processes into ``p.grad``.

        Raises:
            RuntimeError: Where parameters were frozen, thawed or added since the start, or all steps are spent.
        """
        if [id(p) for p in self.params] != self._trained:
            raise RuntimeError(
                "The set of trained parameters changed during private training, which its noise was not planned for."
                " Freeze and thaw before fit, not in a callback."
            )
        total = torch.cat([self._summed(p).flatten() for p in self.params])
        if self.rank == 0:
            total.add_(self.noise.next(), alpha=self.noise_multiplier * self.max_grad_norm)
        else:
            self.noise.count()
        if self.world_size > 1:
            distributed.all_reduce(total)
        for p, gradient in zip(self.params, torch.split(total, [p.numel() for p in self.params]), strict=True):
            p.grad = gradient.view_as(p).to(p.dtype)
            p.summed_grad = None

    def reduce_gradients(self) -> None:
        """Nothing: the processes' sums are together already, where Opacus' distributed optimizers ask for it."""

    @torch.no_grad()
    def scale_grad(self) -> None:
        """Divides by the constant batch size, however many examples the step had."""
        for p in self.params:
            if p.grad is not None:
                p.grad.div_(self.expected_batch_size)

    def pre_step(self, closure: object = None) -> bool:
        """Turns clipped gradients into the noisy mean.

        Returns:
            Whether the wrapped optimizer steps now: not where Opacus' ``BatchMemoryManager`` has more of the batch.
        """
        self.clip_and_accumulate()
        self._is_last_step_skipped = bool(self._check_skip_next_step())  # type: ignore[attr-defined]  # of Opacus's optimizer, which the mixin stands before
        if self._is_last_step_skipped:
            return False
        self.add_noise()
        self.scale_grad()
        if self.step_hook:  # type: ignore[attr-defined]  # of Opacus's optimizer, which the mixin stands before
            self.step_hook(self)  # type: ignore[attr-defined]  # of Opacus's optimizer, which the mixin stands before
        self.examples = 0
        return True

    def _summed(self, p: Any) -> Tensor:
        summed: Tensor | None = p.summed_grad
        return torch.zeros_like(p, dtype=torch.float32) if summed is None else summed


class CorrelatedNoiseOptimizer(CorrelatedNoiseMixin, DPOptimizer):  # type: ignore[misc]  # Opacus has no types
    """Clips per-sample gradients, sums them, adds correlated noise, and steps the wrapped optimizer.

    Per-sample gradients are read from ``p.grad_sample``, where Opacus' hooks put them, and dropped once they are
    clipped, so that gradient accumulation holds no more than one physical batch of them. For arguments and the noise's
    guarantees see :class:`CorrelatedNoiseMixin`.

    Guarantees:
        - The sum of a step moves by at most ``max_grad_norm`` when one example is left out, also where its gradient
          is not finite (it then counts as zero).
    """

    @torch.no_grad()
    def clip_and_accumulate(self) -> None:
        """Clips what ``p.grad_sample`` holds, adds it to ``p.summed_grad`` (float32) and drops it.

        Raises:
            ValueError: If layers disagree on the number of examples.
        """
        self._check_gradients()
        samples = {
            p: self._get_flat_grad_sample(p).to(torch.promote_types(p.dtype, torch.float32))
            for p in self.params
            if p.grad_sample is not None
        }
        if not samples:
            return
        if len({len(g) for g in samples.values()}) > 1:
            raise ValueError(
                f"Layers disagree on the number of examples: {sorted({len(g) for g in samples.values()})}. Every layer"
                " with trained parameters must see the batch as its first dimension."
            )
        self.examples += len(next(iter(samples.values())))
        norms = torch.stack([g.reshape(len(g), p.numel()).norm(dim=1) for p, g in samples.items()], dim=1).norm(dim=1)
        factors = (self.max_grad_norm / (norms * self.gradient_scale + 1e-6)).clamp(max=1.0) * self.gradient_scale
        finite = torch.isfinite(norms)
        if not bool(finite.all()):
            factors = factors.where(finite, 0.0)
            samples = {p: g.nan_to_num(0.0, 0.0, 0.0) for p, g in samples.items()}
        for p, gradients in samples.items():
            self._accumulate(p, torch.einsum("i,i...", factors, gradients))
            p.grad_sample = None


class GhostCorrelatedNoiseOptimizer(CorrelatedNoiseMixin, DPOptimizerFastGradientClipping):  # type: ignore[misc]  # Opacus has no types
    """Takes sums that are clipped already from ``p.grad``, adds correlated noise, and steps the wrapped optimizer.

    The sums come from :class:`~lit_methods.differential_privacy.ghost.GhostGradients`, or from Opacus' own
    ``DPLossFastGradientClipping``. For arguments and guarantees see :class:`CorrelatedNoiseMixin`;
    ``gradient_scale`` has no say here.
    """

    @torch.no_grad()
    def clip_and_accumulate(self) -> None:
        """Moves what ``p.grad`` holds to ``p.summed_grad`` (float32).

        Raises:
            ValueError: If it is the last step's gradient, or was added to it: ``zero_grad`` was forgotten.
        """
        self._check_gradients()
        for p in self.params:
            _check_processed_flag(p.grad)
        for p in self.params:
            if p.grad is not None:
                self._accumulate(p, p.grad.to(torch.promote_types(p.dtype, torch.float32)))
                p.grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops gradients, and sums that wait for no further part of their batch; a zero is never kept for them."""
        super().zero_grad(set_to_none=True)
        if not self._is_last_step_skipped:
            self.examples = 0

    def add_noise(self) -> None:
        """See :meth:`CorrelatedNoiseMixin.add_noise`."""
        super().add_noise()
        for p in self.params:
            _mark_as_processed(p.grad)


class DistributedCorrelatedNoiseOptimizer(CorrelatedNoiseOptimizer, DistributedDPOptimizer):  # type: ignore[misc]  # Opacus has no types
    """:class:`CorrelatedNoiseOptimizer` for code that asks for Opacus' distributed optimizer."""


class DistributedGhostCorrelatedNoiseOptimizer(
    GhostCorrelatedNoiseOptimizer,
    DistributedDPOptimizerFastGradientClipping,  # type: ignore[misc]  # Opacus has no types
):
    """:class:`GhostCorrelatedNoiseOptimizer` for code that asks for Opacus' distributed optimizer."""
