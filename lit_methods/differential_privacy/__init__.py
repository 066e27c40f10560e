"""Banded square root noise for differentially private training (Kalinin & Lampert 2024, arXiv 2405.13763)."""

from typing import TYPE_CHECKING, Any

from lit_methods.differential_privacy.accounting import FixedOrderAccounting
from lit_methods.differential_privacy.factorization import (
    BandedInverseSquareRoot,
    BandedSquareRoot,
    Factorization,
    Identity,
    Participation,
    Strategy,
)
from lit_methods.differential_privacy.noise import CorrelatedNoise
from lit_methods.differential_privacy.optimized import BestClosedForm, OptimalBandedToeplitz
from lit_methods.differential_privacy.samplers import FixedOrderBatchSampler
from lit_methods.differential_privacy.workload import Workload

if TYPE_CHECKING:
    from lit_methods.differential_privacy.gradients import PerSampleGradients
    from lit_methods.differential_privacy.optimizer import CorrelatedNoiseOptimizer

__all__ = [
    "BandedInverseSquareRoot",
    "BandedSquareRoot",
    "BestClosedForm",
    "CorrelatedNoise",
    "CorrelatedNoiseOptimizer",
    "Factorization",
    "FixedOrderAccounting",
    "FixedOrderBatchSampler",
    "Identity",
    "OptimalBandedToeplitz",
    "Participation",
    "PerSampleGradients",
    "Strategy",
    "Workload",
]


def __getattr__(name: str) -> Any:
    """Imports what needs Opacus only when it is asked for."""
    if name == "CorrelatedNoiseOptimizer":
        from lit_methods.differential_privacy.optimizer import CorrelatedNoiseOptimizer

        return CorrelatedNoiseOptimizer
    if name == "PerSampleGradients":
        from lit_methods.differential_privacy.gradients import PerSampleGradients

        return PerSampleGradients
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
