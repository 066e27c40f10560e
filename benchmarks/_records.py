"""Finished pieces on disk: one JSON file each, named by the piece and a key of its code and settings."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks._pieces import DATA, Piece

ROOT = Path(__file__).parents[1]
CODE = ("lit_methods", "callbacks", "datamodules", "configs", "benchmarks/*.py")
Record = dict[str, Any]
_SHOWN = {"json": "FILE", "lines": "FILE", "plots": "FOLDER"}


def git(*arguments: str) -> str:
    """What git prints in the repository; nothing where there is none."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S607  git of the path
    return done.stdout.strip() if done.returncode == 0 else ""


def revision() -> str:
    """The commit, with a digest of what differs from it in the code; the version where there is no repository."""
    commit = git("rev-parse", "--short=10", "HEAD")
    if not commit:
        return f"lit-methods {importlib.metadata.version('lit-methods')}"
    changes = git("diff", "HEAD", "--", *CODE)
    for name in git("ls-files", "--others", "--exclude-standard", "--", *CODE).splitlines():
        changes += name + hashlib.sha256((ROOT / name).read_bytes()).hexdigest()
    return f"{commit}+{hashlib.sha256(changes.encode()).hexdigest()[:8]}" if changes else commit


def machine() -> str:
    """Cores and versions, without importing torch."""
    versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "lightning"))
    return f"{platform.machine()}, {os.cpu_count()} cores; {versions}"


@dataclass(frozen=True)
class Place:
    """Where a piece leaves its files.

    Attributes:
        piece: The piece.
        folder: The results folder.
        revision: The code that runs, see `revision`.
    """

    piece: Piece
    folder: Path
    revision: str

    @property
    def stem(self) -> str:
        """The piece and a digest of its command, the code, and whether real data is at hand."""
        settings = [self.piece.module, self.piece.arguments, self.revision, DATA.is_met()]
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
        return f"{self.piece.name}-{digest[:10]}"

    @property
    def record(self) -> Path:
        """The file that says that the piece is finished."""
        return self.folder / f"{self.stem}.json"

    @property
    def log(self) -> Path:
        """What the piece prints."""
        return self.folder / "logs" / f"{self.stem}.log"

    @property
    def figures(self) -> Path:
        """What its `--json` writes; `keep` moves it into the record."""
        return self.folder / "logs" / f"{self.stem}.figures.json"

    @property
    def lines(self) -> Path:
        """JSON lines of an experiment, which it goes on from."""
        return self.folder / f"{self.stem}.jsonl"

    def arguments(self) -> list[str]:
        """The flags with their files."""
        names = {"json": self.figures, "lines": self.lines, "plots": self.folder / "plots"}
        return [argument.format_map(names) for argument in self.piece.arguments]


def kept(place: Place) -> Record | None:
    """The record of a finished piece; None if it must run."""
    return json.loads(place.record.read_text()) if place.record.exists() else None


def keep(place: Place, budget: str, seconds: float) -> Record:
    """Writes the record of a piece that has just ended well, at once or not at all."""
    text = place.log.read_text(errors="replace")
    record: Record = {
        "piece": place.piece.name,
        "command": " ".join(["python -m", place.piece.module, *place.piece.arguments]).format_map(_SHOWN),
        "budget": budget,
        "commit": place.revision,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "real data": DATA.is_met(),
        "seconds": round(seconds, 1),
        "headlines": headlines(text),
        "tables": tables(text),
    }
    if place.figures.exists():
        record["figures"] = json.loads(place.figures.read_text())
    if place.lines.exists():
        record["runs"] = [json.loads(line) for line in place.lines.read_text().splitlines()]
    write(place.record, record)
    return record


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON whole or not at all."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    draft.replace(path)


def headlines(text: str) -> dict[str, float]:
    """The lines `headline <key> <value>` of what a benchmark printed."""
    return {key: float(value) for key, value in re.findall(r"^headline (\S+) (\S+)$", text, re.MULTILINE)}


def tables(text: str) -> str:
    """The Markdown tables, with their titles, of what a benchmark printed."""
    found = [line for line in text.splitlines() if line.startswith(("### ", "|"))]
    return "\n".join(f"\n{line}\n" if line.startswith("### ") else line for line in found).strip()
