"""Modules, loaders, arguments and checkpoints that learned weights cannot work with are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from lit_methods import DataWeighting
from lit_methods.data_manipulation import Hypergradient, LazyAdam, LearnedWeights, RenReweighting
from tests.battery.state import plain
from tests.callbacks.weighting_toys import (
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
    val_loader,
)

pytestmark = pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no")  # toys without validation


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
            return [momentum_sgd(self.network[0].parameters()), momentum_sgd(self.network[2].parameters())]

    with pytest.raises(MisconfigurationException, match=r"has 2 optimizers. Name the one"):
        fit(Two(), data_weighting(criterion=None))
    with pytest.raises(MisconfigurationException, match="optimizer=2 names none of the module's 2"):
        fit(Two(), data_weighting(criterion=None, optimizer=2))
    fit(Two(), callback := data_weighting(criterion=None, optimizer=1))
    assert callback.weights().std() > 0


def test_weights_before_a_fit() -> None:
    with pytest.raises(RuntimeError, match=r"call Trainer\.fit with this callback first"):
        DataWeighting().weights()


def test_collapsing_weights_are_reported() -> None:
    callback = data_weighting(strategy=LearnedWeights(LazyAdam(30.0)), min_effective_sample_size=0.5)
    with pytest.warns(UserWarning, match=r"left an effective sample size of 0\.\d+ of the batch \(0\.\d+ where one"):
        fit(toy_classifier(), callback, max_epochs=3)


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
        self.seen, self.network = MeanMetric(), small_network()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return momentum_sgd(self.parameters())


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
    callback = DataWeighting(**{"val_dataloader": val_loader(), "criterion": "loss", "warmup_epochs": 0, **options})
    with pytest.raises(error, match=message):
        fit(made, callback)
    assert module is Unused or plain(made.state_dict()) == before


def test_loaders_that_cannot_work_are_refused() -> None:
    empty = DataLoader(TensorDataset(*(tensor[:0] for tensor in toy_tensors())), 4)
    with pytest.raises(ValueError, match="val_dataloader yields no batch"):
        fit(toy_classifier(), DataWeighting(empty, N, criterion="loss"))
    with pytest.raises(ValueError, match="has no index of its examples"):
        fit(toy_classifier(), data_weighting(), train_loader(index=False))
    with pytest.raises(MisconfigurationException, match="takes the Trainer's validation loader, but there is"):
        fit(toy_classifier(), DataWeighting(None, N, criterion="loss"), limit_val_batches=0)


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
    first = data_weighting()
    trainer = fit(toy_classifier(), first, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    second = DataWeighting(val_loader(), N + 1, criterion="loss")
    quiet = Trainer(accelerator="cpu", logger=False, callbacks=[second], enable_checkpointing=False, max_epochs=2)
    with pytest.raises(ValueError, match=f"has weights of {N} examples, but num_samples={N + 1}"):
        quiet.fit(toy_classifier(), train_loader(), ckpt_path=tmp_path / "one.ckpt")
