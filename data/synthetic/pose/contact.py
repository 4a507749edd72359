"""Bringing hands together without passing through each other or themselves, many pairs at once.

Joint angles, place and orientation of both hands descend on a sum of squares. First the hands are spheres that move
with the bones: spheres of different parts must not overlap, points that should touch attract each other, fingers
that should close round the other hand are drawn to it, and everything else stays near where it started. Then the
meshes themselves are looked at: vertices below the other hand's surface are pushed out of it. Between two looks the
points that were found move with their bones.

Every pair is settled on its own: what comes out does not depend on the other pairs of the batch.

Legend: B pairs · 2 the hand axis · S spheres of a hand · A anchors · K attractions · L links · V = 778 vertices ·
Q coordinates of a hand's joints. Person frame unless a name says `_own`; metres.
"""

from copy import deepcopy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from common.hands import MODEL16, NUM_VERTICES, Hand, mirror_rotations
from common.mano.model import HandModel, ManoLayer
from common.types import ManoParams
from data.synthetic.pose.articulation import FINGERS, FLEXION, SPREAD, TWIST, Rig, clamp_angles, finger_rotations
from data.synthetic.pose.kinematics import (
    ARE_APART,
    FRAMES_OF_A_HAND,
    BoneFrames,
    HandPoses,
    bone_frames,
    offsets,
    posed_points,
    to_person,
    wrench,
)
from data.synthetic.pose.proxies import Proxies, ShapedProxies, build_proxies, shaped

_SPHERE_STEPS = 26
_LOOKS, _STEPS_PER_LOOK = 3, 8
_MENDING_LOOKS = 3
_RATES = (0.03, 0.015, 0.0025)                                  # of bending, turning (radians) and shifting (metres)
_LAST_RATES = (0.008, 0.003, 0.0006)                            # on the meshes
_MENDING_PULL = 0.3                                             # share of attractions that mending keeps up
_STIFFNESS = (8e-4, 7e-3)                                       # of joints and orientation, against the start
_CLEARANCE = 0.0002                                             # between spheres
_CLOSING = 1.5                                                  # strength with which fingers close
_SLACK = 0.001                                                  # a gap that a closing finger may leave
_FAR_PULL = 0.010                                               # farther targets pull no harder: nothing is torn
_FOREARM = (0.03, 0.06, 0.10, 0.14)                             # forearm spheres: metres from the wrist
_FOREARM_RADIUS = 0.026
_REACH = 0.03                                                   # no vertex of a hand lies deeper in another
_OWN_REACH = 0.011                                              # the same of a finger
_WEB = 0.022                                                    # along the skin: nearer, it folds and joins
_STEEP, _OWN_STEEP = 0.008, 0.004                               # farther, the nearest surface must face the vertex
_CLOSED = 0.02                                                  # a gap that is closed by moving the hands as a whole
_PRESSED = 0.0006                                               # overlap that soft flesh explains
_LINKS, _OWN_LINKS = 48, 32                                     # vertices of a hand pushed out of the other, and itself
_POSITIVE = 1e-7                                                # more than squares are off by rounding
_FAR_KEY = 0x7F000000                                           # the bits of a very large float
_BLOCK = {"cpu": 2, "cuda": 64}                                 # pairs whose vertices are compared at a time


class Task(NamedTuple):
    """Pairs of hands as they start, and what they reach for."""

    poses: HandPoses
    shape: Tensor               # (B, 10)
    forearm_own: Tensor         # (B, 2, 3)     directions from the wrist to the elbow
    is_pair: Tensor             # (B,) bool     otherwise the hands do not notice each other
    touches: Tensor             # (B,) bool     the hands are brought together until they touch
    wraps: Tensor               # (B, 2)        how much each hand's fingers close round the other hand
    anchors: Tensor             # (B, K, 2)     rows of attracting anchors, those of the left hand A later
    gap: Tensor                 # (B, K)        at which an attraction is content
    pull: Tensor                # (B, K)        its strength


