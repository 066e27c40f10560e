"""Learned weights inside a Trainer: equal to a loop by hand, out of everyone's way, and refusing what cannot work."""

import csv
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

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
    weighted_mean,
)
from lit_methods.data_manipulation.processes import gather, share_of, total
from lit_methods.data_manipulation.validation import ValidationStream
from tests.battery.state import plain
from tests.gloo import GlooPool, ddp_trainer_kwargs

N, B = 24, 6
cross_entropy = nn.functional.cross_entropy
pytestmark = pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no")


def _tensors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(N, 4, generator=generator)
    return inputs, (inputs @ torch.randn(4, 3, generator=generator)).argmax(1)


def _train(batch_size: int = B, index: bool = True) -> DataLoader:
    inputs, labels = _tensors()
    rows = (torch.arange(N),) if index else ()
    return DataLoader(TensorDataset(inputs, labels, *rows), batch_size)


def _val() -> DataLoader:
    inputs, labels = _tensors()
    return DataLoader(TensorDataset(inputs[:8] * 0.9, labels[:8]), 8)


def _network(norm: bool = False) -> nn.Module:
    torch.manual_seed(1)
    middle = [nn.BatchNorm1d(6), nn.Dropout(0.3)] if norm else []
    return nn.Sequential(nn.Linear(4, 6), *middle, nn.ReLU(), nn.Linear(6, 3))


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.3, momentum=0.5)


def _classifier(norm: bool = False) -> Classifier:
    return Classifier(_network(norm), 3, optimizer=_sgd)


