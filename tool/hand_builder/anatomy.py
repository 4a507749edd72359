"""The anatomy table: what the tubes of the hand measure, in millimetres."""

from __future__ import annotations

import numpy as np

from tool.hand_builder.field import Flesh, Tube, make_tube
from tool.hand_builder.skeleton import FINGERS, WRIST, bone_directions, finger_joints, joint_axes, rest_joints, unit

UP = np.array([0.0, 1.0, 0.0])

# Sections along an index finger: (bone, fraction of the bone), half width, above, below.
# Bone 0 runs from the palm to the knuckle.  Widths swell at the joints, depths at the pads between them.
FINGER_SECTIONS = (
    (0, 0.0, 8.0, 6.5, 9.5),
    (0, 1.0, 10.2, 10.2, 12.0),
    (1, 0.25, 9.8, 9.2, 12.3),
    (1, 0.5, 9.4, 8.1, 11.6),
    (1, 0.75, 9.3, 7.7, 10.3),
    (2, 0.0, 9.9, 8.4, 8.9),
    (2, 0.3, 9.2, 7.3, 9.7),
    (2, 0.6, 8.8, 6.7, 9.4),
    (2, 0.85, 8.6, 6.6, 8.1),
    (3, 0.0, 8.8, 6.8, 7.6),
    (3, 0.2, 8.6, 6.1, 8.6),
    (3, 0.4, 8.5, 5.3, 9.0),
    (3, 0.6, 8.1, 4.6, 8.5),
)
FINGER_CAP = 0.4  # of the last bone: the rounded end
FINGER_GIRTH = {"index": 1.0, "middle": 1.02, "ring": 0.95, "pinky": 0.82}
TIP_LIFT = 0.3  # the fingertip vertex stands this far outside the subdivided surface it controls
FINGER_ROOT = 16.0  # how far the finger's tube reaches into the palm behind the knuckle

# Bone 0 runs from the carpal joint to the knuckle.
THUMB_SECTIONS = (
    (0, 0.0, 10.0, 8.5, 11.0),
    (0, 0.5, 10.2, 8.8, 12.0),
    (0, 0.85, 10.8, 9.6, 12.0),
    (1, 0.0, 11.2, 10.0, 11.0),
    (1, 0.3, 9.8, 8.6, 10.4),
    (1, 0.6, 9.5, 7.9, 9.9),
    (1, 0.85, 10.4, 8.2, 9.3),
    (2, 0.0, 11.0, 8.3, 9.2),
    (2, 0.2, 11.0, 7.3, 10.2),
    (2, 0.4, 11.2, 6.2, 10.8),
    (2, 0.6, 10.7, 5.2, 9.9),
)
THUMB_CAP = 0.4