class Settled(NamedTuple):
    """Pairs after settling."""

    poses: HandPoses
    vertices: Tensor            # (B, 2, 778, 3)
    depth: Tensor               # (B,)          of the deepest vertex in the other hand, or in its own, estimated


class Solver(NamedTuple):
    """The hand model with all that settling needs, on one device."""

    layer: ManoLayer
    rig: Rig
    proxies: Proxies
    synergies: Tensor           # (45, Q)       joint angles moved by each coordinate
    dominant: Tensor            # (778,)        the bone that each vertex mostly follows
    movable: Tensor             # (E,)          vertices of the fingers
    own_keys: Tensor            # (E, 778)      index of a vertex, or more than any distance where both are of one part
    is_web: Tensor              # (E, 778) bool so near along the skin that it folds and joins there
    pads: Tensor                # (9,)          vertices in the middle of the pads of closing fingers
    faces: Tensor               # (1538, 3)     of the right hand
    faces_of: Tensor            # (778, 9)      faces round each vertex, padded with 1538

    def to(self, device: torch.device) -> "Solver":
        return Solver(deepcopy(self.layer).to(device), *(part.to(device) for part in self[1:]))


def build_solver(model: HandModel, rig: Rig) -> Solver:
    faces = model.faces[Hand.RIGHT]
    proxies = build_proxies(model, rig)
    pads = [f"{finger}_{part}" for finger in FINGERS for part in ("middle", "pad")][1:]     # not the thumb's middle
    dominant = model.weights[Hand.RIGHT].argmax(dim=1)
    movable = ((dominant > 0) & (dominant != MODEL16.index("thumb1"))).nonzero()[:, 0]
    is_apart = torch.from_numpy(ARE_APART)[dominant[movable]][:, dominant]
    own_keys = torch.where(is_apart, 0, _FAR_KEY) | torch.arange(NUM_VERTICES)
    return Solver(
        ManoLayer(model), rig, proxies, _synergies(), dominant, movable, own_keys.int(),
        _along_skin(model.template[Hand.RIGHT], faces)[movable] < _WEB,
        proxies.anchor_vertex[[proxies.anchors[name] for name in pads]], faces, _faces_round_vertices(faces),
    )


