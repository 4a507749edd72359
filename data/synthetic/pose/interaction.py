"""Contact, penetration and self-penetration of posed hands, measured on their meshes.

Legend: V vertices of a hand · F faces · Q query points. Metres; results in millimetres.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import cKDTree

from common.geometry import vertex_normals
from common.hands import NUM_MODEL_JOINTS, Hand
from data.synthetic.pose.kinematics import ARE_APART
from data.synthetic.surface import boundary_loop

_TOUCHING = 0.002           # metres: nearer than this is contact
_DOUBTFUL = 0.001           # metres above the nearest vertex's tangent plane: farther out is outside for certain
_NEAREST_FEW = 40           # vertices among which the gap is found: those nearest to a vertex of the other hand
_REACH = 0.03               # metres: no vertex of a hand lies deeper in another
_STEEP = 0.004              # metres beyond which the nearest vertex of another part must face the vertex it covers


class Interaction(NamedTuple):
    """How two hands touch, measured on the 778-vertex meshes, each closed at the wrist."""

    is_contact: bool        # some vertex is inside the other hand, or nearer to it than 2 mm
    max_depth_mm: float     # of the deepest vertex below the other hand's surface
    mean_depth_mm: float    # over the vertices inside the other hand; 0 if there are none
    inside: int             # number of those vertices, both hands together
    gap_mm: float           # smallest distance from a vertex to the other surface; 0 when the hands overlap


def measure(vertices: np.ndarray, faces: np.ndarray) -> Interaction:
    """The interaction of two hands.  vertices: (2, 778, 3).  faces: (2, 1538, 3)."""
    normals = vertex_normals(torch.from_numpy(vertices).float(), torch.from_numpy(faces)).numpy()
    depths, gap = [np.zeros(0)], np.inf
    for hand in Hand:
        points, other, other_faces = vertices[hand], vertices[hand.other], faces[hand.other]
        apart, nearest = cKDTree(other).query(points)
        is_near = apart < _REACH
        if not is_near.any():
            continue
        # The exact test is for the vertices that the tangent plane at the nearest vertex does not put outside.
        near, nearest = points[is_near], nearest[is_near]
        doubtful = near[((near - other[nearest]) * normals[hand.other][nearest]).sum(axis=1) < _DOUBTFUL]
        inside = doubtful[winding_number(doubtful, closed_at_wrist(other, other_faces)) > 0.5]
        depths.append(surface_distance(inside, other, other_faces))
        nearest_few = points[np.argsort(apart)[:_NEAREST_FEW]]
        gap = min(gap, surface_distance(nearest_few, other, other_faces).min())
    depth = np.concatenate(depths)
    if not np.isfinite(gap):
        gap = min(cKDTree(vertices[hand.other]).query(vertices[hand])[0].min() for hand in Hand)
    if len(depth):
        return Interaction(True, 1e3 * float(depth.max()), 1e3 * float(depth.mean()), len(depth), 0.0)
    return Interaction(bool(gap < _TOUCHING), 0.0, 0.0, 0, 1e3 * float(gap))


def own_depth_mm(vertices: np.ndarray, faces: np.ndarray, bone_of: np.ndarray) -> float:
    """Self-penetration: depth of the deepest vertex of a finger below the surface of another finger or the palm.

    vertices: (778, 3).  faces: (1538, 3).  bone_of: (778,) bone that each vertex follows, in MODEL16 order.
    Creases within one finger do not count, nor does the root of a finger in the palm, nor the web where two fingers
    join: there a vertex's normal belongs to both.
    """
    normals = vertex_normals(torch.from_numpy(vertices).float()[None], torch.from_numpy(faces)[None])[0].numpy()
    closed, deepest = closed_at_wrist(vertices, faces), 0.0
    face_bone = bone_of[faces[:, 0]]
    for bone in range(1, NUM_MODEL_JOINTS):
        is_other = ARE_APART[bone]
        joins = faces[is_other[bone_of[faces]].any(axis=1)]
        own, others = np.setdiff1d(np.flatnonzero(bone_of == bone), joins), np.flatnonzero(is_other[bone_of])
        distance, nearest = cKDTree(vertices[others]).query(vertices[own])
        height = ((vertices[own] - vertices[others[nearest]]) * normals[others[nearest]]).sum(axis=1)
        # The surface that covers a vertex is nearest straight above it.
        own = own[(distance < _REACH) & (height < np.where(distance < _STEEP, 0, -0.5 * distance))]
        if not len(own):
            continue
        # A point just outside the skin is inside the closed mesh only where another part covers it.
        covered = own[winding_number(vertices[own] + 2e-4 * normals[own], closed) > 0.5]
        if len(covered):
            depth = surface_distance(vertices[covered], vertices, faces[is_other[face_bone]])
            deepest = max(deepest, 1e3 * float(depth.max()))
    return deepest


def closed_at_wrist(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Triangles (F', 3, 3) of the mesh and of a fan that closes its wrist."""
    rim = vertices[boundary_loop(faces)]
    fan = np.stack(np.broadcast_arrays(rim, np.roll(rim, -1, axis=0), rim.mean(axis=0)), axis=1)
    return np.concatenate([vertices[faces], fan])


def winding_number(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Winding numbers (Q,) of a closed surface (F, 3, 3) around points (Q, 3): 1 inside, 0 outside.

    Sums the solid angles of the triangles (van Oosterom and Strackee, 1983).
    """
    a, b, c = np.moveaxis(triangles, 1, 0)                                          # (F, 3) each
    square = (points * points).sum(axis=1)[:, None]

    def product(k: np.ndarray, m: np.ndarray) -> np.ndarray:
        """(k − p)·(m − p) of all points p, (Q, F)."""
        return square - points @ (k + m).T + (k * m).sum(axis=1)

    la, lb, lc = (np.sqrt(np.maximum(product(k, k), 0)) for k in (a, b, c))
    volumes = (a * np.cross(b, c)).sum(axis=1) - points @ (np.cross(a, b) + np.cross(b, c) + np.cross(c, a)).T
    below = la * lb * lc + product(a, b) * lc + product(b, c) * la + product(c, a) * lb
    return np.arctan2(volumes, below).sum(axis=1) / (2 * np.pi)


def surface_distance(points: np.ndarray, vertices: np.ndarray, faces: np.ndarray, nearest: int = 24) -> np.ndarray:
    """Distances (Q,) from points to the nearest of the triangles with the `nearest` closest centres."""
    corners = vertices[faces]
    _, candidates = cKDTree(corners.mean(axis=1)).query(points, k=nearest)          # (Q, nearest)
    return _triangle_distance(points[:, None], corners[candidates]).min(axis=1)


def _triangle_distance(point: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Distances (...) from points (..., 3) to triangles (..., 3, 3), at the plane or else at the nearest edge."""
    a, b, c = np.moveaxis(corners, -2, 0)
    normal = np.cross(b - a, c - a)
    square = np.maximum((normal**2).sum(-1), 1e-24)
    inside = np.ones(square.shape, bool)
    edge_distance = np.full(square.shape, np.inf)
    for p, q in ((a, b), (b, c), (c, a)):
        edge, offset = q - p, point - p
        inside &= (np.cross(edge, offset) * normal).sum(-1) >= 0
        along = np.clip((offset * edge).sum(-1) / np.maximum((edge**2).sum(-1), 1e-24), 0, 1)
        edge_distance = np.minimum(edge_distance, np.linalg.norm(offset - along[..., None] * edge, axis=-1))
    plane_distance = np.abs(((point - a) * normal).sum(-1)) / np.sqrt(square)
    return np.where(inside, plane_distance, edge_distance)
