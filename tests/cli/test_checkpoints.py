"""A checkpoint that can't be gone on from is refused with a sentence, and nothing is written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lit_methods.cli import main
from lit_methods.runner import run
from tests.cli.conftest import TINY


class Code:
    """What would run code when a pickle of it is read."""


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 400] = bytes(400)
    content[-200:] = bytes(200)
    path.write_bytes(content)


def _other_weights(path: Path) -> None:
    content = path.read_bytes()
    weight = torch.load(path, weights_only=True)["state_dict"]["layer.weight"].numpy().tobytes()
    assert content.count(weight) == 1
    path.write_bytes(content.replace(weight, bytes(len(weight))))


def _wider(path: Path) -> None:
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"] |= {"layer.weight": torch.zeros(3, 4), "layer.bias": torch.zeros(3)}
    torch.save(checkpoint, path)


def _with_code(path: Path) -> None:
    torch.save(torch.load(path, weights_only=True) | {"more": Code()}, path)


def _of_another(path: Path) -> None:
    checkpoint = torch.load(path, weights_only=True)
    torch.save(checkpoint | {"state_dict": {"tower.weight": torch.zeros(2)}}, path)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "no such file in"),
    "empty": (lambda path: path.write_bytes(b""), "can't be read: it is cut off, damaged or no checkpoint"),
    "half": (_half, "can't be read: it is cut off, damaged or no checkpoint"),
    "damaged": (_flipped, "can't be read: it is cut off, damaged or no checkpoint"),
    "text": (lambda path: path.write_text("lr: 0.1"), "can't be read: it is cut off, damaged or no checkpoint"),
    "code": (_with_code, "Reading them would run their code, so it is not read"),
    "weights alone": (
        lambda path: torch.save({"layer.weight": torch.zeros(2)}, path),
        "is no checkpoint of a Lightning Trainer: it holds ['layer.weight']",
    ),
    "a tensor": (lambda path: torch.save(torch.zeros(2), path), "Lightning Trainer: it holds Tensor"),
    "other weights": (_other_weights, "damaged or no checkpoint (bad checksum of "),
    "other shapes": (
        _wider,
        "does not fit this module and its optimizers: Error(s) in loading state_dict for TinyModule: size mismatch for",
    ),
    "another module": (_of_another, "is of another module: it holds ['tower.weight'] and more, TinyModule has"),
}


def _files() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(Path().rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of one fit for all."""
    folder = tmp_path_factory.mktemp("saved")
    (folder / "tiny.yaml").write_text(TINY)
    fit = run(["fit", f"--config={folder / 'tiny.yaml'}", f"--trainer.default_root_dir={folder}"])
    return Path(fit.trainer.checkpoint_callback.best_model_path)


@pytest.fixture
def trained(tiny: str, saved: Path) -> Path:
    """A copy of it beside the config."""
    path = Path("runs/version_0/checkpoints/last.ckpt")
    path.parent.mkdir(parents=True)
    shutil.copy(saved, path)
    return path


@pytest.mark.parametrize("subcommand", ["fit", "test"])
@pytest.mark.parametrize("how", BROKEN)
def test_it_is_refused_and_nothing_is_written(
    how: str, subcommand: str, tiny: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, sentence = BROKEN[how]
    damage(trained)
    before = _files()
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        main([subcommand, "-c", tiny, f"--ckpt_path={trained}", "--trainer.max_epochs=3"])
    assert ending.value.code == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert told[-1].startswith(f"lit-methods: ckpt_path={trained}")
    assert sentence in told[-1]
    assert "Traceback" not in "".join(told)
    assert _files() == before


@pytest.mark.filterwarnings(
    "ignore:.fit.ckpt_path=.last.. is set, but there is no last checkpoint"
)  # the first run has none
def test_names_that_lightning_looks_up_are_left_to_it(tiny: str, trained: Path) -> None:
    last = run(["fit", "-c", tiny, "--ckpt_path=last", "--trainer.max_epochs=1"])
    assert last.trainer.current_epoch == 1
    assert last.config["fit"]["weights_only"], "no pickle is read there either"
