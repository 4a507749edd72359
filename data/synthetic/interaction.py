"""How two posed hands touch and pass through each other, measured on their meshes, and small moves that mend it.

Legend: V vertices of a hand · F faces · Q query points. Metres; reports in millimetres.
"""

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from common.hands import Hand
from data.synthetic.body import Surface, vertex_normals, wrist_loop

_TOUCHING = 0.002           # metres: nearer than this is contact
_TOLERATED = 0.0012         # metres of overlap that soft flesh explains
_DOUBTFUL = 0.001           # metres above the nearest vertex's tangent plane
_NEAREST_FEW = 40           # vertices among which the gap is found: those nearest to a vertex of the other hand
_REACH = 0.03               # metres: no vertex of a hand lies deeper in another


class Interaction(NamedTuple):
    """Measured on the 778-vertex meshes, each closed with a lid at the wrist."""

    is_contact: bool        # some vertex is inside the other hand, or nearer to it than 2 mm
    max_depth_mm: float     # of the deepest vertex below the other hand's surface
    mean_depth_mm: float    # over the vertices that are inside; 0 without any
    inside: int             # vertices of both hands that are inside the other
    gap_mm: float           # from vertex to surface where the hands are nearest; 0 when they overlap


def measure(vertices: np.ndarray, faces: np.ndarray) -> Interaction:
    """The interaction of two hands.  vertices: (2, 778, 3).  faces: (2, 1538, 3)."""
    depths, gap = [np.zeros(0)], np.inf
    for hand in Hand:
        points, other, other_faces = vertices[hand], vertices[hand.other], faces[hand.other]
        apart, nearest = cKDTree(other).query(points)
        near = points[apart < _REACH]
        if not len(near):
            continue
        # A point well outside is seen as outside from the nearest vertex; only the others are asked exactly.
        normals = vertex_normals(other, other_faces)[nearest[apart < _REACH]]
        is_doubtful = ((near - other[nearest[apart < _REACH]]) * normals).sum(axis=1) < _DOUBTFUL
        doubtful = near[is_doubtful]
        inside = doubtful[winding_number(doubtful, *closed_at_wrist(other, other_faces)) > 0.5]
        depths.append(surface_distance(inside, other, other_faces))
        nearest_few = points[np.argsort(apart)[:_NEAREST_FEW]]
        gap = min(gap, surface_distance(nearest_few, other, other_faces).min())
    depth = np.concatenate(depths)
    if not np.isfinite(gap):
        gap = min(cKDTree(vertices[hand.other]).query(vertices[hand])[0].min() for hand in Hand)
    if len(depth):
        return Interaction(True, 1e3 * float(depth.max()), 1e3 * float(depth.mean()), len(depth), 0.0)
    return Interaction(bool(gap < _TOUCHING), 0.0, 0.0, 0, 1e3 * float(gap))


def closed_at_wrist(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mesh with a lid of triangles over its wrist."""
    loop = wrist_loop(faces)
    lid = np.stack([loop, np.roll(loop, -1), np.full(len(loop), len(vertices))], axis=1)
    return np.concatenate([vertices, vertices[loop].mean(axis=0, keepdims=True)]), np.concatenate([faces, lid])


def winding_number(points: np.ndarray, vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """How often a closed mesh winds round points (Q, 3): 1 inside, 0 outside (van Oosterom and Strackee, 1983)."""
    total = np.zeros(len(points))
    for start in range(0, len(points), 64):
        to_vertices = vertices.T[:, None] - points[start: start + 64].T[..., None]  # (3, Q, V)
        a, b, c = (to_vertices[:, :, faces[:, corner]].astype(np.float32) for corner in range(3))
        la, lb, lc = (np.sqrt((x * x).sum(axis=0)) for x in (a, b, c))
        ab, bc, ca = ((x * y).sum(axis=0) for x, y in ((a, b), (b, c), (c, a)))
        volume = sum(a[k] * (b[k - 2] * c[k - 1] - b[k - 1] * c[k - 2]) for k in range(3))
        angle = np.arctan2(volume, la * lb * lc + ab * lc + bc * la + ca * lb)
        total[start: start + 64] = angle.sum(axis=1) / (2 * np.pi)
    return total


def surface_distance(points: np.ndarray, vertices: np.ndarray, faces: np.ndarray, nearest: int = 24) -> np.ndarray:
    """Distance (Q,) from points to the nearest triangle, among those with the `nearest` closest centres."""
    corners = vertices[faces]
    _, candidates = cKDTree(corners.mean(axis=1)).query(points, k=nearest)          # (Q, nearest)
    return _triangle_distance(points[:, None], corners[candidates]).min(axis=1)


def _triangle_distance(point: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Distances of points (..., 3) to triangles (..., 3, 3): to the plane if they project inside, else to an edge."""
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


# ---------------------------------------------------------------- mending

def mending_shift(vertices: np.ndarray, surface: Surface, touches: bool) -> np.ndarray:
    """How to move the left hand (3,) so that two hands (2, 778, 3) part, or meet if they should."""
    shift = np.zeros(3)
    mid = np.stack([surface.mid_from_coarse @ hand for hand in vertices])           # (2, 3093, 3)
    trees = [cKDTree(points) for points in mid]
    normals = [vertex_normals(points, faces) for points, faces in zip(mid, surface.mid_faces, strict=True)]
    near = [_near(points, tree) for points, tree in zip(vertices, reversed(trees), strict=True)]
    for _ in range(8):
        depth, push, gap, bridge = _overlap(near, shift, mid, trees, normals)
        if depth > _TOLERATED:
            shift = shift + 0.8 * (depth - 0.7 * _TOLERATED) * push
        elif touches and gap > 0.0006:
            shift = shift + bridge * (1 - 0.0002 / gap)
        else:
            break
    return shift


def _near(points: np.ndarray, other: cKDTree) -> np.ndarray:
    """The points that can meet the other hand when it is moved as far as it must to touch."""
    distance = other.query(points)[0]
    return points[distance < distance.min() + _REACH]


def _overlap(near: list[np.ndarray], shift: np.ndarray, mid: np.ndarray, trees: list[cKDTree],
             normals: list[np.ndarray]) -> tuple[float, np.ndarray, float, np.ndarray]:
    """Deepest overlap, the unit direction that parts the left hand, the gap, and the way that closes it."""
    deepest, push, gap, bridge = 0.0, np.zeros(3), np.inf, np.zeros(3)
    for hand in Hand:
        # The left hand moves: seen from it, the right hand moves the other way.
        sign = 1.0 if hand == Hand.LEFT else -1.0
        points = near[hand] + sign * shift
        distance, nearest = trees[hand.other].query(points)
        offset = points - mid[hand.other, nearest]
        normal = normals[hand.other][nearest]
        height = (offset * normal).sum(axis=1)
        # Far below a tangent plane lies the other side of the hand, not its inside.
        inside = (height < 0) & (distance < _REACH)
        depth = np.where(inside, -height, 0)
        push += sign * (depth[:, None] ** 2 * normal).sum(axis=0)
        deepest = max(deepest, float(depth.max()))
        outside = np.where(inside, np.inf, distance)
        if outside.min() < gap:
            gap, bridge = outside.min(), -sign * offset[outside.argmin()]
    length = np.linalg.norm(push)
    return deepest, push / length if length > 0 else push, float(gap), bridge
