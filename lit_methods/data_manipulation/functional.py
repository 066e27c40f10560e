"""Pure functions of learned data manipulation (Hu et al. 2019, arXiv 1910.12795): weights, gradients, updates.

Letters: B batch, C classes, D feature size, N examples. Weights are relative: their mean over a batch is 1, so that
weight 1 leaves an example as it is; the paper's softmax weights `q`, which sum to 1, are these divided by B.
"""

from __future__ import annotations

import torch
from torch import Tensor


def softmax_weights(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Batch softmax of the data reward (Section 4.2), scaled to mean 1; equal logits give exactly 1.

    Args:
        logits: The batch's rows of `phi`, `(B,)`.
        temperature: Divides the logits.

    Returns:
        `B * softmax(logits / temperature)`, `(B,)`.
    """
    scaled = logits / temperature
    powers = (scaled - scaled.max()).exp()
    return powers * (len(powers) / powers.sum())


def linear_weights(values: Tensor, floor: float = 1e-8) -> Tensor:
    """Positive parts scaled to mean 1; all zero where their sum does not exceed the floor.

    Args:
        values: Unnormalized weights, `(B,)`.
        floor: Least sum that is still divided by.

    Returns:
        Weights `(B,)`.
    """
    positive = values.clamp(min=0)
    total = positive.sum()
    return torch.where(total > floor, positive * (len(positive) / total.clamp(min=floor)), torch.zeros_like(positive))


def softmax_weight_gradient(weights: Tensor, gains: Tensor, temperature: float = 1.0) -> Tensor:
    """Gradient of the validation loss after one step with respect to `phi` (equation 8 for softmax weights).

    With `q = weights / B` it is `-q_j (gain_j - sum_i q_i gain_i) / temperature`: it sums to zero.

    Args:
        weights: Relative weights, `(B,)`.
        gains: `-d L_val(theta') / d q_i`: how much the validation loss falls per unit of the example's weight, `(B,)`.
        temperature: Of the softmax.

    Returns:
        Gradient `(B,)`.
    """
    shares = weights / len(weights)
    return shares * ((shares * gains).sum() - gains) / temperature


def effective_sample_size(weights: Tensor) -> Tensor:
    """Kish's effective sample size over B, in [1/B, 1]; 0 for weights that are all zero.

    Args:
        weights: Non-negative weights of any scale, `(B,)`.

    Returns:
        `(sum w)^2 / (B sum w^2)`, a scalar.
    """
    squares = weights.square().sum()
    tiny = torch.finfo(weights.dtype).tiny
    return weights.sum().square() / (len(weights) * squares.clamp(min=tiny))


def inverse_frequency(counts: Tensor, power: float = 1.0) -> Tensor:
    """Class weights `1 / n_c^power`; 0 for classes without examples.

    Args:
        counts: Training examples of each class, `(C,)`.
        power: 1 for the inverse frequency, 0.5 for its root.

    Returns:
        Weights `(C,)`, float32.
    """
    counts = counts.to(torch.float32)
    return torch.where(counts > 0, counts.clamp(min=1).pow(-power), 0.0)


def effective_number_weights(counts: Tensor, beta: float) -> Tensor:
    """Class weights by the effective number of samples, `(1 - beta) / (1 - beta^n_c)` (Cui et al. 2019).

    Args:
        counts: Training examples of each class, `(C,)`.
        beta: In (0, 1); towards 1 it becomes the inverse frequency.

    Returns:
        Weights `(C,)`, float32; 0 for classes without examples.
    """
    held = counts.to(torch.float64)
    return torch.where(held > 0, (1 - beta) / (1 - beta ** held.clamp(min=1)), 0.0).to(torch.float32)


def last_layer_gains(features: Tensor, residuals: Tensor, slope: Tensor, bias_slope: Tensor | None) -> Tensor:
    """Inner products of per-example gradients of a linear layer with a mean gradient, without autograd.

    The gradient of example i is `residual_i (features_i, 1)^T`, so that its product with that of a validation example
    j is `(features_i . features_j + 1) (residual_i . residual_j)`; over the mean of j this is two matrix products.

    Args:
        features: Inputs of the layer, `(B, D)`.
        residuals: Gradient of each example's loss by the layer's outputs, `(B, C)`.
        slope: Mean validation gradient of the layer's weight, `(C, D)`.
        bias_slope: The same of its bias, `(C,)`; None without one.

    Returns:
        Inner products `(B,)`.
    """
    outputs = features @ slope.T
    return ((outputs if bias_slope is None else outputs + bias_slope) * residuals).sum(1)


def lazy_adam_step(
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    visits: Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float = 1e-12,
) -> tuple[Tensor, Tensor, Tensor]:
    """Adam's change of rows whose moments and bias correction count their own visits only.

    Args:
        gradient: Of the visited rows, `(K,)`.
        first: First moments of these rows before the step, `(K,)`.
        second: Second moments, `(K,)`.
        visits: Number of visits with this one, at least 1, `(K,)`.
        lr: Step size.
        betas: Decay of the two moments.
        eps: Added to the root; far below Adam's default, because gradients of `phi` are of the order of lr / B.

    Returns:
        The change to add, and the new moments, each `(K,)`.
    """
    first = first.lerp(gradient, 1 - betas[0])
    second = second.lerp(gradient.square(), 1 - betas[1])
    root = (second / (1 - betas[1] ** visits)).sqrt_().add_(eps)
    return -lr * (first / (1 - betas[0] ** visits)) / root, first, second


def adam_jacobian(
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    step: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> Tensor:
    """Diagonal of `-d step / d gradient` of Adam, its moments before the step held fixed.

    With `m = b1 m0 + (1 - b1) g`, `v = b2 v0 + (1 - b2) g^2`, bias corrections `c1`, `c2` and `d = sqrt(v/c2) + eps`,
    the step is `-lr m / (c1 d)` and the result `lr/c1 ((1 - b1)/d - m (1 - b2) g / (c2 sqrt(v/c2) d^2))`.

    Args:
        gradient: Any shape.
        first: First moment before the step, that shape.
        second: Second moment before the step, that shape.
        step: Number of this step, from 1.
        lr: Learning rate.
        betas: Decay of the two moments.
        eps: Added to the root.

    Returns:
        The diagonal, in the gradient's shape; 0 where no gradient was ever seen, where the formula says `lr / eps`.
    """
    one, two = 1 - betas[0] ** step, 1 - betas[1] ** step
    moment = first.lerp(gradient, 1 - betas[0])
    root = (second.lerp(gradient.square(), 1 - betas[1]) / two).sqrt()
    scale = root + eps
    bend = moment * (1 - betas[1]) * gradient / (two * root * scale.square())
    return torch.where(root > 0, (lr / one) * ((1 - betas[0]) / scale - bend), 0.0)
