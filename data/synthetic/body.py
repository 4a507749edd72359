"""What the hands are attached to: forearms, sleeves, upper arms and a torso, as meshes in the person frame.

An arm is a tube of rings along a curve that leaves the wrist where the hand points, bends towards the elbow and runs
on to the shoulder. Its first ring is the open wrist loop of the hand mesh, so skin continues without a seam.

Legend: V vertices · F faces · L vertices of a wrist loop · R rings of a tube. Metres.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from scipy import sparse

from common.hands import NUM_VERTICES, Hand
from common.mano import HandModel
from common.subdivision import CooMatrix, subdivide

OWN_SIGNS = np.array([[1.0, 1.0, 1.0], [-1.0, 1.0, 1.0]])   # for each hand: person frame times signs = own frame

_ELBOW_OWN = np.array([-0.24, -0.20, -0.24])     # where elbows like to be
_SHOULDER_OWN = np.array([-0.20, 0.17, -0.38])
_FOREARM_LENGTH, _FINE_LENGTH, _ARM_LENGTH = 0.25, 0.34, 0.70
_FLEXION_LIMIT, _DEVIATION_LIMIT = np.radians([62, 24])     # of the wrist
_CUFF_GAP = 0.004


class Mesh(NamedTuple):
    """Triangles with what shading needs. Colours are decided elsewhere."""

    vertices: np.ndarray        # (V, 3)
    faces: np.ndarray           # (F, 3) int64, outward winding
    uv: np.ndarray              # (V, 2)        metres round and along a tube; 0 on hands
    material: np.ndarray        # (V,) int64    a MATERIALS index


HAND, ARM, SLEEVE, SHIRT = range(4)             # materials


class Surface(NamedTuple):
    """How the 778 vertices of one hand become its round surface. Right and left share everything but the winding."""

    mid_from_coarse: sparse.csr_array   # (3093, 778)    one Loop step
    fine_from_mid: sparse.csr_array     # (12337, 3093)  one more
    faces: np.ndarray                   # (2, 24608, 3)
    mid_faces: np.ndarray               # (2, 6152, 3)
    coarse_faces: np.ndarray            # (2, 1538, 3)
    loop: np.ndarray                    # (2, L)         fine wrist loop in the order that continues the winding


def hand_surface(model: HandModel) -> Surface:
    """The subdivision of a hand model's topology."""
    coarse_faces = model.faces.numpy()
    first, mid_faces = subdivide(coarse_faces[Hand.RIGHT], NUM_VERTICES, 1)
    second, fine_faces = subdivide(mid_faces, first.shape[0], 1)
    # Left faces are the right ones wound the other way, so the same vertices arise.
    both_ways = (np.stack([one_way, one_way[:, ::-1]]) for one_way in (fine_faces, mid_faces))
    loop = wrist_loop(fine_faces)
    return Surface(_sparse(first), _sparse(second), *both_ways, coarse_faces, np.stack([loop, loop[::-1]]))


def _sparse(matrix: CooMatrix) -> sparse.csr_array:
    return sparse.csr_array((matrix.values.astype(np.float32), (matrix.rows, matrix.cols)), shape=matrix.shape)


def wrist_loop(faces: np.ndarray) -> np.ndarray:
    """The boundary of an open mesh as a cycle of vertices, against the direction of its own faces."""
    start, end = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).astype(np.int64).T
    size = faces.max() + 1
    on_border = ~np.isin(start * size + end, end * size + start)
    follow = dict(zip(end[on_border].tolist(), start[on_border].tolist(), strict=True))
    loop = [min(follow)]
    while (after := follow[loop[-1]]) != loop[0]:
        loop.append(after)
    return np.array(loop)


