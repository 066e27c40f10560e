"""Risks, ratios, the solver and the peers' losses for all shapes and numbers that Hypothesis draws."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lit_methods.semi_supervised import functional as F
from lit_methods.semi_supervised import ssl_functional as peers
from tests.properties import SEED, SIZE, normal

PRIOR, BATCH, CLASSES = st.floats(0.01, 0.99), st.integers(1, 12), st.integers(2, 9)


@given(SEED, SIZE, PRIOR, st.booleans())
def test_density_ratios_are_bounded_and_rise_with_the_logit(seed: int, size: int, prior: float, balanced: bool) -> None:
    logits = (10 * normal(seed, size)).sort().values
    ratios = F.density_ratio(logits, prior, balanced)
    assert bool((ratios >= 0).all() and (ratios <= 1 / prior + 1e-9).all() and (ratios.diff() >= -1e-12).all())
    share = F.effective_sample_size(ratios)
    assert 1 - 1e-9 <= float(share) <= size + 1e-9


@given(SEED, SIZE, SIZE, PRIOR, st.booleans())
def test_pu_risk_is_that_of_labelled_data_for_a_pool_of_the_prior(
    seed: int, positives: int, negatives: int, prior: float, balanced: bool
) -> None:
    known, other = normal(seed, positives), normal(seed + 1, negatives)
    share = positives / (positives + negatives)
    risk = F.pu_risks(known, torch.cat([known, other]), share, balanced=balanced)[1]
    direct = F.logistic_surrogate(-other).mean() * (1 if balanced else 1 - share)
    assert float(risk) == pytest.approx(float(direct), rel=1e-9, abs=1e-12)
    assert float(F.pu_loss(known, other, prior, balanced=balanced, beta=0.0)) >= 0


@given(SEED, SIZE, st.floats(-3.0, 3.0))
def test_surrogates_fall_and_the_sigmoid_stays_below_the_logistic(seed: int, size: int, prior: float) -> None:
    margins = (5 * normal(seed, size)).sort().values
    sigmoid, logistic = F.sigmoid_surrogate(margins), F.logistic_surrogate(margins)
    torch.testing.assert_close(sigmoid + F.sigmoid_surrogate(-margins), torch.ones_like(margins))
    torch.testing.assert_close(logistic - F.logistic_surrogate(-margins), -margins)
    assert bool((sigmoid <= logistic).all() and (sigmoid.diff() <= 0).all() and (logistic.diff() <= 0).all())
    if 0 < prior < 1:
        F.check_prior(prior)
    else:
        with pytest.raises(ValueError, match="prior="):
            F.check_prior(prior)


@given(SEED, BATCH, BATCH, st.floats(0.0, 5.0))
def test_the_diffusion_loss_is_a_weighted_mean(seed: int, labeled: int, unlabeled: int, weight: float) -> None:
    shape = (labeled + unlabeled, 2, 3, 3)
    errors = F.per_sample_error(normal(seed, *shape), normal(seed + 1, *shape))
    difference = (normal(seed, *shape) - normal(seed + 1, *shape)).float()
    for i, error in enumerate(errors):
        assert float(error) == pytest.approx(sum(v * v for v in difference[i].flatten().tolist()) / 18, rel=1e-4)
    known, pool = errors[:labeled], errors[labeled:]
    found = F.weighted_diffusion_loss(known, pool, torch.full_like(pool, weight))
    assert float(found) == pytest.approx(float((known.sum() + weight * pool.sum()) / len(errors)), rel=1e-5)
    torch.testing.assert_close(F.weighted_diffusion_loss(known, pool, torch.ones_like(pool)), errors.mean())


@given(SEED, SIZE, st.floats(-2.0, 5.0))
def test_guidance_goes_along_the_line_of_both_predictions(seed: int, size: int, scale: float) -> None:
    conditional, null = normal(seed, size), normal(seed + 1, size)
    torch.testing.assert_close(F.guided_noise(conditional, null, 1.0), conditional)
    torch.testing.assert_close(F.guided_noise(conditional, null, 0.0), null)
    torch.testing.assert_close(F.guided_noise(conditional, conditional, scale), conditional)
    middle = F.guided_noise(conditional, null, scale) + F.guided_noise(conditional, null, 1 - scale)
    torch.testing.assert_close(middle, conditional + null)


@given(st.integers(2, 400), st.floats(0.0, 1.0), st.integers(1, 60))
def test_timesteps_fall_from_the_start(length: int, strength: float, steps: int) -> None:
    alphas = torch.linspace(0.999, 0.01, length, dtype=torch.float64)
    start = F.start_timestep(strength, length)
    assert -1 <= start < length
    if start >= 0:
        times = F.log_snr_timesteps(alphas, start, steps)
        assert times[0] == start
        assert len(times) <= steps
        assert times == sorted(set(times), reverse=True)


@given(SEED, st.integers(2, 100), st.integers(1, 12), st.booleans())
def test_the_solver_finds_the_image_that_a_perfect_predictor_knows(
    seed: int, length: int, steps: int, clipped: bool
) -> None:
    alphas = torch.linspace(0.999, 0.01, length, dtype=torch.float64)
    times = F.log_snr_timesteps(alphas, length - 1, steps)
    clean, low_high = normal(seed, 2, 1, 2, 2), (-0.5, 0.5)

    def predict(latents: Tensor, timestep: int) -> Tensor:
        alpha_bar = float(alphas[timestep])
        return (latents - alpha_bar**0.5 * clean) / (1 - alpha_bar) ** 0.5

    found = F.dpm_solver_2m(predict, normal(seed + 1, 2, 1, 2, 2), alphas, times, low_high if clipped else None)
    torch.testing.assert_close(found, clean.clamp(*low_high) if clipped else clean, rtol=1e-6, atol=1e-6)


@given(SEED, BATCH, CLASSES, st.floats(0.05, 4.0), st.floats(0.0, 0.9))
def test_targets_are_distributions(seed: int, batch: int, classes: int, temperature: float, smoothing: float) -> None:
    logits, o = 3 * normal(seed, batch, classes), 3 * normal(seed + 1, batch, 2, classes)
    probabilities, labels = logits.softmax(1), logits.argmax(1)
    sharp, smoothed = peers.sharpen(probabilities, temperature), peers.smoothed_targets(labels, classes, smoothing)
    for targets in (sharp, smoothed.double(), peers.open_set_targets(logits, o)):
        assert bool((targets >= 0).all())
        torch.testing.assert_close(targets.sum(1), torch.ones(batch, dtype=torch.float64), rtol=0, atol=1e-6)
    assert torch.equal(sharp.argmax(1), labels)
    assert torch.equal(smoothed.argmax(1), labels)
    assert 0 <= float(peers.one_vs_all_entropy(o)) <= math.log(2) + 1e-12


@given(SEED, BATCH, CLASSES, st.floats(0.1, 3.0))
def test_a_mix_is_nearer_to_the_first_and_one_for_images_and_targets(
    seed: int, batch: int, classes: int, alpha: float
) -> None:
    first = (normal(seed, batch, 1, 2, 2), normal(seed + 1, batch, classes).softmax(1))
    second = (normal(seed + 2, batch, 1, 2, 2), normal(seed + 3, batch, classes).softmax(1))
    images, targets = peers.mixup(first, second, alpha, torch.Generator().manual_seed(seed))
    shares = ((images - second[0]) / (first[0] - second[0])).flatten()
    share = float(shares.median())
    assert 0.5 - 1e-6 <= share <= 1 + 1e-6
    torch.testing.assert_close(images, share * first[0] + (1 - share) * second[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(targets, share * first[1] + (1 - share) * second[1], rtol=1e-6, atol=1e-6)


@given(SEED, BATCH, CLASSES, st.floats(0.0, 1.0), st.booleans())
def test_losses_of_the_peers_are_those_of_a_loop(
    seed: int, batch: int, classes: int, threshold: float, some: bool
) -> None:
    weak, strong = 2 * normal(seed, batch, classes), 2 * normal(seed + 1, batch, classes)
    chosen = normal(seed + 2, batch) > 0
    o, other = normal(seed + 3, batch, 2, classes), normal(seed + 4, batch, 2, classes)
    labels = torch.randint(classes, (batch,), generator=torch.Generator().manual_seed(seed))
    pseudo, consistency, one_vs_all, apart, inlier = 0.0, 0.0, 0.0, 0.0, []
    for i in range(batch):
        p, binary, second = weak[i].softmax(0), o[i].softmax(0), other[i].softmax(0)
        if float(p.max()) >= threshold and (bool(chosen[i]) or not some):
            pseudo -= float(strong[i].log_softmax(0)[p.argmax()])
        consistency += float((strong[i].softmax(0) - p).square().mean())
        y = int(labels[i])
        hardest = max(-math.log(binary[0, k]) for k in range(classes) if k != y)
        one_vs_all += hardest - math.log(binary[1, y])
        apart += float((binary - second).square().sum())
        inlier.append(bool(binary[0, p.argmax()] < 0.5))
    taking_part = max(1, int(chosen.sum())) if some else batch
    found = peers.pseudo_label_loss(weak, strong, threshold, chosen if some else None)
    assert float(found) == pytest.approx(pseudo / taking_part, rel=1e-9, abs=1e-12)
    assert float(peers.consistency_loss(strong, weak.softmax(1))) == pytest.approx(consistency / batch, abs=1e-12)
    assert float(peers.one_vs_all_loss(o, labels)) == pytest.approx(one_vs_all / batch, rel=1e-9)
    assert float(peers.one_vs_all_consistency(o, other)) == pytest.approx(apart / batch, rel=1e-9, abs=1e-12)
    assert peers.is_inlier(weak, o).tolist() == inlier


@given(SEED, st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_gradients_agree_by_the_sign_of_their_product(seed: int, sizes: list[int]) -> None:
    first = [normal(seed + i, size) for i, size in enumerate(sizes)]
    second = [normal(seed + 10 + i, size) for i, size in enumerate(sizes)]
    assert bool(peers.gradients_agree(first, second)) == (float(torch.cat(first) @ torch.cat(second)) >= 0)
    assert bool(peers.gradients_agree(first, first))
    assert not bool(peers.gradients_agree(first, [-g for g in first]))