# Palm tubes: spine points (x, y, z), sections (station, half width, above, below), end caps, blend, squareness.
# All move with the wrist.  Later tubes melt into earlier ones.
PALM_TUBES = {
    "forearm": (
        ((135, -1, 0), (100, -1, 0), (80, -1, 0), (55, 0, -2)),
        ((0, 28, 19.5, 20), (1, 27, 18.5, 19.5), (2, 27.5, 16.5, 17.5), (3, 23, 9, 9)),
        (10, 8), 6, 2.3,
    ),
    "ulnar head": (((114, 4, -16), (101, 5, -17)), ((0, 9, 9, 9), (1, 9.0, 10.3, 9)), (8, 9), 12, 2.0),
    "radial wrist": (
        ((104, -3, 12), (84, -5, 19), (66, -8, 24)),
        ((0, 10, 10, 10), (1, 10, 10, 11), (2, 9, 9, 10)),
        (8, 8), 14, 2.0,
    ),
    "index metacarpal": (
        ((78, 1, 9), (40, 3, 16.5), (7.5, 1.5, 21.3)),
        ((0, 10, 9, 10), (1, 11, 10, 13), (2, 11.3, 10.2, 13.5)),
        (14, 8), 14, 2.0,
    ),
    "middle metacarpal": (
        ((78, 2, 1), (40, 5, 1), (6, 3.5, 0.6)),
        ((0, 10, 9, 10), (1, 10.5, 10, 15), (2, 10.8, 10.2, 15)),
        (14, 8), 12, 2.0,
    ),
    "ring metacarpal": (
        ((78, 2, -7), (42, 3.5, -13), (12, 1, -18.3)),
        ((0, 10, 9, 10), (1, 10, 9.5, 14), (2, 10.3, 9.8, 14)),
        (14, 8), 12, 2.0,
    ),
    "pinky metacarpal": (
        ((78, 0, -13), (48, -1, -23), (20, -4.5, -34.6)),
        ((0, 10, 9, 10), (1, 10.5, 9, 11), (2, 10.8, 9.4, 11.5)),
        (14, 8), 12, 2.0,
    ),
    "hypothenar": (
        ((84, -8, -15), (60, -9, -23.5), (30, -9, -33)),
        ((0, 9, 7, 8), (1, 14.5, 10, 13), (2, 12, 8, 10)),
        (12, 14), 12, 2.0,
    ),
    "distal pad": (
        ((-2, -6, 24), (-4, -5, 2), (2, -6, -18), (12, -9, -35)),
        ((0, 10, 5, 7.5), (1, 11, 5, 8.0), (2, 11, 5, 7.7), (3, 10, 5, 7)),
        (6, 6), 9, 2.0,
    ),
}

# Skin between neighbouring fingers: how far along the first bones it stands; half width, above, below.
WEBS = {("index", "middle"): 0.26, ("middle", "ring"): 0.27, ("ring", "pinky"): 0.29}
WEB_SECTION = (8.0, 4.5, 6.5)

# Skin and muscle between thumb and palm: fraction of the thumb's first bone, its end in the palm (x, z), section.
THUMB_WEBS = (
    (0.35, (50, 15), (17, 7.0, 10.0)),
    (0.7, (34, 18), (15, 6.2, 8.5)),
    (1.0, (19, 22), (10, 5.0, 7.0)),
)


def build_flesh() -> Flesh:
    """The hand of the table at rest."""
    joints, tips = rest_joints()
    palm = [
        make_tube(name, spine, [0] * len(spine), UP, sections, caps, blend, square)
        for name, (spine, sections, caps, blend, square) in PALM_TUBES.items()
    ]
    palm += [_web(pair, fraction, joints) for pair, fraction in WEBS.items()]
    palm += [_thenar(joints), *(_thumb_web(*row, joints) for row in THUMB_WEBS)]
    return Flesh(palm, [_palm_hollow()], {name: _finger(name, joints, tips) for name in FINGERS})


def _finger(name: str, joints: np.ndarray, tips: np.ndarray) -> Tube:
    """One finger from inside the palm (the thumb: from its carpal joint) to where the tip's rounding starts."""
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
    return make_tube(name, spine, owners, dorsal, sections, (8.0, round_end), 5.0, 2.1)


def _web(pair: tuple[str, str], fraction: float, joints: np.ndarray) -> Tube:
    """The bridge of skin between two neighbouring fingers."""
    owners = [finger_joints(name).start for name in pair]
    ends = [
        joints[j] + fraction * np.linalg.norm(joints[j + 1] - joints[j]) * bone_directions(name)[0] - 1.5 * UP
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
    sections = [(0, 10, 9, 10), (1, 14.5, 11, 14), (2, 11, 9, 10)]
    return make_tube("thenar", spine, [0, thumb, thumb], up, sections, (10.0, 9.0), 10.0)


def _thumb_web(fraction: float, inner: tuple[float, float], section: tuple, joints: np.ndarray) -> Tube:
    """A sheet of flesh from a place on the thumb's first bone to the palm."""
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
    sections = [(0, 5, 5, 6), (1, 9, 6.5, 6), (2, 9, 5.0, 6)]
    return make_tube("hollow", spine, [0, 0, 0], UP, sections, (10.0, 12.0), 14.0)
