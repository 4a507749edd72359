"""Scores of predicted hands, in millimetres, under the protocols of the papers that are compared.

`sample_errors` measures a batch under one protocol. `sample_sums` turns each sample into a vector of sums and counts;
vectors are added up, and every average, curve and interval is a function of such a sum (`protocol_scores`). NaN marks
what cannot be scored because the truth or the prediction is absent; a prediction that is not finite scores inf, so
that it can never improve a mean.

Legend: B batch · 2 the hand axis · 21 joints in MANO21 order · V vertices · F entries of a vector of sums.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from msgspec import UNSET
from torch import Tensor

from common.errors import UserError
from common.hands import INTERWILD_TIP_VERTICES, MANO21, MIDDLE_MCP, TIP_VERTICES, WRIST, Hand, joint_regressor
from common.score.scores import Counts, GroupScores, HandScores, Intervals, ProtocolScores
from common.types import Targets

AUC_END = 50.0                                      # millimetres
THRESHOLDS = np.linspace(0, AUC_END, 200)           # of the PCK curve, as InterShape draws it
_MILLIMETRES = 1000.0
_MIN_BONE = 0.020       # metres; a shorter true wrist–knuckle bone is a hand that is not really there


# ---------------------------------------------------------------- protocols

@dataclass(frozen=True)
class Protocol:
    """How a paper's evaluation code compares a hand with its ground truth.

    MPVPE and RRVE always compare meshes, aligned at the root joint that is regressed from them. MRRPE is the error of
    `left wrist − right wrist` in every protocol and is never scaled.
    """

    name: str
    root: int                                       # the joint that both hands are moved to
    scaled: bool                                    # the prediction is scaled to the true wrist–knuckle (middle1) bone
    truth: Literal["mesh", "annotated"]             # true joints: G·mesh, or those that the dataset annotates
    joints: Literal["mesh", "given"]                # predicted joints: G·mesh, or the prediction's own where it has any
    masked: bool                                    # only annotated joints count, whatever `truth` is
    averaging: Literal["flat", "per_joint", "per_joint_and_type"]   # of MPJPE: see `_mean_joints`
    metrics: tuple[str, ...]
    set: str                                        # the part of InterHand2.6M that its authors score
    source: str
    tip_vertices: tuple[int, ...] = TIP_VERTICES    # of G
    mpvpe: Literal["hands", "samples"] = "hands"    # what it is a mean over; a sample's is the mean of its hands'
    meshes: Literal["all", "annotated", "complete"] = "all"     # that MPVPE counts: see `_counted_meshes`
    mrrpe: Literal["all", "interacting"] = "all"    # samples that it counts, of those with both wrists
    aliases: tuple[str, ...] = ()

    def definition(self) -> dict[str, Any]:
        """What metrics.json says about it: plain JSON values."""
        values = asdict(self) | {"root": MANO21.names[self.root]}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


PROTOCOLS = {protocol.name: protocol for protocol in (
    Protocol("lgnet", root=WRIST, scaled=True, truth="mesh", joints="mesh", masked=False, averaging="flat",
             metrics=("mpjpe", "mpvpe", "mrrpe"), set="ih_hm", aliases=("dir",),
             source="LGNet, supplement III; DIR's code with its default root"),
    Protocol("intaghand", root=MIDDLE_MCP, scaled=True, truth="mesh", joints="mesh", masked=False, averaging="flat",
             metrics=("mpjpe", "mpvpe", "mrrpe"), set="ih_hm", source="IntagHand's code"),
    Protocol("interwild", root=WRIST, scaled=False, truth="annotated", joints="mesh", masked=True,
             averaging="per_joint_and_type", metrics=("mpjpe", "mpvpe", "mrrpe", "rrve"), set="human",
             source="InterWild's code", tip_vertices=INTERWILD_TIP_VERTICES, meshes="annotated"),
    Protocol("interwild_mesh", root=WRIST, scaled=False, truth="mesh", joints="mesh", masked=False,
             averaging="per_joint_and_type", metrics=("mpjpe", "mpvpe", "mrrpe", "rrve"), set="ih_hm",
             source="InterWild's code for HIC, which has no annotated joints", tip_vertices=INTERWILD_TIP_VERTICES,
             mrrpe="interacting"),
    Protocol("internet", root=WRIST, scaled=False, truth="annotated", joints="given", masked=True,
             averaging="per_joint", metrics=("mpjpe", "mrrpe"), set="all", source="InterHand2.6M's code",
             mrrpe="interacting"),
    Protocol("eanet", root=MIDDLE_MCP, scaled=True, truth="mesh", joints="mesh", masked=True,
             averaging="per_joint_and_type", mpvpe="samples", meshes="complete",
             metrics=("mpjpe", "mpvpe", "mrrpe"), set="all",
             source="EANet's code, with its mask in the order of the joints and without hands that have no true mesh"),
)}


def protocol_named(name: str) -> Protocol:
    """The protocol called `name`, or one whose other name it is; UserError if there is none."""
    for protocol in PROTOCOLS.values():
        if name in (protocol.name, *protocol.aliases):
            return protocol
    known = ", ".join(name for protocol in PROTOCOLS.values() for name in (protocol.name, *protocol.aliases))
    raise UserError(f"test.protocol is '{name}'.", f"It must be one of: {known}.")


@dataclass(frozen=True)
class PckOptions:
    """Which joints the PCK curve and its area count, and how."""

    exclude_root: bool = False      # leave out the joint that is aligned, whose error is 0 in most protocols
    strict: bool = False            # errors below the threshold; otherwise those equal to it count too


PLAIN_PCK = PckOptions()


# ---------------------------------------------------------------- errors of a batch

class PredictedHands(NamedTuple):
    """What is scored, metres; None for what the prediction does not hold."""

    vertices: Tensor | None = None      # (B, 2, V, 3)      relative to the own wrist
    joints: Tensor | None = None        # (B, 2, 21, 3)     relative to the own wrist
    relative: Tensor | None = None      # (B, 3)            left wrist − right wrist
    predicted: Tensor | None = None     # (B, 2) bool       the hands that the prediction speaks of; None: both


class SampleErrors(NamedTuple):
    """Errors of a batch in millimetres, float64; NaN where nothing can be scored."""

    joints: np.ndarray      # (B, 2, 21)
    vertices: np.ndarray    # (B, 2)        mean over the mesh
    relative: np.ndarray    # (B,)          MRRPE's
    pair: np.ndarray        # (B,)          RRVE's: mean over both meshes, aligned at the right wrist
    scale: np.ndarray       # (B, 2)        factor applied to the predicted joints


def sample_errors(protocol: Protocol, hands: PredictedHands, targets: Targets, model_regressor: Tensor,
                  shown: Tensor | None = None) -> SampleErrors:
    """Errors of predicted hands under a protocol.

    model_regressor: (2, 16, V), of the hand model whose meshes `hands` and `targets` hold.
    shown: (B, 2) bool, the hands that the data set's hand_type names; None: both.
    """
    regressor = joint_regressor(model_regressor.double(), protocol.tip_vertices)
    true_mesh = _mesh(targets.vertices, regressor)
    truth = _truth(protocol, targets, true_mesh)
    has_mesh = targets.vertices_valid.bool() & (_bone(true_mesh.joints) >= _MIN_BONE)       # (B, 2)
    given = torch.ones_like(has_mesh) if hands.predicted is None else hands.predicted.bool()
    shown = torch.ones_like(has_mesh) if shown is None else shown
    mesh = None if hands.vertices is None else _mesh(hands.vertices, regressor)
    joints = hands.joints.double() if hands.joints is not None else None
    if mesh is not None and (joints is None or protocol.joints == "mesh"):
        joints = mesh.joints

    joint_error = vertex_error = relative_error = pair_error = scale = None
    if joints is not None:
        scale = scale_to_truth(protocol, joints, truth.joints)
        joint_error = aligned_distances(protocol, joints, truth.joints, joints, truth.joints)
    if mesh is not None and "mpvpe" in protocol.metrics:
        distances = aligned_distances(protocol, mesh.joints, true_mesh.joints, mesh.vertices, true_mesh.vertices)
        vertex_error = distances.mean(dim=-1)
    if hands.relative is not None:
        relative_error = (hands.relative.double() - truth.relative).norm(dim=-1) * _MILLIMETRES
    if mesh is not None and hands.relative is not None and "rrve" in protocol.metrics:
        pair_error = pair_distances(mesh.from_wrist, hands.relative.double(), true_mesh.from_wrist,
                                    targets.relative.double()).mean(dim=-1)

    both = given.all(dim=-1)
    paired = both & shown.all(dim=-1) if protocol.mrrpe == "interacting" else both
    return SampleErrors(
        joints=_scored(joint_error, given[..., None] & truth.counted),
        vertices=_scored(vertex_error, given & _counted_meshes(protocol, targets, has_mesh, shown)),
        relative=_scored(relative_error, paired & truth.relative_known),
        pair=_scored(pair_error, both & has_mesh.all(dim=-1) & targets.relative_valid.bool()),
        scale=_scored(scale, given & truth.aligned),
    )


def _counted_meshes(protocol: Protocol, targets: Targets, has_mesh: Tensor, shown: Tensor) -> Tensor:
    """The meshes (B, 2) that MPVPE counts: all; of hands that are shown, those whose wrist is annotated; or those of
    samples with an annotated wrist in which each hand that is shown has one."""
    annotated = targets.joints_annotated_valid[..., WRIST].bool()
    if protocol.meshes == "annotated":
        return has_mesh & shown & annotated
    if protocol.meshes == "complete":
        return has_mesh & shown & ((has_mesh | ~shown).all(dim=-1) & annotated.any(dim=-1))[:, None]
    return has_mesh


class _Mesh(NamedTuple):
    vertices: Tensor        # (B, 2, V, 3)
    joints: Tensor          # (B, 2, 21, 3)     G·vertices
    from_wrist: Tensor      # (B, 2, V, 3)      vertices seen from the regressed wrist


def _mesh(vertices: Tensor, regressor: Tensor) -> _Mesh:
    vertices = vertices.double()
    joints = regressor @ vertices
    return _Mesh(vertices, joints, vertices - joints[..., WRIST, None, :])


class _Truth(NamedTuple):
    """What predicted joints and the relative wrist are compared with."""

    joints: Tensor          # (B, 2, 21, 3)
    aligned: Tensor         # (B, 2)            the hand can be aligned
    counted: Tensor         # (B, 2, 21)        the joint is scored
    relative: Tensor        # (B, 3)
    relative_known: Tensor  # (B,)


def _truth(protocol: Protocol, targets: Targets, mesh: _Mesh) -> _Truth:
    annotated = targets.joints_annotated_valid.bool()
    annotated = annotated & annotated[..., WRIST:WRIST + 1]         # a hand without its wrist is not annotated
    if protocol.truth == "mesh":
        has_mesh = targets.vertices_valid.bool()
        joints, known = mesh.joints, has_mesh[..., None].expand_as(annotated)
        relative, relative_known = targets.relative.double(), targets.relative_valid.bool() & has_mesh.all(dim=-1)
    else:
        joints, known = targets.joints_annotated.double(), annotated
        relative = joints[:, Hand.LEFT, WRIST] - joints[:, Hand.RIGHT, WRIST]
        relative_known = annotated[..., WRIST].all(dim=-1)

    has_bone = known[..., WRIST] & known[..., MIDDLE_MCP]
    collapsed = has_bone & (_bone(joints) < _MIN_BONE)
    aligned = known[..., protocol.root] & ~collapsed
    if protocol.scaled:
        aligned = aligned & has_bone
    counted = aligned[..., None] & known & (annotated if protocol.masked else known)
    return _Truth(joints, aligned, counted, relative, relative_known & ~collapsed.any(dim=-1))


def scale_to_truth(protocol: Protocol, joints: Tensor, truth: Tensor) -> Tensor:
    """Factor (B, 2) for predicted joints (B, 2, 21, 3): the true over the predicted bone, or 1."""
    if not protocol.scaled:
        return torch.ones_like(truth[..., 0, 0])
    return _bone(truth) / _bone(joints).clamp(min=1e-9)


def aligned_distances(protocol: Protocol, joints: Tensor, truth: Tensor, points: Tensor,
                      true_points: Tensor) -> Tensor:
    """Distances (B, 2, n) in mm between points (B, 2, n, 3) after aligning each hand by its joints (B, 2, 21, 3)."""
    root = slice(protocol.root, protocol.root + 1)
    scale = scale_to_truth(protocol, joints, truth)[..., None, None]
    moved = scale * (points - joints[..., root, :])
    return (moved - (true_points - truth[..., root, :])).norm(dim=-1) * _MILLIMETRES


def pair_distances(points: Tensor, relative: Tensor, true_points: Tensor, true_relative: Tensor) -> Tensor:
    """Distances (B, 2·n) in mm between both hands' points (B, 2, n, 3), relative to the own wrist, after putting the
    left hand where it is seen from the right wrist.  relative: (B, 3)."""
    difference = points - true_points
    left = difference[:, Hand.LEFT] + (relative - true_relative)[:, None]
    return torch.cat([difference[:, Hand.RIGHT], left], dim=1).norm(dim=-1) * _MILLIMETRES


def not_finite(hands: PredictedHands) -> np.ndarray:
    """Samples (B,) in which a number of a hand that is predicted is not finite."""
    bad = []
    for values in (hands.vertices, hands.joints):
        if values is not None:
            broken = ~values.flatten(2).isfinite().all(dim=-1)
            bad.append((broken if hands.predicted is None else broken & hands.predicted.bool()).any(dim=-1))
    if hands.relative is not None:
        broken = ~hands.relative.isfinite().all(dim=-1)
        bad.append(broken if hands.predicted is None else broken & hands.predicted.bool().all(dim=-1))
    return torch.stack(bad).any(dim=0).cpu().numpy()


def _bone(joints: Tensor) -> Tensor:
    return (joints[..., MIDDLE_MCP, :] - joints[..., WRIST, :]).norm(dim=-1)


def _scored(values: Tensor | None, valid: Tensor) -> np.ndarray:
    """The values where they can be scored: NaN where not valid or not predicted at all, inf where not finite."""
    if values is None:
        return np.full(valid.shape, np.nan)
    values = torch.where(values.isfinite(), values, torch.inf)
    return torch.where(valid, values, torch.nan).cpu().numpy()


# ---------------------------------------------------------------- sums

class Sums(NamedTuple):
    """Sums over samples, and how many values went into each (`_n`). Any leading shape, float64."""

    samples: np.ndarray         # (…)
    joints: np.ndarray          # (…, 2, 21)    mm
    joints_n: np.ndarray
    above: np.ndarray           # (…)           max(0, 1 − error/50 mm) of the joints that PCK counts
    above_n: np.ndarray
    within: np.ndarray          # (…, 200)      how many of them lie within each threshold
    area: np.ndarray            # (…, 2, 21)    mm under each joint's own curve over the thresholds, times its count
    area_n: np.ndarray
    vertices: np.ndarray        # (…, 2)        mm
    vertices_n: np.ndarray
    sample_vertices: np.ndarray     # (…)       mm, the mean of a sample's hands
    sample_vertices_n: np.ndarray
    relative: np.ndarray        # (…)           mm
    relative_n: np.ndarray
    pair: np.ndarray            # (…)           mm
    pair_n: np.ndarray
    scale: np.ndarray           # (…, 2)
    scale_n: np.ndarray


_SHAPES: tuple[tuple[int, ...], ...] = (        # in the order of Sums
    (), (2, 21), (2, 21), (), (), (len(THRESHOLDS),), (2, 21), (2, 21), (2,), (2,), (), (), (), (), (), (), (2,), (2,))
_ENDS = np.cumsum([int(np.prod(shape)) for shape in _SHAPES])
NUM_SUMS = int(_ENDS[-1])


def sample_sums(protocol: Protocol, errors: SampleErrors, pck: PckOptions) -> np.ndarray:
    """A vector of sums (B, F) for each sample; `unpack` names its entries."""
    counted = errors.joints.copy()                                                      # (B, 2, 21)
    if pck.exclude_root:
        counted[..., protocol.root] = np.nan
    each = counted[..., None]
    within = each < THRESHOLDS if pck.strict else each <= THRESHOLDS                    # (B, 2, 21, 200)
    share = np.maximum(0, 1 - counted / AUC_END)
    known_hands = ~np.isnan(errors.vertices)
    with np.errstate(divide="ignore", invalid="ignore"):
        of_sample = np.where(known_hands, errors.vertices, 0).sum(axis=1) / known_hands.sum(axis=1)
    sums = (
        np.ones(len(counted)), *_sum_and_count(errors.joints),
        *(part.sum(axis=(1, 2)) for part in _sum_and_count(share)), within.sum(axis=(1, 2)),
        np.trapezoid(within.astype(float), THRESHOLDS), ~np.isnan(counted), *_sum_and_count(errors.vertices),
        *_sum_and_count(of_sample), *_sum_and_count(errors.relative), *_sum_and_count(errors.pair),
        *_sum_and_count(errors.scale),
    )
    return np.concatenate([column.reshape(len(counted), -1) for column in sums], axis=1, dtype=np.float64)


def unpack(vectors: np.ndarray) -> Sums:
    """Named views of vectors of sums (…, F)."""
    parts = np.split(vectors, _ENDS[:-1], axis=-1)
    return Sums(*(part.reshape((*vectors.shape[:-1], *shape)) for part, shape in zip(parts, _SHAPES, strict=True)))


def _sum_and_count(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known = ~np.isnan(values)
    return np.where(known, values, 0.0), known


# ---------------------------------------------------------------- averages

def averages(protocol: Protocol, sums: Sums) -> dict[str, np.ndarray]:
    """The means of sums (…, T) of T types of samples, shaped like the axes before; NaN where nothing went into them.

    `auc` is the exact area under the share of joints within t, t from 0 to 50 mm, in percent. `auc_200` is that of
    InterShape: the mean of the 42 joints' own areas, each by the trapezoid rule over 200 thresholds. What ends in
    `pooled` is the mean of all joints' means, or over all hands, where the protocol's own weighs them in another way.
    """
    pooled = Sums(*(values.sum(axis=values.ndim - len(shape) - 1)
                    for values, shape in zip(sums, _SHAPES, strict=True)))
    over_hands = _ratio(pooled.vertices.sum(axis=-1), pooled.vertices_n.sum(axis=-1))
    by_type, by_sample = protocol.averaging == "per_joint_and_type", protocol.mpvpe == "samples"
    means = {
        "mpjpe": _mean_joints(protocol, sums.joints, sums.joints_n),
        "mpvpe": _ratio(pooled.sample_vertices, pooled.sample_vertices_n) if by_sample else over_hands,
        "mrrpe": _ratio(pooled.relative, pooled.relative_n),
        "rrve": _ratio(pooled.pair, pooled.pair_n) if "rrve" in protocol.metrics else None,
        "mpjpe_pooled": _mean_of_means(pooled.joints, pooled.joints_n) if by_type else None,
        "mpvpe_pooled": over_hands if by_sample else None,
        "mpjpe_no_root": _mean_joints(protocol, np.delete(sums.joints, protocol.root, axis=-1),
                                      np.delete(sums.joints_n, protocol.root, axis=-1)),
        "auc": 100 * _ratio(pooled.above, pooled.above_n),
        "auc_200": 100 / AUC_END * _mean_of_means(pooled.area, pooled.area_n),
    }
    return {name: values for name, values in means.items() if values is not None}


def pck_curve(sums: Sums) -> np.ndarray:
    """Share of joints within each of `THRESHOLDS`, (…, 200)."""
    return _ratio(sums.within, sums.above_n[..., None])


def _mean_joints(protocol: Protocol, joints: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """MPJPE of sums (…, T, 2, n): of all joints alike (flat), of the means of each of the 2·n joints (per_joint), or of
    the 2·n means of each type of samples, which weigh the same however many samples of it there are."""
    if protocol.averaging == "flat":
        return _ratio(joints.sum(axis=(-3, -2, -1)), counts.sum(axis=(-3, -2, -1)))
    if protocol.averaging == "per_joint":
        return _mean_of_means(joints.sum(axis=-3), counts.sum(axis=-3))
    return _mean_of_means(joints.reshape(*joints.shape[:-3], -1, joints.shape[-1]),
                          counts.reshape(*counts.shape[:-3], -1, counts.shape[-1]))


def _mean_of_means(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean over the last two axes of what has a mean."""
    means, known = _ratio(sums, counts), counts > 0
    return _ratio(np.where(known, means, 0).sum(axis=(-2, -1)), known.sum(axis=(-2, -1)))


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    # A resample that leaves out the only failure has 0·inf in its sums; its interval is not reported.
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(count > 0, total / count, np.nan)


