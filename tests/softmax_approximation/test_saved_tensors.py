import gc
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from weakref import ref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lit_methods.softmax_approximation import Codec, TopK, as_codec
from lit_methods.softmax_approximation.approximation import Approximation
from lit_methods.softmax_approximation.coverage import Coverage
from lit_methods.softmax_approximation.meters import ErrorMeter, SavedBytes, saved_bytes
from lit_methods.softmax_approximation.saved_tensors import SavedTensors

LENGTH = 64


def _matmul(scores: Tensor, value: Tensor) -> Tensor:
    return torch.softmax(scores, -1) @ value


def _dropped(scores: Tensor, value: Tensor) -> Tensor:
    return F.dropout(torch.softmax(scores, -1), 0.2) @ value


def _accelerator_dropped(scores: Tensor, value: Tensor) -> Tensor:
    """With the operator that ``F.dropout`` is on accelerators."""
    return torch.native_dropout(torch.softmax(scores, -1), 0.2, True)[0] @ value


def _einsum(scores: Tensor, value: Tensor) -> Tensor:
    return torch.einsum("bhqk,bhkd->bqhd", torch.softmax(scores, -1), value)


def _transposed(scores: Tensor, value: Tensor) -> Tensor:
    return value.mT @ torch.softmax(scores, -1).mT


def _sliced(scores: Tensor, value: Tensor) -> Tensor:
    return torch.softmax(scores, -1)[:, :, 1:, :] @ value


def _half(scores: Tensor, value: Tensor) -> Tensor:
    return (torch.softmax(scores, -1, dtype=torch.float32).to(torch.bfloat16) @ value.bfloat16()).float()


def _half_dropped(scores: Tensor, value: Tensor) -> Tensor:
    weights = torch.softmax(scores, -1).to(torch.bfloat16)
    return (F.dropout(weights, 0.2) @ value.bfloat16()).float()


