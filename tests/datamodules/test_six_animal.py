"""The six-animal protocol on the real CIFAR-10, as the configs state it (card section 4; Oliver et al. 2018)."""

import hashlib
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from lit_methods.datamodules import HubImageDataModule, OpenSetDataModule

CONFIGS = Path(__file__).parents[2] / "configs" / "semi_supervised" / "six_animal"
ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")
SPLIT = ("known_classes", "labels_per_class", "unlabeled_classes", "unlabeled_per_class", "val_per_class")


def _settings(path: Path) -> dict[str, object]:
    found = yaml.safe_load(path.read_text())["data"]["init_args"]
    return {name: found.get(name) for name in (*SPLIT, "mismatch", "include_labeled", "split_seed")}


def test_all_stages_split_alike_and_the_prior_is_a_quarter() -> None:
    paths = sorted(CONFIGS.glob("*.yaml"))
    assert len(paths) == 5
    for path in paths:
        assert _settings(path) == _settings(paths[0]), path
        assert not {"prior: 0.3", "prior: 0.5"} & set(map(str.strip, path.read_text().splitlines()))
    text = (CONFIGS / "discriminator.yaml").read_text() + (CONFIGS / "diffusion.yaml").read_text()
    assert text.count("prior: 0.25") == 2


def _hashes(images: Tensor) -> set[bytes]:
    return {hashlib.sha256(image.numpy()).digest() for image in images}


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_protocol_on_the_real_images(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = HubImageDataModule(data_dir=data_root / "cifar10", cache_dir=tmp_path / "cache", value_range=(-1.0, 1.0))
    monkeypatch.setattr(source, "read", cache(source.read))
    for labels_per_class in (400, 50):
        _check_protocol(source, labels_per_class)


def _check_protocol(source: HubImageDataModule, labels_per_class: int) -> None:
    settings = _settings(CONFIGS / "discriminator.yaml")
    data = OpenSetDataModule(
        source, **({name: settings[name] for name in SPLIT} | {"labels_per_class": labels_per_class})
    )
    data.setup()
    images, labels = source.read("train")
    names = source.class_names

    assert data.class_names == ANIMALS
    assert [names[label] for label in settings["unlabeled_classes"]] == ["airplane", "automobile", "ship", "horse"]
    split = data.split
    for part, of_each in ((split.labeled, labels_per_class), (split.val, 500)):
        counts = torch.bincount(labels[part], minlength=10)
        assert counts.tolist() == [of_each if name in ANIMALS else 0 for name in names]
    pool = torch.bincount(labels[split.unlabeled], minlength=10)
    assert pool.tolist() == [4100 if name in ("airplane", "automobile", "ship", "horse") else 0 for name in names]
    assert data.prior == split.prior(labels) == 0.25

    for place, name in enumerate(ANIMALS):
        for part, positions in ((data.labeled_set, split.labeled), (data.val_set, split.val)):
            own = positions[labels[positions] == names.index(name)]
            assert torch.equal(part.images[part.labels == place], images[own])
    assert torch.equal(data.unlabeled_set.known == 1, labels[split.unlabeled] == names.index("horse"))
    assert torch.bincount(data.test_set.labels).tolist() == [1000] * 6

    parts = [data.labeled_set.images, data.val_set.images, data.unlabeled_set.images.images, data.test_set.images]
    hashes = [_hashes(part) for part in parts]
    assert len(set.union(*hashes)) == sum(len(part) for part in parts), "an image is in two parts, or twice in one"
