"""Two gloo processes that share each global batch end where one process ends."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.battery.trainers import STEPS_PER_EPOCH, toy_trainer
from tests.entries.toys import Entry
from tests.gloo import WORLD_SIZE, GlooPool, ddp_trainer_kwargs
from tests.matrix import ENTRIES, entry

pytestmark = pytest.mark.ddp


def _weights(rank: int, world_size: int, name: str, folder: Path) -> tuple[int, dict[str, Tensor]]:
    parts = entry(name).make(folder, world_size)
    placement = ddp_trainer_kwargs() if world_size > 1 else {}
    trainer = toy_trainer(parts, folder, max_epochs=2, **placement)
    trainer.fit(parts.module, datamodule=parts.data)
    return trainer.global_step, {key: value.detach().clone() for key, value in parts.module.state_dict().items()}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_two_processes_equal_one(entry: Entry, gloo: GlooPool, tmp_path: Path) -> None:
    if "ddp_equal" in entry.skips:
        pytest.skip(entry.skips["ddp_equal"])
    alone: Any = _weights(0, 1, entry.id, tmp_path)
    first, second = gloo.run(_weights, entry.id, tmp_path)
    assert WORLD_SIZE == 2
    assert first[0] == second[0] == alone[0] == 2 * STEPS_PER_EPOCH
    torch.testing.assert_close(first[1], second[1], rtol=0, atol=0)
    torch.testing.assert_close(first[1], alone[1], rtol=1e-5, atol=1e-5)
