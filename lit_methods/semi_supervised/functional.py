"""PU risk, density ratios, weights and the weighted diffusion loss of DWD, as pure functions on tensors.

Notation: `x` clean image, `g` logit of the discriminator, `d = sigmoid(g)`, `prior` the share mu of relevant images
among the unlabelled ones, `p_l` and `p_o` the densities of relevant and irrelevant images, and
`p_u = mu p_l + (1 - mu) p_o` that of unlabelled ones.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Surrogate = Callable[[Tensor], Tensor]


def check_prior(prior: float) -> None:
    """Refuses a share of relevant images that is no share.

    Raises:
        ValueError: If `prior` is not strictly between 0 and 1.
    """
    if not 0 < prior < 1:
        raise ValueError(
            f"prior={prior} must lie strictly between 0 and 1: the share of relevant images among the unlabelled ones."
        )


def logistic_surrogate(margin: Tensor) -> Tensor:
    """Logistic loss `log(1 + exp(-z))` of margins `(B,)`; proper, so that its minimiser is a probability."""
    return F.softplus(-margin)


def sigmoid_surrogate(margin: Tensor) -> Tensor:
    """Sigmoid loss `sigmoid(-z)` of margins `(B,)`, as in the released code.

    It is no proper loss: its population minimiser is a hard decision, so that weights become nearly binary.
    """
    return torch.sigmoid(-margin)


def pu_risks(
    positive: Tensor,
    unlabeled: Tensor,
    prior: float,
    surrogate: Surrogate = logistic_surrogate,
    balanced: bool = True,
) -> tuple[Tensor, Tensor]:
    """Both parts of the positive-unlabelled risk (Kiryo et al. 2017, equation 6), without bias.

    `R+ = mu E_l[l(g)]` and `R- = E_u[l(-g)] - mu E_l[l(-g)]`. The balanced risk divides them by `mu` and `1 - mu`, as
    if relevant and irrelevant images were equally frequent; its minimiser is `d = p_l / (p_l + p_o)`.

    Args:
        positive: Logits of labelled images, `(B_l,)`.
        unlabeled: Logits of unlabelled images, `(B_u,)`.
        prior: Share mu of relevant images among the unlabelled ones, in (0, 1).
        surrogate: Loss of a margin, elementwise.
        balanced: Whether both classes count alike.

    Returns:
        `R+` and `R-`, scalars; the estimate of `R-` can be negative.
    """
    check_prior(prior)
    risk_positive = surrogate(positive).mean()
    risk_negative = surrogate(-unlabeled).mean() - prior * surrogate(-positive).mean()
    if balanced:
        return risk_positive, risk_negative / (1 - prior)
    return prior * risk_positive, risk_negative


def pu_loss(
    positive: Tensor,
    unlabeled: Tensor,
    prior: float,
    surrogate: Surrogate = logistic_surrogate,
    balanced: bool = True,
    nonnegative: bool = True,
    beta: float = 0.0,
    gamma: float = 1.0,
) -> Tensor:
    """The loss to minimise: `R+ + R-`, or `-gamma R-` where the estimate of `R-` is below `-beta` (nnPU).

    An estimate below zero shows that the network has learned the positives by heart; the second branch undoes it
    (Kiryo et al. 2017, algorithm 1).

    Args:
        positive: Logits of labelled images, `(B_l,)`.
        unlabeled: Logits of unlabelled images, `(B_u,)`.
        prior: Share mu of relevant images among the unlabelled ones, in (0, 1).
        surrogate: Loss of a margin, elementwise.
        balanced: Whether both classes count alike.
        nonnegative: Whether to take the second branch at all; without it the risk has no bias.
        beta: How far below zero `R-` may fall.
        gamma: Step size of the second branch.

    Returns:
        A scalar; its value in the second branch is no risk.
    """
    risk_positive, risk_negative = pu_risks(positive, unlabeled, prior, surrogate, balanced)
    if not nonnegative:
        return risk_positive + risk_negative
    return torch.where(risk_negative < -beta, -gamma * risk_negative, risk_positive + risk_negative)


def density_ratio(logit: Tensor, prior: float, balanced: bool = True) -> Tensor:
    """Density ratio `p_l(x) / p_u(x)` that a discriminator's logit stands for.

    Balanced reading, `d = p_l / (p_l + p_o)`: the ratio is `1 / (mu + (1 - mu) (1/d - 1))`, the paper's weight
    without `alpha`. Posterior reading, `d = mu p_l / p_u`, which is what the unbalanced risk aims at: `d / mu`.

    Args:
        logit: Logits `(B,)`.
        prior: Share mu of relevant images among the unlabelled ones, in (0, 1).
        balanced: Which reading.

    Returns:
        Ratios `(B,)` in `[0, 1 / mu]`, float32 or wider.
    """
    check_prior(prior)
    logit = logit if logit.dtype == torch.float64 else logit.float()
    if balanced:
        return 1 / (prior + (1 - prior) * torch.exp(-logit))
    return torch.sigmoid(logit) / prior


def effective_sample_size(weight: Tensor) -> Tensor:
    """Kish's effective sample size `(sum w)^2 / sum w^2` of weights `(B,)`, a scalar; 0 if all weights are 0."""
    weight = weight.double()
    return weight.sum().square() / weight.square().sum().clamp(min=torch.finfo(torch.float64).tiny)