def _synergies() -> Tensor:
    """How joints move together: (45, Q).

    The last finger joint follows the second and is moved a little by what it presses on; a finger takes its
    neighbours along.
    """
    row = {name: 3 * (MODEL16.index(name) - 1) for name in MODEL16.names[1:]}
    company = {("index", "middle"): 0.15, ("middle", "ring"): 0.3, ("ring", "pinky"): 0.35}
    columns = []
    for finger in FINGERS[1:]:
        along = {finger: 1.0} | {b if a == finger else a: share for (a, b), share in company.items()
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


def _along_skin(vertices: Tensor, faces: Tensor) -> Tensor:
    """How far (778, 778) it is from vertex to vertex along the edges."""
    first, second = faces.T, faces.T.roll(1, dims=0)
    lengths = (vertices[first] - vertices[second]).norm(dim=-1).double()
    edges = csr_array((lengths.flatten().numpy(), (first.flatten().numpy(), second.flatten().numpy())),
                      shape=(NUM_VERTICES, NUM_VERTICES))
    return torch.from_numpy(dijkstra(edges.maximum(edges.T)))


def _faces_round_vertices(faces: Tensor) -> Tensor:
    table = torch.full((NUM_VERTICES, 9), len(faces))
    filled = [0] * NUM_VERTICES
    for face, corners in enumerate(faces.tolist()):
        for vertex in corners:
            table[vertex, filled[vertex]] = face
            filled[vertex] += 1
    return table


# ---------------------------------------------------------------- settling

def settle(task: Task, solver: Solver) -> Settled:
    """Pairs near their starts that touch where they should."""
    proxies = shaped(solver.proxies, task.shape)
    mover = _Mover(task, solver.rig, solver.synergies)
    spheres = _Spheres.of(task, proxies, solver.proxies)
    for step in range(_SPHERE_STEPS):
        frames = mover.frames(proxies.joints)
        decay = min(1.0, 2.0 - 1.6 * step / _SPHERE_STEPS)
        mover.follow(frames, *spheres.forces(frames), [rate * decay for rate in _RATES])

    mover.forget()
    return _press(mover, proxies, task, solver, _LOOKS)


def mend(task: Task, settled: Settled, solver: Solver) -> Settled:
    """Pairs that were settled and are still too deep in each other, or themselves: pushed out at any price."""
    task = task._replace(poses=settled.poses, pull=_MENDING_PULL * task.pull, wraps=torch.zeros_like(task.wraps))
    mover = _Mover(task, solver.rig, solver.synergies)
    return _press(mover, shaped(solver.proxies, task.shape), task, solver, _MENDING_LOOKS)


def _press(mover: "_Mover", proxies: ShapedProxies, task: Task, solver: Solver, looks: int) -> Settled:
    """What comes of pairs that are looked at as meshes."""
    for look in range(looks):
        frames = mover.frames(proxies.joints)
        vertices = posed_vertices(mover.poses(), proxies.joints, task.shape, solver)
        normals = vertex_normals(vertices, solver)
        links = _links(_meeting(vertices, normals, task), vertices, normals, frames, task, solver)
        decay = 1.0 - 0.8 * look / looks
        for _ in range(_STEPS_PER_LOOK):
            mover.follow(frames, *links.forces(frames), [rate * decay for rate in _LAST_RATES])
            frames = mover.frames(proxies.joints)

    poses = mover.poses()
    vertices = posed_vertices(poses, proxies.joints, task.shape, solver)
    normals = vertex_normals(vertices, solver)
    meeting = _meeting(vertices, normals, task)
    depth = meeting.depth.amax(dim=(1, 2))
    shift = _closing_shift(meeting.bridge, task.touches & (depth < _PRESSED))
    poses = poses._replace(wrist_own=poses.wrist_own + to_person(shift[:, :, None])[:, :, 0])
    own = _own_meeting(vertices, normals, solver)[2].amax(dim=(1, 2))
    return Settled(poses, vertices + shift[:, :, None], torch.maximum(depth, own))


def _closing_shift(bridge: Tensor, is_wanted: Tensor) -> Tensor:
    """Shifts (B, 2, 3) of both hands that close a small gap.  bridge: (B, 3) from the right hand to the left."""
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
    """Local rotations (B, 2, 16, 3, 3) of the hand model's joints; the wrist's turns the hand in the person frame."""
    local = torch.cat([poses.rotation_own[:, :, None], finger_rotations(rig, poses.angles)], dim=2)
    return torch.stack([local[:, Hand.RIGHT], mirror_rotations(local[:, Hand.LEFT])], dim=1).contiguous()


class _Mover:
    """The hands on their way: moves from the start, and Adam's averages of the forces (Kingma and Ba, 2015)."""

    def __init__(self, task: Task, rig: Rig, synergies: Tensor):
        batch, start = len(task.shape), task.poses
        self.start, self.rig, self.synergies, self.step = start, rig, synergies, 0
        sizes = (synergies.shape[1], 3, 3)
        self.moves = [start.wrist_own.new_zeros(batch, 2, size) for size in sizes]  # bending, turning, shifting
        self.averages = [(torch.zeros_like(move), torch.zeros_like(move)) for move in self.moves]

    def forget(self) -> None:
        """Start the averages afresh: forces on meshes are much smaller than those on spheres."""
        self.step = 0
        for average in self.averages:
            for part in average:
                part.zero_()

    def poses(self) -> HandPoses:
        bend, turn, shift = self.moves
        angles = self.start.angles + (bend @ self.synergies.mT).unflatten(-1, (15, 3))
        return HandPoses(clamp_angles(self.rig, angles), _small_rotation(turn) @ self.start.rotation_own,
                         self.start.wrist_own + shift)

    def frames(self, rest_joints: Tensor) -> BoneFrames:
        return bone_frames(self.rig, rest_joints, self.poses())

    def follow(self, frames: BoneFrames, bone: Tensor, points: Tensor, forces: Tensor, rates: list[float]) -> None:
        """One step where forces (B, M, 3) at points (B, M, 3) of bones (B, M) push."""
        total = wrench(frames, bone, points, forces)
        bend = total.bend.flatten(2) @ self.synergies - _STIFFNESS[0] * self.moves[0]
        turn = total.turn - _STIFFNESS[1] * self.moves[1]
        self.step += 1
        for move, push, (mean, square), rate in zip(self.moves, (bend, turn, total.shift), self.averages, rates,
                                                    strict=True):
            mean.lerp_(push, 1 - 0.9)
            square.lerp_(push.square(), 1 - 0.99)
            scale = (square / (1 - 0.99**self.step)).sqrt() + 1e-9
            move += rate * (mean / (1 - 0.9**self.step)) / scale


def _small_rotation(turn: Tensor) -> Tensor:
    """The rotations (..., 3, 3) of the quaternions (1, turn/2): by |turn| to third order."""
    w, (x, y, z) = torch.ones_like(turn[..., 0]), (turn / 2).unbind(-1)
    rows = torch.stack([w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y),
                        2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x),
                        2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z], dim=-1)
    return (rows / (w * w + x * x + y * y + z * z)[..., None]).unflatten(-1, (3, 3))


