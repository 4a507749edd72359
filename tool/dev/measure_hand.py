"""Measure the built-in hand against anatomy.   python tool/dev/measure_hand.py [--poses 260] [--seed 0]

Prints the share of its volume that each finger keeps with its joints at their limits, with and without pose
correctives; how deep the skin penetrates itself in random natural poses; and the means and spreads of the hand's sizes
beside published ones. It takes the finished hand and shares no code with `tool/dev/hand_builder`.

Legend: V vertices · P points · N poses. Metres, printed as millimetres.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))     # the repository, however Python was started
import main._bootstrap as _bootstrap

import argparse
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import trimesh
from scipy.spatial import ConvexHull
from torch import Tensor

from common.errors import run_entry_point
from common.hands import MODEL16, TIP_VERTICES, Hand
from common.mano.load import BUILTIN_HAND, load_hand_model
from common.mano.model import HandModel, ManoLayer
from common.types import ManoParams
from data.synthetic.pose.articulation import FINGERS, FLEXION, PRESETS, Rig, finger_rotations, load_rig, sample_angles
from data.synthetic.pose.interaction import winding_number
from data.synthetic.subdivision import edge_table, subdivide

# Mean and standard deviation in mm, men and women in equal parts.
# Hand and wrist: 1774 men and 2208 women (Gordon et al. 1989, Natick TR-89/044).
# Fingers, from the palm-side crease to the tip: 51 young adults (Chatzıoğlou et al. 2024, Anat Cell Biol 57:172).
# The spread of the thumb (5.5 there) is left out: photographs show it rotated by different angles.
PUBLISHED = {
    "hand length": (187.2, 11.8),
    "hand breadth": (84.9, 6.8),
    "hand circumference": (200.0, 16.6),
    "wrist circumference": (162.9, 13.8),
    "thumb length": (49.5, None),
    "index length": (63.9, 4.1),
    "middle length": (70.7, 5.2),
    "ring length": (65.5, 4.8),
    "pinky length": (53.3, 4.3),
}

_SKIN = 1e-4                                    # depth at which a point below a vertex is inside the hand
_STEPS = np.arange(0.0005, 0.0105, 0.0005)      # distances by which a vertex is pushed to leave other flesh
_DIRECTIONS = np.delete(np.stack(np.meshgrid(*3 * [[-1.0, 0.0, 1.0]]), axis=-1).reshape(-1, 3), 13, axis=0)
_DIRECTIONS /= np.linalg.norm(_DIRECTIONS, axis=1)[:, None]


# ---------------------------------------------------------------- meshes

def pose(model: HandModel, rotations: Tensor) -> np.ndarray:
    """Right hands (N, 778, 3) of mean shape with joint rotations (N, 15, 3, 3)."""
    full = torch.eye(3).expand(len(rotations), 2, 16, 3, 3).clone()
    full[:, Hand.RIGHT, 1:] = rotations
    with torch.no_grad():
        return ManoLayer(model)(ManoParams(full, torch.zeros(len(rotations), 2, 10)))[:, Hand.RIGHT].double().numpy()


def without_correctives(model: HandModel) -> HandModel:
    return replace(model, posedirs=torch.zeros_like(model.posedirs))


def natural_angles(rig: Rig, count: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Names of presets (N,) and joint angles (N, 15, 3) of random hands around every preset in turn."""
    rng = np.random.default_rng(seed)
    names = [PRESETS[k % len(PRESETS)] for k in range(count)]
    return names, np.stack([sample_angles(rig, name, rng.uniform(0, 1), rng) for name in names])


def joints_of(finger: str) -> list[int]:
    return [MODEL16.index(f"{finger}{k}") for k in (1, 2, 3)]


