"""Everything solid in a batch of pictures as one mesh: hands, arms, sleeves, watches, an object and a clothed torso.

The topology is the same for all pictures; what a picture does not show is shrunk to a point. An arm is a tube of rings
along a curve that leaves the wrist where the hand points, bends towards the elbow and runs on to the shoulder. Its
first ring is the open wrist loop of the hand, so skin continues without a seam.

Legend: B batch · 2 the hand axis · N = 2·B limbs · L vertices of a wrist loop · R rings · V, F vertices and faces of
the whole figure. Person frame unless a name says `_own`. Metres.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from common.hands import NUM_VERTICES, Hand
from data.synthetic.picture.dice import Dice
from data.synthetic.picture.skin import ARM_END
from data.synthetic.pose.body import OWN_SIGNS, Surface, tube_faces

SKIN, SLEEVE, SHIRT, WATCH, OBJECT = range(5)       # materials

_ELBOW_AT, _ARM_LENGTH, _STEP = 0.25, 0.70, 0.02
_SHOULDER_OWN = (-0.20, 0.17, -0.38)
_ARM_STATIONS = (0.0, 0.004, 0.01, 0.018, 0.028, 0.04, 0.055, 0.075, 0.095, 0.115, 0.135, 0.155, 0.175, 0.2, 0.225,
                 0.25, 0.275, 0.3, 0.33, 0.37, 0.42, 0.48, 0.55, 0.63, 0.70)
_WATCH_STATIONS = (0.014, 0.0145, 0.017, 0.022, 0.027, 0.0295, 0.03)
_WATCH_HEIGHTS = (-0.001, 0.0024, 0.0032, 0.0034, 0.0032, 0.0024, -0.001)
_SLEEVE_RINGS, _SOLID_RINGS, _SOLID_AROUND = 34, 14, 20
_TORSO_RINGS, _TORSO_AROUND = 42, 48
_WRIST_X = 0.108                                    # of the resting hand's open end


class Hands(NamedTuple):
    """Two posed hands for each picture."""

    vertices: Tensor        # (B, 2, 778, 3)
    present: Tensor         # (B, 2) bool
    rotation_own: Tensor    # (B, 2, 3, 3)      from the rest frame of a right hand
    forearm_own: Tensor     # (B, 2, 3)         unit, from the wrist to the elbow


class Topology(NamedTuple):
    """What all figures share."""

    mid_from_coarse: Tensor     # (3093, 778)
    faces: Tensor               # (F, 3)
    material: Tensor            # (F,)
    part: Tensor                # (F,)          pieces of one part share a smooth surface
    is_hand: Tensor             # (F,) bool     of a hand, not of its arm
    occluders: Tensor           # (F', 3)       fewer faces that cast the same shadows
    occluder_is_hand: Tensor    # (F',) bool
    loop: Tensor                # (2, L)        the wrist loop among the 3093 vertices of each hand
    hand_uv: Tensor             # (2, 3093, 3)  rest x, z and upward direction
    palm: Tensor                # (K,)          coarse vertices in the middle of the palm
    corners: Tensor             # (V, 12)       faces round each vertex, F where there are fewer


class Figure(NamedTuple):
    """The mesh of each picture."""

    vertices: Tensor            # (B, V, 3)
    uv: Tensor                  # (B, V, 3)     skin: rest x, z, upward; cloth: metres round and along; else local


def topology(surface: Surface, rest: np.ndarray, device: torch.device | str = "cpu") -> Topology:
    """The figure round a hand surface.  rest: (778, 3) the right hand's resting vertices."""
    mid_count, around = surface.mid_from_coarse.shape[0], len(surface.mid_loop[0])
    pieces, occluders, is_hand, start = [], [], [], 0
    for hand in Hand:
        base = start
        pieces.append((surface.mid_faces[hand] + base, SKIN, hand))
        occluders.append(surface.coarse_faces[hand] + base)
        is_hand.append(np.ones(len(occluders[-1]), bool))
        start += mid_count
        for rings, material in ((len(_ARM_STATIONS) - 1, SKIN), (_SLEEVE_RINGS, SLEEVE), (len(_WATCH_STATIONS), WATCH)):
            table = np.arange(start, start + rings * around).reshape(rings, around)
            if material == SKIN:
                table = np.concatenate([surface.mid_loop[hand][None] + base, table])
            part = hand if material == SKIN else 2 + 2 * material + hand
            pieces.append((table.reshape(-1)[tube_faces(len(table), around)], material, part))
            if material != WATCH:
                thin = table[::2, ::3] if material == SKIN else table[::3, ::3]
                occluders.append(thin.reshape(-1)[tube_faces(*thin.shape)])
                is_hand.append(np.zeros(len(occluders[-1]), bool))
            start += rings * around
    solid = tube_faces(_SOLID_RINGS, _SOLID_AROUND)
    for number, material in enumerate((WATCH, WATCH, OBJECT)):
        pieces.append((solid + start, material, 20 + number))
        if material == OBJECT:
            occluders.append(solid + start)
            is_hand.append(np.zeros(len(solid), bool))
        start += _SOLID_RINGS * _SOLID_AROUND
    pieces.append((tube_faces(_TORSO_RINGS, _TORSO_AROUND)[:, ::-1] + start, SHIRT, 30))
    start += _TORSO_RINGS * _TORSO_AROUND

    faces = np.concatenate([faces for faces, *_ in pieces])
    of_pieces = [np.concatenate([np.full(len(piece[0]), piece[k]) for piece in pieces]) for k in (1, 2)]
    mid_rest = surface.mid_from_coarse @ rest.astype(np.float32)
    upward = _upward(mid_rest, surface.mid_faces[Hand.RIGHT])
    hand_uv = np.stack([mid_rest[:, 0], mid_rest[:, 2], upward], axis=1)
    palm = np.argsort(np.linalg.norm(rest - (0.035, -0.02, 0.0), axis=1))[:20]

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    of_hand = np.concatenate([np.full(len(piece[0]), len(piece[0]) == len(surface.mid_faces[0])) for piece in pieces])
    return Topology(tensor(surface.mid_from_coarse.toarray()), tensor(faces), *map(tensor, of_pieces), tensor(of_hand),
                    tensor(np.concatenate(occluders)),
                    tensor(np.concatenate(is_hand)), tensor(surface.mid_loop), tensor(np.stack([hand_uv] * 2)),
                    tensor(palm), tensor(_faces_round(faces, start)))


