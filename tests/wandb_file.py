"""Reads the `.wandb` file of an offline run: LevelDB's log format around protobuf records."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_BLOCK, _FILE_HEADER, _RECORD_HEADER = 32768, 7, 7
_FULL, _LAST = 1, 4


@dataclass
class WandbRun:
    """What a run sent to W&B, or would have sent.

    Attributes:
        config: Settings, by name.
        history: One dict per logged row.
        media: Type of each logged picture, set of pictures or table, by name.
        finished: Whether the file has its exit record.
    """

    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    media: dict[str, str] = field(default_factory=dict)
    finished: bool = False

    @property
    def metrics(self) -> set[str]:
        """Names of all logged numbers."""
        return {name for row in self.history for name, value in row.items() if isinstance(value, int | float)}


def _records(content: bytes) -> Iterator[bytes]:
    position, whole = _FILE_HEADER, b""
    while position + _RECORD_HEADER <= len(content):
        left = _BLOCK - position % _BLOCK
        if left < _RECORD_HEADER:  # too little for a header: zeros up to the next block
            position += left
            continue
        length, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        start = position + _RECORD_HEADER
        whole += content[start : start + length]
        position = start + length
        if kind in (_FULL, _LAST):
            yield whole
            whole = b""


def read_run(folder: Path) -> WandbRun:
    """Reads the run of a folder `offline-run-*`, which must be finished."""
    (path,) = folder.glob("*.wandb")
    content, run = path.read_bytes(), WandbRun()
    assert content.startswith(b":W&B")
    for data in _records(content):
        record = wandb_internal_pb2.Record.FromString(data)
        for update in (*record.run.config.update, *record.config.update):
            *path, last = update.nested_key or [update.key]
            place = run.config
            for key in path:
                place = place.setdefault(key, {})
            place[last] = json.loads(update.value_json)
        run.finished |= record.HasField("exit")
        if record.HasField("history"):
            row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            run.history.append(row)
            run.media |= {name.removesuffix("/_type"): row[name] for name in row if name.endswith("/_type")}
    return run
