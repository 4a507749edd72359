"""The doctor reports on any machine, however broken."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tool.doctor import pinned_versions

ROOT = Path(__file__).resolve().parents[1]


def doctor(*words: str, before: str = "pass") -> subprocess.CompletedProcess:
    """The doctor's run, after some statement has changed the interpreter."""
    code = (f"import runpy, sys; sys.argv = ['doctor.py', *{words!r}]; {before}\n"
            f"runpy.run_path({str(ROOT / 'tool' / 'doctor.py')!r}, run_name='__main__')")
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")


def test_a_healthy_machine_is_ready():
    done = doctor()
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("Ready: ")
    for words in ("Python", f"torch {metadata.version('torch')}", "builtin, sha256", "(in use)", "Device", "Snapshots"):
        assert words in done.stdout
    assert "mano.is.tue.mpg.de" not in last


@pytest.mark.parametrize("package", ["torch", "smplx"])
def test_a_missing_package_is_reported_without_a_traceback(package: str):
    done = doctor(before=f"sys.modules[{package!r}] = None")
    assert done.returncode == 5 and "Traceback" not in done.stderr
    assert done.stdout.strip().splitlines()[-1].startswith("Not ready: ")
    assert package in done.stdout


def test_nothing_but_the_standard_library_is_needed_to_report():
    done = subprocess.run([sys.executable, "-S", ROOT / "tool" / "doctor.py"], capture_output=True, text=True, cwd="/")
    assert done.returncode == 5 and done.stderr == ""
    assert "torch is missing" in done.stdout


def test_an_unknown_config_is_a_line_of_the_report():
    done = doctor("--config", "nothing")
    assert done.returncode == 5 and done.stderr == ""
    assert "Not ready: There is no config file 'nothing'" in done.stdout


def test_pins_are_read_from_requirement_lines():
    text = "# comment\nnumpy==2.4.6\nopencv-python-headless==5.0.0.93  # why\nfree>=1\n"
    assert pinned_versions(text) == {"numpy": "2.4.6", "opencv-python-headless": "5.0.0.93"}