def closed(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mesh with its one hole, if any, closed by a fan around the centre of the rim."""
    sides = np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1).reshape(-1, 2)
    directed = set(map(tuple, sides.tolist()))
    rim = np.array([(b, a) for a, b in sides.tolist() if (b, a) not in directed], dtype=np.int64).reshape(-1, 2)
    if not len(rim):
        return vertices, faces
    fan = np.concatenate([rim, np.full((len(rim), 1), len(vertices))], axis=1)
    return np.concatenate([vertices, vertices[np.unique(rim)].mean(axis=0)[None]]), np.concatenate([faces, fan])


def volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Volume of the closed mesh, m³."""
    points, solid = closed(vertices, faces)
    a, b, c = np.moveaxis(points[solid], 1, 0)
    return float(np.einsum("fi,fi->", a, np.cross(b, c)) / 6)


# ---------------------------------------------------------------- skin through skin

def self_intersection(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Penetration depth (V,) of each vertex: how far it must be pushed inwards, in the best direction, to be free.

    0 where the skin is free; in steps of half a millimetre up to a centimetre. Just under the skin the winding number
    is 1, and 2 where another part of the hand covers it.
    """
    points, solid = closed(vertices, faces)
    triangles = points[solid]
    inwards = -trimesh.Trimesh(points, solid, process=False).vertex_normals[: len(vertices)]
    depth = np.zeros(len(vertices))
    caught = np.nonzero(winding_number(vertices + _SKIN * inwards, triangles) > 1.5)[0]
    for step in _STEPS:
        if not len(caught):
            break
        depth[caught] = step
        direction, row = np.nonzero(_DIRECTIONS @ inwards[caught].T > 0.3)          # (26, caught)
        is_free = winding_number(vertices[caught[row]] + step * _DIRECTIONS[direction], triangles) < 1.5
        caught = np.setdiff1d(caught, caught[row[is_free]])
    return depth


def meeting(model: HandModel, vertices: np.ndarray, vertex: int) -> tuple[str, str]:
    """Names of the bones whose skin collides at a vertex of a posed hand (V, 3): ("index3", "thumb2")."""
    before, now = (np.linalg.norm(points - points[vertex], axis=1)
                   for points in (model.template[Hand.RIGHT].double().numpy(), vertices))
    before[vertex] = np.nan
    other = int(np.nanargmin(now / before))         # the vertex that came nearest, relative to the resting hand
    owner = model.weights[Hand.RIGHT].argmax(dim=1)
    return MODEL16.names[owner[vertex]], MODEL16.names[owner[other]]


# ---------------------------------------------------------------- volumes

def finger_volumes(model: HandModel, rig: Rig) -> dict[str, tuple[float, float]]:
    """Share of its rest volume that each finger keeps: {finger: (one, all)}.

    one: the least, with one joint at either limit of flexion.  all: with all joints at their upper limit.
    """
    return {finger: _volumes_of(model, rig, finger) for finger in FINGERS}


def _volumes_of(model: HandModel, rig: Rig, finger: str) -> tuple[float, float]:
    own = joints_of(finger)
    angles = torch.zeros(8, 15, 3)
    for k, joint in enumerate(own):
        angles[1 + 2 * k: 3 + 2 * k, joint - 1, FLEXION] = rig.limits[joint - 1, FLEXION]
    angles[7, [joint - 1 for joint in own], FLEXION] = rig.limits[[joint - 1 for joint in own], FLEXION, 1]

    faces = model.faces[Hand.RIGHT].numpy()
    follows = model.weights[Hand.RIGHT][:, own].sum(dim=1).numpy() > 0.5
    faces = faces[follows[faces].all(axis=1)]
    rest, *bent = (volume(vertices, faces) for vertices in pose(model, finger_rotations(rig, angles)))
    return min(bent[:-1]) / rest, bent[-1] / rest


# ---------------------------------------------------------------- sizes

class Ruler:
    """Measures flat right hands by their meshes, as anthropometry measures people."""

    def __init__(self, model: HandModel):
        self.model = model
        self.fine, faces = subdivide(model.faces[Hand.RIGHT].numpy(), 778, levels=2)
        self.edges = edge_table(faces)[0]
        weights = self.fine @ model.weights[Hand.RIGHT].double().numpy()
        with np.load(BUILTIN_HAND, allow_pickle=False) as file:
            skin = dict(zip(file["skin_channels"].tolist(), file["skin"].T / 255.0, strict=True))
        self.own = {finger: weights[:, joints_of(finger)].sum(axis=1) > 0.5 for finger in FINGERS}
        self.creases = {finger: self._base_crease(finger, skin) for finger in FINGERS}

    def _base_crease(self, finger: str, skin: dict[str, np.ndarray]) -> np.ndarray:
        """Weights of the fine vertices, summing to 1, in the flexion crease between finger and palm."""
        is_thumb = finger == "thumb"
        start, end = joints_of(finger)[1:] if is_thumb else joints_of(finger)[:2]
        first, last = (0.1, 0.6) if is_thumb else (0.35, 0.8)       # where to search, as fractions of the bone
        template = self.model.template[Hand.RIGHT].double().numpy()
        joints = self.model.regressor[Hand.RIGHT].double().numpy() @ template
        bone = joints[end] - joints[start]
        past = (self.fine @ template - joints[start]) @ bone / (bone @ bone)
        drawn = self.own[finger] * (past > first) * (past < last) * (skin["palm"] > 0.6) * skin["crease"] ** 2
        return drawn / drawn.sum()

    def sizes(self, shape: np.ndarray) -> dict[str, float]:
        """All sizes of a hand of `shape` (10,), metres."""
        model = self.model
        vertices = (model.template[Hand.RIGHT] + model.shapedirs[Hand.RIGHT] @ torch.from_numpy(shape).float()).double()
        joints = (model.regressor[Hand.RIGHT].double() @ vertices).numpy()
        fine = self.fine @ vertices.numpy()
        place = dict(zip(MODEL16.names, joints, strict=True))
        tips = dict(zip(FINGERS, vertices.numpy()[list(TIP_VERTICES)], strict=True))

        found = {"hand length": place["wrist"][0] - tips["middle"][0]}
        along, up, across = np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), place["index1"] - place["pinky1"]
        palm = self._cut(fine, ~self.own["thumb"], place["middle1"] + 0.002 * along, np.cross(across, up))
        found["hand breadth"] = np.ptp(palm @ across / np.linalg.norm(across))
        found["hand circumference"] = tape(palm, across, up)
        wrist = self._cut(fine, ~self.own["thumb"], place["wrist"] + 0.008 * along, along)
        found["wrist circumference"] = tape(wrist, np.cross(along, up), up)
        found["hand thickness"] = np.ptp(palm[np.abs((palm - place["middle1"])[:, 2]) < 0.004][:, 1])
        for finger in FINGERS:
            found[f"{finger} length"] = np.linalg.norm(tips[finger] - self.creases[finger] @ fine)
        for finger in FINGERS[1:]:
            found[f"{finger} breadth at joint 2"] = self._breadth(fine, finger, place)
        return found

    def _breadth(self, fine: np.ndarray, finger: str, place: dict[str, np.ndarray]) -> float:
        """Breadth of a finger at its second joint."""
        bone = place[f"{finger}3"] - place[f"{finger}2"]
        section = self._cut(fine, self.own[finger], place[f"{finger}2"], bone)
        across = np.cross(bone, [0.0, 1.0, 0.0])
        return np.ptp(section @ across / np.linalg.norm(across))

    def _cut(self, fine: np.ndarray, part: np.ndarray, point: np.ndarray, normal: np.ndarray) -> np.ndarray:
        """Points (P, 3) where a plane crosses the edges between vertices `part` (bool) of the fine surface."""
        side = (fine - point) @ normal
        edges = self.edges[part[self.edges].all(axis=1)]
        a, b = edges[side[edges[:, 0]] * side[edges[:, 1]] < 0].T
        return fine[a] + (side[a] / (side[a] - side[b]))[:, None] * (fine[b] - fine[a])

    def statistics(self) -> dict[str, tuple[float, float]]:
        """{size: (mean, standard deviation)} in metres, over shapes from N(0, 1), to first order."""
        mean = self.sizes(np.zeros(10))
        steps = []
        for unit in np.eye(10):
            longer, shorter = self.sizes(unit), self.sizes(-unit)
            steps.append([(longer[name] - shorter[name]) / 2 for name in mean])
        spread = np.linalg.norm(steps, axis=0)
        return {name: (mean[name], float(spread[k])) for k, name in enumerate(mean)}


def tape(points: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    """Length of a tape around points (P, 3) in a plane spanned by `x` and `y`: the perimeter of the convex hull."""
    flat = np.stack([points @ (axis / np.linalg.norm(axis)) for axis in (x, y)], axis=1)
    return float(ConvexHull(flat).area)         # in two dimensions the area is the perimeter


# ---------------------------------------------------------------- the report

def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--poses", type=int, default=260, help="natural poses to measure (default: 260)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model, rig = load_hand_model("builtin"), load_rig()
    print(f"The built-in hand, sha256 {model.sha256[:12]}\n")
    _print_sizes(Ruler(model).statistics())
    _print_volumes(lambda hand: finger_volumes(hand, rig), model)
    _print_intersections(model, rig, args.poses, args.seed)


def _print_sizes(found: dict[str, tuple[float, float]]) -> None:
    print(f"{'size, mm':26s}{'mean':>8s}{'spread':>8s}{'published':>16s}")
    for name, (mean, spread) in found.items():
        reference = ""
        if name in PUBLISHED:
            wanted, around = PUBLISHED[name]
            reference = f"{wanted:.1f} ± {around:.1f}" if around else f"{wanted:.1f}"
        print(f"{name:26s}{1000 * mean:8.1f}{1000 * spread:8.1f}{reference:>16s}")


def _print_volumes(measure: Callable[[HandModel], dict[str, tuple[float, float]]], model: HandModel) -> None:
    print(f"\n{'volume kept':12s}{'one joint at its limit':>26s}{'all bent':>12s}   (without correctives)")
    plain = measure(without_correctives(model))
    for finger, (one, every) in measure(model).items():
        print(f"{finger:12s}{one:26.3f}{every:12.3f}   ({plain[finger][0]:.3f}, {plain[finger][1]:.3f})")


def _print_intersections(model: HandModel, rig: Rig, count: int, seed: int) -> None:
    names, angles = natural_angles(rig, count, seed)
    meshes = pose(model, finger_rotations(rig, torch.from_numpy(angles).float()))
    faces = model.faces[Hand.RIGHT].numpy()
    depths = np.stack([self_intersection(vertices, faces) for vertices in meshes])  # (N, V)
    deepest = 1000 * depths.max(axis=1)
    print(f"\nskin through skin in {count} natural poses, deepest vertex: median {np.median(deepest):.1f} mm, "
          f"95th percentile {np.percentile(deepest, 95):.1f} mm, maximum {deepest.max():.1f} mm")
    for preset in PRESETS:
        of_preset = [k for k, name in enumerate(names) if name == preset]
        if of_preset:
            worst = of_preset[int(deepest[of_preset].argmax())]
            where = " and ".join(meeting(model, meshes[worst], int(depths[worst].argmax()))) if deepest[worst] else ""
            print(f"  {preset:12s} median {np.median(deepest[of_preset]):4.1f}, maximum {deepest[worst]:4.1f} {where}")


if __name__ == "__main__":
    run_entry_point(main)
