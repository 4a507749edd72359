"""Joints of the built-in right hand: rest positions, axes, limits, and forward kinematics.

Rest frame: fingers along -x, back of the hand +y, thumb on the +z side.  Millimetres, radians.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from common.hands import MODEL16

FINGERS = ("index", "middle", "pinky", "ring", "thumb")  # MANO's order
PARENTS = np.array(MODEL16.parents)
WRIST = np.array([90.0, 0.0, 0.0])

# wrist → 1 → 2 → 3 → tip, the means of six measured adult hands.
BONE_LENGTHS = {
    "thumb": (38.2, 37.0, 31.2, 27.7),
    "index": (85.9, 41.2, 24.7, 21.9),
    "middle": (84.4, 42.7, 29.0, 22.3),
    "ring": (80.4, 39.0, 26.9, 21.5),
    "pinky": (77.3, 29.9, 19.5, 18.8),
}

# First joint relative to the wrist: (height y, sideways z).  The knuckles form an arch, highest at the middle.
BASE_OFFSETS = {"index": (1.5, 21.5), "middle": (3.5, 0.5), "ring": (1.0, -18.5), "pinky": (-4.5, -35.0)}

# Resting directions of the bones: degrees towards the thumb, then degrees below the palm plane per bone.
SPREADS = {
    "index": (6.5, 5.5, 5.0),
    "middle": (0.5, 0.0, 0.0),
    "ring": (-5.5, -5.0, -4.5),
    "pinky": (-13.0, -11.5, -10.5),
    "thumb": (43.0, 33.0, 31.0),
}
PITCHES = {
    "index": (3.0, 6.0, 8.5),
    "middle": (3.0, 6.5, 9.0),
    "ring": (3.5, 7.0, 9.5),
    "pinky": (3.0, 6.0, 8.5),
    "thumb": (16.0, 9.0, 4.0),
}
THUMB_BASE = (-25.0, -11.0, 26.5)  # direction wrist → carpal joint
THUMB_ROLL = 58.0  # degrees by which the thumb nail is rotated from the back of the hand to the radial side


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., 3) scaled to length 1."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def finger_joints(finger: str) -> slice:
    """Indices of the three model joints of `finger`."""
    first = 1 + 3 * FINGERS.index(finger)
    return slice(first, first + 3)


def bone_directions(finger: str) -> np.ndarray:
    """Unit directions (3, 3) of the finger's three bones at rest, towards the tip."""
    spread = np.radians(SPREADS[finger])
    pitch = np.radians(PITCHES[finger])
    return np.stack([-np.cos(spread) * np.cos(pitch), -np.sin(pitch), np.sin(spread) * np.cos(pitch)], axis=-1)


def rest_joints() -> tuple[np.ndarray, np.ndarray]:
    """Joints (16, 3) in MANO's order and fingertips (5, 3) in FINGERS order, at rest."""
    joints, tips = np.tile(WRIST, (16, 1)), np.zeros((5, 3))
    for k, finger in enumerate(FINGERS):
        first, *lengths = BONE_LENGTHS[finger]
        chain = [_finger_base(finger, first)]
        for direction, length in zip(bone_directions(finger), lengths, strict=True):
            chain.append(chain[-1] + length * direction)
        joints[finger_joints(finger)], tips[k] = chain[:3], chain[3]
    return joints, tips


def _finger_base(finger: str, length: float) -> np.ndarray:
    """First joint (3,) of a finger, exactly `length` from the wrist."""
    if finger == "thumb":
        return WRIST + length * unit(np.array(THUMB_BASE))
    y, z = BASE_OFFSETS[finger]
    return WRIST + np.array([-np.sqrt(length**2 - y**2 - z**2), y, z])