def sample_elbow(rotation_own: np.ndarray, palm_own: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Elbows (..., 3) of hands (..., 3, 3) with palms (..., 3): between where they like to be and a straight wrist.

    People move the elbow rather than bend the wrist to its limit.
    """
    liked = _ELBOW_OWN + rng.normal(0, 0.07, palm_own.shape) - palm_own
    straight = rng.uniform(0.3, 0.95, palm_own[..., :1].shape)
    return palm_own + 0.3 * _unit(straight * rotation_own[..., 0] + (1 - straight) * _unit(liked))


def forearm_direction(rotation_own: np.ndarray, wrist_own: np.ndarray, elbow_own: np.ndarray) -> np.ndarray:
    """Unit directions (..., 3) from wrist to elbow: towards the elbow as far as the wrist bends.

    rotation_own: (..., 3, 3).  wrist_own, elbow_own: (..., 3).
    """
    flexion, deviation = wrist_angles(rotation_own, elbow_own - wrist_own)
    flexion = np.clip(flexion, -_FLEXION_LIMIT, _FLEXION_LIMIT)
    deviation = np.clip(deviation, -_DEVIATION_LIMIT, _DEVIATION_LIMIT)
    bent = np.stack([np.cos(deviation) * np.cos(flexion), np.cos(deviation) * np.sin(flexion), np.sin(deviation)], -1)
    return np.einsum("...ij,...j->...i", rotation_own, bent)


def wrist_angles(rotation_own: np.ndarray, forearm_own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Extension (towards the back of the hand) and deviation (towards the thumb) of the wrist, radians, (...).

    forearm_own: (..., 3) from the wrist to the elbow, of any length.
    """
    along, back, thumb = np.moveaxis(np.einsum("...ji,...j->...i", rotation_own, forearm_own), -1, 0)
    return np.arctan2(back, along), np.arctan2(thumb, np.hypot(along, back))


def wrist_strain(rotation_own: np.ndarray, palm_own: np.ndarray) -> np.ndarray:
    """How far the wrist would have to bend if the elbow were where it likes to be, 1 at the limit, (...)."""
    flexion, deviation = wrist_angles(rotation_own, _ELBOW_OWN - palm_own)
    return np.hypot(flexion / _FLEXION_LIMIT, deviation / _DEVIATION_LIMIT)


class ArmStyle(NamedTuple):
    """A person's arms."""

    girth: float            # 1 is average
    cuff: float             # metres from the wrist to where the sleeve begins
    looseness: float        # metres between arm and sleeve
    folds: np.ndarray       # (4, 3)   waves of cloth: along, round, phase


class Arm(NamedTuple):
    """One arm in the own frame, ready for meshing."""

    skin: Mesh              # its first L vertices are the wrist loop
    sleeve: Mesh


def build_arm(loop_own: np.ndarray, rotation_own: np.ndarray, direction_own: np.ndarray, style: ArmStyle) -> Arm:
    """The arm that continues a wrist loop (L, 3) of a hand with `rotation_own`, with its sleeve.

    direction_own: from the wrist to the elbow.
    """
    center = loop_own.mean(axis=0)
    upper = _SHOULDER_OWN - (center + _FOREARM_LENGTH * direction_own)
    upper = upper / max(np.linalg.norm(upper), 1e-6)
    curve = _Curve.through(center, rotation_own, direction_own, upper)
    local = (loop_own - center) @ rotation_own                                      # columns along, back, thumb side

    # On to beyond the shoulder: the arm ends inside the torso or outside the picture.
    far = np.arange(_FINE_LENGTH, _ARM_LENGTH, 0.035)
    stations = np.concatenate([[0, 0.004, 0.01, 0.018, 0.028, 0.04, 0.055], np.arange(0.075, _FINE_LENGTH, 0.02), far])
    visible = stations <= style.cuff + 0.03
    skin = _tube(curve, stations[visible], local, style.girth, 0.0, None, ARM)
    cloth = np.concatenate([[style.cuff, style.cuff], np.arange(style.cuff + 0.004, _FINE_LENGTH, 0.014),
                            far[far > style.cuff + 0.01]])
    offset = np.full(len(cloth), style.looseness)
    offset[0], offset[1] = _CUFF_GAP / 4, _CUFF_GAP                                 # the hem turns in
    sleeve = _tube(curve, cloth, local[::2], style.girth, offset, style.folds, SLEEVE)
    return Arm(skin, sleeve)


class _Curve(NamedTuple):
    """The middle line of an arm with a frame that does not twist."""

    stations: np.ndarray    # (N,)
    points: np.ndarray      # (N, 3)
    frames: np.ndarray      # (N, 3, 3)   columns along, back, thumb side

    @classmethod
    def through(cls, start: np.ndarray, rotation: np.ndarray, forearm: np.ndarray, upper: np.ndarray) -> "_Curve":
        step = 0.008
        stations = np.arange(0, _ARM_LENGTH + 2 * step, step)
        bend_wrist = _smoothstep(stations / 0.05)[:, None]
        bend_elbow = _smoothstep((stations - _FOREARM_LENGTH + 0.03) / 0.06)[:, None]
        along = (1 - bend_wrist) * rotation[:, 0] + bend_wrist * forearm
        along = _unit((1 - bend_elbow) * along + bend_elbow * upper)
        points = start + np.concatenate([np.zeros((1, 3)), np.cumsum(along[:-1] + along[1:], axis=0) * step / 2])
        frames = np.zeros((len(stations), 3, 3))
        back = rotation[:, 1]
        for n, direction in enumerate(along):
            back = back - (back @ direction) * direction
            frames[n, :, 1] = back = back / np.sqrt(back @ back)
        frames[:, :, 0], frames[:, :, 2] = along, np.cross(along, frames[:, :, 1])
        return cls(stations, points, frames)

    def at(self, stations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        place = np.clip(stations / (self.stations[1] - self.stations[0]), 0, len(self.stations) - 1.001)
        low, part = place.astype(int), place % 1
        points = (1 - part)[:, None] * self.points[low] + part[:, None] * self.points[low + 1]
        frames = (1 - part)[:, None, None] * self.frames[low] + part[:, None, None] * self.frames[low + 1]
        return points, frames


def _tube(curve: _Curve, stations: np.ndarray, local: np.ndarray, girth: float, offset, folds, material: int) -> Mesh:
    """Rings at `stations` along the curve: the wrist's own outline that turns into an arm's oval."""
    points, frames = curve.at(stations)
    outline = local[:, 1:]                                                          # (L, 2) back, thumb side
    angle = np.arctan2(outline[:, 1], outline[:, 0])
    half_back, half_side = _oval(stations) * girth
    oval = np.stack([np.cos(angle) * half_back[:, None], np.sin(angle) * half_side[:, None]], axis=-1)
    blend = _smoothstep(stations / 0.07)[:, None, None]
    ring = (1 - blend) * outline + blend * oval                                     # (R, L, 2)
    reach = np.linalg.norm(ring, axis=-1, keepdims=True)
    grow = np.broadcast_to(np.asarray(offset, dtype=float), len(stations))[:, None]
    if folds is not None:
        grow = grow * (1 + sum(0.35 * np.sin(60 * f * stations[:, None] + r * angle + p) for f, r, p in folds))
    ring = ring * (1 + grow[..., None] / reach)

    along = (1 - blend[..., 0]) * local[:, 0] * np.exp(-stations[:, None] / 0.03)
    cross = np.concatenate([along[..., None], ring], axis=-1)                       # (R, L, 3)
    vertices = points[:, None] + np.einsum("rij,rlj->rli", frames, cross)
    uv = np.stack(np.broadcast_arrays(angle * 0.04, stations[:, None]), axis=-1)
    return Mesh(vertices.reshape(-1, 3), tube_faces(len(stations), len(local)), uv.reshape(-1, 2),
                np.full(vertices[..., 0].size, material))


def _oval(stations: np.ndarray) -> np.ndarray:
    """Half thickness and half width (2, R) of an average arm, metres."""
    knots = [0, 0.04, 0.10, 0.17, 0.22, 0.26, 0.34, 0.50]
    thick = np.interp(stations, knots, [0.019, 0.021, 0.029, 0.037, 0.038, 0.038, 0.044, 0.052])
    wide = np.interp(stations, knots, [0.027, 0.028, 0.034, 0.041, 0.043, 0.041, 0.045, 0.054])
    return np.stack([thick, wide])


@cache
def tube_faces(rings: int, around: int) -> np.ndarray:
    """Faces of a tube of `rings`·`around` vertices, in the winding of `wrist_loop`."""
    ring, spoke = np.divmod(np.arange((rings - 1) * around), around)
    after = (spoke + 1) % around
    a, b = ring * around + spoke, ring * around + after
    c, d = a + around, b + around
    return np.concatenate([np.stack([a, b, c], 1), np.stack([b, d, c], 1)])


def build_torso(shape: np.ndarray) -> Mesh:
    """A clothed chest with neck and a plain head in the person frame.  shape: (3,) factors of width, depth, height."""
    heights = np.concatenate([np.linspace(-1.3, -0.6, 10, endpoint=False), np.linspace(-0.6, 0.59, 42)])
    around = np.linspace(0, 2 * np.pi, 56, endpoint=False)
    knots = [-0.62, -0.35, 0.0, 0.15, 0.22, 0.26, 0.30, 0.34, 0.38, 0.45, 0.52, 0.57, 0.59]
    wide = np.interp(heights, knots, [0.17, 0.155, 0.19, 0.20, 0.17, 0.08, 0.06, 0.06, 0.07, 0.08, 0.075, 0.05, 0.01])
    deep = np.interp(heights, knots, [0.11, 0.10, 0.125, 0.11, 0.08, 0.065, 0.06, 0.07, 0.09, 0.1, 0.09, 0.06, 0.01])
    x = np.sign(np.cos(around)) * np.abs(np.cos(around)) ** 0.8 * wide[:, None] * shape[0]
    z = np.sign(np.sin(around)) * np.abs(np.sin(around)) ** 0.9 * deep[:, None] * shape[1] - 0.42
    z = z + 0.006 * np.sin(around * 5 + heights[:, None] * 31) + 0.004 * np.sin(around * 9 - heights[:, None] * 57)
    y = np.broadcast_to(heights[:, None] * shape[2], x.shape)
    uv = np.stack(np.broadcast_arrays(around * 0.17, heights[:, None]), axis=-1)
    vertices = np.stack([x, y, z], axis=-1).reshape(-1, 3)
    return Mesh(vertices, tube_faces(len(heights), len(around))[:, ::-1], uv.reshape(-1, 2),
                np.full(len(vertices), SHIRT))


def _smoothstep(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
