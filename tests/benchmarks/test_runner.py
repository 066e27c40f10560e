"""`python -m benchmarks`: it resumes, skips with a reason, and loses nothing when a piece fails or it is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import _pieces, _records, _runner
from benchmarks._aims import verdict
from benchmarks._pieces import BUDGETS, Budget, Need, Piece

STUB = "tests.benchmarks.stub"
GOOD = Piece("red.figures", STUB, ("figures", "{json}"), 0.1, is_timed=True)
LINES = Piece("red.lines", STUB, ("lines", "{lines}"), 0.1)
BAD = Piece("red.bad", STUB, ("fails", "{json}"), 0.1)
ABSENT = Piece("red.absent", STUB, ("figures", "{json}"), 0.1, (Need("there is no moon", lambda: False),))


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_records, "revision", lambda: "abc")
    monkeypatch.setattr(_runner, "revision", lambda: "abc")
    monkeypatch.setitem(BUDGETS, Budget.CI, (BAD, GOOD, ABSENT))


def run(folder: Path) -> int:
    return command.main(["--budget", "ci", "--results", str(folder)])


@pytest.mark.usefixtures("pieces")
def test_a_failed_piece_costs_no_other_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) == 1
    said = capsys.readouterr().out
    assert "1 finished, 1 skipped, 1 failed" in said
    assert "failed: red.bad: exit code 1, it went wrong" in said
    summary = (tmp_path / "summary-ci.md").read_text()
    assert "| red.absent | skipped |  | there is no moon |" in summary
    assert "| `step_log4_vs_eager` | 1.5 | ≤ 1.6 | met |" in summary
    assert "### a table" in summary
    (record,) = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert record["piece"] == "red.figures"
    assert record["figures"] == {"value": [1, 2]}
    assert record["headlines"] == {"step_log4_vs_eager": 1.5}
    assert {"commit", "date", "machine", "seconds", "budget"} <= record.keys()


@pytest.mark.usefixtures("pieces")
def test_finished_pieces_do_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUDGETS, Budget.CI, (GOOD,))
    assert run(tmp_path) == 0
    (path,) = tmp_path.glob("*.json")
    path.write_text(path.read_text().replace('"seconds"', '"marked": 1, "seconds"'))
    assert run(tmp_path) == 0
    assert "marked" in path.read_text()
    monkeypatch.setattr(_runner, "revision", lambda: "another commit")
    assert run(tmp_path) == 0
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_a_record_belongs_to_its_command_code_and_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def stem(piece: Piece = GOOD, code: str = "abc") -> str:
        return _records.Place(piece, Path(), code).stem

    monkeypatch.delenv("LIT_METHODS_DATA", raising=False)
    first = stem()
    assert first == stem()
    others = {stem(Piece(GOOD.name, STUB, ("figures", "{json}", "--seed", "1"), 0.1)), stem(code="abd")}
    monkeypatch.setenv("LIT_METHODS_DATA", str(Path(__file__).parent))
    others.add(stem())
    assert len(others - {first}) == 3


RUN = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
from pathlib import Path
from benchmarks import _runner
from benchmarks._pieces import Budget
from tests.benchmarks.test_runner import GOOD, LINES
_runner.revision = lambda: "abc"
print([o.status for o in _runner.run(Budget.CI, [GOOD, LINES], Path(FOLDER), 1)])
"""


@pytest.mark.skipif(os.name != "posix", reason="it kills by signals")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_goes_on_where_it_stopped(sent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = RUN.replace("FOLDER", repr(str(tmp_path)))
    process = subprocess.Popen([sys.executable, "-c", code], cwd=_records.ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while sum(len(path.read_text().splitlines()) for path in tmp_path.glob("red.lines*.jsonl")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(sent)
    try:
        process.wait(20)
    finally:
        process.kill()
        process.wait()
    assert len(list(tmp_path.glob("red.figures*.json"))) == 1
    monkeypatch.setattr(_runner, "revision", lambda: "abc")
    outcomes = _runner.run(Budget.CI, [GOOD, LINES], tmp_path, 1)
    assert [outcome.status for outcome in outcomes] == ["kept", "finished"]
    assert outcomes[1].record is not None
    assert [(row["run"], row["resumed at"]) for row in outcomes[1].record["runs"]] == [(0, 0), (1, 0), (2, 2), (3, 2)]


@pytest.mark.skipif(os.name != "posix", reason="it kills by SIGKILL")
def test_a_piece_ends_with_the_run_that_started_it(tmp_path: Path) -> None:
    code = f"""if True:
        import subprocess, sys, os
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks._watched", "{STUB}", "sleeps", "-"],
            stdout=subprocess.DEVNULL, start_new_session=True,
        )
        print(child.pid, flush=True)
        input()
        """
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=_records.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.5)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 20
    while _lives(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_a_piece_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runner, "LEAST_MINUTES", 1.0 / 60)
    (outcome,) = _runner.run(Budget.CI, [Piece("red.slow", STUB, ("sleeps", "-"), 0.0)], tmp_path, 1)
    assert outcome.status == "failed"
    assert "it ran past" in outcome.reason


def test_results_that_are_no_json_fail_their_piece_alone(tmp_path: Path) -> None:
    garbled = Piece("red.garbled", STUB, ("garbles", "{json}"), 0.1, is_timed=True)
    outcomes = _runner.run(Budget.CI, [garbled, GOOD], tmp_path, 1)
    assert [outcome.status for outcome in outcomes] == ["failed", "finished"]
    assert "its results are no JSON" in outcomes[0].reason


def test_every_piece_has_a_name_of_its_own_a_module_and_a_budget(capsys: pytest.CaptureFixture[str]) -> None:
    for budget, pieces in BUDGETS.items():
        names = [piece.name for piece in pieces]
        assert len(set(names)) == len(names)
        assert {piece.room for piece in pieces} >= set(_pieces.ROOMS)
        for piece in pieces:
            base = _records.ROOT / piece.module.replace(".", "/")
            assert base.with_suffix(".py").exists() or (base / "__main__.py").exists()
            assert piece.minutes > 0, budget
    assert sum(piece.minutes for piece in BUDGETS[Budget.CI]) < 5
    assert command.main(["--budget", "ci", "--list"]) == 0
    assert "| image_text.quick |" in capsys.readouterr().out


def test_an_unknown_piece_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--budget", "ci", "--only", "moon"]) == 2
    assert "no piece of the budget ci has that in its name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("step_log4_vs_eager", 1.6, ("≤ 1.6", "met")),
        ("step_log4_vs_eager", 1.61, ("≤ 1.6", "missed")),
        ("vectorized_vs_loop", 1.9, ("≥ 2", "missed")),
        ("unknown", 1.0, ("", "")),
    ],
)
def test_a_headline_is_held_to_its_aim(key: str, value: float, found: tuple[str, str]) -> None:
    assert verdict(key, value) == found
