"""Bad data end in a sentence that names them, or in the outcome that the entry documents."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from tests.battery.state import plain, traces
from tests.battery.trainers import toy_trainer
from tests.entries.toys import Bad, Entry
from tests.matrix import ENTRIES


def _case(entry: Entry, bad: Bad) -> object:
    return pytest.param(entry, bad, id=f"{entry.id}-{bad.what}")


@pytest.mark.parametrize(("entry", "bad"), [_case(entry, bad) for entry in ENTRIES for bad in entry.bad])
def test_bad_input_has_its_documented_outcome(entry: Entry, bad: Bad, tmp_path: Path) -> None:
    parts = entry.make(tmp_path, 1)
    found, before = traces(parts.module), plain(parts.module.state_dict())
    trainer = toy_trainer(parts, tmp_path, max_epochs=1, num_sanity_val_steps=0)
    expected = nullcontext()
    if bad.refusal is not None:
        expected = pytest.raises(bad.refusal[0], match=bad.refusal[1])
    elif bad.warning is not None:
        expected = pytest.warns(UserWarning, match=bad.warning)
    with expected:
        trainer.fit(parts.module, datamodule=bad.data())
    if bad.finite is None:
        assert plain(parts.module.state_dict()) == before
    else:
        assert all(torch.isfinite(p).all() for p in parts.module.parameters()) == bad.finite
    assert traces(parts.module) == found
