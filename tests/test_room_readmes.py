"""Every room's README maps its paper to code that exists, and quotes sentences that the code really says."""

import ast
import re
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

import lit_methods

PACKAGE = Path(lit_methods.__file__).parent
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/README.md"))
SPAN = re.compile(r"`([^`]+)`")
NAME = re.compile(r"^\.?([A-Za-z_][\w.]*)")


def _section(room: str, title: str) -> str:
    text = (PACKAGE / room / "README.md").read_text()
    assert text.count(f"\n## {title}\n") == 1, f"{room}/README.md needs one section {title!r}"
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def _tables(room: str) -> list[tuple[list[str], list[list[str]]]]:
    """Header and rows of each table of the map."""
    blocks = re.findall(r"(?:^\|.*\|\n?)+", _section(room, "From the paper to the code"), re.MULTILINE)
    cut = [[re.split(r"(?<!\\)\|", line)[1:-1] for line in block.strip().splitlines()] for block in blocks]
    return [([cell.strip() for cell in rows[0]], rows[2:]) for rows in cut]


@cache
def _trees(*folders: str) -> tuple[ast.Module, ...]:
    return tuple(ast.parse(path.read_text()) for folder in folders for path in (PACKAGE / folder).rglob("*.py"))


@cache
def _identifiers(room: str) -> frozenset[str]:
    """Names of arguments, attributes and variables in the room and in the callbacks."""
    nodes = [node for tree in _trees(room, "callbacks", "datamodules") for node in ast.walk(tree)]
    return frozenset(
        [node.arg for node in nodes if isinstance(node, ast.arg)]
        + [node.id for node in nodes if isinstance(node, ast.Name)]
        + [node.attr for node in nodes if isinstance(node, ast.Attribute)]
    )


@cache
def _public(room: str) -> dict[str, object]:
    """What a short name of the map may stand for: the room's modules and all that they define."""
    found: dict[str, object] = {"lit_methods": lit_methods}
    for package in (f"lit_methods.{room}", "lit_methods.callbacks", "lit_methods.datamodules", "lit_methods"):
        home = import_module(package)
        names = [info.name for info in iter_modules(home.__path__)] if package.endswith(room) else []
        for module in (import_module(f"{package}.{name}") for name in names if name != "flower"):
            found |= {module.__name__.rpartition(".")[2]: module}
            found |= {name: value for name, value in vars(module).items() if not name.startswith("__")}
        found |= {name: getattr(home, name) for name in getattr(home, "__all__", ())}
    return found | {name: import_module(f"lit_methods.{name}") for name in ("callbacks", "datamodules")}


def _missing(room: str, name: str, method: bool) -> bool:
    first, *rest = name.split(".")
    if method or (not rest and first not in _public(room)):
        return first not in _identifiers(room) and not any(hasattr(part, first) for part in _public(room).values())
    found = _public(room).get(first)
    for part in rest:  # an attribute that only instances have counts by its name
        if isinstance(found, type) and not hasattr(found, part) and part in _identifiers(room):
            return False
        found = getattr(found, part, None)
    return found is None


@pytest.mark.parametrize("room", ROOMS)
def test_names_of_the_equation_to_code_map_are_in_the_code(room: str) -> None:
    (header, rows), *symbols = _tables(room)
    assert header[-1] == "code"
    assert len(rows) >= 5
    spans = [span for row in rows for span in SPAN.findall(row[1]) if span.isascii()]  # the others are formulas
    assert len(spans) >= len(rows)
    missing = []
    for span in spans:
        match = NAME.match(span)
        if span.endswith(".py"):
            missing += [] if (PACKAGE / room / span).is_file() else [span]
        elif match is None or _missing(room, match[1], span.startswith(".")):
            missing.append(span)
    for header, rows in symbols:
        if header[1] == "name here":
            named = [match for row in rows for span in SPAN.findall(row[1]) if (match := NAME.match(span))]
            missing += [match[1] for match in named if _missing(room, match[1], False)]
    assert missing == []


@cache
def _sentences(room: str) -> str:
    """All texts of the room, the callbacks and the data modules; what is filled in stays out."""
    texts = []
    for tree in _trees(room, "callbacks", "datamodules"):
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


@pytest.mark.parametrize("room", ROOMS)
def test_pitfalls_quote_what_the_code_says(room: str) -> None:
    text = SPAN.sub("", _section(room, "Pitfalls"))
    quoted = re.findall(r'"([^"]+)"', text)
    assert len(quoted) >= 4
    assert [quote for quote in quoted if quote.removesuffix(".") not in _sentences(room)] == []


@pytest.mark.parametrize("room", ROOMS)
def test_how_to_add_it_is_run_and_leads_to_a_whole_project(room: str) -> None:
    text = _section(room, "Add it to your project")
    assert "```python" in text
    assert "no-test" not in text
    assert "class Your" in text
    assert "examples/" in text
