"""Properties of the functional layers that hold for all inputs, over shapes and numbers that Hypothesis draws."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from lit_methods.data_manipulation import functional as manipulation
from lit_methods.differential_privacy import functional as privacy
from lit_methods.federated import functional as federated
from lit_methods.image_text import functional as image_text
from lit_methods.image_text.reranking import rerank
from lit_methods.semi_supervised import functional as diffusion
from lit_methods.semi_supervised import ssl_functional as semi_supervised
from lit_methods.softmax_approximation import functional as attention

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("repeatable")
SEED, SIZE = st.integers(0, 10_000), st.integers(2, 40)
PRIOR = st.floats(0.01, 0.99)


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(SEED, st.integers(2, 200), st.floats(0.05, 1.0), st.floats(0.1, 50.0))
def test_spectral_divergence_is_a_divergence_of_shapes(seed: int, size: int, ratio: float, scale: float) -> None:
    one, two = _normal(seed, size), _normal(seed + 1, size)
    found = float(federated.spectral_divergence([one], [two], ratio))
    assert found >= -1e-12
    assert float(federated.spectral_divergence([scale * one], [one], ratio)) == pytest.approx(0.0, abs=1e-9)
    assert float(federated.spectral_divergence([scale * one], [two], ratio)) == pytest.approx(found, rel=1e-6, abs=1e-9)
    assert float(federated.spectral_divergence([one.roll(seed % size)], [two], ratio)) == pytest.approx(
        found, rel=1e-6, abs=1e-9
    )


@given(SEED, st.integers(1, 8), st.integers(1, 6))
def test_aggregates_lie_between_their_models_and_know_no_order(seed: int, clients: int, size: int) -> None:
    models, counts = _normal(seed, clients, size), _normal(seed + 1, clients).abs() + 0.1
    mean = federated.aggregate(models, counts)
    assert bool((mean <= models.amax(0) + 1e-9).all() and (mean >= models.amin(0) - 1e-9).all())
    order = torch.randperm(clients, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(federated.aggregate(models[order], counts[order]), mean)


@given(SEED, SIZE, PRIOR, st.booleans())
def test_density_ratios_are_bounded_and_rise_with_the_logit(seed: int, size: int, prior: float, balanced: bool) -> None:
    logits = (10 * _normal(seed, size)).sort().values
    ratios = diffusion.density_ratio(logits, prior, balanced)
    assert bool((ratios >= 0).all() and (ratios <= 1 / prior + 1e-9).all() and (ratios.diff() >= -1e-12).all())
    share = diffusion.effective_sample_size(ratios)
    assert 1 - 1e-9 <= float(share) <= size + 1e-9


@given(SEED, SIZE, SIZE, PRIOR, st.booleans())
def test_pu_risk_is_that_of_labelled_data_for_a_pool_of_the_prior(
    seed: int, positives: int, negatives: int, prior: float, balanced: bool
) -> None:
    known, other = _normal(seed, positives), _normal(seed + 1, negatives)
    share = positives / (positives + negatives)
    risk = diffusion.pu_risks(known, torch.cat([known, other]), share, balanced=balanced)[1]
    direct = diffusion.logistic_surrogate(-other).mean() * (1 if balanced else 1 - share)
    assert float(risk) == pytest.approx(float(direct), rel=1e-9, abs=1e-12)
    assert float(diffusion.pu_loss(known, other, prior, balanced=balanced, beta=0.0)) >= 0


@given(st.integers(2, 400), st.floats(0.0, 1.0), st.integers(1, 60))
def test_timesteps_fall_from_the_start(length: int, strength: float, steps: int) -> None:
    alphas = torch.linspace(0.999, 0.01, length, dtype=torch.float64)
    start = diffusion.start_timestep(strength, length)
    assert -1 <= start < length
    if start >= 0:
        times = diffusion.log_snr_timesteps(alphas, start, steps)
        assert times[0] == start
        assert len(times) <= steps
        assert times == sorted(set(times), reverse=True)


@given(SEED, st.integers(1, 12), st.integers(2, 9), st.floats(0.05, 4.0))
def test_targets_are_distributions(seed: int, batch: int, classes: int, temperature: float) -> None:
    logits, o = 3 * _normal(seed, batch, classes), 3 * _normal(seed + 1, batch, 2, classes)
    probabilities = logits.softmax(1)
    sharp = semi_supervised.sharpen(probabilities, temperature)
    ones = torch.ones(batch, dtype=torch.float64)
    for targets in (sharp, semi_supervised.open_set_targets(logits, o)):
        assert bool((targets >= 0).all())
        torch.testing.assert_close(targets.sum(1), ones)
    assert torch.equal(sharp.argmax(1), probabilities.argmax(1))
    assert 0 <= float(semi_supervised.one_vs_all_entropy(o)) <= math.log(2) + 1e-12


@given(SEED, SIZE, st.floats(0.1, 10.0))
def test_weights_of_a_batch_have_mean_one_and_their_gradient_sums_to_zero(
    seed: int, size: int, temperature: float
) -> None:
    logits, gains = _normal(seed, size), _normal(seed + 1, size)
    weights = manipulation.softmax_weights(logits, temperature)
    assert float(weights.mean()) == pytest.approx(1.0)
    torch.testing.assert_close(manipulation.softmax_weights(logits + 7.0, temperature), weights)
    gradient = manipulation.softmax_weight_gradient(weights, gains, temperature)
    assert float(gradient.sum()) == pytest.approx(0.0, abs=1e-9)
    linear = manipulation.linear_weights(logits)
    assert float(linear.mean()) == pytest.approx(1.0 if bool((logits > 0).any()) else 0.0)
    assert 1 / size - 1e-9 <= float(manipulation.effective_sample_size(weights)) <= 1 + 1e-9


@given(SEED, st.integers(1, 6), st.integers(2, 30), st.floats(0.0, 0.5))
def test_softmax_gradients_sum_to_zero_and_errors_keep_their_bound(
    seed: int, rows: int, keys: int, size: float
) -> None:
    weights, grad = _normal(seed, rows, keys).softmax(-1), _normal(seed + 1, rows, keys)
    exact = attention.softmax_backward(weights, grad)
    torch.testing.assert_close(exact.sum(-1), torch.zeros(rows, dtype=torch.float64), rtol=0, atol=1e-12)
    other = (1 - size) * weights + size * _normal(seed + 2, rows, keys).softmax(-1)
    away = (attention.softmax_backward(other, grad) - exact).abs().sum(-1)
    assert bool((away <= attention.error_bound(weights, other, grad) + 1e-12).all())
    mass = attention.kept_mass(weights, other)
    assert bool((mass >= 1 - size - 1e-12).all() and (mass <= 1 + 1e-12).all())


@given(st.integers(1, 24), st.integers(1, 24), st.floats(0.0, 0.95), st.floats(0.5, 1.0))
def test_the_square_root_squared_is_the_workload(steps: int, bandwidth: int, momentum: float, decay: float) -> None:
    root = privacy.banded_square_root_coefficients(steps, momentum, decay)
    workload = privacy.sgd_workload(steps, momentum, decay)
    square = torch.stack([(root[: t + 1] * root[: t + 1].flip(0)).sum() for t in range(steps)])
    torch.testing.assert_close(square, workload, rtol=1e-8, atol=1e-10)
    inverse = privacy.series_inverse(root, steps)
    unit = torch.stack([(root[: t + 1] * inverse[: t + 1].flip(0)).sum() for t in range(steps)])
    torch.testing.assert_close(unit, torch.eye(steps, dtype=unit.dtype)[0], rtol=0, atol=1e-7)


@given(st.integers(2, 40), st.integers(1, 6), st.integers(1, 8), st.integers(1, 8))
def test_sensitivity_grows_with_participations_and_band_and_never_shrinks(
    steps: int, times: int, separation: int, bandwidth: int
) -> None:
    def of(band: int, count: int) -> float:
        column = privacy.banded_square_root_coefficients(band)
        return privacy.toeplitz_sensitivity(column, steps, count, separation)

    assert of(bandwidth, times + 1) >= of(bandwidth, times) - 1e-9
    assert of(bandwidth + 1, times) >= of(bandwidth, times) - 1e-9
    fits = 1 + (steps - 1) // separation
    assert of(1, times) == pytest.approx(math.sqrt(min(times, fits)))


@given(SEED, st.integers(1, 4), st.integers(1, 5), st.integers(2, 6))
def test_the_best_region_is_one_of_them_and_scores_are_cosines(
    seed: int, units: int, images: int, regions: int
) -> None:
    words, seen = normalize(_normal(seed, units, 6), dim=1), normalize(_normal(seed + 1, images, regions, 6), dim=2)
    cosines = torch.einsum("qd,brd->qbr", words, seen)
    mask = _normal(seed + 2, images, regions) > -0.5
    mask[:, 0] = True
    best = image_text.unit_maxima(cosines, mask)
    assert bool((best.abs() <= 1 + 1e-12).all())
    hidden = cosines.masked_fill(~mask, 5.0)
    torch.testing.assert_close(image_text.unit_maxima(hidden, mask), best)
    scores = image_text.t2i_scores(best, torch.arange(units), torch.tensor([0, units]))
    torch.testing.assert_close(scores[0], best.mean(0))


@given(SEED, st.integers(1, 6), st.integers(3, 12), st.integers(1, 12), st.sampled_from(["raw", "zscore", "softmax"]))
def test_reranking_sorts_the_first_candidates_and_only_these(
    seed: int, queries: int, items: int, first: int, fusion: Any
) -> None:
    base, known = _normal(seed, queries, items), _normal(seed + 1, queries, items)
    before = base.argsort(dim=1, descending=True)[:, :first]
    candidates, scores = rerank(base, known, first, 0.7, fusion)
    assert torch.equal(candidates.sort(dim=1).values, before.sort(dim=1).values)
    assert bool((scores.diff(dim=1) <= 1e-12).all())
    assert torch.equal(rerank(base, known, first, 0.0, fusion)[0], before)
