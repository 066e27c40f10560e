"""The comparison on real data: its bookkeeping, and short runs on Fashion-MNIST against an independent evaluation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import _federated_experiment as experiment
from benchmarks import _federated_real as real
from benchmarks._harness import read_lines
from lit_methods.cli import main
from lit_methods.datamodules import BernoulliDirichletPartition, FederatedDataModule, HubImageDataModule
from lit_methods.datamodules.errors import DatasetNotFoundError
from lit_methods.federated import FedAvg, LocalOnly, SpectralCoDistillation, Strategy, VectorizedBackend
from lit_methods.federated.module import FederatedModule
from tests.federated.toys import trainer


@pytest.fixture
def fashion() -> str:
    try:
        experiment.read("fashion_mnist")
    except DatasetNotFoundError as error:
        pytest.skip(str(error))
    return "fashion_mnist"


def _stub(calls: list[int]) -> Callable[..., dict[str, float]]:
    def train(name: str, p: float, alpha: float, strategy: object, seed: int, **options: Any) -> dict[str, float]:
        calls.append(seed)
        return {"val/personal_acc": seed + p}

    return train


def test_all_methods_of_a_seed_run_before_the_next_seed() -> None:
    runs = list(real.plan(["fashion_mnist", "cifar10"], (0, 1)))
    count = len(experiment.METHODS)
    assert [run["method"] for run in runs[:count]] == list(experiment.METHODS)
    assert [run["seed"] for run in runs[: 3 * count : count]] == [0, 1, 0]
    assert [run["data"] for run in runs[:: count * 2]] == ["fashion_mnist"] * 3 + ["cifar10"] * 3


def test_interrupted_comparison_does_only_the_runs_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(real, "train", _stub(calls))
    path = tmp_path / "new" / "runs.jsonl"
    runs = list(real.plan(["fashion_mnist"], (0, 1)))
    real.work(runs[:5], path, hours=1.0)
    left = real.missing(runs, read_lines(path))
    assert left == runs[5:]
    real.work(left, path, hours=0.0)
    assert len(calls) == 5
    real.work(left, path, hours=1.0)
    assert real.missing(runs, read_lines(path)) == []
    assert len(calls) == len(runs) == len(path.read_text().splitlines())


def test_rows_are_means_and_sample_deviations_over_the_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real, "train", _stub([]))
    path = tmp_path / "runs.jsonl"
    real.work(list(real.plan(["fashion_mnist"], (0, 1, 2))), path, hours=1.0)
    rows = real.rows_of(read_lines(path))
    assert len(rows) == 3 * len(experiment.METHODS)
    assert {row["seeds"] for row in rows} == {3}
    mean, spread = rows[0]["val/personal_acc"]
    assert (mean, spread) == pytest.approx((1 + rows[0]["p"], 1.0))


def test_data_set_that_is_not_here_is_left_out_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> None:
        raise DatasetNotFoundError(name, ["nowhere"], "Install it.")

    monkeypatch.setattr(real, "read", absent)
    assert real.real_data(quick=True) == ({}, [])
    printed = capsys.readouterr().out
    assert "Fashion-MNIST is left out: fashion_mnist not found. Looked in: nowhere. Install it." in printed
    assert "CIFAR-10 is left out" in printed


def test_published_results_have_every_method_for_every_seed_of_a_row() -> None:
    done = read_lines(real.RESULTS)
    groups = {(run["data"], run["p"], run["alpha"], run["seed"]) for run in done}
    assert groups
    for data, p, alpha, seed in groups:
        cell = {"data": data, "p": p, "alpha": alpha, "seed": seed}
        assert sorted(run["method"] for run in done if cell.items() <= run.items()) == sorted(experiment.METHODS)


def _module(strategy: Strategy) -> FederatedModule:
    network = experiment.TASKS["fashion_mnist"].network()
    return FederatedModule(network, 10, strategy, participation=0.25, local_epochs=2, backend=VectorizedBackend())


@pytest.mark.data
def test_accuracies_equal_those_of_each_clients_own_network(fashion: str) -> None:
    data = experiment.clients(fashion, 0.3, 1.0, seed=0)
    module = _module(SpectralCoDistillation())
    run = trainer(2, check_val_every_n_epoch=2)
    run.fit(module, datamodule=data)
    test, federation = data.source.test_set, data.federation
    assert test is not None
    assert federation is not None
    images, labels = test.__getitems__(range(len(test)))
    expected = []
    for client in range(len(federation)):
        network = module.personal_network(client) if client in module.state.personal else module.network.eval()
        with torch.no_grad():
            right = (network(images).argmax(dim=1) == labels).double()
        in_class = [right[labels == c].mean() for c in range(10)]
        share = federation[client].labels.bincount(minlength=10) / len(federation[client])
        expected.append(float(sum(s * a for s, a in zip(share.double(), in_class, strict=True))))
    assert float(run.callback_metrics["val/personal_acc"]) == pytest.approx(sum(expected) / len(expected), abs=2e-3)
    assert float(run.callback_metrics["val/personal_acc_worst_tenth"]) == pytest.approx(
        sum(sorted(expected)[:2]) / 2, abs=5e-3
    )


@pytest.mark.data
def test_clients_hold_disjoint_training_images_and_tuning_uses_none_of_them(fashion: str) -> None:
    for p, alpha in experiment.SKEWS:
        data = experiment.clients(fashion, p, alpha, seed=0, tuning=True)
        data.setup()
        assert data.federation is not None
        parts = [client.positions for client in data.federation.clients]
        dealt = torch.cat(parts)
        assert len(dealt) == len(dealt.unique()) == experiment.TASKS[fashion].train_size
        assert min(map(len, parts)) >= 10
        classes = torch.stack([client.labels.bincount(minlength=10) > 0 for client in data.federation.clients])
        assert abs(float(classes.double().mean()) - p) < 0.15
        held_out = data.source.val_set
        assert held_out is not None
        assert data.val_dataloader().dataset is held_out
        assert len(held_out) == 2400


@pytest.mark.data
@pytest.mark.slow
def test_collaboration_helps_and_skew_separates_personal_from_generic_models(fashion: str) -> None:
    alone = experiment.train(fashion, 0.3, 1.0, LocalOnly(), seed=0, rounds=15)
    tuned = experiment.train(fashion, 0.3, 1.0, FedAvg(fine_tune_epochs=2), seed=0, rounds=15)
    assert tuned["val/generic_acc"] > 0.4
    assert tuned["val/personal_acc"] > tuned["val/generic_acc_local"] + 0.1
    assert tuned["val/personal_acc"] > alone["val/personal_acc"]


@pytest.mark.data
@pytest.mark.slow
def test_cifar10_is_dealt_out_whole_at_each_skew(data_root: Path, tmp_path: Path) -> None:
    source = HubImageDataModule(data_dir=data_root / "cifar10", cache_dir=tmp_path, val_fraction=0.0)
    for p, alpha in experiment.SKEWS:
        data = FederatedDataModule(source, 100, BernoulliDirichletPartition(p, alpha))
        data.setup()
        assert data.federation is not None
        counts = data.federation.class_counts(10)
        assert counts.sum(dim=0).tolist() == [5000] * 10
        assert int(counts.sum(dim=1).min()) >= 1
        assert float((counts > 0).double().mean()) == pytest.approx(p, abs=0.06)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10"])
def test_config_runs_on_local_files(
    name: str, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = experiment.TASKS[name].source()
    try:
        source.setup("test")
    except DatasetNotFoundError as error:
        pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)
    small = ["--data.train_size=4000", "--data.eval_batch_size=64", "--model.clients_per_round=2"]
    main(["fit", "-c", f"federated/{name}.yaml", "--trainer.fast_dev_run=1", "--trainer.accelerator=cpu", *small])
    assert "val/personal_acc" in capsys.readouterr().out
