"""Scores of a whole test set under every protocol, gathered batch by batch.

    scorer = Scorer(reader.hand_model.regressor, len(reader), reader.sample_id, reader.hand_type)
    for ...:
        scorer.add(PredictedHands(vertices, joints, relative, predicted), targets, index)
    scores = scorer.tally.scores(protocol, unusable={})

Several processes each fill a scorer of their own and `merged` joins their tallies; how the samples were shared out
changes the numbers by float64 rounding only. Nothing here knows of a network, a device or a file.

Memory: 157 bytes for each sample, and 19 kB for each recording and type of samples.

Legend: B batch · N samples · P protocols · 2 the hand axis · G recordings · F entries of a vector of sums.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from msgspec import structs
from torch import Tensor

from common.errors import UserError
from common.hands import WRIST, Hand
from common.score.curves import (
    BinnedCurve,
    binned_curve,
    equal_count_edges,
    hand_distance,
    joint_asymmetry,
    rotation_asymmetry,
)
from common.score.metrics import (
    NUM_SUMS,
    PLAIN_PCK,
    PROTOCOLS,
    TYPES,
    PckOptions,
    PredictedHands,
    Protocol,
    SampleErrors,
    averages,
    interval_95,
    not_finite,
    pck_curve,
    protocol_scores,
    sample_errors,
    sample_sums,
    unpack,
)
from common.score.scores import Bootstrap, ProtocolScores, Scores
from common.types import Targets

EVERY_PROTOCOL = tuple(PROTOCOLS.values())
_RESAMPLES, _SEED = 1000, 0
_MAX_BLOCKS = 1000


class PckCurve(NamedTuple):
    """Share of joints within each of `common.score.metrics.THRESHOLDS`, 0 to 1, with its 95 % interval; all (200,)."""

    share: np.ndarray
    low: np.ndarray
    high: np.ndarray
    auc: float              # percent, exact
    count: int              # type: ignore[assignment]  # joints


class Scorer:
    """Adds up what `tally` keeps of predictions and their targets.

    model_regressor: (2, 16, 778), of the hand model.  size: N, samples of the test set.
    sample_id, hand_type: of a sample in the test set (`data.schema.Reader`).
    keep_samples: false leaves out the rows that curves and `dump` need.
    """

    def __init__(self, model_regressor: Tensor, size: int, sample_id: Callable[[int], str],
                 hand_type: Callable[[int], str], *, protocols: Sequence[Protocol] = EVERY_PROTOCOL,
                 pck: PckOptions = PLAIN_PCK, keep_samples: bool = True):
        self.model_regressor, self.sample_id, self.hand_type = model_regressor, sample_id, hand_type
        self.keep_samples = keep_samples
        self.tally = Tally(size, protocols, pck)

    def add(self, hands: PredictedHands, targets: Targets, index: Tensor) -> None:
        """Score a batch; a sample that was scored before is passed over.

        index: (B,) positions of the samples in the test set.  All tensors on one device.
        """
        fresh = self.tally.take(index.cpu().numpy())
        if not fresh.any():
            return
        rows = torch.from_numpy(np.flatnonzero(fresh)).to(index.device)
        hands = PredictedHands(*(None if values is None else values[rows] for values in hands))
        targets = _rows_of(targets, rows)
        numbers = index[rows].cpu().numpy()

        named = [self.hand_type(number) for number in numbers.tolist()]
        shown = torch.tensor([[name in (hand.label, "interacting") for hand in Hand] for name in named],
                             device=index.device)
        errors = [sample_errors(protocol, hands, targets, self.model_regressor, shown)
                  for protocol in self.tally.protocols]
        hands_seen = targets.joints_valid[..., WRIST].bool()
        predicted = torch.ones_like(hands_seen) if hands.predicted is None else hands.predicted.bool()
        types = [TYPES.index("interacting" if name == "interacting" else "single") for name in named]
        names = [_recording(self.sample_id(number), number, len(self.tally.scored)) for number in numbers.tolist()]

        self.tally.add_sums(errors, names, types)
        self.tally.not_finite += int(not_finite(hands).sum())
        self.tally.missing_hands += int((hands_seen & ~predicted).sum())
        if self.keep_samples:
            self.tally.add_samples(_sample_rows(errors, targets, numbers, self.tally.codes(names)))


class Tally:
    """What is left of a test set after scoring: sums for each recording, and a small row for each sample."""

    def __init__(self, size: int, protocols: Sequence[Protocol], pck: PckOptions):
        self.protocols, self.pck = protocols, pck
        self.scored = np.zeros(size, dtype=bool)
        self.not_finite = 0                                     # samples with a prediction that is not finite
        self.missing_hands = 0                                  # annotated hands that the prediction leaves out
        self.sums: dict[tuple[str, int], np.ndarray] = {}       # (P, F) of a recording and a type of samples
        self.recordings: dict[str, int] = {}                    # name → number in the rows of samples
        self.parts: list[np.ndarray] = []                       # rows of samples, see `samples`

    @classmethod
    def merged(cls, tallies: Sequence["Tally"]) -> "Tally":
        """One tally of those of several processes. No sample may have been scored by two of them."""
        whole = cls(len(tallies[0].scored), tallies[0].protocols, tallies[0].pck)
        for tally in tallies:
            if (whole.scored & tally.scored).any():
                raise RuntimeError("two processes scored the same sample: its errors would count twice")
            whole.scored |= tally.scored
            whole.not_finite += tally.not_finite
            whole.missing_hands += tally.missing_hands
            for key, sums in tally.sums.items():
                whole.sums[key] = whole.sums.get(key, 0.0) + sums
            numbers = whole.codes(tally.recordings)             # in the order of their numbers in `tally`
            for part in tally.parts:
                whole.parts.append(part.copy())
                whole.parts[-1]["recording"] = numbers[part["recording"]]
        return whole

    def take(self, index: np.ndarray) -> np.ndarray:
        """Which of the samples (B,) are seen for the first time; they count as scored from now on."""
        _, first = np.unique(index, return_index=True)
        fresh = np.zeros(len(index), dtype=bool)
        fresh[first] = ~self.scored[index[first]]
        self.scored[index] = True
        return fresh

    def codes(self, names: Iterable[str]) -> np.ndarray:
        """Numbers of recordings; a new name gets the next one."""
        return np.array([self.recordings.setdefault(name, len(self.recordings)) for name in names], dtype=np.int32)

    def add_sums(self, errors: Sequence[SampleErrors], names: Sequence[str], types: Sequence[int]) -> None:
        """Add the sums of a batch.  errors: under each protocol.  names, types: (B,) its recordings and their places in
        `TYPES`."""
        vectors = np.stack([sample_sums(protocol, error, self.pck)
                            for protocol, error in zip(self.protocols, errors, strict=True)], axis=1)   # (B, P, F)
        keys = list(zip(names, types, strict=True))
        for key in set(keys):
            rows = [row for row, other in enumerate(keys) if other == key]
            self.sums[key] = self.sums.get(key, 0.0) + vectors[rows].sum(axis=0)

    def add_samples(self, rows: np.ndarray) -> None:
        """Keep the rows of a batch."""
        self.parts.append(rows)

    # ------------------------------------------------------------ results

    def scores(self, printed: Protocol, *, unusable: dict[str, int], allow_missing: bool = False) -> Scores:
        """Scores under every protocol.

        printed: the protocol that `counts` follows.  unusable: samples by reason, from `BadSamples`.
        Raises UserError if a sample or an annotated hand was not predicted, unless that is allowed: then it is left
        out of every mean and counted.
        """
        missing = np.flatnonzero(~self.scored)
        if not allow_missing and (len(missing) or self.missing_hands):
            first = f" (the first is number {missing[0]})" if len(missing) else ""
            raise UserError(f"{len(missing)} of {len(self.scored)} samples have no prediction{first}, and "
                            f"{self.missing_hands} annotated hands of the others have none.",
                            "Predict all of them, or leave them out of every mean with --allow_missing.")
        protocols = {protocol.name: self.protocol_scores(protocol) for protocol in self.protocols}
        return Scores(
            protocols=protocols,
            counts=structs.replace(protocols[printed.name].counts, unusable=sum(unusable.values())),
            intervals=Bootstrap("recordings", len(self._names()), _RESAMPLES, _SEED, [2.5, 97.5]),
            pck=asdict(self.pck), protocol=printed.name, unusable=unusable)

    def protocol_scores(self, protocol: Protocol) -> ProtocolScores:
        """Scores under one of the tally's protocols, whatever was not predicted left out."""
        return protocol_scores(protocol, self._table(protocol), self._resamples(), not_finite=self.not_finite,
                               missing=int((~self.scored).sum()), missing_hands=self.missing_hands,
                               recordings=len(self._names()))

    def pck_curve(self, protocol: Protocol) -> PckCurve:
        """The PCK curve of all samples under one of the tally's protocols."""
        table = self._table(protocol)                           # (G, T, F)
        auc = averages(protocol, unpack(table.sum(axis=0)))["auc"]
        table = table.sum(axis=1)
        total, resamples = unpack(table.sum(axis=0)), self._resamples()
        share = pck_curve(total)
        low = high = np.full_like(share, np.nan)
        if resamples is not None:
            with np.errstate(invalid="ignore"):
                low, high = interval_95(pck_curve(unpack(resamples @ table)))
        return PckCurve(share, low, high, float(auc), int(total.above_n))

    def binned(self, protocol: Protocol, column: str, edges: Sequence[float] = ()) -> BinnedCurve | None:
        """MPJPE in bins of a column of `samples`; None if no sample has a value and an error.

        edges: of the bins; left out, six bins hold equally many samples.
        """
        samples, number = self.samples(), self.protocols.index(protocol)
        count = samples["joints_n"][:, number].astype(float)                                # (N, 2)
        error = np.where(count > 0, samples["mpjpe"][:, number], 0.0) * count
        x = samples[column].astype(float)
        known = ~np.isnan(x) & (count.sum(axis=1) > 0)
        if not known.any():
            return None
        chosen = np.asarray(edges, dtype=float) if len(edges) else equal_count_edges(x[known])
        order = {name: row for row, name in enumerate(self._names())}
        recording = np.array([order[name] for name in self.recordings])[samples["recording"]]
        return binned_curve(x[known], error.sum(axis=1)[known], count.sum(axis=1)[known], recording[known],
                            self._resamples(), chosen)

    def samples(self) -> np.ndarray:
        """A row for each scored sample (N,), ordered by `index`; NaN where there is nothing to score. P protocols in
        the order of `protocols`: `mpjpe` (P, 2) mm, `joints_n` (P, 2), `mpvpe` (P, 2) mm and `mrrpe` (P,) mm; and
        `rotation_asymmetry` (degrees), `joint_asymmetry` (mm), `hand_distance` (mm): see common.score.curves."""
        rows = np.concatenate([np.zeros(0, _row_type(len(self.protocols))), *self.parts])
        return rows[np.argsort(rows["index"], kind="stable")]

    def _names(self) -> list[str]:
        return sorted({name for name, _ in self.sums})

    def _table(self, protocol: Protocol) -> np.ndarray:
        """Sums (G, T, F) of each recording and type, recordings in the order of their names."""
        rows = {name: row for row, name in enumerate(self._names())}
        table = np.zeros((len(rows), len(TYPES), NUM_SUMS))
        for (name, number), sums in self.sums.items():
            table[rows[name], number] = sums[self.protocols.index(protocol)]
        return table

    def _resamples(self) -> np.ndarray | None:
        """How often each resample takes each recording (R, G); None for a single recording."""
        count = len(self._names())
        if count < 2:
            return None
        generator = np.random.default_rng(_SEED)
        return generator.multinomial(count, np.full(count, 1 / count), size=_RESAMPLES).astype(float)


