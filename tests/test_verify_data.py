"""The tool finds before training what training would leave out, and says so with its exit code."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures_hic import write_hic
from fixtures_interhand import write_interhand
from forks import run_in_fork
from PIL import Image

from common.errors import EXIT_ENVIRONMENT, UserError
from data import build_reader
from data.checks import Reason
from data.dataset import TwoHandDataset
from data.schema import NoSuchSplit
from tool import verify_data

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def written(tmp_path_factory, hand_model) -> Path:
    root = tmp_path_factory.mktemp("interhand") / "data"
    write_interhand(root, hand_model, split="train")
    write_interhand(root, hand_model, split="test", seed=1)
    return root


@pytest.fixture
def copy(written, tmp_path) -> Path:
    """A root that a test may damage."""
    return Path(shutil.copytree(written, tmp_path / "data"))


@pytest.fixture
def verify(monkeypatch, tmp_path):
    """Run the tool on a root: its exit code, and what it writes with --json."""
    def run(root: Path, *words: str) -> tuple[int, dict]:
        command = ["verify_data.py", "--set", f"data.root={root}", "data.filter=all", "--workers", "0", "--json",
                   str(tmp_path / "found.json"), *words]
        monkeypatch.setattr(sys, "argv", command)
        code = verify_data.main()
        return code, json.loads((tmp_path / "found.json").read_text())["splits"]

    return run


def pictures(root: Path, split: str = "train") -> list[Path]:
    """The pictures of the frames of which everything is annotated."""
    return sorted((root / "images" / split / "Capture3").rglob("image100.jpg"))


def damage(root: Path) -> dict[str, str]:
    """Damage one picture for each reason: reason by path."""
    missing, black, turned = pictures(root)
    cut, empty = pictures(root, "test")[:2]
    missing.unlink()
    Image.new("RGB", Image.open(black).size).save(black)
    Image.open(turned).transpose(Image.Transpose.ROTATE_90).save(turned)
    cut.write_bytes(cut.read_bytes()[:-200])
    empty.write_bytes(b"")
    return {str(missing): Reason.IMAGE_MISSING, str(black): Reason.IMAGE_BLACK, str(turned): Reason.IMAGE_SIZE,
            str(cut): Reason.IMAGE_DAMAGED, str(empty): Reason.IMAGE_DAMAGED}


def edit(root: Path, kind: str, change) -> None:
    path = root / "annotations" / "train" / f"InterHand2.6M_train_{kind}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# ---------------------------------------------------------------- what it finds

def test_a_set_without_faults_passes(written, verify, capsys):
    code, found = verify(written)
    assert code == 0 and set(found) == {"train", "test"}
    assert all((split["bad"], split["reasons"], split["broken"]) == (0, {}, {}) for split in found.values())
    printed = capsys.readouterr().out
    assert "InterHand26M train: all 18 samples can be used." in printed and "samples/s" in printed


def test_damaged_pictures_are_found_in_every_split_and_named_by_reason(copy, verify, capsys):
    expected = damage(copy)
    code, found = verify(copy)
    assert code == 4
    named = {sample["path"]: sample["reason"] for split in found.values() for sample in split["bad_samples"]}
    assert named == expected
    assert found["test"]["reasons"] == {"image damaged": 2}
    printed = capsys.readouterr().out
    assert all(path in printed and reason in printed for path, reason in expected.items())
    assert "3 of 18 samples (16.667%) cannot be used" in printed and "data.max_bad_fraction" in printed


def test_what_it_finds_is_what_training_leaves_out(copy, verify, hand_model):
    damage(copy)
    _, found = verify(copy)
    reader = build_reader("InterHand26M", root=copy, split="train", hand_model=hand_model, filter="all",
                          box_source="vertices")
    dataset = TwoHandDataset(reader, size=32, box_ratio=0.8)
    faults = {index: int(dataset[0, index].fault) for index in range(len(dataset))}
    assert {sample["index"]: Reason(sample["reason"]).code for sample in found["train"]["bad_samples"]} == {
        index: fault for index, fault in faults.items() if fault}


def test_meshes_placed_in_millimetres_are_found(copy, verify):
    """The hands keep their size, but lie hundreds of metres away, wherever that is for each camera."""
    def to_millimetres(content: dict) -> None:
        for hand in ("right", "left"):
            fit = content["3"]["100"][hand]
            fit["trans"] = [1000 * value for value in fit["trans"]]

    edit(copy, "MANO_NeuralAnnot", to_millimetres)
    code, found = verify(copy, "--split", "train")
    assert code == 4 and found["train"]["bad"] == 3
    assert set(found["train"]["reasons"]) <= {Reason.OUT_OF_FRAME, Reason.BOX, Reason.BEHIND_CAMERA,
                                              Reason.MESH_ELSEWHERE}


def test_a_mesh_of_another_frame_is_far_from_its_joints(copy, verify):
    def move(content: dict) -> None:
        fit = content["3"]["100"]["right"]
        fit["trans"] = [fit["trans"][0] + 0.12, *fit["trans"][1:]]

    edit(copy, "MANO_NeuralAnnot", move)
    code, found = verify(copy, "--split", "train")
    assert code == 4 and found["train"]["reasons"] == {"mesh far from joints": 3}


def test_annotations_that_are_never_read_because_they_are_broken_are_found_too(copy, verify, capsys):
    """Joints in metres where the format has millimetres: the reader leaves these records out, counted."""
    def to_metres(content: dict) -> None:
        entry = content["3"]["100"]
        entry["world_coord"] = [[value / 1000 for value in point] for point in entry["world_coord"]]

    edit(copy, "joint_3d", to_metres)
    code, found = verify(copy, "--split", "train")
    assert code == 4
    assert sum(map(len, found["train"]["broken"].values())) + found["train"]["bad"] == 3
    assert "Capture3" in capsys.readouterr().out


def test_hic_is_verified_by_the_same_tool(hand_model, tmp_path, verify):
    root = write_hic(tmp_path / "HIC", hand_model).root
    code, found = verify(root, "--testset", "HIC")
    assert code == 4 and set(found) == {"test"}        # the written set names a mesh that is not there
    assert found["test"]["bad"] == 0 and list(found["test"]["broken"]) == ["mesh missing"]
    picture = sorted(root.rglob("*.png"))[0]
    picture.write_bytes(picture.read_bytes()[:100])
    code, found = verify(root, "--testset", "HIC")
    assert code == 4 and found["test"]["reasons"] == {"image damaged": 1}


# ---------------------------------------------------------------- how it is used

def test_processes_change_nothing(copy, verify):
    damage(copy)
    reports = []
    for workers in ("0", "2"):
        _, found = verify(copy, "--workers", workers)
        reports.append({split: report | {"samples_per_second": 0, "processes": 0} for split, report in found.items()})
    assert reports[0] == reports[1]


def test_a_limit_looks_at_samples_spread_over_the_set(written, verify):
    _, found = verify(written, "--limit", "4")
    assert [(split["samples"], split["examined"]) for split in found.values()] == [(18, 4)] * 2
    _, found = verify(written, "--limit", "400")
    assert found["train"]["examined"] == 18


def test_a_limit_reaches_from_the_first_to_the_last_sample(copy, verify):
    for path in (copy / "images" / "train").rglob("*.jpg"):
        path.write_bytes(b"")
    _, found = verify(copy, "--split", "train", "--limit", "4")
    assert [sample["index"] for sample in found["train"]["bad_samples"]] == [0, 6, 11, 17]


def test_only_the_splits_that_are_named_are_looked_at(copy, verify):
    damage(copy)
    _, found = verify(copy, "--split", "test")
    assert set(found) == {"test"} and found["test"]["bad"] == 2


@pytest.mark.parametrize(("words", "named"), [
    (["--split", "val"], "split 'val'"),
    (["--split", "test", "val"], "split 'val'"),
    (["--testset", "FreiHAND"], "FreiHAND"),
    (["--workers", "-1"], "--workers"),
    (["--limit", "-3"], "--limit"),
    (["--set", "data.rot=x"], "data.root"),
])
def test_what_a_user_gets_wrong_is_told(written, verify, words, named):
    with pytest.raises(UserError, match=named):
        verify(written, *words)


def test_a_folder_without_a_set_is_told(tmp_path, verify):
    with pytest.raises(NoSuchSplit, match="Tried"):
        verify(tmp_path)


def test_a_result_that_cannot_be_written_is_told(written, verify, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken"):
        verify(written, "--json", str(tmp_path / "taken" / "found.json"))


@pytest.mark.slow
def test_the_command_ends_with_its_exit_code(copy):
    damage(copy)
    command = [sys.executable, str(ROOT / "tool" / "verify_data.py"), "--workers", "2", "--set", "data.filter=all"]
    done = subprocess.run([*command, f"data.root={copy}"], capture_output=True, text=True, cwd="/")
    assert done.returncode == 4 and "image black" in done.stdout and "Traceback" not in done.stderr
    done = subprocess.run([*command, "data.root=/nowhere"], capture_output=True, text=True, cwd="/")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(("message", "workers"), [
    (None, 2), ("a.npy cannot be read: Too many open files.", 0), ("a.npy cannot be read: Too many open files.", 2)])
def test_what_the_machine_lacks_is_the_fault_of_no_sample(written, hand_model, monkeypatch, message, workers):
    """A process is killed as where the memory is full, or no more files can be opened."""
    reader = build_reader("InterHand26M", root=written, split="train", hand_model=hand_model, filter="all",
                          box_source="vertices")

    def read(index: int) -> None:
        if message is None:
            os.kill(os.getpid(), signal.SIGKILL)
        raise UserError(message, exit_code=EXIT_ENVIRONMENT)

    monkeypatch.setattr(reader, "read", read)
    status = run_in_fork(lambda: verify_data.examine(reader, workers) and 0)
    assert os.waitstatus_to_exitcode(status) == EXIT_ENVIRONMENT
