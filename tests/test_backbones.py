"""Backbones: shapes, parameter counts by hand, and fitness for per-sample gradients."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from lit_methods.backbones import MLP, ConvNet6, SmallCNN


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("network", "shape", "parameters"),
    [
        (MLP(64, [], 10), (1, 8, 8), 64 * 10 + 10),
        (MLP(64, [32, 16], 10), (1, 8, 8), 64 * 32 + 32 + 32 * 16 + 16 + 16 * 10 + 10),
        (SmallCNN(), (1, 8, 8), 16 * 9 + 16 + 32 * 16 * 9 + 32 + 32 * 4 * 10 + 10),
        (SmallCNN(3, 5, [4], (7, 9), 2), (3, 7, 9), 4 * 3 * 9 + 4 + 8 + 4 * 3 * 4 * 5 + 5),
        (ConvNet6(), (3, 32, 32), 896 + 9248 + 18496 + 36928 + 73856 + 147584 + 20490),
        (ConvNet6(1, 7, 28), (1, 28, 28), 320 + 9248 + 18496 + 36928 + 73856 + 147584 + 128 * 9 * 7 + 7),
    ],
)
def test_output_shape_and_parameters(network: nn.Module, shape: tuple[int, ...], parameters: int) -> None:
    assert network(torch.randn(2, *shape)).shape == (2, network[-1].out_features)
    assert _parameters(network) == parameters


def test_convnet6_is_the_network_of_the_notebook() -> None:
    convolutions = [layer for layer in ConvNet6() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [32, 32, 64, 64, 128, 128]
    assert ConvNet6()[-1].in_features == 2048


def test_mlp_equals_the_formula() -> None:
    network = MLP(6, [5], 3)
    inputs = torch.randn(4, 1, 2, 3)
    hidden = (inputs.reshape(4, 6) @ network[1].weight.T + network[1].bias).clamp(min=0)
    torch.testing.assert_close(network(inputs), hidden @ network[3].weight.T + network[3].bias)


@pytest.mark.parametrize("network", [MLP(64, [16], 4), SmallCNN(1, 4, [4, 4], 8, norm_groups=2), ConvNet6(1, 4, 8)])
def test_examples_do_not_mix_and_per_sample_gradients_sum_to_the_batch(network: nn.Module) -> None:
    images, labels = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 3])

    def loss(parameters: dict[str, torch.Tensor], image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(functional_call(network, parameters, image[None]), label[None])

    per_sample = vmap(grad(loss), in_dims=(None, 0, 0))(dict(network.named_parameters()), images, labels)
    F.cross_entropy(network(images), labels, reduction="sum").backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(per_sample[name].sum(0), parameter.grad, rtol=1e-4, atol=1e-5)
    layers = list(network.modules())
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in layers)
    assert not any(layer.inplace for layer in layers if isinstance(layer, nn.ReLU))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLP(0, [4], 2), "in_features=0 must be at least 1"),
        (lambda: MLP(4, [4, -1], 2), r"hidden_features\[1\]=-1 must be at least 1"),
        (lambda: SmallCNN(num_classes=0), "num_classes=0 must be at least 1"),
        (lambda: SmallCNN(widths=[4, 4, 4, 4]), "image_size=8 vanishes in 4 max-pools of 2; it must be at least 16"),
        (lambda: SmallCNN(widths=[4, 6], norm_groups=4), "num_channels"),
        (lambda: ConvNet6(image_size=(32, 7)), r"image_size=\(32, 7\) vanishes in 3 max-pools"),
    ],
)
def test_bad_sizes_are_named(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
