"""Snapshots: complete, unharmed and of the right model, or refused in one paragraph."""

import hashlib
import os
import pickle
import random
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from common.engine.checkpoint import (
    Snapshot,
    interrupted_path,
    load_latest,
    load_snapshot,
    load_weights,
    remove_old_snapshots,
    save_snapshot,
    snapshot_path,
    snapshots_in,
    write_atomically,
)
from common.engine.seeding import random_state, seed_everything, set_random_state
from common.errors import UserError


def make_snapshot(epoch: int = 0) -> Snapshot:
    torch.manual_seed(epoch)
    model = nn.Linear(64, 64)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 64)).sum().backward()
    optimizer.step()
    return Snapshot(
        model=model.state_dict(), optimizer=optimizer.state_dict(), random_states=[random_state()], step=3 * epoch,
        next_epoch=epoch + 1, next_batch=0, config={"train": {"lr": 1e-4, "lr_drops": (10, 15)}, "output": "x"},
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


def test_no_flipped_bit_goes_unnoticed(saved):
    data, rng = saved.read_bytes(), random.Random(0)
    for _ in range(60):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        saved.write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged"):
            load_snapshot(saved)


def test_no_truncated_file_loads(saved):
    data, rng = saved.read_bytes(), random.Random(0)
    for length in (0, 1, len(data) - 1, *(rng.randrange(len(data)) for _ in range(60))):
        saved.write_bytes(data[:length])
        with pytest.raises(UserError, match="is damaged"):
            load_snapshot(saved)


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
    with pytest.raises(UserError, match="is incomplete"):
        load_snapshot(saved)


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
        with pytest.raises(UserError, match="Cannot write"):
            save_snapshot(make_snapshot(5), saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved.read_bytes() == before
    assert load_snapshot(saved)[0].next_epoch == 1
    assert {file.name for file in saved.parent.iterdir()} == {saved.name, f"{saved.name}.sha256"}


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        write_atomically(tmp_path / "file" / "metrics.json", lambda file: file.write(b""))


def test_the_latest_snapshot_is_the_one_that_went_furthest(tmp_path):
    paths = [snapshot_path(tmp_path, 9), interrupted_path(tmp_path, 10, 9), interrupted_path(tmp_path, 10, 120),
             snapshot_path(tmp_path, 10), interrupted_path(tmp_path, 11, 1)]
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
    for path in (interrupted_path(tmp_path, 1, 4), *(snapshot_path(tmp_path, epoch) for epoch in range(5)),
                 interrupted_path(tmp_path, 5, 1)):
        save_snapshot(make_snapshot(), path)
    remove_old_snapshots(tmp_path, keep=2)
    left = [snapshot_path(tmp_path, 3), snapshot_path(tmp_path, 4), interrupted_path(tmp_path, 5, 1)]
    assert snapshots_in(tmp_path) == left
    assert len(list(tmp_path.iterdir())) == 2 * len(left)


def test_a_snapshot_that_cannot_be_deleted_stays_with_a_warning(tmp_path, monkeypatch, caplog):
    for epoch in range(3):
        save_snapshot(make_snapshot(), snapshot_path(tmp_path, epoch))

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    remove_old_snapshots(tmp_path, keep=1)
    assert len(snapshots_in(tmp_path)) == 3
    assert "Permission denied" in caplog.text


@pytest.mark.parametrize(("change", "expected"), [
    (lambda weights: weights.pop("bias"), "1 missing: bias"),
    (lambda weights: weights.update(scale=torch.ones(1)), "1 unexpected: scale"),
    (lambda weights: weights.update(weight=torch.ones(3, 64)), r"weight \(3, 64\) instead of \(64, 64\)"),
    (lambda weights: weights["bias"].fill_(torch.nan), "1 not finite: bias"),
    (lambda weights: weights.update({f"layer{k}": torch.ones(1) for k in range(9)}), "9 unexpected: .*, …"),
])
def test_weights_that_do_not_fit_are_refused_with_the_differences(change, expected):
    model, weights = nn.Linear(64, 64), dict(make_snapshot().model)
    change(weights)
    before = model.weight.clone()
    with pytest.raises(UserError, match=expected):
        load_weights(model, weights, "snapshot_0")
    assert torch.equal(model.weight, before)
