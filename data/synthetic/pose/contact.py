"""The contact solver: brings pairs of hands together without penetration or self-penetration, batched.

Joint angles, rotation and translation of both hands minimise a sum of squares, in two phases. First each hand is a
set of spheres attached to its bones: spheres of different parts repel each other where they overlap, anchors that
should touch attract each other, fingers that should close around the other hand are drawn to it, and stiffness pulls
everything towards its start. Then the meshes: each pass detects the vertices that lie below the other hand's surface
and pushes them out; between two detections the links between vertices move with the bones.

Pairs are independent: the result of one does not depend on the others in its batch.

Legend: B pairs · 2 the hand axis · S spheres of a hand · A anchors of a hand · K attractions · L links ·
V = 778 vertices · E finger vertices · Q joint coordinates of a hand. Person frame unless a name says `_own`; metres.
"""

from copy import deepcopy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from common.hands import MODEL16, NUM_MODEL_JOINTS, NUM_VERTICES, Hand, mirror_rotations
from common.mano.model import HandModel, ManoLayer
from common.types import ManoParams
from data.synthetic.pose.articulation import FINGERS, FLEXION, SPREAD, TWIST, Rig, clamp_angles, finger_rotations
from data.synthetic.pose.kinematics import (
    ARE_APART,
    BoneFrames,
    HandPoses,
    bone_frames,
    offsets,
    posed_points,
    to_person,
    wrench,
)
from data.synthetic.pose.proxies import Proxies, ShapedProxies, build_proxies, shaped
from data.synthetic.surface import faces_around_vertices

_SPHERE_ITERATIONS = 26
_PASSES, _ITERATIONS_PER_PASS = 3, 8    # on the meshes: one collision detection per pass
_SPHERE_RATES = (0.03, 0.015, 0.0025)   # step sizes: joint coordinates, rotation (radians), translation (metres)
_MESH_RATES = (0.008, 0.003, 0.0006)
_MENDING_PULL = 0.3                     # share of the attractions' strength that mending keeps
_STIFFNESS = (8e-4, 7e-3)               # of joint coordinates and rotation, towards the start
_CLEARANCE = 0.0002                     # between spheres
_CLOSING = 1.5                          # strength with which fingers close
_SLACK = 0.001                          # gap that a closing finger may leave
_MAX_PULL = 0.010                       # distance at which attractions saturate, so that nothing is torn
_FOREARM = (0.03, 0.06, 0.10, 0.14)     # distances of the forearm's spheres from the wrist
_FOREARM_RADIUS = 0.026
_REACH = 0.03                           # no vertex of a hand lies deeper in another
_OWN_REACH = 0.011                      # the same of a finger
_WEB = 0.022                            # geodesic distance below which skin folds and joins rather than collides
_STEEP, _OWN_STEEP = 0.008, 0.004       # distance beyond which the nearest surface must face the vertex
_CLOSED = 0.02                          # gap that is closed by translating whole hands
_PRESSED = 0.0006                       # overlap that soft tissue explains
_LINKS, _OWN_LINKS = 48, 32             # vertices of a hand pushed out of the other hand, and out of itself
_POSITIVE = 1e-7                        # exceeds the rounding error of squared distances
_FAR_KEY = 0x7F000000                   # the bits of a very large float
_BLOCK = {"cpu": 2, "cuda": 64}         # pairs whose vertices are compared at once


class Task(NamedTuple):
    """Pairs of hands to settle: start poses and attractions."""

    poses: HandPoses
    shape: Tensor               # (B, 10)
    forearm_own: Tensor         # (B, 2, 3)     unit, from wrist to elbow
    is_pair: Tensor             # (B,) bool     False: the hands ignore each other
    touches: Tensor             # (B,) bool     bring the hands together until they touch
    wraps: Tensor               # (B, 2)        strength with which each hand's fingers close around the other hand
    anchors: Tensor             # (B, K, 2)     indices of the anchors that attract each other; left ones offset by A
    gap: Tensor                 # (B, K)        distance at which an attraction ends
    pull: Tensor                # (B, K)        its strength


