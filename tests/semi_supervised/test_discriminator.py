"""What the discriminator predicts, and the choice of the pool that it writes."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lit_methods.semi_supervised import PULoss, RelevanceDiscriminator
from tests.battery.trainers import toy_trainer
from tests.entries.toys import Parts
from tests.semi_supervised.toys import tiny_discriminator, toy_data


def _predict(folder: Path, path: Path | None, **trainer: Any) -> tuple[RelevanceDiscriminator, Any]:
    sgd = partial(torch.optim.SGD, lr=0.1)
    module = RelevanceDiscriminator(
        tiny_discriminator(), PULoss(0.5), optimizer=sgd, selection_file=path, pretrained=True
    )
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


def test_untrained_weights_choose_nothing_but_trained_ones_do(tmp_path: Path) -> None:
    def module() -> RelevanceDiscriminator:
        return RelevanceDiscriminator(tiny_discriminator(), PULoss(0.5), selection_file=tmp_path / "kept.json")

    def predict(one: RelevanceDiscriminator, **trainer: Any) -> None:
        ckpt_path = trainer.pop("ckpt_path", None)
        data = toy_data()
        trainer = toy_trainer(Parts(one, [], data), tmp_path, **trainer)
        trainer.predict(one, datamodule=data, ckpt_path=ckpt_path)

    with pytest.raises(MisconfigurationException, match="The discriminator is untrained and would choose at random"):
        predict(module())
    predict(module(), fast_dev_run=True)
    assert list(tmp_path.iterdir()) == []

    fitted, data = module(), toy_data()
    trainer = toy_trainer(Parts(fitted, [], data), tmp_path, max_epochs=1, limit_val_batches=0)
    trainer.fit(fitted, datamodule=data)
    trainer.save_checkpoint(tmp_path / "trained.ckpt")
    reloaded = RelevanceDiscriminator.load_from_checkpoint(
        tmp_path / "trained.ckpt",
        network=tiny_discriminator(),
        loss=PULoss(0.5),
        selection_file=tmp_path / "kept.json",
    )
    found = []
    for one, ckpt_path in ((fitted, None), (module(), tmp_path / "trained.ckpt"), (reloaded, None)):
        predict(one, ckpt_path=ckpt_path)
        found.append((tmp_path / "kept.json").read_text())
        (tmp_path / "kept.json").unlink()
    assert found[0] == found[1] == found[2]
