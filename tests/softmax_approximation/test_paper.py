"""The published scheme: the golden vector, a loop over one row at a time, ranks past 256 keys, padded rows."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from lit_methods.softmax_approximation import RankedTail
from lit_methods.softmax_approximation.functional import softmax_backward
from tests.softmax_approximation.references import GOLDEN_SCORES, paper_row, random_weights, round_trip

TAILS = ("paper", "geometric", "uniform", "zero")

# Of an independent run of the published implementation's formulas, to the eight decimals it was noted with.
GOLDEN = {
    "masked": (
        1.3797872446,
        [0.02512780, 0.63233268, 0.00632296, 0.23262219, 0.00057661, 0.09985929, 0.00159106, 0.00156740],
        [-0.04686250, -0.54694642, 0.00085381, 0.26403405, 0.00123109, 0.31306225, 0.00657909, 0.00804863],
    ),
    "all": (
        0.8623670278,
        [0.03348358, 0.63233268, 0.01413548, 0.23262219, 0.00057661, 0.07931460, 0.00596746, 0.00156740],
        [-0.06040860, -0.50847526, 0.00276877, 0.27818679, 0.00126617, 0.25347944, 0.02503870, 0.00814399],
    ),
}


@pytest.mark.parametrize("n_steps", ["masked", "all"])
def test_golden_vector(n_steps: str) -> None:
    slope, decoded, gradient = GOLDEN[n_steps]
    codec = RankedTail(2, n_steps=n_steps)
    weights = torch.softmax(GOLDEN_SCORES, 0)
    block, ranks = codec.encode(weights)
    assert ranks.dtype == torch.uint8
    assert ranks.flatten().tolist() == [3, 0, 4, 1, 7, 2, 5, 6]
    assert block[0, 4].item() == pytest.approx(slope, abs=6e-11)
    row = round_trip(codec, weights)
    assert row.tolist() == pytest.approx(decoded, abs=6e-9)
    assert softmax_backward(row, torch.arange(1.0, 9.0).double()).tolist() == pytest.approx(gradient, abs=6e-9)
    assert row.tolist() == pytest.approx(paper_row(weights.tolist(), 2, n_steps=n_steps), abs=1e-14)


@pytest.mark.parametrize("n_steps", ["masked", "all"])
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(("keys", "kept"), [(1, 3), (6, 3), (7, 3), (40, 5), (257, 5)])
def test_equals_the_loop(tail: str, n_steps: str, keys: int, kept: int) -> None:
    codec = RankedTail(kept, tail=tail, n_steps=n_steps)
    weights = random_weights(3, 2, keys, spread=2.0)
    expected = [[paper_row(row, kept, tail=tail, n_steps=n_steps) for row in rows] for rows in weights.tolist()]
    torch.testing.assert_close(
        round_trip(codec, weights), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-15
    )


@pytest.mark.parametrize("tail", TAILS)
def test_masked_rows_equal_the_loop_wherever_the_padding_is(tail: str) -> None:
    scores = torch.randn(6, 30).double()
    scores[0, 20:] = scores[1, :20] = scores[2, ::2] = scores[3, 3:] = scores[4, 1:] = -torch.inf
    weights = torch.softmax(scores, -1)
    decoded = round_trip(RankedTail(4, tail=tail), weights)
    expected = torch.tensor([paper_row(row, 4, tail=tail) for row in weights.tolist()], dtype=torch.float64)
    torch.testing.assert_close(decoded, expected, rtol=1e-9, atol=1e-15)
    assert (decoded[weights == 0] == 0).all()
    torch.testing.assert_close(decoded[3:5], weights[3:5], rtol=0, atol=0)


@pytest.mark.parametrize(("keys", "dtype"), [(256, torch.uint8), (257, torch.int16), (32768, torch.int16)])
def test_ranks_widen_and_never_wrap(keys: int, dtype: torch.dtype) -> None:
    codec = RankedTail(5)
    weights = random_weights(2, keys)
    stored = codec.encode(weights.float())
    assert stored[1].dtype == dtype
    assert stored[1].long().sort(-1).values.equal(torch.arange(keys).expand(2, -1))
    assert sum(tensor.nbytes for tensor in stored) / 2 == codec.bytes_per_row(keys)
    decoded = round_trip(codec, weights)
    for before, after in zip(weights, decoded, strict=True):
        order = before.argsort(descending=True)
        assert all(one > two for one, two in pairwise(after[order[5:-5]].tolist()))
        torch.testing.assert_close(after[order[:5]], before[order[:5]], rtol=0, atol=0)
        torch.testing.assert_close(after[order[-5:]], before[order[-5:]], rtol=0, atol=0)


def test_past_32768_keys_ranks_take_four_bytes() -> None:
    weights = random_weights(1, 32769, dtype=torch.float32)
    assert RankedTail(1).encode(weights)[1].dtype == torch.int32


def test_one_hot_rows_are_exact() -> None:
    weights = torch.eye(12).double()
    torch.testing.assert_close(round_trip(RankedTail(1), weights), weights, rtol=0, atol=0)


def test_the_readings_differ() -> None:
    weights = random_weights(1, 40)
    rows = [round_trip(RankedTail(5, tail=tail), weights) for tail in TAILS]
    rows.append(round_trip(RankedTail(5, n_steps="all"), weights))
    for i, one in enumerate(rows):
        for two in rows[:i]:
            assert (one - two).abs().max() > 1e-5


@pytest.mark.parametrize(
    ("options", "named"), [({"kept": 0}, "kept"), ({"tail": "none"}, "tail"), ({"n_steps": "some"}, "n_steps")]
)
def test_bad_settings_are_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        RankedTail(**options)