class Settled(NamedTuple):
    """Result of the solver."""

    poses: HandPoses
    vertices: Tensor            # (B, 2, 778, 3)
    depth: Tensor               # (B,)          estimated depth of the deepest vertex in the other or its own hand


class Solver(NamedTuple):
    """The hand model and everything the solver precomputes from it, on one device."""

    layer: ManoLayer
    rig: Rig
    proxies: Proxies
    synergies: Tensor           # (45, Q)       change of the joint angles per joint coordinate
    dominant: Tensor            # (778,)        bone with the largest skinning weight
    movable: Tensor             # (E,)          vertices of the fingers
    own_keys: Tensor            # (E, 778)      index of the second vertex, with _FAR_KEY where both are of one part
    is_web: Tensor              # (E, 778) bool geodesically nearer than _WEB
    pads: Tensor                # (9,)          vertices at the centres of the pads of closing fingers
    faces: Tensor               # (1538, 3)     of the right hand
    faces_around: Tensor        # (778, 8)      as `surface.faces_around_vertices`

    def to(self, device: torch.device) -> "Solver":
        return Solver(deepcopy(self.layer).to(device), *(part.to(device) for part in self[1:]))


def build_solver(model: HandModel, rig: Rig) -> Solver:
    faces = model.faces[Hand.RIGHT]
    proxies = build_proxies(model, rig)
    pads = [f"{finger}_{part}" for finger in FINGERS for part in ("middle", "pad")][1:]     # without thumb_middle
    dominant = model.weights[Hand.RIGHT].argmax(dim=1)
    movable = ((dominant > 0) & (dominant != MODEL16.index("thumb1"))).nonzero()[:, 0]
    is_apart = torch.from_numpy(ARE_APART)[dominant[movable]][:, dominant]
    own_keys = torch.where(is_apart, 0, _FAR_KEY) | torch.arange(NUM_VERTICES)
    return Solver(
        ManoLayer(model), rig, proxies, _synergies(), dominant, movable, own_keys.int(),
        _geodesic_distances(model.template[Hand.RIGHT], faces)[movable] < _WEB,
        proxies.anchor_vertex[[proxies.anchors[name] for name in pads]], faces,
        torch.from_numpy(faces_around_vertices(faces.numpy(), NUM_VERTICES)),
    )


def _synergies() -> Tensor:
    """Coupling of the joints (45, Q): joint angles per joint coordinate.

    The last finger joint follows the second and yields a little to contact; fingers drag their neighbours along.
    """
    row = {name: 3 * (MODEL16.index(name) - 1) for name in MODEL16.names[1:]}
    coupling = {("index", "middle"): 0.15, ("middle", "ring"): 0.3, ("ring", "pinky"): 0.35}
    columns = []
    for finger in FINGERS[1:]:
        along = {finger: 1.0} | {b if a == finger else a: share for (a, b), share in coupling.items()
                                 if finger in (a, b)}
        for joints in ({1: 1.0}, {2: 1.0, 3: 2 / 3}):
            columns.append({row[f"{name}{k}"] + FLEXION: share * part
                            for name, share in along.items() for k, part in joints.items()})
        columns += [{row[f"{finger}3"] + FLEXION: 0.4}, {row[f"{finger}1"] + SPREAD: 0.7}]
    columns += [{row["thumb1"] + axis: size} for axis, size in ((FLEXION, 1.0), (SPREAD, 1.0), (TWIST, 0.6))]
    columns += [{row["thumb2"] + FLEXION: 0.8, row["thumb3"] + FLEXION: 0.4}, {row["thumb3"] + FLEXION: 1.0}]
    table = torch.zeros(45, len(columns))
    for column, moved in enumerate(columns):
        for angle, share in moved.items():
            table[angle, column] = share
    return table


