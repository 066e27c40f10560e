"""The committed results: our numbers as means and spreads over seeds, and where each file comes from."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks._records import git, write

RESULTS = Path(__file__).parent / "results"
PROVENANCE = RESULTS / "provenance.json"
Selector = Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """One number of ours.

    Attributes:
        mean: Over the seeds.
        spread: Standard deviation over the seeds; None for a single one.
        seeds: Their number.
    """

    mean: float
    spread: float | None
    seeds: int

    def text(self, digits: int = 1) -> str:
        """Mean ± standard deviation, or the one value."""
        spread = "" if self.spread is None else f" ± {self.spread:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"


@cache
def load(name: str, folder: Path = RESULTS) -> Any:
    """The content of a results file; JSON lines as a list."""
    text = (folder / name).read_text()
    return [json.loads(line) for line in text.splitlines()] if name.endswith(".jsonl") else json.loads(text)


def rows(selector: Selector, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The rows of a results file that a selector names.

    Args:
        selector: `file`; `path`, the keys that lead to the rows; `where`, what they must hold.
        folder: The results.

    Raises:
        ValueError: If there is no such row.
    """
    found = load(selector["file"], folder)
    for key in selector.get("path", ()):
        found = found[key]
    where = selector.get("where", {})
    chosen = [row for row in found if all(row.get(key) == value for key, value in where.items())]
    if not chosen:
        raise ValueError(f"{selector['file']} has no row with {dict(where)} under {list(selector.get('path', ()))}.")
    return chosen


def measured(selector: Selector, folder: Path = RESULTS) -> Measured:
    """The number that a selector names.

    Args:
        selector: As of `rows`, with `value`, the key of the number; `scale`, a factor (1); and `over`, a selector of
            what the number is divided by. A row with `seeds` and `spread` has been summarized already.
        folder: The results.

    Raises:
        ValueError: If there is no such row.
    """
    found, key, scale = rows(selector, folder), selector["value"], selector.get("scale", 1.0)
    if "over" in selector:
        scale /= measured(selector["over"], folder).mean
    if len(found) == 1 and {"spread", "seeds"} <= found[0].keys():
        return Measured(scale * found[0][key], scale * found[0]["spread"], found[0]["seeds"])
    values = [scale * float(row[key]) for row in found]
    return Measured(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class Provenance:
    """Where a results file comes from.

    Attributes:
        commit: Of the code that ran where the file holds it, else of what stored the file.
        date: Of the run, or of that commit.
        is_recorded: Whether the file itself holds both.
    """

    commit: str
    date: str
    is_recorded: bool

    def text(self) -> str:
        """For the page."""
        return f"{self.commit}, {self.date}{'' if self.is_recorded else ' (when stored)'}"


def provenance(name: str, folder: Path = RESULTS) -> Provenance:
    """Commit and date of a results file, from its record, else from `provenance.json`.

    Raises:
        ValueError: If the file has changed since `provenance.json` was written, or is not in it.
    """
    content = load(name, folder)
    if isinstance(content, dict) and "commit" in content:
        return Provenance(content["commit"], content["date"], True)
    entry = load(PROVENANCE.name, folder).get(name, {})
    if entry.get("sha256") != digest(folder / name):
        raise ValueError(f"{name} has changed since {PROVENANCE.name} was written: run python -m benchmarks --page.")
    return Provenance(entry["commit"], entry["date"], False)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def update_provenance() -> None:
    """Notes, for each file without a record of its own, the last commit that touched it, by `git log`.

    Raises:
        ValueError: If such a file has changes that are not committed.
    """
    known = json.loads(PROVENANCE.read_text()) if PROVENANCE.exists() else {}
    found = {}
    for path in sorted(RESULTS.glob("*.json*")):
        content = load(path.name)
        if path == PROVENANCE or (isinstance(content, dict) and "commit" in content):
            continue
        if known.get(path.name, {}).get("sha256") == digest(path):
            found[path.name] = known[path.name]
            continue
        if git("status", "--porcelain", "--", str(path)):
            raise ValueError(f"{path.name} has no commit of its own, and git has none for it: commit the file first.")
        commit, date = git("log", "-1", "--format=%h %cs", "--", str(path)).split()
        found[path.name] = {"sha256": digest(path), "commit": commit, "date": date}
    write(PROVENANCE, found)
    load.cache_clear()
