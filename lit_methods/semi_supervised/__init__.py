"""Diffusion augmentation of irrelevant unlabelled images (DWD), and open-set semi-supervised classifiers."""

from lit_methods.semi_supervised.augmentation import RandAugment, WeakAugmentation
from lit_methods.semi_supervised.class_choice import ClassifierChoice, FixedClass, NearestLabeled, RandomBalanced
from lit_methods.semi_supervised.module import (
    DiscriminatorWeightedDiffusion,
    RelevanceDiscriminator,
    SemiSupervisedClassifier,
)
from lit_methods.semi_supervised.pu import LogisticSurrogate, PULoss, RelevanceWeight, SigmoidSurrogate
from lit_methods.semi_supervised.relevance import FrozenRelevance, JointRelevance, UniformRelevance
from lit_methods.semi_supervised.samples import ClassifierJudge, ClassSamples
from lit_methods.semi_supervised.strategies import (
    FixAStep,
    FixMatch,
    IOMatch,
    MixMatch,
    OpenMatch,
    Strategy,
    Supervised,
)
from lit_methods.semi_supervised.training import FixMatchCosine
from lit_methods.semi_supervised.transformation import Transformation

__all__ = [
    "ClassSamples",
    "ClassifierChoice",
    "ClassifierJudge",
    "DiscriminatorWeightedDiffusion",
    "FixAStep",
    "FixMatch",
    "FixMatchCosine",
    "FixedClass",
    "FrozenRelevance",
    "IOMatch",
    "JointRelevance",
    "LogisticSurrogate",
    "MixMatch",
    "NearestLabeled",
    "OpenMatch",
    "PULoss",
    "RandAugment",
    "RandomBalanced",
    "RelevanceDiscriminator",
    "RelevanceWeight",
    "SemiSupervisedClassifier",
    "SigmoidSurrogate",
    "Strategy",
    "Supervised",
    "Transformation",
    "UniformRelevance",
    "WeakAugmentation",
]