def _geodesic_distances(vertices: Tensor, faces: Tensor) -> Tensor:
    """Lengths (778, 778) of the shortest paths along the edges."""
    first, second = faces.T, faces.T.roll(1, dims=0)
    lengths = (vertices[first] - vertices[second]).norm(dim=-1).double()
    edges = csr_array((lengths.flatten().numpy(), (first.flatten().numpy(), second.flatten().numpy())),
                      shape=(NUM_VERTICES, NUM_VERTICES))
    return torch.from_numpy(dijkstra(edges.maximum(edges.T)))


# ---------------------------------------------------------------- settling

def settle(task: Task, solver: Solver) -> Settled:
    """Pairs near their start poses that touch where they should."""
    proxies = shaped(solver.proxies, task.shape)
    optimizer = _Optimizer(task, solver.rig, solver.synergies)
    spheres = _Spheres.of(task, proxies, solver.proxies)
    for iteration in range(_SPHERE_ITERATIONS):
        frames = optimizer.frames(proxies.joints)
        decay = min(1.0, 2.0 - 1.6 * iteration / _SPHERE_ITERATIONS)
        optimizer.step(frames, *spheres.forces(frames), [rate * decay for rate in _SPHERE_RATES])

    optimizer.reset_moments()
    return _resolve_collisions(optimizer, proxies, task, solver)


def mend(task: Task, settled: Settled, solver: Solver) -> Settled:
    """Further passes on settled pairs that still penetrate too deeply, at the expense of their attractions."""
    task = task._replace(poses=settled.poses, pull=_MENDING_PULL * task.pull, wraps=torch.zeros_like(task.wraps))
    optimizer = _Optimizer(task, solver.rig, solver.synergies)
    return _resolve_collisions(optimizer, shaped(solver.proxies, task.shape), task, solver)


def _resolve_collisions(optimizer: "_Optimizer", proxies: ShapedProxies, task: Task, solver: Solver) -> Settled:
    """The mesh phase."""
    for number in range(_PASSES):
        frames = optimizer.frames(proxies.joints)
        vertices = posed_vertices(optimizer.poses(), proxies.joints, task.shape, solver)
        normals = _outward_normals(vertices, solver)
        links = _links(_proximity(vertices, normals, task), vertices, normals, frames, task, solver)
        decay = 1.0 - 0.8 * number / _PASSES
        for _ in range(_ITERATIONS_PER_PASS):
            optimizer.step(frames, *links.forces(frames), [rate * decay for rate in _MESH_RATES])
            frames = optimizer.frames(proxies.joints)

    poses = optimizer.poses()
    vertices = posed_vertices(poses, proxies.joints, task.shape, solver)
    normals = _outward_normals(vertices, solver)
    proximity = _proximity(vertices, normals, task)
    depth = proximity.depth.amax(dim=(1, 2))
    shift = _closing_shift(proximity.bridge, task.touches & (depth < _PRESSED))
    poses = poses._replace(wrist_own=poses.wrist_own + to_person(shift[:, :, None])[:, :, 0])
    own = _self_collisions(vertices, normals, solver)[2].amax(dim=(1, 2))
    return Settled(poses, vertices + shift[:, :, None], torch.maximum(depth, own))


def _closing_shift(bridge: Tensor, is_wanted: Tensor) -> Tensor:
    """Translations (B, 2, 3) of both hands that close a small gap.  bridge: (B, 3) from the right hand to the left."""
    gap = bridge.square().sum(-1).clamp(min=1e-12).sqrt()
    share = torch.where(is_wanted & (gap < _CLOSED), (1 - _CLEARANCE / gap).clamp(min=0), 0.0)
    half = share[:, None] * bridge / 2
    return torch.stack([half, -half], dim=1)


def posed_vertices(poses: HandPoses, rest_joints: Tensor, shape: Tensor, solver: Solver) -> Tensor:
    """The meshes (B, 2, 778, 3) of hands of `shape` (B, 10)."""
    rotations = model_rotations(poses, solver.rig)
    wrist = poses.wrist_own - rest_joints[:, None, 0]
    with torch.no_grad():
        vertices = solver.layer(ManoParams(rotations, shape[:, None].expand(-1, 2, -1)))
    return vertices + to_person(wrist[:, :, None])


