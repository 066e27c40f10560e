"""The discriminator's loss and the weight that its logits give, as modules."""

import torch
from torch import Tensor, nn

from lit_methods.errors import check_above, check_at_least, check_object
from lit_methods.semi_supervised.functional import (
    check_prior,
    density_ratio,
    logistic_surrogate,
    pu_loss,
    sigmoid_surrogate,
)


class LogisticSurrogate(nn.Module):
    """`log(1 + exp(-z))`, a proper loss: the discriminator estimates a probability."""

    def forward(self, margin: Tensor) -> Tensor:
        """Losses of margins, elementwise."""
        return logistic_surrogate(margin)


class SigmoidSurrogate(nn.Module):
    """`sigmoid(-z)` of the released code; its weights become nearly binary."""

    def forward(self, margin: Tensor) -> Tensor:
        """Losses of margins, elementwise."""
        return sigmoid_surrogate(margin)


class PULoss(nn.Module):
    """Positive-unlabelled loss of the relevance discriminator (Kiryo et al. 2017; DWD's discriminator).

    The paper's code uses the unbalanced risk with the sigmoid surrogate, which does not estimate what its weight
    formula needs; `PULoss(prior, SigmoidSurrogate(), balanced=False)` restores it.

    Args:
        prior: Share mu of relevant images among the unlabelled ones, in (0, 1).
        surrogate: Loss of a margin, elementwise; None for `LogisticSurrogate()`.
        balanced: Whether relevant and irrelevant images count alike.
        nonnegative: Whether a negative estimate of the negative risk is undone (nnPU).
        beta: How far below zero that estimate may fall.
        gamma: Step size of undoing.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        prior: float,
        surrogate: nn.Module | None = None,
        balanced: bool = True,
        nonnegative: bool = True,
        beta: float = 0.0,
        gamma: float = 1.0,
    ) -> None:
        super().__init__()
        check_prior(prior)
        check_at_least("beta", beta)
        check_above("gamma", gamma)
        check_object("surrogate", surrogate, nn.Module, "LogisticSurrogate()")
        self.prior, self.balanced, self.nonnegative, self.beta, self.gamma = prior, balanced, nonnegative, beta, gamma
        self.surrogate = LogisticSurrogate() if surrogate is None else surrogate

    def forward(self, positive: Tensor, unlabeled: Tensor) -> Tensor:
        """Loss, a scalar, of logits `(B_l,)` of labelled and `(B_u,)` of unlabelled images, in float32."""
        return pu_loss(
            positive.float(),
            unlabeled.float(),
            self.prior,
            self.surrogate,
            self.balanced,
            self.nonnegative,
            self.beta,
            self.gamma,
        )


class RelevanceWeight(nn.Module):
    """The weight `alpha p_l(x) / p_u(x)` of an unlabelled image in the diffusion loss.

    Args:
        prior: Share mu of relevant images among the unlabelled ones, in (0, 1); that of the discriminator's loss.
        alpha: Weight of the unlabelled part; 3 is the paper's best.
        balanced: The reading of the logit: that of the loss that trained the discriminator.
        self_normalize: Divides by the running mean of the ratio, which a wrong `prior` moves away from 1.
        momentum: Share that a new batch has in the running mean.

    Guarantees:
        - The weight carries no gradient.
        - It lies in `[0, alpha / prior]` unless `self_normalize`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    mean_ratio: Tensor

    def __init__(
        self,
        prior: float,
        alpha: float = 3.0,
        balanced: bool = True,
        self_normalize: bool = False,
        momentum: float = 0.01,
    ) -> None:
        super().__init__()
        check_prior(prior)
        check_at_least("alpha", alpha)
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum={momentum} must lie in (0, 1].")
        self.prior, self.alpha, self.balanced = prior, alpha, balanced
        self.self_normalize, self.momentum = self_normalize, momentum
        self.register_buffer("mean_ratio", torch.ones(()))

    @torch.no_grad()
    def forward(self, logit: Tensor) -> Tensor:
        """Weights `(B,)` of logits `(B,)`, float32; in training mode the running mean moves first."""
        ratio = density_ratio(logit, self.prior, self.balanced)
        if not self.self_normalize:
            return self.alpha * ratio
        if self.training:
            self.mean_ratio.lerp_(ratio.mean().to(self.mean_ratio.dtype), self.momentum)
        return self.alpha * ratio / self.mean_ratio