# ---------------------------------------------------------------- hands as spheres

class _Spheres(NamedTuple):
    """The points that forces act on while hands are spheres: for each hand its spheres, then its anchors."""

    bone: Tensor                # (2N,)         N = S + 4 + A points of a hand
    offset: Tensor              # (B, 2N, 3)
    radius: Tensor              # (B, S + 4)
    reach: Tensor               # (B, S + 4, S + 4) distance at which spheres of both hands meet
    own_reach: Tensor           # (B, S, S)     distance at which two spheres of one hand meet
    closing: Tensor             # (C,)          spheres that close round the other hand
    task: Task

    @classmethod
    def of(cls, task: Task, proxies: ShapedProxies, mean: Proxies) -> "_Spheres":
        arm = task.forearm_own.new_tensor(_FOREARM)[:, None] * _to_rest(task)[:, :, None]   # (B, 2, 4, 3)
        bones = torch.cat([mean.bone, mean.bone.new_zeros(len(_FOREARM)), mean.anchor_bone])
        still = proxies.joints[:, bones]
        center, anchor = (part[:, None].expand(-1, 2, -1, -1) for part in (proxies.center, proxies.anchor))
        offset = torch.cat([center, arm + still[:, None, len(mean.bone), None], anchor], dim=2) - still[:, None]
        # Spheres that nearly meet at rest may come no nearer, but are not pushed apart.
        reach = torch.minimum(proxies.radius[:, :, None] + proxies.radius[:, None], 0.97 * mean.rest_gap)
        radius = F.pad(proxies.radius, (0, len(_FOREARM)), value=_FOREARM_RADIUS)
        return cls(torch.cat([bones, bones + FRAMES_OF_A_HAND]), offset.flatten(1, 2), radius,
                   radius[:, :, None] + radius[:, None] + _CLEARANCE, torch.where(mean.may_meet, reach, -1.0),
                   mean.closing, task)

    def forces(self, frames: BoneFrames) -> tuple[Tensor, Tensor, Tensor]:
        """Bones, points (B, 2N, 3), forces (B, 2N, 3)."""
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
        """Draws the fingers' spheres to the nearest sphere of the other hand: (B, 2, C, 3)."""
        inner = nearness[:, : self.own_reach.shape[1], : self.own_reach.shape[1]]
        nearest = [inner[:, self.closing].argmax(dim=2), inner[:, :, self.closing].argmax(dim=1)]   # (B, C)
        target, room = (torch.stack([_rows(part[:, hand.other], nearest[hand]) for hand in Hand], dim=1)
                        for part in (solids, self.radius[:, None, :, None].expand(-1, 2, -1, -1)))
        way = target - solids[:, :, self.closing]
        distance = way.square().sum(-1, keepdim=True).clamp(min=1e-8).sqrt()
        gap = distance - room - self.radius[:, None, self.closing, None] - _CLEARANCE - _SLACK
        return _CLOSING * self.task.wraps[..., None, None] * gap.clamp(0, _FAR_PULL) * way / distance


