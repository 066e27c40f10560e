"""Banded square root noise for differentially private training (Kalinin & Lampert 2024, arXiv 2405.13763)."""

from typing import TYPE_CHECKING, Any

from lit_methods.differential_privacy.accounting import Accounting, FixedOrderAccounting
from lit_methods.differential_privacy.amplification import CyclicPoissonAccounting
from lit_methods.differential_privacy.calibration import account, calibrate
from lit_methods.differential_privacy.factorization import (
    BandedInverseSquareRoot,
    BandedSquareRoot,
    Factorization,
    Identity,
    Participation,
    Strategy,
)
from lit_methods.differential_privacy.ledger import ParticipationLedger
from lit_methods.differential_privacy.noise import CorrelatedNoise
from lit_methods.differential_privacy.optimized import BestClosedForm, OptimalBandedToeplitz
from lit_methods.differential_privacy.poisson import CyclicPoissonBatchSampler
from lit_methods.differential_privacy.samplers import AccountedBatchSampler, FixedOrderBatchSampler
from lit_methods.differential_privacy.workload import Workload

if TYPE_CHECKING:
    from lit_methods.differential_privacy.accountant import MatrixFactorizationAccountant
    from lit_methods.differential_privacy.gradients import PerSampleGradients
    from lit_methods.differential_privacy.optimizer import CorrelatedNoiseOptimizer

__all__ = [
    "AccountedBatchSampler",
    "Accounting",
    "BandedInverseSquareRoot",
    "BandedSquareRoot",
    "BestClosedForm",
    "CorrelatedNoise",
    "CorrelatedNoiseOptimizer",
    "CyclicPoissonAccounting",
    "CyclicPoissonBatchSampler",
    "Factorization",
    "FixedOrderAccounting",
    "FixedOrderBatchSampler",
    "Identity",
    "MatrixFactorizationAccountant",
    "OptimalBandedToeplitz",
    "Participation",
    "ParticipationLedger",
    "PerSampleGradients",
    "Strategy",
    "Workload",
    "account",
    "calibrate",
]


def __getattr__(name: str) -> Any:
    """Imports what needs Opacus only when it is asked for."""
    if name == "CorrelatedNoiseOptimizer":
        from lit_methods.differential_privacy.optimizer import CorrelatedNoiseOptimizer

        return CorrelatedNoiseOptimizer
    if name == "PerSampleGradients":
        from lit_methods.differential_privacy.gradients import PerSampleGradients

        return PerSampleGradients
    if name == "MatrixFactorizationAccountant":
        from lit_methods.differential_privacy.accountant import MatrixFactorizationAccountant

        return MatrixFactorizationAccountant
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
