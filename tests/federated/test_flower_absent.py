"""Without Flower everything else works, and what needs it says so."""

import subprocess
import sys

import pytest


def test_the_extra_is_named_where_flower_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.startswith(("lit_methods.federated.flower", "flwr.")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "flwr", None)
    with pytest.raises(ModuleNotFoundError, match=r'needs Flower: pip install "lit-methods\[flower\]"'):
        import lit_methods.federated.flower  # noqa: F401  the import is what fails


def test_nothing_else_imports_flower() -> None:
    code = (
        "import sys, lit_methods, lit_methods.federated.module, lit_methods.datamodules; print('flwr' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False"]
