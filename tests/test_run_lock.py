"""Two runs never share a folder; a run that is gone keeps nobody out."""

import os
import platform
import signal
import time
import warnings
from pathlib import Path

import filelock
import pytest
import torch
from forks import run_in_fork
from process_group import run_group

from common.errors import UserError
from main.engine.processes.launch import Process
from main.engine.run.lock import run_lock

CPU = Process(torch.device("cpu"))
HINT = "Wait for it."


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "run" / "train.lock"


@pytest.fixture
def other_run(file):
    """The pid of another process that holds the lock until it is killed."""
    child = os.fork()
    if child == 0:
        with run_lock(file, CPU, HINT):
            signal.pause()
    wait_for(lambda: file.with_name("train.lock.txt").is_file())
    yield child
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def wait_for(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_free(file: Path) -> bool:
    with run_lock(file, CPU, HINT):
        return True


def test_a_second_run_is_refused_with_who_the_first_is(file, other_run):
    with pytest.raises(UserError) as caught:
        is_free(file)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    today = time.strftime("%Y-%m-%d")
    assert str(caught.value).startswith(
        f"{file.parent} is in use by process {other_run} on {platform.node()} since {today} ")
    assert str(caught.value).endswith(HINT)


def test_a_refusal_leaves_the_first_run_as_it_is(file, other_run):
    before = file.with_name("train.lock.txt").read_bytes()
    for _ in range(3):
        with pytest.raises(UserError, match=f"process {other_run} "):
            is_free(file)
    assert file.with_name("train.lock.txt").read_bytes() == before


def test_a_run_that_ended_in_any_way_keeps_nobody_out(file):
    def holding(end) -> int:
        with run_lock(file, CPU, HINT):
            end()
        return 0

    def fail():
        raise UserError("wrong")

    for end in (lambda: None, fail, lambda: os._exit(1), lambda: os.kill(os.getpid(), signal.SIGKILL)):
        run_in_fork(lambda end=end: holding(end))
        assert is_free(file)
    assert not file.with_name("train.lock.txt").exists()


def test_a_killed_run_keeps_nobody_out_while_its_loader_processes_still_live(file, tmp_path):
    """They are forked from the run, and notice only later that it is gone."""
    def hold_and_die() -> None:
        with run_lock(file, CPU, HINT):
            loader = os.fork()
            if loader == 0:
                signal.pause()
            (tmp_path / "loader").write_text(str(loader))
            os.kill(os.getpid(), signal.SIGKILL)

    assert os.WIFSIGNALED(run_in_fork(hold_and_die))
    loader = int((tmp_path / "loader").read_text())
    try:
        os.kill(loader, 0)      # it lives
        assert is_free(file)
    finally:
        os.kill(loader, signal.SIGKILL)


def test_a_loader_process_that_ends_frees_nothing(file):
    with run_lock(file, CPU, HINT):
        for code in (0, 1):
            assert os.waitstatus_to_exitcode(run_in_fork(lambda code=code: code)) == code
        assert os.waitstatus_to_exitcode(run_in_fork(lambda: is_free(file))) == 2


@pytest.mark.scorecard("fault runs")
def test_of_many_that_start_together_one_runs(file, tmp_path, record_property):
    for attempt in range(5):
        start = tmp_path / f"start{attempt}"

        def race(start=start) -> int:
            wait_for(start.exists)
            with run_lock(file, CPU, HINT):
                time.sleep(0.15)
            return 0

        children = []
        for _ in range(6):
            child = os.fork()
            if child == 0:
                os._exit(run_quietly(race))
            children.append(child)
        start.touch()
        codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
        assert codes == [0, 2, 2, 2, 2, 2]
    record_property("cases", 5)


def run_quietly(function) -> int:
    try:
        return function()
    except UserError as error:
        return error.exit_code


@pytest.mark.parametrize("text", [None, b"", b"\xff\xfe\x00", b"x" * 10_000])
def test_a_holder_that_cannot_be_read_still_holds(file, other_run, text):
    holder = file.with_name("train.lock.txt")
    holder.unlink() if text is None else holder.write_bytes(text)
    with pytest.raises(UserError, match="is in use by ") as caught:
        is_free(file)
    assert len(str(caught.value)) < len(str(file)) + 300


def test_training_and_testing_do_not_keep_each_other_out(file, other_run):
    assert is_free(file.with_name("test.lock"))


def test_only_the_main_process_takes_the_lock_and_the_others_wait_for_it(file):
    waited = []

    class Other(Process):
        def gather(self, item):
            waited.append(item)
            return [item, item]

    with run_lock(file, Other(torch.device("cpu"), 1, 2), HINT):
        assert waited == [None]
        assert not file.exists()


def test_all_processes_of_a_refused_run_end_with_its_exit_code_and_one_of_them_says_why(file, other_run, tmp_path):
    def train(process: Process) -> int:
        with run_lock(file, process, HINT):
            return 0

    ended = run_group(train, tmp_path / "group")
    assert [each.code for each in ended] == [2, 2]
    assert "".join(each.errors for each in ended).count("error: ") == 1
    assert f"in use by process {other_run} on " in "".join(each.errors for each in ended)


def test_processes_of_one_run_share_its_lock(file, tmp_path):
    def train(process: Process) -> int:
        with run_lock(file, process, HINT):
            process.gather(None)
            return 0

    for _ in range(2):
        assert [each.code for each in run_group(train, tmp_path / "group")] == [0, 0]


def test_a_lock_in_a_folder_that_cannot_be_made_is_a_mistake_in_the_path(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write") as caught:
        is_free(tmp_path / "file" / "train.lock")
    assert caught.value.exit_code == 2


def test_a_file_system_that_fails_to_lock_is_warned_of_and_does_not_stop_the_run(file, monkeypatch, caplog):
    def fail(descriptor, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(filelock._unix.fcntl, "flock", fail)
    assert is_free(file)
    assert "cannot be locked (No locks available)" in caplog.text


def test_where_locks_are_unknown_a_marker_file_stands_for_them(file, monkeypatch):
    """As on some network file systems; one that a run on this machine left behind keeps nobody out."""
    def fail(descriptor, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(filelock._unix.fcntl, "flock", fail)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with run_lock(file, CPU, HINT):
            assert os.waitstatus_to_exitcode(run_in_fork(lambda: is_free(file))) == 2
        assert is_free(file)

        def hold_and_die() -> None:
            with run_lock(file, CPU, HINT):
                os.kill(os.getpid(), signal.SIGKILL)

        assert os.WIFSIGNALED(run_in_fork(hold_and_die))
        assert file.exists()
        assert is_free(file)
