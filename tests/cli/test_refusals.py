"""What this package refuses ends the command line by its sentence, and all other errors by their traceback."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_methods.bundled import find_config, find_configs
from lit_methods.cli import main
from lit_methods.logging import log_table
from lit_methods.refusals import is_refusal

REFUSED = {
    "in setup of a callback": (
        ["-c", "differential_privacy/digits.yaml", "--trainer.gradient_clip_val=1"],
        "gradient_clip_val=1.0 has no effect on private gradients",
    ),
    "data that is not there": (
        ["-c", "tiny.yaml", "--data=FashionMNISTDataModule", "--data.data_dir=nowhere"],
        "not found. Looked in: nowhere",
    ),
    "in a step of validation": (
        [
            *("-c", "semi_supervised/digits_diffusion.yaml", "--data.known_classes=[0,1,2,3,4,5]"),
            "--model.relevance=lit_methods.semi_supervised.UniformRelevance",
        ],
        "val batch has labels 0 to 5, but num_classes=5",
    ),
}


def _files() -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(Path().rglob("*"))}


@pytest.mark.parametrize("old_runs", [False, True], ids=["first run", "later run"])
@pytest.mark.parametrize("how", REFUSED)
def test_it_ends_in_one_sentence_and_leaves_no_folder(
    how: str, old_runs: bool, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args, sentence = REFUSED[how]
    if old_runs:
        Path("runs/version_0").mkdir(parents=True)
        Path("runs/version_0/config.yaml").write_text("of an earlier run")
    before = _files()
    with pytest.raises(SystemExit) as end:
        main(["fit", *args, "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"])
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert told.splitlines()[-1].startswith("lit-methods: ")
    assert sentence in told.splitlines()[-1]
    assert "Traceback" not in told
    assert _files() == before


@pytest.mark.parametrize("part", ["model", "callback"])
def test_wrong_call_in_code_of_the_user_is_raised(part: str, tiny: str) -> None:
    config: dict[str, Any] = yaml.safe_load(Path(tiny).read_text())
    if part == "model":
        config["model"] = {"class_path": "tests.cli.parts.Miscalling"}
    else:
        config["trainer"]["callbacks"] = {"class_path": "tests.cli.parts.MiscallingCallback"}
    Path(tiny).write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"^rows: each row needs 1 values"):
        main(["fit", "-c", tiny])


def _raised(call: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011  of any type
        call()
    return caught.value.with_traceback(caught.tb.tb_next)  # without the line above


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        pytest.param(partial(find_config, "nowhere.yaml"), True, id="file"),
        pytest.param(partial(log_table, None, "key", ["column"], [[1, 2]]), True, id="value"),
        pytest.param(partial(find_configs, 3), False, id="failing call"),
        pytest.param(partial(find_config, None), False, id="of the standard library"),
        pytest.param(lambda: find_config("nowhere.yaml"), False, id="called by others"),
    ],
)
def test_refusals_are_raised_by_this_package_alone(call: Callable[[], object], expected: bool) -> None:
    assert is_refusal(_raised(call)) is expected
