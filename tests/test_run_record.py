"""The record of a run: all that is needed to repeat it, nothing that only its machine understands, nothing lost."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import msgspec
import pytest
import torch
from fixtures_interhand import write_interhand
from process_group import run_group
from toy_scores import plain_result
from toy_training import toy_trainer

from common.errors import UserError
from common.files import ROOT
from common.score.scores import NetworkScores
from main.config import Config, DataConfig, ModelConfig
from main.engine.evaluator import report
from main.engine.processes.launch import Process
from main.engine.progress import Outcome
from main.engine.run import provenance
from main.engine.run.provenance import (
    code_revision,
    differences,
    local,
    portable,
    portable_command,
    sources_sha256,
    versions,
)
from main.engine.run.record import RECORD_FILE, Start, read_record, recorded
from main.engine.run.snapshots import load_latest, save_snapshot, snapshot_path
from main.engine.trainer import Trainer
from tool.doctor import report_run

TORCH = metadata.version("torch")     # a wheel may leave the build, as in 2.13.0+cu130, to torch.__version__
COMMAND = ["train.py", "--gpu", "cpu"]


@pytest.fixture(autouse=True)
def command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "main" / COMMAND[0]), *COMMAND[1:]])


def on(data_root: Path, **model) -> Config:
    return Config(data=DataConfig(root=str(data_root)), model=ModelConfig(**model))


def trained(dataset, data_root: Path, output: Path, *, resume: bool = False, **train) -> int:
    """A toy run of an epoch, as train.py would do it."""
    trainer = toy_trainer(dataset, output, config=on(data_root), **{"epochs": 1, "lr_drops": (), "seed": 3} | train)
    if resume:
        trainer.restore(load_latest(output / "model_dump")[0])
        trainer.run.resume = True
    return trainer.fit()


def recorded_by(trainer: Trainer, train: Callable[[], Outcome]) -> Outcome:
    """The trainer's run with another training in its place."""
    return recorded(train, trainer.run, trainer.samples.reader, trainer.progress)


# ---------------------------------------------------------------- what is in it

def test_a_run_leaves_all_that_is_needed_to_repeat_it(dataset, data_root, hand_model, tmp_path):
    assert trained(dataset, data_root, tmp_path) == 0
    start, end = read_record(tmp_path)
    assert start.config == portable(load_latest(tmp_path / "model_dump")[0].config)
    assert (start.config["train"]["seed"], start.config["data"]["root"]) == (3, portable(str(data_root)))
    assert (start.command, start.continues, start.step) == (["{repository}/main/train.py", "--gpu", "cpu"], False, 0)
    assert start.versions["torch"] == TORCH and start.versions["python"] == sys.version.split()[0]
    assert start.program["sources_sha256"] == sources_sha256(ROOT)
    assert start.hand_model == hand_model.identity
    assert start.machine["processes"] == 1 and "cpu: " in start.machine["devices"][0]
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest()
             for file in (data_root / "annotations" / "train").glob("*.json")}
    assert start.data["annotations"] == files and len(files) == 4
    assert (start.data["samples"], start.data["filter"]) == (len(dataset), "ih_hm")
    assert (end.result, end.code, end.epoch, end.step) == ("complete", 0, 1, 3)


def test_going_on_adds_a_line_with_what_changed_and_from_where(dataset, data_root, tmp_path):
    trained(dataset, data_root, tmp_path)
    first = (tmp_path / RECORD_FILE).read_bytes()
    trained(dataset, data_root, tmp_path, resume=True, epochs=2)
    assert (tmp_path / RECORD_FILE).read_bytes().startswith(first)
    start, _, again, end = read_record(tmp_path)
    assert (again.continues, again.epoch, again.step) == (True, 1, 3)
    assert (start.changed, again.changed) == ({}, {"config.train.epochs": "1 → 2"})
    assert (end.epoch, end.step) == (2, 6)


