"""How two hands meet: where each starts and what it reaches for. `contact.py` settles the rest.

A family draws the poses of two roles and what they reach for; `sample_pair` deals the roles to the hands. Directions
are in the `_own` frame of each hand: x towards the middle of the body, y up, z away from the chest, whichever hand
it is.

Legend: 2 the hand axis · 15 articulated joints · K attractions.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from common.hands import Hand, mirror_rotations
from data.synthetic.articulation import Rig, sample_angles

# Rest-frame directions of a right hand, as rows: along the fingers, out of the back of the hand, to the thumb side.
_REST_AXES = np.array([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


class Attraction(NamedTuple):
    """Two surface points that want to lie `gap` metres apart, or closer."""

    on_right: str           # a name in `contact.Proxies.anchors`
    on_left: str
    gap: float


class PairStart(NamedTuple):
    """A first guess that `contact.settle` turns into a pair of hands."""

    family: str
    angles: np.ndarray                      # (2, 15, 3)
    rotation_own: np.ndarray                # (2, 3, 3)     from the rest frame of a right hand
    palm_own: np.ndarray                    # (2, 3)        where the middle of the palm starts
    attractions: tuple[Attraction, ...]
    wraps: tuple[float, float]              # how much each hand's fingers close round the other hand
    touches: bool                           # the hands are brought together until they touch


class _Pose(NamedTuple):
    """One hand of a pair in its own frame."""

    fingers: tuple[float, float, float]     # where the straight fingers would point
    back: tuple[float, float, float]        # where the back of the hand faces
    palm: tuple[float, float, float]        # millimetres
    preset: str
    looseness: float = 0.7
    wrap: float = 0.0


def sample_pair(family: str, rig: Rig, rng: np.random.Generator) -> PairStart:
    """A random pair of `family`, a key of FAMILIES."""
    poses, attractions, touches = FAMILIES[family](rng)
    roles = rng.permutation(2)                                      # which hand plays which part
    first_is_left = roles[0] == Hand.LEFT
    poses = [poses[role] for role in roles]
    pairs = tuple(
        Attraction(*((b, a) if first_is_left else (a, b)), gap / 1000) for a, b, gap in attractions
    )
    wobble = Rotation.from_rotvec(rng.normal(0, np.radians(6), (2, 3))).as_matrix()
    start = PairStart(
        family, np.stack([sample_angles(rig, pose.preset, pose.looseness, rng) for pose in poses]),
        wobble @ np.stack([oriented(pose.fingers, pose.back) for pose in poses]),
        np.array([pose.palm for pose in poses]) / 1000, pairs, tuple(pose.wrap for pose in poses), touches,
    )
    return _turned(start, _pair_rotation(rng))


def sample_single(rig: Rig, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Angles (15, 3) and orientation (3, 3) in the own frame of a hand that is seen alone."""
    preset = rng.choice(["flat", "relaxed", "fan", "cup", "grip", "fist", "hook", "point", "victory", "thumb_up",
                         "pinch", "horns", "count"])
    angles = sample_angles(rig, preset, rng.uniform(0.5, 1.2), rng)
    fingers = np.array([0.5, 0.8, 0.4]) + rng.normal(0, 0.45, 3)
    back = np.array([-0.3, 0.5, 0.4]) + rng.normal(0, 0.7, 3)
    return angles, oriented(fingers, back)


def oriented(fingers, back) -> np.ndarray:
    """The rotation (3, 3) that turns a resting right hand's fingers and back to the given directions."""
    fingers = np.asarray(fingers, dtype=float)
    fingers = fingers / np.linalg.norm(fingers)
    back = np.asarray(back, dtype=float)
    back = back - (back @ fingers) * fingers
    back = back / np.linalg.norm(back)
    return np.stack([fingers, back, np.cross(back, fingers)], axis=1) @ _REST_AXES


def _pair_rotation(rng: np.random.Generator) -> np.ndarray:
    """How the pair is turned as a whole, in the person frame: people turn their hands over more than they twist."""
    yaw, pitch, roll = np.clip(rng.normal(0, 1, 3), -2, 2) * np.radians([25, 28, 24])
    return Rotation.from_euler("yxz", [yaw, pitch, roll]).as_matrix()


