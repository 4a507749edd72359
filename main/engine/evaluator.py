"""Testing: one pass over a test set, scored under every protocol."""

import hashlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec import UNSET, UnsetType, structs
from torch import Tensor
from tqdm import tqdm

from common.errors import EXIT_OK, EXIT_SOME_FAILED
from common.files import finite_or_none, write_atomically, write_json
from common.hands import WRIST, joint_regressor
from common.mano.model import HandModel
from common.score.metrics import PckOptions, PredictedHands, Protocol, protocol_named, report_lines
from common.score.scores import Baseline, MeanErrors, NetworkScores, PresenceScores, plain
from common.score.tally import EVERY_PROTOCOL, Scorer, Tally
from common.types import HandPrediction, Stages, TwoHandBatch, map_tensors
from data.dataset import EpochSampler, TwoHandDataset
from data.schema import Reader
from main.config import TestConfig
from main.engine.bad_samples import BadSamples
from main.engine.batches import batches, build_loader, dead_loaders_told
from main.engine.processes.launch import Process
from main.engine.run.provenance import code_revision, portable, versions

log = logging.getLogger(__name__)


class Evaluator:
    """Scores a model on a dataset, alone or as one of several processes. Start at `run`.

    predict: from a batch to its predictions.
    mean_joints: (2, 21, 3), what the baseline predicts for every sample.
    settings: its protocol is the one whose numbers are printed, and used for the coarse mesh and the baseline.
    save: called with the indices (B,) of each batch, its predictions and, from a network that says it, the probability
    (B, 2) of each hand's presence; no sample comes twice.
    """

    def __init__(self, predict: Callable[[TwoHandBatch], Stages], dataset: TwoHandDataset, mean_joints: Tensor, *,
                 settings: TestConfig, workers: int, process: Process,
                 save: Callable[[Tensor, HandPrediction, Tensor | None], None] | None = None):
        self.predict, self.process, self.save = predict, process, save
        self.size, self.sample_id = len(dataset), dataset.reader.sample_id
        self.bad = BadSamples(dataset.reader, process)
        self.protocol = protocol_named(settings.protocol)
        self.mean_joints = mean_joints.to(process.device)
        self.scorers = _scorers(dataset.reader, self.protocol, settings, process.device)
        self.rest = _rest_pose(dataset.reader.hand_model, process.device)
        self.drawn = np.zeros((3, 3), dtype=np.int64)       # images by their number of hands: see `_count`
        sampler = EpochSampler(len(dataset), shuffle=False, rank=process.rank, world_size=process.world_size)
        self.loader = build_loader(dataset, sampler, batch_size=settings.batch_size, workers=workers,
                                   device=process.device, drop_last=False)

    @dead_loaders_told()
    def run(self, stopped: Callable[[], bool] = lambda: False) -> Tally | None:
        """Predict and score every sample. The tally of all processes, in every one of them; `scores` reads it.

        None if `stopped`, which all processes ask before each batch, told all of them to leave off.
        """
        faults: dict[int, int] = {}
        for batch in self._batches():
            if stopped():
                return None
            faults |= {index: code for index, code in zip(batch.index.tolist(), batch.fault.tolist(), strict=True)
                       if code}
            self._score(self._own_samples(batch))
        self.bad.add(faults)
        self.tallies = {name: Tally.merged(self.process.gather(scorer.tally)) for name, scorer in self.scorers.items()}
        self.drawn = sum(self.process.gather(self.drawn))
        return self.tallies["final"]

    def scores(self) -> NetworkScores:
        """Scores in mm, the same whatever the batch size and the number of processes."""
        coarse, mean_pose = (self.tallies[stage].protocol_scores(self.protocol) for stage in ("coarse", "baseline"))
        final = self.tallies["final"].scores(self.protocol, unusable=self.bad.reasons())
        return NetworkScores(**structs.asdict(final), rough=MeanErrors(coarse.mpjpe, coarse.mpvpe),
                             baseline=Baseline(MeanErrors(mean_pose.mpjpe)), presence=self._presence())

    def _presence(self) -> PresenceScores | UnsetType:
        if not self.tallies["charged"].scored.any():
            return UNSET
        charged = self.tallies["charged"].protocol_scores(self.protocol)
        images, right, wrong = self.drawn
        hands = int(images @ [0, 1, 2])
        return PresenceScores(
            hands=hands, missed=int(wrong[0]), absent=int(2 * images.sum()) - hands, invented=int(wrong[1]),
            one_right=right[1] / images[1] if images[1] else None,
            two_right=right[2] / images[2] if images[2] else None,
            charged=MeanErrors(charged.mpjpe, charged.mpvpe))

    def _batches(self) -> Iterable[TwoHandBatch]:
        return tqdm(batches(self.loader, self.process.device), total=len(self.loader), desc="test", leave=False,
                    disable=None if self.process.is_main else True)

    def _own_samples(self, batch: TwoHandBatch) -> TwoHandBatch:
        """The batch without the samples that the sampler repeats to give every process the same number."""
        own = batch.index % self.process.world_size == self.process.rank
        return batch if own.all() else map_tensors(lambda tensor: tensor[own], batch)

    @torch.inference_mode()
    def _score(self, batch: TwoHandBatch) -> None:
        if not len(batch.index):
            return
        stages = self.predict(batch)
        mean_pose = PredictedHands(joints=self.mean_joints.expand(len(batch.index), -1, -1, -1))
        hands = {"final": _predicted(stages.final), "coarse": _predicted(stages.mesh), "baseline": mean_pose}
        presence = None if stages.presence is None else stages.presence.sigmoid()
        if presence is not None:
            hands["charged"] = self._count(presence >= 0.5, batch, stages.final)
        for name, predicted in hands.items():
            self.scorers[name].add(predicted, batch.targets, batch.index)
        if self.save is not None:
            self.save(batch.index, stages.final, presence)

    def _count(self, drawn: Tensor, batch: TwoHandBatch, final: HandPrediction) -> PredictedHands:
        """The predictions with missed hands in the rest pose; counts who was missed and who invented.

        drawn: (B, 2) bool.
        """
        shown = batch.targets.present.bool()
        known = batch.targets.present_valid.bool().all(dim=-1)
        number, is_right = shown.sum(dim=-1), (drawn == shown).all(dim=-1)
        missed = shown & ~drawn & known[:, None]
        self.drawn[0] += torch.bincount(number[known], minlength=3).cpu().numpy()
        self.drawn[1] += torch.bincount(number[known & is_right], minlength=3).cpu().numpy()
        self.drawn[2] += np.array([int(missed.sum()), int((drawn & ~shown & known[:, None]).sum()), 0])
        vertices, joints = (torch.where(missed[..., None, None], rest, predicted) for rest, predicted in
                            zip(self.rest, (final.vertices, final.joints), strict=True))
        return PredictedHands(vertices, joints, final.relative)


