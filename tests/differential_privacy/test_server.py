"""The server's update: clipping per user, the noise's variance, and what it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_methods.differential_privacy import BandedSquareRoot, Participation, PrivateServerUpdate
from lit_methods.differential_privacy.functional import gaussian_noise_multiplier, toeplitz_sensitivity

ROUNDS = Participation(steps=12, participations=3, separation=4)


def server(like: Any = None, **options: Any) -> PrivateServerUpdate:
    budget: dict[str, Any] = {} if "noise_multiplier" in options else {"epsilon": 4.0}
    defaults = {"expected_users": 5, "max_norm": 2.0, "unsafe_seed": 1, **budget}
    return PrivateServerUpdate(torch.zeros(3) if like is None else like, ROUNDS, **{**defaults, **options})


def test_updates_are_clipped_over_all_their_tensors_and_divided_by_the_constant() -> None:
    like = {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}
    private = server(like, noise_multiplier=0.0)
    large = {"weight": torch.full((2, 2), 3.0), "bias": torch.tensor([0.0, 8.0])}
    small = {"bias": torch.tensor([0.5, 0.0]), "weight": torch.zeros(2, 2)}
    broken = {"weight": torch.full((2, 2), torch.nan), "bias": torch.ones(2)}
    mean = private.step([large, small, broken])
    torch.testing.assert_close(mean["weight"], torch.full((2, 2), 3.0) * 2 / 10 / 5)
    torch.testing.assert_close(mean["bias"], (torch.tensor([0.0, 8.0]) * 2 / 10 + torch.tensor([0.5, 0.0])) / 5)


def test_the_noise_has_the_variance_and_correlation_of_the_strategy() -> None:
    private = server(torch.zeros(20000), noise_multiplier=1.5, factorization=BandedSquareRoot(3))
    rows = torch.stack([private.step([]) for _ in range(12)]).double()
    column = torch.tensor([1.0, 0.5, 0.375], dtype=torch.float64)
    matrix = sum(torch.diag(torch.full((12 - j,), float(c), dtype=torch.float64), -j) for j, c in enumerate(column))
    inverse = torch.linalg.inv(matrix)
    scale = 1.5 * toeplitz_sensitivity(column, 12, 3, 4) * 2.0 / 5
    torch.testing.assert_close(rows @ rows.T / 20000, scale**2 * inverse @ inverse.T, rtol=0, atol=0.05 * scale**2)


def test_the_noise_is_calibrated_to_all_rounds_and_the_unit_is_a_user() -> None:
    private = server(epsilon=4.0, delta=1e-6)
    assert private.accounting.noise_multiplier == gaussian_noise_multiplier(4.0, 1e-6)
    spent = []
    for _ in range(12):
        private.step([])
        spent.append(private.epsilon())
    assert spent == sorted(spent)
    assert spent[-1] == pytest.approx(4.0)
    for part in ("(4, 1e-06)", "any one user", "12 of 12 rounds", "at most 3 times, at least 4 rounds apart"):
        assert part in private.guarantee()
    with pytest.raises(RuntimeError, match="All 12 planned steps"):
        private.step([])


def update() -> Tensor:
    return torch.ones(3)


def test_named_users_are_held_to_the_plan() -> None:
    private = server()
    private.step([update(), update()], users=["ann", "bob"])
    with pytest.raises(ValueError, match=r"User ann took part in rounds \[1\] and can't in round 2.*4 rounds apart"):
        private.step([update()], users=["ann"])
    for number in range(2, 13):
        private.step([update()] * (number in (5, 9)), users=["ann"] * (number in (5, 9)))
    many = PrivateServerUpdate(torch.zeros(3), Participation(9, 1, 1), expected_users=1, epsilon=1.0)
    many.step([update()], users=[7])
    with pytest.raises(ValueError, match="at most 1 times"):
        many.step([update()], users=[7])
    assert many.noise.step == 1
    with pytest.raises(ValueError, match="2 different users"):
        many.step([update(), update()], users=["a", "a"])


def test_resumed_equals_uninterrupted() -> None:
    whole, first, second = server(), server(), server(unsafe_seed=9)
    expected = [whole.step([update()], users=[str(number % 4)]) for number in range(12)]
    got = [first.step([update()], users=[str(number % 4)]) for number in range(5)]
    second.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match=r"User 3 took part in rounds \[4\]"):
        second.step([update()], users=["3"])
    got += [second.step([update()], users=[str(number % 4)]) for number in range(5, 12)]
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    with pytest.raises(ValueError, match="another private run: max_norm changed"):
        server(max_norm=1.0).load_state_dict(first.state_dict())


def test_the_state_is_plain(tmp_path: Any) -> None:
    private = server()
    private.step([update()], users=["ann"])
    torch.save(private.state_dict(), tmp_path / "server.pt")
    server().load_state_dict(torch.load(tmp_path / "server.pt", weights_only=True))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"expected_users": 0}, ValueError, "expected_users must be at least 1, but is 0"),
        ({"max_norm": 0.0}, ValueError, "^max_norm=0.0 must be above 0, and finite"),
        ({"max_norm": float("inf")}, ValueError, "max_norm=inf must be .*, and finite"),
        ({"noise_multiplier": -1.0}, ValueError, "noise_multiplier"),
        ({"like": {"count": torch.zeros(1, dtype=torch.long)}}, TypeError, "'count'.*not of floating point"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        server(**options)


def test_an_update_of_another_shape_is_refused_and_takes_no_round() -> None:
    private = server()
    with pytest.raises(ValueError, match="not those of like"):
        private.step([torch.ones(4)])
    assert private.noise.step == 0
