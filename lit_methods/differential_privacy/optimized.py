"""Factorizations that search: the numerical optimum that BSR stands in for, and the best closed form for a memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from scipy import optimize, signal

from lit_methods.differential_privacy.factorization import (
    BandedInverseSquareRoot,
    BandedSquareRoot,
    Factorization,
    Participation,
    Strategy,
    affordable_bandwidth,
    check_bandwidth,
)
from lit_methods.differential_privacy.workload import Workload


@dataclass(frozen=True)
class OptimalBandedToeplitz(Factorization):
    """The banded Toeplitz strategy of least expected error, by L-BFGS from BSR: the peer whose cost BSR avoids.

    Attributes:
        bandwidth: ``p``, at most the separation; ``None`` takes the separation.
        iterations: Most L-BFGS steps.

    Raises:
        ValueError: If ``bandwidth`` is below 1.
    """

    bandwidth: int | None = None
    iterations: int = 500

    def __post_init__(self) -> None:
        """Refuses a bandwidth below one."""
        check_bandwidth(self.bandwidth)

    def strategy(self, workload: Workload, participation: Participation, dimension: int) -> Strategy:
        """See :meth:`Factorization.strategy`.

        Raises:
            ValueError: If the bandwidth passes the separation, where the sensitivity is no plain norm.
        """
        bandwidth = min(self.bandwidth or participation.separation, participation.steps)
        if bandwidth > participation.separation:
            raise ValueError(
                f"bandwidth={bandwidth} passes the separation of {participation.separation} steps, for which"
                " OptimalBandedToeplitz is not defined. Lower it, or use BandedSquareRoot."
            )
        if bandwidth == 1:  # nothing to search, and scipy's minimizer wants at least one unknown
            return Strategy("optimal band", torch.ones(1, dtype=torch.float64), workload, participation)
        column = workload.first_column(participation.steps).numpy()
        start = workload.square_root(bandwidth).numpy()
        found = optimize.minimize(
            _log_error,
            start[1:] / start[0],
            args=(column, participation),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": self.iterations, "maxfun": 2 * self.iterations, "ftol": 1e-13, "gtol": 1e-9},
        )
        coefficients = torch.from_numpy(np.concatenate([[1.0], found.x]))
        return Strategy("optimal band", coefficients, workload, participation)


def _log_error(
    tail: NDArray[np.float64], workload: NDArray[np.float64], participation: Participation
) -> tuple[float, NDArray[np.float64]]:
    """``log(E^2)`` of the band ``(1, tail)`` up to a constant, and its gradient in the tail."""
    column = np.concatenate([[1.0], tail])
    steps, bandwidth = len(workload), len(column)
    with np.errstate(over="ignore", invalid="ignore"):
        decoder = signal.lfilter([1.0], column, workload)
        weights = np.arange(steps, 0, -1) * decoder
        adjoint = signal.lfilter([1.0], column, weights[::-1])[::-1]
        squared = float(weights @ decoder)
    if not math.isfinite(squared) or not np.isfinite(adjoint).all():
        return math.inf, np.zeros_like(tail)
    shifted = np.array([adjoint[lag:] @ decoder[: steps - lag] for lag in range(1, bandwidth)])
    times = min(participation.participations, -(-steps // participation.separation))
    last = min(bandwidth, steps - (times - 1) * participation.separation)
    share = np.where(np.arange(bandwidth) < last, times, times - 1)
    sensitivity = float(share @ column**2)
    value = math.log(squared) + math.log(sensitivity)
    return value, -2.0 * shifted / squared + 2.0 * (share * column)[1:] / sensitivity


@dataclass(frozen=True)
class BestClosedForm(Factorization):
    """The least expected error among BSR and BISR of all bandwidths that fit a memory; prints its choice.

    Attributes:
        memory_mib: Bound on the noise's memory in MiB.
        candidates: Number of bandwidths tried for each kind, on a geometric grid.
        banded_only: Leave BISR out, where sampling is to amplify.
    """

    memory_mib: float = 1024.0
    candidates: int = 16
    banded_only: bool = False

    def strategy(self, workload: Workload, participation: Participation, dimension: int) -> Strategy:
        """See :meth:`Factorization.strategy`."""
        widest = min(participation.separation, affordable_bandwidth(self.memory_mib, dimension), participation.steps)
        widths = sorted({round(width) for width in np.geomspace(1, widest, self.candidates)})
        rules: list[Factorization] = [BandedSquareRoot(width) for width in widths]
        if not self.banded_only:
            rules += [BandedInverseSquareRoot(width) for width in widths if width > 1]
        tried = [rule.strategy(workload, participation, dimension) for rule in rules]
        errors = [strategy.expected_error() for strategy in tried]
        best = min(range(len(tried)), key=errors.__getitem__)
        rank_zero_info(
            f"Of {len(tried)} strategies within {self.memory_mib:g} MiB (p up to {widest}), {tried[best].name} with"
            f" p={tried[best].bandwidth} has the least expected error: {errors[best]:.4g}, against {errors[0]:.4g}"
            " of independent noise."
        )
        return tried[best]
