"""Paths below a closed folder, too long ones, and others that cannot be: one sentence and exit code 2 everywhere."""

import errno
import os
import runpy
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from forks import run_in_fork
from process_group import run_group

from common.errors import as_user_error, run_entry_point
from common.files import ROOT, cannot_write
from common.score import plots  # noqa: F401   while this user can read its libraries
from common.weights import SHIPPED
from main.demo import EXAMPLES
from main.engine.processes.launch import Process
from main.network import load_network

NOBODY = 65534

# By what is named: a command line with PATH in its place, and HERE in the place of a folder that can be used.
PLACES = {
    "train: configuration": "main/train.py --config PATH",
    "train: output": "main/train.py --config CONFIG --set output=PATH",
    "train: data": "main/train.py --config CONFIG --set output=HERE/run data.root=PATH",
    "train: more data": "main/train.py --config CONFIG --set output=HERE/run data.more_roots=[PATH]",
    "train: start": "main/train.py --config CONFIG --set output=HERE/run train.start_from=PATH",
    "train: backbone": "main/train.py --config CONFIG --set output=HERE/run model.pretrained=PATH",
    "train: hand model": "main/train.py --config CONFIG --set output=HERE/run --mano PATH",
    "test: output": "main/test.py --test_epoch 1 --output PATH",
    "test: best": "main/test.py --test_epoch best --output PATH",
    "test: snapshot": "main/test.py --output HERE/run --checkpoint PATH",
    "test: weights": "main/test.py --output HERE/run --checkpoint PATH.safetensors",
    "test: data": "main/test.py --output HERE/run --checkpoint SHIPPED --set data.root=PATH",
    "test: predictions": "main/test.py --output HERE/run --checkpoint SHIPPED --save_predictions PATH.npz --set "
                         "data.root=HERE/data",
    "demo: images": "main/demo.py --input PATH --output HERE/demo",
    "demo: output": "main/demo.py --input PHOTO --output PATH",
    "demo: snapshot": "main/demo.py --input PHOTO --output HERE/demo --checkpoint PATH",
    "demo: boxes": "main/demo.py --input PHOTO --output HERE/demo --boxes PATH",
    "verify_data: data": "tool/verify_data.py --set data.root=PATH",
    "verify_data: preset": "tool/verify_data.py --preset rendered-v1 --set data.root=PATH",
    "verify_data: configuration": "tool/verify_data.py --config PATH",
    "verify_data: findings": "tool/verify_data.py --config CONFIG --split test --workers 0 --json PATH",
    "build_index: data": "tool/build_index.py PATH",
    "make_synthetic: output": "tool/make_synthetic.py --frames 3 --workers 1 --out PATH",
    "evaluate: predictions": "tool/evaluate.py PATH.npz",
    "convert_predictions: source": "tool/convert_predictions.py import matrices PATH.npz HERE/out.npz",
    "convert_mano: files": "tool/convert_mano.py --mano PATH",
    "export_weights: snapshot": "tool/export_weights.py PATH HERE/out.safetensors",
    "doctor: run": "tool/doctor.py --run PATH",
    "quickstart: configuration": "tool/quickstart.py --config PATH",
}


@pytest.fixture(scope="module")
def here(config_file) -> Iterator[Path]:
    """A folder that every user can reach, which pytest's own are not."""
    load_network(SHIPPED, [], torch.device("cpu"))      # imports what it needs while this user can read it
    folder = Path(tempfile.mkdtemp(prefix="lgnet paths "))
    shutil.copytree(config_file.parent, folder, dirs_exist_ok=True)
    config = folder / config_file.name
    config.write_text(config.read_text().replace(str(config_file.parent), str(folder)))
    (folder / "file").touch()
    (folder / "loop").symlink_to("loop")
    (folder / "closed" / "folder").mkdir(parents=True)
    for each in [folder, *folder.rglob("*")]:
        if not each.is_symlink():
            each.chmod(0o777)
    (folder / "closed").chmod(0)
    yield folder
    (folder / "closed").chmod(0o777)
    shutil.rmtree(folder)


def told(command: str, path: Path, here: Path) -> tuple[int, str]:
    """The exit code of an entry point that is given `path`, and what it prints, run by a user who is not root."""
    program, *words = command.split()
    places = {"PATH": path, "HERE": here, "CONFIG": here / "tiny.yaml", "SHIPPED": SHIPPED,
              "PHOTO": EXAMPLES / "hands_1.jpg"}
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    sys_argv = [str(ROOT / program), *words, *(["--gpu", "cpu"] if program.startswith("main/") else [])]
    output = Path(tempfile.mkstemp(dir=here)[1])

    def run() -> int:
        with output.open("w") as file, redirect_stdout(file), redirect_stderr(file):
            if os.geteuid() == 0:
                os.setuid(NOBODY)
            sys.argv = sys_argv
            sys.path.insert(0, str((ROOT / program).parent))
            try:
                runpy.run_path(sys.argv[0], run_name="__main__")
            except SystemExit as left:
                return left.code
            except BaseException:
                traceback.print_exc()
                raise

    return os.waitstatus_to_exitcode(run_in_fork(run)), output.read_text()


@pytest.mark.parametrize("path", [
    "closed/x", "n" * 300, pytest.param("file/x", marks=pytest.mark.slow),
    pytest.param("loop/x", marks=pytest.mark.slow)], ids=lambda path: path[:8])
@pytest.mark.parametrize("place", PLACES)
def test_a_path_that_cannot_be_used_is_one_sentence_and_exit_code_2(place, path, here):
    code, text = told(PLACES[place], here / path, here)
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and path in errors[0] and "Traceback" not in text, text


def test_the_doctor_names_a_configuration_that_it_cannot_open(here):
    code, text = told("tool/doctor.py --config PATH", here / "closed" / "x", here)
    assert code == 5 and f"{here}/closed/x cannot be used: Permission denied" in text and "Traceback" not in text


def test_a_closed_folder_ends_all_processes_of_a_run_with_one_sentence(tmp_path):
    def work(process: Process) -> int:
        if process.rank == 1:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / "closed"))
        process.gather(None)
        return 0

    ended = run_group(work, tmp_path)
    errors = "".join(each.errors for each in ended)
    assert [each.code for each in ended] == [2, 2]
    assert errors == f"error: {tmp_path}/closed cannot be used: Permission denied. Give another path, or make this " \
                     "one accessible.\n"


@pytest.mark.parametrize("error", [
    PermissionError(errno.EACCES, "Permission denied"), OSError("no number"), FileNotFoundError(errno.ENOENT, "x", "y"),
    OSError(errno.EBADF, "Bad file descriptor", "y"), PermissionError(errno.EACCES, "Permission denied", 3),
    ValueError("closed"), KeyError("x"),
])
def test_other_errors_are_the_programs_own_and_keep_their_traceback(error):
    def fail() -> int:
        raise error

    assert as_user_error(error) is None
    with pytest.raises(type(error)):
        run_entry_point(fail)


@pytest.mark.parametrize("code", [errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR])
def test_a_file_that_cannot_be_under_its_name_needs_no_room_on_the_disk(code, tmp_path):
    error = cannot_write(tmp_path / "x", OSError(code, os.strerror(code)))
    assert error.exit_code == 2 and "room" not in str(error)
