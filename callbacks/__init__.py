"""Drop-in callbacks: each method of the collection that fits any LightningModule."""

from lit_methods.callbacks.banded_square_root_noise import BandedSquareRootNoise
from lit_methods.callbacks.data_weighting import DataWeighting
from lit_methods.callbacks.learned_augmentation import LearnedAugmentation

__all__ = ["BandedSquareRootNoise", "DataWeighting", "LearnedAugmentation"]
