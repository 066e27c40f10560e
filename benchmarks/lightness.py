"""What importing costs: seconds beyond Lightning, the command's help, and the heavy packages that each room brings.

`python -m benchmarks.lightness [--quick] [--json FILE] [--only PART]`
"""

from __future__ import annotations

import ast
import multiprocessing
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks._harness import run, table
from benchmarks._pieces import ROOMS

HEAVY = (
    "datasets",
    "diffusers",
    "dp_accounting",
    "matplotlib",
    "opacus",
    "scipy",
    "sklearn",
    "torchmetrics",
    "transformers",
    "wandb",
)
PACKAGE = Path(__file__).parents[1] / "lit_methods"
TARGETS = (
    "lit_methods",
    "lit_methods.callbacks",
    "lit_methods.datamodules",
    *(f"lit_methods.{room}" for room in ROOMS),
)
Figures = tuple[dict[str, float], list[dict[str, Any]]]


def import_here(names: tuple[str, ...]) -> tuple[float, list[str]]:
    """Seconds to import some modules in this process, and the heavy packages that came with them."""
    before, start = set(sys.modules), time.perf_counter()
    for name in names:
        __import__(name)
    return time.perf_counter() - start, [name for name in HEAVY if name in sys.modules.keys() - before]


def beyond_lightning(names: tuple[str, ...]) -> tuple[float, list[str]]:
    """The same in a fresh process that has imported Lightning and nothing of ours."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning.pytorch"])
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        return pool.submit(import_here, names).result()


def named_in_code(folder: Path) -> list[str]:
    """Heavy packages that a folder's code imports anywhere, most of them inside the function that needs them."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {name.partition(".")[0] for name in names}
    return [name for name in HEAVY if name in found]


def imports(quick: bool) -> Figures:
    """Each room in turn, several times over, each time in a process that has Lightning."""
    seconds: dict[tuple[str, ...], list[float]] = {(name,): [] for name in TARGETS} | {TARGETS: []}
    brought: dict[tuple[str, ...], list[str]] = {}
    for _ in range(1 if quick else 9):
        for names in seconds:
            found, brought[names] = beyond_lightning(names)
            seconds[names].append(found)
    rows: list[dict[str, Any]] = [
        {
            "import": "all of these" if names == TARGETS else names[0],
            "seconds": statistics.median(values),
            "brought": brought[names],
            "in its code": named_in_code(PACKAGE / names[0].partition(".")[2]) if len(names) == 1 else "",
        }
        for names, values in seconds.items()
    ]
    table(
        "(a) seconds beyond `import lightning.pytorch`, and heavy packages that it had not imported yet",
        ["import", "seconds", "heavy packages at import", "imported somewhere in the code"],
        [[row["import"], row["seconds"], *(", ".join(row[key]) for key in ("brought", "in its code"))] for row in rows],
    )
    headline = next(row["seconds"] for row in rows if row["import"] == "all of these")
    return {"import_beyond_lightning_seconds": headline}, rows


def commands(quick: bool) -> Figures:
    """Wall time of whole processes: an empty one, an import of ours, the help, and Lightning's import to compare."""
    sides = {
        "python -c pass": ["-c", "pass"],
        "import lit_methods": ["-c", "import lit_methods"],
        "lit-methods --help": ["-m", "lit_methods", "--help"],
    }
    if not quick:
        sides["import lightning.pytorch"] = ["-c", "import lightning.pytorch"]
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(3 if quick else 7):
        for name, arguments in sides.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - start)
    rows = [{"process": name, "seconds": statistics.median(values)} for name, values in seconds.items()]
    table("(b) wall time of a process", ["process", "seconds"], [list(row.values()) for row in rows])
    empty = statistics.median(seconds["python -c pass"])
    return {"help_beyond_python_seconds": statistics.median(seconds["lit-methods --help"]) - empty}, rows


def main() -> None:
    """Runs both parts, or those that `--only` names."""
    run(__doc__ or "", imports, commands)


if __name__ == "__main__":
    main()
