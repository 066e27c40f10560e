"""Personalized federated learning by spectral co-distillation (Chen et al., NeurIPS 2023, arXiv 2401.17124)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lit_methods.federated.automatic import AutomaticBackend
from lit_methods.federated.clients import ClientStore
from lit_methods.federated.clock import NetworkModel, ProtocolClock
from lit_methods.federated.co_distillation import SpectralCoDistillation
from lit_methods.federated.cohort import Cohort, Update
from lit_methods.federated.distillation import SpectralDistillationLoss
from lit_methods.federated.evaluation import EvaluationBatch
from lit_methods.federated.functional import aggregate, spectral_divergence, spectrum
from lit_methods.federated.heads import FedRep, FedRoD
from lit_methods.federated.local_training import LocalBackend, Models
from lit_methods.federated.loop import LoopBackend
from lit_methods.federated.strategies import Ditto, FedAvg, FedProx, LocalOnly, Strategy
from lit_methods.federated.vectorized import VectorizedBackend

if TYPE_CHECKING:
    from lit_methods.federated.module import FederatedModule

__all__ = [
    "AutomaticBackend",
    "ClientStore",
    "Cohort",
    "Ditto",
    "EvaluationBatch",
    "FedAvg",
    "FedProx",
    "FedRep",
    "FedRoD",
    "FederatedModule",
    "LocalBackend",
    "LocalOnly",
    "LoopBackend",
    "Models",
    "NetworkModel",
    "ProtocolClock",
    "SpectralCoDistillation",
    "SpectralDistillationLoss",
    "Strategy",
    "Update",
    "VectorizedBackend",
    "aggregate",
    "spectral_divergence",
    "spectrum",
]


def __getattr__(name: str) -> Any:
    """Imports what needs Lightning only when it is asked for."""
    if name == "FederatedModule":
        return import_module(f"{__name__}.module").FederatedModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
