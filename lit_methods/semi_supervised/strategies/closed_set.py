"""Strategies that take every unlabelled image for one of a known class: supervised, FixMatch, MixMatch."""

import torch
from torch.nn import functional as F

from lit_methods.errors import check_above, check_at_least, check_share
from lit_methods.semi_supervised.ssl_functional import (
    consistency_loss,
    mixup,
    pseudo_label_loss,
    sharpen,
    smoothed_targets,
)
from lit_methods.semi_supervised.strategies.base import Losses, Step, Strategy


class Supervised(Strategy):
    """Cross-entropy on labelled images and, where there are any, on synthetic ones with their class (DWD-SL).

    All are seen in strong views; one mean is taken over both (DWD's code). Unlabelled images are passed over.

    Args:
        label_smoothing: Share of the uniform distribution in the targets, in [0, 1); DWD-SL has 0.15.

    Raises:
        ValueError: If it is out of its range.
    """

    takes_soft_targets = False

    def __init__(self, label_smoothing: float = 0.0) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} must lie in [0, 1).")
        self.label_smoothing = label_smoothing

    def losses(self, step: Step) -> Losses:
        """Cross-entropy, as the labelled part."""
        images, labels = step.labeled, step.labels
        if step.second is not None and step.second_labels is not None:
            images, labels = torch.cat([images, step.second]), torch.cat([labels, step.second_labels])
        logits = step.network(step.strong(images))
        return Losses(F.cross_entropy(logits, smoothed_targets(labels, logits.shape[1], self.label_smoothing)))


class FixMatch(Strategy):
    """FixMatch (Sohn et al. 2020): confident weak views give the labels of strong views.

    `CE(a(x), y) + lambda_u mean 1[max p(a(u)) >= threshold] CE(A(u), argmax p(a(u)))`.

    Args:
        threshold: Least confidence.
        unlabeled_weight: Weight `lambda_u`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, threshold: float = 0.95, unlabeled_weight: float = 1.0) -> None:
        check_share("threshold", threshold)
        check_at_least("unlabeled_weight", unlabeled_weight)
        self.threshold, self.unlabeled_weight = threshold, unlabeled_weight

    def losses(self, step: Step) -> Losses:
        """Both parts, from one forward pass."""
        views = [step.weak_labeled(step.labeled), step.weak(step.unlabeled), step.strong(step.unlabeled)]
        logits = step.network(torch.cat(views))
        labeled = logits[: len(step.labeled)]
        weak, strong = logits[len(step.labeled) :].chunk(2)
        unlabeled = pseudo_label_loss(weak, strong, self.threshold, step.selected)
        used = (weak.detach().softmax(dim=1).amax(dim=1) >= self.threshold).float().mean()
        return Losses(F.cross_entropy(labeled, step.targets), unlabeled, self.unlabeled_weight, {"train/used": used})


class MixMatch(Strategy):
    """MixMatch (Berthelot et al. 2019): labelled and guessed images are mixed, in one forward pass.

    Args:
        temperature: Sharpening `T` of the guess.
        alpha: Parameter of the Beta distribution of the mix.
        num_views: Weak views `K` that the guess is averaged over.
        unlabeled_weight: Weight `lambda_u` after the ramp.
        ramp: Share of the training in which the weight rises linearly from 0.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        alpha: float = 0.75,
        num_views: int = 2,
        unlabeled_weight: float = 100.0,
        ramp: float = 0.4,
    ) -> None:
        for name, value in (("temperature", temperature), ("alpha", alpha)):
            check_above(name, value)
        check_at_least("num_views", num_views, 1)
        check_at_least("unlabeled_weight", unlabeled_weight)
        check_share("ramp", ramp)
        self.temperature, self.alpha, self.num_views = temperature, alpha, num_views
        self.unlabeled_weight, self.ramp = unlabeled_weight, ramp

    def losses(self, step: Step) -> Losses:
        """Both parts; the weight follows the ramp."""
        views = torch.cat([step.weak(step.unlabeled) for _ in range(self.num_views)])
        with torch.no_grad():
            probabilities = step.network(views).softmax(dim=1)
        guess = sharpen(probabilities.unflatten(0, (self.num_views, -1)).mean(dim=0), self.temperature)
        images = torch.cat([step.weak_labeled(step.labeled), views])
        targets = torch.cat([step.targets, guess.repeat(self.num_views, 1)])
        order = torch.randperm(len(images), generator=step.generator).to(images.device)
        mixed, mixed_targets = mixup((images, targets), (images[order], targets[order]), self.alpha, step.generator)
        logits, count = step.network(mixed), len(step.labeled)
        labeled = F.cross_entropy(logits[:count], mixed_targets[:count])
        weight = self.unlabeled_weight * (min(1.0, step.progress / self.ramp) if self.ramp > 0 else 1.0)
        return Losses(labeled, consistency_loss(logits[count:], mixed_targets[count:]), weight)
