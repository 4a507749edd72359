"""Consoles that are closed, full or read by nobody, and machines at their limits: no traceback, and no lost run."""

import errno
import os
import pty
import resource
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from common.errors import EXIT_ENVIRONMENT, as_user_error
from common.files import ROOT
from main.engine.run.snapshots import load_latest

UNREAD = 128 + signal.SIGPIPE


def finished(process: subprocess.Popen) -> tuple[int, str]:
    """The exit code of a program, and what it said on its stderr."""
    _, told = process.communicate(timeout=100)
    return process.returncode, told or ""


def after_one_line(command: list[str], **options) -> tuple[int, str]:
    """As `command | head -1`."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        process.stdout.readline()
        process.stdout.close()
        return finished(process)


def without(descriptor: int) -> Callable[[list[str]], tuple[int, str]]:
    """As `command >&-` for stdout, `2>&-` for stderr."""
    def run(command: list[str], **options) -> tuple[int, str]:
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE} if descriptor == 1 else {}
        with subprocess.Popen(command, **streams, text=True, preexec_fn=lambda: os.close(descriptor), **options
                              ) as process:
            return finished(process)

    return run


def into_a_full_disk(command: list[str], **options) -> tuple[int, str]:
    with open("/dev/full", "w") as full, \
            subprocess.Popen(command, stdout=full, stderr=subprocess.PIPE, text=True, **options) as process:
        return finished(process)


def on_a_closed_terminal(command: list[str], **options) -> tuple[int, str]:
    """As under `nohup` in a terminal that is closed after its first line: everything printed is an I/O error."""
    terminal, own = pty.openpty()

    def start() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with subprocess.Popen(command, stdin=own, stdout=own, stderr=own, preexec_fn=start, start_new_session=True,
                          **options) as process:
        os.close(own)
        os.read(terminal, 1)
        os.close(terminal)
        return finished(process)


CONSOLES = {"one line read": after_one_line, "no stdout": without(1), "no stderr": without(2), "full": into_a_full_disk,
            "closed terminal": on_a_closed_terminal}
# A program that prints more than any buffer holds, and has a bar.
PRINTING = f"""
import sys
sys.path.insert(0, {str(ROOT / 'main')!r})
import _bootstrap
from tqdm import tqdm
from common.errors import run_entry_point
from common.console import outlive_console

def main():
    if "outlive" in sys.argv:
        outlive_console()
    for number in tqdm(range(20_000), file=sys.stderr):
        print("line", number, flush=number == 0)
    open(sys.argv[1], "w").write("done")

