"""Which class an unlabelled image is transformed into."""

from abc import abstractmethod
from typing import cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional as F

from lit_methods.errors import check_at_least
from lit_methods.semi_supervised.draws import seeded_generator


class ClassChoice(nn.Module):
    """Chooses a target class for each image.

    Attributes:
        needs_labeled: Whether `remember` must see the labelled images first.
    """

    needs_labeled = False

    @abstractmethod
    def forward(self, images: Tensor, index: Tensor, num_classes: int) -> Tensor:
        """Classes `(B,)` of images `(B, C, H, W)` at positions `index` `(B,)` of the pool."""

    def remember(self, images: Tensor, labels: Tensor) -> None:
        """Takes labelled images `(N, C, H, W)` and their classes `(N,)`, where `needs_labeled`."""

    def settings(self) -> dict[str, int]:
        """Arguments that decide the choice, beside its weights."""
        return {}


class RandomBalanced(ClassChoice):
    """Random classes, each equally often: every block of K positions is a permutation of the classes.

    Args:
        seed: Seed of the choice.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def forward(self, images: Tensor, index: Tensor, num_classes: int) -> Tensor:
        """Classes `(B,)`; they depend on the position alone."""
        chosen = []
        for position in index.tolist():
            generator = seeded_generator(self.seed, position // num_classes)
            chosen.append(torch.randperm(num_classes, generator=generator)[position % num_classes])
        return torch.stack(chosen).to(images.device) if chosen else torch.zeros(0, dtype=torch.int64)

    def settings(self) -> dict[str, int]:
        """The seed."""
        return {"seed": self.seed}


class FixedClass(ClassChoice):
    """The same class for every image.

    Args:
        label: The class; the number of classes itself is the null class.

    Raises:
        ValueError: If it is negative.
    """

    def __init__(self, label: int) -> None:
        super().__init__()
        check_at_least("label", label)
        self.label = label

    def forward(self, images: Tensor, index: Tensor, num_classes: int) -> Tensor:
        """Classes `(B,)`, all the same."""
        return torch.full((len(images),), self.label, device=images.device)

    def settings(self) -> dict[str, int]:
        """The class."""
        return {"label": self.label}


class NearestLabeled(ClassChoice):
    """The class of the labelled image whose normalised feature is nearest (the released code's `pseudo`).

    The released code averages each channel of the latents, three numbers, which tell little; give it the features
    of a trained classifier.

    Args:
        features: Maps images `(B, C, H, W)` to features `(B, D)`; None for the mean of each channel.
    """

    needs_labeled = True

    def __init__(self, features: nn.Module | None = None) -> None:
        super().__init__()
        self.features = features
        self._known: tuple[Tensor, Tensor] | None = None

    def remember(self, images: Tensor, labels: Tensor) -> None:
        """Takes the labelled images."""
        self._known = self._normalized(images), labels

    def forward(self, images: Tensor, index: Tensor, num_classes: int) -> Tensor:
        """Classes `(B,)`.

        Raises:
            MisconfigurationException: If it was shown no labelled image.
        """
        if self._known is None:
            raise MisconfigurationException(
                "NearestLabeled has seen no labelled image; call remember(images, labels), or predict with a "
                "datamodule that has a `labeled_set`."
            )
        known, labels = self._known
        similarity = self._normalized(images) @ known.to(images.device).T
        return labels.to(images.device)[similarity.argmax(dim=1)]

    @torch.no_grad()
    def _normalized(self, images: Tensor) -> Tensor:
        features = images.mean(dim=(2, 3)) if self.features is None else cast(Tensor, self.features(images))
        return F.normalize(features.flatten(1), dim=1)


class ClassifierChoice(ClassChoice):
    """The most likely class under a classifier.

    Args:
        classifier: Maps images `(B, C, H, W)` to logits `(B, K)`.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    @torch.no_grad()
    def forward(self, images: Tensor, index: Tensor, num_classes: int) -> Tensor:
        """Classes `(B,)`."""
        return cast(Tensor, self.classifier(images))[:, :num_classes].argmax(dim=1)
