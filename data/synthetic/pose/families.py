"""Families of two-hand interactions: start poses and attractions, which `contact.py` settles.

A family samples the poses and attractions of two roles; `sample_pair` assigns the roles to the hands. Directions are
in the `_own` frame: for either hand x points to the middle of the body, y up, z away from the chest.

Legend: 2 the hand axis · 15 articulated joints.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from common.hands import Hand
from data.synthetic.pose.arm import sample_elbow, wrist_strain
from data.synthetic.pose.articulation import PRESETS, Rig, blend_angles, sample_angles
from data.synthetic.pose.kinematics import OWN_SIGNS

# Rest-frame directions of a right hand, as rows: along the fingers, out of the back of the hand, to the thumb side.
_REST_AXES = np.array([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
_CANDIDATES = 4             # orientations sampled for a pair or a hand; the one that bends the wrists least is taken
_FINGERS = ("index", "middle", "ring", "pinky")


class Attraction(NamedTuple):
    """Two anchors that attract each other until they are `gap` metres apart. Names as in `proxies.Proxies.anchors`."""

    hands: tuple[Hand, Hand]
    names: tuple[str, str]
    gap: float = 0.0


class Start(NamedTuple):
    """Initial state for `contact.settle`."""

    present: tuple[Hand, ...]
    angles: np.ndarray                      # (2, 15, 3)
    rotation_own: np.ndarray                # (2, 3, 3)     from the rest frame of a right hand
    palm_own: np.ndarray                    # (2, 3)        middle of the palm
    elbow_own: np.ndarray                   # (2, 3)
    attractions: tuple[Attraction, ...]
    wraps: tuple[float, float]              # as in `contact.Task`
    touches: bool


class _Pose(NamedTuple):
    """One hand of a pair in its own frame."""

    fingers: tuple[float, float, float] | np.ndarray    # direction of the fingers when straight
    back: tuple[float, float, float] | np.ndarray       # direction that the back of the hand faces
    palm: tuple[float, float, float] | np.ndarray       # position of its middle, millimetres
    preset: str
    looseness: float = 0.7
    wrap: float = 0.0


class _Draft(NamedTuple):
    """Sample of a family: poses of the two roles, and attractions ((role, anchor), (role, anchor), gap in mm)."""

    poses: tuple[_Pose, _Pose]
    attractions: tuple[tuple[tuple[int, str], tuple[int, str], float], ...] = ()
    touches: bool = True
    wobble: float = 6.0         # standard deviation of a random rotation of each hand, degrees per axis


def sample_kind(interacting: float, rng: np.random.Generator) -> str:
    """A family of two hands with probability `interacting`, else "right" or "left"."""
    if rng.random() < interacting:
        return str(rng.choice(list(FAMILY_SHARES), p=list(FAMILY_SHARES.values())))
    return str(rng.choice([hand.label for hand in Hand]))


def sample_pair(family: str, rig: Rig, rng: np.random.Generator) -> Start:
    """A random pair of `family`, a key of FAMILIES."""
    draft = FAMILIES[family](rng)
    hand_of = [Hand(int(k)) for k in rng.permutation(2)]            # of each role
    poses = [draft.poses[hand_of.index(hand)] for hand in Hand]
    attractions = tuple(Attraction((hand_of[a], hand_of[b]), (on_a, on_b), gap / 1000)
                        for (a, on_a), (b, on_b), gap in draft.attractions)
    wobble = Rotation.from_rotvec(rng.normal(0, np.radians(draft.wobble), (2, 3))).as_matrix()
    start = Start(
        tuple(Hand), np.stack([sample_angles(rig, pose.preset, pose.looseness, rng) for pose in poses]),
        wobble @ np.stack([oriented(pose.fingers, pose.back) for pose in poses]),
        np.array([pose.palm for pose in poses]) / 1000, np.zeros((2, 3)), attractions,
        tuple(pose.wrap for pose in poses), draft.touches,
    )
    return _most_comfortable([_rotated(start, rotation) for rotation in _pair_rotations(rng)], rng)


def sample_single(hand: Hand, rig: Rig, rng: np.random.Generator) -> Start:
    """A random single hand. The other row of each array is a copy that takes no part in anything."""
    preset, looseness = str(rng.choice(PRESETS)), rng.uniform(0.4, 1.1)
    angles = sample_angles(rig, preset, looseness, rng)
    attractions: tuple[Attraction, ...] = ()
    if preset.startswith("pinch"):
        finger = preset.removeprefix("pinch").removeprefix("_") or "index"
        attractions = (Attraction((hand, hand), ("thumb_pad", f"{finger}_pad")),)
    elif rng.random() < 0.4:
        angles = blend_angles(rig, angles, sample_angles(rig, str(rng.choice(PRESETS)), looseness, rng), rng)
    origin, candidates = np.zeros((2, 3)), []
    for _ in range(_CANDIDATES):
        rotation = oriented(np.array([0.35, 0.7, 0.4]) + rng.normal(0, 0.5, 3), rng.normal(0, 1, 3))
        candidates.append(Start((hand,), np.stack([angles] * 2), np.stack([rotation] * 2), origin, origin, attractions,
                                (0.0, 0.0), False))
    return _most_comfortable(candidates, rng)


def oriented(fingers, back) -> np.ndarray:
    """The rotation (3, 3) that takes a resting right hand's fingers and back to the given directions (3,)."""
    fingers = np.asarray(fingers, dtype=float)
    fingers = fingers / np.linalg.norm(fingers)
    back = np.asarray(back, dtype=float)
    back = back - (back @ fingers) * fingers
    back = back / np.linalg.norm(back)
    return np.stack([fingers, back, np.cross(back, fingers)], axis=1) @ _REST_AXES