def per_sample_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error of each sample, mean over its entries: `(B, C, H, W)` twice to float32 `(B,)`."""
    return (prediction.float() - target.float()).square().flatten(1).mean(dim=1)


def weighted_diffusion_loss(labeled: Tensor, unlabeled: Tensor, weight: Tensor) -> Tensor:
    """DWD's diffusion loss: labelled errors count 1, unlabelled ones their weight; the mean is over all samples.

    The released code divides by the number of non-zero weights, which with soft weights is the same number.

    Args:
        labeled: Errors of labelled samples under their class, `(B_l,)`.
        unlabeled: Errors of unlabelled samples under the null class, `(B_u,)`.
        weight: Weights of the same unlabelled samples, `(B_u,)`; no gradient flows into them.

    Returns:
        A scalar.

    Raises:
        ValueError: If there is not one weight per unlabelled sample.
    """
    if weight.shape != unlabeled.shape:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)} and unlabeled {tuple(unlabeled.shape)}; "
            "each unlabelled sample needs its own weight."
        )
    total = labeled.sum() + (weight.detach() * unlabeled).sum()
    return total / (labeled.numel() + unlabeled.numel())


def guided_noise(conditional: Tensor, null: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance `eps_null + s (eps_c - eps_null)`; the paper's `w` is `s - 1`.

    `s = 1` is the conditional prediction, `s = 0` that of the null class.
    """
    return null + guidance_scale * (conditional - null)


def log_snr_timesteps(alphas_cumprod: Tensor, start: int, steps: int) -> list[int]:
    """Timesteps from `start` down to 0 whose half log-SNR is as equally spaced as integers allow.

    Args:
        alphas_cumprod: The schedule's `alpha_bar_t`, falling, `(T,)`.
        start: First timestep, in `[0, T)`.
        steps: Number of timesteps wanted.

    Returns:
        Falling timesteps, `start` first; fewer than `steps` where integers coincide.

    Raises:
        ValueError: If `steps` is below 1 or `start` is outside the schedule.
    """
    if steps < 1:
        raise ValueError(f"num_inference_steps={steps} must be at least 1.")
    if not 0 <= start < len(alphas_cumprod):
        raise ValueError(f"start={start} is outside the schedule of {len(alphas_cumprod)} timesteps.")
    alpha_bar = alphas_cumprod.double().cpu()
    half_log_snr = 0.5 * (alpha_bar / (1 - alpha_bar)).log()
    wanted = torch.linspace(float(half_log_snr[start]), float(half_log_snr[0]), steps, dtype=torch.float64)
    nearest = (half_log_snr[None, : start + 1] - wanted[:, None]).abs().argmin(dim=1)
    nearest[0] = start
    return sorted(set(nearest.tolist()), reverse=True)


def start_timestep(strength: float, num_train_timesteps: int) -> int:
    """Timestep `round(T t0) - 1` at which a transformation of that strength starts; -1 leaves the image alone.

    Raises:
        ValueError: If `strength` is outside [0, 1].
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength={strength} must lie in [0, 1]: 0 copies the source, 1 forgets it.")
    return round(num_train_timesteps * strength) - 1


def dpm_solver_2m(
    predict: Callable[[Tensor, int], Tensor],
    latents: Tensor,
    alphas_cumprod: Tensor,
    timesteps: list[int],
    clean_range: tuple[float, float] | None = None,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) along the probability flow to the clean image.

    With `a = sqrt(alpha_bar)`, `s = sqrt(1 - alpha_bar)` and `lambda = log(a / s)`, each step extrapolates the
    predictions of the clean image linearly in `lambda`; the first and the last step are of first order.

    Args:
        predict: Noise in latents `(B, C, H, W)` at a timestep.
        latents: Latents at the first timestep, `(B, C, H, W)`, float32.
        alphas_cumprod: The schedule's `alpha_bar_t`, `(T,)`.
        timesteps: Falling timesteps, at least one.
        clean_range: Range to which each prediction of the clean image is clipped; None for none.

    Returns:
        Clean latents `(B, C, H, W)`.

    Raises:
        ValueError: If `timesteps` is empty.
    """
    alpha_bar = alphas_cumprod.double().cpu()[timesteps]
    signal, noise = alpha_bar.sqrt().tolist(), (1 - alpha_bar).sqrt().tolist()
    half_log_snr = (0.5 * (alpha_bar / (1 - alpha_bar)).log()).tolist()
    previous, previous_gap = latents, math.inf
    for i, timestep in enumerate(timesteps):
        clean: Tensor = (latents - noise[i] * predict(latents, timestep)) / signal[i]
        if clean_range is not None:
            clean = clean.clamp(*clean_range)
        if i == len(timesteps) - 1:
            return clean
        gap = half_log_snr[i + 1] - half_log_snr[i]
        slope = gap / (2 * previous_gap)
        mixed = (1 + slope) * clean - slope * previous
        latents = (noise[i + 1] / noise[i]) * latents - signal[i + 1] * math.expm1(-gap) * mixed
        previous, previous_gap = clean, gap
    raise ValueError("timesteps is empty; pass at least one.")
