"""Attention against eager: forward bit for bit, gradients with exact codecs, masks, layouts, weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lit_methods.softmax_approximation import CODECS, as_codec, softmax_attention, softmax_value_product
from tests.softmax_approximation.references import eager, gradients, random_heads

EXACT = ("recompute", "merged")
CHUNKS = (None, 1, 40, 130)


def causal_and_padded(batch: int = 2, queries: int = 7, keys: int = 9) -> dict[str, dict[str, Any]]:
    lengths = torch.tensor([keys, keys - 4])
    right = (torch.arange(keys) < lengths[:, None])[:, None, None]
    return {
        "none": {},
        "causal": {"is_causal": True},
        "window": {"window": 3},
        "causal window": {"is_causal": True, "window": 3},
        "right padding": {"mask": right},
        "left padding": {"mask": right.flip(-1)},
        "padding and causal": {"mask": right, "is_causal": True},
        "smallest float": {"mask": torch.where(right, 0.0, torch.finfo(torch.float32).min)},
        "bias per head": {"mask": torch.randn(1, 4, queries, keys)},
        "bias of keys": {"mask": torch.randn(keys)},
        "full": {"mask": torch.rand(batch, 4, queries, keys) > 0.3},
        "scale": {"scale": 0.7},
    }


MASKS = causal_and_padded()


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("case", MASKS)
@pytest.mark.parametrize("name", CODECS)
def test_forward_is_eager_bit_for_bit_and_the_random_state_moves_alike(name: str, case: str, dropout_p: float) -> None:
    heads = random_heads()
    torch.manual_seed(5)
    expected, expected_weights = eager(*heads, dropout_p=dropout_p, **MASKS[case])
    after = torch.get_rng_state()
    for replay in (False, True):
        torch.manual_seed(5)
        output, weights = softmax_attention(
            *heads, codec=name, dropout_p=dropout_p, need_weights=True, replay_dropout=replay, **MASKS[case]
        )
        assert torch.get_rng_state().equal(after)
        assert output.equal(expected)
        assert weights is not None
        assert weights.equal(expected_weights)
        output.sum().backward(retain_graph=True)
        assert torch.get_rng_state().equal(after)


@pytest.mark.parametrize("chunk_elements", CHUNKS)
@pytest.mark.parametrize("case", MASKS)
@pytest.mark.parametrize("codec", EXACT)
def test_exact_codecs_give_eager_gradients(codec: str, case: str, chunk_elements: int | None) -> None:
    heads = random_heads(dtype=torch.float64)
    options = dict(MASKS[case])
    inputs = list(heads)
    if case.startswith("bias"):
        options["mask"] = options["mask"].double().requires_grad_()
        inputs.append(options["mask"])
    for dropout_p in (0.0, 0.3):
        for exact in (True, False):
            torch.manual_seed(5)
            output, _ = softmax_attention(
                *heads,
                codec=codec,
                dropout_p=dropout_p,
                exact_row_constant=exact,
                chunk_elements=chunk_elements,
                replay_dropout=exact,
                **options,
            )
            torch.manual_seed(5)
            expected, _ = eager(*heads, dropout_p=dropout_p, **options)
            found, wanted = gradients(output, inputs), gradients(expected, inputs)
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("chunk_elements", CHUNKS)
@pytest.mark.parametrize("key_heads", [1, 2])
def test_grouped_queries_equal_repeated_heads(key_heads: int, chunk_elements: int | None) -> None:
    heads = random_heads(key_heads=key_heads, dtype=torch.float64)
    bias = torch.randn(2, 4, 1, 9, dtype=torch.float64, requires_grad=True)
    output, _ = softmax_attention(*heads, codec="recompute", mask=bias, chunk_elements=chunk_elements)
    expected, _ = eager(*heads, mask=bias)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(gradients(output, [*heads, bias]), gradients(expected, [*heads, bias]))


@pytest.mark.parametrize("name", CODECS)
def test_chunks_change_nothing(name: str) -> None:
    heads = random_heads(key_heads=2)
    whole, small = (
        softmax_attention(*heads, codec=name, chunk_elements=size, is_causal=True)[0] for size in (None, 30)
    )
    torch.testing.assert_close(whole, small, rtol=0, atol=1e-6)
    if not as_codec(name).is_stochastic:
        for one, two in zip(gradients(whole, list(heads)), gradients(small, list(heads)), strict=True):
            assert (one - two).norm() < 0.02 * one.norm()


@pytest.mark.parametrize("name", [name for name in CODECS if name != "recompute"])
def test_from_scores_is_the_same_as_from_query_and_key(name: str) -> None:
    query, key, value = random_heads(dtype=torch.float64)
    scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    torch.manual_seed(1)
    output, weights = softmax_value_product(scores, value, codec=name, dropout_p=0.2, need_weights=True)
    torch.manual_seed(1)
    expected, expected_weights = softmax_attention(query, key, value, codec=name, dropout_p=0.2, need_weights=True)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(weights, expected_weights)
    found, wanted = (gradients(o, [query, key, value]) for o in (output, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("exact_row_constant", [True, False])
def test_gradients_flow_through_the_weights(exact_row_constant: bool, dropout_p: float) -> None:
    heads = random_heads(dtype=torch.float64)
    target = torch.rand(2, 4, 7, 9, dtype=torch.float64)
    results = []
    for parts in ((True, True), (False, True)):
        for ours in (True, False):
            torch.manual_seed(2)
            if ours:
                output, weights = softmax_attention(
                    *heads,
                    codec="recompute",
                    need_weights=True,
                    dropout_p=dropout_p,
                    exact_row_constant=exact_row_constant,
                    chunk_elements=60,
                )
            else:
                output, weights = eager(*heads, dropout_p=dropout_p)
            assert weights is not None
            loss = (weights - target).square().sum() + (output.square().sum() if parts[0] else 0.0)
            results.append(torch.autograd.grad(loss, heads[: 3 if parts[0] else 2]))
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[2], results[3])


def test_only_the_asked_gradients_are_computed() -> None:
    query, key, value = random_heads(dtype=torch.float64)
    for wanted in ([query], [key], [value]):
        inputs = [head if head is wanted[0] else head.detach() for head in (query, key, value)]
        output, _ = softmax_attention(*inputs, codec="recompute")
        expected, _ = eager(*inputs)
        torch.testing.assert_close(gradients(output, wanted), gradients(expected, wanted))


def test_layouts() -> None:
    query, key, value = random_heads()
    output, _ = softmax_attention(query, key, value)
    assert output.transpose(1, 2).is_contiguous()
    grads = gradients(output, [query, key, value])
    assert [grad.stride() for grad in grads] == [query.stride(), key.stride(), value.stride()]
    strided = [torch.randn(2, 4, 9, 16)[..., ::2].requires_grad_() for _ in range(3)]
    output, _ = softmax_attention(*strided, codec="recompute")
    expected, _ = eager(*strided)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(gradients(output, strided), gradients(expected, strided))
    shared = torch.randn(1, 1, 9, 8).expand(2, 4, 9, 8)
    torch.testing.assert_close(
        softmax_attention(strided[0], shared, shared, codec="merged")[0], eager(strided[0], shared, shared)[0]
    )


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 9), (5, 1), (3, 40)])
@pytest.mark.parametrize("name", CODECS)
def test_odd_sizes(name: str, queries: int, keys: int) -> None:
    heads = random_heads(queries=queries, keys=keys)
    output, _ = softmax_attention(*heads, codec=name)
    torch.testing.assert_close(output, eager(*heads)[0])
    for grad in gradients(output, list(heads)):
        assert grad.isfinite().all()


@pytest.mark.parametrize("name", CODECS)
def test_masked_keys_get_no_gradient(name: str) -> None:
    heads = random_heads()
    seen = torch.arange(9) < 5
    output, _ = softmax_attention(*heads, codec=name, mask=seen)
    _, grad_key, grad_value = gradients(output, list(heads))
    for grad in (grad_key, grad_value):
        assert (grad[:, :, 5:] == 0).all()
        assert grad[:, :, :5].abs().amin() > 0


@pytest.mark.parametrize("name", CODECS)
def test_fully_masked_queries_are_treated_as_by_the_host(name: str) -> None:
    heads = random_heads()
    seen = torch.ones(7, 9, dtype=torch.bool)
    seen[2] = False
    softmax_like, _ = softmax_attention(*heads, codec=name, mask=seen)
    assert softmax_like[:, :, 2].isnan().all()
    assert softmax_like[:, :, 3:].isfinite().all()
    smallest = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
    even, _ = softmax_attention(*heads, codec=name, mask=smallest)
    torch.testing.assert_close(even[:, :, 2], heads[2].mean(2))
    assert all(grad.isfinite().all() for grad in gradients(even, list(heads)))
    zero, _ = softmax_attention(*heads, codec=name, mask=seen, zero_fully_masked=True, chunk_elements=20)
    torch.testing.assert_close(zero, softmax_like.nan_to_num(0.0))
    found = gradients(zero, list(heads))
    assert all(grad.isfinite().all() for grad in found)
    assert (found[0][:, :, 2] == 0).all()
    if as_codec(name).is_exact:
        expected = F.scaled_dot_product_attention(*heads, attn_mask=seen)
        torch.testing.assert_close(found, gradients(expected, list(heads)))


@pytest.mark.parametrize("zero_fully_masked", [True, False])
@pytest.mark.parametrize("case", MASKS)
def test_without_gradients_it_is_the_same_and_does_no_codec_work(
    case: str, zero_fully_masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = random_heads()
    options = MASKS[case] | {"zero_fully_masked": zero_fully_masked}
    with_gradients, _ = softmax_attention(*heads, **options)
    codec = as_codec("log4")

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("encoded without need")

    monkeypatch.setattr(codec, "encode", forbidden)
    with torch.no_grad():
        output, _ = softmax_attention(*heads, codec=codec, **options)
        _, weights = softmax_attention(*heads, codec=codec, need_weights=True, **options)
        torch.manual_seed(4)
        dropped, _ = softmax_attention(*heads, codec=codec, dropout_p=0.5, **options)
    torch.manual_seed(4)
    torch.testing.assert_close(dropped, eager(*heads, dropout_p=0.5, **MASKS[case])[0])
    torch.testing.assert_close(output, with_gradients)
    torch.testing.assert_close(weights, eager(*heads, **MASKS[case])[1])
    softmax_attention(*(head.detach() for head in heads), codec=codec, **options)
    with pytest.raises(AssertionError, match="encoded without need"):
        softmax_attention(*heads, codec=codec, **options)


def test_without_gradients_fully_masked_queries_are_as_in_training() -> None:
    heads = random_heads()
    seen = torch.ones(7, 9, dtype=torch.bool)
    seen[2] = False
    for mask in (seen, torch.zeros(7, 9).masked_fill(~seen, -torch.inf)):
        for zero in (True, False):
            training, _ = softmax_attention(*heads, mask=mask, zero_fully_masked=zero)
            with torch.no_grad():
                evaluation, _ = softmax_attention(*heads, mask=mask, zero_fully_masked=zero)
            torch.testing.assert_close(training, evaluation, equal_nan=True)


def test_bad_shapes_and_settings_are_named() -> None:
    query, key, value = (torch.randn(2, 4, 5, 8) for _ in range(3))
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ValueError, "unknown", {"codec": "log5"}),
        (ValueError, "dropout_p", {"dropout_p": 1.5}),
        (ValueError, "window", {"window": 0}),
        (ValueError, "chunk_elements", {"chunk_elements": 0}),
        (ValueError, "broadcast", {"mask": torch.zeros(3, 1, 1, 5)}),
        (ValueError, "broadcast", {"mask": torch.zeros(1, 1, 1, 1, 5)}),
        (TypeError, "mask", {"mask": torch.zeros(5, dtype=torch.long)}),
        (ValueError, "B, heads", {"query": query[0]}),
        (ValueError, "agree", {"key": key[:, :, :4]}),
        (ValueError, "agree", {"query": query[:1]}),
        (ValueError, "share 3 key heads", {"key": key[:, :3], "value": value[:, :3]}),
        (TypeError, "dtype", {"key": key.double()}),
        (TypeError, "dtype", {"query": query.long(), "key": key.long(), "value": value.long()}),
    ]
    for error, sentence, change in cases:
        with pytest.raises(error, match=sentence):
            softmax_attention(**({"query": query, "key": key, "value": value} | change))
    with pytest.raises(ValueError, match="only the"):
        softmax_value_product(query, value, codec="recompute")
    with pytest.raises(ValueError, match="T_q, T_k"):
        softmax_value_product(query, value)


def test_dropping_everything_gives_zeros_and_moves_nothing() -> None:
    heads = random_heads()
    before = torch.get_rng_state()
    for replay in (True, False):
        output, _ = softmax_attention(*heads, dropout_p=1.0, replay_dropout=replay)
        assert (output == 0).all()
        assert all((grad == 0).all() for grad in gradients(output, list(heads)))
    assert torch.get_rng_state().equal(before)
