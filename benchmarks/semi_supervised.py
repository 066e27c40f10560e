"""DWD side by side with what it replaces: the weighted step, the solver, cached against encoded latents.

(a) a diffusion step with a frozen, cached discriminator against a plain diffusion step on the same batch;
(b) the transformation by 10 steps of DPM-Solver++(2M) on a log-SNR grid against 40 steps of DDIM, at equal spread on a
    Gaussian whose noise predictor is exact;
(c) the peers' training steps against FixMatch's.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from torch import Tensor

from benchmarks._harness import arguments, finish, machine, medians, table
from lit_methods.backbones import SmallCNN, WideResNet
from lit_methods.semi_supervised import FixMatch, FrozenRelevance, IOMatch, MixMatch, OpenMatch, Supervised
from lit_methods.semi_supervised.functional import (
    dpm_solver_2m,
    log_snr_timesteps,
    per_sample_error,
    weighted_diffusion_loss,
)
from lit_methods.semi_supervised.ssl_functional import smoothed_targets
from lit_methods.semi_supervised.strategies import OpenSetNetwork, Step, Strategy

_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_MEAN, _STD = 2.0, 0.5


def unet(size: int, width: int) -> UNet2DModel:
    """A class-conditional U-Net for grey images of ten classes."""
    return UNet2DModel(
        sample_size=size,
        in_channels=1,
        out_channels=1,
        block_out_channels=(width, 2 * width),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=11,
    ).to(_DEVICE)


def step_cost(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """A training step on 8 labelled and 56 unlabelled images, with and without weights."""
    size, width, repeats = (8, 16, 7) if quick else (16, 32, 15)
    network, schedule = unet(size, width), DDPMScheduler(beta_schedule="linear").alphas_cumprod.to(_DEVICE)
    discriminator = SmallCNN(1, 1, (16, 32), size, norm_groups=8).to(_DEVICE)
    images, index = torch.randn(64, 1, size, size, device=_DEVICE), torch.arange(56)
    classes = torch.cat([torch.arange(8), torch.full((56,), 10)]).to(_DEVICE)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-4)
    frozen = FrozenRelevance(discriminator, 0.25).to(_DEVICE)
    frozen(images[:8], images[8:], index)

    def step(weigh: Any) -> None:
        optimizer.zero_grad()
        timesteps, noise = torch.randint(1000, (64,), device=_DEVICE), torch.randn_like(images)
        alpha_bar = schedule[timesteps].view(-1, 1, 1, 1)
        noisy = alpha_bar.sqrt() * images + (1 - alpha_bar).sqrt() * noise
        errors = per_sample_error(network(noisy, timesteps, class_labels=classes).sample, noise)
        loss = errors.mean() if weigh is None else weighted_diffusion_loss(errors[:8], errors[8:], weigh())
        loss.backward()
        optimizer.step()

    def uncached() -> Tensor:
        with torch.no_grad():
            return frozen.weight(discriminator(images[8:]).flatten())

    sides = {
        "plain": partial(step, None),
        "weighted, cached": partial(step, lambda: frozen(images[:8], images[8:], index)[0]),
        "weighted, asked in each step": partial(step, uncached),
    }
    seconds = medians(sides, repeats)
    rows = [{"side": name, "ratio": value / seconds["plain"]} for name, value in seconds.items()]
    table("(a) a diffusion step, plain = 1", ["side", "time"], [[row["side"], row["ratio"]] for row in rows])
    return {"step_weighted_vs_plain": seconds["weighted, cached"] / seconds["plain"]}, rows


def _spread(sampler: Any) -> float:
    """Standard deviation that a sampler leaves of a Gaussian of 0.5, from noise level 0.6, with exact noise."""
    schedule = DDPMScheduler(beta_schedule="linear").alphas_cumprod
    generator = torch.Generator().manual_seed(0)
    start = _MEAN + _STD * torch.randn(20_000, 1, 1, 1, generator=generator)
    noise = torch.randn(start.shape, generator=generator)
    noisy = schedule[599].sqrt() * start + (1 - schedule[599]).sqrt() * noise

    def predict(x: Tensor, timestep: int) -> Tensor:
        alpha_bar = schedule[timestep]
        centred = x - alpha_bar.sqrt() * _MEAN
        return (1 - alpha_bar).sqrt() * centred / (alpha_bar * _STD**2 + 1 - alpha_bar)

    return float(sampler(predict, noisy).std())


def _ours(steps: int, predict: Any, latents: Tensor) -> Tensor:
    schedule = DDPMScheduler(beta_schedule="linear").alphas_cumprod
    return dpm_solver_2m(predict, latents, schedule, log_snr_timesteps(schedule, 599, steps))


def _ddim(steps: int, predict: Any, latents: Tensor) -> Tensor:
    """Diffusers' DDIM over the part of a trailing grid that starts at noise level 0.6."""
    scheduler = DDIMScheduler(beta_schedule="linear", timestep_spacing="trailing", clip_sample=False)
    scheduler.set_timesteps(round(steps / 0.6))
    for timestep in scheduler.timesteps.tolist():
        if timestep <= 599:
            latents = scheduler.step(predict(latents, timestep), timestep, latents).prev_sample
    return latents


