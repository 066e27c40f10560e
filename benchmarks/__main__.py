"""Runs the benchmarks of all rooms, and writes the page that sets the papers' numbers beside ours.

python -m benchmarks --budget ci                    every room's --quick, about five minutes on two cores
python -m benchmarks --budget cpu-hour              steps, memory and accuracies, some 75 minutes on two cores
python -m benchmarks --budget gpu                   everything whole, and some of the papers' settings
python -m benchmarks --budget cpu-hour --list       what that would run, what it needs, and the minutes
python -m benchmarks --publish FOLDER               puts the finished pieces of FOLDER into benchmarks/results
python -m benchmarks --page                         writes benchmarks/README.md and its pictures from these results

Finished pieces are JSON files in the results folder, named by the piece, the commit and the settings; the same command
goes on where it was killed. A piece that fails costs no other, is named at the end, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks._pieces import BUDGETS, Budget, Piece
from benchmarks._summary import closing, listing, write_summary


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__, formatter_class=formatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--budget", choices=[budget.value for budget in Budget], help="run the pieces of this size")
    action.add_argument("--page", action="store_true", help="write benchmarks/README.md and its pictures")
    action.add_argument("--publish", type=Path, metavar="FOLDER", help="take over that folder's finished pieces")
    parser.add_argument("--results", type=Path, default=Path("runs/benchmarks"), help="folder of finished pieces")
    parser.add_argument("--only", help="pieces whose name contains this")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="untimed pieces side by side")
    parser.add_argument("--list", action="store_true", help="show the pieces of the budget and end")
    options = parser.parse_args(argv)
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: at least one piece must run at a time")
    return options


def _chosen(options: argparse.Namespace) -> list[Piece]:
    pieces = BUDGETS[Budget(options.budget)]
    return [piece for piece in pieces if options.only is None or options.only in piece.name]


def main(argv: list[str] | None = None) -> int:
    """Runs what the arguments ask for.

    Args:
        argv: The arguments; None reads them from the command line.

    Returns:
        The exit code: 1 if a piece failed, 2 if no piece has that name, else 0.
    """
    options = _arguments(argv)
    if options.budget is None:
        from benchmarks._page import publish, write_page  # here: pictures need matplotlib

        if options.publish is not None:
            publish(options.publish)
        else:
            write_page()
        return 0
    pieces = _chosen(options)
    if not pieces:
        print(f"--only {options.only}: no piece of the budget {options.budget} has that in its name.", file=sys.stderr)
        return 2
    if options.list:
        print(listing(pieces))
        return 0
    from benchmarks._runner import run

    outcomes = run(Budget(options.budget), pieces, options.results, options.jobs)
    write_summary(outcomes, options.results / f"summary-{options.budget}.md")
    print(closing(outcomes, options.results))
    return int(any(outcome.status == "failed" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