def model_rotations(poses: HandPoses, rig: Rig) -> Tensor:
    """Local rotations (B, 2, 16, 3, 3) of the hand model's joints; the wrist's is relative to the person frame."""
    local = torch.cat([poses.rotation_own[:, :, None], finger_rotations(rig, poses.angles)], dim=2)
    return torch.stack([local[:, Hand.RIGHT], mirror_rotations(local[:, Hand.LEFT])], dim=1).contiguous()


class _Optimizer:
    """Displacements of the hands from their start, driven by forces through Adam (Kingma and Ba, 2015)."""

    def __init__(self, task: Task, rig: Rig, synergies: Tensor):
        self.start, self.rig, self.synergies = task.poses, rig, synergies
        sizes = (synergies.shape[1], 3, 3)              # joint coordinates, rotation, translation
        self.displacements = [self.start.wrist_own.new_zeros(len(task.shape), 2, size) for size in sizes]
        self.reset_moments()

    def reset_moments(self) -> None:
        """Forget the scale of the forces so far: on meshes they are much smaller than on spheres."""
        self.iteration = 0
        self.moments = [(torch.zeros_like(part), torch.zeros_like(part)) for part in self.displacements]

    def poses(self) -> HandPoses:
        coordinates, rotation, translation = self.displacements
        angles = self.start.angles + (coordinates @ self.synergies.mT).unflatten(-1, (15, 3))
        return HandPoses(clamp_angles(self.rig, angles), _small_rotation(rotation) @ self.start.rotation_own,
                         self.start.wrist_own + translation)

    def frames(self, rest_joints: Tensor) -> BoneFrames:
        return bone_frames(self.rig, rest_joints, self.poses())

    def step(self, frames: BoneFrames, bone: Tensor, points: Tensor, forces: Tensor, rates: list[float]) -> None:
        """One iteration under forces (B, M, 3) at points (B, M, 3) fixed to bones (B, M)."""
        total = wrench(frames, bone, points, forces)
        pushes = (total.joint_torque.flatten(2) @ self.synergies - _STIFFNESS[0] * self.displacements[0],
                  total.wrist_torque - _STIFFNESS[1] * self.displacements[1], total.force)
        self.iteration += 1
        for part, push, (mean, square), rate in zip(self.displacements, pushes, self.moments, rates, strict=True):
            mean.lerp_(push, 1 - 0.9)
            square.lerp_(push.square(), 1 - 0.99)
            scale = (square / (1 - 0.99**self.iteration)).sqrt() + 1e-9
            part += rate * (mean / (1 - 0.9**self.iteration)) / scale