def transform_cost(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Images per second of a transformation, and the spread that it leaves."""
    size, width, count = (8, 16, 32) if quick else (16, 32, 128)
    network = unet(size, width).eval()
    images, classes = torch.randn(count, 1, size, size, device=_DEVICE), torch.arange(count, device=_DEVICE) % 10

    def run(sampler: Any) -> None:
        with torch.no_grad():
            sampler(lambda x, t: network(x, t, class_labels=classes).sample, images)

    samplers = {f"DPM-Solver++(2M), log-SNR, {n}": partial(_ours, n) for n in (5, 10, 20)}
    samplers |= {f"DDIM, {n}": partial(_ddim, n) for n in (10, 40)}
    seconds = medians({name: partial(run, sampler) for name, sampler in samplers.items()}, 3 if quick else 7)
    rows = [
        {"side": name, "images per second": count / seconds[name], "spread": _spread(sampler)}
        for name, sampler in samplers.items()
    ]
    table(
        f"(b) transformation from t0 = 0.6 ({_DEVICE}); the true spread is {_STD}",
        ["sampler", "images per second", "spread"],
        [list(row.values()) for row in rows],
    )
    return {"transform_speedup_vs_ddim40": seconds["DDIM, 40"] / seconds["DPM-Solver++(2M), log-SNR, 10"]}, rows


def strategy_cost(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """A training step of each strategy on 8 labelled and 56 unlabelled images."""
    depth, size, repeats = (10, 8, 3) if quick else (28, 32, 5)
    strategies: list[Strategy] = [Supervised(), FixMatch(), MixMatch(), OpenMatch(), IOMatch()]
    labels = torch.arange(8, device=_DEVICE) % 6
    sides = {}
    for strategy in strategies:
        backbone = WideResNet(3, None, depth)
        network = OpenSetNetwork(backbone, 128, 6, strategy.heads(128, 6)).to(_DEVICE)
        step = Step(
            network,
            torch.randn(8, 3, size, size, device=_DEVICE),
            labels,
            smoothed_targets(labels, 6),
            torch.randn(56, 3, size, size, device=_DEVICE),
            epoch=20,
        )
        sides[type(strategy).__name__] = partial(_strategy_step, strategy, step)
    seconds = medians(sides, repeats)
    rows = [{"side": name, "ratio": value / seconds["FixMatch"]} for name, value in seconds.items()]
    table("(c) a training step, FixMatch = 1", ["strategy", "time"], [[row["side"], row["ratio"]] for row in rows])
    return {}, rows


def _strategy_step(strategy: Strategy, step: Step) -> None:
    step.network.zero_grad()
    strategy.losses(step).total().backward()


def main() -> None:
    """Runs all parts, or those that `--only` names."""
    options = arguments(__doc__ or "")
    warnings.simplefilter("ignore")
    torch.manual_seed(options.seed)
    print(f"{machine()}; seed {options.seed}")
    headlines: dict[str, float] = {}
    figures: dict[str, Any] = {}
    for part in (step_cost, transform_cost, strategy_cost):
        if options.only is None or options.only in part.__name__:
            found, figures[part.__name__] = part(options.quick)
            headlines |= found
    finish(headlines, figures, options.json)


if __name__ == "__main__":
    main()
