"""Every script of `examples/` runs as it stands, and prints the effect of its callback."""

import ast
import re
import runpy
from pathlib import Path
from pkgutil import resolve_name

import pytest
from lightning.pytorch import LightningDataModule, LightningModule

from lit_methods import callbacks

FOLDER = Path(__file__).parents[1] / "examples"


def _home(name: str) -> str:
    return str(getattr(callbacks, name).__module__).rpartition(".")[2]


@pytest.fixture
def printed(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> str:
    runpy.run_path(str(FOLDER / f"{request.param}.py"), run_name="__main__")
    return capsys.readouterr().out


def _figures(pattern: str, printed: str) -> list[float]:
    found = [float(figure) for figure in re.findall(rf"{pattern} ([\d.]+(?:e[+-]?\d+)?)", printed)]
    assert found, f"{pattern!r} is not in: {printed}"
    return found


def test_each_public_callback_has_one_script() -> None:
    assert sorted(_home(name) for name in callbacks.__all__) == sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", callbacks.__all__)
def test_a_script_takes_the_callback_and_no_module_or_data_of_ours(name: str) -> None:
    text = (FOLDER / f"{_home(name)}.py").read_text()
    imported = {
        f"{node.module}:{alias.name}": resolve_name(f"{node.module}:{alias.name}")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("lit_methods")
        for alias in node.names
    }
    assert f"lit_methods.callbacks:{name}" in imported
    assert not [at for at, found in imported.items() if issubclass(found, LightningModule | LightningDataModule)]
    assert f"`python examples/{_home(name)}.py`" in text


@pytest.mark.parametrize("printed", ["banded_square_root_noise"], indirect=True)
def test_private_training_at_less_error_than_independent_noise(printed: str) -> None:
    independent, banded = _figures(r"expected error in the models, \w+ noise:", printed)
    assert banded < independent / 2
    *_, accuracy = _figures(r"accuracy with[\w ]*:", printed)  # the noise has no seed: independent noise varies widely
    assert accuracy > 0.8
    assert "(1, 0.0001)-differential privacy for the model after each of the 200 of 200 steps" in printed


@pytest.mark.parametrize("printed", ["data_weighting"], indirect=True)
def test_wrong_labels_lose_their_weight(printed: str) -> None:
    plain, learned = _figures(r"accuracy of [\w ]*:", printed)
    assert learned > plain + 0.1
    assert _figures("mean weight of wrong labels:", printed)[0] < 0.5
    assert _figures("examples of least weight:", printed)[0] > 0.7


@pytest.mark.parametrize("printed", ["knowledge_rerank"], indirect=True)
def test_knowledge_helps_the_matcher(printed: str) -> None:
    assert _figures("re-ranked:", printed)[0] > _figures("rSum of the matcher alone:", printed)[0] + 20


@pytest.mark.parametrize("printed", ["learned_augmentation"], indirect=True)
def test_variants_keep_their_label(printed: str) -> None:
    before, after = _figures(r"words of the other class \w+:", printed)
    assert after < before - 0.05


@pytest.mark.parametrize("printed", ["softmax_approximation"], indirect=True)
def test_attention_keeps_less(printed: str) -> None:
    assert _figures("memory of attention:", printed)[0] > 10
    whole, compressed = _figures(r"accuracy with [\w ]*:", printed)
    assert compressed > whole - 0.15
    assert whole > 0.5


@pytest.mark.parametrize("printed", ["spectral_distillation"], indirect=True)
def test_fine_tuning_stays_near_its_start(printed: str) -> None:
    without, near = _figures("divergence from the start", printed)
    assert near < without / 3
    assert min(_figures("accuracy on mirrored", printed)) > 0.6


@pytest.mark.parametrize("printed", ["synthetic_image_writer"], indirect=True)
def test_images_are_written_once(printed: str) -> None:
    assert printed.count("30 images made in this run") == 2
    assert "60 files in the folder" in printed
    assert "60 rows in metadata.csv" in printed
    assert "refused: output_dir=the folder holds images of other settings" in printed


@pytest.mark.parametrize("printed", ["user_level_noise"], indirect=True)
def test_clients_are_protected_at_less_error_than_independent_noise(printed: str) -> None:
    independent, banded = _figures(r"expected error in the models, \w+ noise:", printed)
    assert banded < independent / 1.5
    *_, accuracy = _figures(r"accuracy with[\w ]*:", printed)
    assert accuracy > 0.7
    assert "(8, 0.001)-differential privacy for the model after each of the 40 of 40 rounds" in printed
