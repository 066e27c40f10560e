"""The layers of CONTRIBUTING.md: imports run downward only, and nothing heavy is imported unasked."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHELVES = ("callbacks", "datamodules")
SOURCES = sorted(
    path
    for folder in (ROOT / "lit_methods", *(ROOT / shelf for shelf in SHELVES))
    for path in folder.rglob("*.py")
    if not (folder.name == "lit_methods" and path.relative_to(folder).parts[0] in SHELVES)
)
ROOMS = {path.parent.name for path in (ROOT / "lit_methods").glob("*/__init__.py")} - set(SHELVES)
FUNCTIONAL = {"torch", "numpy", "scipy", *sys.stdlib_module_names}


def _name(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "lit_methods" else ("lit_methods", *parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def imported(source: str, package: tuple[str, ...]) -> set[tuple[str, ...]]:
    """Every module that a source imports, anywhere in it; `from a import b` counts as `a.b`."""
    names: set[tuple[str, ...]] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            names |= {(*base, alias.name) for alias in node.names}
    return names


def _holds_modules(part: str) -> bool:
    """Whether a file or folder of that name is for LightningModules: `module`, or one such as `evaluated_module`."""
    return part == "module" or part.endswith("_module")


def breaches(name: tuple[str, ...], names: set[tuple[str, ...]], rooms: set[str] = ROOMS) -> list[str]:
    """The rules that a module of that name breaks by importing those names."""
    found = []
    home = name[1] if len(name) > 1 else ""
    own = {other[1:] for other in names if other[0] == "lit_methods" and len(other) > 1}
    if any(other[0] == "pytorch_lightning" for other in names):
        found.append("pytorch_lightning is not lightning.pytorch")
    if home in rooms:
        if any(other[0] in (rooms - {home}) | set(SHELVES) for other in own):
            found.append("a room imports another room or a shelf")
        layer, room = name[-1], {other[1] for other in own if other[0] == home and len(other) > 1}
        pure = {other[1].startswith("_") for other in own if other[0] == home and len(other) > 1}
        foreign = {other[0] for other in names} - FUNCTIONAL - ({"lit_methods"} if pure == {True} else set())
        if (layer == "functional" or layer.startswith("_")) and layer != home and foreign:
            found.append("functional imports more than torch, numpy, scipy")
        if layer != home and not any(map(_holds_modules, name[2:])) and any(map(_holds_modules, room)):
            found.append("a lower layer imports the LightningModule")
    if home == "callbacks" and any(other[0] in rooms and any(map(_holds_modules, other[1:2])) for other in own):
        found.append("a callback imports a LightningModule")
    if home == "callbacks" and any(other[0] in ("datamodules", "cli", "runner", "report") for other in own):
        found.append("a callback imports data or the command line")
    if home == "callbacks" and len({other[0] for other in own} & rooms) > 1:
        found.append("a callback imports two rooms")
    if home == "datamodules" and any(other[0] not in ("datamodules", "errors") for other in own):
        found.append("a datamodule knows more than data")
    ground = ("logging", "backbones", "classifier", "errors")
    if home in ground and any(other[0] not in ground for other in own):
        found.append("the ground floor imports upward")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downward_only(path: Path) -> None:
    name = _name(path)
    package = name if path.name == "__init__.py" else name[:-1]
    assert breaches(name, imported(path.read_text(), package)) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("red.module", "from lit_methods.blue import functional"),
        ("red.module", "from .. import blue"),
        ("red.noise", "from lit_methods.red.module import Module"),
        ("red.noise", "from . import module"),
        ("red.noise", "from . import evaluated_module"),
        ("red.noise", "from lit_methods.callbacks import Noise"),
        ("red.functional", "import lightning.pytorch"),
        ("red.functional", "from lit_methods.red import noise"),
        ("red.module", "def late():\n    import pytorch_lightning"),
        ("callbacks.noise", "from lit_methods.red.module import Module"),
        ("callbacks.noise", "from lit_methods.red.evaluated_module import Module"),
        ("callbacks.noise", "import lit_methods.red, lit_methods.blue"),
        ("callbacks.noise", "from lit_methods import datamodules"),
        ("datamodules.digits", "from lit_methods.red import functional"),
        ("datamodules.digits", "from lit_methods import logging"),
        ("logging", "from lit_methods.red import functional"),
    ],
)
def test_each_breach_is_seen(module: str, line: str) -> None:
    name = ("lit_methods", *module.split("."))
    assert len(breaches(name, imported(line, name[:-1]), {"red", "blue"})) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("red.functional", "import math, torch.nn\nfrom scipy import linalg"),
        ("red.module", "from lit_methods.red.noise import Noise\nfrom lightning.pytorch import LightningModule"),
        ("red.module", "from lit_methods.red.evaluated_module import EvaluatedModule"),
        ("red.module.diffusion", "from lit_methods.red.module.transforming_module import TransformingModule"),
        ("callbacks.noise", "from lit_methods.red import functional\nfrom lit_methods.logging import log_figure"),
        ("datamodules.digits", "from lit_methods.datamodules.errors import DatasetNotFoundError"),
    ],
)
def test_the_plan_is_allowed(module: str, line: str) -> None:
    name = ("lit_methods", *module.split("."))
    assert breaches(name, imported(line, name[:-1]), {"red", "blue"}) == []


def test_every_source_is_walked() -> None:
    assert {"lit_methods/cli.py", "callbacks/__init__.py", "datamodules/__init__.py"} <= {
        path.relative_to(ROOT).as_posix() for path in SOURCES
    }
    assert "differential_privacy" in ROOMS


def test_import_costs_nothing_heavy() -> None:
    code = (
        f"ROOMS = {sorted(ROOMS)}\n"
        + """if True:
        import sys
        from importlib import import_module
        import lit_methods
        assert "torch" not in sys.modules
        import lightning.pytorch
        before = set(sys.modules)
        import lit_methods.callbacks, lit_methods.classifier, lit_methods.datamodules
        for room in ROOMS:
            import_module(f"lit_methods.{room}")
        print(*{name.partition(".")[0] for name in set(sys.modules) - before})
        """
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    heavy = {"opacus", "diffusers", "transformers", "wandb", "matplotlib", "datasets", "dp_accounting", "sklearn"}
    assert heavy & set(done.stdout.split()) == set()
