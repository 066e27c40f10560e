"""Drop-in callbacks: each method of the collection that fits any LightningModule."""

from lit_methods.callbacks.banded_square_root_noise import BandedSquareRootNoise
from lit_methods.callbacks.data_weighting import DataWeighting
from lit_methods.callbacks.knowledge_rerank import KnowledgeRerank
from lit_methods.callbacks.learned_augmentation import LearnedAugmentation
from lit_methods.callbacks.softmax_approximation import SoftmaxApproximation
from lit_methods.callbacks.spectral_distillation import SpectralDistillation
from lit_methods.callbacks.synthetic_image_writer import SyntheticImageWriter
from lit_methods.callbacks.user_level_noise import UserLevelNoise

__all__ = [
    "BandedSquareRootNoise",
    "DataWeighting",
    "KnowledgeRerank",
    "LearnedAugmentation",
    "SoftmaxApproximation",
    "SpectralDistillation",
    "SyntheticImageWriter",
    "UserLevelNoise",
]
