"""Saved-tensor hooks beside the rest of autograd: second passes, writes in place, checkpointing, freed records."""

import gc
from collections.abc import Callable
from contextlib import nullcontext
from weakref import ref

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_methods.softmax_approximation.meters import SavedBytes
from lit_methods.softmax_approximation.saved_tensors import SavedTensors
from tests.softmax_approximation.models import LENGTH, Way, dropped, grads_of, hooks_of, matmul, scores_and_value


@pytest.mark.parametrize(
    "read",
    [lambda w: w.flatten(0, 1).log(), lambda w: w[:, 0].log(), lambda w: w.flatten(0, 1).square()],
    ids=["log", "log of a head", "square"],
)
def test_others_than_products_are_refused_approximate_weights(read: Callable[[Tensor], Tensor]) -> None:
    def call(s: Tensor, v: Tensor) -> Tensor:
        return read(torch.softmax(s, -1))

    scores, value = scores_and_value()
    with hooks_of("log4"):
        loss = call(scores, value).sum()
    with pytest.raises(RuntimeError, match=r"Backward0 needs the softmax output of .* codec='merged'"):
        loss.backward()
    with hooks_of("merged"):
        loss = call(scores, value).sum()
    expected = torch.autograd.grad(call(scores, value).sum(), scores)[0]
    assert torch.equal(torch.autograd.grad(loss, scores)[0], expected)


def test_graph_kept_for_a_second_backward() -> None:
    scores, value = scores_and_value()
    with hooks_of("log4"):
        loss = dropped(scores, value).square().sum()
    first = torch.autograd.grad(loss, (scores, value), retain_graph=True)
    second = torch.autograd.grad(loss, (scores, value))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_double_backward_is_refused() -> None:
    scores, value = scores_and_value()
    with hooks_of("log4"):
        loss = matmul(scores, value).square().sum()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, scores, create_graph=True)


@pytest.mark.parametrize("codec", ["merged", "log4"])
def test_weights_written_to_in_place_are_refused(codec: str) -> None:
    scores, value = scores_and_value()
    with hooks_of(codec):
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
    scores, value = scores_and_value()
    with hooks_of("log4"):
        weights = torch.softmax(scores, -1)
        del weights
        others = [torch.randn_like(scores).requires_grad_() for _ in range(4)]
        outputs = [(other * 1) @ value for other in others]
    for other, output in zip(others, outputs, strict=True):
        torch.testing.assert_close(
            torch.autograd.grad(output.sum(), value)[0], other.detach().mT @ torch.ones(LENGTH, 8)
        )


def test_two_valued_tensors_come_back_as_they_were() -> None:
    scores, value = scores_and_value()
    steps = (torch.randn_like(scores) > 0) * -3.5
    gate = (torch.randn_like(scores) > 0).float()

    def call(s: Tensor, v: Tensor) -> Tensor:
        return (torch.softmax(s, -1) * steps * gate * torch.randn_like(s)) @ v

    for found, expected in zip(
        grads_of(call, scores, value, hooks_of("merged")), grads_of(call, scores, value), strict=True
    ):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_inside_keeps_gradients_exact(use_reentrant: bool) -> None:
    def call(s: Tensor, v: Tensor) -> Tensor:
        return checkpoint(dropped, s, v, use_reentrant=use_reentrant)

    for found, expected in zip(_grads_plain(call, hooks_of("log4")), _grads_plain(call, None), strict=True):
        assert torch.equal(found, expected)


def _grads_plain(way: Way, hooks: SavedTensors | None) -> list[Tensor]:
    scores, value = scores_and_value()
    torch.manual_seed(5)
    if hooks is None:
        output = way(scores * 1, value * 1)
    else:
        with hooks:
            output = way(scores * 1, value * 1)
    output.square().sum().backward()
    return [scores.grad, value.grad]


def test_inside_the_checkpointed_function_the_codec_works() -> None:
    scores, value = scores_and_value()
    hooks = hooks_of("log4")

    def inner(s: Tensor, v: Tensor) -> Tensor:
        with hooks:
            return matmul(s, v)

    output = checkpoint(inner, scores, value, use_reentrant=False)
    found = torch.autograd.grad(output.square().sum(), scores)[0]
    with hooks_of("log4"):
        output = matmul(scores, value)
    assert torch.equal(found, torch.autograd.grad(output.square().sum(), scores)[0])


def test_records_are_freed_without_the_garbage_collector() -> None:
    scores, value = scores_and_value()
    hooks = hooks_of("log4")
    gc.collect()
    gc.disable()
    try:
        with hooks:
            output = dropped(scores, value)
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
    for hooks in (None, hooks_of("log4"), SavedBytes()):
        x = torch.linspace(-1, 1, 12).view(2, 6).requires_grad_()
        with hooks or nullcontext():
            slope = torch.autograd.grad(layer(x).sum(), x, create_graph=True)[0]
            penalty = (slope.norm(dim=1) - 1).square().sum()
        found.append(torch.autograd.grad(penalty, list(layer.parameters()), allow_unused=True))
    for others in found[1:]:
        for a, b in zip(others, found[0], strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
