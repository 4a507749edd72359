"""The flesh of the built-in hand as an implicit surface: a smooth union of tubes with varying oval sections.

Every spine point belongs to a bone and moves with it, so the same tubes describe the bent hand. Fields are approximate
signed distances, negative inside. Millimetres, rest frame of `skeleton.py`.

Legend: N points in space · K spine points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.interpolate import PchipInterpolator

from tool.dev.hand_builder.skeleton import unit

FAR = 1e3
TIE = 1e-9  # square mm


class Tube(NamedTuple):
    """A spine with an oval section. Stations count spine points: 1.5 is midway between points 1 and 2."""

    name: str
    spine: np.ndarray  # (K, 3)
    owners: np.ndarray  # (K,) joint that each spine point moves with
    dorsal: np.ndarray  # (K, 3) unit, up direction of the section
    section: PchipInterpolator  # station (N,) → half width, height above the spine, depth below it (N, 3)
    caps: tuple[float, float]  # lengths of the rounded ends beyond the first and last point
    blend: float  # radius of the smooth union with the tubes before it
    square: float = 2.0  # exponent of the section: 2 is an ellipse, more is boxier


def make_tube(name, spine, owners, dorsal, sections, caps, blend, square=2.0) -> Tube:
    """A Tube from plain rows. `sections` has rows (station, half width, above, below)."""
    rows = np.array(sections, dtype=np.float64)
    spine, owners = np.array(spine, dtype=np.float64), np.array(owners)
    dorsal = np.broadcast_to(np.array(dorsal, dtype=np.float64), spine.shape)
    return Tube(name, spine, owners, dorsal, PchipInterpolator(rows[:, 0], rows[:, 1:]), caps, blend, square)


class Foot(NamedTuple):
    """Coordinates of points relative to a tube: feet of their perpendiculars on the spine, and offsets."""

    station: np.ndarray  # (N,)
    side: np.ndarray  # (N,) across, positive along dorsal × tangent, the flexion axis
    rise: np.ndarray  # (N,) towards the dorsal side
    beyond: np.ndarray  # (N,) past the ends of the spine: negative before the first point, positive after the last
    section: np.ndarray  # (N, 3) half width, above, below at the station


def _posed(tube: Tube, joints: np.ndarray, rotations: np.ndarray, positions: np.ndarray) -> Tube:
    """The tube after moving the bones, from rest `joints` to what `bone_transforms` gives."""
    own = tube.owners
    spine = np.einsum("kij,kj->ki", rotations[own], tube.spine - joints[own]) + positions[own]
    return tube._replace(spine=spine, dorsal=np.einsum("kij,kj->ki", rotations[own], tube.dorsal))


def foot(tube: Tube, points: np.ndarray) -> Foot:
    """The foot of points (N, 3) on the nearest segment of the spine."""
    best = np.full(len(points), np.inf)
    station, side, rise, beyond = (np.zeros(len(points)) for _ in range(4))
    last = len(tube.spine) - 2
    for k in range(last + 1):
        a, b = tube.spine[k], tube.spine[k + 1]
        length = np.linalg.norm(b - a)
        tangent = (b - a) / length
        along = (points - a) @ tangent
        t = np.clip(along, 0, length)
        offset = points - a - t[:, None] * tangent
        distance = np.einsum("ni,ni->n", offset, offset)

        up = tube.dorsal[k] + (t / length)[:, None] * (tube.dorsal[k + 1] - tube.dorsal[k])
        up = unit(up - (up @ tangent)[:, None] * tangent)
        across = up[:, [1, 2, 0]] * tangent[[2, 0, 1]] - up[:, [2, 0, 1]] * tangent[[1, 2, 0]]  # up × tangent
        over = along - t
        u = np.einsum("ni,ni->n", offset, across)
        v = np.einsum("ni,ni->n", offset, up)
        at_end = ((over < 0) & (k == 0)) | ((over > 0) & (k == last))
        v_wedge = np.where(v < 0, -1.0, 1.0) * np.hypot(v, over)  # the outer side of a bend is a round fan

        # On the outer side of a bend two segments are equally near, but for the last bits, in which processors differ:
        # the first of them is taken.
        closer = distance < best - TIE
        best = np.where(closer, distance, best)
        station = np.where(closer, k + t / length, station)
        side = np.where(closer, u, side)
        rise = np.where(closer, np.where(at_end, v, v_wedge), rise)
        beyond = np.where(closer, np.where(at_end, over, 0.0), beyond)
    return Foot(station, side, rise, beyond, tube.section(station))


def knots(tube: Tube) -> np.ndarray:
    """Arc length (K,) of each spine point from the first."""
    return np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(tube.spine, axis=0), axis=1))])


def along_spine(tube: Tube, at: Foot) -> np.ndarray:
    """Arc length (N,) from the first spine point, past the ends as well."""
    return np.interp(at.station, np.arange(len(tube.spine)), knots(tube)) + at.beyond


def tube_field(tube: Tube, points: np.ndarray) -> np.ndarray:
    """Approximate signed distance (N,) to the tube."""
    at = foot(tube, points)
    half_width, above, below = at.section.T
    height = np.where(at.rise > 0, above, below)
    cap = np.where(at.beyond < 0, tube.caps[0], tube.caps[1])

    p = tube.square
    parts = np.abs(np.stack([at.side, at.rise, at.beyond])) + 1e-9
    scales = np.stack([half_width, height, cap])
    radius = ((parts / scales) ** p).sum(0) ** (1 / p)
    slope = np.sqrt((((parts / scales / radius) ** (p - 1) / scales) ** 2).sum(0))
    return (radius - 1) / slope


def smooth_min(a: np.ndarray, b: np.ndarray, blend: float) -> np.ndarray:
    """Smooth union of two fields, blended over `blend` mm; it adds blend/4 where the two surfaces meet."""
    gap = np.maximum(blend - np.abs(a - b), 0) / blend
    return np.minimum(a, b) - gap * gap * blend / 4


class Flesh(NamedTuple):
    """The whole hand: tubes of the palm, fingers that blend into it, hollows that are carved out of it."""

    palm: Sequence[Tube]
    hollows: Sequence[Tube]
    fingers: dict[str, Tube]


def posed_flesh(flesh: Flesh, joints: np.ndarray, rotations: np.ndarray, positions: np.ndarray) -> Flesh:
    """The flesh of the bent hand; arguments as for `_posed`."""
    palm, hollows = ([_posed(tube, joints, rotations, positions) for tube in part] for part in flesh[:2])
    fingers = {name: _posed(tube, joints, rotations, positions) for name, tube in flesh.fingers.items()}
    return Flesh(palm, hollows, fingers)


def hand_field(flesh: Flesh, points: np.ndarray, fingers: Sequence[str] | None = None) -> np.ndarray:
    """Field (N,) of the hand, or of the palm with only the named fingers.

    Fingers blend into the palm but not into one another, so that they are separate down to the web.
    """
    palm = np.full(len(points), FAR)
    for tube in flesh.palm:
        palm = smooth_min(palm, _near_field(tube, points), tube.blend)
    for tube in flesh.hollows:
        palm = -smooth_min(-palm, _near_field(tube, points), tube.blend)
    total = palm
    for name in flesh.fingers if fingers is None else fingers:
        tube = flesh.fingers[name]
        total = smooth_min(total, smooth_min(palm, _near_field(tube, points), tube.blend), 1.0)
    return total


def _near_field(tube: Tube, points: np.ndarray, margin: float = 18.0) -> np.ndarray:
    """`tube_field` inside the tube's bounding box padded by `margin`, FAR outside."""
    reach = max(tube.section.c[-1].max(), *tube.caps) + margin
    low, high = tube.spine.min(0) - reach, tube.spine.max(0) + reach
    inside = np.all((points > low) & (points < high), axis=-1)
    value = np.full(len(points), FAR)
    if inside.any():
        value[inside] = tube_field(tube, points[inside])
    return value


def onto_level_set(field, points: np.ndarray, level: np.ndarray | float = 0.0, iterations: int = 2, reach: float = 3.0):
    """Points (N, 3) moved onto `field == level` by Newton steps of at most `reach` mm along the gradient."""
    delta = 0.02
    for _ in range(iterations):
        value = field(points)
        gradient = np.stack([field(points + delta * axis) - value for axis in np.eye(3)], -1) / delta
        square = np.einsum("ni,ni->n", gradient, gradient)
        step = np.clip((value - level) / np.maximum(square, 0.05), -reach, reach)
        points = points - step[:, None] * gradient
    return points
