"""Skin channels for colour, and relief.

Nails with their lunulae (moons) and edges, creases, knuckles, the palm side, reddish tips, pads (cushions with more
blood), veins and tendons. Channels and relief belong to the vertices of the subdivision surface at rest, 1 to 3 mm
apart, so lines are about that wide; the first 778 rows are those of the control vertices. Palm and back are drawn as
maps projected along y: (x, z).

Legend: N points · K spine points. Millimetres.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.interpolate import CubicSpline

from tool.dev.hand_builder.field import Flesh, along_spine, foot, knots, tube_field
from tool.dev.hand_builder.skeleton import FINGERS, finger_joints, rest_joints

CHANNELS = ("nail", "moon", "nail edge", "crease", "knuckle", "palm", "tip", "pad", "vein", "tendon")

# Polylines (x, z) in the palm, with half width and depth.
PALM_LINES = {
    "heart": (((17, -46), (13, -35), (9, -21), (6, -7), (1, 4), (-7, 11)), 1.4, 0.5),
    "head": (((9, 33), (14, 22), (20, 8), (26, -6), (33, -20), (38, -28)), 1.4, 0.45),
    "life": (((9, 33), (13, 27), (22, 19), (34, 13), (48, 9), (64, 8), (79, 11)), 1.5, 0.5),
    "wrist": (((87, -30), (89, -12), (89, 10), (86, 30)), 1.8, 0.25),
    "upper wrist": (((95, -30), (96, 0), (95, 30)), 2.0, 0.15),
}

# Dorsal veins (x, z): from between the knuckles they join towards the wrist.
VEINS = (
    ((-2, 11), (16, 11), (34, 14), (52, 11), (74, 15), (108, 17)),
    ((2, -9), (20, -8), (36, -4), (52, 11)),
    ((20, -8), (40, -15), (62, -17), (84, -13), (108, -6)),
    ((10, -27), (28, -25), (40, -15)),
    ((40, 27), (56, 23), (74, 15)),
)
TENDON_START = (76.0, 1.0)  # (x, z) from which the extensor tendons fan out to the knuckles

# Position of the crease between finger and palm, as a fraction of the first bone (the thumb: its second).
BASE_CREASES = {"index": 0.58, "middle": 0.55, "ring": 0.56, "pinky": 0.5, "thumb": 0.29}
# Creases at the joints: (spine point of the tube, fraction to the next), offsets of the parallel lines, depth.
FINGER_CREASES = (((2, 0.0), (-1.3, 1.3), 0.5), ((3, 0.0), (0.0,), 0.5))
THUMB_CREASES = (((2, 0.0), (-1.2, 1.2), 0.5),)
WRINKLES = ((2, 5.5, 0.22), (3, 3.2, 0.14))  # spine point, half length of the wrinkled patch, depth
THUMB_WRINKLES = ((2, 5.0, 0.2),)

NAIL_START, NAIL_END, NAIL_WIDTH = 0.41, 0.94, 0.69  # fractions of the last bone and of the finger's width

# Cushions of the palm (x, z): centre and half axes of the balls of thumb and little finger, and below the knuckles.
PALM_PADS = (((52, 30), (22, 12)), ((52, -28), (26, 12)), ((-4, 20), (9, 10)), ((-6, 0), (9, 9)), ((0, -19), (9, 9)),
             ((10, -36), (9, 9)))

DEEPEST = 0.6  # to which relief is clamped where creases cross


class Finger(NamedTuple):
    """Coordinates of points on one finger."""

    own: np.ndarray  # (N,) 1 on this finger, 0 elsewhere
    position: np.ndarray  # (N,) arc length along the spine
    knots: np.ndarray  # (K,) of the spine points; the last is the tip
    around: np.ndarray  # (N,) angle from the nail side, 0 .. pi
    side: np.ndarray  # (N,) across, as a fraction of the half width


def skin_channels(flesh: Flesh, points: np.ndarray, normals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """CHANNELS (N, 10) in 0 … 1 and relief (N,) along the normal."""
    paint = {name: np.zeros(len(points)) for name in CHANNELS}
    relief = np.zeros(len(points))
    fingers = _on_fingers(flesh, points)
    paint["palm"] = _palm_side(fingers, points, normals)

    for name, finger in fingers.items():
        thumb = name == "thumb"
        base = ((1, BASE_CREASES[name]), (0.0,), 0.45)
        relief += _draw_creases(paint, finger, (base, *(THUMB_CREASES if thumb else FINGER_CREASES)))
        relief += _draw_wrinkles(paint, finger, THUMB_WRINKLES if thumb else WRINKLES)
        relief += _draw_nail(paint, finger)
        _blush(paint, finger, thumb)

    paint["pad"] = np.maximum(paint["pad"], _palm_pads(points) * paint["palm"])
    off_fingers = 1 - sum(finger.own for finger in fingers.values())
    relief += _draw_palm_lines(paint, points, off_fingers * _ramp(-normals[:, 1], 0.1, 0.4))
    relief += _draw_back(paint, points, off_fingers * _ramp(normals[:, 1], 0.2, 0.6))
    return np.clip(np.stack([paint[name] for name in CHANNELS], -1), 0, 1), np.maximum(relief, -DEEPEST)


def _on_fingers(flesh: Flesh, points: np.ndarray) -> dict[str, Finger]:
    """Finger coordinates of all points, for each finger."""
    distances = np.stack([tube_field(tube, points) for tube in flesh.fingers.values()])
    found = {}
    for k, (name, tube) in enumerate(flesh.fingers.items()):
        at = foot(tube, points)
        position, ends = along_spine(tube, at), knots(tube)
        ends[-1] += tube.caps[1]
        mine = (distances[k] == distances.min(0)) * _ramp(distances[k], 3.0, 1.0)
        start = ends[0] if name == "thumb" else ends[1]
        own = mine * _ramp(position, start + 5, start + 13)
        found[name] = Finger(own, position, ends, np.arctan2(np.abs(at.side), at.rise), at.side / at.section[:, 0])
    return found


def _ramp(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Smoothstep: 0 at `low`, 1 at `high`, which may be smaller."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _line(distance: np.ndarray, half_width: float) -> np.ndarray:
    """A Gaussian of the distance: 1 on a line."""
    return np.exp(-((distance / half_width) ** 2))


def _add(paint: dict[str, np.ndarray], channel: str, amount: np.ndarray) -> None:
    """Draw `amount` into a channel, in place; overlaps do not add up."""
    paint[channel] = np.maximum(paint[channel], amount)


def _palm_side(fingers: dict[str, Finger], points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """The palm channel (N,): 1 on the palm side, 0 on the back, about half on the forearm."""
    palm = _ramp(-normals[:, 1], -0.15, 0.55) * (1 - 0.55 * _ramp(points[:, 0], 84, 100))
    for finger in fingers.values():
        palm = palm * (1 - finger.own) + finger.own * _ramp(finger.around, 1.35, 2.1)
    return palm


def _draw_creases(paint: dict[str, np.ndarray], finger: Finger, creases) -> np.ndarray:
    """Flexion creases on the palm side of a finger; their relief (N,)."""
    relief = np.zeros(len(finger.own))
    reach = finger.own * _ramp(finger.around, 1.3, 2.0)
    for (bone, fraction), offsets, depth in creases:
        place = finger.knots[bone] + fraction * (finger.knots[bone + 1] - finger.knots[bone])
        bow = 1.2 * finger.side**2  # creases curve towards the tip at the sides
        for offset in offsets:
            drawn = reach * _line(finger.position - place - offset - bow, 0.9)
            _add(paint, "crease", drawn)
            relief -= depth / len(offsets) ** 0.5 * drawn
    return relief


def _draw_wrinkles(paint: dict[str, np.ndarray], finger: Finger, wrinkles) -> np.ndarray:
    """Wrinkles across the back of the finger joints; their relief (N,)."""
    relief = np.zeros(len(finger.own))
    for point, half_length, depth in wrinkles:
        place = finger.position - finger.knots[point]
        patch = finger.own * _line(place, half_length) * _ramp(finger.around, 1.25, 0.6)
        waves = 0.5 - 0.5 * np.cos(2 * np.pi * (place + 0.8 * finger.side**2 * np.sign(place)) / 3.0)
        _add(paint, "crease", 0.45 * patch * waves)
        _add(paint, "knuckle", patch)
        relief -= depth * patch * waves
    return relief


def _draw_nail(paint: dict[str, np.ndarray], finger: Finger) -> np.ndarray:
    """The nail; its relief (N,): a plate with a groove around it and a free edge."""
    bone = finger.knots[-1] - finger.knots[-2]
    past = (finger.position - finger.knots[-2]) / bone
    lengthwise = (past - (NAIL_START + NAIL_END) / 2) / ((NAIL_END - NAIL_START) / 2)
    crosswise = finger.side / NAIL_WIDTH
    radius = (np.abs(lengthwise) ** 2.8 + np.abs(crosswise) ** 2.8) ** (1 / 2.8)  # a rounded rectangle
    dorsal = finger.own * (finger.around < 1.5)
    plate = dorsal * _ramp(radius, 1.12, 0.88)
    _add(paint, "nail", plate)

    groove = dorsal * _line(radius - 1.12, 0.1) * _ramp(lengthwise, 1.0, 0.6)
    free_edge = dorsal * _line(lengthwise - 0.9, 0.2) * plate
    _add(paint, "crease", 0.35 * groove)
    _add(paint, "nail edge", plate * _ramp(lengthwise, 0.7, 0.86))
    _add(paint, "moon", plate * _ramp(np.hypot((lengthwise + 0.95) / 0.42, crosswise / 0.7), 1.1, 0.7))
    return 0.12 * plate - 0.3 * groove + 0.25 * free_edge


def _blush(paint: dict[str, np.ndarray], finger: Finger, thumb: bool) -> None:
    """Redder fingertips and pads, and darker skin over the thumb's first knuckle."""
    from_tip = finger.knots[-1] - finger.position
    _add(paint, "tip", finger.own * _ramp(from_tip, 20, 5) * (0.55 + 0.45 * _ramp(finger.around, 1.0, 2.2)))
    pads = np.maximum(_line(from_tip - 9, 9), 0.7 * _line(finger.position - finger.knots[1:-1].mean(), 8))
    _add(paint, "pad", finger.own * pads * _ramp(finger.around, 1.5, 2.3))
    if thumb:
        knuckle = _line(finger.position - finger.knots[1], 7) * _ramp(finger.around, 1.3, 0.5)
        _add(paint, "knuckle", 0.6 * finger.own * knuckle)