def _upward(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    across = np.cross(vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]])
    total = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(total, faces[:, corner], across)
    return total[:, 1] / np.linalg.norm(total, axis=1)


def _faces_round(faces: np.ndarray, count: int, most: int = 12) -> np.ndarray:
    """Faces (V, most) round each vertex, filled up with len(faces)."""
    owner = faces.reshape(-1)
    order = np.argsort(owner, kind="stable")
    first = np.searchsorted(owner[order], np.arange(count))
    place = np.arange(len(owner)) - first[owner[order]]
    table = np.full((count, most), len(faces))
    fits = place < most
    table[owner[order][fits], place[fits]] = order[fits] // 3
    return table


def vertex_normals(vertices: Tensor, shared: Topology) -> Tensor:
    """Area-weighted unit normals (B, V, 3)."""
    a, b, c = (vertices.index_select(1, shared.faces[:, corner]) for corner in range(3))
    across = torch.cat([torch.linalg.cross(b - a, c - a), vertices.new_zeros(len(vertices), 1, 3)], dim=1)
    total = sum(across.index_select(1, shared.corners[:, k]) for k in range(shared.corners.shape[1]))
    return normalize(total, dim=-1, eps=1e-20)


# ---------------------------------------------------------------- the whole figure

class Wear(NamedTuple):
    """What decides the form of a person's arms, clothes and things."""

    girth: Tensor           # (B,)      1 is average
    cuff: Tensor            # (B,)      metres from the wrist to where the sleeve begins
    looseness: Tensor       # (B,)      metres between arm and sleeve
    watch: Tensor           # (B, 2) bool
    torso: Tensor           # (B,) bool
    object: Tensor          # (B,) bool


