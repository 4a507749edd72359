"""Joint angles of single hands: named presets, correlated variation around them, and anatomical limits.

Angles are radians about the hand model's axes of each joint: flexion (curls towards the palm), spread (towards the
thumb side) and twist. Everything here is a right hand; a left hand is its mirror image.

Legend: B hands · 15 articulated joints in MODEL16 order without the wrist · 3 axes (flexion, spread, twist).
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from common.hands import MODEL16, Hand
from common.mano.load import BUILTIN_HAND
from common.mano.model import HandModel

FINGERS = ("thumb", "index", "middle", "ring", "pinky")
FLEXION, SPREAD, TWIST = range(3)

# Degrees: flexion of first and second joint for index..pinky, spread of the first (towards the thumb side), and the
# thumb's flexion, spread, twist, then flexion of its second and third joint. The last finger joint follows the second.
_PRESETS = {
    "flat": ((4, 4, 4, 4), (5, 5, 5, 5), (1, 0, 0, -1), (4, 2, 0, 4, 4)),
    "relaxed": ((16, 21, 24, 26), (24, 29, 32, 32), (2, 0, -2, -4), (8, -4, 4, 8, 12)),
    "fan": ((-2, -2, -2, -2), (6, 5, 6, 8), (12, 2, -9, -17), (-6, 18, 0, 2, 2)),
    "lid": ((9, 10, 11, 12), (13, 14, 15, 16), (3, 0, -2, -6), (-10, 18, 0, 4, 8)),
    "bent_back": ((-14, -15, -14, -13), (4, 3, 3, 4), (4, 0, -2, -6), (-8, 10, 0, -4, -8)),
    "cup": ((32, 34, 36, 38), (30, 32, 34, 34), (2, 0, -2, -5), (18, 8, 14, 10, 14)),
    "roof": ((58, 60, 60, 58), (6, 6, 6, 8), (1, 0, 0, -2), (14, 4, 10, 8, 8)),
    "grip": ((50, 56, 58, 60), (58, 60, 62, 60), (-1, -1, -1, -2), (18, 9, 20, 17, 24)),
    "fist": ((75, 81, 69, 76), (97, 92, 96, 91), (-2, -1, -1, -2), (21, 29, -14, 54, 26)),
    "hook": ((0, 2, 4, 6), (62, 66, 68, 66), (1, 0, 0, -2), (8, 4, 6, 12, 16)),
    "claw": ((-8, -6, -4, -4), (52, 54, 56, 56), (12, 2, -8, -15), (-4, 16, 4, 16, 30)),
    "point": ((7, 73, 69, 71), (5, 79, 90, 89), (0, 5, -1, -3), (24, 2, 3, 24, 34)),
    "victory": ((0, 2, 74, 78), (5, 2, 66, 74), (10, -9, 5, -1), (38, -1, 1, 27, 31)),
    "three": ((0, 0, 4, 66), (6, 6, 10, 80), (8, 0, -8, 0), (34, -5, 30, 40, 45)),
    "four": ((-2, 0, 0, 0), (5, 5, 6, 8), (10, 2, -7, -15), (39, -13, -12, 30, 10)),
    "thumb_and_index": ((0, 62, 71, 76), (8, 84, 92, 89), (4, 2, 0, -1), (-10, 22, -4, -4, -6)),
    "thumb_to_middle": ((0, 2, 70, 74), (8, 8, 88, 88), (8, -6, 0, 0), (-8, 20, -4, -2, -4)),
    "thumb_up": ((66, 68, 72, 76), (87, 92, 92, 87), (4, 3, 0, -2), (-14, 12, -6, -8, -10)),
    "pinky_up": ((72, 76, 62, 3), (100, 92, 78, 8), (-2, -1, -1, -6), (22, 27, -12, 52, 27)),
    "horns": ((0, 73, 71, 7), (2, 80, 94, 14), (8, 9, 5, -10), (20, 2, 4, 27, 36)),
    "call": ((62, 63, 60, 3), (84, 94, 92, 12), (3, 4, 2, -14), (-14, 20, -6, -6, -10)),
    "pinch": ((39, 23, 21, 20), (41, 30, 26, 24), (1, 0, -2, -6), (26, 6, 14, 9, 6)),
    "pinch_middle": ((14, 39, 20, 20), (22, 47, 32, 26), (6, 2, -4, -10), (38, 1, 19, 12, 5)),
    "pinch_ring": ((9, 11, 48, 32), (13, 17, 40, 31), (8, 3, 8, -8), (39, 2, 20, 20, 9)),
    "pinch_pinky": ((6, 12, 46, 72), (10, 13, 26, 27), (8, 2, -4, 8), (39, 3, 14, 48, 8)),
    "laced": ((10, 10, 10, 10), (8, 8, 8, 8), (20, 7, -8, -20), (-6, 10, 0, 6, 6)),
    "half_folded": ((28, 28, 28, 28), (30, 30, 30, 30), (19, 6, -7, -19), (6, 10, 4, 8, 10)),
    "folded": ((43, 44, 46, 46), (48, 50, 50, 48), (12, 6, -7, -16), (8, 12, 10, 10, 14)),
    "palm_thumb": ((2, 2, 2, 4), (6, 5, 6, 8), (2, 0, -1, -4), (39, -14, -14, 35, 9)),
}
PRESETS = tuple(_PRESETS)
_DISTAL_SHARE = 2 / 3       # of its flexion by which the second finger joint moves the last
# How far each finger, index to pinky, drags the others along: the middle and ring fingers are the least independent.
_COUPLING = np.array([[1.0, 0.25, 0.08, 0.03], [0.25, 1.0, 0.40, 0.12], [0.08, 0.40, 1.0, 0.45],
                      [0.03, 0.12, 0.45, 1.0]])
_BENT_SPREAD = 0.3          # share of its range of spread that a finger keeps when bent at a right angle


@dataclass(frozen=True)
class Rig:
    """Joint axes and limits of the built-in right hand."""

    axes: Tensor            # (15, 3, 3)    unit rows in the rest frame
    limits: Tensor          # (15, 3, 2)    lowest and highest angle, radians
    is_knuckle: Tensor      # (15,) bool    first joints of index to pinky

    def to(self, device: torch.device) -> "Rig":
        return Rig(self.axes.to(device), self.limits.to(device), self.is_knuckle.to(device))


@cache
def load_rig() -> Rig:
    with np.load(BUILTIN_HAND, allow_pickle=False) as file:
        axes, limits = (torch.from_numpy(file[key]).float() for key in ("joint_axes", "joint_limits"))
    return Rig(axes, limits, torch.tensor([name[-1] == "1" and name != "thumb1" for name in MODEL16.names[1:]]))


def sample_angles(rig: Rig, preset: str, looseness: float, rng: np.random.Generator) -> np.ndarray:
    """Joint angles (15, 3) varied around a preset, within the limits.

    looseness: scale of the variation; 0 gives the preset itself, 1 a wide natural range.
    """
    first, second, spread, thumb = (np.radians(np.array(row, dtype=float)) for row in _PRESETS[preset])
    ramp = np.linspace(-1, 1, 4)
    together, gradient = rng.normal(0, 1, 2) * looseness * np.radians([11, 6])
    alone = rng.normal(0, 1, (2, 4)) @ _COUPLING * looseness * np.radians([[6], [8]])
    first = first + 0.7 * together + gradient * ramp + alone[0]
    # The second joint mostly bends along with the first.
    second = second + 1.0 * together + gradient * ramp + 0.5 * alone[0] + alone[1]
    fan = rng.normal(0, 1) * looseness * np.radians(5)
    spread = spread - fan * ramp + rng.normal(0, 1, 4) * looseness * np.radians(2)

    angles = np.zeros((15, 3))
    for k, finger in enumerate(FINGERS[1:]):
        base = MODEL16.index(f"{finger}1") - 1
        angles[base] = first[k], spread[k], rng.normal(0, 1) * looseness * np.radians(2)
        angles[base + 1, FLEXION] = second[k]
        angles[base + 2, FLEXION] = _DISTAL_SHARE * max(second[k], 0) + rng.normal(0, 1) * looseness * np.radians(4)
    base = MODEL16.index("thumb1") - 1
    # Opposition is one movement: flexion, less spread and twist go together.
    opposed = rng.normal(0, 1) * looseness
    thumb = thumb + opposed * np.radians([7, -4, 6, 5, 6])
    thumb = thumb + rng.normal(0, 1, 5) * looseness * np.radians([5, 7, 3, 7, 9])
    angles[base], angles[base + 1, FLEXION], angles[base + 2, FLEXION] = thumb[:3], thumb[3], thumb[4]
    return clamp_angles(rig, torch.from_numpy(angles).float()).double().numpy()


def blend_angles(rig: Rig, one: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Angles (15, 3) interpolated between two poses by a random weight per finger, similar for neighbours."""
    weights = rng.uniform(-0.3, 1.3) + np.cumsum(rng.normal(0, 0.25, 5))            # thumb to pinky
    share = {finger: float(np.clip(weight, 0, 1)) for finger, weight in zip(FINGERS, weights, strict=True)}
    rows = np.array([share[name[:-1]] for name in MODEL16.names[1:]])[:, None]
    return clamp_angles(rig, torch.from_numpy((1 - rows) * one + rows * other).float()).double().numpy()


