"""Drop-in callbacks: each method of the collection that fits any LightningModule."""

from lit_methods.callbacks.banded_square_root_noise import BandedSquareRootNoise
from lit_methods.callbacks.spectral_distillation import SpectralDistillation

__all__ = ["BandedSquareRootNoise", "SpectralDistillation"]
