"""Print what the program promises and how much of it the tests have just shown.

    python tool/dev/scorecard.py [--fast] [--json FILE]
    python tool/dev/scorecard.py --junit FILE …

Runs the tests, first the fast ones (timed), then the slow ones; or reads JUnit XML that `pytest --junit-xml=FILE`
wrote. A test counts for a row if it is marked with @pytest.mark.scorecard("the row's key"): each of its cases once, or
as many as it says with record_property("cases", n). Exit code 0 if every row is reached, else 1. Rows whose tests
did not run are shown as such and are not reached; --fast leaves out the rows of slow tests.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))     # the repository, however Python was started
import main._bootstrap as _bootstrap

import argparse
import os
import subprocess
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, dataclass, field

from common.errors import UserError, run_entry_point
from common.files import ROOT, write_json

EXIT_NOT_REACHED = 1


@dataclass(frozen=True)
class Row:
    """A promise that counted test cases show."""

    key: str                # argument of the marker `scorecard`
    text: str               # what the number counts
    cases: int              # that must have run
    forbidden: bool = False     # the text names what must not happen: the number is that of the cases where it did
    slow: bool = False      # slow tests belong to it


ROWS = (
    Row("kill points", "kill points identical", 20),
    Row("mutants", "mutants caught", 5),
    Row("damaged checkpoints", "damaged checkpoints loaded", 400, forbidden=True),
    Row("malicious files", "malicious files executed", 20, forbidden=True),
    Row("malformed images", "malformed images reported", 200),
    Row("fuzzed annotations", "fuzzed annotations clear", 300),
    Row("gpu forms", "--gpu forms", 12),
    Row("README commands", "README commands that the program takes", 1),
    Row("README commands run", "README commands that run on tiny data", 1, slow=True),
    Row("fault runs", "hangs in fault runs", 60, forbidden=True, slow=True),
)
IN_PARALLEL = ("-n", "2", "--dist", "loadfile")     # as tool/test.sh runs them
FAST_SUITE_SECONDS = {"fast suite": 90, "fast suite, longest allowed": 300}


@dataclass
class Count:
    """Cases that the tests of a row have run."""

    passed: int = 0
    failed: int = 0

    def add(self, passed: int, failed: int) -> None:
        self.passed, self.failed = self.passed + passed, self.failed + failed


@dataclass
class Results:
    """What test runs gave: counts by the key of a row, and of all tests."""

    rows: dict[str, Count] = field(default_factory=dict)
    tests: Count = field(default_factory=Count)


@dataclass(frozen=True)
class Line:
    """A line of the scorecard."""

    reached: str        # the value and what it counts
    target: str
    state: str          # "reached", "NOT REACHED" or "not run"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="run the fast tests only, and leave out what needs others")
    parser.add_argument("--junit", type=Path, nargs="+", metavar="FILE", help="read results instead of running tests")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the lines as JSON too")
    args = parser.parse_args()
    seconds = None
    if args.junit:
        results = read_junit(args.junit)
    else:
        results, seconds = run_tests(slow=not args.fast)
    lines = scorecard(results, seconds, slow=not args.fast)
    width = max(len(line.reached) for line in lines), max(len(line.target) for line in lines)
    for line in lines:
        print(f"{line.reached:{width[0]}}   {line.target:{width[1]}}   {line.state}")
    if args.json:
        write_json(args.json, {"scorecard": [asdict(line) for line in lines]})
    return 0 if all(line.state == "reached" for line in lines) else EXIT_NOT_REACHED


def scorecard(results: Results, seconds: float | None, *, slow: bool) -> list[Line]:
    """The lines for these results.  seconds: the fast tests took, None if that is not known."""
    lines = [_row_line(row, results.rows.get(row.key, Count())) for row in ROWS if slow or not row.slow]
    lines += [_duration_line(name, limit, seconds) for name, limit in FAST_SUITE_SECONDS.items()]
    total = results.tests.passed + results.tests.failed
    return [*lines, Line(f"{results.tests.passed}/{total} tests pass", "all",
                         _state(total > 0, results.tests.failed == 0))]


def _row_line(row: Row, count: Count) -> Line:
    total = count.passed + count.failed
    state = _state(total > 0, count.failed == 0 and total >= row.cases)
    if row.forbidden:
        return Line(f"{count.failed} of {total} {row.text}", f"0 of {row.cases}", state)
    return Line(f"{count.passed}/{total} {row.text}", f"all, of at least {row.cases}", state)


def _duration_line(name: str, limit: float, seconds: float | None) -> Line:
    if seconds is None:
        return Line(name, f"< {limit} s", _state(False, False))
    return Line(f"{name} {seconds:.0f} s", f"< {limit} s", _state(True, seconds < limit))


def _state(has_run: bool, is_reached: bool) -> str:
    return "not run" if not has_run else "reached" if is_reached else "NOT REACHED"


# ---------------------------------------------------------------- results

def run_tests(*, slow: bool) -> tuple[Results, float]:
    """Results of the fast tests and, if asked for, of the slow ones; and the seconds that the fast ones took."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "fast.xml", Path(folder) / "slow.xml"][:2 if slow else 1]
        start = time.monotonic()
        _run_pytest("not slow", files[0], *IN_PARALLEL)
        seconds = time.monotonic() - start
        if slow:
            _run_pytest("slow", files[1])
        return read_junit(files), seconds


def _run_pytest(selection: str, junit: Path, *options: str) -> None:
    command = [sys.executable, "-m", "pytest", "-m", selection, *options, f"--junit-xml={junit}"]
    print(f"Running the tests that are {selection} …", flush=True)
    code = subprocess.run(command, cwd=ROOT, env={"OMP_NUM_THREADS": "1"} | os.environ).returncode
    if code not in (0, 1):      # all passed, or some failed: everything else means that tests did not run
        raise UserError(f"pytest ended with exit code {code}.", "What it said stands above.")


def read_junit(files: list[Path]) -> Results:
    """The counts in JUnit XML files. Raises UserError if one cannot be read or holds no tests."""
    results = Results()
    for file in files:
        try:
            cases = list(ElementTree.parse(file).iter("testcase"))
        except (OSError, ElementTree.ParseError) as error:
            raise UserError(f"{file} cannot be read: {error}.", "Make one with: pytest --junit-xml=FILE") from None
        if not cases:
            raise UserError(f"{file} tells of no tests.", "Make one with: pytest --junit-xml=FILE")
        for case in cases:
            _count(case, results)
    return results


def _count(case: ElementTree.Element, results: Results) -> None:
    """Add one test case. One that failed counts once, whatever it looked at before."""
    if case.find("skipped") is not None:
        return
    has_failed = case.find("failure") is not None or case.find("error") is not None
    properties = [(entry.get("name"), entry.get("value")) for entry in case.iter("property")]
    number = sum(int(value) for name, value in properties if name == "cases") or 1
    results.tests.add(not has_failed, has_failed)
    for name, value in properties:
        if name == "scorecard":
            results.rows.setdefault(value, Count()).add(0 if has_failed else number, has_failed)


if __name__ == "__main__":
    run_entry_point(main)
