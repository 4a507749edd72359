"""train.py and test.py from the outside: what the flags mean, and every mistake in one paragraph with exit code 2."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main.arguments
import tool.arguments
from common.errors import UserError
from common.exchange.conversion import JOINT_SETS, METRES
from main.engine.processes.launch import Process, choose_devices
from main.engine.run.lock import run_lock
from main.engine.run.record import read_record
from main.engine.run.snapshots import load_latest, load_snapshot

ROOT = Path(__file__).resolve().parent.parent
MAIN = ROOT / "main"


@pytest.mark.scorecard("gpu forms")
@pytest.mark.parametrize(("gpu", "available", "expected"), [
    (None, 2, [0, 1]), ("0", 1, [0]), ("1", 2, [1]), ("0,2", 3, [0, 2]), ("0-3", 4, [0, 1, 2, 3]),
    ("0-1,3", 4, [0, 1, 3]), ("2,0", 3, [2, 0]),
])
def test_gpu_names_devices(gpu, available, expected):
    assert choose_devices(gpu, available) == [torch.device("cuda", index) for index in expected]


@pytest.mark.scorecard("gpu forms")
@pytest.mark.parametrize(("gpu", "available"), [("cpu", 0), ("cpu", 4), ("CPU", 1), ("Cpu", 0), (None, 0)])
def test_the_cpu_is_used_when_asked_for_or_when_nothing_else_is_there(gpu, available):
    assert choose_devices(gpu, available) == [torch.device("cpu")]


@pytest.mark.scorecard("gpu forms")
@pytest.mark.parametrize("gpu", [
    "3-1", "0,0", "0-1,1", "-1", "abc", "", " ", "0,", "0-", "1.0", "cuda:0", "0 1", "٣", "4", "0-4", "99999999999"])
def test_a_wrong_gpu_is_refused_with_the_devices_that_exist(gpu):
    with pytest.raises(UserError, match=r"CUDA devices here: 0, 1, 2, 3\."):
        choose_devices(gpu, 4)


@pytest.mark.scorecard("gpu forms")
@pytest.mark.parametrize("gpu", ["0", "0-1", "0,2"])
def test_a_gpu_is_never_replaced_by_the_cpu(gpu):
    with pytest.raises(UserError, match="none, use --gpu cpu"):
        choose_devices(gpu, 0)


# ---------------------------------------------------------------- the entry points, in this process

@pytest.fixture(scope="session")
def trained(config_file, tmp_path_factory) -> Path:
    """The output folder of a finished run, made from a foreign working directory with spaces in its name."""
    folder = tmp_path_factory.mktemp("some where")
    command = [sys.executable, str(MAIN / "train.py"), "--gpu", "cpu", "--config", str(config_file),
               "--set", f"output={folder / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_training_leaves_a_snapshot_for_each_epoch_and_both_logs(trained):
    assert sorted(path.name for path in (trained / "model_dump").iterdir()) == [
        "snapshot_0.pth.tar", "snapshot_0.pth.tar.sha256", "snapshot_1.pth.tar", "snapshot_1.pth.tar.sha256"]
    assert "Training is complete" in (trained / "log" / "train.log").read_text()


def test_testing_prints_and_writes_the_same_numbers(run, trained):
    code, text = run("test.py", "--gpu", "cpu", "--test_epoch", 1, "--output", trained)
    stored = json.loads((trained / "result" / "metrics.json").read_text())
    assert code == 0
    assert f"MPJPE for all hand sequences: {stored['protocols']['lgnet']['mpjpe']:.2f} mm" in text
    assert f"Coarse mesh: MPJPE {stored['rough']['mpjpe']:.2f} mm" in text
    assert stored["config"]["model"]["channels"] == 32
    assert stored["data"]["split"] == "test"
    digest = (trained / "model_dump" / "snapshot_1.pth.tar.sha256").read_text().split()[0]
    assert stored["checkpoint_sha256"] == digest
    curves = {path.name for path in (trained / "result" / "curves").iterdir()}
    assert {"pck.csv", "pck.pdf", "pck.png", "asymmetry.csv", "distance.csv"} <= curves


def test_another_split_and_other_data_can_be_tested(run, trained, tmp_path):
    code, text = run("test.py", "--gpu", "cpu", "--test_epoch", 0, "--output", trained, "--testset", "InterHand26M",
                     "--split", "train", "--protocol", "interwild", "--pck_strict", "--pck_exclude_root",
                     "--bins", 0, 30, 400, "--dump", tmp_path / "rows.npz", "--set", "test.batch_size=1",
                     "data.filter=all")
    stored = json.loads((trained / "result" / "metrics.json").read_text())
    assert (code, stored["data"]["split"], stored["data"]["filter"]) == (0, "train", "all")
    assert stored["protocol"] == "interwild" and f"RRVE: {stored['protocols']['interwild']['rrve']:.2f} mm" in text
    assert stored["pck"] == {"exclude_root": True, "strict": True}
    assert stored["curves"]["asymmetry"]["edges"] == [0, 30, 400]
    with np.load(tmp_path / "rows.npz", allow_pickle=False) as rows:
        assert len(rows["index"]) == stored["counts"]["samples"]


def test_the_best_epoch_in_validation_can_be_tested(run, trained):
    log = (trained / "log" / "train.log").read_text()
    scores = [float(score) for score in re.findall(r"validation MPJPE ([\d.]+) mm \(protocol 'lgnet', 4 samples", log)]
    code, text = run("test.py", "--gpu", "cpu", "--test_epoch", "best", "--output", trained)
    stored = json.loads((trained / "result" / "metrics.json").read_text())
    best = scores.index(min(scores))
    assert (code, len(scores), stored["epoch"]) == (0, 2, best)
    assert f"Epoch {best} has the lowest validation score, {scores[best]:.2f} mm." in text


def test_a_folder_in_use_can_be_tested_and_not_be_trained_in_nor_be_tested_in_twice(run, trained, config_file):
    process, hint = Process(torch.device("cpu")), "Wait."
    again = ["train.py", "--gpu", "cpu", "--config", config_file, "--continue", "--set", f"output={trained}"]
    test = ["test.py", "--gpu", "cpu", "--test_epoch", 0, "--output", trained]
    log = (trained / "log" / "train.log").read_bytes()
    with run_lock(trained / "train.lock", process, hint):
        code, text = run(*again)
        assert code == 2 and text.startswith(f"error: {trained} is in use by process {os.getpid()} on ")
        assert run(*test)[0] == 0
    assert (trained / "log" / "train.log").read_bytes() == log
    with run_lock(trained / "test.lock", process, hint):
        code, text = run(*test)
        assert code == 2 and text.startswith(f"error: {trained} is in use by process {os.getpid()} on ")


def test_a_continued_run_goes_on_and_a_finished_one_says_so(run, trained, config_file, tmp_path):
    shutil.copytree(trained, tmp_path / "run", copy_function=os.link)    # snapshots are replaced, never changed
    arguments = ["--gpu", "cpu", "--continue", "--config", config_file, "--set", f"output={tmp_path / 'run'}"]
    code, text = run("train.py", *arguments)
    assert code == 0 and "This run is complete: 2 of 2 epochs" in text
    code, text = run("train.py", *arguments, "train.epochs=3", "data.val_samples=3")
    assert code == 0 and "train.epochs 2 → 3" in text and "the best one is sought anew" in text
    snapshot, _ = load_snapshot(tmp_path / "run" / "model_dump" / "snapshot_2.pth.tar")
    assert snapshot.best == (2, snapshot.score)


def test_mistakes_end_in_one_paragraph_and_exit_code_2(run, trained, config_file, tmp_path):
    train = ["train.py", "--gpu", "cpu", "--config", config_file, "--set", f"output={tmp_path / 'new'}"]
    again = ["train.py", "--gpu", "cpu", "--config", config_file, "--set", f"output={trained}"]
    test = ["test.py", "--gpu", "cpu", "--output", trained, "--test_epoch"]
    mistakes = {
        "missing data": ([*train, f"data.root={tmp_path}/none"], f"{tmp_path}/none"),
        "unknown key": ([*train, "train.lrr=1"], "Did you mean 'train.lr'?"),
        "unknown config": (["train.py", "--config", "lgnett"], "lgnet_light.yaml"),
        "gpu where there is none": (["train.py", "--gpu", "7"], "CUDA devices here"),
        "bad gpu": (["test.py", "--gpu", "3-1", "--test_epoch", 1], "runs backwards"),
        "a used folder": (again, "Use --continue"),
        "nothing to continue": ([*train, "--continue"], "Leave out --continue"),
        "another model": ([*again, "model.channels=64", "--continue"], "model.channels 32 → 64"),
        "missing snapshot": ([*test, 29], "Epochs that exist: 0, 1."),
        "missing run": (["test.py", "--output", tmp_path, "--test_epoch", 1], "train first"),
        "model changed in test": ([*test, 1, "--set", "model.channels=64"], "model.channels 32 → 64"),
        "depth range changed in test": ([*test, 1, "--set", "model.depth_range=0.3"], "model.depth_range"),
        "unknown set": ([*test, 1, "--testset", "InterHand"], "one of: InterHand26M"),
        "unknown protocol": ([*test, 1, "--protocol", "x"], "one of: lgnet"),
        "a single edge": ([*test, 1, "--bins", 5], "test.bins"),
        "no validation split": ([*train, "data.val_split=dev"], "nothing to validate on"),
        "unknown protocol of the validation": ([*train, "test.protocol=x"], "one of: lgnet"),
        "no best": (["test.py", "--gpu", "cpu", "--output", tmp_path, "--test_epoch", "best"], "train first"),
        "unwritable output": ([*train[:-1], f"output={config_file}/x"], "Cannot write"),
    }
    for name, (arguments, expected) in mistakes.items():
        code, text = run(*arguments)
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        assert code == 2, f"{name}: {text}"
        assert len(errors) == 1 and expected in errors[0] and "Traceback" not in text, f"{name}: {text}"


@pytest.mark.parametrize("program", ["test.py", "demo.py"])
@pytest.mark.parametrize("epoch", ["x", "-1", "1.5", "", "BEST", "٣"])
def test_an_epoch_is_a_number_or_best(run, program, epoch):
    code, text = run(program, f"--test_epoch={epoch}")
    assert code == 2 and f"'{epoch}' is neither the number of an epoch nor best" in text


def test_the_output_folder_of_a_test_is_typed_from_here_and_left_out_the_repositorys(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    _, text = run("test.py", "--gpu", "cpu", "--test_epoch", 1, "--output", "mine")
    assert f"There is no snapshot {Path('mine')}/model_dump/snapshot_1.pth.tar" in text
    assert main.arguments.test_parser("").parse_args(["--test_epoch", "1"]).output == ROOT / "output"


def test_left_out_gpu_says_that_the_cpu_is_used(run, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    _, text = run("test.py", "--output", tmp_path, "--test_epoch", 1)
    assert text.splitlines()[0] == "There is no CUDA device: running on the CPU."


def test_a_mistake_leaves_no_traceback_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "test.py", "--gpu", "cpu", "--test_epoch", "29", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=MAIN, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


INTERRUPTED_IMPORT = """
import os, runpy, signal, sys
from itertools import count

