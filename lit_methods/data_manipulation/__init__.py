"""Learned data manipulation: weights and augmentations learned on a validation set (Hu et al. 2019)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lit_methods.data_manipulation.augmenter import MaskedLMAugmenter, Proposal
from lit_methods.data_manipulation.derivatives import (
    Derivative,
    DoubleBackward,
    FiniteDifference,
    ForwardMode,
    PerSampleGradients,
)
from lit_methods.data_manipulation.hypergradient import Gains, Hypergradient
from lit_methods.data_manipulation.last_layer import LastLayer
from lit_methods.data_manipulation.lookahead import AtTheta, LookAhead, OptimizerStep, PlainGradient, TrainingStep
from lit_methods.data_manipulation.peers import InverseFrequency, MetaWeightNet, RenReweighting
from lit_methods.data_manipulation.problem import Problem
from lit_methods.data_manipulation.reduction import weighted_mean
from lit_methods.data_manipulation.steps import (
    DecayingStep,
    LazyAdam,
    Linear,
    Normalization,
    NormalizedStep,
    PlainStep,
    Softmax,
    WeightStep,
)
from lit_methods.data_manipulation.strategies import LearnedWeights, SampleBatch, UniformWeights, WeightingStrategy
from lit_methods.data_manipulation.text_network import TextNetwork
from lit_methods.data_manipulation.weights import WeightTable

if TYPE_CHECKING:
    from lit_methods.data_manipulation.module import ConditionalMaskedLM, TextClassifier

__all__ = [
    "AtTheta",
    "ConditionalMaskedLM",
    "DecayingStep",
    "Derivative",
    "DoubleBackward",
    "FiniteDifference",
    "ForwardMode",
    "Gains",
    "Hypergradient",
    "InverseFrequency",
    "LastLayer",
    "LazyAdam",
    "LearnedWeights",
    "Linear",
    "LookAhead",
    "MaskedLMAugmenter",
    "MetaWeightNet",
    "Normalization",
    "NormalizedStep",
    "OptimizerStep",
    "PerSampleGradients",
    "PlainGradient",
    "PlainStep",
    "Problem",
    "Proposal",
    "RenReweighting",
    "SampleBatch",
    "Softmax",
    "TextClassifier",
    "TextNetwork",
    "TrainingStep",
    "UniformWeights",
    "WeightStep",
    "WeightTable",
    "WeightingStrategy",
    "weighted_mean",
]

_LATE = {"ConditionalMaskedLM", "TextClassifier"}


def __getattr__(name: str) -> Any:
    """Imports the LightningModules when they are asked for."""
    if name in _LATE:
        return getattr(import_module(f"{__name__}.module"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