def _palm_pads(points: np.ndarray) -> np.ndarray:
    """Cushions of the palm (N,): 1 in the middle, 0 between them."""
    pads = [np.hypot(*((points[:, [0, 2]] - center) / size).T) for center, size in PALM_PADS]
    return _ramp(np.min(pads, axis=0), 1.2, 0.5)


def _draw_palm_lines(paint: dict[str, np.ndarray], points: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Creases of palm and wrist, shallow ones paler; their relief (N,)."""
    relief = np.zeros(len(points))
    for line, half_width, depth in PALM_LINES.values():
        drawn = where * _line(_distance_to(line, points[:, [0, 2]]), half_width)
        _add(paint, "crease", min(1.0, 2 * depth) * drawn)
        relief -= depth * drawn
    return relief


def _draw_back(paint: dict[str, np.ndarray], points: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Tendons, veins and knuckles on the back of the hand; their relief (N,)."""
    flat, relief = points[:, [0, 2]], np.zeros(len(points))
    joints = rest_joints()[0]
    for name in FINGERS[:4]:
        knuckle = joints[finger_joints(name).start][[0, 2]]
        fade = _ramp(points[:, 0], 78, 45) * _ramp(points[:, 0], knuckle[0] + 2, knuckle[0] + 14)
        tendon = where * fade * _line(_distance_to((TENDON_START, tuple(knuckle)), flat), 2.8)
        _add(paint, "tendon", tendon)
        _add(paint, "knuckle", 0.8 * where * _line(np.linalg.norm(flat - knuckle, axis=1), 8.0))
        relief += 0.55 * tendon
    for line in VEINS:
        vein = where * _line(_distance_to(line, flat), 2.1)
        _add(paint, "vein", vein)
        relief += 0.22 * vein
    return relief


def _distance_to(line, points: np.ndarray) -> np.ndarray:
    """Distance (N,) of points (N, 2) to the spline through the corners of `line`."""
    corners = np.array(line, dtype=np.float64)
    steps = np.arange(len(corners))
    if len(corners) > 2:
        spread = np.linspace(0, len(corners) - 1, 12 * len(corners))
        corners = CubicSpline(steps, corners)(spread)
    best = np.full(len(points), np.inf)
    for a, b in zip(corners[:-1], corners[1:], strict=True):
        along = np.clip((points - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
        best = np.minimum(best, np.linalg.norm(points - a - along[:, None] * (b - a), axis=1))
    return best