def sample_wear(person: Dice, place: Dice, step: Dice) -> Wear:
    style = person.pick("sleeve", (0.45, 0.2, 0.35))
    cuffs = torch.stack([person.uniform("bare", 0.26, 0.38), person.uniform("rolled", 0.10, 0.2),
                         person.uniform("long", 0.0, 0.035)])
    cuff = cuffs.gather(0, style[None])[0]
    loose = torch.where(style == 2, person.uniform("tight", 0.004, 0.009), person.uniform("loose", 0.006, 0.016))
    sides = torch.arange(2, device=style.device)
    on_this = person.pick("wrist", (0.2, 0.8))[:, None] == sides
    watch = (person.chance("watch", 0.3) & (cuff > 0.06))[:, None] & on_this
    return Wear(person.uniform("girth", 0.85, 1.15), cuff, loose, watch, place.chance("torso", 0.75),
                step.chance("object", 0.3))


def build_figure(hands: Hands, wear: Wear, person: Dice, step: Dice, shared: Topology) -> Figure:
    batch = len(hands.vertices)
    signs = hands.vertices.new_tensor(OWN_SIGNS)[None, :, None]                     # (1, 2, 1, 3)
    mid = _subdivided(hands.vertices, shared)                                       # (B, 2, 3093, 3)
    loops = mid.gather(2, shared.loop[None, :, :, None].expand(batch, 2, -1, 3)) * signs
    limbs = _build_arms(loops, hands, wear, person)
    limbs = [(vertices * signs, uv) for vertices, uv in limbs]
    limbs = [(mid, shared.hand_uv.expand(batch, -1, -1, -1)), *limbs]
    limb_vertices = torch.cat([vertices for vertices, _ in limbs], dim=2)
    # A hand that is not there is a point far below.
    nowhere = limb_vertices.new_tensor([0.0, -50.0, 0.0])
    limb_vertices = torch.where(hands.present[:, :, None, None], limb_vertices, nowhere)
    limb_uv = torch.cat([uv for _, uv in limbs], dim=2)

    watches, torso = _watch_faces(hands, wear, person, loops * signs), _torso(wear, person)
    object_ = _object(hands, mid, wear, step, shared)
    vertices = torch.cat([limb_vertices.flatten(1, 2), watches[0].flatten(1, 2), object_[0], torso[0]], dim=1)
    uv = torch.cat([limb_uv.flatten(1, 2), watches[1].flatten(1, 2), object_[1], torso[1]], dim=1)
    return Figure(vertices, uv)


def _subdivided(vertices: Tensor, shared: Topology) -> Tensor:
    batch = len(vertices)
    columns = vertices.permute(2, 0, 1, 3).reshape(NUM_VERTICES, -1)
    return (shared.mid_from_coarse @ columns).view(-1, batch, 2, 3).permute(1, 2, 0, 3)


# ---------------------------------------------------------------- arms

