"""Checks what a wheel would install: one top-level package, with its configs and type marker."""

import sys
from pathlib import PurePosixPath
from zipfile import ZipFile

NEEDED = {
    "lit_methods/py.typed",
    "lit_methods/callbacks/__init__.py",
    "lit_methods/datamodules/__init__.py",
    "lit_methods/configs/trainer/cpu.yaml",
    "lit_methods/configs/federated/flower/federated_app.py",
    "lit_methods/configs/federated/flower/pyproject.toml",
}


def problems(names: list[str]) -> list[str]:
    """Returns what is wrong with the file names of a wheel."""
    foreign = {PurePosixPath(name).parts[0] for name in names} - {"lit_methods"}
    found = [f"installs {name} at top level" for name in sorted(foreign) if not name.endswith(".dist-info")]
    return found + [f"lacks {name}" for name in sorted(NEEDED - set(names))]


if __name__ == "__main__":
    with ZipFile(sys.argv[1]) as wheel:
        found = problems(wheel.namelist())
    sys.exit("\n".join(f"{sys.argv[1]} {problem}" for problem in found) or None)