def _to_rest(task: Task) -> Tensor:
    """The forearms' directions (B, 2, 3) in the rest frame."""
    return (task.poses.rotation_own * task.forearm_own[..., None]).sum(dim=-2)


def _nearness(a: Tensor, b: Tensor, reach: Tensor) -> Tensor:
    """`reach` (B, N, M) over the distance of points (B, N, 3) and (B, M, 3): above 1 where spheres overlap."""
    return _squares(a, b).clamp_(min=1e-8).rsqrt_().mul_(reach)


def _squares(a: Tensor, b: Tensor, more: float = 0.0) -> Tensor:
    """Squared distances (B, N, M) of points (B, N, 3) and (B, M, 3), and `more`, in one matrix product."""
    ones = torch.ones_like(a[..., :1]), torch.ones_like(b[..., :1])
    left = torch.cat([a, a.square().sum(-1, keepdim=True) + more, ones[0]], dim=-1)
    right = torch.cat([-2 * b, ones[1], b.square().sum(-1, keepdim=True)], dim=-1)
    return left @ right.mT


def _repelled(a: Tensor, b: Tensor, push: Tensor) -> Tensor:
    """Forces (B, N, 3) on points a from points b, `push` (B, N, M) for each metre between them."""
    total = push @ torch.cat([b, torch.ones_like(b[..., :1])], dim=-1)
    return total[..., 3:] * a - total[..., :3]


def _attraction(anchors: Tensor, task: Task) -> Tensor:
    """Forces (B, 2A, 3) on anchors (B, 2A, 3) that want to meet."""
    rows = task.anchors.flatten(1)[..., None].expand(-1, -1, 3)                     # (B, 2K, 3)
    ends = anchors.gather(1, rows).unflatten(1, (-1, 2))
    way = ends[:, :, 1] - ends[:, :, 0]                                             # (B, K, 3)
    distance = way.square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt()
    force = 4 * task.pull[..., None] * (distance - task.gap[..., None]).clamp(0, _FAR_PULL) * way / distance
    return torch.zeros_like(anchors).scatter_add_(1, rows, torch.stack([force, -force], dim=2).flatten(1, 2))


# ---------------------------------------------------------------- hands as meshes

class _Links(NamedTuple):
    """Pairs of vertices that push or pull each other; they move with the bones that they mostly follow."""

    bone: Tensor                # (B, L, 2)
    offset: Tensor              # (B, 2L, 3)
    normal: Tensor              # (B, L, 3)     out of the surface at the second vertex
    push: Tensor                # (B, L)        where the first vertex may not be below the surface at the second
    pull: Tensor                # (B, L)        where they want to meet
    gap: Tensor                 # (B, L)        at which a pull is content

    def forces(self, frames: BoneFrames) -> tuple[Tensor, Tensor, Tensor]:
        bone = self.bone.flatten(1)
        points = posed_points(frames, bone, self.offset)
        first, second = points.unflatten(1, (-1, 2)).unbind(2)
        way = first - second
        depth = F.relu(-_PRESSED / 2 - (way * self.normal).sum(-1)) * self.push
        distance = way.square().sum(-1).clamp(min=1e-12).sqrt()
        pull = (distance - self.gap).clamp(0, _FAR_PULL) * self.pull / distance
        force = 12 * depth[..., None] * self.normal - 4 * pull[..., None] * way
        return bone, points, torch.stack([force, -force], dim=2).flatten(1, 2)


