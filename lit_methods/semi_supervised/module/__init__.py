"""The LightningModules of the room."""

from lit_methods.semi_supervised.module.classifier import SemiSupervisedClassifier
from lit_methods.semi_supervised.module.diffusion import DiscriminatorWeightedDiffusion
from lit_methods.semi_supervised.module.discriminator import RelevanceDiscriminator

__all__ = ["DiscriminatorWeightedDiffusion", "RelevanceDiscriminator", "SemiSupervisedClassifier"]
