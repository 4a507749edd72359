"""The body: one mesh of hands, arms, sleeves, watches, a held object and a clothed torso.

All images share one topology; absent parts collapse to a point. An arm is a tube of rings along a curve that leaves
the wrist in the direction of the hand, bends towards the elbow and ends at the shoulder. Its first ring is the open
wrist loop of the hand, so the skin has no seam.

Legend: B batch · 2 the hand axis · N = 2·B limbs · L vertices of a wrist loop · R rings · V, F vertices and faces of
the body. Person frame unless a name says `_own`. Metres.
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
from data.synthetic.pose.kinematics import OWN_SIGNS
from data.synthetic.surface import Surface, faces_around_vertices

SKIN, SLEEVE, SHIRT, WATCH, OBJECT = range(5)       # materials
WATCH_CASES = (20, 21)                              # parts

_ELBOW_AT, _ARM_LENGTH, _STEP = 0.25, 0.70, 0.02    # along the centreline
_SHOULDER_OWN = (-0.20, 0.17, -0.38)
# Distances of rings from the wrist, along the centreline.
_ARM_STATIONS = (0.0, 0.004, 0.01, 0.018, 0.028, 0.04, 0.055, 0.075, 0.095, 0.115, 0.135, 0.155, 0.175, 0.2, 0.225,
                 0.25, 0.275, 0.3, 0.33, 0.37, 0.42, 0.48, 0.55, 0.63, 0.70)
_WATCH_STATIONS = (0.014, 0.0145, 0.017, 0.022, 0.027, 0.0295, 0.03)
_WATCH_HEIGHTS = (-0.001, 0.0024, 0.0032, 0.0034, 0.0032, 0.0024, -0.001)
_SLEEVE_RINGS, _SOLID_RINGS, _SOLID_AROUND = 34, 14, 20
_TORSO_RINGS, _TORSO_AROUND = 42, 48
_WRIST_X = 0.108                                    # of the wrist loop at rest
_NOWHERE = (0.0, -50.0, 0.0)                        # where absent parts collapse


class Hands(NamedTuple):
    """Two posed hands for each image."""

    vertices: Tensor        # (B, 2, 778, 3)
    present: Tensor         # (B, 2) bool
    rotation_own: Tensor    # (B, 2, 3, 3)      from the rest frame of a right hand
    forearm_own: Tensor     # (B, 2, 3)         unit, from wrist to elbow


class Topology(NamedTuple):
    """What all bodies share."""

    mid_from_coarse: Tensor     # (3093, 778)
    faces: Tensor               # (F, 3)
    material: Tensor            # (F,)
    part: Tensor                # (F,)          smooth surface that the face belongs to; 0 and 1: hand with arm
    is_hand: Tensor             # (F,) bool     of a hand, not of its arm
    occluders: Tensor           # (F', 3)       fewer faces that cast nearly the same shadows
    occluder_is_hand: Tensor    # (F',) bool
    loop: Tensor                # (2, L)        wrist loop among the 3093 vertices of each hand
    hand_uv: Tensor             # (2, 3093, 3)  x, z and upward component of the normal, at rest
    palm: Tensor                # (K,)          coarse vertices in the middle of the palm
    faces_around: Tensor        # (V, 8)        as `faces_around_vertices`


class Body(NamedTuple):
    """The mesh of each image."""

    vertices: Tensor            # (B, V, 3)
    uv: Tensor                  # (B, V, 3)     skin: as hand_uv; cloth: metres around and along; solids: local


def body_topology(surface: Surface, rest: np.ndarray, device: torch.device | str = "cpu") -> Topology:
    """The topology of bodies with hands of this surface.  rest: (778, 3) the right hand's rest vertices."""
    around = surface.mid_loop.shape[1]
    pieces, occluders, start = [], [], 0                # (faces, material, part, is_hand), (faces, is_hand)
    for hand in Hand:
        pieces.append((surface.mid_faces[hand] + start, SKIN, hand, True))
        occluders.append((surface.coarse_faces[hand] + start, True))
        wrist = surface.mid_loop[hand][None] + start
        start += surface.mid_from_coarse.shape[0]
        for rings, material in ((len(_ARM_STATIONS) - 1, SKIN), (_SLEEVE_RINGS, SLEEVE), (len(_WATCH_STATIONS), WATCH)):
            table = np.arange(start, start + rings * around).reshape(rings, around)
            start += rings * around
            if material == SKIN:
                table = np.concatenate([wrist, table])
            pieces.append((_tube_faces(table), material, hand if material == SKIN else 2 + 2 * material + hand, False))
            if material != WATCH:
                occluders.append((_tube_faces(table[:: 2 if material == SKIN else 3, ::3]), False))
    for part, material in (*((case, WATCH) for case in WATCH_CASES), (22, OBJECT)):
        solid = _tube_faces(np.arange(start, start + _SOLID_RINGS * _SOLID_AROUND).reshape(_SOLID_RINGS, -1))
        start += _SOLID_RINGS * _SOLID_AROUND
        pieces.append((solid, material, part, False))
        if material == OBJECT:
            occluders.append((solid, False))
    torso = np.arange(start, start + _TORSO_RINGS * _TORSO_AROUND).reshape(_TORSO_RINGS, -1)
    start += torso.size
    pieces.append((_tube_faces(torso)[:, ::-1], SHIRT, 30, False))

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    def per_face(pieces: list[tuple]) -> list[Tensor]:
        """All faces, and for each face the other values of its piece."""
        faces, *values = zip(*pieces, strict=True)
        counts = [len(part) for part in faces]
        return [tensor(np.concatenate(faces)), *(tensor(np.repeat(value, counts)) for value in values)]

    mid_rest = surface.mid_from_coarse @ rest.astype(np.float32)
    upward = _upward(mid_rest, surface.mid_faces[Hand.RIGHT])
    hand_uv = np.stack([mid_rest[:, 0], mid_rest[:, 2], upward], axis=1)
    palm = np.argsort(np.linalg.norm(rest - (0.035, -0.02, 0.0), axis=1))[:20]
    faces, *values = per_face(pieces)
    return Topology(tensor(surface.mid_from_coarse.toarray()), faces, *values, *per_face(occluders),
                    tensor(surface.mid_loop), tensor(np.stack([hand_uv] * 2)), tensor(palm),
                    tensor(faces_around_vertices(faces.cpu().numpy(), start)))


