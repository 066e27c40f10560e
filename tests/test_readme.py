"""Every Python example of every README runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", *sorted((ROOT / "lit_methods").glob("*/README.md"))]
BLOCK = re.compile(r"(?:<!-- no-test: (?P<reason>.+?) -->\s*)?^```python\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#|mailto:)(?P<target>[^)#\s]+)")


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_run(readme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    text = readme.read_text()
    for block in BLOCK.finditer(text):
        if block["reason"]:
            print(f"not run: {block['reason']}")
            continue
        line = text.count("\n", 0, block.start("code"))
        exec(compile("\n" * line + block["code"], str(readme), "exec"), namespace)  # noqa: S102  our own README


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(readme: Path) -> None:
    missing = [
        link["target"] for link in LINK.finditer(readme.read_text()) if not (readme.parent / link["target"]).exists()
    ]
    assert missing == []


def test_every_composition_is_in_both_tables() -> None:
    text = (ROOT / "README.md").read_text().split("\n## They compose\n")[1].split("\n## ")[0]
    shown = re.findall(r"^\| `(\w+)`, \d seeds?  ?\|", text, re.MULTILINE)
    assert sorted(shown) == sorted(path.stem for path in (ROOT / "configs/compositions").glob("*.yaml"))
    assert set(shown) <= set(re.findall(r"yes: `(\w+)`", text))