@cache
def joint_axes() -> np.ndarray:
    """Axes (15, 3, 3) of the articulated joints at rest: rows flexion, spread and bone, a right-handed frame.

    Positive flexion curls a finger towards the palm (the thumb towards palm and fingers); positive spread moves it
    towards the thumb side (the thumb away from the fingers). The spread axis points out of the nail side of the bone.
    """
    axes = np.zeros((15, 3, 3))
    for k, finger in enumerate(FINGERS):
        for j, bone in enumerate(bone_directions(finger)):
            flat = unit(np.cross(bone, [0.0, 1.0, 0.0]))  # horizontal, across the bone
            dorsal = np.cross(flat, bone)
            if finger == "thumb":
                radial = -flat if flat[2] < 0 else flat
                roll = np.radians(THUMB_ROLL)
                dorsal = np.cos(roll) * dorsal + np.sin(roll) * radial
            axes[3 * k + j] = np.stack([np.cross(dorsal, bone), dorsal, bone])
    axes.flags.writeable = False  # shared by all callers
    return axes


# Degrees of (flexion, spread, twist) for each joint.
FINGER_LIMITS = (((-20, 90), (-20, 20), (-6, 6)), ((0, 110), (-2, 2), (-3, 3)), ((-5, 80), (-2, 2), (-3, 3)))
THUMB_LIMITS = (((-20, 40), (-25, 30), (-15, 35)), ((-15, 60), (-8, 8), (-5, 10)), ((-20, 80), (-3, 3), (-3, 3)))

# Degrees of flexion per joint and spread at the first, for a hand at rest; curl grows towards the pinky.
RELAXED = {
    "index": (16, 24, 12, -2.0),
    "middle": (21, 29, 15, 0.0),
    "ring": (24, 32, 16, 2.0),
    "pinky": (26, 32, 16, 4.0),
    "thumb": (8, 8, 12, -4.0),
}


def joint_limits() -> np.ndarray:
    """Lowest and highest angle about each row of `joint_axes`, (15, 3, 2) radians."""
    rows = [THUMB_LIMITS if finger == "thumb" else FINGER_LIMITS for finger in FINGERS]
    return np.radians(np.array(rows, dtype=np.float64).reshape(15, 3, 2))


def _rotation_matrices(axis_angle: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) of axis-angle vectors (..., 3), by Rodrigues' formula."""
    angle = np.linalg.norm(axis_angle, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(axis_angle / np.maximum(angle[..., 0], 1e-12), -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*x.shape, 3, 3)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)


def joint_rotations(angles: np.ndarray) -> np.ndarray:
    """Rotations (15, 3, 3) of `angles` (15, 3) about the joint axes: twist first, then spread, then flexion."""
    axes = joint_axes()
    flexion, spread, twist = (_rotation_matrices(angles[:, k, None] * axes[:, k]) for k in range(3))
    return flexion @ spread @ twist


def relaxed_pose() -> np.ndarray:
    """Axis-angle (45,) of a relaxed hand."""
    angles = np.zeros((15, 3))
    for k, finger in enumerate(FINGERS):
        *flexion, spread = RELAXED[finger]
        angles[3 * k : 3 * k + 3, 0] = np.radians(flexion)
        angles[3 * k, 1] = np.radians(spread)
    return _axis_angle(joint_rotations(angles)).ravel()


def _axis_angle(matrices: np.ndarray) -> np.ndarray:
    """Axis-angle (..., 3) of rotations (..., 3, 3) by less than π."""
    skew = matrices - np.swapaxes(matrices, -1, -2)
    axis = np.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], -1) / 2  # sin(angle) · axis
    sine, trace = np.linalg.norm(axis, axis=-1), np.trace(matrices, axis1=-2, axis2=-1)
    angle = np.arctan2(sine, (trace - 1) / 2)
    return axis * (angle / np.maximum(sine, 1e-12))[..., None]


def bone_transforms(joints: np.ndarray, local: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Forward kinematics: global rotations (16, 3, 3) and joints (16, 3) of local rotations (16, 3, 3)."""
    rotations, positions = local.copy(), joints.copy()
    for j, parent in enumerate(PARENTS[1:], start=1):
        rotations[j] = rotations[parent] @ local[j]
        positions[j] = positions[parent] + rotations[parent] @ (joints[j] - joints[parent])
    return rotations, positions