class Interrupt:
    imports = count(1)

    def find_spec(self, *_):
        if next(self.imports) == {number}:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)       # whatever started the tests may have it ignored
sys.argv = [{script!r}]
sys.path.insert(0, {folder!r})
import _bootstrap
sys.argv.append("--help")
sys.meta_path.insert(0, Interrupt())
runpy.run_path(sys.argv[0], run_name="__main__")
"""


ENTRY_POINTS = [*(ROOT / "main" / name for name in main.arguments.PARSERS),
                *(ROOT / "tool" / name for name in tool.arguments.PARSERS)]


@pytest.mark.parametrize("script", ENTRY_POINTS, ids=lambda path: path.name)
def test_help_is_answered_before_torch_is_imported(script):
    code = f"import sys; sys.modules['torch'] = None; sys.argv = [{str(script)!r}, '--help']; " \
           "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: {script.name}") and "--help" in done.stdout, \
        done.stderr


WAYS = {        # to start Python: the words before the arguments, the folder and the environment
    "script": lambda script: ([script.relative_to(ROOT)], ROOT, {}),
    "in its folder": lambda script: ([script.name], script.parent, {}),
    "module": lambda script: (["-m", ".".join(script.relative_to(ROOT).with_suffix("").parts)], ROOT, {}),
    "safe path": lambda script: ([script], "/", {"PYTHONSAFEPATH": "1"}),
}
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("script", ENTRY_POINTS, ids=lambda path: path.name)
def test_programs_start_in_every_way_and_speak_to_every_terminal(script, way):
    named = Path(sysconfig.get_path("purelib"), "lgnet.pth")
    if way == "safe path" and not (named.is_file() and named.read_text(encoding="utf-8") == f"{ROOT}\n"):
        pytest.skip("needs an environment that tool/setup_env.sh made for this repository")
    words, folder, environment = WAYS[way](script)
    done = subprocess.run([sys.executable, *map(str, words), "--help"], env=os.environ | environment | ASCII,
                          cwd=folder, capture_output=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith(b"usage: "), done.stderr.decode()
    assert done.stdout.isascii()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("script", sorted((ROOT / "tool" / "dev").glob("[!_]*.py")), ids=lambda path: path.name)
def test_maintainers_programs_start_in_every_way_and_speak_to_every_terminal(script, way):
    test_programs_start_in_every_way_and_speak_to_every_terminal(script, way)


@pytest.mark.slow
def test_whole_runs_under_an_ascii_locale_end_well(config_file, tmp_path):
    """Training, testing and predicting print and write "×", "→" and names of any letters."""
    folder = tmp_path / "höhe 手"
    folder.mkdir()
    for name in ("grün.png", "手.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / name)
    snapshot = tmp_path / "run" / "model_dump" / "snapshot_0.pth.tar"
    runs = [["train", "--config", config_file, "--set", f"output={tmp_path / 'run'}", "train.epochs=1"],
            ["test", "--test_epoch", "0", "--output", tmp_path / "run"],
            ["demo", "--checkpoint", snapshot, "--input", folder, "--output", folder / "out"]]
    for program, *words in runs:
        command = [sys.executable, "-m", f"main.{program}", "--gpu", "cpu", *map(str, words)]
        done = subprocess.run(command, env=os.environ | ASCII, cwd=ROOT, capture_output=True, timeout=120)
        assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr.decode()
        assert done.stdout.isascii()
    assert sorted(file.name for file in (folder / "out" / "panel").iterdir()) == ["grün.png", "手.png"]


def test_the_choices_of_command_lines_are_those_of_the_code():
    assert tool.arguments.UNITS == tuple(METRES) and tool.arguments.JOINT_ORDERS == tuple(JOINT_SETS)


def interrupted_at_import(script: str, number: int) -> subprocess.CompletedProcess:
    """What becomes of an entry point that is interrupted when it imports its `number`-th module."""
    code = INTERRUPTED_IMPORT.format(number=number, script=str(MAIN / script), folder=str(ROOT))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("script", ["train.py", "test.py", "demo.py"])
def test_an_interrupt_while_modules_are_imported_is_no_traceback(script):
    done = interrupted_at_import(script, 30)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.slow
@pytest.mark.scorecard("fault runs")
@pytest.mark.parametrize("number", range(1, 1001, 100))
def test_an_interrupt_at_any_import_is_no_traceback(number):
    done = interrupted_at_import("train.py", number)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


# ---------------------------------------------------------------- whole runs in processes of their own

@pytest.mark.slow
@pytest.mark.scorecard("fault runs")
def test_a_run_that_diverges_leaves_with_3_and_its_weights(config_file, tmp_path):
    done = subprocess.run([sys.executable, MAIN / "train.py", "--gpu", "cpu", "--config", config_file, "--set",
                           f"output={tmp_path}", "train.lr=10", "train.epochs=300", "train.warmup_steps=0"],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 3 and "not finite" in done.stdout and "Traceback" not in done.stderr
    assert list((tmp_path / "log").glob("nonfinite_step_*.json"))


@contextmanager
def training_run(config_file: Path, output: Path) -> Iterator[subprocess.Popen]:
    """A run with two loader processes, in a process group of its own, that has saved an epoch and goes on."""
    command = [sys.executable, str(MAIN / "train.py"), "--gpu", "cpu", "--config", str(config_file),
               "--set", f"output={output}", "train.epochs=1000", "data.workers=2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while not (output / "model_dump" / "snapshot_0.pth.tar.sha256").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.scorecard("fault runs")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["process", "group"])
def test_a_stopped_run_is_saved_whether_it_or_its_whole_group_is_signalled(config_file, tmp_path, send, number, code):
    with training_run(config_file, tmp_path) as process:
        send(process.pid, number)
        assert process.wait(timeout=60) == code
        assert "Traceback" not in process.stderr.read()
    assert read_record(tmp_path)[-1].result == f"stopped by {signal.Signals(number).name}"
    assert load_latest(tmp_path / "model_dump")[0].step == read_record(tmp_path)[-1].step


def group_members(group: int) -> set[str]:
    """The living processes of a group, by what the system tells of them."""
    members = set()
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, member_of = file.read_text().rpartition(")")[2].split()[:3]
            if int(member_of) == group and state != "Z":
                members.add(file.parent.name)
    return members


@pytest.mark.slow
def test_the_loader_processes_of_a_killed_run_end_with_it(config_file, tmp_path):
    with training_run(config_file, tmp_path) as process:
        assert len(group_members(process.pid)) == 3
        process.kill()
        process.wait()
        time.sleep(0.5)
        assert group_members(process.pid) == set()


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.5, 2.0, 5.0])
def test_an_interrupted_rendering_leaves_quietly_at_any_time_and_goes_on(tmp_path, after):
    command = [sys.executable, str(ROOT / "tool" / "make_synthetic.py"), "--out", str(tmp_path / "set"), "--frames",
               "40", "--seed", "0", "--workers", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as process:
        time.sleep(after)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=60)
        assert process.returncode == 130 and "Traceback" not in process.stderr.read()
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_what_is_logged_reaches_a_file_at_once(tmp_path):
    """As under nohup or a batch system: the process here dies before Python would have written its buffer."""
    code = (f"import sys, os, logging; from pathlib import Path; sys.path.insert(0, {str(ROOT)!r})\n"
            "from main.engine.run.log import start_log\n"
            f"start_log(Path({str(tmp_path / 'train.log')!r}), is_main=True)\n"
            "logging.getLogger('common').info('epoch 0'); os._exit(0)")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "epoch 0\n"
