"""Learned weights inside a Trainer: equal to a loop by hand, and out of everyone's way."""

import csv
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_methods import Classifier, DataWeighting
from lit_methods.data_manipulation import (
    AtTheta,
    ForwardMode,
    Hypergradient,
    InverseFrequency,
    LastLayer,
    LazyAdam,
    LearnedWeights,
    MetaWeightNet,
    OptimizerStep,
    PlainGradient,
    RenReweighting,
    UniformWeights,
    WeightTable,
)
from lit_methods.data_manipulation.processes import gather, share_of, total
from lit_methods.data_manipulation.validation import ValidationStream
from tests.battery.state import plain
from tests.callbacks.weighting_toys import (
    B,
    N,
    Own,
    cross_entropy,
    data_weighting,
    fit,
    momentum_sgd,
    small_network,
    toy_classifier,
    toy_tensors,
    train_loader,
)
from tests.gloo import GlooPool, ddp_trainer_kwargs

pytestmark = pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no")  # toys without validation


@pytest.mark.parametrize("lookahead", ["training step", "plain gradient", "at theta", "last layer"])
def test_equals_a_loop_by_hand(lookahead: str) -> None:
    """The order of the two updates, written out with exact derivatives."""
    chosen = {
        "training step": Hypergradient(ForwardMode()),
        "plain gradient": Hypergradient(ForwardMode(), PlainGradient()),
        "at theta": Hypergradient(ForwardMode(), AtTheta()),
        "last layer": LastLayer(),
    }[lookahead]
    module, callback = toy_classifier(), data_weighting(hypergradient=chosen)
    fit(module, callback)

    network, table = small_network(), WeightTable(N)
    optimizer, (inputs, labels) = momentum_sgd(network.parameters()), toy_tensors()
    parameters = list(network.parameters())

    def gains(rows: Tensor, theta: list[Tensor], ahead: list[Tensor]) -> Tensor:
        now = [p.detach().clone() for p in parameters]
        for p, value in zip(parameters, ahead, strict=True):
            p.data.copy_(value)
        slope = torch.autograd.grad(cross_entropy(network(inputs[:8] * 0.9), labels[:8]), parameters)
        for p, value in zip(parameters, theta, strict=True):
            p.data.copy_(value)
        found = []
        for i in rows:
            own = torch.autograd.grad(cross_entropy(network(inputs[i][None]), labels[i][None]), parameters)
            products = [(a * b).sum() for a, b in zip(slope, own, strict=True)]
            found.append(0.3 * sum(products[-2:] if lookahead == "last layer" else products))
        for p, value in zip(parameters, now, strict=True):
            p.data.copy_(value)
        return torch.stack(found)

    for rows in torch.arange(N).split(B) * 2:
        theta = [p.detach().clone() for p in parameters]
        weights = table.weights(rows)
        losses = cross_entropy(network(inputs[rows]), labels[rows], reduction="none")
        after = lookahead in ("training step", "last layer")
        if not after:
            slope = torch.autograd.grad((losses * weights).mean(), parameters)
            step = 0.3 if lookahead == "plain gradient" else 0.0
            ahead = [p - step * g for p, g in zip(theta, slope, strict=True)]
            table.step(rows, weights, gains(rows, theta, ahead))
        optimizer.zero_grad()
        losses = cross_entropy(network(inputs[rows]), labels[rows], reduction="none")
        (losses * table.weights(rows)).mean().backward()
        optimizer.step()
        if after:
            table.step(rows, weights, gains(rows, theta, [p.detach().clone() for p in parameters]))
    torch.testing.assert_close(callback.weights(), table.weights(), rtol=1e-3, atol=1e-4)
    assert (table.weights() - 1).abs().max() > 0.05
    for found, expected in zip(module.network.parameters(), parameters, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("eval_mode", [True, False])
@pytest.mark.parametrize("name", ["difference", "plain gradient", "last layer", "optimizer step"])
def test_equal_weights_train_bit_for_bit_like_no_callback(name: str, eval_mode: bool) -> None:
    """The look-ahead runs in each step, on BatchNorm and Dropout, and leaves nothing behind."""
    hypergradient = {
        "difference": Hypergradient(),
        "plain gradient": Hypergradient(lookahead=PlainGradient()),
        "last layer": LastLayer(),
        "optimizer step": Hypergradient(lookahead=OptimizerStep()),
    }[name]
    alone, weighted = toy_classifier(norm=True), toy_classifier(norm=True)
    strategy = LearnedWeights(LazyAdam(0.0))
    callback = data_weighting(strategy=strategy, hypergradient=hypergradient, eval_mode=eval_mode)
    results = [fit(module, cb) for module, cb in ((alone, None), (weighted, callback))]
    assert strategy.table.moments.abs().sum() > 0
    assert plain(weighted.state_dict()) == plain(alone.state_dict())
    assert plain(results[0].optimizers[0].state_dict()) == plain(results[1].optimizers[0].state_dict())


def test_own_method_and_criterion_agree() -> None:
    module, own = toy_classifier(), Own()
    first, second = data_weighting(), data_weighting(criterion=None)
    fit(module, first)
    fit(own, second)
    torch.testing.assert_close(first.weights(), second.weights())
    assert module.loss.reduction == "mean"


def test_accumulated_batches_learn_from_one_training_step() -> None:
    module, callback = toy_classifier(), data_weighting()
    fit(module, callback, accumulate_grad_batches=2, max_epochs=3)
    table = callback.strategy.table
    assert table.visits.tolist() == [3] * N

    class Once(Hypergradient):
        calls = 0

        def gains(self, *arguments: Any) -> Any:
            Once.calls += 1
            return super().gains(*arguments)

    fit(toy_classifier(), data_weighting(hypergradient=Once()), accumulate_grad_batches=2, max_epochs=3)
    assert Once.calls == 3 * N // B // 2


def test_clipping_and_schedulers_work_on() -> None:
    def halving(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    module = Classifier(small_network(), 3, optimizer=momentum_sgd, scheduler=halving)
    trainer = fit(module, callback := data_weighting(), gradient_clip_val=0.1)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.3 / 4)
    assert callback.weights().std() > 0


@pytest.mark.parametrize("strategy", [RenReweighting(), MetaWeightNet(), InverseFrequency(), UniformWeights()])
def test_peers_run_with_the_same_arguments(strategy: Any) -> None:
    callback = data_weighting(strategy=strategy)
    fit(toy_classifier(), callback)
    assert callback.weights().shape == (N,)
    if isinstance(strategy, InverseFrequency):
        rows = toy_tensors()[1]
        counts = torch.bincount(rows).float()
        expected = torch.cat([B * (1 / counts[b]) / (1 / counts[b]).sum() for b in rows.split(B)])
        torch.testing.assert_close(callback.weights(), expected)


def test_strategies_without_gains_need_no_validation_set() -> None:
    callback = DataWeighting(strategy=InverseFrequency([3, 9, 12]), criterion="loss", warmup_epochs=0)
    fit(toy_classifier(), callback)
    assert callback.weights().isfinite().all()


def test_warm_up_turns_and_freezing() -> None:
    callback = data_weighting(warmup_epochs=1, freeze_after=3, every_n_steps=2)
    fit(toy_classifier(), callback, max_epochs=4)
    visits = callback.strategy.table.visits.reshape(N // B, B)[:, 0].tolist()
    assert visits == [1, 1, 1, 1]  # epochs 1 and 2, each batch once in turn


def test_what_is_shown_and_exported(tmp_path: Path) -> None:
    inputs = torch.rand(N, 1, 4, 4)
    labels = torch.arange(N) % 3
    loader = DataLoader(TensorDataset(inputs, labels, torch.arange(N)), B)
    module = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), 3)
    callback = DataWeighting(
        DataLoader(TensorDataset(inputs, labels), 8), criterion="loss", warmup_epochs=0, pictures=5
    )
    logger = CSVLogger(tmp_path, name="", version="")
    fit(module, callback, loader, logger=logger)
    for name in ("weights", "pictures"):
        assert (tmp_path / f"data_weighting_{name}.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "data_weighting_least.csv").open() as file:
        rows = list(csv.DictReader(file))
    order = callback.weights().argsort()[:5].tolist()
    assert [int(row["index"]) for row in rows] == order
    assert [int(row["label"]) for row in rows] == labels[order].tolist()
    logged = (tmp_path / "metrics.csv").read_text()
    assert "data_weighting/effective_sample_size" in logged
    assert "data_weighting/val_loss" in logged
    written = callback.export_csv(tmp_path / "new" / "weights.csv").read_text().splitlines()
    assert written[0] == "index,weight"
    assert [float(line.split(",")[1]) for line in written[1:]] == pytest.approx(callback.weights().tolist())


def test_index_of_another_form_is_read_by_a_function() -> None:
    inputs, labels = toy_tensors()
    loader = DataLoader(TensorDataset(torch.arange(N), inputs, labels), B)

    class Reordered(Own):
        def per_sample_loss(self, batch: Any) -> Tensor:
            return super().per_sample_loss(batch[-2:])

    callback = data_weighting(criterion=None, index_fn=lambda batch: batch[0])
    fit(Reordered(), callback, loader)
    assert callback.strategy.table.visits.tolist() == [2] * N


@pytest.mark.parametrize("kept", [8, 1], ids=["kept", "streamed"])
def test_validation_stream_goes_on_and_leaves_the_random_state(kept: int) -> None:
    loader = DataLoader(torch.arange(9), 3, shuffle=True)
    cpu, state = torch.device("cpu"), torch.get_rng_state()

    def stream() -> ValidationStream:
        return ValidationStream(loader, lambda batch: batch, cpu, seed=3, kept_batches=kept)

    whole = stream()
    batches = [whole.next().tolist() for _ in range(7)]
    assert sorted(chain(*batches[:3])) == sorted(chain(*batches[3:6])) == list(range(9))
    assert torch.equal(torch.get_rng_state(), state)
    if kept == 1:
        assert batches[:3] != batches[3:6]
    for at in (2, 3, 5):
        broken, resumed = stream(), stream()
        for _ in range(at):
            broken.next()
        torch.rand(5)
        resumed.load_state_dict(broken.state_dict())
        assert [resumed.next().tolist() for _ in range(7 - at)] == batches[at:]


def _two_ranks(rank: int, world_size: int) -> Any:
    """Shuffled shares of unequal numbers of examples, a fit each, and the table of each rank."""
    share = share_of(2 + rank, torch.device("cpu"))
    gathered = gather(torch.arange(2 + rank) + 10 * rank, share).tolist()
    counts = total(torch.ones(1 + rank, dtype=torch.int64)).tolist()
    callback = data_weighting()
    fit(toy_classifier(), callback, train_loader(3), **ddp_trainer_kwargs())
    return gathered, counts, share.scale, plain(callback.state_dict())


@pytest.mark.ddp
def test_both_processes_hold_the_same_table(gloo: GlooPool) -> None:
    first, second = gloo.run(_two_ranks)
    assert first[0] == second[0] == [0, 1, 10, 11, 12]
    assert first[1] == second[1] == [2, 1]
    assert (first[2], second[2]) == (0.8, 1.2)
    assert first[3] == second[3]
    assert first[3]["strategy"]["visits"] == [2] * N
