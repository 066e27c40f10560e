"""Every function of a functional layer is in a property over drawn shapes and numbers."""

import ast
import inspect
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = sorted((ROOT / "lit_methods").glob("*/*functional.py"))


def _called(path: Path) -> set[str]:
    return {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("path", LAYERS, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_every_function_has_a_property(path: Path) -> None:
    module = import_module(f"lit_methods.{path.parent.name}.{path.stem}")
    names = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
    room = f"lit_methods.{path.parent.name}."
    functions = {name for name in names if inspect.isfunction(f := getattr(module, name)) and room in f.__module__}
    assert functions
    assert functions - _called(ROOT / "tests" / path.parent.name / "test_properties.py") == set()