def _small_rotation(rotation_vector: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) of the quaternions (1, v/2): the angle is |v| to third order."""
    w, (x, y, z) = torch.ones_like(rotation_vector[..., 0]), (rotation_vector / 2).unbind(-1)
    rows = torch.stack([w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y),
                        2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x),
                        2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z], dim=-1)
    return (rows / (w * w + x * x + y * y + z * z)[..., None]).unflatten(-1, (3, 3))


# ---------------------------------------------------------------- the sphere phase

class _Spheres(NamedTuple):
    """Points that forces act on: for each hand S spheres, 4 of its forearm, and A anchors."""

    bone: Tensor                # (2N,)         N = S + 4 + A points of a hand
    offset: Tensor              # (B, 2N, 3)    as in `posed_points`
    radius: Tensor              # (B, S + 4)
    reach: Tensor               # (B, S + 4, S + 4) distance at which spheres of both hands touch
    own_reach: Tensor           # (B, S, S)     distance at which two spheres of one hand touch; −1: never
    closing: Tensor             # (C,)          spheres that close around the other hand
    task: Task

    @classmethod
    def of(cls, task: Task, proxies: ShapedProxies, mean: Proxies) -> "_Spheres":
        forearm_rest = (task.poses.rotation_own * task.forearm_own[..., None]).sum(dim=-2)
        arm = forearm_rest.new_tensor(_FOREARM)[:, None] * forearm_rest[:, :, None]         # (B, 2, 4, 3)
        bones = torch.cat([mean.bone, mean.bone.new_zeros(len(_FOREARM)), mean.anchor_bone])
        joint = proxies.joints[:, bones]
        center, anchor = (part[:, None].expand(-1, 2, -1, -1) for part in (proxies.center, proxies.anchor))
        offset = torch.cat([center, arm + joint[:, None, len(mean.bone), None], anchor], dim=2) - joint[:, None]
        # Spheres that nearly touch at rest must come no nearer, but are not pushed apart.
        reach = torch.minimum(proxies.radius[:, :, None] + proxies.radius[:, None], 0.97 * mean.rest_distance)
        radius = F.pad(proxies.radius, (0, len(_FOREARM)), value=_FOREARM_RADIUS)
        return cls(torch.cat([bones, bones + NUM_MODEL_JOINTS]), offset.flatten(1, 2), radius,
                   radius[:, :, None] + radius[:, None] + _CLEARANCE, torch.where(mean.may_collide, reach, -1.0),
                   mean.closing, task)

    def forces(self, frames: BoneFrames) -> tuple[Tensor, Tensor, Tensor]:
        """Bones (2N,), points (B, 2N, 3) and the forces (B, 2N, 3) on them."""
        points = posed_points(frames, self.bone, self.offset)
        num_solids, num_spheres = self.radius.shape[1], self.own_reach.shape[1]
        solids, anchors = points.unflatten(1, (2, -1)).split([num_solids, len(self.bone) // 2 - num_solids], dim=2)
        right, left = solids.unbind(1)
        nearness = _nearness(right, left, self.reach)
        push = F.relu(nearness - 1) * self.task.is_pair[:, None, None]
        push = 12 * torch.stack([_repelled(right, left, push), _repelled(left, right, push.mT)], dim=1)
        push[:, :, :num_spheres] += self._own_push(solids[:, :, :num_spheres])
        push[:, :, self.closing] += self._closing(solids, nearness)
        pull = _attraction(anchors.flatten(1, 2), self.task)
        return self.bone, points, torch.cat([push, pull.unflatten(1, (2, -1))], dim=2).flatten(1, 2)

    def _own_push(self, spheres: Tensor) -> Tensor:
        flat = spheres.flatten(0, 1)
        push = F.relu(_nearness(flat, flat, self.own_reach.repeat_interleave(2, dim=0)) - 1)
        return 12 * _repelled(flat, flat, push).unflatten(0, (-1, 2))

    def _closing(self, solids: Tensor, nearness: Tensor) -> Tensor:
        """Forces (B, 2, C, 3) that draw the fingers' spheres to the nearest sphere of the other hand."""
        inner = nearness[:, : self.own_reach.shape[1], : self.own_reach.shape[1]]
        nearest = [inner[:, self.closing].argmax(dim=2), inner[:, :, self.closing].argmax(dim=1)]   # (B, C)
        target, room = (torch.stack([_gather_rows(part[:, hand.other], nearest[hand]) for hand in Hand], dim=1)
                        for part in (solids, self.radius[:, None, :, None].expand(-1, 2, -1, -1)))
        way = target - solids[:, :, self.closing]
        distance = way.square().sum(-1, keepdim=True).clamp(min=1e-8).sqrt()
        gap = distance - room - self.radius[:, None, self.closing, None] - _CLEARANCE - _SLACK
        return _CLOSING * self.task.wraps[..., None, None] * gap.clamp(0, _MAX_PULL) * way / distance


def _nearness(a: Tensor, b: Tensor, reach: Tensor) -> Tensor:
    """`reach` (B, N, M) over the distance of points (B, N, 3) and (B, M, 3): above 1 where spheres overlap."""
    return _squared_distances(a, b).clamp_(min=1e-8).rsqrt_().mul_(reach)


