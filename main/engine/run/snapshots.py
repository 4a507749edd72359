"""Snapshots: complete under their final name or refused, and made of tensors and plain values only.

A snapshot is two files: `snapshot_N.pth.tar` and `snapshot_N.pth.tar.sha256`, a line that `sha256sum -c` reads. The
second is written last: without it, or with another digest in it, the first does not count. Snapshots taken inside
epoch E, after S of its samples, are called `partial_E_S.pth.tar`.
"""

import dataclasses
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from common.errors import EXIT_ENVIRONMENT, UserError, is_exhausted
from common.files import checked_sha256, digest_path, free_bytes, megabytes, write_signed
from common.weights import WEIGHTS_SUFFIX, Trained, read_weights

log = logging.getLogger(__name__)
_NAME = re.compile(r"snapshot_(\d+)\.pth\.tar|partial_(\d+)_(\d+)\.pth\.tar")


@dataclass(frozen=True)
class Snapshot:
    """All that a training run needs to go on, and all that testing needs to rebuild its model."""

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    random_states: list[dict[str, Any]]     # of each process, see main.engine.processes.seeding
    step: int                               # optimiser steps done
    next_epoch: int                         # where training goes on
    next_sample: int                        # samples of that epoch already done, by all processes together
    config: dict[str, Any]
    hand_model: dict[str, str]              # common.mano.model.HandModel.identity
    mean_joints: Tensor                     # (2, 21, 3) metres, of the training set: the mean-pose baseline
    torch_version: str
    world_size: int
    score: float | None = None              # MPJPE in mm of the validation after its epoch; None: not validated
    best: tuple[int, float] | None = None   # the epoch with the lowest score so far, and that score


def snapshot_path(folder: Path, epoch: int) -> Path:
    """Where the snapshot after epoch `epoch` (from 0) lies."""
    return folder / f"snapshot_{epoch}.pth.tar"


def partial_path(folder: Path, epoch: int, sample: int) -> Path:
    """Where the snapshot taken after `sample` samples of epoch `epoch` lies."""
    return folder / f"partial_{epoch}_{sample}.pth.tar"