# ---------------------------------------------------------------- summary

TYPES = ("single", "interacting")       # of samples, by the annotation's hand_type


def protocol_scores(protocol: Protocol, table: np.ndarray, resamples: np.ndarray | None,
                    **left_out: int) -> ProtocolScores:
    """Means over everything, over samples of single and of interacting hands, over each hand and each joint.

    table: (G, T, F), the sums of each recording and type (`TYPES`).  resamples: (R, G), how often each of R bootstrap
    resamples takes each recording; None leaves the intervals out.  left_out: the other fields of `Counts`.
    """
    total = unpack(table.sum(axis=(0, 1)))
    groups = {"all": table, **{name: table[:, number:number + 1] for number, name in enumerate(TYPES)}}
    return ProtocolScores(
        protocol=protocol.definition(),
        **_plain(averages(protocol, unpack(table.sum(axis=0)))),
        mean_scale=_number(_ratio(total.scale.sum(), total.scale_n.sum())),
        interval_95=_intervals(protocol, table, resamples),
        groups={name: _group(protocol, group, resamples) for name, group in groups.items()},
        hands={hand.label: _hand_means(total, hand) for hand in Hand},
        counts=Counts(samples=int(total.samples), mpjpe=int(total.joints_n.sum()), mpvpe=int(total.vertices_n.sum()),
                      mrrpe=int(total.relative_n), rrve=int(total.pair_n) if "rrve" in protocol.metrics else UNSET,
                      **left_out),
    )


