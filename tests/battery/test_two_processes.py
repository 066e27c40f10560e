"""Two gloo processes that share each global batch agree, and end where one process ends; or are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.battery.trainers import STEPS_PER_EPOCH, toy_trainer
from tests.entries.toys import Entry
from tests.gloo import WORLD_SIZE, GlooPool, WorkerError, ddp_trainer_kwargs
from tests.matrix import ENTRIES, entry

pytestmark = pytest.mark.ddp


def _weights(rank: int, world_size: int, name: str, folder: Path) -> tuple[int, dict[str, Tensor]]:
    parts = entry(name).make(folder, world_size)
    placement = ddp_trainer_kwargs() if world_size > 1 else {}
    trainer = toy_trainer(parts, folder, max_epochs=2, **placement)
    trainer.fit(parts.module, datamodule=parts.data)
    weights = {name: v.detach().clone() for name, v in parts.module.state_dict().items() if isinstance(v, Tensor)}
    return trainer.global_step, weights


@pytest.mark.parametrize("entry", [e for e in ENTRIES if not e.refused_in_two], ids=lambda entry: entry.id)
def test_two_processes_agree_and_equal_one(entry: Entry, gloo: GlooPool, tmp_path: Path) -> None:
    first, second = gloo.run(_weights, entry.id, tmp_path)
    assert WORLD_SIZE == 2
    assert first[0] == second[0] == 2 * STEPS_PER_EPOCH
    torch.testing.assert_close(first[1], second[1], rtol=0, atol=0)
    if "ddp_equal" not in entry.skips:
        alone: Any = _weights(0, 1, entry.id, tmp_path)
        assert alone[0] == first[0]
        torch.testing.assert_close(first[1], alone[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.refused_in_two], ids=lambda entry: entry.id)
def test_two_processes_are_refused(entry: Entry, gloo: GlooPool, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=f"MisconfigurationException: {entry.refused_in_two}"):
        gloo.run(_weights, entry.id, tmp_path)
