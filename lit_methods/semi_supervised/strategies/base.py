"""What a semi-supervised strategy sees of a training step and gives back."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

View = Callable[[Tensor], Tensor]


class OpenSetNetwork(nn.Module):
    """A backbone, the closed-set head, and the heads that a strategy adds.

    Args:
        backbone: Maps images `(B, C, H, W)` to features `(B, D)`.
        num_features: Size D of a feature.
        num_classes: Number K of classes.
        heads: Further heads by name.
    """

    def __init__(self, backbone: nn.Module, num_features: int, num_classes: int, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(num_features, num_classes)
        self.heads = nn.ModuleDict(heads)

    def forward(self, images: Tensor) -> Tensor:
        """Closed-set logits `(B, K)`."""
        return cast(Tensor, self.classifier(self.features(images)))

    def features(self, images: Tensor) -> Tensor:
        """Features `(B, D)`."""
        return cast(Tensor, self.backbone(images)).flatten(1)

    def one_vs_all(self, features: Tensor) -> Tensor:
        """One-vs-all logits `(B, 2, K)` of features `(B, D)`: "not this class", "this class"."""
        return cast(Tensor, self.heads["one_vs_all"](features)).view(len(features), 2, -1)


class Losses(NamedTuple):
    """`labeled + weight * unlabeled` is the loss; `logged` goes to the logger.

    Attributes:
        labeled: Loss of the labelled part, a scalar.
        unlabeled: Loss of the unlabelled part, a scalar; None without one.
        weight: Its weight.
        logged: Further values by name.
    """

    labeled: Tensor
    unlabeled: Tensor | None = None
    weight: float = 1.0
    logged: dict[str, Tensor] | None = None

    def total(self) -> Tensor:
        """The loss."""
        return self.labeled if self.unlabeled is None else self.labeled + self.weight * self.unlabeled


def _same(images: Tensor) -> Tensor:
    return images


@dataclass(frozen=True)
class Step:
    """One training step.

    Attributes:
        network: The network.
        labeled: Labelled images `(B, C, H, W)`.
        labels: Their classes `(B,)`.
        targets: Their target probabilities `(B, K)`.
        second: Unlabelled or synthetic images `(B_u, C, H, W)`; None without.
        second_labels: Classes that synthetic images were generated for `(B_u,)`; None for unlabelled ones.
        selected: Which of the unlabelled images the strategy has selected, `(B_u,)` bool; None for all.
        weak: Weak view of images.
        strong: Strong view of images.
        weak_labeled: Weak view of labelled images.
        progress: Share of the training that is done, in [0, 1].
        epoch: Epochs done.
        generator: Random numbers on the CPU.
    """

    network: OpenSetNetwork
    labeled: Tensor
    labels: Tensor
    targets: Tensor
    second: Tensor | None = None
    second_labels: Tensor | None = None
    selected: Tensor | None = None
    weak: View = _same
    strong: View = _same
    weak_labeled: View = _same
    progress: float = 0.0
    epoch: int = 0
    generator: torch.Generator = field(default_factory=torch.Generator)

    @property
    def unlabeled(self) -> Tensor:
        """The unlabelled images.

        Raises:
            ValueError: If there are none.
        """
        if self.second is None:
            raise ValueError("The batch has no 'unlabeled' images, which this strategy needs.")
        return self.second

    def with_labeled(self, images: Tensor, targets: Tensor) -> "Step":
        """The same step with other labelled images, no longer to be augmented, and soft targets."""
        return replace(self, labeled=images, targets=targets, weak_labeled=_same)


class Strategy(ABC):
    """A semi-supervised method as an object.

    Attributes:
        takes_soft_targets: Whether it uses `Step.targets` alone, not `Step.labels`.
        gates_gradients: Whether the unlabelled loss counts only where its gradient agrees with the labelled one.
        selects_from: First epoch before which the unlabelled images are selected anew; None for never.
    """

    takes_soft_targets = True
    gates_gradients = False
    selects_from: int | None = None

    def heads(self, num_features: int, num_classes: int) -> dict[str, nn.Module]:
        """Further heads of the network by name."""
        return {}

    @abstractmethod
    def losses(self, step: Step) -> Losses:
        """Losses of one step."""

    def select(self, network: OpenSetNetwork, images: Tensor) -> Tensor:
        """Which images `(B, C, H, W)` are selected, `(B,)` bool."""
        raise NotImplementedError(f"{type(self).__name__} selects nothing.")
