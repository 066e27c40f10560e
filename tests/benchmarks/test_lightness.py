"""Importing lit-methods and its command brings nothing heavy; `tests/test_imports.py` says the same of the rooms."""

import subprocess
import sys
from pathlib import Path

from benchmarks.lightness import HEAVY, PACKAGE, named_in_code


def test_the_package_and_its_command_import_nothing_heavy() -> None:
    code = """if True:
        import sys
        import lit_methods, lit_methods.cli
        lit_methods.cli.main(["--help"])
        print(*{name.partition(".")[0] for name in sys.modules})
        """
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    brought = set(done.stdout.splitlines()[-1].split())
    assert "lit_methods" in brought
    assert brought & {*HEAVY, "torch", "lightning", "numpy"} == set()


def test_late_imports_are_found_in_the_code(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("import torch\ndef late():\n    from sklearn.cluster import KMeans\n")
    assert named_in_code(tmp_path) == ["sklearn"]
    assert "diffusers" in named_in_code(PACKAGE / "semi_supervised")
