"""Drop-in callbacks: each method of the collection that fits any LightningModule."""

from lit_methods.callbacks.banded_square_root_noise import BandedSquareRootNoise
from lit_methods.callbacks.synthetic_image_writer import SyntheticImageWriter

__all__ = ["BandedSquareRootNoise", "SyntheticImageWriter"]
