"""Scores as the plain values of metrics.json, and a whole metrics.json."""

from typing import Any

import numpy as np
from msgspec import structs

from common.score.metrics import PLAIN_PCK, PROTOCOLS, Protocol, protocol_scores
from common.score.scores import Baseline, MeanErrors, NetworkScores, plain
from common.score.tally import EVERY_PROTOCOL, Tally

LGNET = PROTOCOLS["lgnet"]


def plain_scores(tally: Tally, *, allow_missing: bool = False) -> dict[str, Any]:
    return plain(tally.scores(LGNET, unusable={}, allow_missing=allow_missing))


def plain_protocol(protocol: Protocol, table: np.ndarray, resamples: np.ndarray | None = None) -> dict[str, Any]:
    """The scores of a table of sums (G, 3, F) of which nothing was left out."""
    return plain(protocol_scores(protocol, table, resamples, not_finite=0, missing=0, missing_hands=0,
                                 recordings=len(table)))


def plain_result(mpjpe: float | None = None, **changes: Any) -> dict[str, Any]:
    """What main/test.py writes: of no sample, but with this MPJPE."""
    empty = Tally(0, EVERY_PROTOCOL, PLAIN_PCK).scores(LGNET, unusable={})
    protocols = empty.protocols | {LGNET.name: structs.replace(empty.printed, mpjpe=mpjpe)}
    scores = NetworkScores(**structs.asdict(structs.replace(empty, protocols=protocols)),
                           rough=MeanErrors(None, None), baseline=Baseline(MeanErrors(None)))
    return plain(scores) | {"data": {}, "checkpoint_sha256": "", "config": {}} | changes
