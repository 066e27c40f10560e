"""Strategies that expect unknown classes among the unlabelled images: OpenMatch, IOMatch, Fix-A-Step."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_methods.errors import check_above, check_at_least, check_object, check_share
from lit_methods.semi_supervised.ssl_functional import (
    is_inlier,
    mixup,
    one_vs_all_consistency,
    one_vs_all_entropy,
    one_vs_all_loss,
    open_set_targets,
    pseudo_label_loss,
    sharpen,
)
from lit_methods.semi_supervised.strategies.base import Losses, OpenSetNetwork, Step, Strategy


class OpenMatch(Strategy):
    """OpenMatch (Saito et al. 2021): one-vs-all heads tell outliers, FixMatch runs on the inliers.

    `CE + L_ova + em_weight L_em + socr_weight L_socr + [epoch >= start_epoch] L_fix` on the images that were selected
    before the epoch by the moving average of the network.

    Args:
        threshold: Least confidence of FixMatch; the paper's is 0.
        em_weight: Weight of the entropy.
        socr_weight: Weight of the soft consistency; 1 for CIFAR-100.
        start_epoch: First epoch with FixMatch.

    Raises:
        ValueError: If an argument is out of its range.
    """

    takes_soft_targets = False

    def __init__(
        self, threshold: float = 0.0, em_weight: float = 0.1, socr_weight: float = 0.5, start_epoch: int = 10
    ) -> None:
        check_share("threshold", threshold)
        check_at_least("em_weight", em_weight)
        check_at_least("socr_weight", socr_weight)
        check_at_least("start_epoch", start_epoch)
        self.threshold, self.em_weight, self.socr_weight = threshold, em_weight, socr_weight
        self.selects_from = start_epoch

    def heads(self, num_features: int, num_classes: int) -> dict[str, nn.Module]:
        """The one-vs-all head."""
        return {"one_vs_all": nn.Linear(num_features, 2 * num_classes, bias=False)}

    def losses(self, step: Step) -> Losses:
        """Labelled: cross-entropy and one-vs-all on two weak views; unlabelled: the rest."""
        starts = self.selects_from is not None and step.epoch >= self.selects_from
        views = [step.weak_labeled(step.labeled) for _ in range(2)] + [step.weak(step.unlabeled) for _ in range(2)]
        if starts:
            views.append(step.strong(step.unlabeled))
        features = step.network.features(torch.cat(views))
        count = 2 * len(step.labeled)
        logits, o = step.network.classifier(features), step.network.one_vs_all(features)
        labels = step.labels.repeat(2)
        labeled = F.cross_entropy(logits[:count], labels) + one_vs_all_loss(o[:count], labels)
        first, second = o[count : count + 2 * len(step.unlabeled)].chunk(2)
        entropy = (one_vs_all_entropy(first) + one_vs_all_entropy(second)) / 2
        unlabeled = self.em_weight * entropy + self.socr_weight * one_vs_all_consistency(first, second)
        if starts:
            weak, strong = logits[count : count + len(step.unlabeled)], logits[-len(step.unlabeled) :]
            unlabeled = unlabeled + pseudo_label_loss(weak, strong, self.threshold, step.selected)
        return Losses(labeled, unlabeled)

    def select(self, network: OpenSetNetwork, images: Tensor) -> Tensor:
        """Which images `(B, C, H, W)` are inliers, `(B,)` bool."""
        features = network.features(images)
        return is_inlier(network.classifier(features), network.one_vs_all(features))


class IOMatch(Strategy):
    """IOMatch (Li et al. 2023): inliers and outliers share one open-set target.

    `CE + L_mb + mean 1[max p >= tau_p] 1[sum_k p_k o_k(out) < 1/2] CE(A(u), p)
    + mean 1[max q >= tau_q] CE_open(A(u), q)` with the open-set targets `q` of `open_set_targets`; the last term starts
    in the second epoch. Distribution alignment and rotation, which its authors list as options, are left out.

    Args:
        threshold: `tau_p`.
        open_threshold: `tau_q`.
        open_weight: Weight of the last term.
        start_epoch: First epoch with the last term.

    Raises:
        ValueError: If an argument is out of its range.
    """

    takes_soft_targets = False

    def __init__(
        self,
        threshold: float = 0.95,
        open_threshold: float = 0.5,
        open_weight: float = 1.0,
        start_epoch: int = 1,
    ) -> None:
        check_share("threshold", threshold)
        check_share("open_threshold", open_threshold)
        check_at_least("open_weight", open_weight)
        check_at_least("start_epoch", start_epoch)
        self.threshold, self.open_threshold, self.open_weight = threshold, open_threshold, open_weight
        self.start_epoch = start_epoch

    def heads(self, num_features: int, num_classes: int) -> dict[str, nn.Module]:
        """Projection, multi-binary head and open-set head."""
        return {
            "projection": nn.Sequential(
                nn.Linear(num_features, num_features), nn.ReLU(), nn.Linear(num_features, num_features)
            ),
            "one_vs_all": nn.Linear(num_features, 2 * num_classes),
            "open": nn.Linear(num_features, num_classes + 1),
        }

    def losses(self, step: Step) -> Losses:
        """Labelled: cross-entropy and multi-binary; unlabelled: closed and open."""
        views = [step.weak_labeled(step.labeled), step.weak(step.unlabeled), step.strong(step.unlabeled)]
        features = step.network.features(torch.cat(views))
        count, size = len(step.labeled), len(step.unlabeled)
        logits = step.network.classifier(features)
        projected = step.network.heads["projection"](features[: count + size])
        o = step.network.one_vs_all(projected)
        labeled = F.cross_entropy(logits[:count], step.labels) + one_vs_all_loss(o[:count], step.labels)
        weak, strong = logits[count : count + size], logits[count + size :]
        targets = open_set_targets(weak, o[count:])
        confident = (weak.detach().softmax(dim=1).amax(dim=1) >= self.threshold) & (targets[:, -1] < 0.5)
        per_image = F.cross_entropy(strong, weak.detach().softmax(dim=1), reduction="none")
        unlabeled = (per_image * confident).mean()
        if step.epoch >= self.start_epoch:
            open_projection = step.network.heads["projection"](features[count + size :])
            open_logits = step.network.heads["open"](open_projection)
            sure = (targets.amax(dim=1) >= self.open_threshold).to(open_logits.dtype)
            open_loss = (F.cross_entropy(open_logits, targets, reduction="none") * sure).mean()
            unlabeled = unlabeled + self.open_weight * open_loss
        return Losses(labeled, unlabeled, logged={"train/used": confident.float().mean()})


class FixAStep(Strategy):
    """Fix-A-Step (Huang et al. 2023) around another strategy: mixed labelled images, and no step that harms them.

    Labelled images are mixed with unlabelled ones under their sharpened guess; the unlabelled loss counts only where
    its gradient has a non-negative inner product with the labelled one.

    Args:
        base: The strategy; one that takes soft targets.
        temperature: Sharpening of the guess.
        alpha: Parameter of the Beta distribution of the mix.

    Raises:
        ValueError: If `base` needs hard labels, or a number is out of its range.
        TypeError: If `base` is no strategy.
    """

    gates_gradients = True

    def __init__(self, base: Strategy, temperature: float = 0.5, alpha: float = 0.5) -> None:
        check_object("base", base, Strategy, "FixMatch()")
        check_above("temperature", temperature)
        check_above("alpha", alpha)
        if not base.takes_soft_targets:
            raise ValueError(f"base={type(base).__name__} needs hard labels; take FixMatch or MixMatch.")
        self.base, self.temperature, self.alpha = base, temperature, alpha

    def heads(self, num_features: int, num_classes: int) -> dict[str, nn.Module]:
        """Those of the base."""
        return self.base.heads(num_features, num_classes)

    def losses(self, step: Step) -> Losses:
        """Those of the base on the mixed labelled images."""
        partners = torch.randint(len(step.unlabeled), (len(step.labeled),), generator=step.generator)
        views = step.weak(step.unlabeled[partners.to(step.unlabeled.device)])
        with torch.no_grad():
            guess = sharpen(step.network(views).softmax(dim=1), self.temperature)
        labeled = step.weak_labeled(step.labeled)
        images, targets = mixup((labeled, step.targets), (views, guess), self.alpha, step.generator)
        return self.base.losses(step.with_labeled(images, targets))
