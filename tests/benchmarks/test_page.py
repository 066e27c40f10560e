"""The committed page is what the generator makes of the committed results."""

import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import _page, _pieces, _results
from benchmarks._compositions import COMPOSITIONS
from benchmarks._harness import spread
from benchmarks._pictures import draw_all
from benchmarks._results import measured, provenance


def test_the_committed_page_is_the_generated_one() -> None:
    assert _page.PAGE.read_text() == _page.page(), "run python -m benchmarks --page and commit what it writes"


def test_links_and_pictures_of_the_page_exist() -> None:
    text = _page.PAGE.read_text()
    for room in _pieces.ROOMS:
        assert f"plots/{room}.png" in text
        path = _page.PLOTS / f"{room}.png"
        with Image.open(path) as picture:
            assert picture.width >= 600
        assert path.stat().st_size < 60_000
    for target in {part.partition(")")[0] for part in text.split("](")[1:]}:
        assert (_page.HERE / target).exists(), target


def test_pictures_are_drawn_from_the_committed_results(tmp_path: Path) -> None:
    draw_all(tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == set(_pieces.ROOMS)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    runs = [{"task": "a", "seed": seed, "test": 0.5 + 0.1 * seed} for seed in range(3)]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in [*runs, {"task": "b", "test": 0.2}]))
    record = {"commit": "abc", "date": "2026-01-01", "rows": [{"name": "x", "mean": 0.9, "spread": 0.01, "seeds": 5}]}
    (tmp_path / "record.json").write_text(json.dumps(record))
    return tmp_path


def test_our_numbers_are_means_and_deviations_over_seeds(results: Path) -> None:
    selector = {"file": "runs.jsonl", "where": {"task": "a"}, "value": "test", "scale": 100.0}
    found = measured(selector, results)
    assert (found.text(), found.seeds) == ("60.0 ± 10.0", 3)
    single = {"file": "runs.jsonl", "where": {"task": "b"}, "value": "test"}
    assert measured(single, results).text(2) == "0.20"
    assert measured({**selector, "scale": 1.0, "over": single}, results).text() == "3.0 ± 0.5"
    summarized = {"file": "record.json", "path": ["rows"], "where": {"name": "x"}, "value": "mean", "scale": 100.0}
    assert (measured(summarized, results).text(), measured(summarized, results).seeds) == ("90.0 ± 1.0", 5)
    with pytest.raises(ValueError, match="no row with"):
        measured({**single, "where": {"task": "c"}}, results)


def test_a_results_file_that_changed_needs_its_provenance_again(results: Path) -> None:
    assert provenance("record.json", results).text() == "abc, 2026-01-01"
    entry = {"sha256": _results.digest(results / "runs.jsonl"), "commit": "def", "date": "2026-01-02"}
    (results / "provenance.json").write_text(json.dumps({"runs.jsonl": entry}))
    assert provenance("runs.jsonl", results).text() == "def, 2026-01-02 (when stored)"
    with (results / "runs.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(ValueError, match="has changed since"):
        provenance("runs.jsonl", results)


def test_publish_takes_the_newest_record_of_each_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_page, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    for number, name in enumerate(("0123456789", "abcdef0123")):
        path = tmp_path / f"red.quick-{name}.json"
        path.write_text(json.dumps({"piece": "red.quick", "commit": str(number), "date": "2026-01-01"}))
        os.utime(path, (number, number))
    _page.publish(tmp_path)
    assert json.loads((tmp_path / "results" / "red.quick.json").read_text())["commit"] == "1"
    with pytest.raises(FileNotFoundError, match="holds no finished piece"):
        _page.publish(tmp_path / "results")


# What the README's table of compositions states, in its order: the arm and the figure of the log.
STATED = {
    "private_federated_digits": [
        ("whole", "val/generic_acc"),
        ("ε = 2", "val/generic_acc"),
        ("independent noise", "val/generic_acc"),
        ("ε = 2, independent noise", "val/generic_acc"),
        ("no noise", "val/generic_acc"),
    ],
    "private_attention": [
        ("whole", "val/acc"),
        ("whole", "memory/softmax_after_mib"),
        ("no noise", "val/acc"),
        ("whole", "memory/softmax_before_mib"),
    ],
    "weighted_attention": [("whole", "test/acc"), ("no learned weights", "test/acc")],
    "spectral_mack": [
        ("whole", "spec/kl"),
        ("whole", "val/rsum"),
        ("no spectral term", "spec/kl"),
        ("no spectral term", "val/rsum"),
    ],
}


@pytest.mark.parametrize("name", STATED)
def test_the_readme_states_the_stored_numbers_of_the_compositions(name: str) -> None:
    runs = _results.load("compositions.numbers.json")["runs"]
    readme = (_page.HERE.parent / "README.md").read_text()
    (row,) = (line for line in readme.splitlines() if line.startswith(f"| `{name}`, 3 seeds |"))
    stated = re.findall(r"[\d.]+ ± [\d.]+|[\d.]+(?= MiB)", row)
    expected = []
    for arm, figure in STATED[name]:
        values = [run[figure] for run in runs if (run["composition"], run["arm"]) == (name, arm)]
        assert len(values) == 3
        text = spread(values, COMPOSITIONS[name].digits[figure])
        expected.append(text.partition(" ±")[0] if "mib" in figure else text)
    assert stated == expected
