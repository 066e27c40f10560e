"""Callbacks leave modules as they were found, also when a fit breaks off, and can be used again."""

from pathlib import Path

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from tests.battery.state import outcome, plain, traces
from tests.battery.trainers import Interrupt, Interruption, toy_trainer
from tests.entries.toys import Entry
from tests.matrix import ENTRIES

HOOKS = (
    "on_fit_start",
    "on_train_start",
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_start",
)
per_entry = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)


class ParametersAtStart(Callback):
    """Keeps the names of parameters and buffers at the start of training."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.names = list(pl_module.state_dict())


@per_entry
@pytest.mark.parametrize("same_callbacks", [False, True], ids=["new callbacks", "same callbacks"])
def test_second_fit_goes_on_and_leaves_no_trace(entry: Entry, same_callbacks: bool, tmp_path: Path) -> None:
    parts, twin = entry.make(tmp_path, 1), entry.make(tmp_path, 1)
    found = traces(parts.module)
    toy_trainer(parts, tmp_path, max_epochs=1).fit(parts.module, datamodule=parts.data)
    first = plain(parts.module.state_dict())
    assert traces(parts.module) == found
    if not same_callbacks:
        parts = parts._replace(callbacks=twin.callbacks)
    trainer = toy_trainer(parts, tmp_path, max_epochs=1)
    trainer.fit(parts.module, datamodule=parts.data)
    assert traces(parts.module) == found
    assert plain(parts.module.state_dict()) != first


@per_entry
def test_fit_with_used_callbacks_equals_one_with_new_ones(entry: Entry, tmp_path: Path) -> None:
    used, new = entry.make(tmp_path, 1), entry.make(tmp_path, 1)
    toy_trainer(used, tmp_path, max_epochs=1).fit(used.module, datamodule=used.data)
    again = entry.make(tmp_path, 1)._replace(callbacks=used.callbacks)
    results = []
    for parts in (again, new):
        trainer = toy_trainer(parts, tmp_path, max_epochs=1)
        trainer.fit(parts.module, datamodule=parts.data)
        results.append(outcome(parts, trainer))
    assert results[0] == results[1]


@per_entry
@pytest.mark.parametrize("hook", HOOKS)
def test_exception_leaves_no_trace_and_the_next_fit_runs(entry: Entry, hook: str, tmp_path: Path) -> None:
    parts = entry.make(tmp_path, 1)
    found = traces(parts.module)
    step = {"on_fit_start": 0, "on_train_start": 0, "on_validation_start": 6}.get(hook, 2)
    with pytest.raises(Interruption):
        toy_trainer(parts, tmp_path, Interrupt(hook, step)).fit(parts.module, datamodule=parts.data)
    parts.module.train()  # Lightning does so only where validation ends
    assert traces(parts.module) == found
    trainer = toy_trainer(parts, tmp_path, max_epochs=1)
    trainer.fit(parts.module, datamodule=parts.data)
    assert trainer.state.finished
    assert traces(parts.module) == found


@per_entry
def test_evaluation_leaves_no_trace(entry: Entry, tmp_path: Path) -> None:
    parts = entry.make(tmp_path, 1)
    found, weights = traces(parts.module), plain(parts.module.state_dict())
    for loop, promise in (("validate", "validates"), ("test", "tests"), ("predict", "predicts")):
        if promise not in entry.skips:
            getattr(toy_trainer(parts, tmp_path), loop)(parts.module, datamodule=parts.data)
    assert traces(parts.module) == found
    assert plain(parts.module.state_dict()) == weights


@per_entry
def test_callbacks_add_no_parameter(entry: Entry, tmp_path: Path) -> None:
    parts, at_start = entry.make(tmp_path, 1), ParametersAtStart()
    found = list(parts.module.state_dict())
    toy_trainer(parts, tmp_path, at_start, fast_dev_run=True).fit(parts.module, datamodule=parts.data)
    assert at_start.names == found


@per_entry
def test_sanity_check_is_not_counted(entry: Entry, tmp_path: Path) -> None:
    results = []
    for batches in (0, 2):
        parts = entry.make(tmp_path, 1)
        trainer = toy_trainer(parts, tmp_path, max_epochs=1, num_sanity_val_steps=batches)
        trainer.fit(parts.module, datamodule=parts.data)
        results.append(outcome(parts, trainer))
    assert results[1] == results[0]
