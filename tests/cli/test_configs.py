from pathlib import Path
from pkgutil import resolve_name

import pytest
import yaml

from lit_methods.bundled import bundled_configs, bundled_root, find_configs
from lit_methods.cli import main
from lit_methods.datamodules import DigitsDataModule

OVERLAYS = [name for name in bundled_configs() if name.split("/")[0] in ("trainer", "logger")]
RUNNABLE = [name for name in bundled_configs() if name not in OVERLAYS]


def _printed(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        main([*args, "--print_config"])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_each_yaml_of_the_repository_is_bundled() -> None:
    root = Path(__file__).parents[2] / "configs"
    names = (path.relative_to(root).as_posix() for path in root.rglob("*.yaml"))
    assert bundled_configs() == sorted(name for name in names if not name.startswith("sweeps/"))


@pytest.mark.parametrize("name", ["trainer/cpu.yaml", "configs/trainer/cpu.yaml", "./trainer/cpu.yaml"])
def test_bundled_config_is_found_from_any_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = str(bundled_root() / "trainer/cpu.yaml")
    assert find_configs(["fit", "-c", name, "--config", name]) == ["fit", "-c", path, "--config", path]
    assert find_configs([f"--config={name}", "fit", f"-c={name}"]) == [f"--config={path}", "fit", f"-c={path}"]


def test_own_file_wins_over_the_bundled_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("trainer").mkdir()
    Path("trainer/cpu.yaml").touch()
    assert find_configs(["fit", "-c", "trainer/cpu.yaml"]) == ["fit", "-c", "trainer/cpu.yaml"]


@pytest.mark.parametrize("args", [["-c", "nowhere.yaml"], ["--config=nowhere.yaml"], ["-c", "../trainer/cpu.yaml"]])
def test_unknown_config_lists_the_bundled_ones(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", *args])
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert args[-1].removeprefix("--config=") in err
    assert all(name in err for name in bundled_configs())


@pytest.mark.parametrize("name", bundled_configs())
def test_config_begins_with_the_command_that_runs_it(name: str) -> None:
    first = (bundled_root() / name).read_text().splitlines()[0]
    assert first.startswith("# ")
    assert "lit-methods fit -c" in first
    assert name in first


@pytest.mark.parametrize("name", RUNNABLE)
def test_config_survives_printing_and_parsing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first = _printed(["fit", "-c", name], capsys)
    Path("printed.yaml").write_text(first)
    assert yaml.safe_load(_printed(["fit", "-c", "printed.yaml"], capsys)) == yaml.safe_load(first)


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlay_changes_only_what_it_names(name: str, tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    plain = yaml.safe_load(_printed(["fit", "-c", tiny], capsys))
    laid = yaml.safe_load(_printed(["fit", "-c", tiny, "-c", name], capsys))
    named = yaml.safe_load((bundled_root() / name).read_text())["trainer"]
    assert {key for key in laid["trainer"] if laid["trainer"][key] != plain["trainer"][key]} <= set(named)
    assert {key: laid[key] for key in ("model", "data")} == {key: plain[key] for key in ("model", "data")}


def test_short_class_names_and_flags_after_the_config(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = yaml.safe_load(
        _printed(["fit", "-c", tiny, "--data", "DigitsDataModule", "--trainer.max_epochs=7"], capsys)
    )
    assert resolve_name(printed["data"]["class_path"]) is DigitsDataModule
    assert printed["trainer"]["max_epochs"] == 7
    assert printed["trainer"]["logger"]["class_path"] == "lightning.pytorch.loggers.CSVLogger"
    assert printed["seed_everything"] == 0
