"""Skinning weights and joint regressor of the built-in hand.

Legend: V = 778 vertices · 16 joints in MANO's order. Millimetres.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.optimize import nnls

from data.synthetic.subdivision import adjacency, edge_table
from tool.dev.hand_builder.field import Flesh, Tube, along_spine, foot, knots, tube_field
from tool.dev.hand_builder.skeleton import FINGERS, finger_joints

# Lengths of the blend zone before and after each joint, mm: on the back, then on the palm side, where skin must
# fold over a longer stretch. The first joint's zone reaches to the web.
BEND_ZONES = (((11, 14), (17, 21)), ((6.5, 6.5), (10, 10)), ((5, 5), (8, 8)))
THUMB_BEND_ZONES = (((14, 28), (18, 32)), ((8, 8), (12, 11)), ((6.5, 6.5), (9, 9)))
WEB_REACH, THUMB_WEB_REACH = 9.0, 15.0  # mm from a finger over which skin stops following it
SMOOTHING = 3  # iterations of averaging with the neighbours
MOST_BONES = 4


def skinning_weights(flesh: Flesh, vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Weights (V, 16): non-negative, at most four per vertex, rows summing to 1."""
    share = _finger_share(flesh, vertices)
    weights = np.zeros((len(vertices), 16))
    for k, finger in enumerate(FINGERS):
        weights[:, finger_joints(finger)] = share[:, k, None] * _along_finger(finger, flesh.fingers[finger], vertices)
    weights[:, 0] = 1 - weights.sum(1)

    neighbours = adjacency(edge_table(faces)[0], len(vertices))
    average = sparse.diags(1 / np.asarray(neighbours.sum(1)).ravel()) @ neighbours
    for _ in range(SMOOTHING):
        weights = 0.5 * weights + 0.5 * (average @ weights)
    return _sparsified(weights)


def _step(position: np.ndarray, joint: float, zone) -> np.ndarray:
    """0 before the blend zone of a joint, 1 after it. Half linear, half smoothstep: even bending folds least."""
    x = np.clip((position - joint + zone[0]) / (zone[0] + zone[1]), 0, 1)
    return 0.5 * x + 0.5 * x * x * (3 - 2 * x)


def _finger_share(flesh: Flesh, vertices: np.ndarray) -> np.ndarray:
    """Share of each finger in each vertex (V, 5), by distance to the finger's tube; rows summing to 1."""
    distance = np.stack([tube_field(flesh.fingers[name], vertices) for name in FINGERS], -1)
    distance = np.maximum(distance, -1.5)
    closeness = np.exp(-(distance - distance.min(1, keepdims=True)) / 0.8)  # mm: fingers side by side share no skin
    return closeness / closeness.sum(1, keepdims=True)


def _along_finger(finger: str, tube: Tube, vertices: np.ndarray) -> np.ndarray:
    """Weights (V, 3) of the finger's bones, by position along the finger; the rest belongs to the wrist."""
    at = foot(tube, vertices)
    first = 0 if finger == "thumb" else 1
    joint_at, position = knots(tube)[first:], along_spine(tube, at)
    palmar = 0.5 - 0.5 * at.rise / np.maximum(np.hypot(at.rise, at.side), 1e-9)

    past = [
        (1 - palmar) * _step(position, joint_at[k], back) + palmar * _step(position, joint_at[k], palm)
        for k, (back, palm) in enumerate(THUMB_BEND_ZONES if finger == "thumb" else BEND_ZONES)
    ]
    # Skin away from the finger's tube (palm, web) follows the first bone less, and the others hardly.
    away = np.maximum(tube_field(tube, vertices), 0)
    past[0] = past[0] * np.exp(-((away / (THUMB_WEB_REACH if finger == "thumb" else WEB_REACH)) ** 2))
    past[1] = np.minimum(past[1] * np.exp(-((away / WEB_REACH) ** 2)), past[0])
    past[2] = np.minimum(past[2], past[1])
    return np.stack([past[0] - past[1], past[1] - past[2], past[2]], -1)


def _sparsified(weights: np.ndarray) -> np.ndarray:
    """Rows restricted to their four largest entries, without tiny ones, summing to 1."""
    smallest_kept = -np.sort(-weights, axis=1)[:, MOST_BONES - 1 : MOST_BONES]
    weights = np.where((weights >= smallest_kept) & (weights > 0.004), weights, 0)
    return weights / weights.sum(1, keepdims=True)


def joint_regressor(joints: np.ndarray, vertices: np.ndarray, shapes: np.ndarray,
                    joint_shifts: np.ndarray) -> np.ndarray:
    """Joint regressor (16, V): non-negative rows summing to 1, over the vertices around each joint.

    shapes: (V, 3, 10) and joint_shifts: (16, 3, 10), displacements per unit of shape; the regressor also fits these.
    """
    regressor = np.zeros((16, len(vertices)))
    for j, joint in enumerate(joints):
        ring = _vertices_around(joint, vertices)
        rows = [vertices[ring].T - joint[:, None], 3.0 * (shapes[ring] - joint_shifts[j]).reshape(len(ring), -1).T]
        system = np.concatenate([*rows, 30.0 * np.ones((1, len(ring))), 1.0 * np.eye(len(ring))])
        wanted = np.concatenate([np.zeros(33), [30.0], np.full(len(ring), 1 / len(ring))])
        solution = nnls(system, wanted)[0]
        regressor[j, ring] = solution / solution.sum()
    return regressor


def _vertices_around(joint: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """Indices of the vertices in a ball around the joint that reaches a little beyond the nearest skin."""
    distance = np.linalg.norm(vertices - joint, axis=1)
    reach = max(1.6 * np.sort(distance)[4], np.sort(distance)[15])
    return np.nonzero(distance <= reach)[0]