def clamp_angles(rig: Rig, angles: Tensor) -> Tensor:
    """Angles (..., 15, 3) clamped to the limits; the range of spread shrinks as a finger bends."""
    angles = torch.minimum(torch.maximum(angles, rig.limits[..., 0]), rig.limits[..., 1])
    room = _BENT_SPREAD + (1 - _BENT_SPREAD) * angles[..., FLEXION].clamp(min=0).cos()
    room = torch.where(rig.is_knuckle, room, 1.0)
    spread = torch.minimum(torch.maximum(angles[..., SPREAD], rig.limits[:, SPREAD, 0] * room),
                           rig.limits[:, SPREAD, 1] * room)
    return torch.stack([angles[..., FLEXION], spread, angles[..., TWIST]], dim=-1)


def finger_rotations(rig: Rig, angles: Tensor) -> Tensor:
    """Local rotations (..., 15, 3, 3) of a right hand: twist first, then spread, then flexion."""
    return rig.axes.mT @ euler_matrices(angles) @ rig.axes


def euler_matrices(angles: Tensor) -> Tensor:
    """Rotations Rx·Ry·Rz (..., 3, 3) of angles (..., 3): intrinsic about x, then y, then z."""
    (cf, cs, ct), (sf, ss, st) = angles.cos().unbind(-1), angles.sin().unbind(-1)
    rows = [cs * ct, -cs * st, ss,
            cf * st + sf * ss * ct, cf * ct - sf * ss * st, -sf * cs,
            sf * st - cf * ss * ct, sf * ct + cf * ss * st, cf * cs]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def rest_joints(model: HandModel, shape: np.ndarray) -> Tensor:
    """Rest joints (16, 3) of a right hand of `shape` (10,), float64."""
    return model.regressor[Hand.RIGHT].double() @ shaped_template(model, shape)


def shaped_template(model: HandModel, shape: np.ndarray) -> Tensor:
    """Rest vertices (778, 3) of a right hand of `shape` (10,), float64."""
    offsets = model.shapedirs[Hand.RIGHT].double() @ torch.from_numpy(shape)
    return model.template[Hand.RIGHT].double() + offsets
