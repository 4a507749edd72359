"""Collision proxies of a hand: spheres that fill it and anchors, named vertices of its skin, linear in the shape.

Legend: B pairs · S spheres of a hand · A anchors · 10 shape coordinates · 16 joints. Rest frame of a right hand,
metres.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from common.hands import MODEL16, NUM_SHAPE, TIP_VERTICES, Hand
from common.mano.model import HandModel
from data.synthetic.pose.articulation import FINGERS, Rig, rest_joints, shaped_template

_CLOSING = ("index2", "index3", "middle2", "middle3", "ring2", "ring3", "pinky2", "pinky3", "thumb3")
_SPHERE_VERTICES = 24       # nearest vertices, whose mean displacement moves a sphere when the shape changes


class Proxies(NamedTuple):
    """Spheres and anchors of a hand model. Shape-dependent values are (mean, change per shape coordinate)."""

    joints: tuple[Tensor, Tensor]       # (16, 3), (16, 3, 10)
    center: tuple[Tensor, Tensor]       # (S, 3), (S, 3, 10)
    radius: tuple[Tensor, Tensor]       # (S,), (S, 10)
    bone: Tensor                        # (S,)          bone that each sphere is attached to
    may_collide: Tensor                 # (S, S) bool   spheres of one hand that do not always overlap
    rest_distance: Tensor               # (S, S)        between centres, at rest in the mean shape
    closing: Tensor                     # (C,)          spheres that close around the other hand
    anchors: dict[str, int]             # name: index into the next three
    anchor_bone: Tensor                 # (A,)
    anchor_vertex: Tensor               # (A,)
    anchor: tuple[Tensor, Tensor]       # (A, 3), (A, 3, 10)

    def to(self, device: torch.device) -> "Proxies":
        def moved(part):
            if isinstance(part, dict):
                return part
            return tuple(one.to(device) for one in part) if isinstance(part, tuple) else part.to(device)
        return Proxies(*map(moved, self))


class ShapedProxies(NamedTuple):
    """The proxies of pairs; both hands of a pair have one shape."""

    joints: Tensor              # (B, 16, 3)
    center: Tensor              # (B, S, 3)
    radius: Tensor              # (B, S)
    anchor: Tensor              # (B, A, 3)


def build_proxies(model: HandModel, rig: Rig) -> Proxies:
    """The largest spheres along the bones that fit under the skin, and the anchors."""
    mean = np.zeros(NUM_SHAPE)
    joints, vertices = rest_joints(model, mean), shaped_template(model, mean)
    directions = model.shapedirs[Hand.RIGHT].double()                               # (778, 3, 10)
    bone, center = _sphere_seeds(joints, vertices[list(TIP_VERTICES)])
    center, radius = _grow(center, vertices)
    _, skin = cKDTree(vertices.numpy()).query(center.numpy(), k=_SPHERE_VERTICES)
    center_change = directions[skin].mean(dim=1)                                    # (S, 3, 10)
    outward = torch.nn.functional.normalize(vertices[skin] - center[:, None], dim=-1)
    radius_change = (outward[..., None] * (directions[skin] - center_change[:, None])).sum(dim=2).mean(dim=1)

    finger = torch.where(bone == 0, -1, (bone - 1) // 3)
    apart = torch.cdist(center, center)
    gap = apart - radius[:, None] - radius
    is_root = (bone == 0) | ((bone - 1) % 3 == 0)
    are_neighbours = (finger[:, None] == finger) | ((gap < 0.003) & is_root[:, None] & is_root)
    anchors = _anchors(rig, joints, vertices)
    vertex = torch.tensor([vertex for _, vertex in anchors.values()])
    return Proxies(
        (joints.float(), (model.regressor[Hand.RIGHT].double() @ directions.flatten(1)).view(16, 3, -1).float()),
        (center.float(), center_change.float()), (radius.float(), radius_change.float()),
        bone, ~are_neighbours, apart.float(),
        torch.isin(bone, torch.tensor([MODEL16.index(name) for name in _CLOSING])).nonzero()[:, 0],
        {name: row for row, name in enumerate(anchors)}, torch.tensor([bone for bone, _ in anchors.values()]), vertex,
        (vertices[vertex].float(), directions[vertex].float()),
    )


def shaped(proxies: Proxies, shape: Tensor) -> ShapedProxies:
    """The proxies of hands of `shape` (B, 10)."""
    def of_shape(part: tuple[Tensor, Tensor]) -> Tensor:
        # A sum instead of a matrix product: each pair rounds alike in every batch.
        mean, change = part
        return mean + sum(change[..., k] * shape[:, k].view(-1, *(1,) * mean.dim()) for k in range(NUM_SHAPE))
    return ShapedProxies(*map(of_shape, (proxies.joints, proxies.center, proxies.radius, proxies.anchor)))


def _sphere_seeds(joints: Tensor, tips: Tensor) -> tuple[Tensor, Tensor]:
    """Bones (S,) and initial centres (S, 3) of the spheres, along the bones.  joints: (16, 3).  tips: (5, 3)."""
    seeds = []
    for finger, tip in zip(FINGERS, tips, strict=True):
        rows = [MODEL16.index(f"{finger}{k}") for k in (1, 2, 3)]
        ends = [*joints[rows[1:]], tip]
        for row, end in zip(rows, ends, strict=True):
            seeds += [(row, torch.lerp(joints[row], end, t)) for t in (0.1, 0.48, 0.86)]
        seeds += [(0, torch.lerp(joints[0], joints[rows[0]], t)) for t in (0.15, 0.5, 0.82)]
    thumb, index = joints[MODEL16.index("thumb1")], joints[MODEL16.index("index1")]
    seeds += [(0, torch.lerp(thumb, index, t)) for t in (0.3, 0.6)]
    return torch.tensor([bone for bone, _ in seeds]), torch.stack([point for _, point in seeds])


def _grow(center: Tensor, vertices: Tensor) -> tuple[Tensor, Tensor]:
    """Centres (S, 3) moved by pattern search to where the sphere is largest, and radii (S,)."""
    tree = cKDTree(vertices.numpy())
    steps = torch.tensor([[0.0, 0.0, 0.0], *np.concatenate([np.eye(3), -np.eye(3)]).tolist()], dtype=torch.float64)
    for length in (0.003, 0.002, 0.001, 0.0005):
        tries = center[:, None] + length * steps                                    # (S, 7, 3)
        room = torch.from_numpy(tree.query(tries.numpy())[0])
        center = tries[torch.arange(len(center)), room.argmax(dim=1)]
    # The skin between vertices is nearer than the nearest vertex.
    return center, torch.from_numpy(tree.query(center.numpy())[0]) * 0.97


def _anchors(rig: Rig, joints: Tensor, vertices: Tensor) -> dict[str, tuple[int, int]]:
    """Bone and vertex of each anchor, {name: (bone, vertex)}."""
    back, thumb_side = torch.tensor([0.0, 1.0, 0.0]).double(), torch.tensor([0.0, 0.0, 1.0]).double()
    place = {name: joints[MODEL16.index(name)] for name in MODEL16.names}
    middle = torch.lerp(place["wrist"], place["middle1"], 0.6)
    on_palm = {
        "palm": (middle, -back), "heel": (torch.lerp(place["wrist"], place["ring1"], 0.3), -back),
        "back": (middle, back), "wrist_back": (place["wrist"], back), "wrist_palm": (place["wrist"], -back),
        "thumb_side": (place["index1"], thumb_side),
        "pinky_side": (torch.lerp(place["wrist"], place["pinky1"], 0.7), -thumb_side),
    }
    anchors = {name: (0, _skin_vertex(vertices, inside, out)) for name, (inside, out) in on_palm.items()}
    for name, tip in zip(FINGERS, TIP_VERTICES, strict=True):
        rows = [MODEL16.index(f"{name}{k}") for k in (1, 2, 3)]
        ends = [*joints[rows[1:]], vertices[tip]]
        for part, share, row, end in zip(("root", "middle", "pad"), (0.5, 0.5, 0.72), rows, ends, strict=True):
            nail_side = rig.axes[row - 1, 1].double()
            inside = torch.lerp(joints[row], end, share)
            anchors[f"{name}_{part}"] = (row, _skin_vertex(vertices, inside, -nail_side))
            anchors[f"{name}_{part}_back"] = (row, _skin_vertex(vertices, inside, nail_side))
        anchors[f"{name}_tip"] = (rows[2], tip)
    return anchors


def _skin_vertex(vertices: Tensor, inside: Tensor, direction: Tensor) -> int:
    """The vertex nearest to the ray from `inside` (3,) along `direction` (3,)."""
    offset = vertices - inside
    along = offset @ direction
    across = (offset - along[:, None] * direction).norm(dim=-1)
    return int(torch.where(along > 0, across, torch.inf).argmin())
