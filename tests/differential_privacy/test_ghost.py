"""Ghost clipping against gradients taken one example at a time."""

from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lit_methods.differential_privacy import GhostGradients


def by_hand(network: nn.Module, inputs: Tensor, labels: Tensor, max_grad_norm: float) -> list[Tensor]:
    """The clipped sum, one example at a time."""
    parameters = list(network.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for x, y in zip(inputs, labels, strict=True):
        loss = nn.functional.cross_entropy(network(x[None]), y[None])
        gradients = torch.autograd.grad(loss, parameters)
        norm = float(torch.cat([g.flatten() for g in gradients]).norm())
        for sum_, gradient in zip(total, gradients, strict=True):
            sum_ += gradient * min(1.0, max_grad_norm / norm)
    return total


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.norm = nn.LayerNorm(8)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.mix(self.embed(tokens)).relu()).mean(dim=1))


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 16, 3)
    )


def case(kind: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    labels = torch.randint(3, (7,))
    if kind == "images":
        return images(), 3 * torch.randn(7, 2, 6, 6), labels
    if kind == "tokens":
        return Sequence(), torch.randint(11, (7, 5)), labels
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), 3 * torch.randn(7, 6), labels


def losses_of(network: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(network(inputs), labels, reduction="none")


@pytest.mark.filterwarnings("ignore:Using a non-full backward hook")  # of the layer that is to be found out
@pytest.mark.parametrize("kind", ["features", "images", "tokens"])
@pytest.mark.parametrize("max_grad_norm", [0.3, 1e6])
def test_two_passes_give_the_sum_of_clipped_gradients(kind: str, max_grad_norm: float) -> None:
    network, inputs, labels = case(kind)
    expected = by_hand(network, inputs, labels, max_grad_norm)
    gradients = GhostGradients(network, max_grad_norm)
    for passes in (1, 2):
        gradients.backward(losses_of(network, inputs, labels))
        for p, sum_ in zip(network.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, passes * sum_, rtol=1e-4, atol=1e-5)


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return out


def test_no_gradient_per_example_is_held() -> None:
    from lit_methods.differential_privacy import PerSampleGradients

    batch, width = 16, 64
    network = nn.Sequential(nn.Linear(width, width), nn.Linear(width, 3))
    inputs, labels = torch.randn(batch, width), torch.zeros(batch, dtype=torch.long)
    hooks = PerSampleGradients(network)
    with Largest() as plain:
        losses_of(network, inputs, labels).mean().backward()
    hooks.remove()
    gradients = GhostGradients(network, 1.0)
    with Largest() as ghost:
        gradients.backward(losses_of(network, inputs, labels))
    assert plain.bytes == 4 * batch * width**2
    assert ghost.bytes == 4 * width**2


def test_a_layer_without_a_gradient_and_an_empty_batch() -> None:
    network = nn.ModuleDict({"used": nn.Linear(4, 3), "unused": nn.Linear(4, 3)})
    gradients = GhostGradients(network, 1.0)
    gradients.backward(losses_of(network["used"], torch.randn(5, 4), torch.zeros(5, dtype=torch.long)))
    assert network["unused"].weight.grad is None
    before = network["used"].weight.grad.clone()
    gradients.backward(losses_of(network["used"], torch.randn(0, 4), torch.zeros(0, dtype=torch.long)))
    assert torch.equal(network["used"].weight.grad, before)


def test_removal_leaves_no_trace() -> None:
    network, inputs, labels = case("images")
    attributes = [set(layer.__dict__) for layer in network.modules()]
    gradients = GhostGradients(network, 1.0)
    assert not network[2].inplace
    gradients.backward(losses_of(network, inputs, labels))
    gradients.remove()
    assert [set(layer.__dict__) for layer in network.modules()] == attributes
    assert not any(layer._forward_hooks or layer._backward_hooks for layer in network.modules())
    assert not {name for p in network.parameters() for name in p.__dict__}
    assert network[2].inplace


class Outside(nn.Module):
    """Uses a weight once in its layer and once beside it."""

    def __init__(self, only_outside: bool) -> None:
        super().__init__()
        self.layer, self.only_outside = nn.Linear(4, 4), only_outside

    def forward(self, x: Tensor) -> Tensor:
        inside = x if self.only_outside else self.layer(x)
        return inside @ self.layer.weight


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(x)
        return hidden - 0.5 * hidden.mean(dim=0)


@pytest.mark.parametrize(
    ("network", "match"),
    [
        (Outside(True), "layer.weight has a gradient, but no layer"),
        (Outside(False), "its layers account for"),
        (Mixing(), "the loss of one example depends on others"),
    ],
)
def test_norms_that_miss_a_part_are_refused(network: nn.Module, match: str) -> None:
    gradients = GhostGradients(network, 1.0)
    losses = losses_of(network, torch.randn(5, 4), torch.arange(5) % 4)
    with pytest.raises(MisconfigurationException, match=match):
        gradients.backward(losses)
    assert all(p.grad is None for p in network.parameters())


def test_what_ghost_clipping_cannot_do() -> None:
    tied = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    tied["b"].weight = tied["a"].weight
    with pytest.raises(MisconfigurationException, match=r"a.weight and b.weight are one parameter"):
        GhostGradients(tied, 1.0)
    network, inputs, labels = case("features")
    gradients = GhostGradients(network, 1.0)
    with pytest.raises(ValueError, match=r"shape \(B,\), one per example"):
        gradients.backward(losses_of(network, inputs, labels).mean())
    inputs[3] = torch.inf
    with pytest.raises(ValueError, match="not finite"):
        gradients.backward(losses_of(network, inputs, labels))
    assert all(p.grad is None for p in network.parameters())


def test_bf16_is_refused() -> None:
    network, inputs, labels = case("features")
    gradients = GhostGradients(network, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_of(network, inputs, labels)
    with pytest.raises(MisconfigurationException, match="16-bit"):
        gradients.backward(losses)
