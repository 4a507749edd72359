"""The output folder of a training run: locked, logged, with its snapshots."""

import dataclasses
import json
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from common.errors import EXIT_DIVERGED, UserError
from common.files import from_repository, stored_sha256, write_json
from common.mano.model import HandModel, check_same_model
from main.config import Config, changes, config_from_dict, config_to_dict, keys_fixing, refuse_changes
from main.engine.processes.launch import Process
from main.engine.run.lock import run_lock
from main.engine.run.log import start_log
from main.engine.run.snapshots import (
    Snapshot,
    check_space,
    load_latest,
    remove_old_snapshots,
    save_snapshot,
    snapshots_in,
)

log = logging.getLogger(__name__)
_KEPT_BESIDES = 3       # snapshots besides those of whole epochs: the best, the partial one, and the one being written


class RunFolder:
    """Entered by all processes of a run together: holds the folder's lock, starts the log and, to resume, reads the
    last snapshot. Raises UserError if another run has the folder, if it holds the snapshots of another run, if there is
    nothing to resume, or if the configuration now describes another model.

    path: the folder.  snapshots: where its snapshots lie.  snapshot: the one to resume from, None for a new run.
    metadata: what each snapshot tells about the run besides its state.
    """

    def __init__(self, config: Config, hand_model: HandModel, process: Process, *, resume: bool):
        self.config, self.hand_model, self.process, self.resume = config, hand_model, process, resume
        self.path = from_repository(config.output)
        self.snapshots, self.logs = self.path / "model_dump", self.path / "log"
        self.metadata = {"config": config_to_dict(config), "hand_model": hand_model.identity}
        self.snapshot: Snapshot | None = None
        self._held = ExitStack()

    def __enter__(self) -> "RunFolder":
        with ExitStack() as held:
            hint = "Wait for that run to end, or give this one a folder of its own with --set output=FOLDER."
            held.enter_context(run_lock(self.path / "train.lock", self.process, hint))
            start_log(self.logs / "train.log", is_main=self.process.is_main)
            if self.resume:
                self.snapshot = self._last_snapshot()
            elif snapshots_in(self.snapshots):
                raise UserError(f"{self.snapshots} already holds snapshots, the last of them "
                                f"{snapshots_in(self.snapshots)[-1].name}.",
                                "Use --continue to go on with that run, or --set output=FOLDER for a new one.")
            self._held = held.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._held.__exit__(*error)

    def check_space(self, snapshot_bytes: int, keep: int) -> None:
        """Refuse a disk without room for a snapshot; warn of one without room for all that are kept."""
        if self.process.is_main:
            check_space(self.snapshots, snapshot_bytes, keep + _KEPT_BESIDES)

    def save(self, snapshot: Snapshot, path: Path, keep: int) -> None:
        """Write a snapshot, in the main process, and delete old ones. UserError with exit code 3 if the network has
        numbers that are not finite: no program would take it."""
        broken = [name for name, value in snapshot.model.items() if not torch.isfinite(value).all()]
        if broken:
            raise UserError(f"Training has diverged: after step {snapshot.step}, {len(broken)} tensors of the network "
                            f"are not finite, the first is '{broken[0]}'. {path.name} is not written.",
                            "Go on from the snapshot before it, if there is one, with a lower train.lr or "
                            "train.max_grad_norm=1.", EXIT_DIVERGED)
        with self.process.saving:
            save_snapshot(snapshot, path)
            remove_old_snapshots(self.snapshots, keep, snapshot.best and snapshot.best[0])
        log.info("saved %s", path)

    def report_divergence(self, step: int, report: dict[str, Any]) -> None:
        """Put into a file what was met in a step whose loss or gradient is not finite."""
        path = self.logs / f"nonfinite_step_{step}.json"
        log.error("The loss or its gradient is not finite at step %d. The weights were not changed; samples and terms "
                  "are in %s. A lower train.lr or train.max_grad_norm=1 may help.", step, path)
        try:
            write_json(path, report)
        except UserError as error:
            log.error("%s They are: %s", error, json.dumps(report))

    def _last_snapshot(self) -> Snapshot:
        """The last snapshot, if it is of the same model; what else has changed is named."""
        snapshot, path = load_latest(self.snapshots)
        self.process.refuse_difference("snapshot", f"{path.name} with sha256 {stored_sha256(path)[:12]}")
        before = config_from_dict(snapshot.config)
        refuse_changes(before, self.config, str(path))
        check_same_model(self.hand_model.identity, snapshot.hand_model, str(path))
        changed = changes(before, self.config)
        for key, change in changed.items():
            log.warning("Changed since the snapshot: %s %s.", key, change)
        if snapshot.best and changed.keys() & keys_fixing("score"):
            log.warning("Epochs are scored in another way from now on: the best one is sought anew.")
            snapshot = dataclasses.replace(snapshot, best=None)
        log.info("Continuing %s at epoch %d, step %d.", path, snapshot.next_epoch, snapshot.step)
        return snapshot