def _autocast(scores: Tensor, value: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return (F.dropout(torch.softmax(scores, -1), 0.2) @ value).float()


def _half_throughout(scores: Tensor, value: Tensor) -> Tensor:
    return (F.dropout(torch.softmax(scores.bfloat16(), -1), 0.2) @ value.bfloat16()).float()


def _fused(scores: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(scores, scores, value, dropout_p=0.2)


def _masked(scores: Tensor, value: Tensor) -> Tensor:
    hidden = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    return F.dropout(torch.softmax(scores.masked_fill(hidden, -torch.inf), -1), 0.2) @ value


def _supervised(scores: Tensor, value: Tensor) -> Tensor:
    weights = torch.softmax(scores, -1)
    return weights @ value + (weights * weights.log()).sum(-1, keepdim=True)


WAYS = [
    _autocast,
    _half_throughout,
    _matmul,
    _dropped,
    _accelerator_dropped,
    _einsum,
    _transposed,
    _sliced,
    _half,
    _half_dropped,
    _fused,
    _masked,
    _supervised,
]
Way = Callable[[Tensor, Tensor], Tensor]
each_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.strip("_"))


def _inputs(length: int = LENGTH) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    scores = 2 * torch.randn(2, 3, length, length, generator=generator)
    value = torch.randn(2, 3, length, 8, generator=generator) + 1
    return scores.requires_grad_(), value.requires_grad_()


def _hooks(codec: str | Codec, **kwargs: Any) -> SavedTensors:
    return SavedTensors(Approximation(as_codec(codec), Coverage()), **kwargs)


def _grads(way: Way, scores: Tensor, value: Tensor, hooks: SavedTensors | None = None) -> list[Tensor]:
    torch.manual_seed(5)
    if hooks is None:
        output = way(scores * 1, value)
    else:
        with hooks:
            output = way(scores * 1, value)
    weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
    return list(torch.autograd.grad((output * weights).sum(), (scores, value)))


@each_way
@pytest.mark.parametrize("codec", ["merged", "recompute", TopK(1.0, dtype=torch.float32)], ids=str)
def test_gradients_are_bit_equal_at_full_keep(way: Way, codec: str | Codec) -> None:
    scores, value = _inputs()
    hooks = _hooks(codec)
    for found, expected in zip(_grads(way, scores, value, hooks), _grads(way, scores, value), strict=True):
        assert torch.equal(found, expected)
    assert hooks.approximation.coverage.any


KEPT_BESIDE = {_supervised: 2, _fused: 2}  # in sizes of the weights: they and their logarithm; scaled query and key


@pytest.mark.parametrize("way", [way for way in WAYS if way is not _masked], ids=lambda way: way.__name__.strip("_"))
def test_dense_weights_are_gone(way: Way) -> None:
    scores, value = _inputs(128)
    hooks = _hooks("log4")

    def call() -> Tensor:
        with hooks:
            return way(scores, value)

    beside = KEPT_BESIDE.get(way, 0) * scores.nbytes
    kept = saved_bytes(call, exclude=[scores, value])
    before = saved_bytes(lambda: way(scores, value), exclude=[scores, value])
    if way is not _supervised:
        assert before - beside >= scores.nbytes
    assert kept - beside <= 0.2 * scores.nbytes + 2 * value.nbytes
    coverage = hooks.approximation.coverage
    assert before - kept <= coverage.before - coverage.after + 2 * value.nbytes


def test_lossy_gradients_use_the_decoded_weights_and_dropout_s_own_mask() -> None:
    scores, value = _inputs()
    codec = as_codec("log4")
    torch.manual_seed(5)
    noise = F.dropout(torch.ones_like(scores), 0.2)
    weights = torch.softmax(scores.detach(), -1)
    decoded = codec.decode(codec.encode(weights), size=weights.shape, dtype=weights.dtype)
    output = weights * noise @ value.detach()
    grad = torch.linspace(-1, 1, output.numel()).view(output.shape)
    g = (grad @ value.detach().mT) * noise
    expected = decoded * (g - (decoded * g).sum(-1, keepdim=True)), (decoded * noise).mT @ grad
    for found, tensor in zip(_grads(_dropped, scores, value, _hooks("log4")), expected, strict=True):
        torch.testing.assert_close(found, tensor, rtol=1e-4, atol=1e-6)


def test_error_shrinks_with_the_kept_share() -> None:
    scores, value = _inputs()
    exact = _grads(_matmul, scores, value)[0]
    errors = []
    for share in (0.05, 0.1, 0.25, 1.0):
        found = _grads(_matmul, scores, value, _hooks(TopK(share, dtype=torch.float32)))[0]
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[0] > errors[1] > errors[2] > errors[3] == 0


def test_a_constant_on_the_values_moves_no_gradient() -> None:
    scores, value = _inputs()
    first = _grads(_matmul, scores, value, _hooks("log4"))[0]
    shifted = _grads(_matmul, scores, (value.detach() + 10).requires_grad_(), _hooks("log4"))[0]
    torch.testing.assert_close(shifted, first, rtol=0, atol=2e-5 * float(first.abs().max()) * 10)


@pytest.mark.parametrize("codec", ["log2", TopK(0.1, tail="zero"), "recompute"], ids=str)
def test_codecs_that_lose_mass_are_replaced(codec: str | Codec) -> None:
    hooks = _hooks(codec)
    with hooks:
        _matmul(*_inputs())
    (row,) = hooks.approximation.coverage.rows.values()
    assert row.codec == ("merged" if codec == "recompute" else "log4")
    assert hooks.approximation.weights_codec.conserves_mass


def test_maps_that_a_loss_reads_stay_as_they_are() -> None:
    scores, value = _inputs()
    scores = (5 * scores.detach()).requires_grad_()  # so that the codec takes many weights for 0
    codec = as_codec("log4")
    weights = torch.softmax(scores.detach(), -1)
    decoded = codec.decode(codec.encode(weights), size=weights.shape, dtype=weights.dtype)
    assert (decoded == 0).any()
    g = weights.log() + 1 + torch.ones(LENGTH, 8) @ value.detach().mT
    hooks = _hooks("log4")
    with hooks:
        weights = torch.softmax(scores, -1)
        loss = (weights @ value).sum() + (weights * weights.log()).sum()
    found = torch.autograd.grad(loss, scores)[0]
    torch.testing.assert_close(found, decoded * (g - (decoded * g).sum(-1, keepdim=True)), rtol=1e-3, atol=1e-5)
    (row,) = hooks.approximation.coverage.rows.values()
    assert "read further" in row.note
    assert row.after - scores.nbytes <= 0.2 * scores.nbytes


@pytest.mark.parametrize(
    "read",
    [lambda w: w.flatten(0, 1).log(), lambda w: w[:, 0].log(), lambda w: w.flatten(0, 1).square()],
    ids=["log", "log of a head", "square"],
)
def test_others_than_products_are_refused_approximate_weights(read: Callable[[Tensor], Tensor]) -> None:
    def call(s: Tensor, v: Tensor) -> Tensor:
        return read(torch.softmax(s, -1))

    scores, value = _inputs()
    with _hooks("log4"):
        loss = call(scores, value).sum()
    with pytest.raises(RuntimeError, match=r"Backward0 needs the softmax output of .* codec='merged'"):
        loss.backward()
    with _hooks("merged"):
        loss = call(scores, value).sum()
    expected = torch.autograd.grad(call(scores, value).sum(), scores)[0]
    assert torch.equal(torch.autograd.grad(loss, scores)[0], expected)


def test_direct_batched_product_is_covered() -> None:
    scores, value = (tensor.detach().flatten(0, 1).requires_grad_() for tensor in _inputs(128))

    def call() -> Tensor:
        with _hooks("log4"):
            return torch.bmm(F.dropout(torch.softmax(scores, -1), 0.2), value)

    assert saved_bytes(call, exclude=[scores, value]) <= 0.2 * scores.nbytes
    call().sum().backward()


def test_graph_kept_for_a_second_backward() -> None:
    scores, value = _inputs()
    with _hooks("log4"):
        loss = _dropped(scores, value).square().sum()
    first = torch.autograd.grad(loss, (scores, value), retain_graph=True)
    second = torch.autograd.grad(loss, (scores, value))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_double_backward_is_refused() -> None:
    scores, value = _inputs()
    with _hooks("log4"):
        loss = _matmul(scores, value).square().sum()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, scores, create_graph=True)