def _build_arms(loops_own: Tensor, hands: Hands, wear: Wear, person: Dice) -> list[tuple[Tensor, Tensor]]:
    """Arm skin, sleeves and watch straps: vertices (B, 2, V, 3) in the own frame, and uv."""
    batch, around = len(loops_own), loops_own.shape[2]
    rotation, direction = hands.rotation_own.flatten(0, 1), hands.forearm_own.flatten(0, 1)
    loop = loops_own.flatten(0, 1)                                                  # (N, L, 3)
    center = loop.mean(dim=1)
    upper = loop.new_tensor(_SHOULDER_OWN) - (center + _ELBOW_AT * direction)
    curve = _curve(center, rotation, direction, normalize(upper, dim=-1))
    local = (loop - center[:, None]) @ rotation                                     # along, back, thumb side

    def of_limb(values: Tensor) -> Tensor:
        return values.repeat_interleave(2, dim=0)

    girth, cuff, loose = of_limb(wear.girth), of_limb(wear.cuff), of_limb(wear.looseness)
    skin = loop.new_tensor(_ARM_STATIONS[1:]).expand(2 * batch, -1)
    grow = -0.003 * torch.clamp((skin - cuff[:, None] - 0.02) / 0.02, 0, 1)        # thinner below the sleeve
    arms = _tube(curve, skin, local, girth, grow[..., None])

    part = torch.linspace(0, 1, _SLEEVE_RINGS - 1, device=loop.device)
    cloth = cuff[:, None] + (_ARM_LENGTH - cuff[:, None]) * (0.55 * part + 0.45 * part**2.2)
    cloth = torch.cat([cloth[:, :1], cloth], dim=1)                                 # the hem turns in
    sleeves = _tube(curve, cloth, local, girth, _sleeve_looseness(cloth, loose, person, around))
    watch = loop.new_tensor(_WATCH_STATIONS).expand(2 * batch, -1)
    heights = loop.new_tensor(_WATCH_HEIGHTS)[:, None]
    # Straps that are not worn lie below the skin.
    worn = wear.watch.flatten()[:, None, None]
    straps = _tube(curve, watch, local, girth, torch.where(worn, heights, torch.full_like(heights, -0.012)))
    found = []
    for kind, (vertices, angle, stations, side, back) in enumerate((arms, sleeves, straps)):
        along = stations[..., None].expand_as(angle)
        if kind == 0:
            uv = torch.stack([(_WRIST_X + along).clamp(max=ARM_END), side * 0.8, back], dim=-1)
        else:
            uv = torch.stack([angle * 0.045, along, torch.zeros_like(along)], dim=-1)
        found.append((vertices.unflatten(0, (batch, 2)).flatten(2, 3), uv.unflatten(0, (batch, 2)).flatten(2, 3)))
    return found


class _Curve(NamedTuple):
    """The middle line of arms, every _STEP metres, with a frame that does not twist."""

    points: Tensor          # (N, K, 3)
    frames: Tensor          # (N, K, 3, 3)  columns along, back, thumb side


def _curve(start: Tensor, rotation: Tensor, forearm: Tensor, upper: Tensor) -> _Curve:
    stations = torch.arange(int(_ARM_LENGTH / _STEP) + 3, device=start.device) * _STEP
    bend_wrist = _smoothstep(stations / 0.06)[:, None]
    bend_elbow = _smoothstep((stations - _ELBOW_AT + 0.04) / 0.08)[:, None]
    along = torch.lerp(rotation[:, None, :, 0], forearm[:, None], bend_wrist)
    along = normalize(torch.lerp(along, upper[:, None], bend_elbow), dim=-1)        # (N, K, 3)
    steps = (along[:, :-1] + along[:, 1:]) * (_STEP / 2)
    points = start[:, None] + torch.cat([torch.zeros_like(steps[:, :1]), steps.cumsum(dim=1)], dim=1)
    back, backs = rotation[:, :, 1], []
    for direction in along.unbind(1):
        back = normalize(back - (back * direction).sum(-1, keepdim=True) * direction, dim=-1)
        backs.append(back)
    back = torch.stack(backs, dim=1)
    return _Curve(points, torch.stack([along, back, torch.linalg.cross(along, back)], dim=-1))


