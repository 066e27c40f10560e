"""Losses of the semi-supervised peers as pure functions: FixMatch, MixMatch, OpenMatch, IOMatch, Fix-A-Step.

Targets are probabilities `(B, K)` unless a docstring says labels. `o` are one-vs-all logits `(B, 2, K)`: index 0 is
"not this class", index 1 "this class".
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def sharpen(probabilities: Tensor, temperature: float) -> Tensor:
    """`p^(1/T)`, normalised: `(B, K)` to `(B, K)` (MixMatch, equation 7)."""
    powered = probabilities ** (1 / temperature)
    return powered / powered.sum(dim=1, keepdim=True)


def smoothed_targets(labels: Tensor, num_classes: int, smoothing: float = 0.0) -> Tensor:
    """One-hot targets `(B, K)` of labels `(B,)`, mixed with the uniform distribution by `smoothing`."""
    return F.one_hot(labels, num_classes).float() * (1 - smoothing) + smoothing / num_classes


def mixup(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mixes images `(B, C, H, W)` and targets `(B, K)`: `l a + (1 - l) b`, `l = max(l', 1 - l')`, `l' ~ Beta(a, a)`.

    One `l` for the batch, so that the result is closer to `first` (MixMatch, equations 8 to 11).
    """
    gammas = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64), generator)
    mix = float(gammas[0] / gammas.sum())
    mix = max(mix, 1 - mix)
    return mix * first[0] + (1 - mix) * second[0], mix * first[1] + (1 - mix) * second[1]


def pseudo_label_loss(weak: Tensor, strong: Tensor, threshold: float, chosen: Tensor | None = None) -> Tensor:
    """FixMatch's unlabelled loss: `mean 1[max p(weak) >= threshold] CE(strong, argmax p(weak))`.

    Args:
        weak: Logits of weak views `(B, K)`; no gradient flows into them.
        strong: Logits of strong views of the same images `(B, K)`.
        threshold: Least confidence.
        chosen: Which images take part at all, `(B,)` bool; None for all.

    Returns:
        A scalar, the mean over the images that take part; 0 if none does.
    """
    confidence, labels = weak.detach().softmax(dim=1).max(dim=1)
    mask = (confidence >= threshold).to(strong.dtype)
    loss = F.cross_entropy(strong, labels, reduction="none") * mask
    if chosen is None:
        return loss.mean()
    taking_part = chosen.to(loss.dtype)
    return (loss * taking_part).sum() / taking_part.sum().clamp(min=1)


def consistency_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """MixMatch's unlabelled loss: squared distance of `softmax(logits)` and `targets`, mean over `(B, K)`."""
    return (logits.softmax(dim=1) - targets).square().mean()


def one_vs_all_loss(o: Tensor, labels: Tensor) -> Tensor:
    """OpenMatch's equation 1, `mean[-log o_y(in) + max_(k != y) -log o_k(out)]`.

    Args:
        o: One-vs-all logits `(B, 2, K)`.
        labels: Classes `(B,)`.
    """
    log_probabilities = o.log_softmax(dim=1)
    own = F.one_hot(labels, o.shape[2]).bool()
    inlier = -log_probabilities[:, 1][own]
    hardest = (-log_probabilities[:, 0]).masked_fill(own, -torch.inf).max(dim=1).values
    return (inlier + hardest).mean()


def one_vs_all_entropy(o: Tensor) -> Tensor:
    """OpenMatch's equation 2: entropy of all one-vs-all outputs `(B, 2, K)`, mean over images and classes."""
    log_probabilities = o.log_softmax(dim=1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=1).mean()


def one_vs_all_consistency(first: Tensor, second: Tensor) -> Tensor:
    """OpenMatch's equation 3 (SOCR): `mean_u sum_k |o_k(a1 u) - o_k(a2 u)|^2` of logits `(B, 2, K)` twice."""
    return (first.softmax(dim=1) - second.softmax(dim=1)).square().sum(dim=(1, 2)).mean()


def is_inlier(logits: Tensor, o: Tensor) -> Tensor:
    """OpenMatch's choice: whether the one-vs-all output of the most likely class says "out" with less than one half.

    Args:
        logits: Closed-set logits `(B, K)`.
        o: One-vs-all logits `(B, 2, K)`.

    Returns:
        `(B,)` bool.
    """
    outlier = o.softmax(dim=1)[:, 0]
    return outlier.gather(1, logits.argmax(dim=1, keepdim=True)).squeeze(1) < 0.5


def open_set_targets(logits: Tensor, o: Tensor) -> Tensor:
    """IOMatch's joint targets: `p_k o_k(in)` for each class, and `sum_k p_k o_k(out)` for "none of them".

    Args:
        logits: Closed-set logits `(B, K)`.
        o: One-vs-all logits `(B, 2, K)`.

    Returns:
        Probabilities `(B, K + 1)`, without gradient.
    """
    p, binary = logits.detach().softmax(dim=1), o.detach().softmax(dim=1)
    return torch.cat([p * binary[:, 1], (p * binary[:, 0]).sum(dim=1, keepdim=True)], dim=1)


def gradients_agree(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """Whether two gradients, each a list of tensors, have a non-negative inner product; a scalar bool (Fix-A-Step)."""
    return torch.stack([(a * b).sum() for a, b in zip(first, second, strict=True)]).sum() >= 0
