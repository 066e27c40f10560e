"""What a planned private run needs beside its data, made together: noise, gradients, optimizer, and their state."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import nn
from torch.optim import Optimizer

from lit_methods.differential_privacy.ghost import GhostGradients
from lit_methods.differential_privacy.gradients import PerSampleGradients
from lit_methods.differential_privacy.noise import CorrelatedNoise
from lit_methods.differential_privacy.optimizer import CorrelatedNoiseOptimizer, GhostCorrelatedNoiseOptimizer
from lit_methods.differential_privacy.plan import PrivacyPlan
from lit_methods.differential_privacy.run_state import check_complete, epoch_position, run_state

Clipping = Literal["per_sample", "ghost"]


class PrivateRun:
    """Hooks on the module and the private optimizer of one plan, until :meth:`close`.

    Args:
        module: What is trained.
        optimizer: Its only optimizer; the private one steps it.
        plan: The run, worked out for both.
        clipping: ``"per_sample"`` keeps a gradient per example; ``"ghost"`` takes two backward passes instead.
        loss_reduction: How the loss takes a batch together, for ``clipping="per_sample"``.
        gradient_scale: What the loss was divided by (gradient accumulation), for ``clipping="per_sample"``.
        unsafe_seed: Seed of the noise for tests; whoever knows it can subtract the noise.

    Attributes:
        optimizer: The private optimizer.
        noise: Its noise.
        gradients: The hooks.

    Raises:
        ValueError: On an unknown ``clipping``.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        plan: PrivacyPlan,
        *,
        clipping: Clipping = "per_sample",
        loss_reduction: Literal["mean", "sum"] = "mean",
        gradient_scale: float = 1.0,
        unsafe_seed: int | None = None,
    ) -> None:
        if clipping not in get_args(Clipping):
            raise ValueError(f"clipping must be one of {get_args(Clipping)}, but is {clipping!r}.")
        self.plan = plan
        device = next(p.device for p in module.parameters() if p.requires_grad)
        self.noise = CorrelatedNoise.of(
            plan.accounting.strategy, plan.dimension, generator_seed=unsafe_seed, device=device
        )
        self.gradients: PerSampleGradients | GhostGradients
        self.optimizer: CorrelatedNoiseOptimizer | GhostCorrelatedNoiseOptimizer
        if clipping == "ghost":
            kind: type[Any] = GhostCorrelatedNoiseOptimizer
            self.gradients = GhostGradients(module, plan.max_grad_norm)
        else:
            kind = CorrelatedNoiseOptimizer
            self.gradients = PerSampleGradients(module, loss_reduction)
        self.optimizer = kind(
            optimizer,
            noise=self.noise,
            noise_std=plan.accounting.noise_std,
            max_grad_norm=plan.max_grad_norm,
            expected_batch_size=plan.expected_batch_size,
            gradient_scale=gradient_scale,
            gradients=self.gradients,
        )
        optimizer.zero_grad()

    @property
    def position(self) -> int:
        """Physical batches of the epoch that were trained on."""
        return epoch_position(self.plan, self.noise.step)

    def epsilon(self) -> float:
        """``epsilon`` spent so far, at the plan's ``delta``."""
        return self.plan.epsilon_after(self.noise.step)

    def guarantee(self) -> str:
        """What may be claimed so far, in one sentence."""
        return self.plan.guarantee(self.noise.step)

    def state_dict(self) -> dict[str, Any]:
        """The noise's state and the plan's fingerprint. Secret: with it the noise can be subtracted."""
        return run_state(self.plan, self.noise, self.optimizer.pending)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the saved run stopped.

        Args:
            state: Of :meth:`state_dict`.

        Raises:
            ValueError: If it is stripped of its noise, was saved in the middle of an accumulation, or belongs to
                another plan.
        """
        check_complete(state)
        self.plan.check_resumable(state["fingerprint"])
        self.noise.load_state_dict(state["noise"])

    def close(self) -> None:
        """Leaves the module as it was found."""
        self.gradients.remove()
