"""Every federated method on Fashion-MNIST and CIFAR-10, on the same clients, rounds and seeds.

`python -m benchmarks._federated_real [--quick] [--results FILE] [--plot FILE] [--tune NAME] [--hours H]`

Each finished run is a line of the results file; runs that are in it are not repeated.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks._federated_experiment import CANDIDATES, KEPT, METHODS, SKEWS, TASKS, read, train
from benchmarks._harness import append, machine, quiet, read_lines, table
from benchmarks._noisy_digits import summary
from lit_methods.datamodules.errors import DatasetNotFoundError

RESULTS = Path(__file__).parent / "results" / "federated_real.jsonl"
SEEDS = (0, 1, 2)
TUNING_SEED = 100

Run = dict[str, Any]


def plan(names: Sequence[str], seeds: Sequence[int]) -> Iterator[Run]:
    """All runs, so that a stop leaves whole rows: data set, skew, seed, method."""
    for name in names:
        for p, alpha in SKEWS:
            for seed in seeds:
                for method in METHODS:
                    yield {"data": name, "p": p, "alpha": alpha, "seed": seed, "method": method}


def missing(runs: Sequence[Run], done: Sequence[Run]) -> list[Run]:
    """The planned runs that are not done."""
    return [run for run in runs if not any(run.items() <= old.items() for old in done)]


def available() -> list[str]:
    """The data sets that are here; says what is not."""
    found = []
    for name in TASKS:
        try:
            read(name)
            found.append(name)
        except DatasetNotFoundError as error:
            print(f"{TASKS[name].title} is left out: {error}")
    return found


def work(runs: Sequence[Run], path: Path, hours: float) -> None:
    """Does the runs and appends each to the file, until the time is over."""
    end = time.monotonic() + 3600 * hours
    path.parent.mkdir(parents=True, exist_ok=True)
    for run in tqdm(runs, desc="runs", disable=None):
        if time.monotonic() > end:
            break
        begin = time.process_time()
        figures = train(run["data"], run["p"], run["alpha"], METHODS[run["method"]](), run["seed"])
        append(path, run | figures | {"cpu_seconds": round(time.process_time() - begin, 2)})


def rows_of(done: Sequence[Run]) -> list[Run]:
    """Mean and standard deviation over the seeds for each data set, skew and method, in the order of `METHODS`."""
    cells = dict.fromkeys((run["data"], run["p"], run["alpha"]) for run in done)
    rows = []
    for data, p, alpha in cells:
        for method in METHODS:
            row: Run = {"data": data, "p": p, "alpha": alpha, "method": method}
            runs = [run for run in done if row.items() <= run.items()]
            figures = [{name: value for name, value in run.items() if name.startswith(KEPT)} for run in runs]
            if runs:
                rows.append(row | {"seeds": len(runs)} | summary(figures))
    return rows


COLUMNS = {
    "val/generic_acc": "generic, global",
    "val/generic_acc_local": "generic, local",
    "val/personal_acc": "personal, local",
    "val/personal_acc_worst_tenth": "worst tenth",
    "val/personal_acc_std": "spread over clients",
    "spec/generic_kl": "D, generic stage",
    "spec/personal_kl": "D, personal stage",
    "spec/generic_grad_ratio": "gradient ratio, generic",
    "spec/personal_grad_ratio": "gradient ratio, personal",
    "federated/bytes_up": "bytes up a round",
    "time/sequential": "clock, s",
    "time/wait_free": "clock, wait-free, s",
}


def _cell(name: str, value: tuple[float, float] | None) -> str:
    if value is None:
        return "–"
    if name.startswith("val/"):
        return f"{value[0]:.3f} ± {value[1]:.3f}"
    return f"{value[0]:.3g}"


def report(rows: Sequence[Run]) -> None:
    """Prints a table for each data set and skew."""
    for name, p, alpha in dict.fromkeys((row["data"], row["p"], row["alpha"]) for row in rows):
        chosen = [row for row in rows if (row["data"], row["p"], row["alpha"]) == (name, p, alpha)]
        table(
            f"{TASKS[name].title}, p = {p}, alpha = {alpha}, mean ± standard deviation over seeds",
            ["method", "seeds", *COLUMNS.values()],
            [[row["method"], row["seeds"], *(_cell(key, row.get(key)) for key in COLUMNS)] for row in chosen],
        )


def real_data(
    quick: bool, path: Path = RESULTS, names: Sequence[str] | None = None, hours: float = 2.0
) -> tuple[dict[str, float], list[Run]]:
    """Final accuracies of every method on real data; leaves out, and says so, the data sets that are not here.

    Args:
        quick: Three methods for three rounds on one skew and seed, and no file; else all runs that `path` lacks.
        path: JSON lines, one for each finished run.
        names: Data sets; None for all.
        hours: No run begins later than this.
    """
    here = [name for name in available() if names is None or name in names]
    if quick:
        chosen = ("FedAvg, fine-tuned", "Ditto 0.03", "spectral 0.3 / 0.4")
        runs: list[Run] = [
            {"data": name, "p": 0.5, "alpha": 1.0, "seed": 0, "method": method}
            | train(name, 0.5, 1.0, METHODS[method](), 0, rounds=3)
            for name in here
            for method in chosen
        ]
    else:
        work(missing(list(plan(here, SEEDS)), read_lines(path)), path, hours)
        runs = read_lines(path)
    rows = rows_of(runs)
    report(rows)
    return {}, rows


def draw(rows: Sequence[Run], path: Path) -> None:
    """Draws accuracies of the personal models, and of the generic one on the global test set, by method."""
    from matplotlib.figure import Figure

    cells = list(dict.fromkeys((row["data"], row["p"], row["alpha"]) for row in rows))
    methods = [method for method in METHODS if any(row["method"] == method for row in rows)][::-1]
    columns = min(len(cells), len(SKEWS))
    figure = Figure(figsize=(3.2 * columns + 1.6, 3.2 * -(-len(cells) // columns) + 0.6), layout="constrained")
    grid = figure.subplots(-(-len(cells) // columns), columns, squeeze=False, sharey=True).flat
    for axes, (name, p, alpha) in zip(grid, cells, strict=False):
        chosen = {row["method"]: row for row in rows if (row["data"], row["p"], row["alpha"]) == (name, p, alpha)}
        for key, label, marker in (
            ("val/personal_acc", "personal, on the clients' distributions", "o"),
            ("val/generic_acc", "generic, on the global test set", "s"),
        ):
            known = [(i, chosen[method][key]) for i, method in enumerate(methods) if key in chosen.get(method, {})]
            axes.errorbar(
                [value for _, (value, _) in known], [i for i, _ in known], xerr=[spread for _, (_, spread) in known],
                fmt=marker, capsize=3, label=label,
            )  # fmt: skip
        axes.set_yticks(range(len(methods)), methods)
        axes.set_title(f"{TASKS[name].title}, p = {p}, α = {alpha:g}", fontsize="medium")
        axes.set_xlabel("accuracy")
        axes.grid(axis="x", alpha=0.3)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=110)


def tune(name: str, methods: Sequence[str], rates: Sequence[float]) -> None:
    """Accuracies on training images that no client holds, for a seed that no result has."""
    for rate in rates:
        for method in methods:
            figures = train(name, 0.5, 1.0, CANDIDATES[method](), TUNING_SEED, rate=rate, tuning=True)
            print(rate, method, *(f"{key} {_cell(key, (figures[key], 0.0))}" for key in COLUMNS if key in figures))


def main() -> None:
    """Does the runs that are missing, prints the tables and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three methods, three rounds, no file")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON lines, one for each finished run")
    parser.add_argument("--data", nargs="+", choices=list(TASKS), help="only these data sets")
    parser.add_argument("--hours", type=float, default=2.0, help="begin no run later than this; 0 only reports")
    parser.add_argument("--plot", type=Path, help="draw the figure into this file")
    parser.add_argument("--tune", nargs="+", metavar="METHOD", help="only compare these on held-out training images")
    parser.add_argument("--rates", nargs="+", type=float, default=[0.1], help="learning rates for --tune")
    options = parser.parse_args()
    quiet()
    print(machine())
    if options.tune:
        for name in options.data or list(TASKS):
            tune(name, options.tune, options.rates)
        return
    _, rows = real_data(options.quick, options.results, options.data, options.hours)
    if options.plot is not None:
        draw(rows, options.plot)


if __name__ == "__main__":
    main()
