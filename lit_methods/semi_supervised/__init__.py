"""Diffusion augmentation of irrelevant unlabelled images (DWD), and open-set semi-supervised classifiers."""

__all__: list[str] = []
