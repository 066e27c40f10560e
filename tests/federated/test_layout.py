"""A module as flat vectors and back."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lit_methods.federated.layout import ModelLayout, gather


def _net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def test_vectors_and_modules_agree_both_ways() -> None:
    net = _net()
    layout = ModelLayout.of(net)
    flat = layout.read(net)
    assert torch.equal(flat, nn.utils.parameters_to_vector(net.parameters()))
    assert layout.size == len(flat)
    for name, p in layout.views(flat).items():
        assert torch.equal(p, net.get_parameter(name))
    stacked = layout.views(torch.stack([flat, 2 * flat]))
    assert stacked["0.weight"].shape == (2, 3, 2)
    assert torch.equal(stacked["2.bias"][1], 2 * net[2].bias)


def test_buffers_travel_whole() -> None:
    net, other = _net(), _net()
    net(torch.randn(4, 2))
    layout = ModelLayout.of(net)
    layout.write_buffers(other, layout.read_buffers(net))
    for name, value in net.named_buffers():
        assert torch.equal(other.get_buffer(name), value)
    views = layout.buffer_views(layout.read_buffers(net))
    assert views["1.num_batches_tracked"].dtype == torch.int64
    layout.write_buffers(other, layout.read_buffers(net) + 0.6)
    assert int(other[1].num_batches_tracked) == 2


def test_reading_can_keep_the_graph() -> None:
    net = _net()
    layout = ModelLayout.of(net)
    layout.read(net, detach=False).sum().backward()
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in net.parameters())
    assert not layout.read(net).requires_grad


def test_frozen_parameters_stay_outside_and_tied_ones_count_once() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    net[0].requires_grad_(False)
    net[2].weight = net[1].weight
    assert ModelLayout.of(net).names == ("1.weight", "1.bias", "2.bias")


def test_segments_join_neighbours_and_match_the_mask() -> None:
    layout = ModelLayout.of(_net())
    chosen = [name.startswith("1.") or name == "0.bias" for name in layout.names]
    (segment,) = layout.segments(chosen)
    mask = layout.mask(chosen)
    assert torch.equal(mask.nonzero().flatten(), torch.arange(segment.start, segment.stop))
    split = [name.endswith("weight") for name in layout.names]
    rows = torch.randn(2, layout.size)
    assert torch.equal(gather(rows, layout.segments(split)), rows[:, layout.mask(split)])


class _Views(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        memory = torch.zeros(6)
        self.a, self.b = nn.Parameter(memory[:4]), nn.Parameter(memory[2:])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.ReLU(), "ReLU has no trainable parameter"),
        (_Views, "Parameters 'a' and 'b' are views of the same memory"),
        (lambda: nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1).double()), "give them one floating-point type"),
    ],
)
def test_networks_that_cannot_be_averaged_are_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelLayout.of(make())


def test_another_network_is_refused() -> None:
    layout = ModelLayout.of(_net())
    with pytest.raises(ValueError, match=r"'0.weight' should have the shape \(3, 2\), but the module has \(2, 3\)"):
        layout.read(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(3), nn.Linear(3, 2)))
    with pytest.raises(ValueError, match=r"'1.weight' should have the shape .* the module lacks it"):
        layout.read(nn.Sequential(nn.Linear(2, 3)))
