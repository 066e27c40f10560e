"""Semi-supervised methods as objects for `SemiSupervisedClassifier`."""

from lit_methods.semi_supervised.strategies.base import Losses, OpenSetNetwork, Step, Strategy
from lit_methods.semi_supervised.strategies.closed_set import FixMatch, MixMatch, Supervised
from lit_methods.semi_supervised.strategies.open_set import FixAStep, IOMatch, OpenMatch

__all__ = [
    "FixAStep",
    "FixMatch",
    "IOMatch",
    "Losses",
    "MixMatch",
    "OpenMatch",
    "OpenSetNetwork",
    "Step",
    "Strategy",
    "Supervised",
]