def _turned(start: PairStart, rotation: np.ndarray) -> PairStart:
    """The pair turned about the origin of the person frame."""
    per_hand = np.stack([rotation, mirror_rotations(torch.from_numpy(rotation)).numpy()])
    return start._replace(rotation_own=per_hand @ start.rotation_own,
                          palm_own=np.einsum("hij,hj->hi", per_hand, start.palm_own))


# ---------------------------------------------------------------- the families
# Each gives the poses of two roles, the surface points that attract each other with their gap in millimetres, and
# whether the hands must touch. The roles are dealt to the hands at random.

def _apart(rng: np.random.Generator):
    def one() -> _Pose:
        fingers = np.array([0.45, 0.7, 0.5]) + rng.normal(0, 0.35, 3)
        back = np.array([-0.5, 0.2, 0.4]) + rng.normal(0, 0.6, 3)
        palm = (-rng.uniform(75, 105), *rng.normal(0, 25, 2))
        preset = rng.choice(["flat", "relaxed", "fan", "cup", "grip", "fist", "point", "victory", "thumb_up", "pinch",
                             "count", "horns", "hook"])
        return _Pose(tuple(fingers), tuple(back), palm, preset, 1.0)
    return (one(), one()), (), False


def _side_by_side(rng: np.random.Generator):
    facing = rng.choice([-1.0, 1.0])                                # backs towards the chest, or away from it
    preset = rng.choice(["flat", "relaxed", "fan", "fist", "cup", "point", "victory"])
    other = preset if rng.random() < 0.6 else rng.choice(["flat", "relaxed", "fist", "cup"])
    distance = rng.uniform(40, 62)
    poses = [
        _Pose((rng.normal(0.1, 0.15), 0.9, 0.35), (rng.normal(0, 0.2), 0.2, facing), (-distance, rng.normal(0, 12), 0),
              name, 0.8) for name in (preset, other)
    ]
    edge = "pinky_side" if facing > 0 else "thumb_side"
    touches = rng.random() < 0.5
    return poses, ((edge, edge, 0 if touches else 25),), touches


def _finger_to_finger(rng: np.random.Generator):
    kind = rng.choice(["index", "steeple", "thumbs", "pinch", "mixed"])
    fingers, back = (0.75, 0.45, 0.45), (-0.25, 0.6, -0.5)
    if kind == "steeple":
        fingers, back = (0.35, 0.85, 0.35), (-1.0, 0.3, 0.0)
    preset = {"index": "point", "steeple": "cup", "thumbs": "fist", "pinch": "pinch", "mixed": "relaxed"}[str(kind)]
    one, other = rng.choice(["index", "middle", "thumb"]), rng.choice(["index", "middle", "ring"])
    pairs = {
        "index": (("index_pad", "index_pad", 0),),
        "steeple": tuple((f"{f}_pad", f"{f}_pad", 0) for f in ("thumb", "index", "middle", "ring", "pinky")),
        "thumbs": (("thumb_pad", "thumb_pad", 0),),
        "pinch": (("index_pad", "index_pad", 0), ("thumb_pad", "thumb_pad", 0)),
        "mixed": ((f"{one}_pad", f"{other}_pad", 0),),
    }[str(kind)]
    poses = [_Pose(fingers, back, (-rng.uniform(70, 85), rng.normal(0, 8), rng.normal(0, 8)), preset, 0.6)
             for _ in range(2)]
    return poses, pairs, True


def _finger_to_palm(rng: np.random.Generator):
    finger = rng.choice(["index", "index", "middle", "thumb"])
    target = rng.choice(["palm", "palm", "back", "heel"])
    preset = "point" if finger == "index" else "relaxed"
    touching = _Pose((0.85, -0.1, 0.4), (-0.3, 0.8, 0.3), (-95, 25, 0), preset, 0.6)
    facing = (-0.9, -0.2, 0.3) if target != "back" else (0.8, 0.4, 0.2)
    open_hand = _Pose((0.2, 0.8, 0.5), facing, (-15, 0, 0), rng.choice(["flat", "relaxed", "fan"]), 0.7)
    return (touching, open_hand), ((f"{finger}_pad", target, 0),), True