def _pair_rotations(rng: np.random.Generator) -> np.ndarray:
    """Candidate rotations (_CANDIDATES, 3, 3) of a pair as a whole, person frame; about x it is rotated the most."""
    angles = np.clip(rng.normal(0, 1, (_CANDIDATES, 3)), -2, 2) * np.radians([30, 38, 28])
    return Rotation.from_euler("yxz", angles).as_matrix()


def _rotated(start: Start, rotation: np.ndarray) -> Start:
    """The pair rotated about the origin of the person frame."""
    per_hand = np.stack([rotation, rotation * OWN_SIGNS[Hand.LEFT] * OWN_SIGNS[Hand.LEFT][:, None]])
    return start._replace(rotation_own=per_hand @ start.rotation_own,
                          palm_own=(per_hand @ start.palm_own[..., None])[..., 0])


def _most_comfortable(starts: list[Start], rng: np.random.Generator) -> Start:
    """The start that bends the wrists least, with sampled elbows."""
    strain = [wrist_strain(start.rotation_own, start.palm_own).sum() for start in starts]
    best = starts[int(np.argmin(strain))]
    return best._replace(elbow_own=sample_elbow(best.rotation_own, best.palm_own, rng))


# ---------------------------------------------------------------- the families: apart

def _apart(rng: np.random.Generator) -> _Draft:
    def one() -> _Pose:
        fingers = np.array([0.45, 0.7, 0.5]) + rng.normal(0, 0.4, 3)
        back = np.array([-0.5, 0.2, 0.4]) + rng.normal(0, 0.7, 3)
        palm = (-rng.uniform(65, 105), *rng.normal(0, 25, 2))
        return _Pose(fingers, back, palm, str(rng.choice(PRESETS)), 1.0)
    return _Draft((one(), one()), touches=False)


