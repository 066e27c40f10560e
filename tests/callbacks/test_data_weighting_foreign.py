"""Learned weights in modules and loaders that were written without them in mind: right, or refused."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from lit_methods import DataWeighting
from lit_methods.data_manipulation import ForwardMode, Hypergradient, LazyAdam, LearnedWeights, weighted_mean
from lit_methods.data_manipulation.figures import examples_at, image_of, label_of
from lit_methods.datamodules import IndexedDataset
from tests.callbacks.weighting_toys import (
    B,
    N,
    Own,
    data_weighting,
    fit,
    momentum_sgd,
    small_network,
    toy_tensors,
    val_loader,
)

pytestmark = pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no")  # toys without validation


class Foreign(LightningModule):
    """As most are written: a loss module, and a second argument of any name."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.loss = small_network(), nn.CrossEntropyLoss()

    def training_step(self, batch: Any, _: int) -> Tensor:
        loss = self.loss(self.network(batch[0]), batch[1])
        self.log_dict({"train/loss": loss})
        return loss

    def configure_optimizers(self) -> Any:
        return momentum_sgd(self.parameters())


class Star(Foreign):
    def training_step(self, *arguments: Any) -> Tensor:
        return super().training_step(arguments[0], arguments[1])


class Alone(Foreign):
    def training_step(self, batch: Any) -> Tensor:
        return super().training_step(batch, 0)


@pytest.mark.parametrize("module", [Foreign, Star, Alone])
def test_any_signature_of_the_training_step(module: type[Foreign]) -> None:
    found, own = data_weighting(), data_weighting(criterion=None)
    fit(module(), found)
    fit(Own(), own)
    torch.testing.assert_close(found.weights(), own.weights())


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_validation_batches_have_the_trainers_precision(precision: Any) -> None:
    weights = []
    for chosen in ("32-true", precision):
        callback = data_weighting(hypergradient=Hypergradient(ForwardMode()))
        fit(Foreign(), callback, precision=chosen)
        weights.append(callback.weights())
    tolerance = 1e-3 if precision == "64-true" else 0.3
    torch.testing.assert_close(weights[1], weights[0], rtol=tolerance, atol=tolerance)
    assert (weights[1] - 1).abs().max() > 0.05


class Twice(Foreign):
    def training_step(self, batch: Any, _: int) -> Tensor:
        outputs = self.network(batch[0])
        return self.loss(outputs, batch[1]) + self.loss(outputs, 2 - batch[1])


class Manual(Foreign):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, _: int) -> None:
        optimizer: Any = self.optimizers()
        self.manual_backward(self.network(batch[0]).square().mean())
        optimizer.step()
        self.manual_backward(self.loss(self.network(batch[0]), batch[1]))


class OtherDraws(Foreign):
    def training_step(self, batch: Any, _: int) -> Tensor:
        noise = torch.from_numpy(np.random.default_rng().normal(size=batch[0].shape)).float()
        return self.loss(self.network(batch[0] + noise), batch[1])


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Twice, r"calls criterion='loss' 2 times, of which the weights would see the first only"),
        (Manual, "takes a backward pass before the criterion, so that each look-ahead would train"),
        (OtherDraws, "Two passes over one training batch give different losses"),
    ],
)
def test_steps_that_a_look_ahead_would_get_wrong_are_refused(module: type[Foreign], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        fit(module(), data_weighting())


def test_a_closure_that_runs_more_than_once_is_no_second_loss() -> None:
    class Quasi(Foreign):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

    callback = data_weighting()
    fit(Quasi(), callback)
    assert callback.weights().std() > 0


@pytest.mark.parametrize("eval_mode", [True, False])
def test_noise_of_the_module_is_alike_on_both_sides_of_a_difference(eval_mode: bool) -> None:
    """Two passes with unlike noise would differ by more than the parameters were moved."""

    class Noisy(Own):
        def per_sample_loss(self, batch: Any) -> Tensor:
            return nn.functional.cross_entropy(
                self.network(batch[0] + torch.randn_like(batch[0])), batch[1], reduction="none"
            )

    weights = []
    for hypergradient in (Hypergradient(), Hypergradient(ForwardMode())):
        callback = data_weighting(criterion=None, hypergradient=hypergradient, eval_mode=eval_mode)
        fit(Noisy(), callback)
        weights.append(callback.weights())
    torch.testing.assert_close(weights[0], weights[1], rtol=2e-2, atol=2e-2)
    assert (weights[0] - 1).abs().max() > 0.05


def test_noise_of_the_look_ahead_differs_from_step_to_step() -> None:
    draws = []

    class Noisy(Own):
        def per_sample_loss(self, batch: Any) -> Tensor:
            draws.append(float(torch.rand(())))
            return super().per_sample_loss(batch)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return weighted_mean(self, Own.per_sample_loss(self, batch))

    fit(Noisy(), data_weighting(criterion=None), max_epochs=1)
    assert len(draws) == 2 + 3 * N // B
    assert len(set(draws[2:])) == N // B


def _rounds() -> Iterator[Any]:
    for _ in range(12):
        yield from val_loader()


def test_a_validation_loader_that_ends_for_good_is_refused() -> None:
    with pytest.raises(ValueError, match=r"val_dataloader=generator can be read once only"):
        fit(Foreign(), DataWeighting(_rounds(), N, criterion="loss"))


def test_a_small_batch_can_collapse_too() -> None:
    """One example of six leaves 0.17 of the batch, above the bound of 0.1."""
    callback = data_weighting(strategy=LearnedWeights(LazyAdam(300.0)))
    with pytest.warns(UserWarning, match=r"of 0\.1\d+ of the batch \(0\.0\d+ where one example alone counts as 0\)"):
        fit(Foreign(), callback, max_epochs=4)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from zip(*toy_tensors(), range(N), strict=True)


class Rows(Dataset[Any]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        return {"image": torch.full((1, 2, 2), float(i)), "x": toy_tensors()[0][i], "label": float(i) + 0.5}


def _parts() -> list[Any]:
    indexed = IndexedDataset(TensorDataset(*toy_tensors()))
    return [Subset(indexed, range(N // 2, N)), Subset(indexed, range(N - 1, -1, -1)), Stream()]


@pytest.mark.parametrize("dataset", _parts(), ids=["second half", "reversed", "stream"])
def test_no_wrong_example_is_shown(dataset: Any, tmp_path: Path) -> None:
    callback = data_weighting()
    logger = CSVLogger(tmp_path, name="", version="")
    fit(Foreign(), callback, DataLoader(dataset, B), logger=logger)
    with (tmp_path / "data_weighting_least.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == callback.weights().argsort(stable=True)[:16].tolist()
    assert {row["label"] for row in rows} == {""}


def test_examples_are_read_by_their_own_index() -> None:
    rows = IndexedDataset(Rows())
    found = examples_at(rows, [3, 1], None)
    assert [label_of(example) for example in found] == ["3.5", "1.5"]
    assert [float(image_of(example).mean()) for example in found] == [3.0, 1.0]
    assert examples_at(rows, [3, 1], lambda batch: batch["index"] + 1) == [None, None]
    assert examples_at(TensorDataset(torch.arange(4)), [2], None) == [(torch.tensor(2),)]
    assert examples_at(None, [2], None) == [None]