def save_snapshot(snapshot: Snapshot, path: Path) -> None:
    """Write a snapshot and its digest. A failure leaves whatever was there before.

    Raises UserError with exit code 5 if it cannot be written, or is not read back as it was written.
    """
    values = {field.name: getattr(snapshot, field.name) for field in dataclasses.fields(snapshot)}
    size = sum(leaf.nbytes for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
    write_signed(path, lambda file: torch.save(values, file), size)


def load_snapshot(path: Path) -> tuple[Snapshot, str]:
    """A snapshot, on the CPU, and its SHA-256.

    Raises UserError if it is missing, incomplete, damaged or not a snapshot of this program.
    """
    if not path.is_file():
        raise _folder_for_file(path) if path.is_dir() else \
            UserError(f"There is no snapshot {path}.", _existing_epochs(path.parent))
    if path.suffix == WEIGHTS_SUFFIX:
        raise _no_snapshot(path)
    found = checked_sha256(path, "Use another snapshot.")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
        snapshot = Snapshot(**_counted_in_samples(values))
        if not all(isinstance(value, Tensor) for value in snapshot.model.values()):
            raise TypeError("its weights are not tensors")
        return snapshot, found
    except Exception as error:     # torch.load raises half a dozen types for a file that is not its own
        if is_exhausted(error):
            raise
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip().split("\n")[0][:200]
        raise UserError(f"{path} is not a snapshot of this program: {reason}.", "Use another snapshot.") from None


def load_trained(path: Path) -> Trained:
    """The network of a snapshot or of a file of weights. Raises UserError if it cannot be read."""
    if path.suffix == WEIGHTS_SUFFIX:
        return read_weights(path)
    snapshot, sha256 = load_snapshot(path)
    return Trained(snapshot.model, snapshot.config, snapshot.hand_model, snapshot.mean_joints, None, None, sha256)


def _folder_for_file(folder: Path) -> UserError:
    found = [*snapshots_in(folder), *snapshots_in(folder / "model_dump")]
    return UserError(f"{folder} is a folder, not a snapshot or a file of weights.",
                     f"Name one of its files, such as {found[-1]}." if found else "Name a file, such as "
                     f"{snapshot_path(Path('model_dump'), 29)}.")


def _no_snapshot(path: Path) -> UserError:
    return UserError(f"{path} holds weights alone, without the optimiser and the random state that training goes on "
                     "with.", "Continue a run from its own snapshots, or start a new one from these weights: --set "
                     f"train.start_from={path}.")


def _counted_in_samples(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a snapshot; early ones count the batches of each process."""
    if "next_batch" in values:
        batches = values.pop("next_batch")
        values["next_sample"] = batches and batches * values["config"]["train"]["batch_size"] * values["world_size"]
    return values


def load_latest(folder: Path) -> tuple[Snapshot, Path]:
    """The snapshot that went furthest, and its path. Damaged ones are passed over with a warning.

    Raises UserError if there is none that can be read.
    """
    paths = snapshots_in(folder)
    weights = sorted(folder.glob(f"*{WEIGHTS_SUFFIX}"))
    if weights and not paths:
        raise _no_snapshot(weights[0])
    for path in reversed(paths):
        try:
            return load_snapshot(path)[0], path
        except UserError as error:
            log.warning("%s Going back to the one before it.", error.message)
    raise UserError(f"--continue: there is no {'undamaged ' if paths else ''}snapshot to continue from in {folder}.",
                    "Move the damaged ones away to start again." if paths else "Leave out --continue to start a run.")


def best_epoch(folder: Path) -> int:
    """The epoch with the lowest validation score of the run in `folder`, as its last snapshot tells.

    Raises UserError if there is none, or if that snapshot cannot be read.
    """
    paths = snapshots_in(folder)
    if not paths:
        raise UserError(f"There is no snapshot in {folder}.", _existing_epochs(folder))
    best = load_snapshot(paths[-1])[0].best
    if best is None:
        raise UserError(f"No epoch of the run in {folder} has been validated: there is no best one.",
                        f"{_existing_epochs(folder)} Validation is switched on by train.validate_every.")
    log.info("Epoch %d has the lowest validation score, %.2f mm.", *best)
    return best[0]


def snapshots_in(folder: Path) -> list[Path]:
    """All snapshots that were written to the end, the one that went furthest last."""
    return [path for path in _named(folder) if digest_path(path).is_file()]


def remove_old_snapshots(folder: Path, keep: int, best: int | None = None) -> None:
    """Delete all snapshots but the newest, the last `keep` of whole epochs and that of epoch `best`; and files that a
    killed run left half-written.

    Call it after the newest is complete. A file that cannot be deleted stays, with a warning.
    """
    paths = snapshots_in(folder)
    if not paths:
        return
    kept = {paths[-1], *[path for path in paths if _is_whole(path)][-keep:]}
    kept |= set() if best is None else {snapshot_path(folder, best)}
    # A snapshot without its digest counts for nothing; one that went further than the newest may be of use by hand.
    old = [path for path in _named(folder) if path not in kept and _progress(path) < _progress(paths[-1])]
    orphans = [digest for digest in folder.glob("*.pth.tar.sha256") if not digest.with_suffix("").exists()]
    for path in [*old, *map(digest_path, old), *orphans, *folder.glob("*.tmp-*")]:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("The old file %s cannot be deleted: %s.", path, error.strerror)


def check_space(folder: Path, size: int, most: int) -> None:
    """Before a run: is there room for its snapshots of about `size` bytes, of which up to `most` lie there at a time?

    Raises UserError with exit code 5 if not even one fits; warns if not all do. folder: need not exist yet.
    """
    free = free_bytes(folder)
    if free < size:
        raise UserError(f"A snapshot needs about {megabytes(size)}, and {megabytes(free)} are free for {folder}.",
                        "Make room, or choose a folder on another disk with --set output=FOLDER.", EXIT_ENVIRONMENT)
    held = sum(path.stat().st_size for path in folder.glob("*.pth.tar"))
    if free + held < most * size:
        log.warning("Up to %d snapshots of about %s are kept in %s, and %s are free: training stops when the disk is "
                    "full.", most, megabytes(size), folder, megabytes(free))


def _named(folder: Path) -> list[Path]:
    """All files named like snapshots, the one that went furthest last."""
    return sorted((path for path in folder.glob("*.pth.tar") if _NAME.fullmatch(path.name)), key=_progress)


def _is_whole(path: Path) -> bool:
    return path.name.startswith("snapshot")


def _progress(path: Path) -> tuple[int, float]:
    """Epoch and sample up to which a snapshot went; one of a whole epoch went past all of its samples."""
    name = _NAME.fullmatch(path.name)
    assert name is not None, path
    whole, epoch, sample = name.groups()
    return (int(epoch), int(sample)) if whole is None else (int(whole), float("inf"))


def _existing_epochs(folder: Path) -> str:
    epochs = [str(_progress(path)[0]) for path in snapshots_in(folder) if _is_whole(path)]
    return f"Epochs that exist: {', '.join(epochs)}." if epochs else f"There are no snapshots in {folder}: train first."
