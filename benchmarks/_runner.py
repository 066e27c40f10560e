"""Runs pieces in processes of their own: timed ones one by one, the others side by side, and none takes others down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks._pieces import Budget, Piece
from benchmarks._records import ROOT, Place, Record, keep, kept, revision

_BAR = "{desc} {percentage:3.0f}%|{bar}| of {total:.0f} expected minutes, {elapsed}{postfix}"
PATIENCE, LEAST_MINUTES = 8.0, 20.0  # times the expected minutes, and at least so many


@dataclass(frozen=True)
class Outcome:
    """How a piece ended.

    Attributes:
        piece: The piece.
        status: `finished`, `kept` from an earlier run, `skipped`, or `failed`.
        reason: Why it was skipped or failed.
        record: What is on disk, of a piece that is finished or kept.
    """

    piece: Piece
    status: str
    reason: str = ""
    record: Record | None = None


def run(budget: Budget, pieces: Sequence[Piece], folder: Path, jobs: int) -> list[Outcome]:
    """Runs what has no record in the folder yet.

    Args:
        budget: Goes into the records.
        pieces: What to run.
        folder: Where records, logs and drawings go.
        jobs: How many pieces that are not timed run side by side.

    Returns:
        An outcome for each piece, in their order.
    """
    for name in ("logs", "plots"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    code = revision()
    places = {piece.name: Place(piece, folder, code) for piece in pieces}
    found: dict[str, Outcome] = {}
    total = sum(piece.minutes for piece in pieces)
    with tqdm(total=total, desc=budget.value, bar_format=_BAR) as bar:

        def settle(outcome: Outcome) -> None:
            found[outcome.piece.name] = outcome
            tqdm.write(f"{outcome.status:8} {outcome.piece.name}{outcome.reason and ': ' + outcome.reason}")
            bar.update(outcome.piece.minutes)

        todo = []
        for piece in pieces:
            record, missing = kept(places[piece.name]), piece.missing()
            if record is not None:
                settle(Outcome(piece, "kept", record=record))
            elif missing:
                settle(Outcome(piece, "skipped", "; ".join(missing)))
            else:
                todo.append(piece)
        for piece in todo:
            if piece.is_timed:
                bar.set_postfix_str(piece.name)
                settle(_run(places[piece.name], budget, 1, []))
        others = [piece for piece in todo if not piece.is_timed]
        bar.set_postfix_str(f"{len(others)} side by side" if len(others) > 1 else "")
        _side_by_side([places[piece.name] for piece in others], budget, jobs, settle)
    return [found[piece.name] for piece in pieces]


def _side_by_side(places: list[Place], budget: Budget, jobs: int, settle: Callable[[Outcome], None]) -> None:
    started: list[subprocess.Popen[bytes]] = []
    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(_run, place, budget, jobs, started) for place in places]
        try:
            for done in as_completed(running):
                settle(done.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in started:
                _end(process)
            raise


def _run(place: Place, budget: Budget, jobs: int, started: list[subprocess.Popen[bytes]]) -> Outcome:
    """One piece in a process group of its own, so that its own processes end with it."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    if budget is Budget.CI:
        environment.setdefault("HF_HUB_OFFLINE", "1")  # absent data is left out at once, without asking the hub
    if jobs > 1:
        environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks._watched", place.piece.module, *place.arguments()]
    limit = 60 * max(LEAST_MINUTES, PATIENCE * place.piece.minutes)
    start = time.monotonic()
    with place.log.open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        started.append(process)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            _end(process)
            return Outcome(place.piece, "failed", f"it ran past {limit / 60:.0f} minutes; see {place.log}")
        except BaseException:
            _end(process)
            raise
    if code:
        said = [line.strip() for line in place.log.read_text(errors="replace").splitlines() if line.strip()]
        last = said[-1][:200] if said else "it printed nothing"
        return Outcome(place.piece, "failed", f"exit code {code}, {last}; see {place.log}")
    try:
        record = keep(place, budget.value, time.monotonic() - start)
    except ValueError as error:
        return Outcome(place.piece, "failed", f"its results are no JSON, {error}; see {place.log}")
    return Outcome(place.piece, "finished", record=record)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a piece and the processes that it has started."""
    if process.poll() is not None:
        return
    if os.name == "posix":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
