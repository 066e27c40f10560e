"""Strategies ``C`` of a matrix-factorization mechanism as objects with one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from lit_methods.differential_privacy.functional import decoder_norm, toeplitz_sensitivity
from lit_methods.differential_privacy.workload import Workload


@dataclass(frozen=True)
class Participation:
    """Who can take part when: the ``(n, k, b)`` of the run, counted in optimizer steps.

    Attributes:
        steps: Number ``n`` of optimizer steps of the whole run.
        participations: Most participations ``k`` of one privacy unit.
        separation: Least distance ``b`` between two participations of one unit.
    """

    steps: int
    participations: int
    separation: int

    def __post_init__(self) -> None:
        """Refuses counts below one."""
        for name in ("steps", "participations", "separation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but is {getattr(self, name)!r}.")

    def prefix(self, steps: int) -> Participation:
        """The same schedule, stopped after ``steps`` steps."""
        return Participation(steps, self.participations, self.separation)


@dataclass(frozen=True)
class Strategy:
    """A strategy worked out for one run.

    Attributes:
        name: What the summary calls it.
        coefficients: First column ``c`` of the banded Toeplitz ``C``, shape ``(p,)``, float64.
        workload: The workload that it was made for.
        participation: The participation that it was made for.
    """

    name: str
    coefficients: Tensor
    workload: Workload
    participation: Participation

    @property
    def bandwidth(self) -> int:
        """Number ``p`` of diagonals of ``C``; the noise keeps ``p - 1`` past vectors."""
        return self.coefficients.numel()

    def sensitivity(self, steps: int | None = None) -> float:
        """Sensitivity of ``C`` (Theorem 2), of the first ``steps`` steps if given."""
        schedule = self.participation if steps is None else self.participation.prefix(steps)
        return toeplitz_sensitivity(self.coefficients, schedule.steps, schedule.participations, schedule.separation)

    def expected_error(self) -> float:
        """Expected error ``E(B, C)`` (equation 4) for unit noise and clip norm."""
        column = self.workload.first_column(self.participation.steps)
        return self.sensitivity() * decoder_norm(self.coefficients, column)


class Factorization(ABC):
    """A rule that makes a :class:`Strategy` for a workload and a participation schedule."""

    @abstractmethod
    def strategy(self, workload: Workload, participation: Participation, dimension: int) -> Strategy:
        """Works the rule out for one run.

        Args:
            workload: The optimizer as a linear filter.
            participation: Steps, participations and separation of the run.
            dimension: Number ``d`` of trained scalars.

        Returns:
            The strategy.
        """


@dataclass(frozen=True)
class BandedSquareRoot(Factorization):
    """BSR: the first ``p`` diagonals of the workload's square root (Kalinin & Lampert 2024, Section 3).

    Attributes:
        bandwidth: ``p``; ``None`` takes the separation ``b``, the best choice for many participations, or less
            where ``p - 1`` vectors of the model's size would pass ``memory_mib``.
        memory_mib: Bound on the noise's memory in MiB for ``bandwidth=None``.
    """

    bandwidth: int | None = None
    memory_mib: float = 1024.0

    def __post_init__(self) -> None:
        """Refuses a bandwidth below one."""
        if self.bandwidth is not None and self.bandwidth < 1:
            raise ValueError(f"bandwidth must be at least 1 (1 is DP-SGD's noise), but is {self.bandwidth!r}.")

    def strategy(self, workload: Workload, participation: Participation, dimension: int) -> Strategy:
        """See :meth:`Factorization.strategy`."""
        affordable = 1 + int(self.memory_mib * 2**20 // (4 * dimension))
        bandwidth = self.bandwidth or min(participation.separation, affordable)
        root = workload.square_root(min(bandwidth, participation.steps))
        return Strategy("BSR" if bandwidth > 1 else "identity", root, workload, participation)


@dataclass(frozen=True)
class Identity(Factorization):
    """Independent noise in each step: DP-SGD without amplification, ``C = I``."""

    def strategy(self, workload: Workload, participation: Participation, dimension: int) -> Strategy:
        """See :meth:`Factorization.strategy`."""
        return BandedSquareRoot(bandwidth=1).strategy(workload, participation, dimension)