def _squared_distances(a: Tensor, b: Tensor, more: float = 0.0) -> Tensor:
    """Squared distances (B, N, M) of points (B, N, 3) and (B, M, 3), plus `more`, as one matrix product."""
    ones = torch.ones_like(a[..., :1]), torch.ones_like(b[..., :1])
    left = torch.cat([a, a.square().sum(-1, keepdim=True) + more, ones[0]], dim=-1)
    right = torch.cat([-2 * b, ones[1], b.square().sum(-1, keepdim=True)], dim=-1)
    return left @ right.mT


def _repelled(a: Tensor, b: Tensor, push: Tensor) -> Tensor:
    """Forces (B, N, 3) of points b (B, M, 3) on points a (B, N, 3): `push` (B, N, M) times their offset a − b."""
    total = push @ torch.cat([b, torch.ones_like(b[..., :1])], dim=-1)
    return total[..., 3:] * a - total[..., :3]


def _attraction(anchors: Tensor, task: Task) -> Tensor:
    """Forces (B, 2A, 3) on the anchors (B, 2A, 3) that attract each other."""
    rows = task.anchors.flatten(1)[..., None].expand(-1, -1, 3)                     # (B, 2K, 3)
    ends = anchors.gather(1, rows).unflatten(1, (-1, 2))
    way = ends[:, :, 1] - ends[:, :, 0]                                             # (B, K, 3)
    distance = way.square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt()
    force = 4 * task.pull[..., None] * (distance - task.gap[..., None]).clamp(0, _MAX_PULL) * way / distance
    return torch.zeros_like(anchors).scatter_add_(1, rows, torch.stack([force, -force], dim=2).flatten(1, 2))


# ---------------------------------------------------------------- the mesh phase

class _Links(NamedTuple):
    """Pairs of vertices that push or pull each other, each rigidly attached to its dominant bone."""

    bone: Tensor                # (B, L, 2)
    offset: Tensor              # (B, 2L, 3)
    normal: Tensor              # (B, L, 3)     outward at the second vertex
    push: Tensor                # (B, L)        strength that keeps the first vertex above the surface at the second
    pull: Tensor                # (B, L)        strength of their attraction
    gap: Tensor                 # (B, L)        distance at which the attraction ends

    def forces(self, frames: BoneFrames) -> tuple[Tensor, Tensor, Tensor]:
        """Bones (B, 2L), points (B, 2L, 3) and the forces (B, 2L, 3) on them."""
        bone = self.bone.flatten(1)
        points = posed_points(frames, bone, self.offset)
        first, second = points.unflatten(1, (-1, 2)).unbind(2)
        way = first - second
        depth = F.relu(-_PRESSED / 2 - (way * self.normal).sum(-1)) * self.push
        distance = way.square().sum(-1).clamp(min=1e-12).sqrt()
        pull = (distance - self.gap).clamp(0, _MAX_PULL) * self.pull / distance
        force = 12 * depth[..., None] * self.normal - 4 * pull[..., None] * way
        return bone, points, torch.stack([force, -force], dim=2).flatten(1, 2)


class _Proximity(NamedTuple):
    """Where the meshes of each pair come near or penetrate each other."""

    near: Tensor                # (B, 2, V)     nearest vertex of the other hand
    normal: Tensor              # (B, 2, V, 3)  outward there
    depth: Tensor               # (B, 2, V)     below the other hand's surface; 0 outside
    closest: Tensor             # (B,)          vertex outside that is nearest to the other hand; left ones offset by V
    bridge: Tensor              # (B, 3)        from the right hand to the left at that vertex


def _proximity(vertices: Tensor, normals: Tensor, task: Task) -> _Proximity:
    """The proximity of meshes (B, 2, 778, 3) with outward normals."""
    near, surface = _nearest(vertices)
    normal = torch.stack([_gather_rows(normals[:, hand.other], near[:, hand]) for hand in Hand], dim=1)
    way = surface - vertices
    height, distance = -(way * normal).sum(-1), way.square().sum(-1).sqrt()
    # Far below a tangent plane, a vertex may be beside the other hand or beyond its far side.
    inside = (height < 0) & (distance < _REACH) & ((distance < _STEEP) | (height < -0.7 * distance))
    inside &= task.is_pair[:, None, None]
    closest = torch.where(inside, torch.inf, distance).flatten(1).argmin(dim=1)
    bridge = _gather_rows(way.flatten(1, 2), closest[:, None])[:, 0]
    return _Proximity(near, normal, torch.where(inside, -height, 0.0), closest,
                    torch.where((closest < NUM_VERTICES)[:, None], bridge, -bridge))