def _near(rng: np.random.Generator) -> _Draft:
    """Close to each other without touching."""
    names = ["flat", "relaxed", "fan", "fist", "cup", "victory", "three", "point", "claw"]
    if rng.random() < 0.5:                                          # one behind the other, else palm to palm
        facing, gap = rng.choice([-1.0, 1.0]), rng.uniform(34, 75)
        poses = tuple(
            _Pose((rng.normal(0.35, 0.25), 0.85, 0.2), (rng.normal(0, 0.25), 0.1, facing),
                  (rng.normal(-8, 14), rng.normal(0, 15), sign * gap / 2), str(rng.choice(names)), 0.8)
            for sign in (-1, 1)
        )
    else:
        gap = rng.uniform(12, 45)
        fingers = np.array([0.1, 0.75, 0.5])
        poses = tuple(_Pose(fingers + rng.normal(0, 0.2, 3), (-1.0, 0.1, 0.1), (-gap / 2 - 12, *rng.normal(0, 14, 2)),
                            str(rng.choice(names)), 0.6) for _ in range(2))
    return _Draft(poses, touches=False)


def _side_by_side(rng: np.random.Generator) -> _Draft:
    facing = rng.choice([-1.0, 1.0])                                # backs towards the chest, or away from it
    preset = str(rng.choice(["flat", "relaxed", "fan", "fist", "cup", "point", "victory", "four"]))
    other = preset if rng.random() < 0.6 else str(rng.choice(["flat", "relaxed", "fist", "cup", "thumb_up"]))
    distance, touches = rng.uniform(40, 62), bool(rng.random() < 0.6)
    poses = tuple(
        _Pose((rng.normal(0.1, 0.15), 0.9, 0.35), (rng.normal(0, 0.2), 0.2, facing), (-distance, rng.normal(0, 12), 0),
              name, 0.8) for name in (preset, other)
    )
    edge = "pinky_side" if facing > 0 else "thumb_side"
    return _Draft(poses, (((0, edge), (1, edge), 0 if touches else 25),), touches)


# ---------------------------------------------------------------- fingers that touch

def _finger_to_finger(rng: np.random.Generator) -> _Draft:
    kind = str(rng.choice(["index", "steeple", "thumbs", "frame", "heart", "mixed"]))
    fingers, back = (0.75, 0.45, 0.45), (-0.25, 0.6, -0.5)
    if kind == "steeple":
        fingers, back = (0.35, 0.85, 0.35), (-1.0, 0.3, 0.0)
    elif kind == "heart":
        fingers, back = (0.55, 0.8, 0.15), (-0.75, 0.5, 0.35)
    preset = {"index": "point", "steeple": "cup", "thumbs": "fist", "frame": "thumb_and_index", "heart": "roof",
              "mixed": "relaxed"}[kind]
    one, other = str(rng.choice(["index", "middle", "thumb"])), str(rng.choice(_FINGERS[:3]))
    pairs = {
        "index": (("index_tip", "index_tip"),),
        "steeple": tuple((f"{f}_pad", f"{f}_pad") for f in ("thumb", *_FINGERS)),
        "thumbs": (("thumb_pad", "thumb_pad"),),
        "frame": (("index_pad", "thumb_pad"), ("thumb_pad", "index_pad")),
        "heart": (("index_pad_back", "index_pad_back"), ("thumb_tip", "thumb_tip")),
        "mixed": ((f"{one}_pad", f"{other}_pad"),),
    }[kind]
    poses = tuple(_Pose(fingers, back, (-rng.uniform(70, 85), rng.normal(0, 8), rng.normal(0, 8)), preset, 0.6)
                  for _ in range(2))
    return _Draft(poses, tuple(((0, a), (1, b), 0) for a, b in pairs))


def _counting(rng: np.random.Generator) -> _Draft:
    """Counting on the fingers: a fingertip on a fingertip of the open other hand, now and then bending it back."""
    finger, preset = str(rng.choice(("thumb", *_FINGERS))), str(rng.choice(["fan", "relaxed", "flat", "four"]))
    tool = str(rng.choice(["index", "index", "thumb", "middle"]))
    counter = _Pose((0.85, 0.15, 0.3), (-0.3, 0.75, 0.4), (-95, 30, 10), "point" if tool == "index" else "relaxed", 0.6)
    counted = _Pose((0.25, 0.85, 0.45), (rng.choice([-0.8, 0.3]), 0.1, rng.choice([-0.8, 0.6])), (-20, -10, 0), preset,
                    0.7)
    return _Draft((counter, counted), (((0, f"{tool}_pad"), (1, f"{finger}_{rng.choice(['pad', 'tip'])}"), 0),))


