"""Learned data manipulation: weights and augmentations learned on a validation set (Hu et al. 2019)."""

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
from lit_methods.data_manipulation.weights import WeightTable

__all__ = [
    "AtTheta",
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
    "MetaWeightNet",
    "Normalization",
    "NormalizedStep",
    "OptimizerStep",
    "PerSampleGradients",
    "PlainGradient",
    "PlainStep",
    "Problem",
    "RenReweighting",
    "SampleBatch",
    "Softmax",
    "TrainingStep",
    "UniformWeights",
    "WeightStep",
    "WeightTable",
    "WeightingStrategy",
    "weighted_mean",
]
