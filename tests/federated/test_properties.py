"""Spectra, divergences and aggregates for all shapes and numbers that Hypothesis draws."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lit_methods.federated import functional as F
from tests.properties import SEED, normal

RATIO = st.floats(0.05, 1.0)
SHAPES = st.lists(st.sampled_from([(1,), (5,), (2, 3), (4, 2), (2, 1, 3)]), min_size=1, max_size=3).map(tuple)


def _weights(seed: int, shapes: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    return [normal(seed + i, *shape) for i, shape in enumerate(shapes)]


@given(SEED, st.integers(2, 200), RATIO, st.floats(0.1, 50.0))
def test_spectral_divergence_is_a_divergence_of_shapes(seed: int, size: int, ratio: float, scale: float) -> None:
    one, two = normal(seed, size), normal(seed + 1, size)
    found = float(F.spectral_divergence([one], [two], ratio))
    assert found >= -1e-12
    assert float(F.spectral_divergence([scale * one], [one], ratio)) == pytest.approx(0.0, abs=1e-9)
    for same in (scale * one, one.roll(seed % size)):
        assert float(F.spectral_divergence([same], [two], ratio)) == pytest.approx(found, rel=1e-6, abs=1e-9)


@given(SEED, SHAPES, RATIO)
def test_the_half_spectrum_is_the_whole_one_with_its_mirror(seed: int, shapes: Any, ratio: float) -> None:
    weights = _weights(seed, shapes)
    whole = torch.fft.fft(torch.cat([w.reshape(-1) for w in weights])).abs()
    found, times = F.spectrum(weights, ratio=ratio), F.multiplicities(shapes, ratio=ratio)
    assert len(found) == len(times) == math.ceil(ratio * (len(whole) // 2 + 1))
    torch.testing.assert_close(found, whole[: len(found)])
    mirrored = [sum(min(i, len(whole) - i) == k for i in range(len(whole))) for k in range(len(found))]
    assert times.tolist() == mirrored


@given(SEED, SHAPES, st.sampled_from(["per_layer_1d", "per_layer_2d"]))
def test_spectra_of_layers_keep_their_energy(seed: int, shapes: Any, layout: Any) -> None:
    weights = _weights(seed, shapes)
    energy = F.multiplicities(shapes, layout) @ F.spectrum(weights, layout).square()
    expected = sum(w.numel() * float(w.square().sum()) for w in weights)
    assert float(energy) == pytest.approx(expected, rel=1e-9)


@given(SEED, SHAPES, RATIO, st.sampled_from(["half", "full"]), st.booleans())
def test_divergence_and_gradient_are_those_of_plain_autograd(
    seed: int, shapes: Any, ratio: float, convention: Any, student_first: bool
) -> None:
    plan = F.SpectralPlan.make(shapes, "global_1d", ratio, convention)
    flat, teacher = normal(seed, 2, plan.size), normal(seed + 1, 2, plan.size)
    q = F.spectral_distribution(teacher, plan)
    index = torch.arange(plan.size)
    bins = torch.minimum(index, plan.size - index)
    if convention == "full":
        counted = bins[: max(1, math.floor(ratio * plan.size))]
    else:
        counted = bins[bins < math.ceil(ratio * (plan.size // 2 + 1))]

    def plain(vectors: Tensor) -> Tensor:
        entries = torch.fft.fft(vectors).abs()[:, counted]
        entries = entries / entries.sum(dim=1, keepdim=True)
        return torch.zeros(2, len(q[0]), dtype=entries.dtype).index_add(1, counted, entries)

    torch.testing.assert_close(q, plain(teacher))
    flat.requires_grad_()
    p = plain(flat)
    expected = (p * (p / q).log() if student_first else q * (q / p).log()).sum(dim=1)
    found = F.flat_spectral_divergence(flat, q, plan, student_first)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    gradients = [torch.autograd.grad(value.sum(), flat)[0] for value in (found, expected)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-8)


@given(st.integers(1, 2000))
def test_smooth_lengths_are_the_next_ones_without_large_primes(length: int) -> None:
    def is_smooth(number: int) -> bool:
        for prime in (2, 3, 5, 7):
            while number % prime == 0:
                number //= prime
        return number == 1

    found = F.smooth_length(length)
    assert is_smooth(found)
    assert not any(is_smooth(number) for number in range(length, found))


@given(SEED, st.integers(1, 8), st.integers(1, 6))
def test_aggregates_lie_between_their_models_and_know_no_order(seed: int, clients: int, size: int) -> None:
    models, counts = normal(seed, clients, size), normal(seed + 1, clients).abs() + 0.1
    mean = F.aggregate(models, counts)
    assert bool((mean <= models.amax(0) + 1e-9).all() and (mean >= models.amin(0) - 1e-9).all())
    order = torch.randperm(clients, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(F.aggregate(models[order], counts[order]), mean)
