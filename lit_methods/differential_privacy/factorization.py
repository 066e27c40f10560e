"""Strategies ``C`` of a matrix-factorization mechanism as objects with one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from lit_methods.differential_privacy.functional import decoder_norm, series_inverse, toeplitz_sensitivity
from lit_methods.differential_privacy.workload import Workload
from lit_methods.errors import check_at_least


@dataclass(frozen=True)
class Participation:
    """Who can take part when: the ``(n, k, b)`` of the run, counted in optimizer steps.

    Attributes:
        steps: Number ``n`` of optimizer steps of the whole run.
        participations: Most participations ``k`` of one privacy unit.
        separation: Least distance ``b`` between two participations of one unit.

    Raises:
        ValueError: If one of them is below 1.
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
        coefficients: First column ``c`` of the Toeplitz ``C``, float64: ``(p,)`` where ``C`` is banded, else ``(n,)``.
        workload: The workload that it was made for.
        participation: The participation that it was made for.
        noising: First column of a banded ``C^-1``, shape ``(p,)``, for strategies that are banded there instead.
    """

    name: str
    coefficients: Tensor
    workload: Workload
    participation: Participation
    noising: Tensor | None = None

    @property
    def banded(self) -> bool:
        """Whether ``C`` is banded, on which amplification by sampling rests."""
        return self.noising is None

    @property
    def bandwidth(self) -> int:
        """Number ``p`` of diagonals of ``C``, or of ``C^-1``; the noise keeps ``p - 1`` past vectors."""
        return self.coefficients.numel() if self.noising is None else self.noising.numel()

    def sensitivity(self, steps: int | None = None) -> float:
        """Sensitivity of ``C`` (Theorem 2), of the first ``steps`` steps if given."""
        schedule = self.participation if steps is None else self.participation.prefix(steps)
        return toeplitz_sensitivity(self.coefficients, schedule.steps, schedule.participations, schedule.separation)

    def decoder_norm(self) -> float:
        """``||B||_F / sqrt(n)``: the error that unit noise before the decoder leaves in the models."""
        return decoder_norm(self.coefficients, self.workload.first_column(self.participation.steps))

    def expected_error(self) -> float:
        """Expected error ``E(B, C)`` (equation 4) for unit noise and clip norm."""
        return self.sensitivity() * self.decoder_norm()


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


def check_bandwidth(bandwidth: int | None) -> None:
    """Refuses a bandwidth below one; ``None`` is chosen later.

    Raises:
        ValueError: If it is below 1.
    """
    if bandwidth is not None and bandwidth < 1:
        raise ValueError(f"bandwidth must be at least 1 (1 is DP-SGD's noise), but is {bandwidth!r}.")


def affordable_bandwidth(memory_mib: float, dimension: int) -> int:
    """Largest ``p`` whose ``p - 1`` float32 vectors of length ``d`` fit into the memory; at least 1.

    Raises:
        ValueError: If the memory is negative or not finite.
    """
    check_at_least("memory_mib", memory_mib)
    return 1 + int(memory_mib * 2**20 // (4 * dimension))


@dataclass(frozen=True)
class BandedSquareRoot(Factorization):
    """BSR: the first ``p`` diagonals of the workload's square root (Kalinin & Lampert 2024, Section 3).

    Attributes:
        bandwidth: ``p``; ``None`` takes the separation ``b``, the best choice for many participations, or less
            where ``p - 1`` vectors of the model's size would pass ``memory_mib``.
        memory_mib: Bound on the noise's memory in MiB for ``bandwidth=None``.

    Raises:
        ValueError: If ``bandwidth`` is below 1.
    """

    bandwidth: int | None = None
    memory_mib: float = 1024.0

    def __post_init__(self) -> None:
        """Refuses a bandwidth below one."""
        check_bandwidth(self.bandwidth)

    def strategy(self, workload: Workload, participation: Participation, dimension: int) -> Strategy:
        """See :meth:`Factorization.strategy`."""
        bandwidth = self.bandwidth or min(participation.separation, affordable_bandwidth(self.memory_mib, dimension))
        root = workload.square_root(min(bandwidth, participation.steps))
        return Strategy("BSR" if bandwidth > 1 else "identity", root, workload, participation)


@dataclass(frozen=True)
class Identity(Factorization):
    """Independent noise in each step: DP-SGD's, ``C = I``."""

    def strategy(self, workload: Workload, participation: Participation, dimension: int) -> Strategy:
        """See :meth:`Factorization.strategy`."""
        return BandedSquareRoot(bandwidth=1).strategy(workload, participation, dimension)


@dataclass(frozen=True)
class BandedInverseSquareRoot(Factorization):
    """BISR: the first ``p`` diagonals of the square root's inverse (Kalinin et al. 2025, arXiv 2505.12128).

    At small bandwidths and with momentum it leaves much less error than BSR; sampling does not amplify it.

    Attributes:
        bandwidth: ``p``, the band of ``C^-1``.

    Raises:
        ValueError: If ``bandwidth`` is below 1.
    """

    bandwidth: int = 4

    def __post_init__(self) -> None:
        """Refuses a bandwidth below one."""
        check_bandwidth(self.bandwidth)

    def strategy(self, workload: Workload, participation: Participation, dimension: int) -> Strategy:
        """See :meth:`Factorization.strategy`."""
        bandwidth = min(self.bandwidth, participation.steps)
        noising = workload.inverse_square_root(bandwidth)
        column = series_inverse(noising, participation.steps)
        return Strategy("BISR", column, workload, participation, noising=noising)