def report_lines(protocol: Protocol, scores: ProtocolScores) -> list[str]:
    """The lines that evaluations of this family print."""
    lines = [f"{metric.upper()} for {group} hand sequences: {_millimetres(getattr(scores.groups[group], metric))}"
             for metric in ("mpjpe", "mpvpe") if metric in protocol.metrics
             for group in ("all", "single", "interacting")]
    return [*lines, *(f"{metric.upper()}: {_millimetres(getattr(scores, metric))}" for metric in ("mrrpe", "rrve")
                      if metric in protocol.metrics)]


def interval_95(values: np.ndarray) -> np.ndarray:
    """2.5 and 97.5 percentile (2, …) over the resamples (R, …) that have a value; NaN where none has."""
    known = ~np.isnan(values)
    filled = np.where(known.any(axis=0), values, 0.0)
    bounds = np.nanpercentile(filled, (2.5, 97.5), axis=0)
    return np.where(known.any(axis=0), bounds, np.nan)


def _group(protocol: Protocol, group: np.ndarray, resamples: np.ndarray | None) -> GroupScores:
    total = unpack(group.sum(axis=0))                                                   # (T)
    means = _plain(averages(protocol, total))
    intervals = _intervals(protocol, group, resamples)
    kept = [name for name in ("mpjpe", "mpvpe", "mrrpe", "rrve") if name in means]
    return GroupScores(**{name: means[name] for name in kept}, samples=int(total.samples.sum()),
                       interval_95=intervals and {name: intervals[name] for name in kept})


