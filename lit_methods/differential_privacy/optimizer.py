"""An Opacus optimizer that adds correlated noise: clipping as in DP-SGD, noise from a matrix factorization."""

from __future__ import annotations

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, distributed
from torch.optim import Optimizer

from lit_methods.differential_privacy.noise import CorrelatedNoise


class CorrelatedNoiseOptimizer(DPOptimizer):  # type: ignore[misc]
    """Clips per-sample gradients, sums them, adds correlated noise, and steps the wrapped optimizer.

    Each process clips its own examples; the first adds the noise; one sum over the processes follows. Per-sample
    gradients are read from ``p.grad_sample``, where Opacus' hooks put them, and dropped once they are clipped, so
    that gradient accumulation holds no more than one physical batch of them.

    Args:
        optimizer: Any optimizer; it sees ordinary gradients in ``p.grad``.
        noise: The noise in unit scale, over all trainable parameters in the optimizer's order.
        noise_std: Standard deviation of ``z`` for clip norm 1: noise multiplier times sensitivity.
        max_grad_norm: Clip norm ``zeta`` of an example's gradient.
        expected_batch_size: The constant that the sum of a step is divided by.
        gradient_scale: Undoes a constant that the loss was divided by (gradient accumulation) before clipping.

    Guarantees:
        - The sum of a step moves by at most ``max_grad_norm`` when one example is left out, also where its gradient
          is not finite (it then counts as zero).
        - Every trainable parameter gets noise in every step, with or without a gradient.
        - One noise vector per step, scaled by ``noise_std * max_grad_norm``, divided by the constant batch size.

    Raises:
        ValueError: If the noise's dimension is not the number of trained scalars.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        noise: CorrelatedNoise,
        noise_std: float,
        max_grad_norm: float,
        expected_batch_size: int,
        gradient_scale: float = 1.0,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_std,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size,
        )
        size = sum(p.numel() for p in self.params)
        if size != noise.dimension:
            raise ValueError(f"The noise has dimension {noise.dimension}, but {size} scalars are trained.")
        self.noise = noise
        shared = distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank() if shared else 0
        self.world_size = distributed.get_world_size() if shared else 1
        self.gradient_scale = gradient_scale
        self._trained = [id(p) for p in self.params]

    @property
    def pending(self) -> bool:
        """Whether clipped gradients wait for their step, as in the middle of an accumulation."""
        return any(p.summed_grad is not None for p in self.params)

    @torch.no_grad()
    def clip_and_accumulate(self) -> None:
        """Clips what ``p.grad_sample`` holds, adds it to ``p.summed_grad`` (float32) and drops it."""
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
        norms = torch.stack([g.reshape(len(g), -1).norm(dim=1) for g in samples.values()], dim=1).norm(dim=1)
        factors = (self.max_grad_norm / (norms * self.gradient_scale + 1e-6)).clamp(max=1.0) * self.gradient_scale
        finite = torch.isfinite(norms)
        if not bool(finite.all()):
            factors = factors.where(finite, 0.0)
            samples = {p: g.nan_to_num(0.0, 0.0, 0.0) for p, g in samples.items()}
        for p, gradients in samples.items():
            clipped = torch.einsum("i,i...", factors, gradients)
            p.summed_grad = clipped if p.summed_grad is None else p.summed_grad.add_(clipped)
            p.grad_sample = None

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

    def scale_grad(self) -> None:
        """Divides by the constant batch size, however many examples the step had."""
        for p in self.params:
            p.grad.div_(self.expected_batch_size)

    def pre_step(self, closure: object = None) -> bool:
        """Turns per-sample gradients into the noisy mean; always followed by the wrapped optimizer's step."""
        self.clip_and_accumulate()
        self.add_noise()
        self.scale_grad()
        return True

    def _summed(self, p: Tensor) -> Tensor:
        summed: Tensor | None = p.summed_grad  # type: ignore[attr-defined]
        return torch.zeros_like(p, dtype=torch.float32) if summed is None else summed
