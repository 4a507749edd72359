"""Bringing two hands together without passing through each other.

Hands are filled with spheres that move with the bones. Joint angles, placement and orientation of both hands then
descend on a sum of squares: spheres of different parts must not overlap, points that should touch attract each other,
everything else stays near where it started. The true meshes are measured afterwards and moved apart or together.

Legend: B pairs · 2 the hand axis · S spheres of a hand · A anchors · K attractions · 15, 16 joints. Metres; the sums
of squares are in millimetres.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree
from torch import Tensor

from common.hands import MODEL16, TIP_VERTICES, Hand, mirror_vectors
from common.mano import HandModel
from data.synthetic.articulation import FINGERS, Rig, clamp_angles, finger_rotations, rest_joints, shaped_template
from data.synthetic.families import PairStart

_STEPS = 50
_RATES = (0.03, 0.015, 0.0025)                                  # of bending, turning (radians) and shifting (metres)
_FOREARM = torch.tensor([0.03, 0.055, 0.08, 0.11, 0.14])        # forearm spheres: metres from the wrist
_FOREARM_RADIUS = 0.026
_WRAPPING = ("index2", "index3", "middle2", "middle3", "ring2", "ring3", "pinky2", "pinky3", "thumb3")


class Proxies(NamedTuple):
    """A hand of one shape, as spheres and named surface points fixed to its bones. Rest frame of a right hand."""

    joints: Tensor              # (16, 3)
    bone: Tensor                # (S,)          the joint each sphere moves with
    center: Tensor              # (S, 3)
    radius: Tensor              # (S,)
    own_reach: Tensor           # (S, S)        distance at which two spheres of one hand meet; −inf for neighbours
    wraps: Tensor               # (S,) bool     spheres that close round the other hand
    anchors: dict[str, int]     # name: row of the next two
    anchor_bone: Tensor         # (A,)
    anchor_point: Tensor        # (A, 3)


class Pairs(NamedTuple):
    """Settled pairs of hands."""

    angles: Tensor              # (B, 2, 15, 3)
    rotation_own: Tensor        # (B, 2, 3, 3)
    wrist_own: Tensor           # (B, 2, 3)


def build_proxies(model: HandModel, rig: Rig, shape: np.ndarray) -> Proxies:
    """Spheres as large as fit under the skin, along the bones of a hand of `shape` (10,)."""
    joints, vertices = rest_joints(model, shape), shaped_template(model, shape)
    tips = vertices[list(TIP_VERTICES)]
    bone, center = _sphere_seeds(joints, tips)
    center, radius = _grow(center, vertices)
    finger = torch.where(bone == 0, -1, (bone - 1) // 3)
    gap = torch.cdist(center, center) - radius[:, None] - radius
    are_neighbours = (finger[:, None] == finger) | (gap < 0.003)
    own_reach = torch.where(are_neighbours, -torch.inf, radius[:, None] + radius)
    wraps = torch.isin(bone, torch.tensor([MODEL16.index(name) for name in _WRAPPING]))
    anchors = _anchors(rig, joints, tips, vertices)
    joints, center, radius, own_reach = (x.float() for x in (joints, center, radius, own_reach))
    return Proxies(
        joints, bone, center, radius, own_reach, wraps, {name: row for row, name in enumerate(anchors)},
        torch.tensor([anchor_bone for anchor_bone, _ in anchors.values()]),
        torch.stack([point for _, point in anchors.values()]).float(),
    )


def _sphere_seeds(joints: Tensor, tips: Tensor) -> tuple[Tensor, Tensor]:
    """Points along the bones, before they are moved to the middle of the flesh."""
    seeds = []
    for finger, tip in zip(FINGERS, tips, strict=True):
        rows = [MODEL16.index(f"{finger}{k}") for k in (1, 2, 3)]
        ends = [*joints[rows[1:]], tip]
        for row, end in zip(rows, ends, strict=True):
            seeds += [(row, torch.lerp(joints[row], end, t)) for t in (0.08, 0.35, 0.62, 0.88)]
        seeds += [(0, torch.lerp(joints[0], joints[rows[0]], t)) for t in (0.12, 0.4, 0.65, 0.85)]
    thumb, index = joints[MODEL16.index("thumb1")], joints[MODEL16.index("index1")]
    seeds += [(0, torch.lerp(thumb, index, t)) for t in (0.3, 0.6)]
    return torch.tensor([bone for bone, _ in seeds]), torch.stack([point for _, point in seeds])


def _grow(center: Tensor, vertices: Tensor) -> tuple[Tensor, Tensor]:
    """Move each centre a little to where the largest sphere fits: centres (S, 3) and radii (S,)."""
    tree = cKDTree(vertices.numpy())
    steps = torch.tensor([[0.0, 0.0, 0.0], *np.concatenate([np.eye(3), -np.eye(3)]).tolist()], dtype=torch.float64)
    for length in (0.003, 0.002, 0.001, 0.0005):
        tries = center[:, None] + length * steps                                    # (S, 7, 3)
        room = torch.from_numpy(tree.query(tries.numpy())[0])
        center = tries[torch.arange(len(center)), room.argmax(dim=1)]
    # The nearest vertex is farther than the skin between vertices.
    return center, torch.from_numpy(tree.query(center.numpy())[0]) * 0.97


def _anchors(rig: Rig, joints: Tensor, tips: Tensor, vertices: Tensor) -> dict[str, tuple[int, Tensor]]:
    """Named points on the skin and the bone that each moves with."""
    back, thumb_side = torch.tensor([0.0, 1.0, 0.0]).double(), torch.tensor([0.0, 0.0, 1.0]).double()
    place = {name: joints[MODEL16.index(name)] for name in MODEL16.names}
    middle = torch.lerp(place["wrist"], place["middle1"], 0.6)
    anchors = {
        "palm": (0, _skin_point(vertices, middle, -back)),
        "heel": (0, _skin_point(vertices, torch.lerp(place["wrist"], place["ring1"], 0.3), -back)),
        "back": (0, _skin_point(vertices, middle, back)),
        "wrist_back": (0, _skin_point(vertices, place["wrist"], back)),
        "thumb_side": (0, _skin_point(vertices, place["index1"], thumb_side)),
        "pinky_side": (0, _skin_point(vertices, torch.lerp(place["wrist"], place["pinky1"], 0.7), -thumb_side)),
        "fingers_back": (MODEL16.index("middle1"), _skin_point(vertices, torch.lerp(
            place["middle1"], place["middle2"], 0.5), back)),
    }
    for finger, tip in zip(FINGERS, tips, strict=True):
        last = MODEL16.index(f"{finger}3")
        nail_side = rig.axes[last - 1, 1].double()
        inside = torch.lerp(joints[last], tip, 0.72)
        anchors[f"{finger}_pad"] = (last, _skin_point(vertices, inside, -nail_side))
    return anchors


def _skin_point(vertices: Tensor, inside: Tensor, direction: Tensor) -> Tensor:
    """The vertex that a ray from `inside` along `direction` passes closest to."""
    offset = vertices - inside
    along = offset @ direction
    across = (offset - along[:, None] * direction).norm(dim=-1)
    return vertices[torch.where(along > 0, across, torch.inf).argmin()]


# ---------------------------------------------------------------- settling

def settle(starts: list[PairStart], proxies: Proxies, rig: Rig, forearm_own: np.ndarray, clearance: float) -> Pairs:
    """Pairs near their starts whose spheres keep `clearance` metres from each other and whose anchors meet.

    forearm_own: (B, 2, 3) directions from the wrist to the elbow.
    """
    start = Pairs(
        _stacked([pair.angles for pair in starts]), _stacked([pair.rotation_own for pair in starts]),
        torch.zeros(len(starts), 2, 3),
    )
    palm = _posed_points(proxies, rig, start, proxies.anchor_bone, proxies.anchor_point)[
        :, :, proxies.anchors["palm"]]
    start = start._replace(wrist_own=_stacked([pair.palm_own for pair in starts]) - palm)
    forearms = torch.from_numpy(forearm_own).float()[:, :, None] * _FOREARM[:, None]        # (B, 2, 5, 3)
    targets = _attraction_table(starts, proxies)
    wraps = torch.tensor([pair.wraps for pair in starts])                             # (B, 2)

    moves = [torch.zeros(start.angles.shape), torch.zeros(len(starts), 2, 3), torch.zeros(len(starts), 2, 3)]
    averages = [(torch.zeros_like(move), torch.zeros_like(move)) for move in moves]
    for step in range(_STEPS):
        for move in moves:
            move.requires_grad_(True)
        pairs = _moved(start, rig, *moves)
        loss = _misfit(pairs, proxies, rig, forearms, targets, wraps, clearance)
        loss = loss + (20 * moves[0]).square().sum() + (60 * moves[1]).square().sum()
        gradients = torch.autograd.grad(loss, moves)
        decay = min(1.0, 2.0 - 1.8 * step / _STEPS)
        moves = [_adam(move.detach(), gradient, average, rate * decay, step + 1) for move, gradient, average, rate
                 in zip(moves, gradients, averages, _RATES, strict=True)]
    return _moved(start, rig, *moves)


def _adam(value: Tensor, gradient: Tensor, averages: tuple[Tensor, Tensor], rate: float, step: int) -> Tensor:
    """One step of Adam (Kingma and Ba, 2015). Written out because importing torch.optim takes seconds."""
    mean, square = averages
    mean.lerp_(gradient, 1 - 0.9)
    square.lerp_(gradient.square(), 1 - 0.99)
    return value - rate * (mean / (1 - 0.9**step)) / ((square / (1 - 0.99**step)).sqrt() + 1e-8)


def _stacked(arrays: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays)).float()


def _moved(start: Pairs, rig: Rig, bend: Tensor, turn: Tensor, shift: Tensor) -> Pairs:
    """Pairs bent, turned about the wrist and shifted, inside the joint limits."""
    # A quaternion (1, turn/2) is a rotation by |turn| to third order, and cheap to differentiate.
    w, (x, y, z) = torch.ones_like(turn[..., 0]), (turn / 2).unbind(-1)
    rows = torch.stack([w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y),
                        2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x),
                        2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z], dim=-1)
    rotation = (rows / (w * w + x * x + y * y + z * z)[..., None]).unflatten(-1, (3, 3))
    return Pairs(clamp_angles(rig, start.angles + bend), rotation @ start.rotation_own, start.wrist_own + shift)


def _posed_points(proxies: Proxies, rig: Rig, pairs: Pairs, bone: Tensor, points: Tensor) -> Tensor:
    """Points (N, 3) fixed to bones (N,), posed: (B, 2, N, 3) in the own frame."""
    rotation, origin = _bone_frames(proxies, rig, pairs)
    offsets = points - proxies.joints[bone]
    return (rotation[:, :, bone] * offsets[:, None]).sum(dim=-1) + origin[:, :, bone]


def _bone_frames(proxies: Proxies, rig: Rig, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Global rotations (B, 2, 16, 3, 3) and joints (B, 2, 16, 3) in the own frame.

    The five fingers are chains of three joints that stand one after another in MODEL16 order.
    """
    local = finger_rotations(rig, pairs.angles).unflatten(2, (5, 3))                # (B, 2, 5, 3, 3, 3)
    place = proxies.joints[1:].unflatten(0, (5, 3))                                 # (5, 3, 3)
    bones = torch.diff(place, dim=1, prepend=proxies.joints[:1].expand(5, 1, 3))
    rotation, joint = pairs.rotation_own[:, :, None], pairs.wrist_own[:, :, None]   # (B, 2, 1, ...)
    rotations, joints = [], []
    for k in range(3):
        joint = joint + (rotation * bones[:, k, None]).sum(dim=-1)
        rotation = rotation @ local[:, :, :, k]
        joints.append(joint)
        rotations.append(rotation)
    return (torch.cat([pairs.rotation_own[:, :, None], torch.stack(rotations, dim=3).flatten(2, 3)], dim=2),
            torch.cat([pairs.wrist_own[:, :, None], torch.stack(joints, dim=3).flatten(2, 3)], dim=2))


