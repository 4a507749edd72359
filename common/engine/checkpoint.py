"""Snapshots: complete under their final name or refused, and made of tensors and plain values only.

A snapshot is two files: `snapshot_N.pth.tar` and `snapshot_N.pth.tar.sha256`, a line that `sha256sum -c` reads. The
second is written last: without it, or with another digest in it, the first does not count.
"""

import contextlib
import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from common.errors import UserError

log = logging.getLogger(__name__)
_NAME = re.compile(r"(snapshot|interrupted)_(\d+)(?:_(\d+))?\.pth\.tar")


@dataclass(frozen=True)
class Snapshot:
    """All that a training run needs to go on, and all that testing needs to rebuild its model."""

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    random_states: list[dict[str, Any]]     # of each process, see common.engine.seeding
    step: int                               # optimiser steps done
    next_epoch: int                         # where training goes on
    next_batch: int                         # batches of that epoch already done
    config: dict[str, Any]
    hand_model: dict[str, str]              # common.mano.HandModel.identity
    mean_joints: Tensor                     # (2, 21, 3) metres, of the training set: the mean-pose baseline
    torch_version: str
    world_size: int


def snapshot_path(folder: Path, epoch: int) -> Path:
    """Where the snapshot after epoch `epoch` (from 0) lies."""
    return folder / f"snapshot_{epoch}.pth.tar"


def interrupted_path(folder: Path, epoch: int, batch: int) -> Path:
    """Where the snapshot of a run that was stopped inside an epoch lies."""
    return folder / f"interrupted_{epoch}_{batch}.pth.tar"


def save_snapshot(snapshot: Snapshot, path: Path) -> None:
    """Write a snapshot and its digest. A failure leaves whatever was there before."""
    values = {field.name: getattr(snapshot, field.name) for field in dataclasses.fields(snapshot)}
    write_atomically(path, lambda file: torch.save(values, file))
    line = f"{_sha256(path)}  {path.name}\n".encode()
    write_atomically(_digest_path(path), lambda file: file.write(line))


def load_snapshot(path: Path) -> tuple[Snapshot, str]:
    """A snapshot, on the CPU, and its SHA-256.

    Raises UserError if it is missing, incomplete, damaged or not a snapshot of this program.
    """
    if not path.is_file():
        raise UserError(f"There is no snapshot {path}.", _existing_epochs(path.parent))
    if not _digest_path(path).is_file():
        raise UserError(f"{path} is incomplete: {_digest_path(path).name} is missing beside it.",
                        "A run that was killed while saving leaves this; use another snapshot.")
    expected, found = _digest_path(path).read_text(errors="replace")[:64], _sha256(path)
    if found != expected:
        raise UserError(f"{path} is damaged (sha256 {found[:12]} instead of {expected[:12]}).", "Use another snapshot.")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
        return Snapshot(**values), found
    except Exception as error:     # torch.load raises half a dozen types for a file that is not its own
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip().split("\n")[0][:200]
        raise UserError(f"{path} is not a snapshot of this program: {reason}.", "Use another snapshot.") from None


def load_latest(folder: Path) -> tuple[Snapshot, Path]:
    """The snapshot that went furthest, and its path. Damaged ones are passed over with a warning.

    Raises UserError if there is none that can be read.
    """
    paths = snapshots_in(folder)
    for path in reversed(paths):
        try:
            return load_snapshot(path)[0], path
        except UserError as error:
            log.warning("%s Going back to the one before it.", error.message)
    raise UserError(f"--continue: there is no {'undamaged ' if paths else ''}snapshot to continue from in {folder}.",
                    "Move the damaged ones away to start again." if paths else "Leave out --continue to start a run.")


def snapshots_in(folder: Path) -> list[Path]:
    """All snapshots that were written to the end, the one that went furthest last."""
    named = (path for path in folder.glob("*.pth.tar") if _NAME.fullmatch(path.name))
    return sorted((path for path in named if _digest_path(path).is_file()), key=_progress)


def remove_old_snapshots(folder: Path, keep: int) -> None:
    """Delete all but the last `keep` snapshots of whole epochs, and what the last of them makes useless: interrupted
    ones, and files that a killed run left half-written.

    Call it after the newest is complete. A file that cannot be deleted stays, with a warning.
    """
    paths = snapshots_in(folder)
    whole = [path for path in paths if path.name.startswith("snapshot")]
    if not whole:
        return
    old = [path for path in paths if path not in whole[-keep:] and _progress(path) < _progress(whole[-1])]
    for path in [*map(_digest_path, old), *old, *folder.glob("*.tmp-*")]:
        try:
            path.unlink()
        except OSError as error:
            log.warning("The old file %s cannot be deleted: %s.", path, error.strerror)


def load_weights(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Put `weights` into the model if every name and shape agrees and every value is finite, else raise UserError."""
    own = model.state_dict()
    differences = {
        "missing": [name for name in own if name not in weights],
        "unexpected": [name for name in weights if name not in own],
        "of another shape": [
            f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
            for name in own if name in weights and weights[name].shape != own[name].shape
        ],
        "not finite": [name for name, value in weights.items() if not torch.isfinite(value).all()],
    }
    found = [f"{len(names)} {kind}: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
             for kind, names in differences.items() if names]
    if found:
        raise UserError(f"The weights in {where} do not fit the model. {'; '.join(found)}.",
                        "Was it made with another model configuration?")
    model.load_state_dict(weights)


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Let `write` fill a file that appears under `path` only when it is complete and on the disk."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:     # a full disk shows as a RuntimeError inside torch.save
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).split("\n")[0]
        raise UserError(f"Cannot write {path}: {reason}.", "Is the disk full or the folder read-only?") from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _progress(path: Path) -> tuple[int, float]:
    """Epoch and batch up to which a snapshot went; one of a whole epoch went past all of its batches."""
    _, epoch, batch = _NAME.fullmatch(path.name).groups()
    return int(epoch), float("inf") if batch is None else int(batch)


def _existing_epochs(folder: Path) -> str:
    epochs = [str(_progress(path)[0]) for path in snapshots_in(folder) if path.name.startswith("snapshot")]
    return f"Epochs that exist: {', '.join(epochs)}." if epochs else "There are no snapshots: train first."
