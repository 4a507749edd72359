"""Testing: one pass over a test set, scored under every protocol."""

import json
import logging
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from common.engine.build import configured_dataset, configured_hand_model, trained_model
from common.engine.checkpoint import Snapshot, write_atomically
from common.engine.launch import Process
from common.engine.loading import batches, build_loader, predict
from common.errors import EXIT_OK, EXIT_SOME_FAILED, UserError
from common.mano import check_same_model
from common.metrics import (
    PROTOCOLS,
    Protocol,
    SampleErrors,
    hand_errors,
    merge_errors,
    mesh_errors,
    report_lines,
    summarise,
)
from common.types import HandPrediction, Stages, TwoHandBatch
from data.dataset import EpochSampler, TwoHandDataset
from main.config import Config

log = logging.getLogger(__name__)


class Evaluator:
    """Scores a model on a dataset, alone or as one of several processes. Start at `run`; `build` makes the parts.

    predict: from a batch to its predictions.  protocol: whose numbers are printed, and used for the rough mesh and
    for the baseline, which predicts `mean_joints` (2, 21, 3) for every sample.
    """

    def __init__(self, predict: Callable[[TwoHandBatch], Stages], dataset: TwoHandDataset, mean_joints: Tensor, *,
                 protocol: str, batch_size: int, workers: int, process: Process):
        if protocol not in PROTOCOLS:
            raise UserError(f"test.protocol is '{protocol}'.", f"It must be one of: {', '.join(PROTOCOLS)}.")
        self.predict, self.dataset, self.protocol, self.process = predict, dataset, PROTOCOLS[protocol], process
        self.regressor = dataset.reader.hand_model.regressor.to(process.device)     # (2, 16, 778)
        self.mean_joints = mean_joints.to(process.device)
        sampler = EpochSampler(len(dataset), shuffle=False, rank=process.rank, world_size=process.world_size)
        self.loader = build_loader(dataset, sampler, batch_size=batch_size, workers=workers, device=process.device,
                                   drop_last=False)

    @classmethod
    def build(cls, config: Config, snapshot: Snapshot, where: str, process: Process) -> "Evaluator":
        """The evaluator that a configuration describes, for the model of the snapshot `where`."""
        hand_model = configured_hand_model(config)
        check_same_model(hand_model.identity, snapshot.hand_model, where)
        dataset = configured_dataset(config, hand_model, config.data.testset, config.data.test_split, augmented=False)
        model = trained_model(config, hand_model, snapshot.model, where).to(process.device).eval()
        return cls(partial(predict, model), dataset, snapshot.mean_joints, protocol=config.test.protocol,
                   batch_size=config.test.batch_size, workers=config.data.workers, process=process)

    def run(self) -> dict[str, Any]:
        """Scores in mm as plain values, the same in every process whatever the batch size and the number of processes.

        `protocols` by name (see common.metrics.summarise), `rough`, `baseline`, `counts`, and `protocol`, the name of
        the one that the last three follow.
        """
        own = _merged([self._errors(batch) for batch in self._batches()])
        errors = _merged(self.process.gather(own))

        summaries = {name: summarise(protocol, errors[name]) for name, protocol in PROTOCOLS.items()}
        rough, baseline = (summarise(self.protocol, errors[name]) for name in ("rough", "baseline"))
        return {
            "protocol": self.protocol.name,
            "protocols": summaries,
            "rough": {"mpjpe": rough["mpjpe"], "mpvpe": rough["mpvpe"]},
            "baseline": {"mean_pose": {"mpjpe": baseline["mpjpe"]}},
            "counts": summaries[self.protocol.name]["counts"],
        }

    def _batches(self) -> Iterable[TwoHandBatch]:
        return tqdm(batches(self.loader, self.process.device), total=len(self.loader), desc="test", leave=False,
                    disable=None if self.process.is_main else True)

    @torch.inference_mode()
    def _errors(self, batch: TwoHandBatch) -> dict[str, SampleErrors]:
        """A row for each sample: final mesh under every protocol, rough mesh and baseline under the printed one."""
        stages = self.predict(batch)
        mean = self.mean_joints.expand(len(batch.index), -1, -1, -1)

        def errors(protocol: Protocol, hands: HandPrediction) -> SampleErrors:
            return mesh_errors(protocol, hands.vertices, hands.relative, batch.targets, batch.index, self.regressor)

        return {
            **{name: errors(protocol, stages.final) for name, protocol in PROTOCOLS.items()},
            "rough": errors(self.protocol, stages.mesh),
            "baseline": hand_errors(self.protocol, mean, batch.targets, batch.index),
        }


def report(scores: dict[str, Any], facts: dict[str, Any], folder: Path) -> int:
    """Print the scores and write them with `facts` to folder/metrics.json. Exit code: 0, or 4 if the model predicted
    numbers that are not finite."""
    path = folder / "metrics.json"
    text = json.dumps(_finite(scores | facts), indent=2, allow_nan=False)
    write_atomically(path, lambda file: file.write(text.encode()))

    name, rough, mean_pose = scores["protocol"], scores["rough"], scores["baseline"]["mean_pose"]["mpjpe"]
    final = scores["protocols"][name]
    for line in report_lines(final):
        log.info(line)
    if final["mpjpe"] is not None:
        log.info("Rough mesh: MPJPE %.2f mm, MPVPE %s mm", rough["mpjpe"], _text(rough["mpvpe"]))
        log.info("Mean-pose baseline: MPJPE %.2f mm; the model's is %.3f of it", mean_pose, final["mpjpe"] / mean_pose)
    log.info("%d samples under the protocol '%s'; all numbers are in %s", scores["counts"]["samples"], name, path)
    failed = scores["counts"]["not_finite"]
    if failed:
        log.error("%d samples have predictions that are not finite.", failed)
    return EXIT_SOME_FAILED if failed else EXIT_OK


def _merged(tables: list[dict[str, SampleErrors]]) -> dict[str, SampleErrors]:
    return {name: merge_errors([table[name] for table in tables]) for name in tables[0]}


def _finite(values: Any) -> Any:
    """`values` with None in place of numbers that JSON cannot hold; `not_finite` in the counts tells of them."""
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, float) and not math.isfinite(values):
        return None
    return values


def _text(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
