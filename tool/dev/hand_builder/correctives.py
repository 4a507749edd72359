"""Pose correctives (pose blend shapes): offsets that keep bent joints from collapsing.

The flesh is bent bone by bone and keeps its volume, because its tubes are solids; the skinned mesh is projected onto
it, and the offsets are regressed on the pose features, joint by joint and locally.

Legend: V vertices · R vertices near a joint · S poses of a joint. Millimetres.
"""

from __future__ import annotations

import numpy as np

from tool.dev.hand_builder.field import Flesh, hand_field, onto_level_set, posed_flesh
from tool.dev.hand_builder.skeleton import FINGERS, PARENTS, bone_transforms, joint_limits, joint_rotations

RIDGE = 0.02  # of the ridge regression
SWELLING = 0.25  # mm by which flesh squeezed out of the inner side of a right-angled bend swells
MOST_OFFSET = 6.0  # mm a corrective may move a vertex in a training pose


def skin(joints: np.ndarray, vertices: np.ndarray, weights: np.ndarray, local: np.ndarray):
    """Linear blend skinning: posed vertices (V, 3) and their linear maps (V, 3, 3).

    joints: (16, 3).  weights: (V, 16).  local: (16, 3, 3) joint rotations.
    """
    rotations, positions = bone_transforms(joints, local)
    maps = np.einsum("vj,jab->vab", weights, rotations)
    shifts = weights @ (positions - np.einsum("jab,jb->ja", rotations, joints))
    return np.einsum("vab,vb->va", maps, vertices) + shifts, maps


def pose_correctives(flesh: Flesh, joints: np.ndarray, vertices: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Offsets (V, 3, 135) per entry of the flattened R_j − I, j = 1 … 15.

    They are not smoothed over the mesh: that would push skin through itself in the folds.
    """
    correctives = np.zeros((len(vertices), 3, 15, 9))
    for joint in range(1, 16):
        near = weights[:, joint] * (1 - _distal_weight(weights, joint)) + weights[:, PARENTS[joint]] * weights[:, joint]
        mask = np.clip(4 * near, 0, 1)
        rows = np.nonzero(mask > 0.01)[0]
        features, offsets = _samples(flesh, joints, vertices, weights, joint, rows)
        gram = features.T @ features + RIDGE * np.eye(9)
        solution = np.linalg.solve(gram, features.T @ offsets.reshape(len(features), -1))  # (9, rows · 3)
        correctives[rows, :, joint - 1] = mask[rows, None, None] * solution.T.reshape(len(rows), 3, 9)
    return correctives.reshape(len(vertices), 3, 135)


def _distal_weight(weights: np.ndarray, joint: int) -> np.ndarray:
    """Weight (V,) of the bones beyond `joint`'s own."""
    next_finger = 3 * ((joint - 1) // 3) + 4
    return weights[:, joint + 1 : next_finger].sum(1)


def _samples(flesh: Flesh, joints: np.ndarray, vertices: np.ndarray, weights: np.ndarray, joint: int, rows: np.ndarray):
    """Pose features (S, 9) and rest-frame offsets (S, R, 3) of the vertices `rows` (R,) over the range of one joint."""
    finger = FINGERS[(joint - 1) // 3]
    own = vertices[rows]
    level = hand_field(flesh, own, [finger])  # the control vertices lie a little outside the surface
    features, offsets = [], []
    for angles in _angle_grid(joint):
        local = np.tile(np.eye(3), (16, 1, 1))
        pose = np.zeros((15, 3))
        pose[joint - 1] = angles
        local[1:] = joint_rotations(pose)
        bent = posed_flesh(flesh, joints, *bone_transforms(joints, local))
        swollen = level + SWELLING * (1 - np.cos(angles[0]))
        skinned, maps = skin(joints, own, weights[rows], local)
        target = onto_level_set(lambda p: hand_field(bent, p, [finger]), skinned, swollen, 3, reach=2.0)  # noqa: B023
        step = np.linalg.solve(maps, (target - skinned)[..., None])[..., 0]
        size = np.linalg.norm(step, axis=-1, keepdims=True)
        offsets.append(step * np.minimum(1, MOST_OFFSET / np.maximum(size, 1e-9)))
        features.append((local[joint] - np.eye(3)).ravel())
    return np.array(features), np.array(offsets)


def _angle_grid(joint: int) -> np.ndarray:
    """Angles (S, 3) that cover the limits of a joint: flexion finely, spread and twist coarsely."""
    (f0, f1), (s0, s1), (t0, t1) = joint_limits()[joint - 1]
    spreads = (s0, 0.0, s1) if s1 - s0 > 0.2 else (0.0,)
    twists = (t0, 0.0, t1) if t1 - t0 > 0.4 else (0.0,)
    return np.array([(f, s, t) for f in np.linspace(f0, f1, 8) for s in spreads for t in twists])