def _to_person(points_own: Tensor) -> Tensor:
    """Own-frame points (B, 2, N, 3) of both hands in the person frame: the left hand's are mirrored."""
    return torch.stack([points_own[:, Hand.RIGHT], mirror_vectors(points_own[:, Hand.LEFT])], dim=1)


def _attraction_table(starts: list[PairStart], proxies: Proxies) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of anchors (B, K, 2), gaps (B, K) and weights (B, K), padded with weight 0."""
    count = max(1, *(len(pair.attractions) for pair in starts))
    rows = torch.zeros(len(starts), count, 2, dtype=torch.int64)
    gaps, weights = torch.zeros(2, len(starts), count)
    for b, pair in enumerate(starts):
        for k, wish in enumerate(pair.attractions):
            rows[b, k] = torch.tensor([proxies.anchors[wish.on_right], proxies.anchors[wish.on_left]])
            gaps[b, k], weights[b, k] = wish.gap, 1.0
    return rows, gaps, weights


def _misfit(pairs: Pairs, proxies: Proxies, rig: Rig, forearms: Tensor, targets, wraps: Tensor,
            clearance: float) -> Tensor:
    """Squared millimetres: overlaps, distances between what should touch, fingers that should close."""
    bones = torch.cat([proxies.bone, proxies.anchor_bone])
    points = _to_person(_posed_points(proxies, rig, pairs, bones, torch.cat([proxies.center, proxies.anchor_point])))
    spheres, anchors = points.split([len(proxies.bone), len(proxies.anchor_bone)], dim=2)
    arms = _to_person(pairs.wrist_own[:, :, None] + forearms)                       # (B, 2, 5, 3)
    solids = torch.cat([spheres, arms], dim=2)
    radius = F.pad(proxies.radius, (0, len(_FOREARM)), value=_FOREARM_RADIUS)

    gap = _distances(solids[:, Hand.RIGHT], solids[:, Hand.LEFT]) - (radius[:, None] + radius)
    overlap = 1000 * F.relu(clearance - gap)
    own_gap = _distances(spheres, spheres) - proxies.own_reach
    own_overlap = 1000 * F.relu(-own_gap)

    rows, wanted, weights = targets
    batch = torch.arange(len(rows))[:, None]
    distance = (anchors[batch, Hand.RIGHT, rows[..., 0]] - anchors[batch, Hand.LEFT, rows[..., 1]] + 1e-9).norm(dim=-1)
    pull = 1000 * F.relu(distance - wanted) * weights
    # Huber: a far target pulls with constant force and does not tear the hand apart.
    pull = F.huber_loss(pull, torch.zeros_like(pull), delta=10.0, reduction="sum")

    inner = gap[:, : len(proxies.bone), : len(proxies.bone)]
    nearest = torch.stack([inner.amin(dim=2), inner.amin(dim=1)], dim=1)            # (B, 2, S)
    open_fingers = 1000 * F.relu(nearest - clearance - 0.001) * proxies.wraps * wraps[..., None]
    wrap = F.huber_loss(open_fingers, torch.zeros_like(open_fingers), delta=10.0, reduction="sum")
    return 6 * overlap.square().sum() + 2 * own_overlap.square().sum() + 2 * pull + 0.25 * wrap


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Distances (..., N, M) between points (..., N, 3) and (..., M, 3); differentiable where they coincide."""
    squared = sum((a[..., :, None, k] - b[..., None, :, k]).square() for k in range(3))
    return (squared + 1e-10).sqrt()