def _pinching(rng: np.random.Generator) -> _Draft:
    """Thumb and index finger of one hand pinch a finger of the other."""
    pincher = _Pose((0.85, -0.05, 0.4), (-0.3, 0.8, 0.3), (-85, 30, 0), "pinch", 0.4)
    finger = str(rng.choice(("thumb", *_FINGERS)))
    part = str(rng.choice(["root", "middle", "pad"]))
    held = _Pose((0.25, 0.8, 0.5), (-0.6, -0.3, 0.6), (-20, 0, 0), str(rng.choice(["flat", "relaxed", "fan", "four"])),
                 0.7)
    return _Draft((pincher, held), (((0, "index_pad"), (1, f"{finger}_{part}_back"), 0),
                                    ((0, "thumb_pad"), (1, f"{finger}_{part}"), 0)))


def _pointing(rng: np.random.Generator) -> _Draft:
    """A fingertip somewhere on the other hand."""
    finger = str(rng.choice(["index", "index", "middle", "thumb"]))
    target = str(rng.choice(["palm", "palm", "back", "heel", "wrist_palm", "wrist_back"]))
    touching = _Pose((0.85, -0.1, 0.4), (-0.3, 0.8, 0.3), (-95, 25, 0), "point" if finger == "index" else "relaxed",
                     0.6)
    facing = (0.8, 0.4, 0.2) if target.endswith("back") else (-0.9, -0.2, 0.3)
    open_hand = _Pose((0.2, 0.8, 0.5), facing, (-15, 0, 0), str(rng.choice(["flat", "relaxed", "fan", "cup"])), 0.7)
    return _Draft((touching, open_hand), (((0, f"{finger}_pad"), (1, target), 0),))


def _hooked(rng: np.random.Generator) -> _Draft:
    """Bent fingers hooked into each other, one palm towards the chest and the other away from it."""
    names = [("index",), ("pinky",), _FINGERS, _FINGERS[:3]][int(rng.integers(4))]
    preset = {1: "grip", 3: "hook", 4: "hook"}[len(names)] if names != ("index",) else "grip"
    reach = rng.uniform(58, 68)
    towards = _Pose((1.0, 0.1, 0.1), (-0.1, 0.15, 1.0), (-reach, 0, 14), preset, 0.3)
    away = _Pose((1.0, 0.1, 0.1), (-0.1, 0.15, -1.0), (-reach, 0, -14), preset, 0.3)
    return _Draft((towards, away), tuple(((0, f"{name}_middle"), (1, f"{name}_middle"), 0) for name in names))


# ---------------------------------------------------------------- palms, backs and fists

def _crossed(rng: np.random.Generator) -> _Draft:
    preset = str(rng.choice(["flat", "relaxed", "fan"]))
    under = _Pose((0.85, 0.25, 0.45), (0.1, 0.75, 0.65), (-5, -8, -6), preset, 0.6)
    over = _Pose((0.8, 0.25, 0.5), (0.1, 0.75, 0.65), (-5, 24, 22), str(rng.choice(["flat", "relaxed", "cup"])), 0.6,
                 float(rng.choice([0.0, 0.4])))
    anchor = str(rng.choice(["back", "middle_root_back", "wrist_back"]))
    return _Draft((under, over), (((0, anchor), (1, str(rng.choice(["palm", "palm", "wrist_palm"]))), 0),))


def _palm_to_palm(rng: np.random.Generator) -> _Draft:
    preset = str(rng.choice(["flat", "flat", "fan", "cup"]))
    slide = rng.normal(0, 9, 2)
    poses = tuple(_Pose((0.05, 0.75, 0.55), (-1.0, 0.0, 0.05), (-22, sign * slide[0], sign * slide[1]), preset, 0.45)
                  for sign in (-1, 1))
    pads = tuple(((0, f"{f}_pad"), (1, f"{f}_pad"), 0) for f in _FINGERS) if abs(slide).max() < 12 else ()
    return _Draft(poses, (((0, "palm"), (1, "palm"), float(rng.choice([0, 0, 12]))), *pads))