class _Meeting(NamedTuple):
    """How the meshes of pairs meet."""

    near: Tensor                # (B, 2, V)     the vertex of the other hand that is nearest to each vertex
    normal: Tensor              # (B, 2, V, 3)  out of the other hand there
    depth: Tensor               # (B, 2, V)     below the other hand's surface; 0 outside
    closest: Tensor             # (B,)          the vertex outside that is nearest to the other hand; left ones V later
    bridge: Tensor              # (B, 3)        from the right hand to the left there


def _meeting(vertices: Tensor, normals: Tensor, task: Task) -> _Meeting:
    """How meshes (B, 2, 778, 3) meet."""
    near, surface = _nearest(vertices)
    normal = torch.stack([_rows(normals[:, hand.other], near[:, hand]) for hand in Hand], dim=1)
    way = surface - vertices
    height, distance = -(way * normal).sum(-1), way.square().sum(-1).sqrt()
    # Far below a tangent plane may lie the other side of the hand, or a place beside it.
    inside = (height < 0) & (distance < _REACH) & ((distance < _STEEP) | (height < -0.7 * distance))
    inside &= task.is_pair[:, None, None]
    closest = torch.where(inside, torch.inf, distance).flatten(1).argmin(dim=1)
    bridge = _rows(way.flatten(1, 2), closest[:, None])[:, 0]
    return _Meeting(near, normal, torch.where(inside, -height, 0.0), closest,
                    torch.where((closest < NUM_VERTICES)[:, None], bridge, -bridge))


def _links(meeting: _Meeting, vertices: Tensor, normals: Tensor, frames: BoneFrames, task: Task,
           solver: Solver) -> _Links:
    """What pushes and pulls the meshes (B, 2, 778, 3)."""
    near, normal, depth, closest, _ = meeting
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

    depth, near, normal: (B, 2, V, ...).  other: `near` are vertices of the other hand, else of the same.
    """
    found = []
    for hand in Hand:
        deepest, vertex = depth[:, hand].topk(_LINKS if other else _OWN_LINKS, dim=1)
        beside = near[:, hand].gather(1, vertex)
        found.append((_ends(vertex, beside, hand, hand.other if other else hand), _rows(normal[:, hand], vertex),
                      (deepest > 0).to(depth)))
    return found


def _own_meeting(vertices: Tensor, normals: Tensor, solver: Solver) -> tuple[Tensor, Tensor, Tensor]:
    """How fingers meet other fingers or the palm of their own hand.

    The nearest vertex there of each `solver.movable`, (B, 2, E), the normal at it (B, 2, E, 3), the depth below it.
    """
    points = vertices[:, :, solver.movable].flatten(0, 1)                           # (2B, E, 3)
    block = _BLOCK[points.device.type]
    near = torch.cat([(_keys(some, whole) | solver.own_keys).amin(dim=2) for some, whole in
                      zip(points.split(block), vertices.flatten(0, 1).split(block), strict=True)])
    near = near.bitwise_and_(1023).long()
    normal, surface = _rows(normals.flatten(0, 1), near), _rows(vertices.flatten(0, 1), near)
    way = points - surface
    height, distance = (way * normal).sum(-1), way.square().sum(-1).sqrt()
    inside = (height < 0) & (distance < _OWN_REACH) & ((distance < _OWN_STEEP) | (height < -0.7 * distance))
    inside &= ~solver.is_web[torch.arange(near.shape[1], device=near.device), near]
    return tuple(part.unflatten(0, (-1, 2)) for part in (near, normal, torch.where(inside, -height, 0.0)))


def _own_pushes(vertices: Tensor, normals: Tensor, solver: Solver) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The same of fingers that are in other fingers or the palm of their own hand."""
    near, normal, depth = _own_meeting(vertices, normals, solver)
    vertex = solver.movable.expand(len(vertices), -1)
    found = _pushes(depth, near, normal, other=False)
    return [(torch.stack([vertex.gather(1, pair[..., 0] - hand * NUM_VERTICES) + hand * NUM_VERTICES, pair[..., 1]],
                         dim=-1), *rest) for hand, (pair, *rest) in zip(Hand, found, strict=True)]


