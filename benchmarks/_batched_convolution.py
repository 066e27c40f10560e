"""Convolutions of stacked clients as products of matrices, to compare with the grouped ones that torch.func makes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lit_methods.federated.layout import ModelLayout


class MatrixConv2d(nn.Conv2d):
    """A convolution with zero padding and without groups, as patches times a matrix."""

    def forward(self, input: Tensor) -> Tensor:
        """`(B, C, H, W)` to what `nn.Conv2d` gives."""
        padding, stride = (int(self.padding[i]) for i in (0, 1)), self.stride
        patches = nn.functional.unfold(input, self.kernel_size, self.dilation, tuple(padding), stride)
        out = self.weight.flatten(1) @ patches
        if self.bias is not None:
            out = out + self.bias.unsqueeze(1)
        reach = self.dilation[0] * (self.kernel_size[0] - 1)
        height = (input.shape[2] + 2 * int(self.padding[0]) - reach - 1) // stride[0] + 1
        return out.view(len(input), self.out_channels, height, -1)


def by_matrices(network: nn.Module) -> nn.Module:
    """A copy of a network whose plain convolutions are products of matrices."""
    network = copy.deepcopy(network)
    for layer in network.modules():
        if type(layer) is nn.Conv2d:
            layer.__class__ = MatrixConv2d
    return network


def stacked_step(network: nn.Module, shape: tuple[int, ...], clients: int) -> Callable[[], Tensor]:
    """Forward and backward of some clients' networks on ten examples each; returns their gradients `(K, D)`."""
    generator = torch.Generator().manual_seed(0)
    layout = ModelLayout.of(network)
    weights = layout.read(network) + 0.01 * torch.randn(clients, layout.size, generator=generator)
    inputs = torch.randn(clients, 10, *shape, generator=generator)

    def one(state: dict[str, Tensor], examples: Tensor) -> Tensor:
        return functional_call(network, state, (examples,)).square().sum()  # type: ignore[no-any-return]  # functional_call returns Any

    def step() -> Tensor:
        leaf = weights.clone().requires_grad_()
        return torch.autograd.grad(vmap(one)(layout.views(leaf), inputs).sum(), leaf)[0]

    return step
