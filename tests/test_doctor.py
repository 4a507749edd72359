"""The doctor reports on any machine, however broken."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from main.engine.run.provenance import pinned_versions

ROOT = Path(__file__).resolve().parents[1]


def doctor_after(statement: str) -> subprocess.CompletedProcess:
    """The doctor's run in an interpreter that some statement has changed."""
    code = (f"import runpy, sys; sys.argv = ['doctor.py']; {statement}\n"
            f"runpy.run_path({str(ROOT / 'tool' / 'doctor.py')!r}, run_name='__main__')")
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")


def test_a_healthy_machine_is_ready(run):
    code, text = run("tool/doctor.py")
    assert code == 0, text
    last = text.strip().splitlines()[-1]
    assert last.startswith("Ready: ")
    for words in ("Python", f"torch {metadata.version('torch')}", "builtin, sha256", "(in use)", "Device", "Snapshots"):
        assert words in text
    assert "mano.is.tue.mpg.de" not in last


@pytest.mark.parametrize("package", ["torch", "msgspec"])
def test_a_missing_package_is_reported_without_a_traceback(package: str):
    done = doctor_after(f"sys.modules[{package!r}] = None")
    assert done.returncode == 5 and "Traceback" not in done.stderr
    assert done.stdout.strip().splitlines()[-1].startswith("Not ready: ")
    assert package in done.stdout


def test_nothing_but_the_standard_library_is_needed_to_report():
    done = subprocess.run([sys.executable, "-S", ROOT / "tool" / "doctor.py"], capture_output=True, text=True, cwd="/")
    assert done.returncode == 5 and done.stderr == ""
    assert "torch is missing" in done.stdout


def test_an_unknown_config_is_a_line_of_the_report(run):
    code, text = run("tool/doctor.py", "--config", "nothing")
    assert code == 5 and "Traceback" not in text
    assert "Not ready: There is no config file 'nothing'" in text


def test_pins_are_read_from_requirement_lines():
    text = "# comment\nnumpy==2.4.6\nopencv-python-headless==5.0.0.93  # why\nfree>=1\n"
    assert pinned_versions(text) == {"numpy": "2.4.6", "opencv-python-headless": "5.0.0.93"}
