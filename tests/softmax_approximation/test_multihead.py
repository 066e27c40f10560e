import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.softmax_approximation.models import approximated, gradients, relative

BATCH, QUERIES, KEYS, SIZE, HEADS = 3, 7, 9, 16, 4


def _masks(kind: str, queries: int, keys: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)
    causal = torch.ones(queries, keys, dtype=torch.bool).triu(1)
    padding = torch.zeros(BATCH, keys, dtype=torch.bool)
    padding[1, -3:] = padding[2, 2:4] = True
    heads = torch.randn(BATCH * HEADS, queries, keys, generator=generator)
    floating = torch.zeros(queries, keys).masked_fill(causal, -torch.inf)
    return {
        "none": {},
        "bool": {"attn_mask": causal},
        "floating": {"attn_mask": floating + 1},
        "per head": {"attn_mask": heads},
        "bool per head": {"attn_mask": heads > 1},
        "padding": {"key_padding_mask": padding},
        "floating padding": {"key_padding_mask": torch.randn(BATCH, keys, generator=generator)},
        "both": {"attn_mask": causal, "key_padding_mask": padding},
        "both floating": {
            "attn_mask": floating,
            "key_padding_mask": torch.zeros(BATCH, keys).masked_fill(padding, -torch.inf),
        },
        "causal hint": {"attn_mask": floating, "is_causal": True},
        "causal hint and padding": {"attn_mask": causal, "is_causal": True, "key_padding_mask": padding},
    }[kind]


def _same(module: nn.MultiheadAttention, call: Any, tolerance: float = 1e-6) -> None:
    """Output, weights, gradients and the random state after are those of the module's own forward."""
    found = []
    for codec in (None, "recompute"):
        torch.manual_seed(5)
        if codec is None:
            output, weights = call()
            after = torch.rand(1)
            grads = gradients(module, lambda: call()[0].square().sum())
        else:
            with approximated(module, codec, record=True) as attachment:
                output, weights = call()
                after = torch.rand(1)
                grads = gradients(module, lambda: call()[0].square().sum())
            assert attachment.approximation.coverage.any
        found.append((output, weights, after, grads))
    own, ours = found
    torch.testing.assert_close(ours[0], own[0], rtol=0, atol=tolerance)
    assert ours[0].stride() == own[0].stride()
    assert (ours[1] is None) == (own[1] is None)
    if own[1] is not None:
        torch.testing.assert_close(ours[1], own[1], rtol=0, atol=tolerance)
    assert torch.equal(ours[2], own[2])
    assert relative(ours[3], own[3]) < 1e-5


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize(
    "kind",
    [
        "none", "bool", "floating", "per head", "bool per head", "padding", "floating padding", "both",
        "both floating", "causal hint", "causal hint and padding",
    ],
)  # fmt: skip
def test_masks(kind: str, need_weights: bool) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(SIZE, HEADS, dropout=0.2, batch_first=True)
    x = torch.randn(BATCH, KEYS, SIZE)
    _same(module, lambda: module(x, x, x, need_weights=need_weights, **_masks(kind, KEYS, KEYS)))


@pytest.mark.parametrize("kind", ["none", "both", "per head", "both floating"])
@pytest.mark.parametrize(
    "settings",
    [
        {"bias": False},
        {"add_bias_kv": True},
        {"add_zero_attn": True},
        {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
        {"kdim": 6, "vdim": 5, "dropout": 0.1},
        {"kdim": 6, "vdim": 5, "bias": False, "batch_first": True},
    ],
    ids=str,
)
def test_settings_with_cross_attention(settings: dict[str, Any], kind: str) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(SIZE, HEADS, **settings)
    shapes = ((QUERIES, SIZE), (KEYS, settings.get("kdim", SIZE)), (KEYS, settings.get("vdim", SIZE)))
    query, key, value = (torch.randn(BATCH, length, size) for length, size in shapes)
    if not settings.get("batch_first"):
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    if "kdim" not in settings:
        value = key
    for need_weights in (False, True):
        masks = _masks(kind, QUERIES, KEYS)
        _same(module, lambda n=need_weights, m=masks: module(query, key, value, need_weights=n, **m))


@pytest.mark.parametrize("average", [False, True])
def test_unbatched_input_and_weights_per_head(average: bool) -> None:
    module = nn.MultiheadAttention(SIZE, HEADS, batch_first=True)
    x, padding = torch.randn(KEYS, SIZE), torch.arange(KEYS) > 6
    _same(module, lambda: module(x, x, x, key_padding_mask=padding, average_attn_weights=average))
    _same(module, lambda: module(x, x, x, need_weights=False))


@pytest.mark.parametrize("need_weights", [False, True])
def test_queries_that_see_nothing(need_weights: bool) -> None:
    module = nn.MultiheadAttention(SIZE, HEADS, batch_first=True)
    x = torch.randn(BATCH, KEYS, SIZE)
    padding = torch.zeros(BATCH, KEYS, dtype=torch.bool)
    padding[1] = True
    expected = module(x, x, x, key_padding_mask=padding, need_weights=need_weights)[0]
    with approximated(module, "log4"):
        found = module(x, x, x, key_padding_mask=padding, need_weights=need_weights)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6, equal_nan=True)


