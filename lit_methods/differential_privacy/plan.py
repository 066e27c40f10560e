"""Everything that a private run fixes before its first step, and the sentence that it may claim at its end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lit_methods.differential_privacy.accounting import Accounting
from lit_methods.differential_privacy.calibration import account, calibrate
from lit_methods.differential_privacy.factorization import Factorization
from lit_methods.differential_privacy.samplers import AccountedBatchSampler
from lit_methods.differential_privacy.workload import Workload


@dataclass(frozen=True)
class PrivacyPlan:
    """A private run, worked out.

    Attributes:
        accounting: Strategy, noise multiplier and delta.
        max_grad_norm: Clip norm ``zeta`` of an example's gradient.
        expected_batch_size: The constant divisor of a step's sum.
        accumulation: Physical batches per step.
        batches_per_epoch: Physical batches of an epoch that are trained on.
        num_examples: Size of the training set.
        parameters: Name and shape of each trained parameter, in the order of the noise.
    """

    accounting: Accounting
    max_grad_norm: float
    expected_batch_size: int
    accumulation: int
    batches_per_epoch: int
    num_examples: int
    parameters: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def make(
        cls,
        module: nn.Module,
        optimizer: Optimizer,
        factorization: Factorization,
        *,
        steps: int,
        batches_per_epoch: int,
        accumulation: int,
        sampler: AccountedBatchSampler,
        max_grad_norm: float,
        delta: float,
        epsilon: float | None = None,
        noise_multiplier: float | None = None,
    ) -> PrivacyPlan:
        """Works a run out.

        Args:
            module: What is trained.
            optimizer: Its only optimizer.
            factorization: The rule that makes the strategy.
            steps: Optimizer steps of the whole run.
            batches_per_epoch: Physical batches of an epoch.
            accumulation: Physical batches per optimizer step.
            sampler: What makes the batches.
            max_grad_norm: Clip norm.
            delta: The ``delta`` of the guarantee.
            epsilon: Budget to calibrate the noise to, or:
            noise_multiplier: The noise over the sensitivity.

        Returns:
            The plan.

        Raises:
            ValueError: Where the strategy does not fit the sampler.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        names = {id(p): name for name, p in module.named_parameters()}
        strategy = factorization.strategy(
            Workload.from_optimizer(optimizer),
            sampler.participation(steps, accumulation, batches_per_epoch),
            sum(p.numel() for p in parameters),
        )
        batches = {"accumulation": accumulation, "batches_per_epoch": batches_per_epoch}
        if epsilon is not None:
            accounting = calibrate(strategy, sampler, epsilon, delta, **batches)
        else:
            accounting = account(strategy, sampler, noise_multiplier or 0.0, delta, **batches)
        return cls(
            accounting=accounting,
            max_grad_norm=max_grad_norm,
            expected_batch_size=sampler.global_batch_size * accumulation,
            accumulation=accumulation,
            batches_per_epoch=batches_per_epoch,
            num_examples=sampler.num_examples,
            parameters=tuple((names[id(p)], tuple(p.shape)) for p in parameters),
        )

    @property
    def dimension(self) -> int:
        """Number ``d`` of trained scalars."""
        return sum(math.prod(shape) for _, shape in self.parameters)

    def fingerprint(self) -> dict[str, Any]:
        """What a resumed run must share with the one that it continues, as plain containers."""
        return {
            **self.accounting.fingerprint(),
            "delta": self.accounting.delta,
            "max_grad_norm": self.max_grad_norm,
            "expected_batch_size": self.expected_batch_size,
            "accumulation": self.accumulation,
            "batches_per_epoch": self.batches_per_epoch,
            "num_examples": self.num_examples,
            "parameters": [[name, list(shape)] for name, shape in self.parameters],
        }

    def check_resumable(self, saved: dict[str, Any]) -> None:
        """Refuses a checkpoint of another plan.

        Args:
            saved: Its :meth:`fingerprint`.

        Raises:
            ValueError: Naming what differs.
        """
        now = self.fingerprint()
        changed = [name for name in now if saved.get(name) != now[name]]
        if changed:
            short = [f"{name} (saved {saved.get(name)!r:.60}, now {now[name]!r:.60})" for name in changed]
            raise ValueError(
                f"The checkpoint belongs to another private run: {'; '.join(short)} changed. The noise of its remaining"
                " steps would not cover this run. Resume with the settings that it was started with, or train anew"
                " and count both runs."
            )

    def epsilon_after(self, steps: int) -> float:
        """``epsilon`` spent after ``steps`` optimizer steps."""
        return self.accounting.epsilon_after(steps)

    def describe(self) -> str:
        """One line on the noise, for the log at the start."""
        strategy = self.accounting.strategy
        return (
            f"Private training: {strategy.name} noise with bandwidth p={strategy.bandwidth};"
            f" {self.accounting.describe()}; expected error {self.accounting.expected_error():.4g}."
        )

    def guarantee(self, steps: int) -> str:
        """The claim after ``steps`` optimizer steps, with everything that it rests on."""
        accounting = self.accounting
        return (
            f"({self.epsilon_after(steps):.4g}, {accounting.delta:g})-differential privacy for the model after each of"
            f" the {steps} of {accounting.strategy.participation.steps} steps together, {accounting.neighbours}"
            f" ({accounting.adjacency} adjacency; {self.num_examples} examples {accounting.order}, gradients clipped"
            f" at {self.max_grad_norm:g}). Not covered: metrics logged on the training data, and this run's checkpoints"
            " with their noise state."
        )
