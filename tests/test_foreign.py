"""What is written against `pytorch_lightning` is refused with the sentence that names the fix."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn

from lit_methods.cli import main
from tests.battery.trainers import toy_trainer
from tests.matrix import ENTRIES
from tests.test_grid import CALLBACKS

FIX = "Replace `import pytorch_lightning as pl` by `import lightning.pytorch as pl`"


@pytest.fixture
def module_of_the_other_package(monkeypatch: pytest.MonkeyPatch) -> type[nn.Module]:
    """A user's module on a stand-in for the other package, which is no dependency."""
    other, project = ModuleType("pytorch_lightning"), ModuleType("project")
    other.LightningModule = type("LightningModule", (nn.Module,), {"__module__": "pytorch_lightning"})
    net = type("Net", (other.LightningModule,), {"__module__": "project"})
    project.Net = net
    monkeypatch.setitem(sys.modules, "pytorch_lightning", other)
    monkeypatch.setitem(sys.modules, "project", project)
    return net


@pytest.mark.parametrize("name", [*CALLBACKS, "SyntheticImageWriter"])
def test_callback_refuses_it(name: str, module_of_the_other_package: type[nn.Module], tmp_path: Path) -> None:
    (made, *_) = (entry for entry in ENTRIES if entry.name == name)
    parts = made.make(tmp_path, 1)
    (callback,) = (part for part in parts.callbacks if type(part).__name__ == name)
    with pytest.raises(TypeError, match=rf"Net is no LightningModule of lightning\.pytorch\. .*{FIX}"):
        callback.setup(toy_trainer(parts, tmp_path), module_of_the_other_package(), "fit")


@pytest.mark.usefixtures("module_of_the_other_package")
def test_command_line_refuses_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", "--model", "project.Net", "--data", "DigitsDataModule"])
    assert end.value.code == 2
    shown = capsys.readouterr().err
    assert "project.Net" in shown
    assert FIX in shown.splitlines()[-2]


def test_errors_of_the_command_line_are_short(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", "-c", "differential_privacy/digits.yaml", "--modl=3"])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "lit-methods: unrecognized arguments: --modl=3\nNearest: --model\nEvery setting: lit-methods fit --help\n"
    )