def test_a_rendered_set_is_recorded_by_its_settings_and_weights_by_their_digest(dataset, data_root, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(data_root, root)
    (root / "synthetic.json").write_text('{"frames": 40, "seed": 7}')
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"weights")
    config = on(root, pretrained=str(weights))
    toy_trainer(dataset, tmp_path / "run", epochs=1, lr_drops=(), config=config).fit()
    start = read_record(tmp_path / "run")[0]
    assert start.data["rendered"] == {"frames": 40, "seed": 7}
    assert start.pretrained == hashlib.sha256(b"weights").hexdigest()


@pytest.mark.parametrize(("outcome", "code", "result"), [
    (Outcome.TERMINATED, 143, "stopped by SIGTERM"), (Outcome.INTERRUPTED, 130, "stopped by SIGINT"),
    (Outcome.DIVERGED, 3, "diverged"), (Outcome.COMPLETE, 0, "complete"),
])
def test_the_end_is_told_by_its_exit_code(dataset, data_root, tmp_path, outcome, code, result):
    trainer = toy_trainer(dataset, tmp_path, epochs=1, lr_drops=(), config=on(data_root))
    assert recorded_by(trainer, lambda: outcome) == code
    end = read_record(tmp_path)[-1]
    assert (end.code, end.result) == (code, result)


@pytest.mark.parametrize(("error", "code", "result"), [
    (UserError("Cannot write x.", "Is the disk full?", 5), 5, "failed: Cannot write x. Is the disk full?"),
    (ZeroDivisionError("one\ntwo"), 1, "failed: one two"), (AssertionError(), 1, "failed: AssertionError"),
    (KeyboardInterrupt(), 130, "stopped by SIGINT"),
])
def test_an_error_is_recorded_and_goes_on_its_way(dataset, data_root, tmp_path, error, code, result):
    trainer = toy_trainer(dataset, tmp_path, epochs=1, lr_drops=(), config=on(data_root))

    def fail():
        raise error

    with pytest.raises(type(error)):
        recorded_by(trainer, fail)
    end = read_record(tmp_path)[-1]
    assert (end.code, end.result) == (code, result)


def test_a_killed_run_has_a_start_and_no_end(dataset, data_root, tmp_path, capsys):
    child = os.fork()
    if child == 0:
        trainer = toy_trainer(dataset, tmp_path, epochs=1, lr_drops=(), config=on(data_root))
        recorded_by(trainer, lambda: os.kill(os.getpid(), signal.SIGKILL))
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert [type(entry) for entry in read_record(tmp_path)] == [Start]
    assert report_run(tmp_path) == 0
    assert "no end is recorded: it was killed, or it is still running" in capsys.readouterr().out


def test_several_processes_write_one_record_that_names_all_their_devices(dataset, data_root, tmp_path):
    def worker(process: Process) -> int:
        trainer = toy_trainer(dataset, tmp_path, process=process, epochs=1, lr_drops=(), config=on(data_root))
        return trainer.fit()

    assert [ended.code for ended in run_group(worker, tmp_path)] == [0, 0]
    start, end = read_record(tmp_path)
    assert (start.machine["processes"], len(start.machine["devices"]), end.result) == (2, 2, "complete")


def test_an_end_that_cannot_be_written_changes_no_exit_code(dataset, data_root, tmp_path, caplog):
    trainer = toy_trainer(dataset, tmp_path, epochs=1, lr_drops=(), config=on(data_root))

    def fit() -> Outcome:
        (tmp_path / RECORD_FILE).unlink()
        (tmp_path / RECORD_FILE).mkdir()
        return Outcome.COMPLETE

    assert recorded_by(trainer, fit) == 0
    assert "The end of the run is not in its record." in caplog.text


