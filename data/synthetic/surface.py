"""Topology of the hand mesh: its subdivision levels, its open wrist, and the faces around each vertex.

Legend: V vertices · F faces · L vertices of the wrist loop.
"""

from typing import NamedTuple

import numpy as np
from scipy import sparse

from common.hands import NUM_VERTICES, Hand
from common.mano.model import HandModel
from data.synthetic.subdivision import subdivide


class Surface(NamedTuple):
    """The 778-vertex mesh (coarse) after one (mid) and two (fine) Loop subdivisions.

    Right and left hands share the matrices; their faces differ in winding only.
    """

    mid_from_coarse: sparse.csr_matrix  # (3093, 778)   float32
    fine_from_mid: sparse.csr_matrix    # (12337, 3093) float32
    faces: np.ndarray                   # (2, 24608, 3) of the fine mesh
    mid_faces: np.ndarray               # (2, 6152, 3)
    coarse_faces: np.ndarray            # (2, 1538, 3)
    mid_loop: np.ndarray                # (2, L)        wrist loop of the mid mesh, as `boundary_loop` directs it


def hand_surface(model: HandModel) -> Surface:
    coarse_faces = model.faces.numpy()
    first, mid_faces = subdivide(coarse_faces[Hand.RIGHT], NUM_VERTICES, levels=1)
    second, fine_faces = subdivide(mid_faces, first.shape[0], levels=1)
    # Left faces are the right ones with reversed winding, so subdividing them gives the same vertices.
    both_hands = (np.stack([right, right[:, ::-1]]) for right in (fine_faces, mid_faces))
    loop = boundary_loop(mid_faces)
    return Surface(first.astype(np.float32), second.astype(np.float32), *both_hands, coarse_faces,
                   np.stack([loop, loop[::-1]]))


def boundary_loop(faces: np.ndarray) -> np.ndarray:
    """Vertices (L,) along the only boundary of an open mesh, from the lowest index.

    Runs against the boundary edges of `faces` (F, 3): faces attached in loop order continue their winding. Raises
    ValueError if there are several boundaries.
    """
    start, end = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).astype(np.int64).T
    size = faces.max() + 1
    on_boundary = ~np.isin(start * size + end, end * size + start)
    successor = dict(zip(end[on_boundary].tolist(), start[on_boundary].tolist(), strict=True))
    loop = [min(successor)]
    while (vertex := successor[loop[-1]]) != loop[0]:
        loop.append(vertex)
    if len(loop) != len(successor):
        raise ValueError(f"the mesh has several boundaries: {len(successor)} boundary edges, first loop of {len(loop)}")
    return np.array(loop)


def faces_around_vertices(faces: np.ndarray, num_vertices: int) -> np.ndarray:
    """Indices (V, K) of the faces around each vertex in ascending order, padded with len(faces).

    A table to gather by: sums of face values per vertex then have a fixed order, and the same result on every device.
    """
    vertex = faces.reshape(-1)
    order = np.argsort(vertex, kind="stable")
    valence = np.bincount(vertex, minlength=num_vertices)
    column = np.arange(len(vertex)) - np.repeat(np.cumsum(valence) - valence, valence)
    table = np.full((num_vertices, valence.max()), len(faces))
    table[vertex[order], column] = order // 3
    return table
