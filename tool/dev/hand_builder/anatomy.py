"""The flesh of the hand from tables of measures. Millimetres, rest frame of `skeleton.py`."""

from __future__ import annotations

import numpy as np

from tool.dev.hand_builder.field import Flesh, Tube, make_tube
from tool.dev.hand_builder.skeleton import (
    FINGERS,
    WRIST,
    bone_directions,
    finger_joints,
    joint_axes,
    rest_joints,
    unit,
)

UP = np.array([0.0, 1.0, 0.0])

# Sections along an index finger: (bone, fraction of the bone), half width, above, below.
# Bone 0 runs from the palm to the knuckle. Widths swell at the joints, depths at the pads between them.
FINGER_SECTIONS = (
    (0, 0.0, 8.0, 6.5, 9.5),
    (0, 1.0, 10.4, 11.4, 12.0),
    (1, 0.25, 10.1, 9.0, 12.6),
    (1, 0.5, 9.6, 7.9, 11.6),
    (1, 0.75, 9.5, 7.8, 10.2),
    (2, 0.0, 10.0, 8.8, 8.6),
    (2, 0.3, 9.1, 7.2, 9.9),
    (2, 0.6, 8.6, 6.5, 9.3),
    (2, 0.85, 8.5, 6.7, 7.9),
    (3, 0.0, 8.8, 7.1, 7.4),
    (3, 0.2, 8.5, 6.1, 8.4),
    (3, 0.4, 8.3, 5.2, 8.9),
    (3, 0.6, 7.5, 4.4, 8.0),
)
FINGER_CAP = 0.4  # of the last bone: the rounded end
FINGER_GIRTH = {"index": 1.0, "middle": 1.02, "ring": 0.95, "pinky": 0.82}
TIP_LIFT = 0.3  # of the fingertip vertex above the subdivision surface that it controls
FINGER_ROOT = 16.0  # length of the finger's tube in the palm, behind the knuckle

# Bone 0 runs from the carpal joint to the knuckle.
THUMB_SECTIONS = (
    (0, 0.0, 10.0, 8.5, 11.0),
    (0, 0.5, 10.2, 8.8, 12.0),
    (0, 0.85, 10.8, 9.6, 12.0),
    (1, 0.0, 11.4, 10.9, 11.2),
    (1, 0.3, 9.9, 8.4, 10.8),
    (1, 0.6, 9.4, 7.3, 10.2),
    (1, 0.85, 10.6, 8.5, 9.2),
    (2, 0.0, 11.2, 9.6, 9.2),
    (2, 0.2, 11.2, 7.2, 10.6),
    (2, 0.4, 11.3, 5.8, 11.2),
    (2, 0.6, 10.2, 4.8, 9.6),
)
THUMB_CAP = 0.4

# Palm tubes: spine points (x, y, z), sections (station, half width, above, below), end caps, blend, squareness.
# All move with the wrist. Later tubes blend into earlier ones.
PALM_TUBES = {
    "forearm": (
        ((135, -1, 0), (100, -1, 0), (80, -1, 0), (55, 0, -2)),
        ((0, 28, 19.5, 20), (1, 27, 18.5, 19.5), (2, 27.5, 16.5, 17.5), (3, 23, 9, 9)),
        (10, 8), 6, 2.3,
    ),
    "ulnar head": (((114, 4, -16), (101, 5, -17)), ((0, 9, 9, 9), (1, 9.0, 10.3, 9)), (8, 9), 12, 2.0),
    "radial wrist": (
        ((106, -3, 12), (84, -6, 20), (62, -10, 28)),
        ((0, 10, 10, 10), (1, 10.8, 10.3, 11.3), (2, 10.5, 9.5, 10.5)),
        (10, 8), 16, 2.0,
    ),
    "index metacarpal": (
        ((78, 1, 9), (40, 3, 16.5), (7.5, 1.5, 21.3)),
        ((0, 10, 9, 10), (1, 11, 10, 13), (2, 11.0, 8.6, 13.5)),
        (14, 8), 14, 2.0,
    ),
    "middle metacarpal": (
        ((78, 2, 1), (40, 5, 1), (6, 3.5, 0.6)),
        ((0, 10, 9, 10), (1, 10.5, 10, 15), (2, 10.4, 8.8, 15)),
        (14, 8), 12, 2.0,
    ),
    "ring metacarpal": (
        ((78, 2, -7), (42, 3.5, -13), (12, 1, -18.3)),
        ((0, 10, 9, 10), (1, 10, 9.5, 14), (2, 9.9, 8.4, 14)),
        (14, 8), 12, 2.0,
    ),
    "pinky metacarpal": (
        ((78, 0, -13), (48, -1, -23), (20, -4.5, -34.6)),
        ((0, 10, 9, 10), (1, 10.5, 9, 11), (2, 10.4, 8.0, 11.5)),
        (14, 8), 12, 2.0,
    ),
    "hypothenar": (
        ((90, -7, -16.5), (64, -9, -24.5), (34, -9, -34.5)),
        ((0, 11, 8, 10), (1, 14, 10, 12), (2, 11.4, 8.5, 8.2)),
        (16, 18), 14, 2.0,
    ),
}

# The pads under the knuckles: position and section. They move with the fingers, or they would stick out of a fist.
DISTAL_PADS = {
    "index": ((-2, -6, 24), (10, 5, 7.5)),
    "middle": ((-4, -5, 2), (11, 5, 8.0)),
    "ring": ((2, -6, -18), (11, 5, 7.7)),
    "pinky": ((12, -9, -35), (10, 5, 7)),
}

