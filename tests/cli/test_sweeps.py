"""Each room has a W&B sweep whose parameters are keys of its config, and whose command line runs."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import lit_methods
from lit_methods.bundled import bundled_root, find_configs
from lit_methods.cli import main
from lit_methods.runner import run

ROOMS = sorted(path.parent.name for path in Path(lit_methods.__file__).parent.glob("*/README.md"))


def _sweep(room: str) -> dict[str, Any]:
    return yaml.safe_load((bundled_root() / "sweeps" / f"{room}.yaml").read_text())


def _agent_command(room: str, choice: int) -> list[str]:
    """The arguments that `wandb agent` puts behind the program, offline."""
    sweep = _sweep(room)
    flags = [f"--{name}={values['values'][choice]}" for name, values in sweep["parameters"].items()]
    program, *arguments = [part for part in sweep["command"] if part != "${env}"]
    assert program == sweep["program"] == "lit-methods"
    assert arguments[-1] == "${args}"
    return [part.replace("wandb.yaml", "wandb_offline.yaml") for part in arguments[:-1]] + flags


def test_each_room_has_a_sweep() -> None:
    assert sorted(path.stem for path in (bundled_root() / "sweeps").iterdir()) == ROOMS


@pytest.mark.parametrize("room", ROOMS)
def test_each_choice_changes_the_config(
    room: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = []
    for choice in (0, -1):
        with pytest.raises(SystemExit) as end:
            main([*_agent_command(room, choice), "--print_config"])
        assert end.value.code == 0
        printed.append(capsys.readouterr().out)
    differing = sum(a != b for a, b in zip(*(text.splitlines() for text in printed), strict=True))
    assert differing == len(_sweep(room)["parameters"])


@pytest.mark.parametrize("room", ROOMS)
def test_what_the_agent_runs_trains(room: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run(find_configs([*_agent_command(room, 0), "--trainer.fast_dev_run=true"]))
    assert _sweep(room)["metric"]["name"] in ended.trainer.callback_metrics
