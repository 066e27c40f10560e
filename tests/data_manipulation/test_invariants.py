"""Card 8.2: what a step of the weights must and must not do."""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_methods.data_manipulation import (
    AtTheta,
    DecayingStep,
    DoubleBackward,
    FiniteDifference,
    ForwardMode,
    Hypergradient,
    LastLayer,
    LazyAdam,
    Linear,
    NormalizedStep,
    OptimizerStep,
    PerSampleGradients,
    PlainGradient,
    PlainStep,
    Problem,
    Softmax,
    WeightTable,
)
from lit_methods.data_manipulation.problem import ModesKept, random_state_kept
from tests.data_manipulation.networks import NETWORKS, Toy

HYPERGRADIENTS: dict[str, Any] = {
    "difference": lambda toy: Hypergradient(FiniteDifference(), PlainGradient()),
    "difference at theta": lambda toy: Hypergradient(),
    "jvp": lambda toy: Hypergradient(ForwardMode(), PlainGradient()),
    "double backward": lambda toy: Hypergradient(DoubleBackward(), PlainGradient()),
    "per sample": lambda toy: Hypergradient(PerSampleGradients(), PlainGradient()),
    "optimizer step": lambda toy: Hypergradient(lookahead=OptimizerStep(toy.optimizer)),
    "last layer": lambda toy: LastLayer(),
}
STEPS = [LazyAdam(0.1), NormalizedStep(0.1), PlainStep(0.5)]


