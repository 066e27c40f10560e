"""What a planned private run needs beside its data, made together: noise, gradients, optimizer, and their state."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import nn
from torch.optim import Optimizer

from lit_methods.differential_privacy.ghost import GhostGradients
from lit_methods.differential_privacy.gradients import PerSampleGradients
from lit_methods.differential_privacy.ledger import ParticipationLedger
from lit_methods.differential_privacy.noise import CorrelatedNoise
from lit_methods.differential_privacy.optimizer import CorrelatedNoiseOptimizer, GhostCorrelatedNoiseOptimizer
from lit_methods.differential_privacy.plan import PrivacyPlan
from lit_methods.differential_privacy.run_state import check_complete, run_state
from lit_methods.differential_privacy.samplers import AccountedBatchSampler
from lit_methods.errors import check_choice

Clipping = Literal["per_sample", "ghost"]


class PrivateRun:
    """Hooks on the module and the private optimizer of one plan, until :meth:`close`.

    Args:
        module: What is trained.
        optimizer: Its only optimizer; the private one steps it.
        plan: The run, worked out for both.
        sampler: What makes its batches.
        ledger: Whether the batches are held to the plan as they are drawn.
        clipping: ``"per_sample"`` keeps a gradient per example; ``"ghost"`` takes two backward passes instead.
        loss_reduction: How the loss takes a batch together, for ``clipping="per_sample"``.
        gradient_scale: What the loss was divided by (gradient accumulation), for ``clipping="per_sample"``.
        unsafe_seed: Seed of the noise for tests; whoever knows it can subtract the noise.

    Attributes:
        optimizer: The private optimizer.
        noise: Its noise.
        gradients: The hooks.

    Raises:
        ValueError: On an unknown ``clipping`` or ``loss_reduction``.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        plan: PrivacyPlan,
        sampler: AccountedBatchSampler,
        *,
        ledger: bool = False,
        clipping: Clipping = "per_sample",
        loss_reduction: Literal["mean", "sum"] = "mean",
        gradient_scale: float = 1.0,
        unsafe_seed: int | None = None,
    ) -> None:
        check_choice("clipping", clipping, get_args(Clipping))
        check_choice("loss_reduction", loss_reduction, ("mean", "sum"))
        self.plan, self.sampler = plan, sampler
        if ledger:
            sampler.ledger = ParticipationLedger(plan.accounting.strategy.participation, plan.accumulation)
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
        """The physical batch that is due, as the sampler counts: of the epoch, or of the run."""
        return self.sampler.position_after(self.noise.step, self.plan.accumulation, self.plan.batches_per_epoch)

    def epsilon(self) -> float:
        """``epsilon`` spent so far, at the plan's ``delta``."""
        return self.plan.epsilon_after(self.noise.step)

    def guarantee(self) -> str:
        """What may be claimed so far, in one sentence."""
        return self.plan.guarantee(self.noise.step)

    def state_dict(self) -> dict[str, Any]:
        """The noise's state and the plan's fingerprint. Secret: with it the noise can be subtracted."""
        return run_state(self.plan, self.noise, self.sampler, self.optimizer.pending)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the saved run stopped.

        Args:
            state: Of :meth:`state_dict`.

        Raises:
            ValueError: If it is stripped of its noise, was saved in the middle of an accumulation, or belongs to
                another plan or another order of the data.
        """
        check_complete(state)
        self.plan.check_resumable(state["fingerprint"])
        self.sampler.load_state_dict(state["sampler"])
        self.noise.load_state_dict(state["noise"])
        if self.sampler.ledger is not None:
            self.sampler.ledger.step = self.noise.step

    def close(self) -> None:
        """Leaves the module as it was found."""
        self.gradients.remove()
        self.sampler.ledger = None
