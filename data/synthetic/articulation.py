"""How single hands bend: joint angles inside anatomical limits, with fingers that move together.

Angles are radians about the hand model's own axes for each joint: flexion (curls towards the palm), spread (towards
the thumb side) and twist. Everything here is a right hand; a left hand is its mirror image.

Legend: B hands · 15 articulated joints in MODEL16 order without the wrist · 3 axes (flexion, spread, twist).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.hands import MODEL16, Hand
from common.mano import BUILTIN_HAND, HandModel

FINGERS = ("thumb", "index", "middle", "ring", "pinky")
FLEXION, SPREAD, TWIST = range(3)

# Degrees: flexion of first and second joint for index..pinky, spread of the first (towards the thumb side), and the
# thumb's flexion, spread, twist, then flexion of its second and third joint. The last finger joint follows the second.
_PRESETS = {
    "flat": ((4, 4, 4, 4), (5, 5, 5, 5), (1, 0, 0, -1), (4, 2, 0, 4, 4)),
    "relaxed": ((16, 21, 24, 26), (24, 29, 32, 32), (2, 0, -2, -4), (8, -4, 4, 8, 12)),
    "fan": ((-2, -2, -2, -2), (6, 5, 6, 8), (12, 2, -9, -17), (-6, 18, 0, 2, 2)),
    "cup": ((32, 34, 36, 38), (30, 32, 34, 34), (2, 0, -2, -5), (18, 8, 14, 10, 14)),
    "grip": ((52, 56, 58, 60), (56, 60, 62, 60), (0, 0, 0, -2), (22, 6, 20, 18, 26)),
    "fist": ((76, 80, 82, 82), (92, 96, 96, 94), (0, 0, 0, 0), (28, -4, 24, 36, 44)),
    "hook": ((0, 2, 4, 6), (62, 66, 68, 66), (1, 0, 0, -2), (8, 4, 6, 12, 16)),
    "point": ((2, 62, 70, 72), (6, 82, 90, 88), (0, 0, 0, 0), (26, 0, 20, 30, 34)),
    "victory": ((0, 2, 72, 74), (6, 6, 90, 88), (10, -9, 0, 0), (28, -6, 24, 34, 40)),
    "thumb_up": ((70, 74, 76, 76), (88, 92, 94, 92), (0, 0, 0, 0), (-14, 12, -6, -8, -10)),
    "pinch": ((44, 26, 22, 20), (42, 30, 26, 24), (0, 0, -2, -6), (24, 12, 22, 14, 22)),
    "horns": ((2, 76, 78, 6), (6, 92, 92, 10), (8, 0, 0, -10), (26, 0, 22, 32, 36)),
    "count": ((0, 0, 4, 66), (6, 6, 10, 80), (8, 0, -8, 0), (30, -8, 28, 38, 44)),
}
PRESETS = tuple(_PRESETS)
_DISTAL_SHARE = 2 / 3       # the last finger joint cannot be held back: it follows the second


@dataclass(frozen=True)
class Rig:
    """The built-in right hand's joint axes and limits."""

    axes: Tensor            # (15, 3, 3)    unit rows in the rest frame
    limits: Tensor          # (15, 3, 2)    lowest and highest angle, radians


def load_rig() -> Rig:
    with np.load(BUILTIN_HAND, allow_pickle=False) as file:
        return Rig(torch.from_numpy(file["joint_axes"]).float(), torch.from_numpy(file["joint_limits"]).float())


def sample_angles(rig: Rig, preset: str, looseness: float, rng: np.random.Generator) -> np.ndarray:
    """Joint angles (15, 3) round a preset.

    looseness: 0 gives the preset itself, 1 a wide spread of natural variations.
    """
    first, second, spread, thumb = (np.radians(np.array(row, dtype=float)) for row in _PRESETS[preset])
    together, gradient = rng.normal(0, 1, 2) * looseness * np.radians([13, 6])
    ramp = np.linspace(-1, 1, 4)
    alone = rng.normal(0, 1, (2, 4)) * looseness * np.radians([[7], [9]])
    first = first + 0.7 * together + gradient * ramp + alone[0]
    second = second + 1.0 * together + gradient * ramp + alone[1]
    # Fingers fan out together, and a bent finger cannot be spread.
    fan = rng.normal(0, 1) * looseness * np.radians(5)
    spread = spread - fan * ramp + rng.normal(0, 1, 4) * looseness * np.radians(2.5)
    spread = spread * np.cos(np.clip(first, 0, np.pi / 2))

    angles = np.zeros((15, 3))
    for k, finger in enumerate(FINGERS[1:]):
        base = MODEL16.index(f"{finger}1") - 1
        angles[base] = first[k], spread[k], rng.normal(0, 1) * looseness * np.radians(2)
        angles[base + 1, FLEXION] = second[k]
        angles[base + 2, FLEXION] = _DISTAL_SHARE * second[k] + rng.normal(0, 1) * looseness * np.radians(4)
    base = MODEL16.index("thumb1") - 1
    thumb = thumb + rng.normal(0, 1, 5) * looseness * np.radians([9, 9, 7, 10, 13])
    angles[base], angles[base + 1, FLEXION], angles[base + 2, FLEXION] = thumb[:3], thumb[3], thumb[4]
    return clamp_angles(rig, torch.from_numpy(angles).float()).double().numpy()


def clamp_angles(rig: Rig, angles: Tensor) -> Tensor:
    """The nearest angles (..., 15, 3) inside the limits."""
    return torch.minimum(torch.maximum(angles, rig.limits[..., 0]), rig.limits[..., 1])


def finger_rotations(rig: Rig, angles: Tensor) -> Tensor:
    """Local rotations (..., 15, 3, 3) of a right hand: twist first, then spread, then flexion."""
    flexion, spread, twist = (_turn(rig.axes[:, k], angles[..., k]) for k in range(3))
    return flexion @ spread @ twist


def _turn(axis: Tensor, angle: Tensor) -> Tensor:
    """Rotations (..., 15, 3, 3) about unit axes (15, 3) by Rodrigues' formula."""
    x, y, z = axis.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    sine, cosine = angle.sin()[..., None, None], angle.cos()[..., None, None]
    return torch.eye(3, dtype=axis.dtype) + sine * cross + (1 - cosine) * (cross @ cross)


def rest_joints(model: HandModel, shape: np.ndarray) -> Tensor:
    """Where the joints (16, 3) of a right hand of `shape` (10,) rest, float64."""
    vertices = shaped_template(model, shape)
    return model.regressor[Hand.RIGHT].double() @ vertices


def shaped_template(model: HandModel, shape: np.ndarray) -> Tensor:
    """Vertices (778, 3) of a right hand of `shape` (10,) at rest, float64."""
    offsets = model.shapedirs[Hand.RIGHT].double() @ torch.from_numpy(shape)
    return model.template[Hand.RIGHT].double() + offsets
