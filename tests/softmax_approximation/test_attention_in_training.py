"""Attention in what training puts around it: half precision, checkpointing, accumulation, compilation."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_methods.softmax_approximation import as_codec, softmax_attention, softmax_value_product
from tests.softmax_approximation.references import eager, gradients, random_heads


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_to_the_truth_as_eager(dtype: torch.dtype) -> None:
    heads = random_heads(queries=30, keys=30)
    truth = gradients(eager(*heads, is_causal=True)[0], list(heads))
    halves = [head.detach().to(dtype).requires_grad_() for head in heads]
    for chunk_elements in (None, 100):
        output, _ = softmax_attention(*halves, codec="recompute", is_causal=True, chunk_elements=chunk_elements)
        reference, _ = eager(*halves, is_causal=True)
        assert output.dtype == dtype
        torch.testing.assert_close(output, reference, rtol=0, atol=4 * torch.finfo(dtype).eps)
        found, wanted = gradients(output, halves), gradients(reference, halves)
        for one, two, true in zip(found, wanted, truth, strict=True):
            assert one.dtype == dtype
            assert (one - true).norm() < 1.5 * (two - true).norm() + 1e-6


def test_autocast_computes_in_its_dtype_and_returns_gradients_in_the_inputs() -> None:
    heads = random_heads()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = softmax_attention(*heads, codec="recompute", mask=torch.zeros(9))
        expected, _ = eager(*(head.bfloat16() for head in heads))
    assert output.dtype == torch.bfloat16
    assert output.equal(expected)
    grads = gradients(output, list(heads))
    assert all(grad.dtype == torch.float32 for grad in grads)
    for one, two in zip(grads, gradients(eager(*heads)[0], list(heads)), strict=True):
        assert (one - two).norm() < 0.03 * two.norm()


def test_autocast_of_given_scores_is_that_of_the_product() -> None:
    query, key, value = random_heads()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = (query @ key.mT).detach().requires_grad_()
        output, _ = softmax_value_product(scores, value, codec="merged")
        expected = torch.softmax(scores, -1) @ value
    assert output.dtype == torch.bfloat16
    assert output.equal(expected)
    found, wanted = (gradients(o, [scores, value]) for o in (output, expected))
    for one, two in zip(found, wanted, strict=True):
        assert one.dtype == two.dtype
        assert (one - two).norm() < 0.03 * two.norm()


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("name", ["recompute", "log4"])
def test_activation_checkpointing_around_it_does_no_harm(name: str, use_reentrant: bool) -> None:
    heads = random_heads()

    def run(*inputs: Tensor) -> Tensor:
        return softmax_attention(*inputs, codec=name, dropout_p=0.3)[0]

    results = []
    for wrapped in (False, True):
        torch.manual_seed(6)
        output = checkpoint(run, *heads, use_reentrant=use_reentrant) if wrapped else run(*heads)
        for head in heads:
            head.grad = None
        output.backward(torch.ones_like(output))
        results.append([output, *(head.grad for head in heads)])
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-6)


def test_accumulated_gradients_add_up() -> None:
    heads = random_heads(dtype=torch.float64)
    for _ in range(2):
        softmax_attention(*heads, codec="recompute")[0].sum().backward()
    once = torch.autograd.grad(eager(*heads)[0].sum(), heads)
    for head, grad in zip(heads, once, strict=True):
        torch.testing.assert_close(head.grad, 2 * grad)


def test_a_second_derivative_is_refused_with_our_sentence() -> None:
    query, key, value = random_heads()
    output, _ = softmax_attention(query, key, value)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(output.sum(), query, create_graph=True)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile looks at them
@pytest.mark.parametrize("name", ["recompute", "log4", "log2"])
def test_compiled_functions_give_the_same(name: str) -> None:
    heads = random_heads()
    codec = as_codec(name)

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output, _ = softmax_attention(1.0 * query, key, value, codec=codec, dropout_p=0.2, is_causal=True)
        return output.sin()

    results = []
    for function in (run, torch.compile(run, backend="aot_eager")):
        codec = copy.deepcopy(as_codec(name))
        torch.manual_seed(7)
        output = function(*heads)
        results.append([output, *gradients(output, list(heads))])
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-6)
    torch.compiler.reset()


def test_inside_a_module_training_steps_match_eager() -> None:
    class Block(nn.Module):
        def __init__(self, ours: bool) -> None:
            super().__init__()
            self.ours = ours
            self.project, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            heads = [part.unflatten(-1, (4, 4)).transpose(1, 2) for part in self.project(x).chunk(3, -1)]
            attend = softmax_attention if self.ours else eager
            options = {"codec": "recompute"} if self.ours else {}
            mixed, _ = attend(*heads, dropout_p=0.1, is_causal=True, **options)
            return self.out(mixed.transpose(1, 2).flatten(2))

    losses = []
    for ours in (True, False):
        torch.manual_seed(0)
        block = Block(ours)
        optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
        x = torch.randn(3, 12, 16)
        torch.manual_seed(1)
        for _ in range(5):
            optimizer.zero_grad()
            loss = (block(x) - x).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(loss)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0)
