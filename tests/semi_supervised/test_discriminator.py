"""What the discriminator predicts, and the choice of the pool that it writes."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lit_methods.semi_supervised import PULoss, RelevanceDiscriminator
from tests.battery.trainers import toy_trainer
from tests.entries.toys import Parts
from tests.semi_supervised.toys import tiny_discriminator, toy_data


def _predict(folder: Path, path: Path | None, **trainer: Any) -> tuple[RelevanceDiscriminator, Any]:
    sgd = partial(torch.optim.SGD, lr=0.1)
    module = RelevanceDiscriminator(tiny_discriminator(), PULoss(0.5), optimizer=sgd, selection_file=path)
    data = toy_data()
    return module, toy_trainer(Parts(module, [], data), folder, **trainer).predict(module, datamodule=data)


def test_selection_is_what_is_scored_above_one_half(tmp_path: Path) -> None:
    path = tmp_path / "there" / "kept.json"
    module, parts = _predict(tmp_path, path)
    logits = torch.cat([part["logit"] for part in parts])
    pool = toy_data().pool.tensors[0]
    with torch.no_grad():
        expected = [i for i, image in enumerate(pool) if float(torch.sigmoid(module(image[None]))) > 0.5]
    assert 0 < len(expected) < len(pool)
    assert json.loads(path.read_text()) == {"pool": len(pool), "positions": expected}
    assert torch.equal(torch.cat([part["weight"] for part in parts]), module.weight(logits))
    assert sorted(file.name for file in path.parent.iterdir()) == ["kept.json"]


def test_selection_is_written_only_on_request(tmp_path: Path) -> None:
    _predict(tmp_path, None)
    _predict(tmp_path, tmp_path / "kept.json", fast_dev_run=True)
    assert not list(tmp_path.glob("**/*.json"))
