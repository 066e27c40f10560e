"""Banded square root noise for differentially private training (Kalinin & Lampert 2024, arXiv 2405.13763)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lit_methods.differential_privacy.accounting import Accounting, FixedOrderAccounting
from lit_methods.differential_privacy.amplification import CyclicPoissonAccounting
from lit_methods.differential_privacy.calibration import account, calibrate, cycle_length_errors
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
from lit_methods.differential_privacy.server import PrivateServerUpdate
from lit_methods.differential_privacy.user_level import UserLevelRounds
from lit_methods.differential_privacy.workload import Workload

if TYPE_CHECKING:
    from lit_methods.differential_privacy.accountant import MatrixFactorizationAccountant
    from lit_methods.differential_privacy.checkpoint import strip_private_state
    from lit_methods.differential_privacy.ghost import GhostGradients
    from lit_methods.differential_privacy.gradients import PerSampleGradients
    from lit_methods.differential_privacy.optimizer import (
        CorrelatedNoiseMixin,
        CorrelatedNoiseOptimizer,
        GhostCorrelatedNoiseOptimizer,
    )
    from lit_methods.differential_privacy.private_training import PrivateTraining, make_private
    from lit_methods.differential_privacy.sampling import CyclicPoisson, FixedOrder, Sampling

__all__ = [
    "AccountedBatchSampler",
    "Accounting",
    "BandedInverseSquareRoot",
    "BandedSquareRoot",
    "BestClosedForm",
    "CorrelatedNoise",
    "CorrelatedNoiseMixin",
    "CorrelatedNoiseOptimizer",
    "CyclicPoisson",
    "CyclicPoissonAccounting",
    "CyclicPoissonBatchSampler",
    "Factorization",
    "FixedOrder",
    "FixedOrderAccounting",
    "FixedOrderBatchSampler",
    "GhostCorrelatedNoiseOptimizer",
    "GhostGradients",
    "Identity",
    "MatrixFactorizationAccountant",
    "OptimalBandedToeplitz",
    "Participation",
    "ParticipationLedger",
    "PerSampleGradients",
    "PrivateServerUpdate",
    "PrivateTraining",
    "Sampling",
    "Strategy",
    "UserLevelRounds",
    "Workload",
    "account",
    "calibrate",
    "cycle_length_errors",
    "make_private",
    "strip_private_state",
]

_LATE = {
    "CyclicPoisson": "sampling",
    "CorrelatedNoiseMixin": "optimizer",
    "CorrelatedNoiseOptimizer": "optimizer",
    "FixedOrder": "sampling",
    "GhostCorrelatedNoiseOptimizer": "optimizer",
    "GhostGradients": "ghost",
    "MatrixFactorizationAccountant": "accountant",
    "PerSampleGradients": "gradients",
    "PrivateTraining": "private_training",
    "Sampling": "sampling",
    "make_private": "private_training",
    "strip_private_state": "checkpoint",
}


def __getattr__(name: str) -> Any:
    """Imports what needs Opacus or Lightning only when it is asked for."""
    if name in _LATE:
        return getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
