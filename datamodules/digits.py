"""scikit-learn's handwritten digits: real data without a download."""

from typing import Any, cast

import torch
from torch import Tensor

from .images import ImageDataModule
from .splits import Split, stratified_split


class DigitsDataModule(ImageDataModule):
    """1,797 scans of handwritten digits, 8x8 grey values of 0 to 16, which ship with scikit-learn.

    A stratified fifth is the test set and `val_fraction` is taken of the rest, both by `split_seed` alone.
    """

    class_names = tuple(str(digit) for digit in range(10))
    image_shape = (1, 8, 8)
    pixel_maximum = 16
    test_fraction = 0.2

    def read(self, split: Split) -> tuple[Tensor, Tensor] | None:
        """Reads pixels `(N, 1, 8, 8)` and labels `(N,)` of "train" or "test"."""
        if split == "validation":
            return None
        from sklearn.datasets import load_digits

        digits = cast(Any, load_digits())
        images = torch.from_numpy(digits.images).to(torch.uint8).unsqueeze(1)
        labels = torch.from_numpy(digits.target).to(torch.int64)
        train, test = stratified_split(labels, self.test_fraction, self.split_seed)
        chosen = train if split == "train" else test
        return images[chosen], labels[chosen]
