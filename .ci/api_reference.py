"""Builds the API reference into a folder, by pdoc, and fails on any warning: `python .ci/api_reference.py FOLDER`."""

import sys
import warnings
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import pdoc

import lit_methods

ROOMS = sorted(path.parent.name for path in Path(lit_methods.__file__).parent.glob("*/README.md"))
SHELVES = ("callbacks", "datamodules", "backbones", "checkpoint", "classifier", "logging")
MODULES = [
    "lit_methods",
    *(f"lit_methods.{shelf}" for shelf in SHELVES),
    *(f"lit_methods.{room}" for room in ROOMS),
    *(f"lit_methods.{room}.functional" for room in ROOMS),
]


def prepare() -> None:
    """Imports what is imported on first use, and evaluates annotations that pdoc would look up in the wrong module."""
    for module in map(import_module, MODULES):
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            setattr(module, name, value)
            if isinstance(value, type) and (issubclass(value, tuple) or is_dataclass(value)):
                made_by: Any = value.__new__ if issubclass(value, tuple) else value.__init__
                hints = get_type_hints(value)
                made_by.__annotations__ |= {field: hints[field] for field in made_by.__annotations__ if field in hints}


def main(folder: Path) -> None:
    """Writes one page a module.

    Raises:
        SystemExit: If pdoc warns, or a name that `__all__` promises does not exist.
    """
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # of libraries that are imported on the way
    prepare()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", UserWarning)
        pdoc.render.configure(docformat="google")
        pdoc.pdoc(*MODULES, output_directory=folder)
    if said := sorted({str(one.message) for one in found if issubclass(one.category, UserWarning)}):
        raise SystemExit("\n".join(["pdoc warns:", *said]))
    print(f"{len(MODULES)} modules in {folder / 'index.html'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
