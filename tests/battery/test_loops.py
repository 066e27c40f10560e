"""Each entry runs through the four loops, from Python and from its YAML, in bf16 and with accumulation."""

from math import isfinite
from pathlib import Path

import pytest
import torch

from lit_methods.bundled import find_configs
from lit_methods.runner import run
from tests.battery.trainers import STEPS_PER_EPOCH, BackwardLosses, toy_trainer
from tests.entries.toys import Entry
from tests.matrix import ENTRIES

SUBCOMMANDS = {"fit": None, "validate": "validates", "test": "tests", "predict": "predicts"}
per_entry = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)


def _skip(entry: Entry, promise: str | None) -> None:
    if promise in entry.skips:
        pytest.skip(entry.skips[promise])


@per_entry
@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_loop_runs_from_python(entry: Entry, subcommand: str, tmp_path: Path) -> None:
    _skip(entry, SUBCOMMANDS[subcommand])
    parts = entry.make(tmp_path, 1)
    trainer = toy_trainer(parts, tmp_path, fast_dev_run=True)
    result = getattr(trainer, subcommand)(parts.module, datamodule=parts.data)
    assert trainer.state.finished
    if subcommand == "predict":
        assert result


@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
@pytest.mark.parametrize(
    ("entry", "config"),
    [pytest.param(entry, config, id=config) for entry in ENTRIES for config in entry.configs],
)
def test_loop_runs_from_yaml(
    entry: Entry, config: str, subcommand: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _skip(entry, SUBCOMMANDS[subcommand])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIT_METHODS_DATA", raising=False)  # a step of the papers' networks takes minutes and gigabytes
    try:
        run(find_configs([subcommand, "-c", config, "-c", "trainer/cpu.yaml", "--trainer.fast_dev_run=true"]))
    except FileNotFoundError as absent:  # data, or what an earlier stage makes
        pytest.skip(str(absent))
    assert not list(tmp_path.iterdir()), "fast_dev_run leaves no files"


@per_entry
def test_training_learns(entry: Entry, tmp_path: Path) -> None:
    parts, losses = entry.make(tmp_path, 1), BackwardLosses()
    before = [p.detach().clone() for p in parts.module.parameters()]
    toy_trainer(parts, tmp_path, losses).fit(parts.module, datamodule=parts.data)
    assert len(losses.values) == 3 * STEPS_PER_EPOCH
    assert all(map(isfinite, losses.values))
    assert any(not torch.equal(p, old) for p, old in zip(parts.module.parameters(), before, strict=True))


@per_entry
def test_bf16_mixed_losses_are_finite_and_near_float32(entry: Entry, tmp_path: Path) -> None:
    _skip(entry, "bf16")
    runs = []
    for precision in ("32-true", "bf16-mixed"):
        parts, losses = entry.make(tmp_path, 1), BackwardLosses()
        toy_trainer(parts, tmp_path, losses, precision=precision, max_epochs=1).fit(parts.module, datamodule=parts.data)
        runs.append(torch.tensor(losses.values))
        assert {p.dtype for p in parts.module.parameters()} == {torch.float32}
    torch.testing.assert_close(runs[1], runs[0], rtol=0.1, atol=0.1)
    assert not torch.equal(runs[0], runs[1])


@per_entry
def test_accumulation_halves_the_steps(entry: Entry, tmp_path: Path) -> None:
    _skip(entry, "accumulates")
    parts, losses = entry.make(tmp_path, 1), BackwardLosses()
    trainer = toy_trainer(parts, tmp_path, losses, accumulate_grad_batches=2)
    trainer.fit(parts.module, datamodule=parts.data)
    assert trainer.global_step == 3 * STEPS_PER_EPOCH // 2
    assert all(map(isfinite, losses.values))
