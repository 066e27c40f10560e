"""Positive-unlabelled risk and density ratio against closed forms (card 8.3, 8.4)."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from lit_methods.semi_supervised.functional import (
    density_ratio,
    effective_sample_size,
    logistic_surrogate,
    pu_loss,
    pu_risks,
    sigmoid_surrogate,
)
from lit_methods.semi_supervised.pu import PULoss

PRIOR = 0.25
RELEVANT, IRRELEVANT = Normal(1.0, 1.0), Normal(-1.5, 0.8)
SURROGATES = pytest.mark.parametrize("surrogate", [logistic_surrogate, sigmoid_surrogate])


def _unlabeled(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    relevant = torch.rand(shape, generator=generator) < PRIOR
    noise = torch.randn(shape, generator=generator)
    return torch.where(relevant, 1.0 + noise, -1.5 + 0.8 * noise)


def _logit(x: Tensor) -> Tensor:
    return 0.7 * x + 0.2


def _slow_surrogate(name: str, z: float) -> float:
    value = torch.tensor(z, dtype=torch.float64)
    return float(torch.log1p(torch.exp(-value)) if name == "logistic_surrogate" else 1 / (1 + torch.exp(value)))


@SURROGATES
@pytest.mark.parametrize("balanced", [False, True])
def test_risks_equal_the_sums_written_out(surrogate: object, balanced: bool) -> None:
    positive, unlabeled = torch.randn(5), torch.randn(7)
    name = surrogate.__name__
    mean_p = sum(_slow_surrogate(name, z) for z in positive.tolist()) / 5
    mean_p_as_negative = sum(_slow_surrogate(name, -z) for z in positive.tolist()) / 5
    mean_u = sum(_slow_surrogate(name, -z) for z in unlabeled.tolist()) / 7
    expected = [PRIOR * mean_p, mean_u - PRIOR * mean_p_as_negative]
    if balanced:
        expected = [expected[0] / PRIOR, expected[1] / (1 - PRIOR)]
    found = pu_risks(positive, unlabeled, PRIOR, surrogate, balanced)
    assert [float(risk) for risk in found] == pytest.approx(expected, rel=1e-5)


@SURROGATES
@pytest.mark.parametrize("balanced", [False, True])
def test_uncorrected_risk_is_the_risk_of_known_classes_without_bias(surrogate: object, balanced: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    positive = 1.0 + torch.randn(4000, 16, generator=generator)
    unlabeled = _unlabeled((4000, 48), generator)
    estimates = torch.stack(
        [
            sum(pu_risks(_logit(p), _logit(u), PRIOR, surrogate, balanced))
            for p, u in zip(positive, unlabeled, strict=True)
        ]
    )
    grid = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    step = grid[1] - grid[0]
    on_relevant = (RELEVANT.log_prob(grid).exp() * surrogate(_logit(grid))).sum() * step
    on_irrelevant = (IRRELEVANT.log_prob(grid).exp() * surrogate(-_logit(grid))).sum() * step
    shares = (1.0, 1.0) if balanced else (PRIOR, 1 - PRIOR)
    truth = float(shares[0] * on_relevant + shares[1] * on_irrelevant)
    error = 4 * float(estimates.std()) / 4000**0.5
    assert float(estimates.mean()) == pytest.approx(truth, abs=error)
    assert error < 0.05 * truth


def test_second_branch_is_taken_exactly_where_the_estimate_is_negative() -> None:
    generator, taken = torch.Generator().manual_seed(1), []
    for _ in range(200):
        positive = torch.randn(3, generator=generator).requires_grad_()
        unlabeled = torch.randn(5, generator=generator).requires_grad_()
        risk_positive, risk_negative = pu_risks(positive, unlabeled, 0.5)
        loss = pu_loss(positive, unlabeled, 0.5, gamma=0.7)
        found = torch.autograd.grad(loss, [positive, unlabeled], retain_graph=True)
        taken.append(bool(risk_negative < 0))
        target = -0.7 * risk_negative if taken[-1] else risk_positive + risk_negative
        for gradient, expected in zip(found, torch.autograd.grad(target, [positive, unlabeled]), strict=True):
            torch.testing.assert_close(gradient, expected)
    assert 10 < sum(taken) < 190


def test_beta_moves_the_branch_and_nonnegative_turns_it_off() -> None:
    positive, unlabeled = torch.full((4,), 6.0), torch.full((4,), -6.0)
    risk_positive, risk_negative = pu_risks(positive, unlabeled, 0.5)
    assert risk_negative < -5
    assert pu_loss(positive, unlabeled, 0.5) == -risk_negative
    assert pu_loss(positive, unlabeled, 0.5, beta=10.0) == risk_positive + risk_negative
    assert pu_loss(positive, unlabeled, 0.5, nonnegative=False) == risk_positive + risk_negative
    assert PULoss(0.5, beta=10.0)(positive, unlabeled) == risk_positive + risk_negative


def test_both_readings_give_the_density_ratio_of_analytic_posteriors() -> None:
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    relevant, irrelevant = RELEVANT.log_prob(x).exp(), IRRELEVANT.log_prob(x).exp()
    mixture = PRIOR * relevant + (1 - PRIOR) * irrelevant
    balanced = (relevant / (relevant + irrelevant)).logit()
    posterior = (PRIOR * relevant / mixture).logit()
    for logit, reading in ((balanced, True), (posterior, False)):
        torch.testing.assert_close(density_ratio(logit, PRIOR, reading), relevant / mixture, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("balanced", [False, True])
def test_ratio_has_mean_one_under_the_unlabelled_density(balanced: bool) -> None:
    x = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    relevant, irrelevant = RELEVANT.log_prob(x).exp(), IRRELEVANT.log_prob(x).exp()
    mixture = PRIOR * relevant + (1 - PRIOR) * irrelevant
    other = irrelevant if balanced else (1 - PRIOR) * irrelevant
    own = relevant if balanced else PRIOR * relevant
    ratio = density_ratio((own / other).log(), PRIOR, balanced)
    assert float((mixture * ratio).sum() * (x[1] - x[0])) == pytest.approx(1.0, abs=1e-6)


def test_ratio_at_the_ends_and_in_the_middle() -> None:
    ratio = density_ratio(torch.tensor([-1e4, 0.0, 1e4]), PRIOR)
    torch.testing.assert_close(ratio, torch.tensor([0.0, 1.0, 1 / PRIOR]))
    torch.testing.assert_close(density_ratio(torch.tensor([-1e4, 1e4]), PRIOR, False), torch.tensor([0.0, 1 / PRIOR]))
    assert density_ratio(torch.zeros(2, dtype=torch.bfloat16), PRIOR).dtype == torch.float32


def test_logistic_balanced_risk_is_minimised_by_the_density_ratio() -> None:
    relevant, irrelevant = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.4, 0.3, 0.2, 0.1])
    mixture = PRIOR * relevant + (1 - PRIOR) * irrelevant
    logits = torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-9, tolerance_change=1e-12)

    def closure() -> Tensor:
        optimizer.zero_grad()
        negative = (mixture * logistic_surrogate(-logits)).sum() - PRIOR * (
            relevant * logistic_surrogate(-logits)
        ).sum()
        risk = (relevant * logistic_surrogate(logits)).sum() + negative / (1 - PRIOR)
        risk.backward()
        return risk

    optimizer.step(closure)
    torch.testing.assert_close(density_ratio(logits.detach(), PRIOR), relevant / mixture, rtol=1e-3, atol=1e-4)


def test_effective_sample_size() -> None:
    assert effective_sample_size(torch.ones(12)) == 12
    assert effective_sample_size(torch.tensor([0.0, 3.0, 0.0])) == 1
    assert effective_sample_size(torch.tensor([1.0, 3.0])) == pytest.approx(16 / 10)
    assert effective_sample_size(torch.zeros(3)) == 0


@pytest.mark.parametrize("prior", [0.0, 1.0, -0.1, 1.2])
def test_prior_outside_its_range_is_refused(prior: float) -> None:
    for call in (
        lambda: density_ratio(torch.zeros(1), prior),
        lambda: pu_risks(torch.zeros(1), torch.zeros(1), prior),
        lambda: PULoss(prior),
    ):
        with pytest.raises(ValueError, match=f"prior={prior} must lie strictly between 0 and 1"):
            call()


def test_loss_module_refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"beta=-1\.0 must be at least 0"):
        PULoss(0.5, beta=-1.0)
    with pytest.raises(ValueError, match=r"gamma=0\.0 must be above 0"):
        PULoss(0.5, gamma=0.0)