def test_a_damaged_record_is_kept_and_added_to(dataset, data_root, tmp_path, caplog):
    (tmp_path / RECORD_FILE).write_bytes(b'{"event": "start"')
    assert trained(dataset, data_root, tmp_path) == 0
    damaged, start, end = (tmp_path / RECORD_FILE).read_bytes().splitlines()
    assert damaged == b'{"event": "start"' and "line 1 is damaged" in caplog.text
    assert (json.loads(start)["event"], json.loads(end)["event"]) == ("start", "end")


# ---------------------------------------------------------------- what is not in it

def test_no_home_folder_and_no_environment_is_recorded(dataset, data_root, tmp_path, monkeypatch):
    home = tmp_path / "home" / "ada"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LGNET_TEST_TOKEN", "do not tell")
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "main" / "train.py"), "--mano", str(home / "mano"), "--set",
                                      f"output={home}/run", f"data.root={data_root}"])
    trained(dataset, data_root, home / "run")
    text = (home / "run" / RECORD_FILE).read_text()
    for secret in (str(home), str(ROOT), "do not tell", "LGNET_TEST_TOKEN"):
        assert secret not in text, secret
    start = read_record(home / "run")[0]
    assert start.folder == "~" and start.command[1:4] == ["--mano", "~/mano", "--set"]
    assert list(map(local, start.command)) == sys.argv


@pytest.mark.parametrize(("text", "expected"), [
    ("{root}", "."), ("{root}/output/x", "output/x"), ("output={root}/x", "output=x"), ("{root}er/x", "{root}er/x"),
    ("/mnt{root}/x", "/mnt{root}/x"),
    ("/home/ada", "~"), ("/home/ada/a b", "~/a b"), ("data.root=/home/ada/d", "data.root=~/d"),
    ("/home/adam/x", "/home/adam/x"), ("/mnt/home/ada", "/mnt/home/ada"), ("'/home/ada/x':", "'~/x':"),
    ("x", "x"), ("", ""), ("~/x", "~/x"),
])
def test_paths_are_written_without_the_place_of_home_and_repository(monkeypatch, text, expected):
    monkeypatch.setenv("HOME", "/home/ada")
    assert portable(text.format(root=ROOT)) == expected.format(root=ROOT)
    assert [local(word) for word in portable_command([text.format(root=ROOT)])] == [
        text.format(root=ROOT).replace("~", "/home/ada")]


def test_a_home_that_is_the_root_folder_is_no_part_of_other_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/")
    assert portable({"a": ["/mnt/x", Path("/mnt/y"), 3, None]}) == {"a": ["/mnt/x", "/mnt/y", 3, None]}


# ---------------------------------------------------------------- the code

