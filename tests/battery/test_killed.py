"""A run that SIGKILL ends in the middle of an epoch goes on from its last checkpoint to the same end."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.battery.state import outcome
from tests.battery.test_resume import at_step, last_step
from tests.battery.trainers import toy_trainer
from tests.entries.toys import Entry
from tests.matrix import ENTRIES

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",  # where the method takes care of it
    "ignore:The dirpath has changed",  # the resumed run writes its checkpoints elsewhere
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each entry, with what its killed run left."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-W", "ignore", "-m", "tests.battery.killed", str(folder)]
    process = subprocess.run(
        [*command, *(entry.id for entry in ENTRIES)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return folder


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_killed_run_goes_on_to_the_same_end(entry: Entry, folder: Path, tmp_path: Path) -> None:
    at = last_step(entry)
    left = sorted(path.name for path in (folder / entry.id / "killed").iterdir())
    assert left == [f"step={at}.ckpt"]
    whole = entry.make(tmp_path / "whole", 1)
    trainer = toy_trainer(whole, tmp_path / "whole", at_step(tmp_path / "whole", at), enable_checkpointing=True)
    trainer.fit(whole.module, datamodule=whole.data)
    parts = entry.make(folder / entry.id, 1)
    resumed = toy_trainer(parts, folder / entry.id, at_step(tmp_path / "resumed", at), enable_checkpointing=True)
    resumed.fit(parts.module, datamodule=parts.data, ckpt_path=folder / entry.id / "killed" / left[0])
    assert outcome(parts, resumed) == outcome(whole, trainer)