def _links(proximity: _Proximity, vertices: Tensor, normals: Tensor, frames: BoneFrames, task: Task,
           solver: Solver) -> _Links:
    """All links between vertices of the meshes (B, 2, 778, 3)."""
    near, normal, depth, closest, _ = proximity
    across = near.flatten(1).gather(1, closest[:, None]) + NUM_VERTICES * (closest < NUM_VERTICES)[:, None]
    meets = (task.touches & (depth.amax(dim=(1, 2)) < _PRESSED)).to(depth)[:, None]
    pads = solver.pads.expand(len(vertices), -1)
    close = 0.25 * _CLOSING * task.wraps
    pushes = [*_pushes(depth, near, normal, other=True), *_own_pushes(vertices, normals, solver)]
    pulls = [
        (torch.stack([closest[:, None], across], dim=-1), meets, torch.zeros_like(meets)),
        (_anchor_vertices(task.anchors, solver), task.pull, task.gap),
        *((_ends(pads, near[:, hand, solver.pads], hand, hand.other), close[:, hand, None].expand(pads.shape),
           torch.full(pads.shape, _SLACK, device=pads.device)) for hand in Hand),
    ]
    return _linked(pushes, pulls, vertices, frames, solver)


def _pushes(depth: Tensor, near: Tensor, normal: Tensor, other: bool) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each hand the ends (B, L, 2), normals (B, L, 3) and strengths (B, L) of links at its deepest vertices.

    depth, near, normal: (B, 2, V, ...).  other: whether `near` are vertices of the other hand or of the same.
    """
    found = []
    for hand in Hand:
        deepest, vertex = depth[:, hand].topk(_LINKS if other else _OWN_LINKS, dim=1)
        beside = near[:, hand].gather(1, vertex)
        found.append((_ends(vertex, beside, hand, hand.other if other else hand), _gather_rows(normal[:, hand], vertex),
                      (deepest > 0).to(depth)))
    return found


def _self_collisions(vertices: Tensor, normals: Tensor, solver: Solver) -> tuple[Tensor, Tensor, Tensor]:
    """Penetration of finger vertices into other parts of their own hand.

    Returns, for each of `solver.movable`, the nearest vertex on such a part (B, 2, E), the outward normal there
    (B, 2, E, 3) and the depth below that surface (B, 2, E), 0 outside.
    """
    points = vertices[:, :, solver.movable].flatten(0, 1)                           # (2B, E, 3)
    block = _BLOCK[points.device.type]
    near = torch.cat([(_distance_keys(some, whole) | solver.own_keys).amin(dim=2) for some, whole in
                      zip(points.split(block), vertices.flatten(0, 1).split(block), strict=True)])
    near = near.bitwise_and_(1023).long()
    normal, surface = _gather_rows(normals.flatten(0, 1), near), _gather_rows(vertices.flatten(0, 1), near)
    way = points - surface
    height, distance = (way * normal).sum(-1), way.square().sum(-1).sqrt()
    inside = (height < 0) & (distance < _OWN_REACH) & ((distance < _OWN_STEEP) | (height < -0.7 * distance))
    inside &= ~solver.is_web[torch.arange(near.shape[1], device=near.device), near]
    return tuple(part.unflatten(0, (-1, 2)) for part in (near, normal, torch.where(inside, -height, 0.0)))


def _own_pushes(vertices: Tensor, normals: Tensor, solver: Solver) -> list[tuple[Tensor, Tensor, Tensor]]:
    """As `_pushes`, of fingers that penetrate other fingers or the palm of their own hand."""
    near, normal, depth = _self_collisions(vertices, normals, solver)
    vertex = solver.movable.expand(len(vertices), -1)
    found = _pushes(depth, near, normal, other=False)
    return [(torch.stack([vertex.gather(1, pair[..., 0] - hand * NUM_VERTICES) + hand * NUM_VERTICES, pair[..., 1]],
                         dim=-1), *rest) for hand, (pair, *rest) in zip(Hand, found, strict=True)]


def _ends(first: Tensor, second: Tensor, hand: Hand, of_second: Hand) -> Tensor:
    """Pairs (B, L, 2) of vertex indices; those of left hands are offset by 778."""
    return torch.stack([first + hand * NUM_VERTICES, second + of_second * NUM_VERTICES], dim=-1)


def _linked(pushes: list[tuple[Tensor, Tensor, Tensor]], pulls: list[tuple[Tensor, Tensor, Tensor]],
            vertices: Tensor, frames: BoneFrames, solver: Solver) -> _Links:
    """Links of pushes (ends, normal, strength) and pulls (ends, strength, gap)."""
    ends = torch.cat([pair for pair, _, _ in pushes + pulls], dim=1)                # (B, L, 2)
    normal, push = (torch.cat([part[k] for part in pushes], dim=1) for k in (1, 2))
    pull, gap = (torch.cat([part[k] for part in pulls], dim=1) for k in (1, 2))
    bone = torch.cat([solver.dominant, solver.dominant + NUM_MODEL_JOINTS])[ends]
    points = _gather_rows(vertices.flatten(1, 2), ends.flatten(1))
    return _Links(bone, offsets(frames, bone.flatten(1), points), F.pad(normal, (0, 0, 0, pull.shape[1])),
                  F.pad(push, (0, pull.shape[1])), F.pad(pull, (push.shape[1], 0)), F.pad(gap, (push.shape[1], 0)))


def _outward_normals(vertices: Tensor, solver: Solver) -> Tensor:
    """Area-weighted unit normals (B, 2, 778, 3) by gathering: each pair rounds alike in every batch."""
    a, b, c = (vertices[:, :, solver.faces[:, corner]] for corner in range(3))
    face_normals = F.pad(torch.linalg.cross(b - a, c - a), (0, 0, 0, 1))
    normals = F.normalize(face_normals[:, :, solver.faces_around].sum(dim=3), dim=-1)
    return torch.stack([normals[:, Hand.RIGHT], -normals[:, Hand.LEFT]], dim=1)     # left faces are wound in reverse


def _nearest(vertices: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest vertex of the other hand (B, 2, V) and its position (B, 2, V, 3), for vertices (B, 2, V, 3)."""
    near, index = [], torch.arange(NUM_VERTICES, dtype=torch.int32, device=vertices.device)
    for block in vertices.split(_BLOCK[vertices.device.type]):
        keys = _distance_keys(block[:, 0], block[:, 1])
        of_right, of_left = (keys | index).amin(dim=2), (keys | index[:, None]).amin(dim=1)
        near.append(torch.stack([of_right, of_left], dim=1).bitwise_and_(1023))
    near = torch.cat(near).long()
    surface = torch.stack([_gather_rows(vertices[:, hand.other], near[:, hand]) for hand in Hand], dim=1)
    return near, surface


def _distance_keys(a: Tensor, b: Tensor) -> Tensor:
    """Integers (B, N, M) that sort like the distances of points (B, N, 3) and (B, M, 3), with room for an index.

    The bits of positive floats sort like the floats; the lowest ten are left for a vertex index.
    """
    return _squared_distances(a, b, _POSITIVE).view(torch.int32).bitwise_and_(-1024)


def _anchor_vertices(anchors: Tensor, solver: Solver) -> Tensor:
    """Vertices (B, K, 2) of anchors (B, K, 2); those of left hands are offset by 778."""
    count = len(solver.proxies.anchor_vertex)
    return solver.proxies.anchor_vertex[anchors % count] + NUM_VERTICES * (anchors >= count)


def _gather_rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows (B, N, C) of tables (B, M, C) at indices (B, N)."""
    return table.gather(1, index[..., None].expand(-1, -1, table.shape[2]))