def report(scores: NetworkScores, metadata: dict[str, Any], folder: Path) -> int:
    """Print the scores and write them, with `metadata` and the state of the program, to folder/metrics.json.

    Exit code: 0, or 4 if the model predicted numbers that are not finite or if samples could not be used.
    """
    path = folder / "metrics.json"
    metadata = portable(metadata | {"program": code_revision(), "versions": versions()})
    write_json(path, finite_or_none(plain(scores) | metadata))

    protocol, counts = protocol_named(scores.protocol), scores.counts
    for line in report_lines(protocol, scores.printed):
        log.info(line)
    mpjpe, mean_pose = scores.printed.mpjpe, scores.baseline.mean_pose.mpjpe
    if mpjpe is not None and mean_pose is not None:
        log.info("Coarse mesh: MPJPE %.2f mm, MPVPE %s mm", scores.rough.mpjpe, _text(scores.rough.mpvpe))
        log.info("Mean-pose baseline: MPJPE %.2f mm; the model's is %.3f of it", mean_pose, mpjpe / mean_pose)
    if isinstance(scores.presence, PresenceScores):
        found = scores.presence
        log.info("Presence: %d of %d hands missed, %d of %d invented; MPJPE with missed hands in the rest pose %s mm",
                 found.missed, found.hands, found.invented, found.absent, _text(found.charged.mpjpe))
    log.info("%d samples under the protocol '%s'; all numbers are in %s", counts.samples, protocol.name, path)
    if metadata.get("config", {}).get("test", {}).get("flip_test"):
        log.info("Each number is of the mean of an image's prediction and its mirror image's (test.flip_test).")
    chosen = metadata.get("data", {}).get("filter")
    if chosen is not None and chosen != protocol.set:
        log.info("The authors of '%s' score the set '%s'; these numbers are of '%s'.", protocol.name, protocol.set,
                 chosen)
    if counts.not_finite:
        log.error("%d samples have predictions that are not finite.", counts.not_finite)
    if counts.unusable:
        log.error("%d samples cannot be used and are in no mean: %s.", counts.unusable, scores.unusable)
    return EXIT_SOME_FAILED if counts.not_finite or counts.unusable else EXIT_OK


def samples_sha256(size: int, sample_id: Callable[[int], str]) -> str:
    """Digest of the samples' names in their order: equal for two tests of the same samples, wherever they lie."""
    digest = hashlib.sha256()
    for index in range(size):
        digest.update(f"{sample_id(index)}\n".encode())
    return digest.hexdigest()


def write_samples(path: Path, tally: Tally, sample_id: Callable[[int], str]) -> None:
    """Write a row for each sample (`Tally.samples`) as an .npz file: one array for each column, besides `image`, the
    samples' names, and `protocols`, the names of the second axis."""
    samples = tally.samples()
    columns: dict[str, Any] = {name: samples[name] for name in samples.dtype.names or () if name != "recording"}
    columns["image"] = np.array([sample_id(index) for index in samples["index"].tolist()])
    columns["recording"] = np.array(list(tally.recordings))[samples["recording"]]
    columns["protocols"] = np.array([protocol.name for protocol in tally.protocols])
    write_atomically(path, lambda file: np.savez_compressed(file, **columns))


def _scorers(reader: Reader, printed: Protocol, settings: TestConfig, device: torch.device) -> dict[str, Scorer]:
    """The final mesh is scored under every protocol, the coarse one and the baseline under the printed one."""
    regressor = reader.hand_model.regressor.to(device)      # (2, 16, 778)
    pck = PckOptions(settings.pck_exclude_root, settings.pck_strict)
    chosen = {"final": EVERY_PROTOCOL, "coarse": (printed,), "baseline": (printed,), "charged": (printed,)}
    return {name: Scorer(regressor, len(reader), reader.sample_id, reader.hand_type, protocols=protocols, pck=pck,
                         keep_samples=name == "final") for name, protocols in chosen.items()}


def _rest_pose(model: HandModel, device: torch.device) -> tuple[Tensor, Tensor]:
    """Vertices (2, 778, 3) and joints (2, 21, 3) of resting hands, relative to the wrist."""
    joints = joint_regressor(model.regressor) @ model.template
    wrist = joints[:, WRIST, None]
    return (model.template - wrist).to(device), (joints - wrist).to(device)


def _predicted(hands: HandPrediction) -> PredictedHands:
    return PredictedHands(hands.vertices, hands.joints, hands.relative)


def _text(value: float | None | UnsetType) -> str:
    return f"{value:.2f}" if isinstance(value, float) else "none"
