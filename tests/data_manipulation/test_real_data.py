from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from lit_methods import Classifier, DataWeighting, TextClassifier
from lit_methods.backbones import SmallCNN
from lit_methods.bundled import find_config
from lit_methods.data_manipulation import LearnedWeights, NormalizedStep, TextNetwork
from lit_methods.datamodules import Degradation, HubImageDataModule, HubTextDataModule

pytestmark = pytest.mark.data

PROTOCOLS = {
    "sst5_low": ("sst5", [40] * 5, [2] * 5, [279, 633, 389, 510, 399]),
    "sst2_imbalance": ("sst2", [20, 1000], [10, 10], [912, 909]),
    "trec_low": ("trec", [40] * 6, [5] * 6, [138, 94, 9, 65, 113, 81]),
    "cifar10_imbalance": ("cifar10", [20, 1000], [10, 10], [1000, 1000]),
    "cifar10_low": ("cifar10", [40] * 10, [2] * 10, [1000] * 10),
}
MINORITIES = {"sst2_imbalance": (0.05, 50), "cifar10_imbalance": (0.1, 100)}


@pytest.fixture(autouse=True, scope="module")
def _pictures_decoded_once() -> Iterator[None]:
    decode, known = HubImageDataModule._decode, {}

    def once(self: HubImageDataModule, rows: Any, column: str, split: str) -> torch.Tensor:
        if split not in known:
            known[split] = decode(self, rows, column, split)
        return known[split]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HubImageDataModule, "_decode", once)
        yield


def _data(config: str, root: Path, cache: Path, **degradation: Any) -> Any:
    """The datamodule of a bundled config on the local files, as `--data.data_dir=` makes it."""
    section = yaml.safe_load(Path(find_config(f"data_manipulation/{config}.yaml")).read_text())["data"]
    options = section["init_args"]
    options["degradation"] = Degradation(**{**options["degradation"], **degradation})
    if "label_column" in options:
        options["label_column"] = "label"  # the local TREC has no other
    kinds: dict[str, Any] = {"HubTextDataModule": HubTextDataModule, "HubImageDataModule": HubImageDataModule}
    data = kinds[section["class_path"]](data_dir=root / PROTOCOLS[config][0], cache_dir=cache, **options)
    data.setup("fit")
    return data


def _counts(part: Any) -> list[int]:
    return part.labels.bincount().tolist()


def _examples(part: Any) -> Any:
    return part.texts if hasattr(part, "texts") else part.images


def _same(first: Any, second: Any) -> bool:
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


@pytest.mark.parametrize(
    "config", [pytest.param(name, marks=[pytest.mark.slow] * name.startswith("cifar10")) for name in PROTOCOLS]
)
def test_configs_take_the_examples_of_the_paper_and_another_subset_per_seed(
    config: str, data_root: Path, tmp_path: Path
) -> None:
    _, train, val, test = PROTOCOLS[config]
    data, again, other = (_data(config, data_root, tmp_path, seed=seed) for seed in (0, 0, 1))
    for one in (data, other):
        assert _counts(one.train_set) == train
        assert _counts(one.val_set) == val
    data.setup("test")
    assert sorted(_counts(data.test_set)) == sorted(test)
    assert _same(_examples(data.train_set), _examples(again.train_set))
    assert not _same(_examples(data.train_set), _examples(other.train_set))
    assert not _same(_examples(data.val_set), _examples(other.val_set))
    if config in MINORITIES:
        rate, count = MINORITIES[config]
        assert _counts(_data(config, data_root, tmp_path, minority_rate=rate).train_set) == [count, 1000]


def _learn(module: Any, data: Any, criterion: str | None, epochs: int) -> tuple[float, float]:
    """Mean weight of the rare and of the other class."""
    weighting = DataWeighting(strategy=LearnedWeights(NormalizedStep(0.1)), criterion=criterion, pictures=0)
    Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[weighting],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, datamodule=data)
    weights, rare = weighting.weights(), data.train_set.labels == 0
    return weights[rare].mean().item(), weights[~rare].mean().item()


@pytest.mark.slow
def test_rare_sentences_gain_weight(data_root: Path, tmp_path: Path) -> None:
    data = _data("sst2_imbalance", data_root, tmp_path)
    network = TextNetwork(2, vocab_size=data.vocab_size, hidden_size=32, num_layers=1)
    module = TextClassifier(network, 2, optimizer=lambda p: torch.optim.Adam(p, lr=1e-3))
    rare, others = _learn(module, data, None, epochs=3)
    assert rare > 2 * others


@pytest.mark.slow
def test_rare_pictures_gain_weight(data_root: Path, tmp_path: Path) -> None:
    data = _data("cifar10_imbalance", data_root, tmp_path)
    network = SmallCNN(3, 2, [8, 16, 32], 32, norm_groups=8)
    module = Classifier(network, 2, optimizer=lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9))
    rare, others = _learn(module, data, "loss", epochs=3)
    assert rare > 2 * others
