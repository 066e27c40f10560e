"""What every benchmark shares: sides measured in turn, medians, the machine, and headlines."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


def arguments(description: str) -> argparse.Namespace:
    """`--quick`, `--json FILE`, `--plots FOLDER`, `--seed` and `--only`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a smaller run, within 50 seconds on two cores")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--plots", type=Path, help="draw the figures into this folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="run only the parts whose name contains this")
    return parser.parse_args()


def quiet() -> None:
    """Leaves out warnings and what Lightning says of every Trainer."""
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        for logger in (name, f"{name}.utilities.rank_zero"):
            logging.getLogger(logger).setLevel(logging.ERROR)


def machine() -> str:
    """One line on the machine and the versions."""
    versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "lightning", "opacus"))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return f"{device}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; {versions}"


def medians(sides: Mapping[str, Callable[[], Any]], repeats: int, warm_up: int = 1) -> dict[str, float]:
    """Median seconds of each side, the sides interleaved so that a noisy machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(warm_up + repeats):
        for name, side in sides.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = time.perf_counter()
            side()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Prints a Markdown table."""
    print(f"\n### {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print("| " + " | ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row) + " |")


def spread(values: Sequence[float], digits: int = 1, sign: str = "") -> str:
    """Mean and standard deviation over the seeds; of a single one, the value."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.{digits}f}{deviation}"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a file of JSON lines; none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a row to a file of JSON lines."""
    with path.open("a") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def finish(headlines: Mapping[str, float], figures: Mapping[str, Any], path: Path | None) -> None:
    """Prints the headlines last and writes the JSON file."""
    print()
    for key, value in headlines.items():
        print(f"headline {key} {value:.4g}")
    if path is not None:
        path.write_text(json.dumps({"machine": machine(), "headlines": dict(headlines), **figures}, indent=1))


Part = Callable[[bool], tuple[dict[str, float], Any]]


def run(description: str, *parts: Part, plots: Mapping[str, Callable[[Any, Path], None]] | None = None) -> None:
    """A whole benchmark: each part in turn, or those that `--only` names, then figures and headlines.

    Args:
        description: For `--help`.
        *parts: Each takes whether it is quick, and returns its headlines and its figures.
        plots: By name of a part, what draws its figures into the PNG file `<benchmark>_<part>.png`.
    """
    options = arguments(description)
    quiet()
    torch.manual_seed(options.seed)
    print(f"{machine()}; seed {options.seed}")
    headlines: dict[str, float] = {}
    figures: dict[str, Any] = {}
    for part in parts:
        if options.only is None or options.only in part.__name__:
            found, figures[part.__name__] = part(options.quick)
            headlines |= found
    for name, draw in (plots or {}).items():
        if options.plots is not None and name in figures:
            draw(figures[name], options.plots / f"{Path(sys.argv[0]).stem}_{name}.png")
    finish(headlines, figures, options.json)
