"""What really happened to each softmax of a model: the report that is shown before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

MIB = 2**20


@dataclass
class Row:
    """One attention (or other softmax) of the model.

    Attributes:
        module: Its name in the model.
        route: How its softmax was reached: ``hugging face``, ``multihead``, ``saved tensors``; empty if it was not.
        codec: What was kept of it; empty if it was not covered.
        before: Bytes that the model's own way keeps of softmax, dropout and value product.
        after: Bytes that are kept now.
        note: Why it is not covered, or what else to know.
    """

    module: str
    route: str = ""
    codec: str = ""
    before: int = 0
    after: int = 0
    note: str = ""

    @property
    def covered(self) -> bool:
        """Whether a codec stood for its weights."""
        return bool(self.codec)


@dataclass
class Coverage:
    """Figures of one forward pass.

    Attributes:
        rows: By name of the module.
        masks: Masks that are counted already, once for all layers.
        total: Bytes that the whole forward pass kept, this way; 0 if not measured.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    masks: list[Tensor] = field(default_factory=list)
    total: int = 0

    def add(self, row: Row) -> None:
        """Adds one call; a module that is called again adds up."""
        known = self.rows.setdefault(row.module, row)
        if known is not row:
            known.before += row.before
            known.after += row.after
            known.route, known.codec = row.route or known.route, row.codec or known.codec
            known.note = row.note or known.note

    @property
    def before(self) -> int:
        """Bytes of all covered softmaxes, the model's own way."""
        return sum(row.before for row in self.rows.values() if row.covered)

    @property
    def after(self) -> int:
        """Bytes of all covered softmaxes now."""
        return sum(row.after for row in self.rows.values() if row.covered)

    @property
    def uncovered(self) -> int:
        """Bytes of softmaxes that no route reached."""
        return sum(row.before for row in self.rows.values() if not row.covered)

    @property
    def any(self) -> bool:
        """Whether anything is covered."""
        return any(row.covered for row in self.rows.values())

    def figures(self) -> dict[str, float]:
        """Figures for a logger, in MiB where they are bytes."""
        figures = {
            "memory/softmax_before_mib": self.before / MIB,
            "memory/softmax_after_mib": self.after / MIB,
            "memory/uncovered_mib": self.uncovered / MIB,
        }
        if self.after:
            figures["memory/softmax_factor"] = self.before / self.after
        if self.total:
            figures["memory/saved_before_mib"] = (self.total + self.before - self.after) / MIB
            figures["memory/saved_after_mib"] = self.total / MIB
        return figures

    def columns(self) -> list[str]:
        """Titles of :meth:`table`."""
        return ["module", "route", "codec", "before_bytes", "after_bytes", "note"]

    def table(self) -> list[Sequence[str | int]]:
        """One line for each module."""
        return [
            (row.module, row.route or "not covered", row.codec, row.before, row.after, row.note)
            for row in self.rows.values()
        ]

    def advice(self) -> list[str]:
        """Sentences for whom another way would serve better."""
        sentences = []
        checkpointed = [row.module for row in self.rows.values() if "checkpointing" in row.note]
        measured = [row for row in self.rows.values() if row.covered and row.module not in checkpointed]
        needless = [row.module for row in measured if row.before <= row.after]
        if needless:
            sentences.append(
                f"{_some(needless)} kept no more before than now: its fused kernel stores nothing quadratic. Leave such"
                " modules out (`modules=`), or drop this callback."
            )
        if checkpointed:
            sentences.append(
                f"Activation checkpointing around {_some(checkpointed)} keeps nothing of it anyway: the codec works in"
                " the second forward pass only, and saves memory there alone."
            )
        if needless:
            return sentences
        lossy = [row for row in self.rows.values() if row.covered and row.route in ("hugging face", "multihead")]
        if lossy and any(row.codec not in ("recompute", "merged") for row in lossy):
            sentences.append(
                "All scores of these modules come from query and key: codec='recompute' keeps less still, with exact"
                " gradients. On a GPU without attention maps a fused kernel does the same faster (of transformers:"
                " attn_implementation='sdpa')."
            )
        return sentences

    def describe(self) -> str:
        """The table, the totals and the advice, as text."""
        cells = [["module", "route", "codec", "before", "after", ""]]
        for row in self.rows.values():
            route = row.route or "not covered"
            cells.append([row.module, route, row.codec, _mib(row.before), _mib(row.after), row.note])
        widths = [max(len(line[column]) for line in cells) for column in range(6)]
        lines = ["Kept for backward of softmax, dropout and value product, for one batch:"]
        lines += ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in cells]
        factor = f", {self.before / self.after:.1f} times less" if 0 < self.after < self.before else ""
        lines.append(f"covered: {_mib(self.before)} before, {_mib(self.after)} now{factor}")
        if self.total:
            whole = self.total + self.before - self.after
            lines.append(f"the whole model keeps {_mib(whole)} before, {_mib(self.total)} now")
        if self.uncovered:
            share = self.uncovered / (self.uncovered + self.before)
            lines.append(f"not covered: {_mib(self.uncovered)}, {share:.0%} of what was found")
        return "\n".join([line.rstrip() for line in lines] + self.advice())


def _mib(nbytes: int) -> str:
    return f"{nbytes / MIB:.2f} MiB"


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