# Webs between neighbouring fingers: fraction of the first bones that they reach to; half width, above, below.
WEBS = {("index", "middle"): 0.28, ("middle", "ring"): 0.27, ("ring", "pinky"): 0.22}
WEB_SECTION = (8.0, 5.5, 4.5)
WEB_DROP = 4.5  # mm below the bones: when a fist closes, the webs fold under the knuckles

# Skin and muscle between thumb and palm: fraction of the thumb's first bone, its end in the palm (x, z), section.
THUMB_WEBS = (
    (0.35, (50, 15), (17, 7.0, 10.0)),
    (0.7, (34, 18), (15, 6.2, 8.5)),
    (1.0, (19, 22), (10, 5.0, 7.0)),
)


def build_flesh() -> Flesh:
    """The hand at rest."""
    joints, tips = rest_joints()
    palm = [
        make_tube(name, spine, [0] * len(spine), UP, sections, caps, blend, square)
        for name, (spine, sections, caps, blend, square) in PALM_TUBES.items()
    ]
    palm += [_distal_pads(), *(_web(pair, fraction, joints) for pair, fraction in WEBS.items())]
    palm += [_thenar(joints), *(_thumb_web(*row, joints) for row in THUMB_WEBS)]
    return Flesh(palm, [_palm_hollow()], {name: _finger(name, joints, tips) for name in FINGERS})


def _finger(name: str, joints: np.ndarray, tips: np.ndarray) -> Tube:
    """One finger, from inside the palm (the thumb: from its carpal joint) to the start of the rounded tip."""
    own = finger_joints(name)
    indices, chain = np.arange(16)[own], joints[own]
    dorsal = joint_axes()[indices - 1, 1]
    rows, cap = (THUMB_SECTIONS, THUMB_CAP) if name == "thumb" else (FINGER_SECTIONS, FINGER_CAP)

    bone = tips[FINGERS.index(name)] - chain[2]
    spine = [*chain, chain[2] + (1 - cap) * bone]
    owners, dorsal = [*indices, indices[2]], [*dorsal, dorsal[2]]
    if name != "thumb":
        root = chain[0] + FINGER_ROOT * unit(WRIST - chain[0])
        spine, owners, dorsal = [root, *spine], [0, *owners], [UP, *dorsal]

    last = len(spine) - 2
    girth = FINGER_GIRTH.get(name, 1.0)
    sections = [(k + (f / (1 - cap) if k == last else f), *(girth * np.array(size))) for k, f, *size in rows]
    round_end = cap * np.linalg.norm(bone) - TIP_LIFT
    return make_tube(name, spine, owners, dorsal, sections, (8.0, round_end), 5.0 if name == "thumb" else 7.0, 2.1)


def _distal_pads() -> Tube:
    """The row of pads across the palm at the roots of the fingers."""
    owners = [finger_joints(name).start for name in DISTAL_PADS]
    sections = [(k, *section) for k, (_, section) in enumerate(DISTAL_PADS.values())]
    return make_tube("distal pads", [place for place, _ in DISTAL_PADS.values()], owners, UP, sections, (6.0, 6.0), 9.0)


def _web(pair: tuple[str, str], fraction: float, joints: np.ndarray) -> Tube:
    """The bridge of skin between two neighbouring fingers."""
    owners = [finger_joints(name).start for name in pair]
    ends = [
        joints[j] + fraction * np.linalg.norm(joints[j + 1] - joints[j]) * bone_directions(name)[0] - WEB_DROP * UP
        for j, name in zip(owners, pair, strict=True)
    ]
    sections = [(0, *WEB_SECTION), (1, *WEB_SECTION)]
    return make_tube("-".join(pair), ends, owners, UP, sections, (4.0, 4.0), 5.0)


def _thenar(joints: np.ndarray) -> Tube:
    """The ball of the thumb."""
    base, knuckle, _ = joints[finger_joints("thumb")]
    along, thumb = knuckle - base, finger_joints("thumb").start
    spine = [base + [12, -1, -12], base + 0.35 * along + [0, -4, -5], base + 0.85 * along + [0, -1, -3]]
    up = unit(UP + 0.35 * joint_axes()[thumb - 1, 1])
    sections = [(0, 10, 9, 10), (1, 15.5, 11.5, 15), (2, 11, 9, 10.5)]
    return make_tube("thenar", spine, [0, thumb, thumb], up, sections, (10.0, 9.0), 10.0)


def _thumb_web(fraction: float, inner: tuple[float, float], section: tuple, joints: np.ndarray) -> Tube:
    """A sheet of flesh from a point on the thumb's first bone to the palm."""
    base, knuckle, _ = joints[finger_joints("thumb")]
    thumb = finger_joints("thumb").start
    start = base + fraction * (knuckle - base) - 2.0 * joint_axes()[thumb - 1, 1]
    end = np.array([inner[0], -4.0, inner[1]])
    sag = np.array([6.0 if fraction == 1.0 else 3.0, -1.0, 0.0])  # the edge of the web is a hollow curve
    owners = [thumb, thumb if fraction < 0.5 else 0, 0]
    sections = [(k, *section) for k in range(3)]
    return make_tube("thumb web", [start, (start + end) / 2 + sag, end], owners, UP, sections, (5.0, 5.0), 10.0)


def _palm_hollow() -> Tube:
    """The hollow of the palm between the two eminences."""
    spine = [(66, -25, -4), (42, -23, 0), (20, -23.5, 3)]
    sections = [(0, 7, 5, 6), (1, 13, 6.5, 6), (2, 13, 4.8, 6)]
    return make_tube("hollow", spine, [0, 0, 0], UP, sections, (10.0, 12.0), 16.0)