def _tube_faces(table: np.ndarray) -> np.ndarray:
    """Faces (F, 3) of a tube whose rings are the rows of `table`, wound as faces along a `boundary_loop`."""
    after = np.roll(table, -1, axis=1)
    a, b, c, d = (ring.reshape(-1) for ring in (table[:-1], after[:-1], table[1:], after[1:]))
    return np.concatenate([np.stack([a, b, c], 1), np.stack([b, d, c], 1)])


def _upward(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The y components (V,) of unit vertex normals, summed corner by corner: skin textures depend on the last bits."""
    across = np.cross(vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]])
    total = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(total, faces[:, corner], across)
    return total[:, 1] / np.linalg.norm(total, axis=1)


def gathered_normals(vertices: Tensor, topology: Topology) -> Tensor:
    """Area-weighted unit normals (B, V, 3), summed by gathering: in the same order on every device."""
    a, b, c = (vertices.index_select(1, topology.faces[:, corner]) for corner in range(3))
    face_normals = torch.cat([torch.linalg.cross(b - a, c - a), vertices.new_zeros(len(vertices), 1, 3)], dim=1)
    total = sum(face_normals.index_select(1, column) for column in topology.faces_around.unbind(1))
    return normalize(total, dim=-1, eps=1e-20)


# ---------------------------------------------------------------- the whole body

class Wear(NamedTuple):
    """Shape of the arms and sleeves, and which parts are present."""

    girth: Tensor           # (B,)      of the arms, relative to the average
    cuff: Tensor            # (B,)      metres from the wrist to the sleeve
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
    is_side = person.pick("wrist", (0.2, 0.8))[:, None] == sides
    watch = (person.chance("watch", 0.3) & (cuff > 0.06))[:, None] & is_side
    return Wear(person.uniform("girth", 0.85, 1.15), cuff, loose, watch, place.chance("torso", 0.75),
                step.chance("object", 0.3))


def build_body(hands: Hands, wear: Wear, person: Dice, step: Dice, topology: Topology) -> Body:
    """The bodies of posed hands; details that `wear` leaves open are drawn from the dice of person and time step."""
    batch = len(hands.vertices)
    signs = hands.vertices.new_tensor(OWN_SIGNS)[None, :, None]                     # (1, 2, 1, 3)
    columns = hands.vertices.permute(2, 0, 1, 3).reshape(NUM_VERTICES, -1)
    mid = (topology.mid_from_coarse @ columns).view(-1, batch, 2, 3).permute(1, 2, 0, 3)        # (B, 2, 3093, 3)
    loops = mid.gather(2, topology.loop[None, :, :, None].expand(batch, 2, -1, 3)) * signs
    arms = [(vertices * signs, uv) for vertices, uv in _build_arms(loops, hands, wear, person)]
    limbs, limb_uv = (torch.cat(parts, dim=2) for parts in zip(
        (mid, topology.hand_uv.expand(batch, -1, -1, -1)), *arms, strict=True))
    limbs = torch.where(hands.present[:, :, None, None], limbs, limbs.new_tensor(_NOWHERE))

    watches, watch_uv = _watch_cases(hands, wear, person, loops * signs)
    held, held_uv = _object(hands, mid, wear, step, topology)
    torso, torso_uv = _torso(wear, person)
    return Body(torch.cat([limbs.flatten(1, 2), watches.flatten(1, 2), held, torso], dim=1),
                torch.cat([limb_uv.flatten(1, 2), watch_uv.flatten(1, 2), held_uv, torso_uv], dim=1))


# ---------------------------------------------------------------- arms

def _build_arms(loops_own: Tensor, hands: Hands, wear: Wear, person: Dice) -> list[tuple[Tensor, Tensor]]:
    """Arms, sleeves and watch straps: own-frame vertices (B, 2, V, 3) and uv (B, 2, V, 3) of each."""
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
    cloth = torch.cat([cloth[:, :1], cloth], dim=1)                                 # the folded hem
    sleeves = _tube(curve, cloth, local, girth, _sleeve_looseness(cloth, loose, person, around))
    watch = loop.new_tensor(_WATCH_STATIONS).expand(2 * batch, -1)
    heights = loop.new_tensor(_WATCH_HEIGHTS)[:, None]
    # Straps of absent watches lie below the skin.
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
    """Centrelines of arms at every _STEP metres, with rotation-minimising frames."""

    points: Tensor          # (N, K, 3)
    frames: Tensor          # (N, K, 3, 3)  columns along, back, thumb side


def _curve(start: Tensor, rotation: Tensor, forearm: Tensor, upper: Tensor) -> _Curve:
    """From wrists (N, 3) of hands rotated by (N, 3, 3), along unit directions (N, 3) of forearm and upper arm."""
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
    """A tube around a curve with rings at stations (N, R).

    The cross section is the outline of the wrist, `local` (N, L, 3), and blends into the oval of an arm of `girth`
    (N,); it grows by `grow` metres (N, R, L). Returns vertices (N, R, L, 3); the angle around the arm (N, R, L); the
    stations; the position towards the thumb (N, R, L), metres along the skin, but straight across at the wrist as on
    the hand; and the direction towards the back of the hand (N, R, L), −1 to 1.
    """
    index = (stations / _STEP).clamp(0, curve.points.shape[1] - 1.001)
    low, part = index.long(), (index % 1)[..., None]
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
    # Measured straight across, textures would be stretched on the sides of the arm.
    side = torch.lerp(side, reach * (side / reach).clamp(-1, 1).asin(), blend)
    return vertices, angle.expand_as(upward), stations, side, upward


def _sleeve_looseness(stations: Tensor, loose: Tensor, person: Dice, around: int) -> Tensor:
    """Metres (N, R, L) between arm and sleeve: a folded hem, soft waves, and bunched cloth at the elbow."""
    angle = torch.linspace(0, 2 * math.pi, around + 1, device=loose.device)[:-1]
    waves = torch.zeros(*stations.shape, around, device=loose.device)
    for number in range(5):
        frequency, phase = person.uniform(f"fold {number}", 25, 150), person.uniform(f"phase {number}", 0, 6.3, 2)
        cycles = torch.floor(person.uniform(f"turns {number}", 1, 4))
        frequency, cycles = (values.repeat_interleave(2)[:, None, None] for values in (frequency, cycles))
        phase = phase.flatten()[:, None, None]
        waves = waves + torch.sin(frequency * stations[..., None] + cycles * angle + phase).abs() / 5
    elbow = torch.exp(-(((stations - _ELBOW_AT) / 0.07) ** 2))[..., None]
    bunched = torch.sin(stations[..., None] * 190 + 1.5 * torch.sin(angle)) * elbow
    grow = loose[:, None, None] * (0.7 + 1.1 * waves + 0.35 * bunched)
    rise = _smoothstep((stations - stations[:, :1]) / 0.012)[..., None]
    grow = torch.lerp(torch.minimum(grow, torch.full_like(grow, 0.006)), grow, rise)
    return torch.cat([torch.full_like(grow[:, :1], 0.0006), grow[:, 1:]], dim=1)


def _oval(stations: Tensor) -> list[Tensor]:
    """Half thickness and half width of an average arm at stations, metres."""
    knots = [0, 0.04, 0.10, 0.17, 0.22, 0.26, 0.34, 0.50, 0.8]
    return [_piecewise(stations, knots, values)
            for values in ([0.019, 0.021, 0.029, 0.037, 0.038, 0.038, 0.044, 0.052, 0.056],
                           [0.027, 0.028, 0.034, 0.041, 0.043, 0.041, 0.045, 0.054, 0.058])]


# ---------------------------------------------------------------- watches, objects, torso

def _superellipsoid(half: Tensor, roundness: Tensor) -> tuple[Tensor, Tensor]:
    """Superellipsoids (boxes, cylinders, ellipsoids and between): vertices and uv (..., V, 3).

    half: (..., 3) half sizes, the last along the axis.  roundness: (..., 2) exponents along and around the axis;
    0 is a box, 1 an ellipsoid.
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


def _watch_cases(hands: Hands, wear: Wear, person: Dice, loops: Tensor) -> tuple[Tensor, Tensor]:
    """Watch cases on the back of the wrists: vertices and uv (B, 2, V, 3).  loops: (B, 2, L, 3) wrist loops."""
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
    return torch.where(shown, placed, placed.new_tensor(_NOWHERE)), uv[:, None].expand_as(placed)


def _mirrored(axes: Tensor, signs: Tensor) -> Tensor:
    """Own-frame axes (..., 3, 3), as columns, in the person frame.

    The first axis of left hands is negated once more: that keeps the winding of solids, which are symmetric along it.
    """
    axes = axes * signs[..., :, None]
    return torch.cat([axes[..., :1] * signs[..., :1, None], axes[..., 1:]], dim=-1)


# Box, phone, card, pen, can, bottle, ball: half sizes in millimetres, roundness along and around the axis.
_OBJECTS = ((38, 30, 22, 0.1, 0.1), (36, 75, 4, 0.15, 0.2), (27, 43, 0.8, 0.15, 0.15), (4.5, 4.5, 72, 0.3, 1.0),
            (31, 31, 52, 0.1, 1.0), (18, 18, 85, 0.3, 1.0), (34, 34, 34, 1.0, 1.0))
# Candidate offsets of its centre from the palm: away from the palm, and towards the fingertips.
_HELD_AT = tuple((away, out) for out in (0.0, 0.03) for away in (0.004, 0.008, 0.013, 0.019, 0.027, 0.037))
_SMALLEST = 0.5             # scale to which an object may shrink to fit the hand; smaller ones are absent
_CLEARANCE = 0.0015         # skin bulges between vertices


def _object(hands: Hands, mid: Tensor, wear: Wear, step: Dice, topology: Topology) -> tuple[Tensor, Tensor]:
    """An object held in one of the hands, between palm and fingers: vertices and uv (B, V, 3).

    mid: (B, 2, 3093, 3) the mid meshes of the hands.
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
    # The object's axis lies across the palm or along the fingers, a little askew.
    lies_across = step.chance("across", 0.65)[:, None]
    axis = torch.where(lies_across, side, along) + 0.25 * step.normal("askew", 3)
    normal = normalize(back - (back * normalize(axis, dim=-1)).sum(-1, keepdim=True) * normalize(axis, dim=-1), dim=-1)
    axis = normalize(axis, dim=-1)
    axes = torch.stack([torch.linalg.cross(normal, axis), normal, axis], dim=-1)
    palm = of_hand(hands.vertices[:, :, topology.palm].mean(dim=2))
    is_flat = half[:, 2] < 0.01                                                     # cards and phones lie flat
    axes = torch.where(is_flat[:, None, None], axes[..., [0, 2, 1]] * axes.new_tensor([1.0, 1.0, -1.0]), axes)
    axes = _mirrored(axes, signs)
    offsets = solid.new_tensor(_HELD_AT)
    centers = palm[:, None] - (offsets[:, :1] * back[:, None] + offsets[:, 1:] * along[:, None]) * signs[:, None]
    at = torch.nonzero(wear.object).squeeze(-1)
    placed = solid.new_tensor(_NOWHERE).expand_as(solid).clone()
    around = torch.where(hands.present[at, :, None, None], mid[at], -50.0).flatten(1, 2)
    center, scale = _fitted(centers[at], axes[at], half[at], form[at, 3:], around)
    fits = (scale >= _SMALLEST)[:, None, None]
    moved = center[:, None] + scale[:, None, None] * (solid[at] @ axes[at].transpose(-1, -2))
    placed[at] = torch.where(fits, moved, placed[at])
    return placed, uv


def _fitted(centers: Tensor, axes: Tensor, half: Tensor, roundness: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """The roomiest of K candidate centres, (N, 3), and the scale (N,) ≤ 1 at which no point is inside.

    centers: (N, K, 3).  axes: (N, 3, 3).  half, roundness: as for `_superellipsoid`.  points: (N, M, 3).
    """
    half = half + _CLEARANCE
    local = ((points[:, None] - centers[:, :, None]) @ axes[:, None] / half[:, None, None]).abs().clamp(min=1e-3)
    e1, e2 = (part[:, None, None] for part in roundness.unbind(-1))
    x, y, z = local.unbind(-1)
    # The scale at which the solid reaches each point. Ratios up to 1 keep the large powers finite.
    widest = torch.maximum(x, y)
    around = widest * ((x / widest) ** (2 / e2) + (y / widest) ** (2 / e2)) ** (e2 / 2)
    largest = torch.maximum(around, z)
    reached = largest * ((around / largest) ** (2 / e1) + (z / largest) ** (2 / e1)) ** (e1 / 2)
    room = reached.amin(dim=-1).clamp(max=1)                                        # (N, K)
    # Of the centres where it fits at full size, the nearest to the palm.
    best = (room - 0.01 * torch.arange(room.shape[1], device=room.device) / room.shape[1]).argmax(dim=-1)
    row = torch.arange(len(best), device=best.device)
    return centers[row, best], room[row, best]


def _torso(wear: Wear, person: Dice) -> tuple[Tensor, Tensor]:
    """A clothed chest with neck and a featureless head: vertices and uv (B, V, 3)."""
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
        cycles = torch.floor(person.uniform(f"pleats {number}", 3, 12))
        cycles, slant, phase = (values[:, None, None] for values in (cycles, slant, phase))
        drape = drape + torch.sin(cycles * around + slant * heights[:, None] + phase)
    drape = 0.0035 * drape * (1.3 - 2 * heights[:, None]).clamp(0.2, 2) * (heights[:, None] < 0.2)
    spread = 1 + drape / 0.15
    wide, deep, tall = size[..., None, None].unbind(1)
    tall = (heights[:, None] * tall).expand_as(drape)
    vertices = torch.stack([x * spread * wide, tall, z * spread * deep - 0.42], dim=-1)
    uv = torch.stack(torch.broadcast_tensors(around * 0.17, heights[:, None], torch.zeros(1, device=device)), dim=-1)
    shown = wear.torso[:, None, None]
    vertices = torch.where(shown, vertices.flatten(1, 2), vertices.new_tensor(_NOWHERE))
    return vertices, uv.flatten(0, 1).expand_as(vertices)


def _piecewise(x: Tensor, knots: list[float], values: list[float]) -> Tensor:
    """Piecewise linear interpolation, as numpy.interp."""
    at, value = x.new_tensor(knots), x.new_tensor(values)
    high = torch.searchsorted(at, x.contiguous()).clamp(1, len(knots) - 1)
    part = ((x - at[high - 1]) / (at[high] - at[high - 1])).clamp(0, 1)
    return torch.lerp(value[high - 1], value[high], part)


def _smoothstep(x: Tensor) -> Tensor:
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)
