"""A checkpoint that was stripped can be published: it predicts, it can't be resumed, and no noise is left in it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger, WandbLogger
from torch import Tensor
from torch.utils.data import DataLoader

from lit_methods.differential_privacy import strip_private_state
from lit_methods.differential_privacy.checkpoint import main
from lit_methods.differential_privacy.guards import check_loggers
from tests.callbacks.toys import EXAMPLES, Judged, Toy, private, toy_data, toy_loader, toy_trainer


def saved(folder: Path) -> Path:
    trainer = toy_trainer(private(bandwidth=4), ModelCheckpoint(folder), enable_checkpointing=True, max_epochs=2)
    trainer.fit(Toy(), toy_loader())
    trainer.save_checkpoint(folder / "secret.ckpt")
    return folder / "secret.ckpt"


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part)


def vectors(value: Any) -> set[bytes]:
    """Each tensor, and each row of each tensor, as bytes; those of fewer than 4 numbers say nothing."""
    whole = [tensor.contiguous() for tensor in tensors(value)]
    pieces = whole + [row for tensor in whole if tensor.ndim > 1 for row in tensor]
    return {piece.numpy().tobytes() for piece in pieces if piece.numel() >= 4}


def test_nothing_of_the_noise_remains_and_everything_else_does(tmp_path: Path) -> None:
    secret = torch.load(saved(tmp_path), weights_only=True)
    stripped = strip_private_state(secret)
    noise = vectors(secret["callbacks"]["BandedSquareRootNoise"]["noise"])
    assert len(noise) >= 4
    assert noise <= vectors(secret)
    assert not noise & vectors(stripped)
    assert "BandedSquareRootNoise" in secret["callbacks"]
    assert set(secret["callbacks"]) - set(stripped["callbacks"]) == {"BandedSquareRootNoise"}
    assert set(stripped) == set(secret)
    assert type(stripped["state_dict"]) is type(secret["state_dict"])
    assert all(torch.equal(stripped["state_dict"][name], value) for name, value in secret["state_dict"].items())


def test_the_command_writes_a_checkpoint_that_validates_but_does_not_resume(tmp_path: Path) -> None:
    secret, public = saved(tmp_path), tmp_path / "public.ckpt"
    main([str(secret), str(public)])
    loader = DataLoader(toy_data(), batch_size=EXAMPLES)
    scores = [
        toy_trainer().validate(Judged(), loader, ckpt_path=path, weights_only=True, verbose=False)
        for path in (secret, public)
    ]
    assert scores[0] == scores[1]
    with pytest.raises(ValueError, match="noise stands at step 0"):
        toy_trainer(private(bandwidth=4)).fit(Toy(), toy_loader(), ckpt_path=public, weights_only=True)


def test_states_that_were_saved_by_hand_are_stripped_wherever_they_lie() -> None:
    generator = torch.Generator().get_state()
    checkpoint = {
        "model": {"weight": torch.ones(2)},
        "nested": [{"run": {"fingerprint": {}, "noise": {"rows": torch.ones(3)}}, "step": 1}],
        "sampler": {"generator": generator, "step": 3},
        "loader": {"kind": "cyclic", "num_examples": 9, "global_batch_size": 3, "seed": 5},
        "pair": ({"generator": generator}, 5),
    }
    stripped = strip_private_state(checkpoint)
    assert stripped["nested"] == [{"step": 1}]
    assert set(stripped) == {"model", "nested", "pair"}
    assert stripped["pair"] == (5,)
    assert set(checkpoint) == {"model", "nested", "sampler", "loader", "pair"}
    assert strip_private_state({"fingerprint": {}, "noise": {}}) == {}


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No checkpoint at .*none\.ckpt"):
        strip_private_state(tmp_path / "none.ckpt")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(TypeError, match="but this is a list"):
        strip_private_state(str(tmp_path / "list.pt"))


class Uploading(Logger):
    """Has the attribute by which Lightning's own loggers know that they upload."""

    name, version = "uploading", 0

    def __init__(self, log_model: Any) -> None:
        super().__init__()
        self._log_model = log_model

    def log_metrics(self, *args: Any, **kwargs: Any) -> None: ...

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


@pytest.mark.parametrize("uploads", [True, "all"])
def test_loggers_that_upload_checkpoints_are_refused(uploads: Any, tmp_path: Path) -> None:
    whole = ModelCheckpoint(tmp_path, every_n_epochs=2)
    weights = ModelCheckpoint(tmp_path, save_weights_only=True)
    logger = Uploading(uploads)
    with pytest.raises(MisconfigurationException, match=rf"Uploading\(log_model={uploads!r}\) uploads checkpoints"):
        check_loggers(toy_trainer(weights, whole, logger=logger, enable_checkpointing=True))
    check_loggers(toy_trainer(weights, logger=logger, enable_checkpointing=True))
    check_loggers(toy_trainer(logger=logger))
    check_loggers(toy_trainer(whole, logger=Uploading(False), enable_checkpointing=True))


def test_wandb_says_by_that_attribute_whether_it_uploads(tmp_path: Path) -> None:
    for log_model in (False, True, "all"):
        assert WandbLogger(log_model=log_model, save_dir=tmp_path)._log_model == log_model
