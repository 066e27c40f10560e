"""Saved-tensor hooks on attention as people write it: gradients, memory, and what is left alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lit_methods.softmax_approximation import Codec, TopK, as_codec
from lit_methods.softmax_approximation.approximation import Approximation
from lit_methods.softmax_approximation.meters import ErrorMeter, saved_bytes
from lit_methods.softmax_approximation.saved_tensors import SavedTensors
from tests.softmax_approximation.models import LENGTH, Way, dropped, grads_of, hooks_of, matmul, scores_and_value


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
    matmul,
    dropped,
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
each_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.strip("_"))


@each_way
@pytest.mark.parametrize("codec", ["merged", "recompute", TopK(1.0, dtype=torch.float32)], ids=str)
def test_gradients_are_bit_equal_at_full_keep(way: Way, codec: str | Codec) -> None:
    scores, value = scores_and_value()
    hooks = hooks_of(codec)
    for found, expected in zip(grads_of(way, scores, value, hooks), grads_of(way, scores, value), strict=True):
        assert torch.equal(found, expected)
    assert hooks.approximation.coverage.any


KEPT_BESIDE = {_supervised: 2, _fused: 2}  # in sizes of the weights: they and their logarithm; scaled query and key


@pytest.mark.parametrize("way", [way for way in WAYS if way is not _masked], ids=lambda way: way.__name__.strip("_"))
def test_dense_weights_are_gone(way: Way) -> None:
    scores, value = scores_and_value(128)
    hooks = hooks_of("log4")

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
    scores, value = scores_and_value()
    codec = as_codec("log4")
    torch.manual_seed(5)
    noise = F.dropout(torch.ones_like(scores), 0.2)
    weights = torch.softmax(scores.detach(), -1)
    decoded = codec.decode(codec.encode(weights), size=weights.shape, dtype=weights.dtype)
    output = weights * noise @ value.detach()
    grad = torch.linspace(-1, 1, output.numel()).view(output.shape)
    g = (grad @ value.detach().mT) * noise
    expected = decoded * (g - (decoded * g).sum(-1, keepdim=True)), (decoded * noise).mT @ grad
    for found, tensor in zip(grads_of(dropped, scores, value, hooks_of("log4")), expected, strict=True):
        torch.testing.assert_close(found, tensor, rtol=1e-4, atol=1e-6)


def test_error_shrinks_with_the_kept_share() -> None:
    scores, value = scores_and_value()
    exact = grads_of(matmul, scores, value)[0]
    errors = []
    for share in (0.05, 0.1, 0.25, 1.0):
        found = grads_of(matmul, scores, value, hooks_of(TopK(share, dtype=torch.float32)))[0]
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[0] > errors[1] > errors[2] > errors[3] == 0


def test_a_constant_on_the_values_moves_no_gradient() -> None:
    scores, value = scores_and_value()
    first = grads_of(matmul, scores, value, hooks_of("log4"))[0]
    shifted = grads_of(matmul, scores, (value.detach() + 10).requires_grad_(), hooks_of("log4"))[0]
    torch.testing.assert_close(shifted, first, rtol=0, atol=2e-5 * float(first.abs().max()) * 10)


@pytest.mark.parametrize("codec", ["log2", TopK(0.1, tail="zero"), "recompute"], ids=str)
def test_codecs_that_lose_mass_are_replaced(codec: str | Codec) -> None:
    hooks = hooks_of(codec)
    with hooks:
        matmul(*scores_and_value())
    (row,) = hooks.approximation.coverage.rows.values()
    assert row.codec == ("merged" if codec == "recompute" else "log4")
    assert hooks.approximation.weights_codec.conserves_mass


def test_maps_that_a_loss_reads_stay_as_they_are() -> None:
    scores, value = scores_and_value()
    scores = (5 * scores.detach()).requires_grad_()  # so that the codec takes many weights for 0
    codec = as_codec("log4")
    weights = torch.softmax(scores.detach(), -1)
    decoded = codec.decode(codec.encode(weights), size=weights.shape, dtype=weights.dtype)
    assert (decoded == 0).any()
    g = weights.log() + 1 + torch.ones(LENGTH, 8) @ value.detach().mT
    hooks = hooks_of("log4")
    with hooks:
        weights = torch.softmax(scores, -1)
        loss = (weights @ value).sum() + (weights * weights.log()).sum()
    found = torch.autograd.grad(loss, scores)[0]
    torch.testing.assert_close(found, decoded * (g - (decoded * g).sum(-1, keepdim=True)), rtol=1e-3, atol=1e-5)
    (row,) = hooks.approximation.coverage.rows.values()
    assert "read further" in row.note
    assert row.after - scores.nbytes <= 0.2 * scores.nbytes


def test_direct_batched_product_is_covered() -> None:
    scores, value = (tensor.detach().flatten(0, 1).requires_grad_() for tensor in scores_and_value(128))

    def call() -> Tensor:
        with hooks_of("log4"):
            return torch.bmm(F.dropout(torch.softmax(scores, -1), 0.2), value)

    assert saved_bytes(call, exclude=[scores, value]) <= 0.2 * scores.nbytes
    call().sum().backward()


@pytest.mark.parametrize(
    ("softmax", "note"),
    [
        (lambda s: torch.softmax(s, 1), "another than the last dimension"),
        (lambda s: torch.softmax(s[0, 0], -1), "two-dimensional"),
        (lambda s: torch.softmax(s[..., :10], -1), "rows of 10 keys only"),
    ],
)
def test_other_softmaxes_are_left_alone_and_reported(softmax: Callable[[Tensor], Tensor], note: str) -> None:
    scores, _ = scores_and_value()
    hooks = hooks_of("log4", min_keys=64)
    with hooks:
        output = softmax(scores)
    (row,) = hooks.approximation.coverage.rows.values()
    assert not row.covered
    assert note in row.note
    assert row.before == output.nbytes
    grad = torch.randn_like(output)
    expected = torch.autograd.grad(softmax(scores), scores, grad)[0]
    assert torch.equal(torch.autograd.grad(output, scores, grad)[0], expected)


@pytest.mark.gpu
@each_way
def test_on_a_gpu(way: Way) -> None:
    if way in (_autocast, _fused, _masked):
        pytest.skip("autocast of the CPU, a fused kernel, a mask on the CPU")
    scores, value = (tensor.detach().cuda().requires_grad_() for tensor in scores_and_value())
    torch.manual_seed(5)
    expected = torch.autograd.grad(way(scores, value).square().sum(), (scores, value))
    hooks = hooks_of("merged")
    torch.manual_seed(5)
    with hooks:
        loss = way(scores, value).square().sum()
    torch.testing.assert_close(torch.autograd.grad(loss, (scores, value)), expected)
    assert hooks.approximation.coverage.any


def test_evaluation_packs_nothing() -> None:
    scores, value = scores_and_value()
    hooks = hooks_of("log4")
    with hooks, torch.no_grad():
        matmul(scores, value)
    assert not hooks.approximation.coverage.rows


def test_error_meter_sees_softmax_s_gradient() -> None:
    scores, value = scores_and_value()
    meter, codec = ErrorMeter(), as_codec("log4")
    hooks = SavedTensors(Approximation(codec, errors=meter))
    found = grads_of(matmul, scores, value, hooks)[0]
    exact = grads_of(matmul, scores, value)[0]
    assert meter.relative_error == pytest.approx(float((found - exact).norm() / exact.norm()), rel=1e-4)
    assert 0.99 < meter.cosine < 1
    weights = torch.softmax(scores.detach(), -1)
    decoded = codec.decode(codec.encode(weights), size=weights.shape, dtype=weights.dtype)
    overlap = 1 - (weights - decoded).abs().sum(-1).mean() / 2
    assert meter.kept_mass == pytest.approx(float(overlap), abs=1e-5)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="min_keys must be at least 1, but is 0"):
        hooks_of("log4", min_keys=0)


def test_layers_share_no_mask_with_the_next() -> None:
    """A boolean mask that all layers share stays one tensor instead of bits for each layer."""
    scores, _ = scores_and_value()
    hidden = torch.ones(2, 3, LENGTH, LENGTH, dtype=torch.bool).triu(1)

    def layers() -> Tensor:
        out = scores
        with hooks_of("merged"):
            for _ in range(3):
                out = torch.softmax(out.masked_fill(hidden, -1e4), -1) @ out
        return out

    dense = saved_bytes(lambda: torch.softmax(scores.masked_fill(hidden, -1e4), -1), exclude=[scores])
    assert dense == scores.nbytes + hidden.nbytes
    kept = saved_bytes(layers, exclude=[scores])
    assert kept == 3 * scores.nbytes + 2 * scores.nbytes + hidden.nbytes