def _ends(first: Tensor, second: Tensor, hand: Hand, of_second: Hand) -> Tensor:
    """Pairs of vertices (B, L, 2) of a pair's meshes, those of the left hand 778 later."""
    return torch.stack([first + hand * NUM_VERTICES, second + of_second * NUM_VERTICES], dim=-1)


def _linked(pushes: list[tuple[Tensor, Tensor, Tensor]], pulls: list[tuple[Tensor, Tensor, Tensor]],
            vertices: Tensor, frames: BoneFrames, solver: Solver) -> _Links:
    """Links between vertices. Pushes are (ends, normal, strength), pulls (ends, strength, gap)."""
    ends = torch.cat([pair for pair, _, _ in pushes + pulls], dim=1)                # (B, L, 2)
    normal, push = (torch.cat([part[k] for part in pushes], dim=1) for k in (1, 2))
    pull, gap = (torch.cat([part[k] for part in pulls], dim=1) for k in (1, 2))
    bone = torch.cat([solver.dominant, solver.dominant + FRAMES_OF_A_HAND])[ends]
    points = _rows(vertices.flatten(1, 2), ends.flatten(1))
    return _Links(bone, offsets(frames, bone.flatten(1), points), F.pad(normal, (0, 0, 0, pull.shape[1])),
                  F.pad(push, (0, pull.shape[1])), F.pad(pull, (push.shape[1], 0)), F.pad(gap, (push.shape[1], 0)))


def vertex_normals(vertices: Tensor, solver: Solver) -> Tensor:
    """Area-weighted unit normals (B, 2, 778, 3) out of both hands."""
    a, b, c = (vertices[:, :, solver.faces[:, corner]] for corner in range(3))
    across = F.pad(torch.linalg.cross(b - a, c - a), (0, 0, 0, 1))
    normals = F.normalize(across[:, :, solver.faces_of].sum(dim=3), dim=-1)
    return torch.stack([normals[:, Hand.RIGHT], -normals[:, Hand.LEFT]], dim=1)     # left faces wind the other way


def _nearest(vertices: Tensor) -> tuple[Tensor, Tensor]:
    """For each vertex the nearest one of the other hand, (B, 2, V), and where it is, (B, 2, V, 3)."""
    near, index = [], torch.arange(NUM_VERTICES, dtype=torch.int32, device=vertices.device)
    for block in vertices.split(_BLOCK[vertices.device.type]):
        keys = _keys(block[:, 0], block[:, 1])
        of_right, of_left = (keys | index).amin(dim=2), (keys | index[:, None]).amin(dim=1)
        near.append(torch.stack([of_right, of_left], dim=1).bitwise_and_(1023))
    near = torch.cat(near).long()
    surface = torch.stack([_rows(vertices[:, hand.other], near[:, hand]) for hand in Hand], dim=1)
    return near, surface


def _keys(a: Tensor, b: Tensor) -> Tensor:
    """Integers (B, N, M) that sort like the distances of points (B, N, 3) and (B, M, 3), with room for an index.

    The bits of positive floats sort like the floats; the lowest ten are left to the index of a vertex.
    """
    return _squares(a, b, _POSITIVE).view(torch.int32).bitwise_and_(-1024)


def _anchor_vertices(anchors: Tensor, solver: Solver) -> Tensor:
    """The vertices (B, K, 2) of anchor rows (B, K, 2), those of the left hand 778 later."""
    count = len(solver.proxies.anchor_vertex)
    return solver.proxies.anchor_vertex[anchors % count] + NUM_VERTICES * (anchors >= count)


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows (B, N, C) of tables (B, M, C) at index (B, N)."""
    return table.gather(1, index[..., None].expand(-1, -1, table.shape[2]))
