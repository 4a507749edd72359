"""Scores of predicted hands, in millimetres, under the protocols of the papers that are compared.

One row of errors is kept for each sample, so that processes can be merged, repeated samples dropped, and every
average taken afterwards. NaN marks what cannot be scored because nothing is annotated; a prediction that is not
finite scores inf, so that it can never improve a mean.

Legend: B batch · N samples · 2 the hand axis · 21 joints in MANO21 order · V vertices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.hands import INTERWILD_TIP_VERTICES, MANO21, MIDDLE_MCP, TIP_VERTICES, WRIST, Hand, joint_regressor
from common.types import Targets

_MILLIMETRES = 1000.0
_MIN_BONE = 0.020       # metres; a shorter annotated wrist–knuckle bone is a hand that is not really there
_AUC_END = 50.0         # millimetres


@dataclass(frozen=True)
class Protocol:
    """How a hand is aligned with its ground truth before errors are measured.

    Every protocol takes joints as G·mesh, prediction and ground truth alike. The `interwild` of its authors scores
    joints against triangulated ones on the human-annotated test frames; ours is the same alignment on the mesh.
    """

    name: str
    root: int                               # the joint that both hands are moved to
    scaled: bool                            # the prediction is scaled to the true wrist–knuckle (middle1) bone
    tip_vertices: tuple[int, ...]
    averaging: Literal["flat", "per_joint"]     # of MPJPE: over all joints, or over samples and then over joints


PROTOCOLS = {protocol.name: protocol for protocol in (
    Protocol("lgnet", WRIST, True, TIP_VERTICES, "flat"),
    Protocol("intaghand", MIDDLE_MCP, True, TIP_VERTICES, "flat"),
    Protocol("interwild", WRIST, False, INTERWILD_TIP_VERTICES, "per_joint"),
)}


class SampleErrors(NamedTuple):
    """Errors of N samples in millimetres, float64; NaN where nothing is annotated."""

    index: np.ndarray       # (N,) int64            position in the reader
    annotated: np.ndarray   # (N, 2) bool           the hand's wrist is annotated
    joints: np.ndarray      # (N, 2, 21)
    vertices: np.ndarray    # (N, 2)                mean over the mesh
    relative: np.ndarray    # (N,)                  of left wrist − right wrist, never scaled
    scale: np.ndarray       # (N, 2)                factor applied to the prediction

    def take(self, rows: np.ndarray) -> "SampleErrors":
        return SampleErrors(*(column[rows] for column in self))


def mesh_errors(protocol: Protocol, vertices: Tensor, relative: Tensor, targets: Targets, index: Tensor,
                model_regressor: Tensor) -> SampleErrors:
    """Errors of predicted meshes, joints regressed from the mesh on both sides.

    vertices: (B, 2, 778, 3) relative to the own wrist.  relative: (B, 3) left wrist − right wrist.
    model_regressor: (2, 16, 778), of the hand model.  Annotated joints stand in where a hand has no mesh.
    """
    regressor = joint_regressor(model_regressor.double(), protocol.tip_vertices)
    has_mesh = targets.vertices_valid.bool()[..., None]                             # (B, 2, 1)
    truth = torch.where(has_mesh[..., None], regressor @ targets.vertices.double(), targets.joints.double())
    targets = targets._replace(joints=truth, joints_valid=targets.joints_valid.bool() | has_mesh)
    return hand_errors(protocol, regressor @ vertices.double(), targets, index, vertices, relative)


def hand_errors(protocol: Protocol, joints: Tensor, targets: Targets, index: Tensor, vertices: Tensor | None = None,
                relative: Tensor | None = None) -> SampleErrors:
    """Errors of predicted joints (B, 2, 21, 3), and of meshes and the relative wrist where they are given.

    vertices: (B, 2, V, 3) in the frame of the joints of the same hand.  relative: (B, 3).
    """
    truth, joints = targets.joints.double(), joints.double()
    joints_valid = targets.joints_valid.bool()
    has_bone = joints_valid[..., WRIST] & joints_valid[..., MIDDLE_MCP]             # (B, 2)
    bone = _bone(truth)
    collapsed = has_bone & (bone < _MIN_BONE)
    usable = joints_valid[..., protocol.root] & ~collapsed
    scale = torch.ones_like(bone)
    if protocol.scaled:
        usable = usable & has_bone
        scale = bone / _bone(joints).clamp(min=1e-9)

    def distances(predicted: Tensor, true: Tensor) -> Tensor:                       # (B, 2, n, 3) -> (B, 2, n)
        root = slice(protocol.root, protocol.root + 1)
        predicted = scale[..., None, None] * (predicted.double() - joints[..., root, :])
        return (predicted - (true.double() - truth[..., root, :])).norm(dim=-1) * _MILLIMETRES

    vertex_error = relative_error = None
    if vertices is not None:
        vertex_error = distances(vertices, targets.vertices).mean(dim=-1)
    if relative is not None:
        relative_error = (relative.double() - targets.relative.double()).norm(dim=-1) * _MILLIMETRES
    return SampleErrors(
        index=index.cpu().numpy(),
        annotated=joints_valid[..., WRIST].cpu().numpy(),
        joints=_scored(distances(joints, truth), usable[..., None] & joints_valid),
        vertices=_scored(vertex_error, usable & targets.vertices_valid.bool()),
        relative=_scored(relative_error, targets.relative_valid.bool() & ~collapsed.any(dim=-1)),
        scale=_scored(scale, usable),
    )


def _bone(joints: Tensor) -> Tensor:
    return (joints[..., MIDDLE_MCP, :] - joints[..., WRIST, :]).norm(dim=-1)


def _scored(values: Tensor | None, valid: Tensor) -> np.ndarray:
    """The values where they can be scored: NaN where not valid or not predicted at all, inf where not finite."""
    if values is None:
        return np.full(valid.shape, np.nan)
    values = torch.where(values.isfinite(), values, torch.inf)
    return torch.where(valid, values, torch.nan).cpu().numpy()


def merge_errors(parts: Sequence[SampleErrors]) -> SampleErrors:
    """All rows of several tables, ordered by index; a sample that occurs twice is kept once."""
    table = SampleErrors(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    _, rows = np.unique(table.index, return_index=True)
    return table.take(rows)


def summarise(protocol: Protocol, errors: SampleErrors) -> dict[str, Any]:
    """Means in millimetres as plain JSON values; None where no sample can be scored.

    Holds `mpjpe`, `mpvpe`, `mrrpe` over everything, the same for samples with a single annotated hand and with both
    (`groups`), for each hand (`hands`) and each joint, and the number of samples behind them. `auc` is the area
    under the share of joints within t, t from 0 to 50 mm, in percent, without sampling thresholds.
    """
    both = errors.annotated.all(axis=1)
    groups = {"all": errors, "single": errors.take(errors.annotated.any(axis=1) & ~both),
              "interacting": errors.take(both)}
    pooled = errors.joints[~np.isnan(errors.joints)]
    failed = np.isinf(errors.joints).any(axis=(1, 2)) | np.isinf(errors.vertices).any(axis=1)
    return {
        "protocol": {"name": protocol.name, "root": MANO21.names[protocol.root], "scaled": protocol.scaled,
                     "tip_vertices": list(protocol.tip_vertices), "averaging": protocol.averaging},
        **_means(protocol, errors),
        "mpjpe_no_root": _mean_joints(protocol, np.delete(errors.joints, protocol.root, axis=2)),
        "auc": _mean(100 * np.maximum(0, 1 - pooled / _AUC_END)),
        "groups": {name: _means(protocol, group) | {"samples": len(group.index)} for name, group in groups.items()},
        "hands": {hand.label: _hand_means(errors, hand) for hand in Hand},
        "counts": {"samples": len(errors.index), "mpjpe": int(pooled.size), "mpvpe": _count(errors.vertices),
                   "mrrpe": _count(errors.relative), "not_finite": int((failed | np.isinf(errors.relative)).sum())},
    }


def report_lines(summary: dict[str, Any]) -> list[str]:
    """The lines that evaluations of this family print."""
    lines = [f"{metric.upper()} for {group} hand sequences: {_millimetres(summary['groups'][group][metric])}"
             for metric in ("mpjpe", "mpvpe") for group in ("all", "single", "interacting")]
    return [*lines, f"MRRPE: {_millimetres(summary['mrrpe'])}"]


def _means(protocol: Protocol, errors: SampleErrors) -> dict[str, float | None]:
    return {"mpjpe": _mean_joints(protocol, errors.joints), "mpvpe": _mean(errors.vertices),
            "mrrpe": _mean(errors.relative)}


def _hand_means(errors: SampleErrors, hand: Hand) -> dict[str, Any]:
    joints = errors.joints[:, hand]
    return {
        "mpjpe": _mean(joints), "mpvpe": _mean(errors.vertices[:, hand]), "scale": _mean(errors.scale[:, hand]),
        "joints": {name: _mean(joints[:, joint]) for joint, name in enumerate(MANO21.names)},
        "samples": _count(errors.scale[:, hand]),
    }


def _mean_joints(protocol: Protocol, joints: np.ndarray) -> float | None:
    """Mean of joint errors (N, 2, n) in the protocol's order."""
    if protocol.averaging == "flat":
        return _mean(joints)
    means = [_mean(joints[:, hand, joint]) for hand, joint in np.ndindex(joints.shape[1:])]
    return _mean(np.array([mean for mean in means if mean is not None]))


def _mean(values: np.ndarray) -> float | None:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else None


def _count(values: np.ndarray) -> int:
    return int((~np.isnan(values)).sum())


def _millimetres(value: float | None) -> str:
    return "nothing to score" if value is None else f"{value:.2f} mm"