def _intervals(protocol: Protocol, table: np.ndarray, resamples: np.ndarray | None) -> Intervals | None:
    """Low and high of each mean of sums (G, T, F); None for a mean that is not finite or has no value, and for all of
    them where fewer than two recordings have samples: drawing the same one again says nothing."""
    if resamples is None or (unpack(table).samples.sum(axis=1) > 0).sum() < 2:
        return None
    with np.errstate(invalid="ignore"):         # 0·inf, where a prediction is not finite
        drawn = averages(protocol, unpack(np.einsum("rg,gtf->rtf", resamples, table)))
    values = averages(protocol, unpack(table.sum(axis=0)))
    return {name: interval_95(drawn[name]).tolist() if np.isfinite(value) else None for name, value in values.items()}


def _hand_means(total: Sums, hand: Hand) -> HandScores:
    joints, counts = total.joints[hand], total.joints_n[hand]
    return HandScores(
        mpjpe=_number(_ratio(joints.sum(), counts.sum())),
        mpvpe=_number(_ratio(total.vertices[hand], total.vertices_n[hand])),
        scale=_number(_ratio(total.scale[hand], total.scale_n[hand])),
        joints=dict(zip(MANO21.names, map(_number, _ratio(joints, counts)), strict=True)),
        samples=int(total.scale_n[hand]),
    )


def _plain(means: dict[str, np.ndarray]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in means.items()}


def _number(value: np.ndarray) -> float | None:
    return None if np.isnan(value) else float(value)


def _millimetres(value: float | None) -> str:
    return "nothing to score" if value is None else f"{value:.2f} mm"
