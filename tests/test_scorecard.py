"""The scorecard shows what the tests showed: never more."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from tool.dev import scorecard
from tool.dev.scorecard import ROWS, Count, Results, read_junit

TESTS = Path(__file__).resolve().parent
GOOD = Results({row.key: Count(row.cases, 0) for row in ROWS}, Count(2000, 0))


def marked_rows(folder: Path) -> set[str]:
    """The rows that tests in `folder` are marked with."""
    nodes = [node for file in folder.glob("test_*.py") for node in ast.walk(ast.parse(file.read_text()))]
    return {node.args[0].value for node in nodes
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.scorecard"}


def test_every_row_has_tests_and_every_mark_a_row():
    assert marked_rows(TESTS) == {row.key for row in ROWS}


def states(results: Results, seconds: float | None = 50.0, *, slow: bool = True) -> list[str]:
    return [line.state for line in scorecard.scorecard(results, seconds, slow=slow)]


def test_everything_is_reached_when_enough_cases_passed_in_time():
    assert set(states(GOOD)) == {"reached"}


@pytest.mark.parametrize("number", range(len(ROWS)), ids=[row.key for row in ROWS])
def test_one_failure_one_case_too_few_or_no_case_is_not_reached(number):
    row, passed = ROWS[number], ROWS[number].cases
    for count in (Count(passed, 1), Count(passed - 1, 0), Count()):
        found = states(Results(GOOD.rows | {row.key: count}, GOOD.tests))
        assert found[number] == ("NOT REACHED" if count.passed else "not run")
        assert found.count("reached") == len(found) - 1


@pytest.mark.parametrize(("seconds", "expected"), [
    (89.9, ["reached", "reached"]), (90.0, ["NOT REACHED", "reached"]), (300.0, ["NOT REACHED", "NOT REACHED"]),
    (None, ["not run", "not run"]),
])
def test_the_duration_is_held_against_both_limits(seconds, expected):
    assert states(GOOD, seconds)[-3:-1] == expected


def test_any_failing_test_keeps_the_scorecard_from_being_reached():
    assert states(Results(GOOD.rows, Count(1999, 1)))[-1] == "NOT REACHED"


def test_fast_leaves_out_the_rows_of_slow_tests_and_shows_the_others():
    fast = Results({row.key: Count(row.cases, 0) for row in ROWS if not row.slow}, Count(5, 0))
    assert set(states(fast, slow=False)) == {"reached"}
    assert states(fast).count("not run") == sum(row.slow for row in ROWS)


REAL = """
import pytest

@pytest.mark.scorecard("kill points")
@pytest.mark.parametrize("point", range(22))
def test_kill(point):
    assert point != 3
    if point == 5:
        pytest.skip()

@pytest.mark.scorecard("damaged checkpoints")
def test_damaged(record_property):
    record_property("cases", 400)

@pytest.mark.scorecard("malicious files")
def test_malicious(record_property):
    record_property("cases", 20)
    assert False

@pytest.mark.scorecard("mutants")
def test_fixture(missing): ...

def test_other(): ...
"""


@pytest.fixture(scope="module")
def junit(tmp_path_factory) -> Path:
    """What pytest itself writes about tests that pass, fail, stop and are left out."""
    folder = tmp_path_factory.mktemp("marked")
    (folder / "test_real.py").write_text(REAL)
    shutil.copy(TESTS / "scorecard_marker.py", folder / "conftest.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junit-xml", folder / "junit.xml"]
    assert subprocess.run(command, cwd=folder, capture_output=True).returncode == 1
    return folder / "junit.xml"


def test_counts_are_those_of_the_test_run(junit):
    found = read_junit([junit])
    assert found.rows == {"kill points": Count(20, 1), "damaged checkpoints": Count(400, 0),
                          "malicious files": Count(0, 1), "mutants": Count(0, 1)}
    assert found.tests == Count(22, 3)
    assert read_junit([junit, junit]).tests == Count(44, 6)


def test_the_tool_prints_and_writes_it_and_fails(junit, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scorecard.py", "--junit", str(junit), "--json", str(tmp_path / "card.json")])
    assert scorecard.main() == 1
    printed = capsys.readouterr().out
    assert "20/21 kill points identical" in printed and "0 of 400 damaged checkpoints loaded" in printed
    lines = json.loads((tmp_path / "card.json").read_text())["scorecard"]
    by_text = {line["reached"]: line["state"] for line in lines}
    assert by_text["20/21 kill points identical"] == "NOT REACHED"
    assert by_text["0 of 400 damaged checkpoints loaded"] == "reached"
    assert by_text["1 of 1 malicious files executed"] == "NOT REACHED"
    assert by_text["0/0 malformed images reported"] == "not run"


@pytest.mark.parametrize("content", [None, "", "<testsuites/>", "not xml"])
def test_results_that_are_none_are_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "junit.xml").write_text(content)
    with pytest.raises(UserError, match="pytest --junit-xml=FILE"):
        read_junit([tmp_path / "junit.xml"])


def test_a_test_run_that_breaks_off_is_no_result(tmp_path, monkeypatch):
    monkeypatch.setattr(scorecard, "ROOT", tmp_path)      # where there are no tests
    monkeypatch.setattr(scorecard, "IN_PARALLEL", ())
    with pytest.raises(UserError, match="exit code 5"):
        scorecard.run_tests(slow=False)