@pytest.mark.parametrize("codec", ["merged", "log4"])
def test_weights_written_to_in_place_are_refused(codec: str) -> None:
    scores, value = _inputs()
    with _hooks(codec):
        weights = torch.softmax(scores, -1)
        weights.detach().mul_(2)
        output = weights @ value
    if codec == "merged":
        with pytest.raises(RuntimeError, match="changed in place"):
            output.sum().backward()
    else:  # the product saved the new values, softmax's own node the old ones
        found = torch.autograd.grad(output.sum(), (scores, value))
        expected = 2 * torch.softmax(scores.detach(), -1).mT @ torch.ones(LENGTH, 8)
        torch.testing.assert_close(found[1], expected)


def test_another_tensor_at_the_same_address_is_not_mistaken() -> None:
    scores, value = _inputs()
    with _hooks("log4"):
        weights = torch.softmax(scores, -1)
        del weights
        others = [torch.randn_like(scores).requires_grad_() for _ in range(4)]
        outputs = [(other * 1) @ value for other in others]
    for other, output in zip(others, outputs, strict=True):
        torch.testing.assert_close(
            torch.autograd.grad(output.sum(), value)[0], other.detach().mT @ torch.ones(LENGTH, 8)
        )


def test_two_valued_tensors_come_back_as_they_were() -> None:
    scores, value = _inputs()
    steps = (torch.randn_like(scores) > 0) * -3.5
    gate = (torch.randn_like(scores) > 0).float()

    def call(s: Tensor, v: Tensor) -> Tensor:
        return (torch.softmax(s, -1) * steps * gate * torch.randn_like(s)) @ v

    for found, expected in zip(_grads(call, scores, value, _hooks("merged")), _grads(call, scores, value), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("softmax", "note"),
    [
        (lambda s: torch.softmax(s, 1), "another than the last dimension"),
        (lambda s: torch.softmax(s[0, 0], -1), "two-dimensional"),
        (lambda s: torch.softmax(s[..., :10], -1), "rows of 10 keys only"),
    ],
)
def test_other_softmaxes_are_left_alone_and_reported(softmax: Callable[[Tensor], Tensor], note: str) -> None:
    scores, _ = _inputs()
    hooks = _hooks("log4", min_keys=64)
    with hooks:
        output = softmax(scores)
    (row,) = hooks.approximation.coverage.rows.values()
    assert not row.covered
    assert note in row.note
    assert row.before == output.nbytes
    grad = torch.randn_like(output)
    expected = torch.autograd.grad(softmax(scores), scores, grad)[0]
    assert torch.equal(torch.autograd.grad(output, scores, grad)[0], expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_inside_keeps_gradients_exact(use_reentrant: bool) -> None:
    def call(s: Tensor, v: Tensor) -> Tensor:
        return checkpoint(_dropped, s, v, use_reentrant=use_reentrant)

    for found, expected in zip(_grads_plain(call, _hooks("log4")), _grads_plain(call, None), strict=True):
        assert torch.equal(found, expected)


def _grads_plain(way: Way, hooks: SavedTensors | None) -> list[Tensor]:
    scores, value = _inputs()
    torch.manual_seed(5)
    if hooks is None:
        output = way(scores * 1, value * 1)
    else:
        with hooks:
            output = way(scores * 1, value * 1)
    output.square().sum().backward()
    return [scores.grad, value.grad]


def test_inside_the_checkpointed_function_the_codec_works() -> None:
    scores, value = _inputs()
    hooks = _hooks("log4")

    def inner(s: Tensor, v: Tensor) -> Tensor:
        with hooks:
            return _matmul(s, v)

    output = checkpoint(inner, scores, value, use_reentrant=False)
    found = torch.autograd.grad(output.square().sum(), scores)[0]
    with _hooks("log4"):
        output = _matmul(scores, value)
    assert torch.equal(found, torch.autograd.grad(output.square().sum(), scores)[0])


def test_records_are_freed_without_the_garbage_collector() -> None:
    scores, value = _inputs()
    hooks = _hooks("log4")
    gc.collect()
    gc.disable()
    try:
        with hooks:
            output = _dropped(scores, value)
        node = output.grad_fn
        while node.name() not in ("SoftmaxBackward0",):
            node = node.next_functions[0][0]
        (record,) = node.metadata.values()
        watched = ref(record())
        assert watched() is not None
        del node
        output.sum().backward()
        assert watched() is None
    finally:
        gc.enable()


def test_other_gradients_of_higher_order_are_as_without_hooks() -> None:
    layer = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    found = []
    for hooks in (None, _hooks("log4"), SavedBytes()):
        x = torch.linspace(-1, 1, 12).view(2, 6).requires_grad_()
        with hooks or nullcontext():
            slope = torch.autograd.grad(layer(x).sum(), x, create_graph=True)[0]
            penalty = (slope.norm(dim=1) - 1).square().sum()
        found.append(torch.autograd.grad(penalty, list(layer.parameters()), allow_unused=True))
    for others in found[1:]:
        for a, b in zip(others, found[0], strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.gpu
@each_way
def test_on_a_gpu(way: Way) -> None:
    if way in (_autocast, _fused, _masked):
        pytest.skip("autocast of the CPU, a fused kernel, a mask on the CPU")
    scores, value = (tensor.detach().cuda().requires_grad_() for tensor in _inputs())
    torch.manual_seed(5)
    expected = torch.autograd.grad(way(scores, value).square().sum(), (scores, value))
    hooks = _hooks("merged")
    torch.manual_seed(5)
    with hooks:
        loss = way(scores, value).square().sum()
    torch.testing.assert_close(torch.autograd.grad(loss, (scores, value)), expected)
    assert hooks.approximation.coverage.any


def test_evaluation_packs_nothing() -> None:
    scores, value = _inputs()
    hooks = _hooks("log4")
    with hooks, torch.no_grad():
        _matmul(scores, value)
    assert not hooks.approximation.coverage.rows


def test_error_meter_sees_softmax_s_gradient() -> None:
    scores, value = _inputs()
    meter, codec = ErrorMeter(), as_codec("log4")
    hooks = SavedTensors(Approximation(codec, errors=meter))
    found = _grads(_matmul, scores, value, hooks)[0]
    exact = _grads(_matmul, scores, value)[0]
    assert meter.relative_error == pytest.approx(float((found - exact).norm() / exact.norm()), rel=1e-4)
    assert 0.99 < meter.cosine < 1
    weights = torch.softmax(scores.detach(), -1)
    decoded = codec.decode(codec.encode(weights), size=weights.shape, dtype=weights.dtype)
    overlap = 1 - (weights - decoded).abs().sum(-1).mean() / 2
    assert meter.kept_mass == pytest.approx(float(overlap), abs=1e-5)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="min_keys must be at least 1, but is 0"):
        _hooks("log4", min_keys=0)


def test_layers_share_no_mask_with_the_next() -> None:
    """A boolean mask that all layers share stays one tensor instead of bits for each layer."""
    scores, _ = _inputs()
    hidden = torch.ones(2, 3, LENGTH, LENGTH, dtype=torch.bool).triu(1)

    def layers() -> Tensor:
        out = scores
        with _hooks("merged"):
            for _ in range(3):
                out = torch.softmax(out.masked_fill(hidden, -1e4), -1) @ out
        return out

    dense = saved_bytes(lambda: torch.softmax(scores.masked_fill(hidden, -1e4), -1), exclude=[scores])
    assert dense == scores.nbytes + hidden.nbytes
    kept = saved_bytes(layers, exclude=[scores])
    assert kept == 3 * scores.nbytes + 2 * scores.nbytes + hidden.nbytes
