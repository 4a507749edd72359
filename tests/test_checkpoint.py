"""Snapshots: complete, unharmed and of the right model, or refused in one paragraph."""

import contextlib
import hashlib
import os
import pickle
import random
import resource
import shutil
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import run_in_fork
from torch import nn

from common.errors import UserError
from common.files import write_atomically
from common.weights import load_weights
from main.engine.processes.seeding import random_state, seed_everything, set_random_state
from main.engine.run.snapshots import (
    Snapshot,
    load_latest,
    load_snapshot,
    load_trained,
    partial_path,
    remove_old_snapshots,
    save_snapshot,
    snapshot_path,
    snapshots_in,
)


def make_snapshot(epoch: int = 0) -> Snapshot:
    torch.manual_seed(epoch)
    model = nn.Linear(64, 64)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 64)).sum().backward()
    optimizer.step()
    return Snapshot(
        model=model.state_dict(), optimizer=optimizer.state_dict(), random_states=[random_state()], step=3 * epoch,
        next_epoch=epoch + 1, next_sample=0, config={"train": {"lr": 1e-4, "lr_drops": (10, 15)}, "output": "x"},
        hand_model={"name": "builtin", "sha256": "0" * 64}, mean_joints=torch.randn(2, 21, 3),
        torch_version=str(torch.__version__), world_size=1,
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = snapshot_path(tmp_path, 0)
    save_snapshot(make_snapshot(), path)
    return path


def test_what_is_saved_is_what_is_loaded(saved):
    expected, (found, digest) = make_snapshot(), load_snapshot(saved)
    assert digest == hashlib.sha256(saved.read_bytes()).hexdigest()
    assert (found.config, found.hand_model, found.next_epoch) == (expected.config, expected.hand_model, 1)
    torch.testing.assert_close(found.model, expected.model, rtol=0, atol=0)
    torch.testing.assert_close(found.optimizer, expected.optimizer, rtol=0, atol=0)


def test_restored_random_state_draws_the_same_numbers(saved):
    def draw():
        return random.random(), torch.rand(3).tolist(), np.random.rand(3).tolist()

    set_random_state(load_snapshot(saved)[0].random_states[0])
    first = draw()
    seed_everything(5, rank=1)
    set_random_state(load_snapshot(saved)[0].random_states[0])
    assert draw() == first


def test_ranks_and_seeds_draw_different_numbers():
    draws = set()
    for seed, rank in ((0, 0), (0, 1), (1, 0)):
        seed_everything(seed, rank)
        draws.add((random.random(), torch.rand(1).item()))
    assert len(draws) == 3


def assert_damaged(path: Path) -> None:
    with pytest.raises(UserError, match=r"is damaged \(sha256 ") as caught:
        load_snapshot(path)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


@pytest.mark.scorecard("damaged checkpoints")
def test_no_flipped_bit_goes_unnoticed(saved, record_property):
    data, rng = saved.read_bytes(), random.Random(0)
    places = rng.sample(range(8 * len(data)), 200)
    for place in places:
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        saved.write_bytes(damaged)
        assert_damaged(saved)
    record_property("cases", len(places))


@pytest.mark.scorecard("damaged checkpoints")
def test_no_truncated_file_loads(saved, record_property):
    data, rng = saved.read_bytes(), random.Random(0)
    lengths = {0, 1, len(data) - 1, *rng.sample(range(2, len(data) - 1), 197)}
    for length in lengths:
        saved.write_bytes(data[:length])
        assert_damaged(saved)
    record_property("cases", len(lengths))


def test_without_the_digest_most_flipped_bits_would_load(saved):
    """Why it is there: torch checks the names and sizes in a file, not the numbers."""
    data, rng, loaded = saved.read_bytes(), random.Random(0), 0
    for place in rng.sample(range(8 * len(data)), 50):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        saved.write_bytes(damaged)
        sign(saved)
        with contextlib.suppress(UserError):
            loaded += load_snapshot(saved) is not None
    assert loaded > 25


DAMAGES = {
    "nothing in it": lambda path: path.write_bytes(b""),
    "half of it": lambda path: path.write_bytes(path.read_bytes()[:len(path.read_bytes()) // 2]),
    "another zip": lambda path: zipfile.ZipFile(path, "w").writestr("a.txt", "hello"),
    "a text": lambda path: path.write_text("hello"),
    "another snapshot": lambda path: torch.save({"model": {}}, path),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a link to nothing": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "no digest": lambda path: path.with_name(f"{path.name}.sha256").unlink(),
    "an empty digest": lambda path: path.with_name(f"{path.name}.sha256").write_text(""),
    "a digest that is no text": lambda path: path.with_name(f"{path.name}.sha256").write_bytes(b"\xff\x00" * 40),
    "another digest": lambda path: path.with_name(f"{path.name}.sha256").write_text("0" * 64),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_snapshot_is_refused_and_continuing_takes_the_one_before(tmp_path, caplog, damage):
    for epoch in range(2):
        save_snapshot(make_snapshot(epoch), snapshot_path(tmp_path, epoch))
    DAMAGES[damage](snapshot_path(tmp_path, 1))
    with pytest.raises(UserError) as caught:
        load_snapshot(snapshot_path(tmp_path, 1))
    assert caught.value.exit_code == 2 and str(snapshot_path(tmp_path, 1)) in str(caught.value)
    snapshot, path = load_latest(tmp_path)
    assert (snapshot.next_epoch, path) == (1, snapshot_path(tmp_path, 0))
    assert "snapshot_1.pth.tar" in caplog.text or damage == "no digest"


def test_snapshots_of_earlier_versions_load_with_what_they_lack(saved):
    """They know of no validation, and counted the batches of each process instead of samples."""
    values = torch.load(saved, weights_only=True)
    del values["score"], values["best"], values["next_sample"]
    values |= {"next_batch": 5, "world_size": 2, "config": {"train": {"batch_size": 8}}}
    torch.save(values, saved)
    sign(saved)
    snapshot, _ = load_snapshot(saved)
    assert (snapshot.score, snapshot.best, snapshot.next_sample) == (None, None, 80)


def test_a_snapshot_holds_tensors_and_plain_values_only(saved):
    allowed = (dict, OrderedDict, list, tuple, str, int, float, bool, type(None), torch.Tensor)

    def check(value: object) -> None:
        assert type(value) in allowed
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
            check(item)

    check(torch.load(saved, weights_only=True))


def test_what_the_disk_does_not_keep_as_written_is_noticed_while_the_snapshots_before_it_still_exist(
        saved, monkeypatch):
    def replace(source, target, original=os.replace):
        data = bytearray(Path(source).read_bytes())
        data[len(data) // 2] ^= 1
        Path(source).write_bytes(data)
        original(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(UserError, match="not read back as it was written") as caught:
        save_snapshot(make_snapshot(1), snapshot_path(saved.parent, 1))
    assert caught.value.exit_code == 5
    assert load_latest(saved.parent)[0].next_epoch == 1


def sign(path: Path) -> None:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(f"{path.name}.sha256").write_text(f"{digest}  {path.name}\n")


class Attack:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch '{self.file}'",)


@pytest.mark.parametrize("protocol", range(5))
def test_a_snapshot_that_would_run_code_is_refused_and_does_not(saved, tmp_path, protocol):
    saved.write_bytes(pickle.dumps(Attack(tmp_path / "ran"), protocol=protocol))
    sign(saved)
    with pytest.raises(UserError, match="not a snapshot"):
        load_snapshot(saved)
    torch.save({"model": Attack(tmp_path / "ran")}, saved)
    sign(saved)
    with pytest.raises(UserError, match="not a snapshot"):
        load_snapshot(saved)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + bytes(50)])
def test_a_file_that_is_no_snapshot_is_refused_even_with_a_right_digest(saved, content):
    saved.write_bytes(content)
    sign(saved)
    with pytest.raises(UserError, match="not a snapshot"):
        load_snapshot(saved)


def test_a_dictionary_of_something_else_is_refused(saved):
    torch.save({"state_dict": {}}, saved)
    sign(saved)
    with pytest.raises(UserError, match="not a snapshot"):
        load_snapshot(saved)


def test_a_snapshot_without_its_digest_does_not_count(saved):
    saved.with_name(f"{saved.name}.sha256").unlink()
    with pytest.raises(UserError, match="is incomplete: .*sha256.*Copy that file too"):
        load_snapshot(saved)


@pytest.mark.parametrize(("inside", "named"), [
    ("", "such as .*snapshot_3.pth.tar"), ("model_dump", "such as .*model_dump/snapshot_3.pth.tar"),
    ("elsewhere", "Name a file")])
def test_a_folder_is_told_from_a_snapshot(inside, named, tmp_path):
    save_snapshot(make_snapshot(3), snapshot_path(tmp_path / inside, 3))
    for load in (load_snapshot, load_trained):
        with pytest.raises(UserError, match=f"is a folder, not a snapshot.*{named}"):
            load(tmp_path)


def test_a_missing_epoch_names_those_that_exist(tmp_path):
    for epoch in (2, 10, 9):
        save_snapshot(make_snapshot(epoch), snapshot_path(tmp_path, epoch))
    with pytest.raises(UserError, match=r"Epochs that exist: 2, 9, 10\."):
        load_snapshot(snapshot_path(tmp_path, 29))
    with pytest.raises(UserError, match="train first"):
        load_snapshot(snapshot_path(tmp_path / "nowhere", 29))


def test_a_full_disk_leaves_the_previous_file_and_nothing_half_written(saved):
    before = saved.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        expected = r"Cannot write .*: File too large \(needs about 0\.06 MB, \d+ MB are free\)"
        with pytest.raises(UserError, match=expected) as caught:
            save_snapshot(make_snapshot(5), saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.exit_code == 5 and saved.read_bytes() == before
    assert load_snapshot(saved)[0].next_epoch == 1
    assert {file.name for file in saved.parent.iterdir()} == {saved.name, f"{saved.name}.sha256"}


def test_a_full_device_is_told_with_its_own_words(saved):
    """The device that is always full, in the place of the file that is written first."""
    target = snapshot_path(saved.parent, 1)
    target.with_name(f"{target.name}.tmp-{os.getpid()}").symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left on device") as caught:
        save_snapshot(make_snapshot(1), target)
    assert caught.value.exit_code == 5
    assert load_latest(saved.parent)[0].next_epoch == 1
    assert sorted(path.name for path in saved.parent.iterdir()) == [saved.name, f"{saved.name}.sha256"]


def test_a_folder_that_may_not_be_written_leaves_the_previous_file(tmp_path_factory):
    """As a user without rights in it, whoever runs the tests."""
    folder = Path(tempfile.mkdtemp())
    save_snapshot(make_snapshot(), snapshot_path(folder, 0))
    message = folder / "message"
    message.touch()
    message.chmod(0o666)
    folder.chmod(0o555)

    def save_as_nobody() -> int:
        if os.geteuid() == 0:
            os.setuid(65534)
        try:
            save_snapshot(make_snapshot(1), snapshot_path(folder, 0))
        except UserError as error:
            message.write_text(str(error))
            return error.exit_code

    try:
        assert os.waitstatus_to_exitcode(run_in_fork(save_as_nobody)) == 5
        assert "Permission denied" in message.read_text()
        assert load_snapshot(snapshot_path(folder, 0))[0].next_epoch == 1
        assert not list(folder.glob("*.tmp-*"))
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_a_path_where_no_file_can_be_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    for path in (tmp_path / "file" / "metrics.json", tmp_path / "folder"):
        with pytest.raises(UserError, match=f"Cannot write {path}") as caught:
            write_atomically(path, lambda file: file.write(b""))
        assert caught.value.exit_code == 2


def test_an_error_of_ours_while_writing_is_not_taken_for_the_disks(saved):
    def write(file):
        raise RuntimeError("a mistake in the program")

    with pytest.raises(RuntimeError, match="a mistake in the program"):
        write_atomically(saved, write)
    assert not list(saved.parent.glob("*.tmp-*"))
    load_snapshot(saved)


def test_the_latest_snapshot_is_the_one_that_went_furthest(tmp_path):
    paths = [snapshot_path(tmp_path, 9), partial_path(tmp_path, 10, 9), partial_path(tmp_path, 10, 120),
             snapshot_path(tmp_path, 10), partial_path(tmp_path, 11, 1)]
    for path in reversed(paths):
        save_snapshot(make_snapshot(), path)
    assert snapshots_in(tmp_path) == paths


def test_continuing_passes_over_damaged_snapshots_with_a_warning(tmp_path, caplog):
    for epoch in range(3):
        save_snapshot(make_snapshot(epoch), snapshot_path(tmp_path, epoch))
    snapshot_path(tmp_path, 2).write_bytes(b"x")
    snapshot_path(tmp_path, 1).with_name("snapshot_1.pth.tar.sha256").unlink()     # killed before writing it
    snapshot, path = load_latest(tmp_path)
    assert (snapshot.next_epoch, path) == (1, snapshot_path(tmp_path, 0))
    assert "snapshot_2.pth.tar is damaged" in caplog.text


def test_continuing_without_any_snapshot_says_what_to_do(tmp_path, saved):
    with pytest.raises(UserError, match=r"no snapshot to continue .* Leave out --continue"):
        load_latest(tmp_path / "nowhere")
    saved.write_bytes(b"x")
    with pytest.raises(UserError, match=r"no undamaged snapshot .* Move the damaged ones away"):
        load_latest(tmp_path)


def test_the_last_k_snapshots_stay_and_the_rest_is_cleaned_up(tmp_path):
    (tmp_path / "snapshot_3.pth.tar.tmp-4711").write_bytes(b"half")
    for path in (partial_path(tmp_path, 1, 4), *(snapshot_path(tmp_path, epoch) for epoch in range(5)),
                 partial_path(tmp_path, 5, 1)):
        save_snapshot(make_snapshot(), path)
    remove_old_snapshots(tmp_path, keep=2)
    left = [snapshot_path(tmp_path, 3), snapshot_path(tmp_path, 4), partial_path(tmp_path, 5, 1)]
    assert snapshots_in(tmp_path) == left
    assert len(list(tmp_path.iterdir())) == 2 * len(left)


def test_a_snapshot_that_cannot_be_deleted_stays_with_a_warning(tmp_path, monkeypatch, caplog):
    for epoch in range(3):
        save_snapshot(make_snapshot(), snapshot_path(tmp_path, epoch))

    def refuse(self, missing_ok=False):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    remove_old_snapshots(tmp_path, keep=1)
    assert len(snapshots_in(tmp_path)) == 3
    assert "Permission denied" in caplog.text


def test_what_a_killed_run_left_is_cleaned_up_with_the_next_save(tmp_path):
    """A snapshot without its digest, a digest without its snapshot, a half-written file."""
    for path in (partial_path(tmp_path, 1, 4), snapshot_path(tmp_path, 0), snapshot_path(tmp_path, 1)):
        save_snapshot(make_snapshot(), path)
    (tmp_path / "partial_1_4.pth.tar.sha256").unlink()
    (tmp_path / "partial_0_2.pth.tar.sha256").write_text("0" * 64)
    (tmp_path / "snapshot_1.pth.tar.tmp-1").write_bytes(b"half")
    remove_old_snapshots(tmp_path, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["snapshot_1.pth.tar", "snapshot_1.pth.tar.sha256"]


@pytest.mark.parametrize(("change", "expected"), [
    (lambda weights: weights.pop("bias"), "1 missing: bias"),
    (lambda weights: weights.update(scale=torch.ones(1)), "1 unexpected: scale"),
    (lambda weights: weights.update(weight=torch.ones(3, 64)), r"weight \(3, 64\) instead of \(64, 64\)"),
    (lambda weights: weights["bias"].fill_(torch.nan), "1 not finite: bias"),
    (lambda weights: weights["bias"].fill_(torch.inf), "1 not finite: bias"),
    (lambda weights: weights.update(weight=weights["weight"].double()),
     r"1 of another type: weight torch.float64 instead of torch.float32"),
    (lambda weights: weights.update({f"module.{name}": weights.pop(name) for name in list(weights)}),
     r"2 missing: weight, bias; 2 unexpected: module.weight, module.bias"),
    (lambda weights: weights.update({f"layer{k}": torch.ones(1) for k in range(9)}), "9 unexpected: .*, …"),
])
def test_weights_that_do_not_fit_are_refused_with_the_differences(change, expected):
    model, weights = nn.Linear(64, 64), dict(make_snapshot().model)
    change(weights)
    before = model.weight.clone()
    with pytest.raises(UserError, match=expected):
        load_weights(model, weights, "snapshot_0")
    assert torch.equal(model.weight, before)
