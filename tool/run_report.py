"""What `tool/doctor.py --run DIR` prints: the record of a training run, for people."""

import os
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import ROOT
from common.mano.load import load_hand_model
from main.build import build_training_reader
from main.config import config_from_dict
from main.engine.run.provenance import code_revision, differences, local, portable, versions
from main.engine.run.record import End, Start, describe_data, read_record, weights_sha256
from main.engine.run.snapshots import load_snapshot, snapshot_path

NAMED = 5       # changed files in a line

Report = Iterator[str]


def sections(folder: Path) -> dict[str, Callable[[], Report]]:
    """Titles, each with a function that gives its lines. Raises UserError if `folder` holds no record of a run."""
    entries = read_record(folder)
    last = [entry for entry in entries if isinstance(entry, Start)][-1]
    return {
        f"Run {folder}": lambda: _history(entries),
        "Made with": lambda: _ingredients(last),
        "To repeat it": lambda: _commands(entries),
        "Here and now": lambda: _comparison(last),
        "Snapshots": lambda: _snapshots(folder / "model_dump"),
    }


def _history(entries: list[Start | End]) -> Report:
    """A line for each start and each end."""
    for entry, following in zip(entries, [*entries[1:], None], strict=True):
        place = f"epoch {entry.epoch}, step {entry.step}"
        if isinstance(entry, End):
            yield f"{_time(entry)}  ended at {place}: {entry.result} (exit code {entry.code})"
            continue
        yield f"{_time(entry)}  {'continued' if entry.continues else 'started'} at {place}"
        for key, change in entry.changed.items():
            yield f"    {key}: {_short(change)}"
        if not isinstance(following, End):
            yield "    no end is recorded: it was killed, or it is still running"


def _ingredients(start: Start) -> Report:
    program, machine, data, config = start.program, start.machine, start.data, start.config
    yield f"code        {_revision(program)}"
    yield "versions    " + ", ".join(f"{name} {version}" for name, version in start.versions.items())
    yield (f"machine     {machine['system']}, CUDA {machine['cuda']}, processes: {machine['processes']}, "
           f"threads in each: {machine['threads']}")
    for device in machine["devices"]:
        yield f"            {device}"
    yield (f"data        {data['name']} {data['split']}, filter {data['filter']}, boxes of {data['box_source']}: "
           f"{data['samples']} samples from "
           + ", ".join(folder["root"] for folder in (data, *data.get("more_roots", []))))
    for name, sha256 in data["annotations"].items():
        yield f"            {name} {sha256[:12]}"
    yield f"hand model  {start.hand_model['name']} {start.hand_model['sha256'][:12]}"
    if config["model"]["pretrained"]:
        yield f"backbone    {config['model']['pretrained']} {(start.pretrained or '')[:12]}"
    yield f"seed        {config['train']['seed']}"


def _commands(entries: list[Start | End]) -> Report:
    """What to type. A command that was given several times, to go on after interruptions, stands there once."""
    starts = [entry for entry in entries if isinstance(entry, Start)]
    first = max(number for number, start in enumerate(starts) if not start.continues or number == 0)
    commit, changed = starts[first].program["commit"], starts[first].program["changed"]
    if commit:
        yield f"git checkout {commit}"
    if changed or not commit:
        yield "# and the changes that no commit holds" if commit else "# with the code as it was, which no commit holds"
    for folder in (starts[first].data, *starts[first].data.get("more_roots", [])):
        if folder["rendered"]:
            options = [word for name in ("frames", "seed", "cameras", "interacting")
                       for word in (f"--{name}", str(folder["rendered"][name]))]
            yield shlex.join(["python", "tool/make_synthetic.py", "--out", local(folder["root"]), *options])
    for command, group in groupby(starts[first:], key=_command):
        steps = [str(start.step) for start in group]
        yield command + (f"     # at step {', then '.join(steps)}" if steps != ["0"] else "")
    yield "# into a folder of its own: add output=FOLDER after --set"


def _command(start: Start) -> str:
    folder, (program, *arguments) = local(start.folder), map(local, start.command)
    if Path(folder).is_relative_to(ROOT):
        program, folder = os.path.relpath(program, folder), os.path.relpath(folder, ROOT)
    command = shlex.join(["python", program, *arguments])
    return command if folder == "." else f"(cd {shlex.quote(folder)} && {command})"


# ---------------------------------------------------------------- comparing

def _comparison(start: Start) -> Report:
    """One line for each thing that decides the result, and what differs."""
    checks: dict[str, Callable[[], dict[str, str]]] = {
        "code": lambda: _code_differences(start),
        "versions": lambda: differences(start.versions, versions()),
        "hand model": lambda: differences(start.hand_model, _hand_model(start)),
        "data": lambda: differences(start.data, _data(start)),
        "backbone": lambda: differences({"sha256": start.pretrained},
                                        {"sha256": weights_sha256(local(start.config["model"]["pretrained"]))}),
    }
    for name, find in checks.items():
        try:
            found = find()
            told = "; ".join(f"{key} {_short(change)}" for key, change in found.items())
            yield f"{name:11} {'differs: ' + told if found else 'the same'}"
        except UserError as error:
            yield f"{name:11} cannot be compared: {error.message}"


def _code_differences(start: Start) -> dict[str, str]:
    now = code_revision()
    if now["sources_sha256"] == start.program["sources_sha256"]:
        return {}
    return {"then → now": f"{_revision(start.program)} → {_revision(now)}"}


def _hand_model(start: Start) -> dict[str, str]:
    chosen = start.config["hand_model"]
    return load_hand_model(chosen["name"], local(chosen["path"])).identity


def _data(start: Start) -> dict[str, Any]:
    """`describe_data` of what lies here now."""
    config = config_from_dict(start.config)
    data = replace(config.data, root=local(config.data.root), more_roots=tuple(map(local, config.data.more_roots)))
    hand_model = load_hand_model(config.hand_model.name, local(config.hand_model.path))
    return portable(describe_data(data, build_training_reader(replace(config, data=data), hand_model)))


def _revision(program: dict[str, Any]) -> str:
    commit, changed = program["commit"], program["changed"]
    text = f"commit {commit[:12]}" if commit else "without a git repository"
    more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
    changes = f" with changes in {', '.join(changed[:NAMED])}{more}" if changed else ""
    return f"{text}{changes} (files {program['sources_sha256'][:12]})"


def _snapshots(folder: Path) -> Report:
    """A line for each snapshot: how far it went, its validation score, whether it is whole."""
    paths = sorted(folder.glob("*.pth.tar"), key=lambda path: (len(path.name), path.name))
    if not paths:
        yield f"none in {folder}"
    best = None
    for path in paths:
        try:
            snapshot, digest = load_snapshot(path)
        except UserError as error:
            yield f"{path.name}  {error.message}"
            continue
        score = "" if snapshot.score is None else f", validation MPJPE {snapshot.score:.2f} mm"
        yield f"{path.name}  epoch {snapshot.next_epoch}, step {snapshot.step}{score}, undamaged (sha256 {digest[:12]})"
        best = snapshot.best or best
    if best is not None:
        yield f"the best so far is {snapshot_path(folder, best[0]).name}, with {best[1]:.2f} mm"


def _short(text: str) -> str:
    """The text with the first 12 digits of each SHA-256."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", text)


def _time(entry: Start | End) -> str:
    return entry.time[:19].replace("T", " ") + " UTC"
