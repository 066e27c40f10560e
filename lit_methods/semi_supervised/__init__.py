"""Diffusion augmentation of irrelevant unlabelled images (DWD), and open-set semi-supervised classifiers."""

from lit_methods.semi_supervised.class_choice import ClassifierChoice, FixedClass, NearestLabeled, RandomBalanced
from lit_methods.semi_supervised.module import DiscriminatorWeightedDiffusion, RelevanceDiscriminator
from lit_methods.semi_supervised.pu import LogisticSurrogate, PULoss, RelevanceWeight, SigmoidSurrogate
from lit_methods.semi_supervised.relevance import FrozenRelevance, JointRelevance, UniformRelevance
from lit_methods.semi_supervised.transformation import Transformation

__all__ = [
    "ClassifierChoice",
    "DiscriminatorWeightedDiffusion",
    "FixedClass",
    "FrozenRelevance",
    "JointRelevance",
    "LogisticSurrogate",
    "NearestLabeled",
    "PULoss",
    "RandomBalanced",
    "RelevanceDiscriminator",
    "RelevanceWeight",
    "SigmoidSurrogate",
    "Transformation",
    "UniformRelevance",
]
