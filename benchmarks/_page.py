"""Writes `benchmarks/README.md`: each paper's numbers beside ours, with seeds, spread, budget, commit and date."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from benchmarks._compositions import COMPOSITIONS, columns, lines
from benchmarks._pieces import ROOMS
from benchmarks._records import write
from benchmarks._results import RESULTS, load, measured, provenance, update_provenance
from benchmarks._summary import headline_rows, markdown

HERE = Path(__file__).parent
PAGE = HERE / "README.md"
PAPER = HERE / "paper.toml"
PLOTS = HERE / "plots"

INTRODUCTION = """\
# The papers' numbers beside ours

Written by `python -m benchmarks --page` from `benchmarks/results` and `benchmarks/paper.toml`; a test holds this page \
to them. Ours are means ± standard deviations over seeds; without ± it is a single run or a quantity that does not \
vary. Where a cell is empty, the paper does not report the number or we have not run it.

Commit and date are those of the run where its record has them. Older result files carry neither: theirs are those of \
the commit that stored the file, read from `git log`, and marked "when stored". \
Times and memory stand here where their results are stored; the rooms' READMEs have the others.

```bash
python -m benchmarks --budget ci --results FOLDER         # every room's --quick, about five minutes on two cores
python -m benchmarks --budget cpu-hour --results FOLDER   # steps, memory and accuracies, some 75 minutes on two cores
python -m benchmarks --budget gpu --results FOLDER        # everything whole, and some of the papers' settings
python -m benchmarks --budget cpu-hour --list             # the pieces, their minutes, and what is missing here
python -m benchmarks --publish FOLDER && python -m benchmarks --page   # take the results over, write this page
```

A killed run goes on where it stopped. A piece that needs data or a GPU that is not here is skipped with the \
reason, and one that fails is named at the end. The folder also \
holds `summary-<budget>.md` with all tables, and the drawings."""


def page(folder: Path = RESULTS) -> str:
    """The whole page, from the committed results alone."""
    methods = tomllib.loads(PAPER.read_text())
    parts = [
        INTRODUCTION,
        *(_method(room, methods[room], folder) for room in ROOMS),
        _compositions(folder),
        _lightness(folder),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _method(room: str, method: dict[str, Any], folder: Path) -> str:
    shown = [_row(row, folder) for row in method["rows"]]
    parts = [
        f"## [{method['title']}](../lit_methods/{room}/README.md)",
        f"{method['paper']}. {method['known']}",
        f"![{method['picture']}](plots/{room}.png)",
        f"*{method['picture']}.*",
        markdown(["setting", "method", "paper", "from", "ours", "seeds"], shown),
        f"**Our budget.** {method['budget']}",
        f"**Where ours come from.** {method['command']}: {_sources(method['rows'], folder)}.",
        "**Not reached, and why.**\n\n" + "\n".join(f"- {sentence}" for sentence in method["shortfalls"]),
        _headlines(room, folder),
    ]
    return "\n\n".join(part for part in parts if part)


def _row(row: dict[str, Any], folder: Path) -> list[str]:
    cells = [row["setting"], row["method"], row.get("paper", ""), row.get("source", "")]
    if "ours" not in row:
        return [*cells, "not run", ""]
    found = measured(row["ours"], folder)
    return [*cells, found.text(row.get("digits", 1)), str(found.seeds)]


def _sources(rows: list[dict[str, Any]], folder: Path) -> str:
    files = dict.fromkeys(row["ours"]["file"] for row in rows if "ours" in row)
    return "; ".join(f"[`{name}`](results/{name}), {provenance(name, folder).text()}" for name in files)


def _headlines(room: str, folder: Path) -> str:
    rows = []
    for path in sorted(folder.glob(f"{room}[._]*.json")):
        content = load(path.name, folder)
        if isinstance(content, dict) and content.get("headlines"):
            source = f"[`{path.name}`](results/{path.name}), {provenance(path.name, folder).text()}"
            rows += [[*cells, source] for cells in headline_rows(content["headlines"])]
    if not rows:
        return ""
    note = "**Time and memory**, one run each on a machine that other jobs shared; `.quick` is a small run."
    return f"{note}\n\n{markdown(['headline', 'measured', 'aim', '', 'from'], rows)}"


def _compositions(folder: Path) -> str:
    name = "compositions.numbers.json"
    if not (folder / name).exists():
        return ""
    record = load(name, folder)
    parts = [
        "## The methods together",
        "Each file of [configs/compositions](../configs/compositions) whole and without one of its parts: mean ± "
        "standard deviation over the seeds after the last epoch. The README says what is compared.",
        *(f"`{config}`\n\n{markdown(columns(config), lines(config, record['runs']))}" for config in COMPOSITIONS),
        f"`{record['command']}`: [`{name}`](results/{name}), {provenance(name, folder).text()}.",
    ]
    return "\n\n".join(parts)


def _lightness(folder: Path) -> str:
    found = _headlines("lightness", folder)
    return found and f"## What importing costs\n\nSeconds of one process, `python -m benchmarks.lightness`.\n\n{found}"


def write_page() -> None:
    """Writes the page, the pictures, and the provenance of results that have no record of their own."""
    from benchmarks._pictures import draw_all

    update_provenance()
    PAGE.write_text(page())
    draw_all(PLOTS)


def publish(source: Path) -> None:
    """Takes the newest record of each piece in a folder over into `benchmarks/results`.

    Raises:
        FileNotFoundError: If the folder holds no record.
    """
    records = sorted(source.glob("*-??????????.json"), key=lambda path: path.stat().st_mtime)
    if not records:
        raise FileNotFoundError(f"{source} holds no finished piece: run python -m benchmarks --results {source} first.")
    for path in records:
        record = json.loads(path.read_text())
        write(RESULTS / f"{record['piece']}.json", record)
        print(f"{record['piece']}.json: commit {record['commit']}, {record['date']}")