class Own(LightningModule):
    """A module with a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.network = _network()

    def per_sample_loss(self, batch: Any) -> Tensor:
        return cross_entropy(self.network(batch[0]), batch[1], reduction="none")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return weighted_mean(self, self.per_sample_loss(batch))

    def configure_optimizers(self) -> Any:
        return _sgd(self.parameters())


def _weighting(**options: Any) -> DataWeighting:
    return DataWeighting(_val(), N, **{"criterion": "loss", "warmup_epochs": 0, **options})


def _fit(module: LightningModule, callback: DataWeighting | None, loader: Any = None, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    quiet |= {"enable_model_summary": False, "max_epochs": 2, "devices": 1}
    trainer = Trainer(callbacks=[callback] if callback else [], **{**quiet, **options})
    torch.manual_seed(5)
    trainer.fit(module, _train() if loader is None else loader)
    return trainer


@pytest.mark.parametrize("lookahead", ["training step", "plain gradient", "at theta", "last layer"])
def test_equals_a_loop_by_hand(lookahead: str) -> None:
    """The order of the two updates, written out with exact derivatives."""
    chosen = {
        "training step": Hypergradient(ForwardMode()),
        "plain gradient": Hypergradient(ForwardMode(), PlainGradient()),
        "at theta": Hypergradient(ForwardMode(), AtTheta()),
        "last layer": LastLayer(),
    }[lookahead]
    module, callback = _classifier(), _weighting(hypergradient=chosen)
    _fit(module, callback)

    network, table = _network(), WeightTable(N)
    optimizer, (inputs, labels) = _sgd(network.parameters()), _tensors()
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
    alone, weighted = _classifier(norm=True), _classifier(norm=True)
    strategy = LearnedWeights(LazyAdam(0.0))
    callback = _weighting(strategy=strategy, hypergradient=hypergradient, eval_mode=eval_mode)
    results = [_fit(module, cb) for module, cb in ((alone, None), (weighted, callback))]
    assert strategy.table.moments.abs().sum() > 0
    assert plain(weighted.state_dict()) == plain(alone.state_dict())
    assert plain(results[0].optimizers[0].state_dict()) == plain(results[1].optimizers[0].state_dict())


def test_own_method_and_criterion_agree() -> None:
    module, own = _classifier(), Own()
    first, second = _weighting(), _weighting(criterion=None)
    _fit(module, first)
    _fit(own, second)
    torch.testing.assert_close(first.weights(), second.weights())
    assert module.loss.reduction == "mean"


def test_accumulated_batches_learn_from_one_training_step() -> None:
    module, callback = _classifier(), _weighting()
    _fit(module, callback, accumulate_grad_batches=2, max_epochs=3)
    table = callback.strategy.table
    assert table.visits.tolist() == [3] * N

    class Once(Hypergradient):
        calls = 0

        def gains(self, *arguments: Any) -> Any:
            Once.calls += 1
            return super().gains(*arguments)

    _fit(_classifier(), _weighting(hypergradient=Once()), accumulate_grad_batches=2, max_epochs=3)
    assert Once.calls == 3 * N // B // 2


def test_clipping_and_schedulers_work_on() -> None:
    def halving(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    module = Classifier(_network(), 3, optimizer=_sgd, scheduler=halving)
    trainer = _fit(module, callback := _weighting(), gradient_clip_val=0.1)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.3 / 4)
    assert callback.weights().std() > 0


@pytest.mark.parametrize("strategy", [RenReweighting(), MetaWeightNet(), InverseFrequency(), UniformWeights()])
def test_peers_run_with_the_same_arguments(strategy: Any) -> None:
    callback = _weighting(strategy=strategy)
    _fit(_classifier(), callback)
    assert callback.weights().shape == (N,)
    if isinstance(strategy, InverseFrequency):
        rows = _tensors()[1]
        counts = torch.bincount(rows).float()
        expected = torch.cat([B * (1 / counts[b]) / (1 / counts[b]).sum() for b in rows.split(B)])
        torch.testing.assert_close(callback.weights(), expected)


def test_strategies_without_gains_need_no_validation_set() -> None:
    callback = DataWeighting(strategy=InverseFrequency([3, 9, 12]), criterion="loss", warmup_epochs=0)
    _fit(_classifier(), callback)
    assert callback.weights().isfinite().all()


def test_warm_up_turns_and_freezing() -> None:
    callback = _weighting(warmup_epochs=1, freeze_after=3, every_n_steps=2)
    _fit(_classifier(), callback, max_epochs=4)
    visits = callback.strategy.table.visits.reshape(N // B, B)[:, 0].tolist()
    assert visits == [1, 1, 1, 1]  # epochs 1 and 2, each batch once in turn


def test_two_optimizers_take_a_name() -> None:
    class Two(Own):
        automatic_optimization = False

        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()
            return loss

        def configure_optimizers(self) -> Any:
            return [_sgd(self.network[0].parameters()), _sgd(self.network[2].parameters())]

    with pytest.raises(MisconfigurationException, match=r"has 2 optimizers. Name the one"):
        _fit(Two(), _weighting(criterion=None))
    with pytest.raises(MisconfigurationException, match="optimizer=2 names none of the module's 2"):
        _fit(Two(), _weighting(criterion=None, optimizer=2))
    _fit(Two(), callback := _weighting(criterion=None, optimizer=1))
    assert callback.weights().std() > 0


def test_what_is_shown_and_exported(tmp_path: Path) -> None:
    inputs = torch.rand(N, 1, 4, 4)
    labels = torch.arange(N) % 3
    loader = DataLoader(TensorDataset(inputs, labels, torch.arange(N)), B)
    module = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), 3)
    callback = DataWeighting(
        DataLoader(TensorDataset(inputs, labels), 8), criterion="loss", warmup_epochs=0, pictures=5
    )
    logger = CSVLogger(tmp_path, name="", version="")
    _fit(module, callback, loader, logger=logger)
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


def test_weights_before_a_fit() -> None:
    with pytest.raises(RuntimeError, match=r"call Trainer\.fit with this callback first"):
        DataWeighting().weights()


def test_collapsing_weights_are_reported() -> None:
    callback = _weighting(strategy=LearnedWeights(LazyAdam(30.0)), min_effective_sample_size=0.5)
    with pytest.warns(UserWarning, match=r"left an effective sample size of 0\.\d+ of the batch \(0\.\d+ where one"):
        _fit(_classifier(), callback, max_epochs=3)


class Scalar(Own):
    def per_sample_loss(self, batch: Any) -> Tensor:
        return super().per_sample_loss(batch).mean()


class Unused(Own):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.per_sample_loss(batch).mean()


class Nothing(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.loss = nn.CrossEntropyLoss()
        self.seen, self.network = MeanMetric(), _network()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return _sgd(self.parameters())


class Metric(Nothing):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen(1.0)
        return self.loss(self.network(batch[0]), batch[1])


class ClassWeights(Nothing):
    def __init__(self) -> None:
        super().__init__()
        self.loss = nn.CrossEntropyLoss(weight=torch.ones(3))


BAD: list[tuple[type[Exception], str, Any, Any]] = [
    (ValueError, r"per_sample_loss of Scalar gives \(\), but one loss per example", Scalar, {"criterion": None}),
    (MisconfigurationException, "did not ask for the weights", Unused, {"criterion": None}),
    (MisconfigurationException, "has no method per_sample_loss", Nothing, {"criterion": None}),
    (MisconfigurationException, "does not call its CrossEntropyLoss", Nothing, {}),
    (MisconfigurationException, "updates a metric before the criterion", Metric, {}),
    (MisconfigurationException, "criterion='loss' has class weights", ClassWeights, {}),
    (MisconfigurationException, r"criterion='lost' names no submodule of Own.*it has \[\]", Own, {"criterion": "lost"}),
    (ValueError, "has the index 5, but num_samples=3 allows 0 to 2", Own, {"criterion": None, "num_samples": 3}),
]


@pytest.mark.parametrize(("error", "message", "module", "options"), BAD)
def test_what_cannot_work_is_refused(error: type[Exception], message: str, module: Any, options: Any) -> None:
    made = module()
    before = plain(made.state_dict())
    callback = DataWeighting(**{"val_dataloader": _val(), "criterion": "loss", "warmup_epochs": 0, **options})
    with pytest.raises(error, match=message):
        _fit(made, callback)
    assert module is Unused or plain(made.state_dict()) == before


def test_loaders_that_cannot_work_are_refused() -> None:
    empty = DataLoader(TensorDataset(*(tensor[:0] for tensor in _tensors())), 4)
    with pytest.raises(ValueError, match="val_dataloader yields no batch"):
        _fit(_classifier(), DataWeighting(empty, N, criterion="loss"))
    with pytest.raises(ValueError, match="has no index of its examples"):
        _fit(_classifier(), _weighting(), _train(index=False))
    with pytest.raises(MisconfigurationException, match="takes the Trainer's validation loader, but there is"):
        _fit(_classifier(), DataWeighting(None, N, criterion="loss"), limit_val_batches=0)


def test_index_of_another_form_is_read_by_a_function() -> None:
    inputs, labels = _tensors()
    loader = DataLoader(TensorDataset(torch.arange(N), inputs, labels), B)

    class Reordered(Own):
        def per_sample_loss(self, batch: Any) -> Tensor:
            return super().per_sample_loss(batch[-2:])

    callback = _weighting(criterion=None, index_fn=lambda batch: batch[0])
    _fit(Reordered(), callback, loader)
    assert callback.strategy.table.visits.tolist() == [2] * N


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"every_n_steps": 0}, ValueError, "every_n_steps=0 must be at least 1"),
        ({"num_samples": 0}, ValueError, "num_samples=0 must be at least 1"),
        ({"warmup_epochs": -1}, ValueError, "warmup_epochs=-1 must be at least 0"),
        ({"min_effective_sample_size": 1.0}, ValueError, "min_effective_sample_size=1.0 must lie in"),
        (
            {"strategy": RenReweighting(), "every_n_steps": 2},
            MisconfigurationException,
            "batch's weights of its own",
        ),
        (
            {"strategy": RenReweighting(), "hypergradient": Hypergradient()},
            MisconfigurationException,
            "strategy=RenReweighting makes each batch's weights",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DataWeighting(**options)


def test_a_checkpoint_of_another_training_set_is_refused(tmp_path: Path) -> None:
    first = _weighting()
    trainer = _fit(_classifier(), first, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    second = DataWeighting(_val(), N + 1, criterion="loss")
    quiet = Trainer(accelerator="cpu", logger=False, callbacks=[second], enable_checkpointing=False, max_epochs=2)
    with pytest.raises(ValueError, match=f"has weights of {N} examples, but num_samples={N + 1}"):
        quiet.fit(_classifier(), _train(), ckpt_path=tmp_path / "one.ckpt")


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
    callback = _weighting()
    _fit(_classifier(), callback, _train(3), **ddp_trainer_kwargs())
    return gathered, counts, share.scale, plain(callback.state_dict())


@pytest.mark.ddp
def test_both_processes_hold_the_same_table(gloo: GlooPool) -> None:
    first, second = gloo.run(_two_ranks)
    assert first[0] == second[0] == [0, 1, 10, 11, 12]
    assert first[1] == second[1] == [2, 1]
    assert (first[2], second[2]) == (0.8, 1.2)
    assert first[3] == second[3]
    assert first[3]["strategy"]["visits"] == [2] * N