def test_causal_hint_without_mask_is_refused_as_by_torch() -> None:
    module, x = nn.MultiheadAttention(SIZE, HEADS), torch.randn(4, 2, SIZE)
    with pytest.raises(RuntimeError, match="attn_mask"):
        module(x, x, x, is_causal=True)
    with approximated(module, "log4"), pytest.raises(RuntimeError, match="attn_mask, which is missing"):
        module(x, x, x, is_causal=True)


def _encoder() -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(SIZE, HEADS, 32, dropout=0.1, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def test_encoder_trains_as_before_and_evaluates_on_the_fast_path() -> None:
    encoder, x = _encoder(), torch.randn(BATCH, KEYS, SIZE)
    padding = torch.zeros(BATCH, KEYS, dtype=torch.bool)
    padding[1, -4:] = True

    def out() -> Tensor:
        torch.manual_seed(5)
        return encoder(x, src_key_padding_mask=padding)

    expected, exact = out(), gradients(encoder, lambda: out().square().sum())
    with torch.no_grad():
        evaluated = encoder.eval()(x, src_key_padding_mask=padding)
    encoder.train()
    with approximated(encoder, "merged"):
        torch.testing.assert_close(out(), expected, rtol=0, atol=2e-6)
        assert relative(gradients(encoder, lambda: out().square().sum()), exact) < 1e-5
        with torch.no_grad():
            assert torch.equal(encoder.eval()(x, src_key_padding_mask=padding), evaluated)
    assert {type(m).__qualname__ for m in encoder.modules() if isinstance(m, nn.MultiheadAttention)} == {
        "MultiheadAttention"
    }
    assert all(type(m) is nn.MultiheadAttention for m in encoder.modules() if isinstance(m, nn.MultiheadAttention))


def test_whole_transformer_with_causal_decoder() -> None:
    torch.manual_seed(0)
    model = nn.Transformer(SIZE, HEADS, 1, 2, 32, dropout=0.1, batch_first=True)
    source, target = torch.randn(BATCH, KEYS, SIZE), torch.randn(BATCH, QUERIES, SIZE)
    mask = nn.Transformer.generate_square_subsequent_mask(QUERIES)

    def out() -> Tensor:
        torch.manual_seed(5)
        return model(source, target, tgt_mask=mask, tgt_is_causal=True)

    expected, exact = out(), gradients(model, lambda: out().square().sum())
    with approximated(model, "recompute", record=True) as attachment:
        torch.testing.assert_close(out(), expected, rtol=0, atol=2e-6)
        assert relative(gradients(model, lambda: out().square().sum()), exact) < 1e-5
    assert len(attachment.approximation.coverage.rows) == 5


def test_autocast() -> None:
    encoder, x = _encoder(), torch.randn(BATCH, KEYS, SIZE)

    def out() -> Tensor:
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16):
            return encoder(x).float()

    expected, exact = out(), gradients(encoder, lambda: out().square().sum())
    with approximated(encoder, "merged"):
        torch.testing.assert_close(out(), expected, rtol=0.05, atol=0.05)
        assert relative(gradients(encoder, lambda: out().square().sum()), exact) < 0.05


# Its own bytes.
@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])  # noqa: S301
def test_copies_made_meanwhile_are_torch_s_own(way: Any) -> None:
    encoder, x = _encoder().eval(), torch.randn(BATCH, KEYS, SIZE)
    with approximated(encoder, "log4"):
        twin = way(encoder)
    assert type(twin.layers[0].self_attn) is nn.MultiheadAttention
    torch.testing.assert_close(twin(x), encoder(x), rtol=0, atol=1e-6)
