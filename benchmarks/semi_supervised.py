"""DWD side by side with what it replaces: the weighted step, the solver, cached against encoded latents.

(a) a diffusion step with a frozen, cached discriminator against a plain diffusion step on the same batch;
(b) the transformation by 10 steps of DPM-Solver++(2M) on a log-SNR grid against 40 steps of DDIM, and the spread that
    both leave of a Gaussian whose noise predictor is exact;
(c) the peers' training steps against FixMatch's;
(d) a step on latents that are kept against one that encodes its images, with diffusers' `AutoencoderKL`;
(e) a step in bfloat16, and over half the images, against float32: time, and what autograd keeps.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DModel
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
from lit_methods.semi_supervised.latents import LatentCache, encode
from lit_methods.semi_supervised.ssl_functional import smoothed_targets
from lit_methods.semi_supervised.strategies import OpenSetNetwork, Step, Strategy
from lit_methods.softmax_approximation.meters import saved_bytes

_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_MEAN, _STD = 2.0, 0.5


def unet(size: int, width: int, channels: int = 1) -> UNet2DModel:
    """A class-conditional U-Net for images of ten classes."""
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
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
    """DDIM without noise (Song et al. 2021, equation 12) from noise level 0.6 on an even grid.

    Not diffusers': where the number of steps does not divide 1000, it takes the previous timestep to be a whole stride
    away and so leaves too much spread.
    """
    grid = [round(600 * (steps - i) / steps) - 1 for i in range(steps)]
    alpha_bar = [*DDPMScheduler(beta_schedule="linear").alphas_cumprod[grid].tolist(), 1.0]
    for timestep, here, there in zip(grid, alpha_bar[:-1], alpha_bar[1:], strict=True):
        noise = predict(latents, timestep)
        clean = (latents - (1 - here) ** 0.5 * noise) / here**0.5
        latents = there**0.5 * clean + (1 - there) ** 0.5 * noise
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


def _diffusion_loss(network: UNet2DModel, schedule: Tensor, latents: Tensor, classes: Tensor) -> Tensor:
    """Plain diffusion loss at random timesteps."""
    timesteps, noise = torch.randint(1000, (len(latents),), device=_DEVICE), torch.randn_like(latents)
    alpha_bar = schedule[timesteps].view(-1, 1, 1, 1)
    noisy = alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise
    return per_sample_error(network(noisy, timesteps, class_labels=classes).sample, noise).mean()


def latent_cost(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """A training step on the latents of a pool, kept or encoded anew, against the U-Net's step alone."""
    size, width, count, repeats = (16, 16, 16, 5) if quick else (32, 32, 64, 9)
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(width, 2 * width),
        latent_channels=4,
        norm_num_groups=8,
        sample_size=size,
    ).to(_DEVICE)
    autoencoder.requires_grad_(False).eval()
    network, schedule = unet(size // 2, width, 4), DDPMScheduler(beta_schedule="linear").alphas_cumprod.to(_DEVICE)
    images, classes = torch.randn(count, 3, size, size, device=_DEVICE), torch.arange(count, device=_DEVICE) % 10
    index, flips, cache = torch.arange(count), torch.arange(count) % 2 == 1, LatentCache()
    latents = cache.encode(autoencoder, images, index, flips)

    def step(make: Any) -> None:
        network.zero_grad()
        _diffusion_loss(network, schedule, make(), classes).backward()

    sides = {
        "latents at hand": partial(step, lambda: latents),
        "kept by position": partial(step, partial(cache.encode, autoencoder, images, index, flips)),
        "encoded in each step": partial(step, partial(encode, autoencoder, images)),
    }
    seconds = medians(sides, repeats)
    rows = [{"side": name, "ratio": value / seconds["latents at hand"]} for name, value in seconds.items()]
    title = f"(d) a step on latents of half the side, {size} x {size} images; at hand = 1"
    table(title, ["latents", "time"], [list(row.values()) for row in rows])
    return {"step_encoded_vs_kept": seconds["encoded in each step"] / seconds["kept by position"]}, rows


def precision_cost(quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Time and memory of a diffusion step in float32 and under bfloat16 autocast."""
    size, width, count, repeats = (8, 16, 32, 3) if quick else (16, 32, 64, 5)
    network, schedule = unet(size, width), DDPMScheduler(beta_schedule="linear").alphas_cumprod.to(_DEVICE)
    images, classes = torch.randn(count, 1, size, size, device=_DEVICE), torch.arange(count, device=_DEVICE) % 10

    def forward(precision: torch.dtype, share: int = 1) -> Tensor:
        with torch.autocast(_DEVICE, torch.bfloat16, enabled=precision == torch.bfloat16):
            return _diffusion_loss(network, schedule, images[::share], classes[::share])

    forwards = {
        "float32": partial(forward, torch.float32),
        "bfloat16 autocast": partial(forward, torch.bfloat16),
        "float32, half the images": partial(forward, torch.float32, 2),
    }
    seconds = medians({name: partial(_backward, network, make) for name, make in forwards.items()}, repeats)
    kept = {name: saved_bytes(make, exclude=list(network.parameters())) for name, make in forwards.items()}
    rows = [{"side": name, "ratio": seconds[name] / seconds["float32"], "MiB": kept[name] / 2**20} for name in forwards]
    table(
        f"(e) precision of a step ({_DEVICE}), float32 = 1",
        ["step", "time", "kept for backward, MiB"],
        [list(row.values()) for row in rows],
    )
    return {"bytes_float32_vs_bf16": kept["float32"] / kept["bfloat16 autocast"]}, rows


def _backward(network: UNet2DModel, forward: Callable[[], Tensor]) -> None:
    network.zero_grad()
    forward().backward()


def main() -> None:
    """Runs all parts, or those that `--only` names."""
    options = arguments(__doc__ or "")
    warnings.simplefilter("ignore")  # the printed lines are the output
    torch.manual_seed(options.seed)
    print(f"{machine()}; seed {options.seed}")
    headlines: dict[str, float] = {}
    figures: dict[str, Any] = {}
    for part in (step_cost, transform_cost, strategy_cost, latent_cost, precision_cost):
        if options.only is None or options.only in part.__name__:
            found, figures[part.__name__] = part(options.quick)
            headlines |= found
    finish(headlines, figures, options.json)


if __name__ == "__main__":
    main()