def _recording(sample_id: str, number: int, size: int) -> str:
    """The recording that a sample belongs to: what bootstrap resamples draw.

    Frames of a recording follow each other and are seen by several cameras, so each says little that is new. It is the
    folder above the cameras' in the sample's name: `Capture3/0390_dh_touchROM` of
    `Capture3/0390_dh_touchROM/cam400026/image69148.jpg`. Where names have no such folder, the set is cut into blocks.
    """
    folder = PurePosixPath(sample_id).parent.parent
    return str(folder) if folder.name else f"block {number * _MAX_BLOCKS // size}"


def _row_type(protocols: int) -> np.dtype:
    pair = (protocols, 2)
    return np.dtype([("index", "i8"), ("recording", "i4"), ("mpjpe", "f4", pair), ("joints_n", "i1", pair),
                     ("mpvpe", "f4", pair), ("mrrpe", "f4", protocols), ("rotation_asymmetry", "f4"),
                     ("joint_asymmetry", "f4"), ("hand_distance", "f4")])


def _sample_rows(errors: Sequence[SampleErrors], targets: Targets, index: np.ndarray,
                 recording: np.ndarray) -> np.ndarray:
    rows = np.zeros(len(index), _row_type(len(errors)))
    joints = np.stack([error.joints for error in errors], axis=1)                           # (B, P, 2, 21)
    rows["index"], rows["recording"] = index, recording
    rows["joints_n"] = (~np.isnan(joints)).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        rows["mpjpe"] = np.nansum(joints, axis=-1) / rows["joints_n"]
    rows["mpvpe"] = np.stack([error.vertices for error in errors], axis=1)
    rows["mrrpe"] = np.stack([error.relative for error in errors], axis=1)

    both_mano, both_meshes = targets.mano_valid.bool().all(dim=1), targets.vertices_valid.bool().all(dim=1)
    columns = {
        "rotation_asymmetry": (rotation_asymmetry(targets.mano.rotations), both_mano),
        "joint_asymmetry": (joint_asymmetry(targets.joints, targets.joints_valid), None),
        "hand_distance": (hand_distance(targets.vertices, targets.relative), both_meshes),
    }
    for name, (values, valid) in columns.items():
        values = values if valid is None else torch.where(valid, values, torch.nan)
        rows[name] = values.cpu().numpy()
    return rows


def _rows_of(tree: Any, rows: Tensor) -> Any:
    """`rows` of every tensor of nested NamedTuples."""
    return tree[rows] if isinstance(tree, Tensor) else type(tree)(*(_rows_of(item, rows) for item in tree))