def _interlaced(rng: np.random.Generator) -> _Draft:
    """Interlaced fingers: each hand is shifted by half a finger's breadth along the knuckles.

    The fingers of both hands cross in the plane x = 0, `crossing` millimetres from the knuckles.
    """
    preset, bend, tilt, crossing = [("laced", 10, 42, 48), ("half_folded", 28, 28, 40), ("folded", 46, 12, 33)][
        int(rng.integers(3))]                                       # from straight fingers to folded hands
    crossing = crossing + rng.normal(0, 2)
    tilt, bend = np.radians([tilt + rng.normal(0, 3), bend])        # of the hand, of the first joints
    up = np.array([0.0, np.cos(0.9), np.sin(0.9)])
    across = np.array([1.0, 0.0, 0.0])
    fingers, back = np.sin(tilt) * across + np.cos(tilt) * up, np.sin(tilt) * up - np.cos(tilt) * across
    bones = np.cos(bend) * fingers - np.sin(bend) * back
    palm = -crossing * bones - 34 * fingers - 15 * back
    along_knuckles = np.cross(back, fingers)                        # towards the thumb
    poses = tuple(_Pose(fingers, back, palm + sign * 7.5 * along_knuckles, preset, 0.15, 0.0 if preset == "laced"
                        else 0.25) for sign in (-1, 1))
    return _Draft(poses, (((0, "palm"), (1, "palm"), 0.8 * 2 * abs(palm[0])),), wobble=1.0)


def _clasped(rng: np.random.Generator) -> _Draft:
    """Palm in palm, each hand's fingers around the edge of the other."""
    angle = np.radians(rng.uniform(25, 50))
    across = np.array([0.0, np.sin(angle), np.cos(angle)])
    along = np.array([0.0, np.cos(angle), -np.sin(angle)])
    lower = _Pose(across + 0.3 * along, (-1.0, -0.1, 0.1), (-24, -6, -4), "cup", 0.4, 0.8)
    upper = _Pose(along * 0.6 + across * 0.6, (-1.0, 0.2, 0.1), (-24, 6, 4), "cup", 0.4, 0.8)
    return _Draft((lower, upper), (((0, "palm"), (1, "palm"), 4),))


def _fist_in_palm(rng: np.random.Generator) -> _Draft:
    part = str(rng.choice(["middle_root_back", "middle_middle_back", "pinky_side", "thumb_side"]))
    fist = {
        "middle_root_back": _Pose((0.9, 0.2, 0.3), (0.0, 0.9, 0.3), (-70, 0, 0), "fist", 0.3),
        "middle_middle_back": _Pose((0.8, 0.4, 0.4), (-0.3, 0.8, 0.3), (-62, 0, 0), "fist", 0.3),
        "pinky_side": _Pose((0.5, 0.0, 0.85), (-0.8, 0.0, 0.5), (-10, 52, 0), "fist", 0.3),
        "thumb_side": _Pose((0.5, 0.1, 0.85), (-0.8, 0.0, 0.5), (-10, -52, 0), "fist", 0.3),
    }[part]
    holder = {
        "middle_root_back": _Pose((0.15, 0.8, 0.5), (-1.0, 0.1, 0.1), (-8, 0, 0), "relaxed", 0.4, 0.8),
        "middle_middle_back": _Pose((0.15, 0.8, 0.5), (-1.0, 0.1, 0.1), (-8, 0, 0), "relaxed", 0.4, 0.8),
        "pinky_side": _Pose((0.6, 0.1, 0.8), (-0.1, -1.0, 0.1), (-6, -10, 0), "relaxed", 0.5, 0.5),
        "thumb_side": _Pose((0.6, 0.1, 0.8), (-0.1, 1.0, 0.1), (-6, 10, 0), "relaxed", 0.5, 0.6),
    }[part]
    return _Draft((fist, holder), (((0, part), (1, "palm"), 0),))


