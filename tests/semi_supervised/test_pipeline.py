"""The transformation: solver against exact Gaussians, identity, independence, guidance, seeds (card 8.7, 8.8, 8.10)."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from lit_methods.semi_supervised.functional import dpm_solver_2m, guided_noise, log_snr_timesteps, start_timestep
from lit_methods.semi_supervised.pipeline import ClassTransformationPipeline
from tests.semi_supervised.toys import GaussianPredictor, tiny_unet

SCHEDULE = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
WIDE = {"low": -1e6, "high": 1e6}


def _quiet(pipeline: ClassTransformationPipeline) -> ClassTransformationPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _gaussian(*means: float, std: float = 0.5) -> ClassTransformationPipeline:
    return _quiet(ClassTransformationPipeline(GaussianPredictor(list(means), std), SCHEDULE, **WIDE))


def _tiny(**kwargs: object) -> ClassTransformationPipeline:
    return _quiet(ClassTransformationPipeline(tiny_unet(), SCHEDULE, **WIDE, **kwargs))


def _normal(mean: float, std: float, n: int = 20_000) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return mean + std * torch.randn(n, 1, 1, 1, generator=generator)


def _classes(n: int, label: int = 0) -> Tensor:
    return torch.full((n,), label)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")  # diffusers 0.42, numpy 2
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_solver_equals_that_of_diffusers(steps: int) -> None:
    unet, labels = tiny_unet(), torch.tensor([0, 1])
    start = torch.randn(2, 1, 4, 4)
    grid = log_snr_timesteps(SCHEDULE.alphas_cumprod, 599, steps)
    reference = DPMSolverMultistepScheduler.from_config(SCHEDULE.config, algorithm_type="dpmsolver++")
    reference.set_timesteps(timesteps=grid)
    expected = start
    with torch.no_grad():
        for timestep in reference.timesteps:
            noise = unet(expected, timestep, class_labels=labels).sample
            expected = reference.step(noise, timestep, expected).prev_sample
        found = dpm_solver_2m(lambda x, t: unet(x, t, class_labels=labels).sample, start, SCHEDULE.alphas_cumprod, grid)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_solver_needs_a_timestep() -> None:
    with pytest.raises(ValueError, match="timesteps is empty"):
        dpm_solver_2m(lambda x, t: x, torch.zeros(1), SCHEDULE.alphas_cumprod, [])


@pytest.mark.parametrize(("steps", "tolerance"), [(10, 0.015), (20, 0.007), (40, 0.004)])
def test_partial_reversal_keeps_the_spread_of_a_gaussian(steps: int, tolerance: float) -> None:
    found = _gaussian(2.0, 2.0)(_normal(2.0, 0.5), _classes(20_000), 0.6, 1.0, steps, torch.Generator().manual_seed(1))
    assert float(found.mean()) == pytest.approx(2.0, abs=0.03)
    assert float(found.std()) == pytest.approx(0.5, abs=tolerance + 0.004)


def _exact_noise(x: Tensor, timestep: int, mean: float = 2.0, std: float = 0.5) -> Tensor:
    alpha_bar = SCHEDULE.alphas_cumprod.double()[timestep]
    return (1 - alpha_bar).sqrt() * (x - alpha_bar.sqrt() * mean) / (alpha_bar * std**2 + 1 - alpha_bar)


def _second_order(x: Tensor, grid: list[int]) -> Tensor:
    return dpm_solver_2m(_exact_noise, x, SCHEDULE.alphas_cumprod, grid)


def _first_order(x: Tensor, grid: list[int]) -> Tensor:
    """DDIM, written out."""
    alpha_bar = [float(SCHEDULE.alphas_cumprod[t]) for t in grid] + [1.0]
    for timestep, here, there in zip(grid, alpha_bar, alpha_bar[1:], strict=False):
        noise = _exact_noise(x, timestep)
        clean = (x - (1 - here) ** 0.5 * noise) / here**0.5
        x = there**0.5 * clean + (1 - there) ** 0.5 * noise
    return x


def test_spreads_are_those_of_the_card() -> None:
    """With exact noise of a Gaussian a solver is an affine map, so that its slope gives the spread without sampling."""
    even, log_snr = [60 * i - 1 for i in range(10, 0, -1)], log_snr_timesteps(SCHEDULE.alphas_cumprod, 599, 10)
    start = float(SCHEDULE.alphas_cumprod[599])
    found = {}
    for solver in (_second_order, _first_order):
        for name, grid in (("log-SNR", log_snr), ("even", even)):
            ends = solver(torch.tensor([0.0, 1.0], dtype=torch.float64), grid)
            found[solver.__name__, name] = float(ends[1] - ends[0]) * (start * 0.25 + 1 - start) ** 0.5
    assert list(found.values()) == pytest.approx([0.508, 0.463, 0.425, 0.417], abs=0.008), found


@pytest.mark.parametrize(("strength", "card"), [(0.1, -1.31), (0.3, 0.51), (0.6, 1.69), (1.0, 1.98)])
def test_irrelevant_mean_ends_where_the_exact_flow_takes_it(strength: float, card: float) -> None:
    start = start_timestep(strength, 1000)
    alpha_bar = float(SCHEDULE.alphas_cumprod[start])
    signal = 0.0 if strength == 1 else alpha_bar**0.5
    spread = 0.5 / (alpha_bar * 0.25 + 1 - alpha_bar) ** 0.5
    exact = 2.0 + spread * (signal * -2.0 - alpha_bar**0.5 * 2.0)
    source = torch.tensor([-2.0 * signal], dtype=torch.float64)
    found = float(_second_order(source, log_snr_timesteps(SCHEDULE.alphas_cumprod, start, 10)))
    assert found == pytest.approx(exact, abs=0.016)
    assert exact == pytest.approx(card, abs=0.02)


def test_log_snr_grid_keeps_more_spread_than_a_time_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    def even(alphas_cumprod: Tensor, start: int, steps: int) -> list[int]:
        return torch.linspace(start, 0, steps).round().long().tolist()

    errors = []
    for grid in (log_snr_timesteps, even):
        monkeypatch.setattr("lit_methods.semi_supervised.pipeline.log_snr_timesteps", grid)
        found = _gaussian(2.0, 2.0)(_normal(2.0, 0.5), _classes(20_000), 0.6, 1.0, 10, torch.Generator().manual_seed(1))
        errors.append(abs(float(found.std()) - 0.5))
    assert errors[0] < 0.5 * errors[1]


def test_irrelevant_sources_move_to_the_class_with_the_strength() -> None:
    pipeline, sources = _gaussian(2.0, 2.0), _normal(-2.0, 0.5)
    means = []
    for strength in (0.0, 0.1, 0.3, 0.6, 1.0):
        found = pipeline(sources, _classes(20_000), strength, 1.0, 10, torch.Generator().manual_seed(1))
        means.append(float(found.mean()))
    assert means == sorted(means)
    assert means[1] < 0 < means[2] < 1.2 < 1.5 < means[3] < 1.85 < means[4]


def test_exact_class_means_are_reached_in_one_mixed_batch() -> None:
    labels = torch.arange(2).repeat(10_000)
    found = _gaussian(2.0, -1.0, 0.0)(_normal(0.0, 1.0), labels, 1.0, 1.0, 20, torch.Generator().manual_seed(1))
    for label, mean in ((0, 2.0), (1, -1.0)):
        assert float(found[labels == label].mean()) == pytest.approx(mean, abs=0.03)


def test_strength_zero_is_the_identity() -> None:
    images = torch.randn(3, 1, 4, 4)
    found = _tiny()(images, _classes(3), strength=0.0)
    assert torch.equal(found, images)
    assert found is not images


def test_strength_one_forgets_the_source_and_less_does_not() -> None:
    pipeline = _tiny()
    for strength, same in ((1.0, True), (0.9, False)):
        a, b = (
            pipeline(images, _classes(2), strength, generator=torch.Generator().manual_seed(0))
            for images in (torch.ones(2, 1, 4, 4), -torch.ones(2, 1, 4, 4))
        )
        assert torch.equal(a, b) == same


def test_guidance_identities() -> None:
    conditional, null = torch.randn(4), torch.randn(4)
    torch.testing.assert_close(guided_noise(conditional, null, 1.0), conditional)
    torch.testing.assert_close(guided_noise(conditional, null, 0.0), null)
    torch.testing.assert_close(guided_noise(conditional, null, 1.5), conditional + 0.5 * (conditional - null))

    pipeline, images = _tiny(), torch.randn(3, 1, 4, 4)
    null_class, seed = pipeline.null_class, lambda: torch.Generator().manual_seed(0)
    by_guidance = pipeline(images, _classes(3, 1), 0.6, 0.0, generator=seed())
    torch.testing.assert_close(by_guidance, pipeline(images, _classes(3, null_class), 0.6, 1.0, generator=seed()))
    near_one = pipeline(images, _classes(3, 1), 0.6, 1.0 + 1e-6, generator=seed())
    exactly_one = pipeline(images, _classes(3, 1), 0.6, 1.0, generator=seed())
    torch.testing.assert_close(near_one, exactly_one, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(by_guidance, exactly_one, atol=1e-3)


def test_guided_step_equals_two_separate_passes() -> None:
    pipeline, images, labels = _tiny(), torch.randn(2, 1, 4, 4), torch.tensor([0, 1])
    timestep = 300
    found = pipeline._predict(images, timestep, labels, 2.5)
    conditional = pipeline.unet(images, timestep, class_labels=labels).sample
    null = pipeline.unet(images, timestep, class_labels=torch.tensor([2, 2])).sample
    torch.testing.assert_close(found, null + 2.5 * (conditional - null), rtol=1e-4, atol=1e-5)


def test_result_does_not_depend_on_the_batch() -> None:
    pipeline, images, labels = _tiny(), torch.randn(5, 1, 4, 4), torch.tensor([0, 1, 0, 1, 1])

    def run(rows: list[int]) -> Tensor:
        return pipeline(images[rows], labels[rows], generator=[torch.Generator().manual_seed(row) for row in rows])

    whole = run([0, 1, 2, 3, 4])
    torch.testing.assert_close(torch.cat([run([0, 1]), run([2]), run([3, 4])]), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(run([4, 2]), whole[[4, 2]], rtol=1e-4, atol=1e-4)


def test_result_is_clipped() -> None:
    pipeline = _quiet(ClassTransformationPipeline(tiny_unet(), SCHEDULE, low=-0.1, high=0.1))
    found = pipeline(torch.randn(2, 1, 4, 4), _classes(2))
    assert (float(found.min()), float(found.max())) == pytest.approx((-0.1, 0.1))


def test_estimates_of_the_clean_image_are_clipped_on_request(tmp_path: Path) -> None:
    unet, labels, seen = tiny_unet(), torch.tensor([0, 1]), []
    start = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    grid = log_snr_timesteps(SCHEDULE.alphas_cumprod, 999, 2)
    (a, b), (s, r) = (x[grid].sqrt().tolist() for x in (SCHEDULE.alphas_cumprod, 1 - SCHEDULE.alphas_cumprod))
    with torch.no_grad():
        estimate = (start - s * unet(start, grid[0], class_labels=labels).sample) / a
    assert float(estimate.abs().max()) > 10
    unet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for clip in (False, True):
        pipeline = _quiet(ClassTransformationPipeline(unet, SCHEDULE, low=-0.5, high=0.5, clip_clean=clip))
        pipeline(torch.zeros(2, 1, 4, 4), labels, 1.0, 1.0, 2, torch.Generator().manual_seed(2))
        used = estimate.clamp(-0.5, 0.5) if clip else estimate
        torch.testing.assert_close(seen[-2], start)
        torch.testing.assert_close(seen[-1], b * used + r * (start - a * used) / s, rtol=1e-3, atol=1e-3)

    _tiny(clip_clean=True).save_pretrained(tmp_path)
    assert ClassTransformationPipeline.from_pretrained(tmp_path).config.clip_clean
    inside = _normal(2.0, 0.5, 50)
    pair = [
        _quiet(ClassTransformationPipeline(GaussianPredictor([2.0, 2.0], 0.5), SCHEDULE, **WIDE, clip_clean=clip))
        for clip in (False, True)
    ]
    a, b = (p(inside, _classes(50), 0.6, 1.0, generator=torch.Generator().manual_seed(1)) for p in pair)
    assert torch.equal(a, b), "a range that is not reached changes nothing"
    with pytest.raises(ValueError, match="clip_clean=True clips pixels, but the diffusion runs on latents"):
        _tiny(vae=torch.nn.Identity(), clip_clean=True)


def test_saved_pipeline_gives_the_same_images(tmp_path: Path) -> None:
    pipeline, images = _tiny(), torch.randn(2, 1, 4, 4)
    pipeline.save_pretrained(tmp_path)
    again = _quiet(ClassTransformationPipeline.from_pretrained(tmp_path))
    assert again.vae is None
    a, b = (p(images, _classes(2), generator=torch.Generator().manual_seed(0)) for p in (pipeline, again))
    assert torch.equal(a, b)


def test_latents_are_scaled_in_and_out() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        norm_num_groups=2,
        layers_per_block=1,
        latent_channels=1,
        sample_size=8,
        scaling_factor=0.3,
    ).eval()
    pipeline, images = _tiny(vae=vae), torch.randn(2, 3, 8, 8)
    seen: list[Tensor] = []
    handle = pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    found = pipeline(images, _classes(2), 0.001, 1.0, 1, generator=torch.Generator().manual_seed(0))
    handle.remove()
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mode() * 0.3
        expected = vae.decode(latents / 0.3).sample
    torch.testing.assert_close(seen[0], latents, atol=0.05, rtol=0)
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0)


def test_grid_is_even_in_log_snr_and_ends_at_zero() -> None:
    alpha_bar = SCHEDULE.alphas_cumprod.double()
    half_log_snr = 0.5 * (alpha_bar / (1 - alpha_bar)).log()
    grid = log_snr_timesteps(SCHEDULE.alphas_cumprod, 599, 10)
    assert (grid[0], grid[-1], len(grid)) == (599, 0, 10)
    gaps = half_log_snr[grid].diff()
    assert float(gaps.std() / gaps.mean()) < 0.25
    assert log_snr_timesteps(SCHEDULE.alphas_cumprod, 2, 10) == [2, 1, 0]
    assert log_snr_timesteps(SCHEDULE.alphas_cumprod, 599, 1) == [599]
    assert [start_timestep(strength, 1000) for strength in (0.0, 0.001, 0.6, 1.0)] == [-1, 0, 599, 999]


@pytest.mark.parametrize("strength", [-0.1, 1.1])
def test_strength_outside_its_range_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match=rf"strength={strength} must lie in \[0, 1\]"):
        _tiny()(torch.zeros(1, 1, 4, 4), _classes(1), strength)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 4, 4), (1, 4, 4)])
def test_image_of_another_size_or_mode_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"but the model takes \(B, 1, 4, 4\); resize or convert"):
        _tiny()(torch.zeros(shape), _classes(shape[0]))


def test_other_bad_arguments_are_refused() -> None:
    images = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match="class_labels has 0 to 3, but the model knows 0 to 1 and the null class 2"):
        _tiny()(images, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="pass one class per image"):
        _tiny()(images, torch.tensor([0]))
    with pytest.raises(ValueError, match="num_inference_steps=0 must be at least 1"):
        _tiny()(images, _classes(2), num_inference_steps=0)
    with pytest.raises(ValueError, match="generator has 1 entries for 2 images"):
        _tiny()(images, _classes(2), generator=[torch.Generator()])
