"""The round surface of a hand, the wrist it ends in and where its forearm points.

Legend: V vertices · F faces · L vertices of a wrist loop. Metres.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse

from common.hands import NUM_VERTICES, Hand
from common.mano.model import HandModel
from data.synthetic.subdivision import CooMatrix, subdivide

OWN_SIGNS = np.array([[1.0, 1.0, 1.0], [-1.0, 1.0, 1.0]])   # for each hand: person frame times signs = own frame

_ELBOW_OWN = np.array([-0.24, -0.20, -0.24])     # where elbows like to be
_FLEXION_LIMIT, _DEVIATION_LIMIT = np.radians([62, 24])     # of the wrist


class Surface(NamedTuple):
    """How the 778 vertices of one hand become its round surface. Right and left share everything but the winding."""

    mid_from_coarse: sparse.csr_array   # (3093, 778)    one Loop step
    fine_from_mid: sparse.csr_array     # (12337, 3093)  one more
    faces: np.ndarray                   # (2, 24608, 3)
    mid_faces: np.ndarray               # (2, 6152, 3)
    coarse_faces: np.ndarray            # (2, 1538, 3)
    mid_loop: np.ndarray                # (2, L)         wrist loop after one step, in the order that goes on winding


def hand_surface(model: HandModel) -> Surface:
    """The subdivision of a hand model's topology."""
    coarse_faces = model.faces.numpy()
    first, mid_faces = subdivide(coarse_faces[Hand.RIGHT], NUM_VERTICES, 1)
    second, fine_faces = subdivide(mid_faces, first.shape[0], 1)
    # Left faces are the right ones wound the other way, so the same vertices arise.
    both_ways = (np.stack([one_way, one_way[:, ::-1]]) for one_way in (fine_faces, mid_faces))
    loop = wrist_loop(mid_faces)
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


@cache
def tube_faces(rings: int, around: int) -> np.ndarray:
    """Faces of a tube of `rings`·`around` vertices, in the winding of `wrist_loop`."""
    ring, spoke = np.divmod(np.arange((rings - 1) * around), around)
    after = (spoke + 1) % around
    a, b = ring * around + spoke, ring * around + after
    c, d = a + around, b + around
    return np.concatenate([np.stack([a, b, c], 1), np.stack([b, d, c], 1)])


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Area-weighted unit normals (V, 3), float32."""
    points = vertices.astype(np.float32)
    a, b, c = points[faces[:, 0]], points[faces[:, 1]], points[faces[:, 2]]
    face_normals = torch.from_numpy(np.cross(b - a, c - a))
    total = torch.zeros(len(vertices), 3)
    for corner in range(3):
        total.index_add_(0, torch.from_numpy(np.ascontiguousarray(faces[:, corner])), face_normals)
    return torch.nn.functional.normalize(total, dim=-1, eps=1e-20).numpy()


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
