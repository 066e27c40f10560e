"""The peers against their papers' rules written as loops."""

from typing import Any

import pytest
import torch

from lit_methods.data_manipulation import (
    InverseFrequency,
    LearnedWeights,
    MetaWeightNet,
    RenReweighting,
    SampleBatch,
    UniformWeights,
)

CPU = torch.device("cpu")


def _batch(size: int = 4, **known: Any) -> SampleBatch:
    fields = {"index": None, "labels": None, "losses": None, **known}
    return SampleBatch(**fields, size=size, device=CPU)


def test_uniform() -> None:
    assert UniformWeights().weights(_batch(3)).tolist() == [1.0, 1.0, 1.0]


def test_ren_takes_the_positive_parts_once() -> None:
    ren = RenReweighting()
    assert ren.weights(_batch()).tolist() == [1.0] * 4
    ren.update(_batch(), torch.ones(4), torch.tensor([3.0, -1.0, 1.0, 0.0]) * 1e-9)
    assert ren.weights(_batch()).tolist() == pytest.approx([3.0, 0.0, 1.0, 0.0])
    assert ren.weights(_batch()).tolist() == [1.0] * 4


@pytest.mark.parametrize(("fallback", "expected"), [(False, 0.0), (True, 1.0)])
def test_ren_without_an_aligned_example(fallback: bool, expected: float) -> None:
    ren = RenReweighting(fallback)
    ren.update(_batch(), torch.ones(4), -torch.rand(4))
    assert ren.weights(_batch()).tolist() == [expected] * 4


def test_meta_weight_net_descends_the_validation_loss() -> None:
    strategy, losses, gains = MetaWeightNet(hidden=5, lr=0.01), torch.rand(4) * 3, torch.randn(4)
    strategy.start(9, None, CPU)
    twin = MetaWeightNet(hidden=5, lr=0.01)
    twin.start(9, None, CPU)
    batch = _batch(losses=losses)
    before = strategy.weights(batch)
    assert ((before > 0) & (before < 1)).all()
    loss = sum(-gain / 4 * twin.network(one[None])[0] for gain, one in zip(gains, losses, strict=True))
    loss.backward()
    twin.optimizer.step()
    strategy.update(batch, before, gains)
    for found, expected in zip(strategy.network.parameters(), twin.network.parameters(), strict=True):
        torch.testing.assert_close(found, expected)
    again = MetaWeightNet(hidden=5, lr=0.01)
    again.load_state_dict(strategy.state_dict())
    for one in (strategy, again):
        one.update(batch, before, -gains)
    torch.testing.assert_close(again.weights(batch), strategy.weights(batch), rtol=0, atol=0)


def test_meta_weight_net_starts_by_its_seed_alone() -> None:
    state = torch.get_rng_state()
    first, second = (MetaWeightNet(seed=4).network[0].weight for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("options", "raw"),
    [({}, [1 / 2, 1 / 8]), ({"power": 0.5}, [2**-0.5, 8**-0.5]), ({"beta": 0.5}, [2 / 3, 128 / 255])],
)
def test_inverse_frequency(options: dict[str, float], raw: list[float]) -> None:
    strategy, labels = InverseFrequency(**options), torch.tensor([0, 1, 1])
    strategy.start(10, torch.tensor([2, 8]), CPU)
    values = [raw[label] for label in labels.tolist()]
    expected = [3 * value / sum(values) for value in values]
    assert strategy.weights(_batch(3, labels=labels)).tolist() == pytest.approx(expected)


def test_learned_weights_start_anew() -> None:
    strategy, index = LearnedWeights(), torch.tensor([0, 1])
    strategy.start(3, None, CPU)
    strategy.update(_batch(2, index=index), torch.ones(2), torch.tensor([1.0, -1.0]))
    assert strategy.sample_weights().tolist() != [1.0] * 3
    strategy.start(3, None, CPU)
    assert strategy.sample_weights().tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InverseFrequency([]), "class_counts=\\[\\] must hold"),
        (lambda: InverseFrequency(beta=1.0), "beta=1.0 must lie in"),
        (lambda: InverseFrequency().start(3, None, CPU), "class_counts=None and no counts"),
        (lambda: InverseFrequency([1]).weights(_batch()), "labels=None, but InverseFrequency"),
        (lambda: MetaWeightNet().weights(_batch()), "losses=None, but MetaWeightNet"),
        (lambda: MetaWeightNet(hidden=0), "hidden=0 must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_an_unknown_class_is_refused() -> None:
    strategy = InverseFrequency([2, 2])
    strategy.start(4, None, CPU)
    with pytest.raises(ValueError, match="class_counts has 2 classes, but a batch has label 2"):
        strategy.weights(_batch(1, labels=torch.tensor([2])))