run_entry_point(main)
"""


@pytest.mark.parametrize("console", CONSOLES)
def test_a_program_whose_results_are_files_goes_on_without_its_console(tmp_path, console):
    code, told = CONSOLES[console]([sys.executable, "-c", PRINTING, str(tmp_path / "result"), "outlive"])
    assert code == 0 and (tmp_path / "result").read_text() == "done"
    assert "Traceback" not in told and "Exception ignored" not in told


@pytest.mark.parametrize(("console", "expected"), [
    ("one line read", UNREAD), ("no stdout", 0), ("no stderr", 0), ("full", EXIT_ENVIRONMENT),
    ("closed terminal", UNREAD)])
def test_a_program_that_only_prints_leaves_its_console_quietly(tmp_path, console, expected):
    code, told = CONSOLES[console]([sys.executable, "-c", PRINTING, str(tmp_path / "result")])
    assert code == expected
    assert "Traceback" not in told and "Exception ignored" not in told


@pytest.mark.parametrize("descriptor", [1, 2])
def test_what_is_printed_to_a_closed_stream_is_in_no_file(tmp_path, descriptor):
    """The first file that is opened would get the number of the closed stream."""
    code = PRINTING.replace("    for number", "    file = open(sys.argv[1] + '.own', 'w')\n    for number")
    assert CONSOLES["no stdout" if descriptor == 1 else "no stderr"](
        [sys.executable, "-c", code, str(tmp_path / "result")])[0] == 0
    assert (tmp_path / "result.own").read_text() == ""


@pytest.mark.slow
@pytest.mark.scorecard("fault runs")
@pytest.mark.parametrize("console", CONSOLES)
def test_training_goes_on_without_its_console(config_file, tmp_path, console):
    code, told = CONSOLES[console]([sys.executable, str(ROOT / "main" / "train.py"), "--gpu", "cpu", "--config",
                                    str(config_file), "--set", f"output={tmp_path}"])
    assert code == 0 and "Traceback" not in told and "Exception ignored" not in told
    assert load_latest(tmp_path / "model_dump")[0].next_epoch == 2


@pytest.mark.slow
@pytest.mark.parametrize(("words", "expected"), [
    ("main/demo.py --gpu cpu --output HERE/demo", {0}), ("tool/doctor.py", {0, 5, UNREAD}),
    ("tool/verify_data.py --config CONFIG --split test", {0, 4, UNREAD}), ("tool/build_index.py DATA", {0, UNREAD}),
    ("main/test.py --gpu cpu --checkpoint WEIGHTS --output HERE --set data.root=DATA data.filter=all", {0}),
])
def test_no_program_prints_a_traceback_when_it_is_read_for_a_line(config_file, tmp_path, words, expected):
    places = {"HERE": tmp_path, "CONFIG": config_file, "DATA": config_file.parent / "data",
              "WEIGHTS": ROOT / "common/assets/lgnet_rendered.safetensors"}
    for name, place in places.items():
        words = words.replace(name, str(place))
    program, *rest = words.split()
    code, told = after_one_line([sys.executable, str(ROOT / program), *rest])
    assert code in expected and "Traceback" not in told and "Exception ignored" not in told, told


# ---------------------------------------------------------------- a machine that has no more to give

@pytest.mark.parametrize("error", [
    OSError(errno.EMFILE, os.strerror(errno.EMFILE)), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/dev/shm/x"),
    RuntimeError("unable to open shared memory object </torch_1_2_3> in read-write mode: Too many open files (24)"),
    RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: Read-only file system (30)"),
    OSError("Caught OSError in DataLoader worker process 0.\nTraceback …\nOSError: [Errno 24] Too many open files"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to "
                 "allocate 9 bytes."), MemoryError(),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB."),
])
def test_a_machine_at_its_limits_is_told_in_a_sentence_with_code_5(error):
    told = as_user_error(error)
    assert told.exit_code == EXIT_ENVIRONMENT and "data.workers=0" in told.hint and "\n" not in str(told)


def test_an_error_of_the_program_is_not_taken_for_one_of_the_machine():
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), OSError("?"), ValueError("out of memory"),
                  FileNotFoundError(errno.ENOENT, "No such file", "x")):
        assert as_user_error(error) is None


@pytest.mark.slow
@pytest.mark.scorecard("fault runs")
@pytest.mark.parametrize(("files", "workers", "code"), [(20, 0, 5), (40, 2, 5), (64, 2, 5), (64, 0, 0), (300, 2, 0)])
def test_training_with_too_few_open_files_says_so_and_never_waits(config_file, tmp_path, files, workers, code):
    command = [sys.executable, str(ROOT / "main" / "train.py"), "--gpu", "cpu", "--config", str(config_file), "--set",
               f"output={tmp_path}", f"data.workers={workers}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))) as process:
        found, told = finished(process)
    assert found == code and "Traceback" not in told and "validate_every" not in told, told
    assert not code or "open files" in told or "may open" in told


# A /dev/shm of the program's own, as containers have them: without room for a lock, or read-only.
SHARED_MEMORY = {"full": "mount -t tmpfs -o size=64k none /dev/shm; head -c 70000 /dev/zero > /dev/shm/rest 2>&-",
                 "read-only": "mount -t tmpfs -o ro none /dev/shm"}


@pytest.mark.slow
@pytest.mark.scorecard("fault runs")
@pytest.mark.parametrize("memory", SHARED_MEMORY)
@pytest.mark.parametrize(("words", "code"), [
    ("main/train.py --gpu cpu --config CONFIG --set output=HERE data.workers=2", 5),
    ("main/train.py --gpu cpu --config CONFIG --set output=HERE data.workers=0", 0),
    ("main/test.py --gpu cpu --checkpoint WEIGHTS --output HERE --set data.root=DATA data.filter=all data.workers=2",
     5),
    ("tool/verify_data.py --config CONFIG --split test --set data.workers=2", 5),
    ("tool/build_index.py DATA --dark", 5),
])
def test_shared_memory_without_room_is_told_in_one_sentence(config_file, tmp_path, memory, words, code):
    own = ["unshare", "--map-root-user", "--mount", "bash", "-c"]
    if subprocess.run([*own, SHARED_MEMORY["read-only"]], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("this machine gives programs no mounts of their own")
    places = {"HERE": tmp_path, "CONFIG": config_file, "DATA": config_file.parent / "data",
              "WEIGHTS": ROOT / "common/assets/lgnet_rendered.safetensors"}
    for name, place in places.items():
        words = words.replace(name, str(place))
    program, *rest = words.split()
    done = subprocess.run([*own, SHARED_MEMORY[memory] + '; exec "$@"', "bash", sys.executable, str(ROOT / program),
                           *rest], capture_output=True, text=True)
    assert done.returncode == code and "Traceback" not in done.stdout + done.stderr, done.stderr
    assert done.stderr.count("error: ") == (code > 0)
