"""Everything that a private run fixes before its first step, and the sentence that it may claim at its end."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from lit_methods.differential_privacy.accounting import FixedOrderAccounting


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
            "coefficients": strategy.coefficients.tolist(),
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
            short = [
                f"{name} (saved {saved.get(name)!r:.60}, now {now[name]!r:.60})" for name in changed
            ]
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


def trained_parameters(
    module: nn.Module, order: Iterable[nn.Parameter]
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Names and shapes of the trained parameters in the optimizer's order.

    Args:
        module: Owner of the names.
        order: The optimizer's parameters.

    Returns:
        One ``(name, shape)`` for each.
    """
    names = {id(p): name for name, p in module.named_parameters()}
    return tuple((names[id(p)], tuple(p.shape)) for p in order)