def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
    return subprocess.run(["git", "-C", folder, *identity, *words], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    """A small program in place of this one."""
    for name in ("main/train.py", "common/nets/lgnet.py", "data/HIC/reader.py", "tool/doctor.py", "requirements.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("pass\n")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    return tmp_path


def test_the_commit_and_what_differs_from_it_are_named(tree):
    git(tree, "init", "--quiet")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "--message", "first")
    clean = code_revision()
    assert clean["commit"] == git(tree, "rev-parse", "HEAD").strip() and clean["changed"] == []
    (tree / "main/train.py").write_text("print()\n")
    (tree / "common/new file.py").write_text("")
    changed = code_revision()
    assert changed["commit"] == clean["commit"]
    assert changed["changed"] == ["main/train.py", "common/new file.py"]
    assert changed["sources_sha256"] != sources_sha256(ROOT)


@pytest.mark.parametrize("state", ["no repository", "another's repository", "no git", "a broken repository"])
def test_without_git_the_files_alone_tell_the_code(tree, monkeypatch, state):
    if state == "another's repository":
        git(tree.parent, "init", "--quiet")
    elif state == "no git":
        monkeypatch.setenv("PATH", str(tree))
    elif state == "a broken repository":
        (tree / ".git").write_text("gitdir: nowhere")
    revision = code_revision()
    assert (revision["commit"], revision["changed"]) == (None, [])
    assert len(revision["sources_sha256"]) == 64


def test_any_change_of_the_program_changes_its_digest_and_nothing_else_does(tree):
    digests = {sources_sha256(tree)}
    (tree / "data/HIC/data").mkdir()
    for unrelated in ("data/HIC/data/x.py", "README.md", "data/HIC/x.json"):
        (tree / unrelated).write_text("")
    digests.add(sources_sha256(tree))
    assert len(digests) == 1
    (tree / "common/nets/lgnet.py").rename(tree / "common/nets/net.py")
    digests.add(sources_sha256(tree))
    (tree / "data/HIC/reader.py").write_text("")
    digests.add(sources_sha256(tree))
    (tree / "main/configs/ablation").mkdir(parents=True)
    (tree / "main/configs/ablation/x.yaml").write_text("")
    digests.add(sources_sha256(tree))
    assert len(digests) == 4


def test_every_pin_has_a_version_and_a_missing_package_none(tree):
    (tree / "requirements.txt").write_text("torch==1\nno-such-package==2\n")
    assert versions() == {"python": sys.version.split()[0], "torch": TORCH, "no-such-package": None}
    assert torch.__version__.split("+")[0] == TORCH.split("+")[0]


def test_differences_are_told_by_dotted_keys():
    old, new = {"a": {"b": 1, "c": (1, 2)}, "d": {}, "e": 1}, {"a": {"b": 2, "c": [1, 2]}, "d": {}, "f": None}
    assert differences(old, new) == {"a.b": "1 → 2", "e": "1 → None"}


def test_a_test_s_report_names_the_program_too(tmp_path):
    scores = msgspec.convert(plain_result(), NetworkScores)
    assert report(scores, {"data": {"root": f"{ROOT}/data"}}, tmp_path) == 0
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert (written["program"], written["versions"]) == (code_revision(), versions())
    assert written["data"]["root"] == "data"


# ---------------------------------------------------------------- reading it

def test_the_doctor_tells_what_a_run_was_and_what_has_changed_since(dataset, data_root, tmp_path, capsys):
    trained(dataset, data_root, tmp_path)
    trained(dataset, data_root, tmp_path, resume=True, epochs=2)
    (tmp_path / "model_dump" / "snapshot_0.pth.tar").write_bytes(b"x")
    file = tmp_path / RECORD_FILE
    file.write_text(file.read_text().replace(f'"torch":"{TORCH}"', '"torch":"1.0"'))
    assert report_run(tmp_path) == 0
    text = capsys.readouterr().out
    for expected in (
            "started at epoch 0, step 0", "ended at epoch 1, step 3: complete (exit code 0)",
            "continued at epoch 1, step 3", "config.train.epochs: 1 → 2", "python main/train.py --gpu cpu",
            f"versions    differs: torch 1.0 → {TORCH}", "code        the same", "data        the same",
            "hand model  the same", "snapshot_0.pth.tar  ", "is damaged",
            "snapshot_1.pth.tar  epoch 2, step 6, undamaged",
    ):
        assert expected in text, f"{expected!r} is not in:\n{text}"
    assert "not checked" not in text


def test_the_doctor_tells_the_scores_of_snapshots_and_the_best(dataset, data_root, tmp_path, capsys):
    trained(dataset, data_root, tmp_path)
    snapshot, path = load_latest(tmp_path / "model_dump")
    save_snapshot(replace(snapshot, score=12.25, best=(0, 12.25)), path)
    save_snapshot(replace(snapshot, score=13.0, best=(0, 12.25), next_epoch=2), snapshot_path(path.parent, 1))
    report_run(tmp_path)
    text = capsys.readouterr().out
    assert "snapshot_1.pth.tar  epoch 2, step 3, validation MPJPE 13.00 mm, undamaged" in text
    assert "the best so far is snapshot_0.pth.tar, with 12.25 mm" in text


def test_the_doctor_without_the_program_s_packages_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tool.run_report", None)
    with pytest.raises(UserError, match="bash tool/setup_env.sh"):
        report_run(tmp_path)


def test_the_doctor_notices_other_data_and_data_that_is_gone(dataset, hand_model, tmp_path, capsys):
    data = tmp_path / "data"
    write_interhand(data, hand_model)
    trained(dataset, data, tmp_path / "run")
    write_interhand(data, hand_model, seed=5)
    report_run(tmp_path / "run")
    assert "data        differs: annotations.InterHand2.6M_train_" in capsys.readouterr().out
    shutil.rmtree(data)
    report_run(tmp_path / "run")
    assert "data        cannot be compared: There are no InterHand2.6M annotations" in capsys.readouterr().out


def test_a_rendered_set_is_repeated_by_its_command(dataset, data_root, tmp_path, capsys):
    trained(dataset, data_root, tmp_path)
    file = tmp_path / RECORD_FILE
    rendered = '{"frames":40,"seed":7,"cameras":2,"interacting":0.8}'
    file.write_text(file.read_text().replace('"rendered":null', f'"rendered":{rendered}'))
    report_run(tmp_path)
    command = f"--out {portable(str(data_root))} --frames 40 --seed 7 --cameras 2 --interacting 0.8"
    assert f"python tool/make_synthetic.py {command}" in capsys.readouterr().out


@pytest.mark.parametrize(("content", "expected"), [
    (None, "holds no run.jsonl"), (b"", "its first line is not the start of a run"), (b"\xff\xfe", "line 1 is damaged"),
    (b"{}", "line 1 is damaged"), (b"[" * 100_000, "line 1 is damaged"), (b'{"event":"start"}', "line 1 is damaged"),
    (b'{"event":"end","time":"","epoch":0,"step":0,"code":0,"result":""}', "not the start of a run"),
])
def test_a_folder_without_a_sound_record_is_refused(tmp_path, content, expected):
    if content is not None:
        (tmp_path / RECORD_FILE).write_bytes(content)
    with pytest.raises(UserError, match=expected):
        read_record(tmp_path)


def test_the_doctor_refuses_a_run_that_is_none_in_one_paragraph(run, tmp_path):
    code, text = run("tool/doctor.py", "--run", tmp_path / "none")
    assert code == 2
    assert text == f"error: There is no folder {tmp_path}/none. Name the output folder of a training run.\n"


def test_fields_that_a_later_version_adds_are_no_damage(tmp_path, dataset, data_root):
    trained(dataset, data_root, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / RECORD_FILE).read_text().splitlines()]
    text = "\n".join(json.dumps(line | {"new": 1}) for line in lines)
    before = read_record(tmp_path)
    (tmp_path / RECORD_FILE).write_text(text)
    assert read_record(tmp_path) == before


# ---------------------------------------------------------------- repeating it

@pytest.mark.slow
def test_the_printed_command_repeats_the_run_to_the_same_weights(config_file, tmp_path, capsys):
    """Of a real run of train.py, from another folder; the repetition only writes somewhere else."""
    command = [sys.executable, ROOT / "main" / "train.py", "--gpu", "cpu", "--config", config_file.name, "--set",
               f"output={tmp_path / 'first'}"]
    subprocess.run(command, cwd=config_file.parent, check=True, capture_output=True, timeout=300)
    report_run(tmp_path / "first")
    [printed] = [line.strip() for line in capsys.readouterr().out.splitlines() if " && python " in line]
    repeated = printed.replace(" python ", f" {sys.executable} ").replace(f"{tmp_path}/first", f"{tmp_path}/second")
    subprocess.run(["bash", "-c", repeated], check=True, capture_output=True, timeout=300)
    first, second = (load_latest(tmp_path / name / "model_dump")[0].model for name in ("first", "second"))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