def _crossed(rng: np.random.Generator):
    preset = rng.choice(["flat", "relaxed", "fan"])
    under = _Pose((0.85, 0.25, 0.45), (0.1, 0.75, 0.65), (-5, -8, -6), preset, 0.6)
    over = _Pose((0.8, 0.25, 0.5), (0.1, 0.75, 0.65), (-5, 24, 22), rng.choice(["flat", "relaxed", "cup"]), 0.6,
                 rng.choice([0.0, 0.4]))
    anchor = rng.choice(["back", "fingers_back", "wrist_back"])
    return (under, over), ((anchor, "palm", 0),), True


def _prayer(rng: np.random.Generator):
    preset = rng.choice(["flat", "flat", "fan", "cup"])
    slide = rng.normal(0, 9, 2)
    poses = [_Pose((0.05, 0.75, 0.55), (-1.0, 0.0, 0.05), (-22, sign * slide[0], sign * slide[1]), preset, 0.45)
             for sign in (-1, 1)]
    pads = tuple((f"{f}_pad", f"{f}_pad", 0) for f in ("index", "middle", "ring", "pinky"))
    palms = (("palm", "palm", float(rng.choice([0, 0, 12]))),)
    return poses, (*palms, *(pads if abs(slide).max() < 12 else ())), True


def _clasped(rng: np.random.Generator):
    """Fingers laced: each hand is shifted by half a finger along the knuckles, so fingers pass between fingers."""
    depth = rng.uniform(0.0, 1.0)                                   # 0: fingertips laced, 1: laced to the palm
    fingers = np.array([0.25 - 0.2 * depth, 0.45, 0.85])
    back = np.array([-1.0, 0.15, 0.1])
    along_knuckles = oriented(fingers, back)[:, 2]                  # towards the thumb
    palm = np.array([-42 + 12 * depth, 0.0, 0.0])
    preset = "fan" if depth < 0.3 else "cup"
    wrap = 0.0 if depth < 0.3 else 0.6
    poses = [_Pose(tuple(fingers), tuple(back), tuple(palm + sign * 5.5 * along_knuckles), preset, 0.25, wrap)
             for sign in (-1, 1)]
    return poses, (("palm", "palm", 30 - 22 * depth),), True


def _holding(rng: np.random.Generator):
    held = rng.choice(["fist", "grip", "relaxed", "cup", "flat", "thumb_up"])
    anchor = rng.choice(["back", "fingers_back", "pinky_side"])
    inner = _Pose((0.55, 0.3, 0.75), (-0.65, 0.65, 0.3), (-8, 0, 0), held, 0.5)
    outer = {
        "back": _Pose((0.5, 0.5, 0.7), (-0.8, 0.1, 0.55), (-32, 0, 25), "grip", 0.4, 1.0),
        "fingers_back": _Pose((0.3, 0.6, 0.7), (-0.9, -0.3, 0.3), (-38, 0, 40), "grip", 0.4, 1.0),
        "pinky_side": _Pose((0.6, 0.1, 0.8), (-0.3, -0.95, 0.1), (-12, -50, 8), "cup", 0.5, 0.8),
    }[str(anchor)]
    return (inner, outer), ((anchor, "palm", 0),), True


def _behind(rng: np.random.Generator):
    facing = rng.choice([-1.0, 1.0])
    gap = rng.uniform(32, 75)
    names = ["flat", "relaxed", "fan", "fist", "cup", "victory", "count", "point"]
    poses = [
        _Pose((rng.normal(0.35, 0.25), 0.85, 0.2), (rng.normal(0, 0.25), 0.1, facing),
              (rng.normal(-8, 14), rng.normal(0, 15), sign * gap / 2), rng.choice(names), 0.8) for sign in (-1, 1)
    ]
    return poses, (), False


FAMILIES: dict[str, Callable] = {
    "apart": _apart, "side_by_side": _side_by_side, "finger_to_finger": _finger_to_finger,
    "finger_to_palm": _finger_to_palm, "crossed": _crossed, "prayer": _prayer, "clasped": _clasped,
    "holding": _holding, "behind": _behind,
}
FAMILY_SHARES = {
    "apart": 0.08, "side_by_side": 0.10, "finger_to_finger": 0.15, "finger_to_palm": 0.12, "crossed": 0.12,
    "prayer": 0.12, "clasped": 0.14, "holding": 0.12, "behind": 0.05,
}
