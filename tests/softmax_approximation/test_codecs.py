"""What every codec promises, and where each is exact."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

from lit_methods.softmax_approximation import CODECS, Codec, Logarithmic, RankedTail, TopK, as_codec
from lit_methods.softmax_approximation.functional import pack_bits, packed_width, unpack_bits
from tests.softmax_approximation.references import random_weights, round_trip

ENCODING = [name for name in CODECS if not as_codec(name).needs_scores]
LENGTHS = (1, 2, 7, 10, 11, 256, 257)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("keys", [1, 2, 3, 7, 8, 9, 64, 257])
def test_packing_is_undone(bits: int, keys: int) -> None:
    codes = torch.randint(2**bits, (3, 2, keys), dtype=torch.uint8)
    packed = pack_bits(codes, bits)
    assert packed.shape == (3, 2, packed_width(keys, bits))
    assert packed_width(keys, bits) == math.ceil(keys * bits / 8)
    assert unpack_bits(packed, bits, keys).equal(codes)


@pytest.mark.parametrize("bits", [0, 3, 16])
def test_odd_bit_counts_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="bits"):
        pack_bits(torch.zeros(1, 4, dtype=torch.uint8), bits)


@pytest.mark.parametrize("keys", LENGTHS)
@pytest.mark.parametrize("name", ENCODING)
def test_rows_sum_to_one_and_masked_keys_stay_zero(name: str, keys: int) -> None:
    codec = as_codec(name)
    scores = 3 * torch.randn(5, 4, keys, dtype=torch.float64)
    scores[torch.rand(scores.shape) < 0.4] = -torch.inf
    scores[..., keys // 2] = 0.0
    weights = torch.softmax(scores, -1)
    decoded = round_trip(codec, weights)
    assert (decoded[weights == 0] == 0).all()
    assert (decoded >= 0).all()
    if codec.conserves_mass:
        torch.testing.assert_close(decoded.sum(-1), torch.ones(5, 4).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ENCODING)
def test_long_rows(name: str) -> None:
    weights = random_weights(2, 32768, dtype=torch.float32)
    decoded = round_trip(as_codec(name), weights)
    assert decoded.isfinite().all()
    if as_codec(name).conserves_mass:
        torch.testing.assert_close(decoded.sum(-1), torch.ones(2), rtol=0, atol=5e-5)


@pytest.mark.parametrize("keys", [8, 64, 256, 300])
@pytest.mark.parametrize("name", ENCODING)
def test_bytes_are_those_that_are_kept(name: str, keys: int) -> None:
    codec = as_codec(name)
    stored = codec.encode(random_weights(3, 5, keys, dtype=torch.float32))
    assert all(len(tensor) == 15 for tensor in stored)
    assert sum(tensor.nbytes for tensor in stored) == 15 * codec.bytes_per_row(keys)


@pytest.mark.parametrize("name", ENCODING)
def test_stored_rows_can_be_sliced(name: str) -> None:
    codec = as_codec(name)
    weights = random_weights(6, 40, dtype=torch.float32)
    stored = codec.encode(weights)
    whole = codec.decode(stored, size=weights.shape, dtype=torch.float32)
    part = codec.decode(tuple(t[2:5] for t in stored), size=torch.Size((3, 40)), dtype=torch.float32)
    torch.testing.assert_close(part, whole[2:5], rtol=0, atol=0)


@pytest.mark.parametrize("name", ENCODING)
def test_encoding_leaves_its_input_alone(name: str) -> None:
    scores = torch.randn(4, 20)
    weights = torch.softmax(scores, -1)
    before = weights.clone(), scores.clone()
    stored = as_codec(name).encode(weights, scores=scores)
    for _ in range(2):
        last = as_codec(name).decode(stored, size=weights.shape, dtype=torch.float32)
    assert weights.equal(before[0])
    assert scores.equal(before[1])
    torch.testing.assert_close(last, as_codec(name).decode(stored, size=weights.shape, dtype=torch.float32))


@pytest.mark.parametrize("name", ENCODING)
def test_codecs_can_be_copied_and_pickled(name: str) -> None:
    codec = as_codec(name)
    weights = random_weights(3, 30, dtype=torch.float32)
    round_trip(codec, weights)
    twins = copy.deepcopy(codec), pickle.loads(pickle.dumps(codec))  # noqa: S301  its own bytes
    expected = round_trip(codec, weights)
    for twin in twins:
        assert round_trip(twin, weights).equal(expected)


@pytest.mark.parametrize("codec", [TopK(0.2, dtype=torch.float64), TopK(0.2, tail=Logarithmic(4), dtype=torch.float64)])
def test_top_k_keeps_the_largest_exactly(codec: TopK) -> None:
    weights = random_weights(9, 50)
    decoded = round_trip(codec, weights)
    largest, places = weights.topk(10)
    torch.testing.assert_close(decoded.gather(-1, places), largest, rtol=0, atol=1e-15)


def test_uniform_tail_spreads_the_left_over_mass_evenly_over_unmasked_keys() -> None:
    weights = torch.tensor([[0.5, 0.2, 0.15, 0.1, 0.05, 0.0, 0.0]], dtype=torch.float64)
    decoded = round_trip(TopK(2 / 7, dtype=torch.float64), weights)
    expected = torch.tensor([[0.5, 0.2, 0.1, 0.1, 0.1, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(decoded, expected, rtol=0, atol=1e-15)
    zero = round_trip(TopK(2 / 7, tail="zero", dtype=torch.float64), weights)
    assert zero.equal(torch.tensor([[0.5, 0.2, 0, 0, 0, 0, 0]], dtype=torch.float64))


def test_rows_with_few_unmasked_keys_are_exact() -> None:
    scores = torch.randn(5, 40).double()
    scores[:, 4:] = -torch.inf
    weights = torch.softmax(scores, -1)
    for codec in (RankedTail(2), TopK(0.1, dtype=torch.float64), TopK(0.1, tail=Logarithmic(4), dtype=torch.float64)):
        torch.testing.assert_close(round_trip(codec, weights), weights, rtol=0, atol=1e-15)


def test_more_bits_and_larger_shares_leave_less_error() -> None:
    weights = random_weights(64, 256)
    ladders: list[list[Codec]] = [
        [Logarithmic(2), Logarithmic(4), Logarithmic(8)],
        [TopK(0.05), TopK(0.2), TopK(0.5)],
        [RankedTail(1), RankedTail(5), RankedTail(60)],
    ]
    for ladder in ladders:
        errors = [(round_trip(codec, weights) - weights).norm().item() for codec in ladder]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < errors[0] / 2


def test_names_give_codecs_and_codecs_themselves() -> None:
    for name in CODECS:
        assert isinstance(as_codec(name), Codec)
    codec = RankedTail(3)
    assert as_codec(codec) is codec


def test_unknown_codecs_get_the_list() -> None:
    with pytest.raises(ValueError, match=r"'log5' is unknown: take one of .*log8"):
        as_codec("log5")
    with pytest.raises(TypeError, match="codec must be a Codec or one of"):
        as_codec(4)


def test_recompute_has_nothing_to_decode() -> None:
    codec = as_codec("recompute")
    assert codec.encode(torch.ones(1, 1)) == ()
    with pytest.raises(TypeError, match="needs query and key"):
        codec.decode((), size=torch.Size((1, 1)), dtype=torch.float32)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"share": 0.0}, "share"),
        ({"share": 1.5}, "share"),
        ({"tail": "even"}, "tail"),
        ({"tail": as_codec("log2")}, "sum to 1"),
        ({"tail": as_codec("recompute")}, "sum to 1"),
    ],
)
def test_bad_top_k_settings_are_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        TopK(**options)
