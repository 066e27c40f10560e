"""What is alive between the passes, counted by storages, and which codec a target leads to."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_methods.softmax_approximation import (
    CODECS,
    Codec,
    Logarithmic,
    TopK,
    as_codec,
    choose_codec,
    softmax_attention,
)
from lit_methods.softmax_approximation.selection import eager_bytes_per_row, kept_bytes_per_row
from tests.softmax_approximation.references import eager, random_heads

HEADS, LENGTH = 4, 256


def saved_bytes(forward: Callable[[], Tensor], apart_from: list[Tensor]) -> int:
    """Bytes of the storages that autograd holds after forward, the given tensors' left out."""
    known = {tensor.untyped_storage().data_ptr() for tensor in apart_from}
    seen: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            seen[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    return sum(seen.values()) - seen.get(output.untyped_storage().data_ptr(), 0)


def attention_bytes(codec: str | Codec | None, dropout_p: float, *, replay: bool = False) -> int:
    query, key, value = random_heads(batch=2, heads=HEADS, queries=LENGTH, keys=LENGTH)

    def forward() -> Tensor:
        if codec is None:
            return eager(query, key, value, dropout_p=dropout_p)[0]
        return softmax_attention(query, key, value, codec=codec, dropout_p=dropout_p, replay_dropout=replay)[0]

    return saved_bytes(forward, [query, key, value])


@pytest.mark.parametrize("replay", [False, True])
@pytest.mark.parametrize("codec", ["log4", "recompute"])
def test_with_dropout_eager_keeps_at_least_six_times_more(codec: str, replay: bool) -> None:
    assert attention_bytes(None, 0.1) / max(1, attention_bytes(codec, 0.1, replay=replay)) >= 6.2


def test_without_dropout_log4_keeps_an_eighth() -> None:
    assert attention_bytes(None, 0.0) / attention_bytes("log4", 0.0) > 7.7
    assert attention_bytes("recompute", 0.0) == 0


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("name", CODECS)
def test_bytes_are_those_that_were_promised(name: str, dropout_p: float) -> None:
    promised = kept_bytes_per_row(as_codec(name), LENGTH, dropout=dropout_p > 0)
    assert attention_bytes(name, dropout_p) == 2 * HEADS * LENGTH * promised


def test_replayed_dropout_keeps_a_generator_instead_of_bits() -> None:
    assert attention_bytes("recompute", 0.1, replay=True) == torch.get_rng_state().nbytes


def test_eager_bytes_are_those_that_are_measured() -> None:
    for dropout_p in (0.0, 0.1):
        measured = attention_bytes(None, dropout_p)
        promised = eager_bytes_per_row(LENGTH, dropout=dropout_p > 0)
        copies_of_heads = 4 * 2 * HEADS * LENGTH * (8 + 8 + 6 + 8)
        assert 0 <= measured - 2 * HEADS * LENGTH * promised <= copies_of_heads
    assert eager_bytes_per_row(100, dropout=True, device_type="cuda") == 900


def test_masked_uniform_top_k_adds_one_bit_a_key() -> None:
    query, key, value = random_heads(batch=2, heads=HEADS, queries=LENGTH, keys=LENGTH)
    codec = TopK(0.05)
    found = saved_bytes(
        lambda: softmax_attention(query, key, value, codec=codec, is_causal=True)[0], [query, key, value]
    )
    assert found == 2 * HEADS * LENGTH * (codec.bytes_per_row(LENGTH) + LENGTH / 8)


@pytest.mark.parametrize("backward", [True, False])
def test_all_is_freed_with_the_graph_without_the_garbage_collector(backward: bool) -> None:
    kept: list[weakref.ref[Tensor]] = []

    class Watched(Logarithmic):
        def encode(self, weights: Tensor, **options: Any) -> tuple[Tensor, ...]:
            stored = super().encode(weights, **options)
            kept.extend(weakref.ref(tensor) for tensor in stored)
            return stored

    gc.disable()
    try:
        heads = random_heads()
        output, _ = softmax_attention(*heads, codec=Watched(4), dropout_p=0.1)
        if backward:
            output.sum().backward()
        del output
        assert kept
        assert all(reference() is None for reference in kept)
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("target", "dropout", "at_hand", "expected"),
    [
        (1.0, False, True, "merged"),
        (2.0, True, True, "merged"),
        (6.2, False, True, "recompute"),
        (1000.0, False, True, "recompute"),
        (6.2, True, True, "recompute"),
        (1.0, False, False, "merged"),
        (2.0, False, False, "bf16"),
        (3.5, False, False, "log8"),
        (5.0, False, False, "topk-log4"),
        (6.2, False, False, "log4"),
        (6.2, True, False, "log8"),
    ],
)
def test_auto_takes_the_cheapest_exact_codec_else_the_most_accurate(
    target: float, dropout: bool, at_hand: bool, expected: str
) -> None:
    selection = choose_codec(256, memory_target=target, dropout=dropout, scores_at_hand=at_hand)
    assert selection.codec.name == as_codec(expected).name
    eager_bytes = eager_bytes_per_row(256, dropout=dropout)
    assert eager_bytes >= target * kept_bytes_per_row(selection.codec, 256, dropout=dropout)
    assert selection.reason.startswith(expected)
    assert f"{target:g}" in selection.reason


def test_a_target_out_of_reach_names_the_best() -> None:
    with pytest.raises(ValueError, match=r"memory_target=50 is out of reach.*'log4'"):
        choose_codec(256, memory_target=50, scores_at_hand=False)
    with pytest.raises(ValueError, match="memory_target must be above 0"):
        choose_codec(256, memory_target=0)
    with pytest.raises(ValueError, match="keys"):
        choose_codec(0)
