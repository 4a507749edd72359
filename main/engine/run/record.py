"""The record of a run: `run.jsonl` in its output folder, from which the run can be repeated.

One line when training starts or goes on, one when it ends, unless the process was killed. Lines are only ever added,
and the file is replaced as a whole, so that none is half written.
"""

import contextlib
import logging
import os
import platform
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import torch

from common.errors import EXIT_INTERRUPTED, UserError, as_user_error
from common.files import cannot_read, from_repository, read_json, sha256_of, write_atomically
from data.schema import Reader
from data.synthetic import SETTINGS_FILE
from main.config import DataConfig
from main.engine.processes.launch import Process
from main.engine.progress import Outcome, Progress
from main.engine.run.folder import RunFolder
from main.engine.run.provenance import code_revision, differences, portable, portable_command, versions

log = logging.getLogger(__name__)
RECORD_FILE = "run.jsonl"
COMPARED = ("config", "program", "versions", "machine", "data", "hand_model", "pretrained")     # fields of Start
_DAMAGED = "Every line that a run adds is one JSON object; put the file back as it was."


class Start(msgspec.Struct, frozen=True, kw_only=True, tag="start", tag_field="event"):
    """What training started from. Paths are those of `main.engine.run.provenance.portable`."""

    time: str                   # UTC, ISO 8601
    continues: bool             # --continue was given
    epoch: int                  # where it starts
    step: int
    folder: str                 # the working directory, and
    command: list[str]          # what was typed there after `python`, by main.engine.run.provenance.portable_command
    config: dict[str, Any]
    program: dict[str, Any]     # main.engine.run.provenance.code_revision
    versions: dict[str, str | None]
    machine: dict[str, Any]     # describe_machine
    data: dict[str, Any]        # describe_data
    hand_model: dict[str, str]
    pretrained: str | None      # SHA-256 of the file that model.pretrained names
    changed: dict[str, str]     # what the start before this one in the same folder had otherwise: `old → new`


class End(msgspec.Struct, frozen=True, kw_only=True, tag="end", tag_field="event"):
    """How it ended."""

    time: str
    epoch: int                  # where it would go on
    step: int
    code: int                   # exit code
    result: str                 # in words


def recorded(train: Callable[[], Outcome], run: RunFolder, reader: Reader, progress: Progress) -> Outcome:
    """`train()`, with its start and its end in the record of the output folder. All processes call this.

    reader: of the samples that are trained on.  progress: where the run stands, which `train` moves on.
    """
    file, machine = run.path / RECORD_FILE, describe_machine(run.process)
    if not run.process.is_main:
        return train()
    before = _last_start(file)
    config = run.config
    facts = portable({
        **run.metadata, "program": code_revision(), "versions": versions(), "machine": machine,
        "data": describe_data(config.data, reader), "pretrained": weights_sha256(config.model.pretrained),
    })
    _append(file, Start(
        time=_now(), continues=run.resume, epoch=progress.epoch, step=progress.step,
        command=portable_command([os.path.abspath(sys.argv[0]), *sys.argv[1:]]),
        folder=portable_command([os.getcwd()])[0], **facts,
        changed=differences({key: getattr(before, key) for key in COMPARED}, facts) if before else {},
    ))
    code, result = 1, ""
    try:
        outcome = train()
        code, result = outcome, str(outcome)
        return outcome
    except KeyboardInterrupt:
        code, result = EXIT_INTERRUPTED, "stopped by SIGINT"
        raise
    except BaseException as error:
        told = as_user_error(error)
        code = 1 if told is None else told.exit_code
        result = f"failed: {' '.join(str(told or error).split()) or type(error).__name__}"
        raise
    finally:
        try:
            _append(file, End(time=_now(), epoch=progress.epoch, step=progress.step, code=code,
                              result=portable(result)))
        except (UserError, OSError) as error:       # a run ends as it ended, whether that can be written down or not
            log.warning("The end of the run is not in its record. %s", error)


def read_record(folder: Path) -> list[Start | End]:
    """The entries of the run in `folder`, oldest first. Raises UserError if there are none or if one is damaged."""
    file = folder / RECORD_FILE
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.", "Name the output folder of a training run.")
    if not file.is_file():
        raise UserError(f"{folder} holds no {RECORD_FILE}: no training run has written one there.",
                        "Name the folder that `output` was in the run's configuration.")
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise cannot_read(file, error) from None
    entries = [_decode(line, f"{file}, line {number}") for number, line in enumerate(lines, start=1)]
    if not entries or not isinstance(entries[0], Start):
        raise UserError(f"{file} is damaged: its first line is not the start of a run.", _DAMAGED)
    return entries


def describe_machine(process: Process) -> dict[str, Any]:
    """What the run computes on. All processes call this together."""
    device = process.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {"processes": process.world_size, "devices": process.gather(f"{platform.node()} {device}: {name}"),
            "threads": torch.get_num_threads(), "system": platform.platform(), "cuda": torch.version.cuda}


def describe_data(data: DataConfig, reader: Reader) -> dict[str, Any]:
    """Which samples are trained on: the annotation files by content, and what is chosen from them. Its paths are
    absolute.

    No image is read: `rendered` gives the settings that a rendered set was made with, which decide its images.
    """
    first, *others = [{"root": str(folder), "rendered": _rendering(folder)}
                      for folder in map(from_repository, (data.root, *data.more_roots))]
    more = {"more_roots": others} if others else {}
    return {"name": data.trainset, "split": data.train_split, "root": first["root"],
            "filter": data.filter, "box_source": data.box_source, "samples": len(reader),
            "annotations": reader.sources(), "rendered": first["rendered"]} | more


def weights_sha256(pretrained: str) -> str | None:
    """SHA-256 of the file that `model.pretrained` names, None if it names none."""
    file = from_repository(pretrained)
    return sha256_of(file) if file.is_file() else None


def _append(file: Path, entry: Start | End) -> None:
    """Add a line; what is in the file already stays as it is, even if it is damaged."""
    before = file.read_bytes() if file.is_file() else b""
    if before and not before.endswith(b"\n"):
        before += b"\n"
    write_atomically(file, lambda out: out.write(before + msgspec.json.encode(entry) + b"\n"))


def _last_start(file: Path) -> Start | None:
    try:
        starts = [entry for entry in read_record(file.parent) if isinstance(entry, Start)]
    except UserError as error:
        if file.exists():
            log.warning("%s This run is added to it all the same.", error.message)
        return None
    return starts[-1]


def _decode(line: bytes, where: str) -> Start | End:
    try:
        return msgspec.json.decode(line, type=Start | End)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{where} is damaged: {error}.", _DAMAGED) from None


def _rendering(root: Path) -> dict[str, Any] | None:
    """The settings of a rendered set, None for any other."""
    settings = None
    with contextlib.suppress(UserError):
        settings = read_json(root / SETTINGS_FILE) if (root / SETTINGS_FILE).is_file() else None
    return settings if isinstance(settings, dict) else None


def _cpu_name() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