def _everything(toy: Toy) -> list[Any]:
    """All that a look-ahead could disturb."""
    network = toy.network
    tensors = [*network.state_dict().values(), *(p.grad for p in network.parameters() if p.grad is not None)]
    states = [v for state in toy.optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    return [
        *(tensor.detach().tolist() for tensor in [*tensors, *states]),
        [p.data_ptr() for p in network.parameters()],
        [module.training for module in network.modules()],
        [p.grad is None for p in network.parameters()],
        torch.get_rng_state().tolist(),
    ]


@pytest.mark.parametrize("kind", ["BatchNorm and Dropout", "MLP", "tied weights"])
@pytest.mark.parametrize("name", HYPERGRADIENTS)
def test_a_step_leaves_everything_as_it_was(name: str, kind: str) -> None:
    toy = Toy(kind, optimizer=lambda p: torch.optim.Adam(p, lr=0.1))
    toy.network.train()
    toy.losses().mean().backward()
    toy.optimizer.step()
    toy.losses().mean().backward()
    list(toy.network.modules())[-1].eval()
    before = _everything(toy)
    with random_state_kept(torch.device("cpu")), ModesKept(toy.network):
        gains = HYPERGRADIENTS[name](toy).gains(toy.problem(), toy.weights).values
    assert gains.abs().sum() > 0
    assert _everything(toy) == before


def test_gradients_require_none_themselves_not_even_of_unused_parameters() -> None:  # as they do on torch 2.9
    network = nn.ModuleList([nn.Linear(3, 1), nn.Linear(3, 1)])
    problem = Problem(
        network, Tensor, lambda: network[0](torch.ones(3)).sum(), [{"params": network.parameters(), "lr": 1}]
    )
    gradient = problem.gradient(problem.val_loss())
    assert gradient[2].count_nonzero() == 0
    assert not any(each.requires_grad for each in gradient)


@pytest.mark.parametrize("in_place", [False, True])
def test_parameters_go_along_a_direction_to_its_other_side_and_return(in_place: bool) -> None:
    toy = Toy("MLP")
    problem = toy.problem()
    start, copies, direction = (
        [f(p.data) for p in problem.parameters] for f in (torch.clone, torch.clone, torch.randn_like)
    )
    before = _everything(toy)
    with problem.at(copies) if in_place else nullcontext(), problem.along(direction, 0.5) as to_other_side:
        for side in (0.5, -0.5):
            for parameter, value, step in zip(problem.parameters, start, direction, strict=True):
                torch.testing.assert_close(parameter.data, value + side * step)
            to_other_side()
    assert _everything(toy) == before
    moved = any(not torch.equal(own, value) for own, value in zip(copies, start, strict=True))
    assert moved == in_place, "a copy is overwritten, which saves the memory of another"


def test_parameters_return_after_an_exception() -> None:
    toy = Toy("MLP")
    before = _everything(toy)
    problem = toy.problem()
    with pytest.raises(ZeroDivisionError), problem.along(problem.parameters, 1.0):
        raise ZeroDivisionError
    assert _everything(toy) == before


@pytest.mark.parametrize("step", STEPS, ids=lambda step: type(step).__name__)
def test_shifted_and_permuted_tables_move_alike(step: Any) -> None:
    gains, index = torch.randn(6), torch.tensor([4, 0, 9, 2, 7, 5])
    tables = [WeightTable(10, step, initial=initial) for initial in (0.0, 2.5)]
    for table, order in zip(tables, (torch.arange(6), torch.randperm(6)), strict=True):
        for _ in range(3):
            table.step(index[order], table.weights(index[order]), gains[order])
    torch.testing.assert_close(tables[1].phi - 2.5, tables[0].phi, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tables[1].weights(index), tables[0].weights(index), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("step", [*STEPS, DecayingStep()], ids=lambda step: type(step).__name__)
def test_only_rows_of_the_batch_change(step: Any) -> None:
    table, index = WeightTable(10, step, initial=1.0), torch.tensor([1, 8, 3])
    table.step(index, table.weights(index), torch.tensor([1.0, -2.0, 0.5]))
    untouched = [i for i in range(10) if i not in index.tolist()]
    assert (table.phi[untouched] == 1.0).all()
    assert (table.moments[:, untouched] == 0).all()
    assert (table.phi[index] != 1.0).all()
    assert table.visits.tolist() == [int(i in index.tolist()) for i in range(10)]


def test_weights_are_positive_and_of_mean_one() -> None:
    table, index = WeightTable(20, LazyAdam(1.0)), torch.arange(20)
    for _ in range(30):
        table.step(index, table.weights(), torch.randn(20))
        assert (table.weights() >= 0).all()
        assert float(table.weights().mean()) == pytest.approx(1.0)


def test_a_row_that_appears_twice_takes_one_step_along_the_sum() -> None:
    twice, index = WeightTable(4, PlainStep(1.0)), torch.tensor([2, 0, 2])
    gains = torch.tensor([1.0, -1.0, 3.0])
    gradient = Softmax().gradient(twice.weights(index), gains)
    twice.step(index, twice.weights(index), gains)
    assert twice.phi.tolist() == pytest.approx([-float(gradient[1]), 0.0, -float(gradient[0] + gradient[2]), 0.0])
    assert twice.visits.tolist() == [1, 0, 1, 0]


def test_a_copy_of_the_validation_example_helps_and_its_flipped_copy_harms() -> None:
    torch.manual_seed(0)
    model, example = nn.Linear(3, 1), torch.randn(1, 3)
    inputs = torch.cat([example, example, torch.randn(4, 3)])
    labels = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    loss = nn.functional.binary_cross_entropy_with_logits
    problem = Problem(
        model,
        lambda: loss(model(inputs)[:, 0], labels, reduction="none"),
        lambda: loss(model(example)[:, 0], torch.ones(1)),
        torch.optim.SGD(model.parameters(), lr=0.1).param_groups,
    )
    gains = Hypergradient(lookahead=AtTheta()).gains(problem).values
    assert gains[0] > 0 > gains[1]


@pytest.mark.parametrize("kind", ["MLP", "CNN with GroupNorm", "LSTM"])
def test_a_small_step_of_the_weights_lowers_the_validation_loss(kind: str) -> None:
    toy, table, index = Toy(kind, torch.float64), WeightTable(6, PlainStep(1.0)), torch.arange(6)

    def after(weights: torch.Tensor) -> float:
        problem = toy.problem()
        with problem.at(PlainGradient().step(problem, problem.gradient((toy.losses() * weights).mean()))):
            return toy.val_loss().item()

    weights = table.weights()
    table.step(index, weights, Hypergradient(lookahead=PlainGradient()).gains(toy.problem(), weights).values)
    assert after(table.weights()) < after(weights)


def test_state_goes_on() -> None:
    tables, index = [WeightTable(5) for _ in range(2)], torch.tensor([0, 3])
    for table in tables:
        table.step(index, table.weights(index), torch.tensor([1.0, 2.0]))
    again = WeightTable(5)
    again.load_state_dict(copy.deepcopy(tables[0].state_dict()))
    for table in (tables[1], again):
        table.step(index, table.weights(index), torch.tensor([-1.0, 1.0]))
    assert again.phi.tolist() == tables[1].phi.tolist()
    with pytest.raises(ValueError, match="The saved table holds 5 examples with 2 moments each, but 6 with 2"):
        WeightTable(6).load_state_dict(tables[0].state_dict())


def test_logits_stay_bounded() -> None:
    table, index = WeightTable(3, LazyAdam(1.0), max_logit=0.5), torch.arange(3)
    for _ in range(5):
        table.step(index, table.weights(), torch.tensor([1.0, 0.0, -1.0]))
    assert table.phi.abs().max() == 0.5


def test_the_published_rule() -> None:
    table, index, expected = WeightTable(3, DecayingStep(2.0), Linear(), 1.0), torch.arange(3), [1.0, 1.0, 1.0]
    for gains in ([0.2, -0.9, 0.0], [0.1, 0.1, -2.0]):
        table.step(index, table.weights(), torch.tensor(gains))
        expected = [max(w / 2.0 + gain, 1e-5) for w, gain in zip(expected, gains, strict=True)]
    assert table.phi.tolist() == pytest.approx(expected)
    assert table.weights().tolist() == pytest.approx([3 * w / sum(expected) for w in expected])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightTable(0), "num_samples=0 must be at least 1"),
        (lambda: WeightTable(1, max_logit=0), "max_logit=0 must be above 0"),
        (lambda: LazyAdam(-1.0), r"lr=-1.0 must be at least 0"),
        (lambda: LazyAdam(betas=(1.0, 0.5)), r"betas=\(1.0, 0.5\) must lie in \[0, 1\)"),
        (lambda: Softmax(0.0), "temperature=0.0 must be above 0"),
        (lambda: DecayingStep(0.5), "decay=0.5 must be at least 1"),
        (lambda: PlainStep(-2.0), "lr=-2.0"),
        (lambda: NormalizedStep(-2.0), "lr=-2.0"),
    ],
)
def test_bad_arguments_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_every_kind_of_network_is_covered() -> None:
    assert {"LSTM", "EmbeddingBag", "TransformerEncoderLayer", "tied weights", "BatchNorm and Dropout"} <= set(NETWORKS)
