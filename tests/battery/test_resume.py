"""A run that breaks off and is resumed with new objects equals the one that was never interrupted.

Order of the data: fixed, by `shuffle=False` or by the method itself; Lightning's checkpoints hold no random state.
"""

from pathlib import Path

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.battery.state import outcome
from tests.battery.trainers import STEPS_PER_EPOCH, Interrupt, Interruption, Recorder, toy_trainer
from tests.entries.toys import Entry
from tests.matrix import ENTRIES

MID_EPOCH = STEPS_PER_EPOCH + 2
pytestmark = pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",  # where the method takes care of it
    "ignore:The dirpath has changed",  # the resumed run writes its checkpoints elsewhere
)
SAVING = {"enable_checkpointing": True}
AT = {"after epoch 1": STEPS_PER_EPOCH, "inside epoch 2": MID_EPOCH}


def at_step(folder: Path, at: int = MID_EPOCH) -> ModelCheckpoint:
    when = {"every_n_epochs": 1} if at == STEPS_PER_EPOCH else {"every_n_train_steps": MID_EPOCH}
    return ModelCheckpoint(folder, "{step}", save_top_k=-1, **when)


def last_step(entry: Entry) -> int:
    """The latest step before `MID_EPOCH + 2` that a run can go on from."""
    return STEPS_PER_EPOCH if "resumes_mid_epoch" in entry.skips else MID_EPOCH


@pytest.mark.parametrize("at", AT.values(), ids=AT.keys())
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_resumed_run_equals_the_uninterrupted_one(entry: Entry, at: int, tmp_path: Path) -> None:
    if at == MID_EPOCH and "resumes_mid_epoch" in entry.skips:
        pytest.skip(entry.skips["resumes_mid_epoch"])
    whole, log = entry.make(tmp_path, 1), Recorder()
    trainer = toy_trainer(whole, tmp_path, at_step(tmp_path / "whole", at), logger=log, **SAVING)
    trainer.fit(whole.module, datamodule=whole.data)

    parts = entry.make(tmp_path, 1)
    interruption = Interrupt("on_train_batch_start", MID_EPOCH + 2)
    trainer_of_broken = toy_trainer(parts, tmp_path, at_step(tmp_path / "broken", at), interruption, **SAVING)
    with pytest.raises(Interruption):
        trainer_of_broken.fit(parts.module, datamodule=parts.data)

    parts, log_of_resumed = entry.make(tmp_path, 1), Recorder()
    resumed = toy_trainer(parts, tmp_path, at_step(tmp_path / "resumed", at), logger=log_of_resumed, **SAVING)
    resumed.fit(parts.module, datamodule=parts.data, ckpt_path=tmp_path / "broken" / f"step={at}.ckpt")
    assert outcome(parts, resumed) == outcome(whole, trainer)
    assert _history(log_of_resumed, at) == _history(log, at)
    assert log_of_resumed.rows[-1][0] == 3 * STEPS_PER_EPOCH - 1


def _history(log: Recorder, at: int) -> list[tuple[int, dict[str, float]]]:
    rows = [row for row in log.rows if row[0] >= at]
    if at != MID_EPOCH:
        return rows
    # Lightning's checkpoints hold no running means: in the broken epoch those of training cover only its rest.
    return [
        (step, {k: v for k, v in row.items() if step >= 2 * STEPS_PER_EPOCH or not k.startswith("train/")})
        for step, row in rows
    ]