def _on_the_back(rng: np.random.Generator) -> _Draft:
    """A palm on the back of the other hand."""
    below = _Pose((0.65, 0.25, 0.7), (-0.2, 0.9, 0.3), (-10, -8, 0),
                  str(rng.choice(["flat", "relaxed", "cup", "fist"])), 0.6)
    fingers = np.array([0.7, 0.25, rng.uniform(0.2, 0.9)])
    above = _Pose(fingers, (-0.2, 0.9, 0.3), (-10, 20, 4), str(rng.choice(["lid", "lid", "fan"])), 0.4,
                  float(rng.choice([0.0, 0.2])))
    place = str(rng.choice(["back", "middle_root_back"]))
    return _Draft((below, above), (((0, place), (1, "palm"), 0), ((0, "back"), (1, "palm"), 8)))


def _holding(rng: np.random.Generator) -> _Draft:
    """A hand around the other hand, its wrist or one of its fingers."""
    anchor = str(rng.choice(["back", "middle_root_back", "pinky_side", "wrist", "finger"]))
    held = str(rng.choice(["fist", "grip", "relaxed", "cup", "flat", "thumb_up"]))
    inner = _Pose((0.55, 0.3, 0.75), (-0.65, 0.65, 0.3), (-8, 0, 0), held, 0.5)
    if anchor == "wrist":
        inner = inner._replace(palm=(-8, 45, 55))
        outer = _Pose((0.75, 0.2, 0.3), (-0.3, 0.8, 0.5), (-30, 25, -20), "cup", 0.4, 1.0)
        return _Draft((inner, outer), (((0, "wrist_back"), (1, "palm"), 0),))
    if anchor == "finger":
        finger = str(rng.choice(("thumb", *_FINGERS)))
        inner = _Pose((0.35, 0.85, 0.3), (-0.5, 0.3, -0.6), (-30, -50, 0), str(rng.choice(["fan", "relaxed"])), 0.5)
        outer = _Pose((0.75, 0.2, 0.5), (-0.3, 0.6, 0.6), (-42, 20, 15), "grip", 0.3, 1.0)
        return _Draft((inner, outer), (((0, f"{finger}_middle"), (1, "middle_root"), 12),
                                       ((0, f"{finger}_middle_back"), (1, "middle_middle"), 0)))
    outer = {
        "back": _Pose((0.5, 0.5, 0.7), (-0.8, 0.1, 0.55), (-32, 0, 25), "grip", 0.4, 1.0),
        "middle_root_back": _Pose((0.3, 0.6, 0.7), (-0.9, -0.3, 0.3), (-38, 0, 40), "grip", 0.4, 1.0),
        "pinky_side": _Pose((0.6, 0.1, 0.8), (-0.3, -0.95, 0.1), (-12, -50, 8), "cup", 0.5, 0.8),
    }[anchor]
    return _Draft((inner, outer), (((0, anchor), (1, "palm"), 0),))


FAMILY_SHARES = {
    "apart": 0.05, "near": 0.07, "side_by_side": 0.06,
    "finger_to_finger": 0.10, "counting": 0.06, "pinching": 0.07, "pointing": 0.07, "hooked": 0.05,
    "crossed": 0.07, "palm_to_palm": 0.08, "interlaced": 0.09, "clasped": 0.06, "fist_in_palm": 0.06,
    "on_the_back": 0.05, "holding": 0.06,
}
FAMILIES: dict[str, Callable[[np.random.Generator], _Draft]] = {
    "apart": _apart, "near": _near, "side_by_side": _side_by_side, "finger_to_finger": _finger_to_finger,
    "counting": _counting, "pinching": _pinching, "pointing": _pointing, "hooked": _hooked, "crossed": _crossed,
    "palm_to_palm": _palm_to_palm, "interlaced": _interlaced, "clasped": _clasped, "fist_in_palm": _fist_in_palm,
    "on_the_back": _on_the_back, "holding": _holding,
}
