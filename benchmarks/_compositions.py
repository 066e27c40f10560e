"""What each composition brings, and what it brings without one of its parts: the numbers of the README's table.

    python -m benchmarks._compositions --results compositions.jsonl

Every arm is the command that a user would type, `lit-methods fit -c compositions/NAME.yaml` with the flags of
`COMPOSITIONS`, in a process and a folder of its own; the figures are read from the log that it writes. Each finished
run is a line of the results file; the same command goes on where it stopped, `--table` prints what is there.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks._harness import append, read_lines, spread, table

WHOLE = "whole"
_SET = "--trainer.callbacks."
_INDEPENDENT = f"{_SET}factorization=lit_methods.differential_privacy.Identity"
_UNIFORM = f"{_SET}strategy=lit_methods.data_manipulation.UniformWeights"
_NO_NOISE = (f"{_SET}noise_multiplier=0", f"{_SET}epsilon=null")
_EXACT, _KEPT = "memory/softmax_before_mib", "memory/softmax_after_mib"


@dataclass(frozen=True)
class Composition:
    """One file of `configs/compositions`.

    Attributes:
        arms: The flags of each arm by its name.
        digits: The decimals of each figure that is read from the log, by its name there.
        tested: Whether `lit-methods test` follows, on the last checkpoint.
    """

    arms: Mapping[str, tuple[str, ...]]
    digits: Mapping[str, int]
    tested: bool = False


COMPOSITIONS = {
    "private_federated_digits": Composition(
        {
            WHOLE: (),
            "independent noise": (_INDEPENDENT,),
            "ε = 2": (f"{_SET}epsilon=2",),
            "ε = 2, independent noise": (f"{_SET}epsilon=2", _INDEPENDENT),
            "no noise": _NO_NOISE,
        },
        {"val/generic_acc": 2},
    ),
    "private_attention": Composition({WHOLE: (), "no noise": _NO_NOISE}, {"val/acc": 2, _EXACT: 1, _KEPT: 1}),
    "weighted_attention": Composition(
        {WHOLE: (), "no learned weights": (_UNIFORM,)},
        {"test/acc": 2, _EXACT: 1, _KEPT: 1},
        tested=True,
    ),
    "spectral_mack": Composition(
        {
            WHOLE: (),
            "no spectral term": (f"{_SET}weight=0",),
            "ten times the weight": (f"{_SET}weight=10",),
        },
        {"spec/kl": 2, "val/rsum": 0},
    ),
}


def measured(name: str, arm: str, seed: int) -> dict[str, float]:
    """The figures of one arm after its last epoch."""
    composition = COMPOSITIONS[name]
    with tempfile.TemporaryDirectory() as folder:
        flags = ["-c", f"compositions/{name}.yaml", f"--seed_everything={seed}"]
        flags += ["--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={folder}"]
        _command("fit", [*flags, *composition.arms[arm]], folder)
        log = Path(folder) / "version_0"
        found = _last(log / "metrics.csv")
        if composition.tested:
            checkpoint = f"--ckpt_path={log / 'checkpoints/last.ckpt'}"
            _command("test", [*flags, *composition.arms[arm], checkpoint], folder)
            found |= _last(Path(folder) / "version_1" / "metrics.csv")
    return {figure: found[figure] for figure in composition.digits}


def _command(subcommand: str, flags: Sequence[str], folder: str) -> None:
    command = [sys.executable, "-m", "lit_methods", subcommand, *flags]
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} ended with code {done.returncode}:\n{done.stderr[-2000:]}")


def _last(path: Path) -> dict[str, float]:
    """The last value of each column of a CSV log."""
    with path.open(newline="") as file:
        return {name: float(value) for row in csv.DictReader(file) for name, value in row.items() if value}


def run(path: Path, seeds: Sequence[int], only: str | None) -> None:
    """Runs what the results file lacks."""
    names = [name for name in COMPOSITIONS if only is None or only in name]
    wanted = [
        {"composition": name, "arm": arm, "seed": seed}
        for seed in seeds
        for name in names
        for arm in COMPOSITIONS[name].arms
    ]
    done = read_lines(path)
    missing = [setting for setting in wanted if not any(setting.items() <= row.items() for row in done)]
    for setting in tqdm(missing, desc="compositions"):
        append(path, setting | measured(*setting.values()))


def columns(name: str) -> list[str]:
    """Titles of `lines`."""
    return ["arm", *COMPOSITIONS[name].digits, "seeds"]


def lines(name: str, runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Mean and standard deviation of each figure of a composition over the seeds, an arm a line."""
    found = []
    for arm in COMPOSITIONS[name].arms:
        own = [run for run in runs if (run["composition"], run["arm"]) == (name, arm)]
        if own:
            digits = COMPOSITIONS[name].digits.items()
            figures = [spread([run[figure] for run in own], decimals) for figure, decimals in digits]
            found.append([arm, *figures, str(len(own))])
    return found


def main() -> None:
    """Runs the compositions or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("compositions.jsonl"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", help="compositions whose name contains this")
    parser.add_argument("--table", action="store_true", help="print the table of the results file and end")
    options = parser.parse_args()
    if not options.table:
        run(options.results, options.seeds, options.only)
    runs = read_lines(options.results)
    for name in COMPOSITIONS:
        table(name, columns(name), lines(name, runs))


if __name__ == "__main__":
    main()
