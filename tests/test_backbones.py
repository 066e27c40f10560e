"""Backbones: shapes, parameter counts by hand, and fitness for per-sample gradients."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from lit_methods.backbones import MLP, ConvNet6, SmallCNN, WideResNet


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


def test_wide_resnet_is_the_one_of_the_literature() -> None:
    network = WideResNet()
    assert _parameters(network) == 1_467_610
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert WideResNet(num_classes=None)(torch.randn(2, 3, 32, 32)).shape == (2, 128)
    assert sum(isinstance(layer, nn.Conv2d) for layer in network.modules()) == 28
    assert network.blocks(network.stem(torch.randn(1, 3, 32, 32))).shape == (1, 128, 8, 8)


def test_wide_resnet_equals_its_formula() -> None:
    network = WideResNet(1, 3, depth=10, widen_factor=1, norm_groups=4)
    images = torch.randn(2, 1, 8, 8)
    x = network.stem(images)
    for i, block in enumerate(network.blocks):
        a = F.leaky_relu(block.norm1(x), 0.1)
        h = block.conv2(F.leaky_relu(block.norm2(block.conv1(a)), 0.1))
        x = h + block.shortcut(a if i == 0 else x)
    expected = network.head(F.leaky_relu(network.norm(x), 0.1).mean((2, 3)))
    torch.testing.assert_close(network(images), expected)
    torch.testing.assert_close(network(images)[:1], network(images[:1]))


def test_wide_resnet_refuses_other_depths() -> None:
    for depth in (9, 12, 4):
        with pytest.raises(ValueError, match=rf"depth={depth} must be 10, 16, 22, 28"):
            WideResNet(depth=depth)
    with pytest.raises(ValueError, match="widen_factor=0 must be at least 1"):
        WideResNet(widen_factor=0)
