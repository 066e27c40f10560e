"""Every `lit-methods` line of every README parses against the bundled configs."""

import shlex
from pathlib import Path

import pytest

from lit_methods.cli import main

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(
    {
        line
        for readme in (ROOT / "README.md", *(ROOT / "lit_methods").glob("*/README.md"))
        for line in readme.read_text().splitlines()
        if line.startswith("lit-methods ") and "-c runs/" not in line and "|" not in line
    }
    | {
        line.removeprefix("# ")
        for config in (ROOT / "configs").rglob("*.yaml")
        for line in config.read_text().splitlines()
        if line.startswith("# lit-methods ")
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_it_parses(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main([*shlex.split(command, comments=True)[1:], "--print_config"])
    assert stop.value.code in (0, None)


def test_there_are_some() -> None:
    assert len(COMMANDS) > 8