def _tube(curve: _Curve, stations: Tensor, local: Tensor, girth: Tensor,
          grow: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rings at stations (N, R): the wrist's own outline (N, L, 3) that turns into an arm's oval, grown by (N, R, L).

    Returns vertices (N, R, L, 3), the angle round the arm, the stations, and how far each vertex lies to the thumb's
    side (metres along the skin; at the wrist straight across, as on the hand) and backward (−1 to 1).
    """
    place = (stations / _STEP).clamp(0, curve.points.shape[1] - 1.001)
    low, part = place.long(), (place % 1)[..., None]
    def at(values: Tensor) -> Tensor:
        values = values.flatten(2)
        pick = low[..., None].expand(-1, -1, values.shape[-1])
        return torch.lerp(values.gather(1, pick), values.gather(1, pick + 1), part)

    points, frames = at(curve.points), at(curve.frames).unflatten(-1, (3, 3))
    outline = local[:, None, :, 1:]                                                 # (N, 1, L, 2) back, thumb side
    angle = torch.atan2(outline[..., 1], outline[..., 0])
    half_back, half_side = (width * girth[:, None] for width in _oval(stations))
    oval = torch.stack([angle.cos() * half_back[..., None], angle.sin() * half_side[..., None]], dim=-1)
    blend = _smoothstep(stations / 0.07)[..., None]
    ring = torch.lerp(outline, oval, blend[..., None])                              # (N, R, L, 2)
    reach = ring.norm(dim=-1, keepdim=True)
    ring = ring * (1 + grow[..., None] / reach)
    along = (1 - blend) * local[:, None, :, 0] * (-stations[..., None] / 0.03).exp()
    cross = torch.cat([along[..., None], ring], dim=-1)
    vertices = points[:, :, None] + cross @ frames.transpose(-1, -2)
    reach = ring.norm(dim=-1)
    upward, side = ring[..., 0] / reach, ring[..., 1]
    # Along the skin rather than straight across: patterns would be stretched on the sides of the arm.
    side = torch.lerp(side, reach * (side / reach).clamp(-1, 1).asin(), blend)
    return vertices, angle.expand_as(upward), stations, side, upward


def _sleeve_looseness(stations: Tensor, loose: Tensor, person: Dice, around: int) -> Tensor:
    """Metres (N, R, L) between arm and sleeve: a hem that turns in, soft waves, and cloth pushed up at the elbow."""
    angle = torch.linspace(0, 2 * math.pi, around + 1, device=loose.device)[:-1]
    waves = torch.zeros(*stations.shape, around, device=loose.device)
    for number in range(5):
        frequency, phase = person.uniform(f"fold {number}", 25, 150), person.uniform(f"phase {number}", 0, 6.3, 2)
        turns = torch.floor(person.uniform(f"turns {number}", 1, 4))
        frequency, turns = (values.repeat_interleave(2)[:, None, None] for values in (frequency, turns))
        phase = phase.flatten()[:, None, None]
        waves = waves + torch.sin(frequency * stations[..., None] + turns * angle + phase).abs() / 5
    elbow = torch.exp(-(((stations - _ELBOW_AT) / 0.07) ** 2))[..., None]
    bunched = torch.sin(stations[..., None] * 190 + 1.5 * torch.sin(angle)) * elbow
    grow = loose[:, None, None] * (0.7 + 1.1 * waves + 0.35 * bunched)
    rise = _smoothstep((stations - stations[:, :1]) / 0.012)[..., None]
    grow = torch.lerp(torch.minimum(grow, torch.full_like(grow, 0.006)), grow, rise)
    return torch.cat([torch.full_like(grow[:, :1], 0.0006), grow[:, 1:]], dim=1)


def _oval(stations: Tensor) -> list[Tensor]:
    """Half thickness and half width of an average arm, metres."""
    knots = [0, 0.04, 0.10, 0.17, 0.22, 0.26, 0.34, 0.50, 0.8]
    return [_piecewise(stations, knots, values)
            for values in ([0.019, 0.021, 0.029, 0.037, 0.038, 0.038, 0.044, 0.052, 0.056],
                           [0.027, 0.028, 0.034, 0.041, 0.043, 0.041, 0.045, 0.054, 0.058])]


# ---------------------------------------------------------------- things

def _superellipsoid(half: Tensor, roundness: Tensor) -> tuple[Tensor, Tensor]:
    """Solids (..., V, 3) from boxes over cylinders to ellipsoids, and their uv.

    half: (..., 3) half sizes; the last axis is that of a cylinder.
    roundness: (..., 2) along and round the axis; 0 is a box, 1 an ellipsoid.
    """
    along = torch.linspace(-math.pi / 2, math.pi / 2, _SOLID_RINGS, device=half.device)
    around = torch.arange(_SOLID_AROUND, device=half.device) * (2 * math.pi / _SOLID_AROUND) + 0.1
    e1, e2 = (part[..., None, None] for part in roundness.unbind(-1))
    def power(values: Tensor, exponent: Tensor) -> Tensor:
        return values.sign() * values.abs().clamp(min=1e-6) ** exponent

    wide = power(along.cos()[:, None], e1)
    unit = torch.stack([wide * power(around.cos(), e2), wide * power(around.sin(), e2),
                        power(along.sin()[:, None], e1).expand(*half.shape[:-1], -1, _SOLID_AROUND)], dim=-1)
    return (unit * half[..., None, None, :]).flatten(-3, -2), unit.flatten(-3, -2)


def _watch_faces(hands: Hands, wear: Wear, person: Dice, loops: Tensor) -> tuple[Tensor, Tensor]:
    """Watch cases on the back of the wrists, (B, 2, V, 3)."""
    radius = person.uniform("watch radius", 0.013, 0.021)
    height = torch.full_like(radius, 0.0045)
    half = torch.stack([radius, radius * person.uniform("watch shape", 0.75, 1.05), height], dim=-1)
    roundness = torch.stack([torch.full_like(radius, 0.35), torch.where(person.chance("square", 0.3), 0.35, 1.0)], -1)
    solid, uv = _superellipsoid(half, roundness)
    along, back, side = hands.rotation_own.unbind(-1)                               # (B, 2, 3)
    bent = normalize(along + hands.forearm_own, dim=-1)
    back = normalize(back - (back * bent).sum(-1, keepdim=True) * bent, dim=-1)
    axes = torch.stack([bent, torch.linalg.cross(back, bent), back], dim=-1)        # (B, 2, 3, 3)
    signs = solid.new_tensor(OWN_SIGNS)
    center = loops.mean(dim=2) + (0.022 * bent + 0.0235 * back) * signs
    axes = _mirrored(axes, signs)
    placed = center[:, :, None] + solid[:, None] @ axes.transpose(-1, -2)
    shown = (wear.watch & hands.present)[:, :, None, None]
    return torch.where(shown, placed, placed.new_tensor([0.0, -50.0, 0.0])), uv[:, None].expand_as(placed)


def _mirrored(axes: Tensor, signs: Tensor) -> Tensor:
    """Axes (..., 3, 3), as columns, leave the own frame; symmetric solids keep their winding."""
    axes = axes * signs[..., :, None]
    return torch.cat([axes[..., :1] * signs[..., :1, None], axes[..., 1:]], dim=-1)


# Box, phone, card, pen, can, bottle, ball: half sizes in millimetres and roundness.
_OBJECTS = ((38, 30, 22, 0.1, 0.1), (36, 75, 4, 0.15, 0.2), (27, 43, 0.8, 0.15, 0.15), (4.5, 4.5, 72, 0.3, 1.0),
            (31, 31, 52, 0.1, 1.0), (18, 18, 85, 0.3, 1.0), (34, 34, 34, 1.0, 1.0))


# Where its middle may lie from the palm, metres: away from the palm, and towards the fingertips.
_HELD_AT = tuple((away, out) for out in (0.0, 0.03) for away in (0.004, 0.008, 0.013, 0.019, 0.027, 0.037))
_SMALLEST = 0.5             # share of its size to which a thing shrinks to fit a hand; none is held where it must more
_CLEARANCE = 0.0015         # metres: skin bulges between vertices


def _object(hands: Hands, mid: Tensor, wear: Wear, step: Dice, shared: Topology) -> tuple[Tensor, Tensor]:
    """A thing in one of the hands, (B, V, 3): between palm and fingers, along one of the hand's axes.

    mid: (B, 2, 3093, 3) the hands' vertices, subdivided.
    """
    kind = step.pick("kind", (0.2, 0.15, 0.1, 0.2, 0.15, 0.1, 0.1))
    form = hands.vertices.new_tensor(_OBJECTS)[kind]
    half = form[:, :3] / 1000 * step.uniform("size", 0.75, 1.2)[:, None]
    solid, uv = _superellipsoid(half, form[:, 3:])
    wanted = step.pick("hand", (0.5, 0.5))
    hand = torch.where(hands.present.gather(1, wanted[:, None])[:, 0], wanted, 1 - wanted)

    def of_hand(values: Tensor) -> Tensor:
        return values[torch.arange(len(hand), device=hand.device), hand]

    signs = of_hand(hands.vertices.new_tensor(OWN_SIGNS).expand(len(hand), 2, 3))
    along, back, side = of_hand(hands.rotation_own).unbind(-1)
    # The long axis lies across the palm or along the fingers, a little askew.
    lies_across = step.chance("across", 0.65)[:, None]
    axis = torch.where(lies_across, side, along) + 0.25 * step.normal("askew", 3)
    normal = normalize(back - (back * normalize(axis, dim=-1)).sum(-1, keepdim=True) * normalize(axis, dim=-1), dim=-1)
    axis = normalize(axis, dim=-1)
    axes = torch.stack([torch.linalg.cross(normal, axis), normal, axis], dim=-1)
    palm = of_hand(hands.vertices[:, :, shared.palm].mean(dim=2))
    is_flat = half[:, 2] < 0.01                                                     # cards and phones lie flat
    axes = torch.where(is_flat[:, None, None], axes[..., [0, 2, 1]] * axes.new_tensor([1.0, 1.0, -1.0]), axes)
    axes = _mirrored(axes, signs)
    offsets = solid.new_tensor(_HELD_AT)
    centers = palm[:, None] - (offsets[:, :1] * back[:, None] + offsets[:, 1:] * along[:, None]) * signs[:, None]
    at = torch.nonzero(wear.object).squeeze(-1)
    placed = solid.new_tensor([0.0, -50.0, 0.0]).expand_as(solid).clone()
    around = torch.where(hands.present[at, :, None, None], mid[at], -50.0).flatten(1, 2)
    center, scale = _fitted(centers[at], axes[at], half[at], form[at, 3:], around)
    fits = (scale >= _SMALLEST)[:, None, None]
    moved = center[:, None] + scale[:, None, None] * (solid[at] @ axes[at].transpose(-1, -2))
    placed[at] = torch.where(fits, moved, placed[at])
    return placed, uv


def _fitted(centers: Tensor, axes: Tensor, half: Tensor, roundness: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Of the places (N, K, 3) that with most room (N, 3), and the scale (N,), at most 1, at which no point is inside.

    points: (N, M, 3).  The other arguments place a solid as in `_superellipsoid`.
    """
    half = half + _CLEARANCE
    local = ((points[:, None] - centers[:, :, None]) @ axes[:, None] / half[:, None, None]).abs().clamp(min=1e-3)
    e1, e2 = (part[:, None, None] for part in roundness.unbind(-1))
    x, y, z = local.unbind(-1)
    # The factor by which the solid must grow to reach a vertex; large powers are taken of numbers up to 1.
    widest = torch.maximum(x, y)
    around = widest * ((x / widest) ** (2 / e2) + (y / widest) ** (2 / e2)) ** (e2 / 2)
    largest = torch.maximum(around, z)
    reached = largest * ((around / largest) ** (2 / e1) + (z / largest) ** (2 / e1)) ** (e1 / 2)
    room = reached.amin(dim=-1).clamp(max=1)                                        # (N, K)
    # Among places where all of it fits, the one that is nearest to the palm.
    best = (room - 0.01 * torch.arange(room.shape[1], device=room.device) / room.shape[1]).argmax(dim=-1)
    row = torch.arange(len(best), device=best.device)
    return centers[row, best], room[row, best]


def _torso(wear: Wear, person: Dice) -> tuple[Tensor, Tensor]:
    """A clothed chest with neck and a plain head, (B, V, 3)."""
    device = wear.girth.device
    heights = torch.cat([torch.linspace(-1.3, -0.6, 11)[:-1], torch.linspace(-0.6, 0.59, _TORSO_RINGS - 10)]).to(device)
    around = torch.arange(_TORSO_AROUND, device=device) * (2 * math.pi / _TORSO_AROUND)
    knots = [-1.3, -0.62, -0.35, 0.0, 0.15, 0.22, 0.26, 0.30, 0.34, 0.38, 0.45, 0.52, 0.57, 0.59]
    wide = _piecewise(heights, knots, [0.18, 0.17, 0.16, 0.19, 0.20, 0.17, 0.08, 0.06, 0.06, 0.07, 0.08, 0.075, 0.05,
                                       0.01])
    deep = _piecewise(heights, knots, [0.12, 0.115, 0.11, 0.125, 0.11, 0.08, 0.065, 0.06, 0.07, 0.09, 0.1, 0.09, 0.06,
                                       0.01])
    size = person.uniform("torso", 0.85, 1.2, 3)
    cos, sin = around.cos(), around.sin()
    x = (cos.sign() * cos.abs() ** 0.8) * wide[:, None]
    z = (sin.sign() * sin.abs() ** 0.9) * deep[:, None]
    drape = torch.zeros(len(size), len(heights), _TORSO_AROUND, device=device)
    for number in range(5):
        slant, phase = person.uniform(f"slant {number}", -14, 14), person.uniform(f"drape {number}", 0, 6.3)
        turns = torch.floor(person.uniform(f"pleats {number}", 3, 12))
        turns, slant, phase = (values[:, None, None] for values in (turns, slant, phase))
        drape = drape + torch.sin(turns * around + slant * heights[:, None] + phase)
    drape = 0.0035 * drape * (1.3 - 2 * heights[:, None]).clamp(0.2, 2) * (heights[:, None] < 0.2)
    spread = 1 + drape / 0.15
    wide, deep, tall = size[..., None, None].unbind(1)
    tall = (heights[:, None] * tall).expand_as(drape)
    vertices = torch.stack([x * spread * wide, tall, z * spread * deep - 0.42], dim=-1)
    uv = torch.stack(torch.broadcast_tensors(around * 0.17, heights[:, None], torch.zeros(1, device=device)), dim=-1)
    shown = wear.torso[:, None, None]
    vertices = torch.where(shown, vertices.flatten(1, 2), vertices.new_tensor([0.0, -50.0, 0.0]))
    return vertices, uv.flatten(0, 1).expand_as(vertices)


def _piecewise(x: Tensor, knots: list[float], values: list[float]) -> Tensor:
    """Linear interpolation, as numpy.interp."""
    at, value = x.new_tensor(knots), x.new_tensor(values)
    high = torch.searchsorted(at, x.contiguous()).clamp(1, len(knots) - 1)
    part = ((x - at[high - 1]) / (at[high] - at[high - 1])).clamp(0, 1)
    return torch.lerp(value[high - 1], value[high], part)


def _smoothstep(x: Tensor) -> Tensor:
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)
