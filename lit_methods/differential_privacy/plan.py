"""Everything that a private run fixes before its first step, and the sentence that it may claim at its end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lit_methods.differential_privacy.accounting import FixedOrderAccounting
from lit_methods.differential_privacy.factorization import Factorization
from lit_methods.differential_privacy.functional import gaussian_noise_multiplier
from lit_methods.differential_privacy.samplers import FixedOrderBatchSampler
from lit_methods.differential_privacy.workload import Workload


@dataclass(frozen=True)
class PrivacyPlan:
    """A private run, worked out.

    Attributes:
        accounting: Strategy, noise multiplier and delta.
        max_grad_norm: Clip norm ``zeta`` of an example's gradient.
        expected_batch_size: The constant divisor of a step's sum.
        accumulation: Physical batches per step.
        num_examples: Size of the training set.
        order_seed: Seed of the frozen partition into batches.
        parameters: Name and shape of each trained parameter, in the order of the noise.
    """

    accounting: FixedOrderAccounting
    max_grad_norm: float
    expected_batch_size: int
    accumulation: int
    num_examples: int
    order_seed: int
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
        sampler: FixedOrderBatchSampler,
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
            sampler: Order of the training data.
            max_grad_norm: Clip norm.
            delta: The ``delta`` of the guarantee.
            epsilon: Budget to calibrate the noise to, or:
            noise_multiplier: The noise over the sensitivity.

        Returns:
            The plan.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        names = {id(p): name for name, p in module.named_parameters()}
        strategy = factorization.strategy(
            Workload.from_optimizer(optimizer),
            sampler.participation(steps, accumulation, batches_per_epoch),
            sum(p.numel() for p in parameters),
        )
        if epsilon is not None:
            noise_multiplier = gaussian_noise_multiplier(epsilon, delta)
        return cls(
            accounting=FixedOrderAccounting(strategy, noise_multiplier or 0.0, delta),
            max_grad_norm=max_grad_norm,
            expected_batch_size=sampler.global_batch_size * accumulation,
            accumulation=accumulation,
            num_examples=sampler.num_examples,
            order_seed=sampler.seed,
            parameters=tuple((names[id(p)], tuple(p.shape)) for p in parameters),
        )

    @property
    def dimension(self) -> int:
        """Number ``d`` of trained scalars."""
        return sum(math.prod(shape) for _, shape in self.parameters)

    def fingerprint(self) -> dict[str, Any]:
        """What a resumed run must share with the one that it continues, as plain containers."""
        strategy = self.accounting.strategy
        return {
            "steps": strategy.participation.steps,
            "participations": strategy.participation.participations,
            "separation": strategy.participation.separation,
            "strategy": strategy.name,
            "coefficients": (strategy.coefficients if strategy.noising is None else strategy.noising).tolist(),
            "noise_multiplier": self.accounting.noise_multiplier,
            "delta": self.accounting.delta,
            "max_grad_norm": self.max_grad_norm,
            "expected_batch_size": self.expected_batch_size,
            "accumulation": self.accumulation,
            "num_examples": self.num_examples,
            "order_seed": self.order_seed,
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
        strategy, schedule = self.accounting.strategy, self.accounting.strategy.participation
        return (
            f"Private training: {strategy.name} noise with bandwidth p={strategy.bandwidth} over n={schedule.steps}"
            f" steps, k={schedule.participations} participations at least b={schedule.separation} steps apart;"
            f" sensitivity {strategy.sensitivity():.4f}, noise multiplier {self.accounting.noise_multiplier:.4f},"
            f" expected error {strategy.expected_error():.4g}."
        )

    def guarantee(self, steps: int) -> str:
        """The claim after ``steps`` optimizer steps, with everything that it rests on."""
        schedule = self.accounting.strategy.participation
        return (
            f"({self.epsilon_after(steps):.4g}, {self.accounting.delta:g})-differential privacy for the model after"
            f" each of the {steps} of {schedule.steps} steps together, against leaving out any one training example"
            f" (zero-out adjacency; {self.num_examples} examples in a fixed order, gradients clipped at"
            f" {self.max_grad_norm:g}). Not covered: metrics logged on the training data, and this run's checkpoints"
            " with their noise state."
        )
