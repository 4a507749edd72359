"""The ten named shape coordinates, as linear displacements per standard deviation.

Each stretches the skeleton: bones grow along their axis, flesh grows across it.

Legend: V vertices. Millimetres.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tool.dev.hand_builder.skeleton import FINGERS, PARENTS, finger_joints, joint_axes


class Growth(NamedTuple):
    """Relative growth of each bone per unit of one shape coordinate; the wrist's row is the palm's."""

    along: np.ndarray  # (16,)
    across: np.ndarray  # (16,)
    deep: np.ndarray  # (16,)


def shape_table() -> dict[str, Growth]:
    """The ten shape coordinates in order, one standard deviation each.

    With all ten drawn from N(0, 1), hands have the published spreads of hand length, breadth and circumference, wrist
    circumference and finger lengths (`tool/dev/measure_hand.py` names the sources and compares).
    """
    table = {
        "size": {name: (0.052, 0.052, 0.052) for name in ("palm", *FINGERS)},
        "finger length": {
            "index": (0.032, 0, 0), "middle": (0.053, 0, 0), "ring": (0.047, 0, 0), "pinky": (0.045, 0, 0),
        },
        "palm girth": {"palm": (0, 0.063, 0.05), **{name: (0, 0.06, 0.06) for name in FINGERS[:4]}},
        "thickness": {"palm": (0, 0, 0.05), **{name: (0, 0.02, 0.06) for name in FINGERS}},
        "palm length": {"palm": (0.048, 0, 0)},
        "thumb length": {"thumb": (0.055, 0, 0)},
        "finger width": {name: (0, 0.05, 0.03) for name in FINGERS},
        "index over ring": {"index": (0.02, 0, 0), "ring": (-0.02, 0, 0)},
        "pinky length": {"pinky": (0.043, 0, 0), "ring": (0.01, 0, 0)},
        "taper": {},
    }
    growths = {name: _growth(parts) for name, parts in table.items()}
    # Slimmer fingertips on fuller roots, and shorter last bones.
    for finger in FINGERS:
        growths["taper"].across[finger_joints(finger)] = (0.035, -0.01, -0.05)
        growths["taper"].deep[finger_joints(finger)] = (0.035, -0.01, -0.05)
        growths["taper"].along[finger_joints(finger)] = (0.02, 0.0, -0.03)
    return growths


def _growth(parts: dict[str, tuple[float, float, float]]) -> Growth:
    """Per-bone rows from (along, across, deep) for each finger and the palm."""
    rows = np.zeros((3, 16))
    for name, values in parts.items():
        rows[:, 0 if name == "palm" else finger_joints(name)] = np.array(values)[:, None] if name != "palm" else values
    return Growth(*rows)


def displacements(joints: np.ndarray, vertices: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Displacements of vertices (V, 3, 10) and joints (16, 3, 10) per unit of each shape coordinate."""
    moved = [_grow(growth, joints, vertices, weights) for growth in shape_table().values()]
    return tuple(np.stack(part, axis=-1) for part in zip(*moved, strict=True))


def _grow(growth: Growth, joints: np.ndarray, vertices: np.ndarray, weights: np.ndarray):
    """Displacements (V, 3) and (16, 3) of one shape coordinate, blended from those of the bones."""
    stretches = [_stretch(growth, j) for j in range(16)]
    shifts = np.zeros((16, 3))
    for j, parent in enumerate(PARENTS[1:], start=1):
        shifts[j] = shifts[parent] + stretches[parent] @ (joints[j] - joints[parent])
    per_bone = np.stack([shifts[j] + (vertices - joints[j]) @ stretches[j].T for j in range(16)], axis=1)  # (V, 16, 3)
    return np.einsum("vj,vjk->vk", weights, per_bone), shifts


def _stretch(growth: Growth, joint: int) -> np.ndarray:
    """Symmetric growth matrix (3, 3) of one bone: along it, across it and through its depth."""
    if joint == 0:
        axes = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])  # the palm: across is z, depth is y, length is x
    else:
        axes = joint_axes()[joint - 1]
    rates = np.array([growth.across[joint], growth.deep[joint], growth.along[joint]])
    return axes.T @ (rates[:, None] * axes)
