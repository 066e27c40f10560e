"""Spectra, divergences and gradients against explicit sums over the full DFT, in float64."""

import cmath
import math

import pytest
import torch
from torch import Tensor

from lit_methods.federated.functional import (
    SpectralPlan,
    aggregate,
    multiplicities,
    smooth_length,
    spectral_distribution,
    spectral_divergence,
    spectrum,
)

LAYOUTS = ("global_1d", "per_layer_1d", "per_layer_2d")
SHAPES = {"odd": ((3, 5), (2, 3)), "even": ((4, 3), (2, 2)), "conv": ((3, 2, 2, 2), (5,), (2, 4))}


def _weights(shapes: tuple[tuple[int, ...], ...], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def _dft(values: list[float]) -> list[complex]:
    d = len(values)
    return [sum(v * cmath.exp(-2j * math.pi * k * n / d) for n, v in enumerate(values)) for k in range(d)]


def _full(weights: list[Tensor]) -> list[float]:
    return [abs(z) for z in _dft(torch.cat([w.flatten() for w in weights]).tolist())]


def _kl(p: list[float], q: list[float]) -> float:
    p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
def test_parseval_and_the_bin_of_the_sum(shapes: tuple[tuple[int, ...], ...]) -> None:
    weights = _weights(shapes, 0)
    flat = torch.cat([w.flatten() for w in weights])
    s, m = spectrum(weights), multiplicities(shapes)
    torch.testing.assert_close((m * s.square()).sum(), len(flat) * flat.square().sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(s[0], flat.sum().abs(), rtol=1e-12, atol=0)
    assert int(m.sum()) == len(flat)


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
def test_half_spectrum_divergence_equals_the_full_one(shapes: tuple[tuple[int, ...], ...]) -> None:
    student, teacher = _weights(shapes, 1), _weights(shapes, 2)
    p, q = _full(student), _full(teacher)
    assert spectral_divergence(student, teacher).item() == pytest.approx(_kl(p, q), rel=1e-10)
    assert spectral_divergence(student, teacher, student_first=False).item() == pytest.approx(_kl(q, p), rel=1e-10)


@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
def test_both_conventions_cut_where_they_say(shapes: tuple[tuple[int, ...], ...], ratio: float) -> None:
    student, teacher = _weights(shapes, 3), _weights(shapes, 4)
    p, q = _full(student), _full(teacher)
    full = max(1, math.floor(ratio * len(p)))
    expected = _kl(p[:full], q[:full])
    found = spectral_divergence(student, teacher, ratio, convention="full").item()
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
    d, kept = len(p), math.ceil(ratio * (len(p) // 2 + 1))
    low = [k for k in range(d) if min(k, d - k) < kept]
    expected = _kl([p[k] for k in low], [q[k] for k in low])
    assert spectral_divergence(student, teacher, ratio).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_per_layer_matrices_agree_with_a_two_dimensional_dft() -> None:
    weights = _weights(((3, 4),), 5)
    rows = [_dft(row.tolist()) for row in weights[0]]
    columns = [_dft([row[k].real for row in rows]) for k in range(4)]
    imaginary = [_dft([row[k].imag for row in rows]) for k in range(4)]
    magnitudes = [[abs(columns[k][r] + 1j * imaginary[k][r]) for k in range(3)] for r in range(3)]
    expected = torch.tensor(magnitudes, dtype=torch.float64).flatten()
    torch.testing.assert_close(spectrum(weights, "per_layer_2d"), expected, rtol=1e-9, atol=1e-9)


def test_low_frequencies_of_a_matrix_are_those_near_the_origin() -> None:
    plan = SpectralPlan.make(((5, 6),), "per_layer_2d", 0.25)
    frequencies = [(min(r, 5 - r) / 5) ** 2 + (k / 6) ** 2 for r in range(5) for k in range(4)]
    kept = plan.kept.tolist()
    assert len(kept) == 5
    assert max(frequencies[i] for i in kept) <= min(f for i, f in enumerate(frequencies) if i not in kept)


@pytest.mark.parametrize("student_first", [True, False])
@pytest.mark.parametrize("ratio", [0.6, 1.0])
@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize(
    ("layout", "convention"), [*((layout, "half") for layout in LAYOUTS), *((layout, "full") for layout in LAYOUTS[:2])]
)
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
def test_gradient_passes_gradcheck(
    shapes: tuple[tuple[int, ...], ...], layout: str, convention: str, smooth: bool, ratio: float, student_first: bool
) -> None:
    student, teacher = _weights(shapes, 6), _weights(shapes, 7)
    leaves = [w.requires_grad_() for w in student]

    def divergence(*weights: Tensor) -> Tensor:
        return spectral_divergence(weights, teacher, ratio, layout, student_first, convention, smooth)

    assert torch.autograd.gradcheck(divergence, leaves, atol=1e-8)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_closed_form_equals_autograd_through_the_spectrum(layout: str) -> None:
    student, teacher = _weights(SHAPES["conv"], 8), _weights(SHAPES["conv"], 9)
    m = multiplicities(SHAPES["conv"], layout)
    p = spectrum([w.requires_grad_() for w in student], layout) * m
    q = spectrum(teacher, layout) * m
    p, q = p / p.sum(), q / q.sum()
    expected = torch.autograd.grad((p * (p / q).log()).sum(), student)
    found = torch.autograd.grad(spectral_divergence(student, teacher, layout=layout), student)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("student_first", [True, False])
def test_scale_does_not_matter_and_the_gradient_is_orthogonal(student_first: bool) -> None:
    (student,), teacher = _weights(((31,),), 10), _weights(((31,),), 11)
    student.requires_grad_()
    value = spectral_divergence([student], teacher, 0.5, student_first=student_first)
    scaled = spectral_divergence([3 * student], [0.2 * teacher[0]], 0.5, student_first=student_first)
    torch.testing.assert_close(value, scaled, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(value, student)
    assert abs(float(gradient @ student.detach())) < 1e-15
    assert float(gradient.norm()) > 1e-3


def test_shift_reversal_and_sign_are_blind_spots() -> None:
    (w,) = _weights(((17,),), 12)
    for other in (w.roll(5), w.flip(0), -w):
        torch.testing.assert_close(spectrum([other]), spectrum([w]), rtol=1e-10, atol=1e-12)
        assert abs(float(spectral_divergence([other], [w]))) < 1e-15


@pytest.mark.parametrize("ratio", [1e-9, 0.2, 1.0])
def test_equal_models_have_neither_divergence_nor_gradient(ratio: float) -> None:
    weights = _weights(((4, 9),), 13)
    leaf = weights[0].clone().requires_grad_()
    value = spectral_divergence([leaf], weights, ratio)
    value.backward()
    assert abs(value.item()) < 1e-15
    assert leaf.grad.abs().max() < 1e-14


def test_divergence_is_never_negative_and_one_bin_has_none() -> None:
    for seed in range(50):
        student, teacher = _weights(((40,),), seed), _weights(((40,),), seed + 1000)
        assert spectral_divergence(student, teacher, 0.4).item() >= 0
        assert abs(spectral_divergence(student, teacher, 1e-9).item()) < 1e-15


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("student_first", [True, False])
def test_gradient_is_finite_where_a_magnitude_is_zero(student_first: bool, dtype: torch.dtype) -> None:
    for values in (torch.zeros(8), torch.ones(8), torch.tensor([1.0, -1.0] * 4)):
        leaf = values.to(dtype).requires_grad_()
        teacher = _weights(((8,),), 14)[0].to(dtype)
        value = spectral_divergence([leaf], [teacher], student_first=student_first)
        value.backward()
        assert math.isfinite(value.item())
        assert leaf.grad.isfinite().all()


def test_teacher_gets_no_gradient() -> None:
    student, teacher = _weights(((9,),), 15)[0].requires_grad_(), _weights(((9,),), 16)[0].requires_grad_()
    spectral_divergence([student], [teacher]).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_autocast_and_half_precision_are_left_outside() -> None:
    student, teacher = _weights(((6, 7),), 17)[0].float(), _weights(((6, 7),), 18)[0].float()
    expected = spectral_divergence([student], [teacher])
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(spectral_divergence([student], [teacher]), expected, rtol=0, atol=0)
    half = student.bfloat16().requires_grad_()
    spectral_divergence([half], [teacher.bfloat16()]).backward()
    assert half.grad.dtype == torch.bfloat16


def test_distributions_sum_to_one_after_the_cut() -> None:
    plan = SpectralPlan.make(((30,),), ratio=0.3)
    rows = spectral_distribution(torch.randn(4, 30), plan)
    assert rows.shape == (4, 5)
    torch.testing.assert_close(rows.sum(dim=1), torch.ones(4))
    torch.testing.assert_close(spectral_distribution(torch.randn(30), plan).sum(), torch.tensor(1.0))


def test_smooth_length_is_the_least_with_small_factors() -> None:
    for length in range(1, 400):
        found = smooth_length(length)
        rest = found
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        assert rest == 1
        assert found >= length
        assert all(
            any(n % p == 0 for p in range(11, n + 1) if all(p % q for q in range(2, p))) for n in range(length, found)
        )


def test_aggregate_is_the_weighted_mean() -> None:
    models = torch.randn(3, 5, dtype=torch.float64)
    counts = torch.tensor([3, 5, 2])
    expected = sum(n * model for n, model in zip(counts.tolist(), models, strict=True)) / 10
    torch.testing.assert_close(aggregate(models, counts), expected)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(aggregate(models[order], counts[order]), expected)
    torch.testing.assert_close(aggregate(models[:1].expand(3, -1), counts), models[0], rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("counts", [[0.0, 0.0], [1.0, -1.0], [math.nan, 1.0]])
def test_aggregate_refuses_impossible_weights(counts: list[float]) -> None:
    with pytest.raises(ValueError, match="must be non-negative with a positive sum"):
        aggregate(torch.ones(2, 3), torch.tensor(counts))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratio": 0.0}, r"ratio=0.0 must lie in \(0, 1\]"),
        ({"ratio": 1.5}, r"ratio=1.5 must lie in \(0, 1\]"),
        ({"ratio": math.nan}, r"ratio=nan must lie in \(0, 1\]"),
        ({"layout": "global"}, "layout='global' must be one of"),
        ({"convention": "rfft"}, "convention='rfft' must be one of"),
        ({"layout": "per_layer_2d", "convention": "full"}, "convention='full' counts the indices"),
        ({"teacher": [torch.ones(3)]}, "they must agree"),
        ({"student": [], "teacher": []}, "at least one value"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, object], message: str) -> None:
    arguments = {"student": [torch.ones(2, 3)], "teacher": [torch.ones(2, 3)]} | change
    with pytest.raises(ValueError, match=message):
        spectral_divergence(**arguments)
