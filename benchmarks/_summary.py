"""What a run of `python -m benchmarks` says at its end, and before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks._aims import verdict
from benchmarks._pieces import Piece

if TYPE_CHECKING:
    from benchmarks._runner import Outcome


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join([*lines, *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows)])


def listing(pieces: Sequence[Piece]) -> str:
    """The pieces with their expected minutes and what they lack."""
    rows = [
        [piece.name, f"{piece.minutes:g}", "alone" if piece.is_timed else "side by side", "; ".join(piece.missing())]
        for piece in pieces
    ]
    total = sum(piece.minutes for piece in pieces)
    return f"{markdown(['piece', 'minutes', 'runs', 'skipped because'], rows)}\n\n{total:g} minutes one after the other"


def headline_rows(headlines: dict[str, float]) -> list[list[str]]:
    """Key, measured value, aim, and whether it is met."""
    return [[f"`{key}`", f"{value:.4g}", *verdict(key, value)] for key, value in headlines.items()]


def write_summary(outcomes: Sequence[Outcome], path: Path) -> None:
    """Headlines beside their aims, then all tables that the pieces printed."""
    rows = [
        [o.piece.name, o.status, f"{o.record['seconds']:.0f}" if o.record else "", o.reason.replace("|", "/")]
        for o in outcomes
    ]
    parts = ["# Summary", markdown(["piece", "status", "seconds", "reason"], rows)]
    for outcome in outcomes:
        if outcome.record is not None:
            record = outcome.record
            parts.append(f"## {record['piece']}")
            parts.append(f"`{record['command']}`, commit {record['commit']}, {record['date']}, {record['machine']}")
            if record["headlines"]:
                parts.append(markdown(["headline", "measured", "aim", ""], headline_rows(record["headlines"])))
            parts.append(record["tables"])
    path.write_text("\n\n".join(part for part in parts if part) + "\n")


def closing(outcomes: Sequence[Outcome], folder: Path) -> str:
    """The last lines of a run: how many pieces ended how, and what failed."""
    counts = {status: sum(o.status == status for o in outcomes) for status in ("finished", "kept", "skipped", "failed")}
    lines = [", ".join(f"{count} {status}" for status, count in counts.items() if count) + f"; results in {folder}"]
    lines += [f"failed: {o.piece.name}: {o.reason}" for o in outcomes if o.status == "failed"]
    return "\n".join(lines)
