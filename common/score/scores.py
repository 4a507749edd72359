"""The scores of a test, as metrics.json holds them: field names and their order are the file's.

Errors are millimetres, `auc` and `auc_200` percent; None where nothing was scored. `read_result` reads them back.
"""

from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from common.errors import UserError

Intervals = dict[str, list[float] | None]       # 95 %: low and high of a mean


class GroupScores(Struct, frozen=True, kw_only=True):
    """Means over the samples of one type, as the data set says it: all, single hands, interacting hands."""

    mpjpe: float | None
    mpvpe: float | None
    mrrpe: float | None
    rrve: float | None | UnsetType = UNSET
    interval_95: Intervals | None
    samples: int


class HandScores(Struct, frozen=True):
    """Means over one of the two hands."""

    mpjpe: float | None
    mpvpe: float | None
    scale: float | None                     # applied to the predicted joints
    joints: dict[str, float | None]
    samples: int


class Counts(Struct, frozen=True, kw_only=True):
    """How many values went into the means, and what did not."""

    samples: int
    mpjpe: int                              # joints
    mpvpe: int                              # hands
    mrrpe: int                              # samples
    rrve: int | UnsetType = UNSET
    not_finite: int                         # samples with a prediction that is not finite
    missing: int                            # samples without a prediction
    missing_hands: int                      # annotated hands that the prediction leaves out
    recordings: int
    unusable: int | UnsetType = UNSET       # samples whose files cannot be used


class ProtocolScores(Struct, frozen=True, kw_only=True):
    """Scores under one protocol. RRVE only where the protocol has it."""

    protocol: dict[str, Any]                # `Protocol.definition`
    mpjpe: float | None
    mpvpe: float | None
    mrrpe: float | None
    rrve: float | None | UnsetType = UNSET
    mpjpe_pooled: float | None | UnsetType = UNSET      # where the protocol's own weighs in another way:
    mpvpe_pooled: float | None | UnsetType = UNSET      # over all samples' joints, over all hands
    mpjpe_no_root: float | None             # without the aligned joint, whose error is 0
    auc: float | None                       # under the share of joints within 0 to 50 mm, exact
    auc_200: float | None                   # mean of each joint's own, by the trapezoid rule over 200 thresholds
    mean_scale: float | None
    interval_95: Intervals | None           # None: a single recording
    groups: dict[str, GroupScores]
    hands: dict[str, HandScores]
    counts: Counts


class Bootstrap(Struct, frozen=True):
    """How the intervals came."""

    resampled: str
    recordings: int
    resamples: int
    seed: int
    percentiles: list[float]


class MeanErrors(Struct, frozen=True):
    """Of the mesh before refinement, or of a baseline that has no mesh."""

    mpjpe: float | None
    mpvpe: float | None | UnsetType = UNSET


class PresenceScores(Struct, frozen=True, kw_only=True):
    """Which hands the network says there are, against what the data set says; shares are None of nothing."""

    hands: int                              # that the images show
    missed: int                             # of these, said to be absent
    absent: int                             # hands that the images do not show
    invented: int                           # of these, said to be present
    one_right: float | None                 # share of images of one hand that are said to show that one alone
    two_right: float | None                 # share of images of two hands that are said to show both
    charged: MeanErrors                     # under the printed protocol, missed hands in the rest pose


class Baseline(Struct, frozen=True):
    """What predicts without looking at the image."""

    mean_pose: MeanErrors


class Scores(Struct, frozen=True, kw_only=True):
    """Scores under every protocol."""

    protocols: dict[str, ProtocolScores]
    counts: Counts                          # of the protocol that is printed
    intervals: Bootstrap
    pck: dict[str, bool]
    protocol: str                           # the one that is printed
    unusable: dict[str, int]                # samples by reason

    @property
    def printed(self) -> ProtocolScores:
        """Those of the protocol that is printed."""
        return self.protocols[self.protocol]


class NetworkScores(Scores, frozen=True, kw_only=True):
    """Scores of a network, under the printed protocol also those of its coarse mesh and of a baseline."""

    rough: MeanErrors
    baseline: Baseline
    presence: PresenceScores | UnsetType = UNSET        # of a network that says which hands there are


class TestResult(NetworkScores, frozen=True, kw_only=True):
    """What `main/test.py` wrote, as far as another program reads it: scores, and what was tested on what."""

    data: dict[str, Any]
    checkpoint_sha256: str
    config: dict[str, Any]


def read_result(path: Path) -> TestResult:
    """Read a metrics.json of `main/test.py`; UserError if the file is missing or another one."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=TestResult)
    except (OSError, msgspec.DecodeError) as error:
        raise UserError(f"{path} is not what test.py writes: {error}.",
                        "Test the snapshot: it writes result/metrics.json.") from error


def plain(scores: Struct) -> dict[str, Any]:
    """Plain JSON values of scores."""
    return dict(msgspec.to_builtins(scores))
