"""Remesh the dense surface to exactly 778 vertices and 1538 faces: the dual of a Voronoi partition.

Sites are placed on the surface: rings around the fingers, so that they bend cleanly, an even loop at the wrist, and the
rest spread over the palm. Every dense vertex belongs to its nearest site; wherever three regions meet there is a
triangle. A disk of 778 vertices with 16 on its rim has 1538 triangles.

Legend: V vertices, F faces of the dense mesh · S seeds of a finger · R rays. Millimetres.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from common.geometry import vertex_normals
from common.hands import INTERWILD_TIP_VERTICES, NUM_VERTICES, TIP_VERTICES
from data.synthetic.subdivision import edge_table
from data.synthetic.surface import boundary_loop
from tool.dev.hand_builder.field import Flesh, Tube, hand_field, knots
from tool.dev.hand_builder.skeleton import FINGERS, unit

RIM = 16
AROUND = 10  # vertices in a finger ring
TIP_RING = 5  # vertices of the last ring round the tip vertex

# First ring (spine station), ring spacing at a joint and between joints. Started here, a ring without a vertex in the
# middle of the palm side falls on the second joints, where skin folds deepest.
FIRST_RING = {"index": 1.63, "middle": 1.65, "ring": 1.63, "pinky": 1.56, "thumb": 1.12}
SPACING_AT_JOINT, SPACING_BETWEEN = 4.9, 8.2
NORMAL_REACH = 4.0  # distance added between opposite normals, so that facing fingers share no region

TIPS = dict(zip(("thumb", "index", "middle", "ring", "pinky"), TIP_VERTICES, strict=True))
NEXT_TO_MIDDLE_TIP = INTERWILD_TIP_VERTICES[2]  # 445, an edge away from 444


def remesh(flesh: Flesh, dense: np.ndarray, dense_faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (778, 3) and faces (1538, 3) of the hand, its fingertips numbered as MANO's."""
    rings = {name: _finger_seeds(flesh, name) for name in FINGERS}
    fixed = np.concatenate([rings[name] for name in FINGERS])
    rim, rim_label = _rim_seeds(dense, dense_faces)
    fixed = np.concatenate([dense[rim], fixed])

    normals = vertex_normals(torch.from_numpy(dense)[None], torch.from_numpy(dense_faces)[None])[0].numpy()
    embedded = np.concatenate([dense, NORMAL_REACH / 2 * normals], axis=1)  # (V, 6)
    fixed_at = np.concatenate([rim, cKDTree(dense).query(fixed[RIM:])[1]])
    sites, label = _spread(embedded, fixed_at, rim_label)
    label = _in_one_piece(label, sites, embedded, edge_table(dense_faces)[0])

    vertices = dense[sites]
    vertices[: len(fixed)] = fixed
    faces = _dual_faces(label, dense_faces)
    _check_disk(vertices, faces)
    ends = np.cumsum([RIM] + [len(rings[name]) for name in FINGERS])[1:]
    return _numbered(vertices, faces, dict(zip(FINGERS, ends - 1, strict=True)))


def _finger_seeds(flesh: Flesh, name: str) -> np.ndarray:
    """Rings of seeds (S, 3) along a finger, each rotated by half a step from the one before; the tip comes last."""
    tube = flesh.fingers[name]
    rays = [_ring_rays(tube, station, k % 2 / 2) for k, station in enumerate(_ring_stations(tube, name))]
    last = len(rays) % 2 / 2
    rays += [_cap_rays(tube, 58.0, AROUND, last), _cap_rays(tube, 27.0, TIP_RING, last / 2), _cap_rays(tube, 0.0, 1, 0)]
    starts, directions = (np.concatenate(part) for part in zip(*rays, strict=True))
    return _cast(lambda points: hand_field(flesh, points, [name]), starts, directions)


def _ring_stations(tube: Tube, name: str) -> np.ndarray:
    """Spine stations of the full rings, denser at the joints."""
    station = np.linspace(FIRST_RING[name], len(tube.spine) - 1 - 1e-3, 2000)
    length = np.interp(station, np.arange(len(tube.spine)), knots(tube))
    bends = knots(tube)[(1 if name == "thumb" else 2) : -1]
    near = np.exp(-(((length[:, None] - bends) / 5.0) ** 2)).max(1)
    density = 1 / (SPACING_BETWEEN + (SPACING_AT_JOINT - SPACING_BETWEEN) * near)
    count = np.concatenate([[0], np.cumsum(np.diff(length) * (density[1:] + density[:-1]) / 2)])
    rings = int(round(count[-1])) + 1
    return np.interp(np.linspace(0, count[-1], rings), count, station)


def _ring_rays(tube: Tube, station: float, phase: float) -> tuple[np.ndarray, np.ndarray]:
    """Rays across the spine at a station: origins and directions (AROUND, 3)."""
    k = min(int(station), len(tube.spine) - 2)
    t = station - k
    center = (1 - t) * tube.spine[k] + t * tube.spine[k + 1]
    tangent = unit(_smooth_tangent(tube, station))
    up = (1 - t) * tube.dorsal[k] + t * tube.dorsal[k + 1]
    up = unit(up - (up @ tangent) * tangent)
    across = np.cross(up, tangent)
    angle = 2 * np.pi * (np.arange(AROUND) + phase) / AROUND
    directions = np.cos(angle)[:, None] * across + 0.9 * np.sin(angle)[:, None] * up
    return np.tile(center, (AROUND, 1)), unit(directions)


def _smooth_tangent(tube: Tube, station: float) -> np.ndarray:
    """Spine direction (3,) at a station, interpolated between segments so that rings do not cross."""
    directions = unit(np.diff(tube.spine, axis=0))
    middles = np.arange(len(directions)) + 0.5
    return np.stack([np.interp(station, middles, directions[:, k]) for k in range(3)])


def _cap_rays(tube: Tube, degrees: float, count: int, phase: float) -> tuple[np.ndarray, np.ndarray]:
    """Rays from the end of the spine, `degrees` away from its direction: origins and directions (count, 3)."""
    tangent = unit(tube.spine[-1] - tube.spine[-2])
    up = unit(tube.dorsal[-1] - (tube.dorsal[-1] @ tangent) * tangent)
    across = np.cross(up, tangent)
    tilt, angle = np.radians(degrees), 2 * np.pi * (np.arange(count) + phase) / count
    sideways = np.cos(angle)[:, None] * across + np.sin(angle)[:, None] * up
    return np.tile(tube.spine[-1], (count, 1)), np.cos(tilt) * tangent + np.sin(tilt) * sideways


def _cast(field, starts: np.ndarray, directions: np.ndarray, reach: float = 22.0) -> np.ndarray:
    """Points (R, 3) where rays from inside first leave the surface, by bisection."""
    steps = np.linspace(0, reach, 90)
    values = field((starts[:, None] + steps[:, None] * directions[:, None]).reshape(-1, 3)).reshape(len(starts), -1)
    first = np.argmax(values > 0, axis=1)
    low, high = steps[first - 1], steps[first]
    for _ in range(20):
        middle = (low + high) / 2
        inside = field(starts + middle[:, None] * directions) < 0
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return starts + low[:, None] * directions


def _rim_seeds(dense: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, dict[int, int]]:
    """Dense vertices (RIM,) spaced evenly around the open wrist, and the nearest of them for every rim vertex."""
    loop = np.roll(boundary_loop(faces)[::-1], 1)  # along the boundary edges, from the lowest index
    points = dense[loop]
    step = np.linalg.norm(np.roll(points, -1, 0) - points, axis=1)
    arc = np.concatenate([[0], np.cumsum(step)])
    start = np.argmax(points[:, 2])  # thumb side
    position = (arc[:-1] - arc[start]) % arc[-1] / arc[-1] * RIM
    nearest = np.round(position).astype(int) % RIM
    seeds = [int(np.argmin(np.abs((position - k + RIM / 2) % RIM - RIM / 2))) for k in range(RIM)]
    return loop[seeds], dict(zip(loop.tolist(), nearest.tolist(), strict=True))


def _spread(embedded: np.ndarray, fixed: np.ndarray, rim_label: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Sites (778,), the fixed ones first, and the site of every dense vertex (V,), by Lloyd's algorithm."""
    size = 6.3 + 3.2 * np.clip((embedded[:, 0] + 12) / 45, 0, 1)  # wanted spacing: finer towards the finger roots
    sites = _farthest_points(embedded, size, fixed)
    rim, rim_site = np.array(list(rim_label)), np.array(list(rim_label.values()))
    tree, mass = cKDTree(embedded), size**-4.0
    positions = embedded[sites]
    for _ in range(30):
        label = cKDTree(positions).query(embedded)[1]
        label[rim] = rim_site
        total = np.bincount(label, mass, NUM_VERTICES)
        mean = np.stack([np.bincount(label, mass * embedded[:, k], NUM_VERTICES) / total for k in range(6)], -1)
        sites[len(fixed) :] = tree.query(mean[len(fixed) :])[1]
        positions = embedded[sites]
    label = cKDTree(positions).query(embedded)[1]
    label[rim] = rim_site
    return sites, label


def _in_one_piece(label: np.ndarray, sites: np.ndarray, embedded: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Labels (V,) in which every region is connected: stray patches join the nearest adjacent region."""
    count = len(label)
    same = edges[label[edges[:, 0]] == label[edges[:, 1]]]
    graph = sparse.coo_matrix((np.ones(len(same)), (same[:, 0], same[:, 1])), shape=(count, count))
    piece = connected_components(graph, directed=False)[1]
    label = np.where(piece == piece[sites][label], label, -1)

    while (label < 0).any():
        both = np.concatenate([edges, edges[:, ::-1]])
        stray, neighbour = both[(label[both[:, 0]] < 0) & (label[both[:, 1]] >= 0)].T
        distance = np.linalg.norm(embedded[stray] - embedded[sites[label[neighbour]]], axis=1)
        order = np.lexsort((distance, stray))
        stray, first = np.unique(stray[order], return_index=True)
        label[stray] = label[neighbour[order][first]]
    return label


def _farthest_points(embedded: np.ndarray, size: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Indices (778,) of dense vertices: `fixed`, then each the farthest from all before it, relative to `size`."""
    sites = fixed.tolist()
    distance = cKDTree(embedded[fixed]).query(embedded)[0]
    while len(sites) < NUM_VERTICES:
        sites.append(int(np.argmax(distance / size)))
        distance = np.minimum(distance, np.linalg.norm(embedded - embedded[sites[-1]], axis=1))
    return np.array(sites)


def _dual_faces(label: np.ndarray, dense_faces: np.ndarray) -> np.ndarray:
    """Triangles (1538, 3) of sites whose regions meet in a dense triangle, wound as the dense mesh."""
    corners = label[dense_faces]
    a, b, c = corners.T
    corners = corners[(a != b) & (b != c) & (c != a)]
    start = corners.argmin(1)
    return np.unique(np.take_along_axis(corners, (start[:, None] + np.arange(3)) % 3, axis=1), axis=0)


def _check_disk(vertices: np.ndarray, faces: np.ndarray) -> None:
    """ValueError unless the mesh is a manifold disk with every vertex used and 16 edges at its rim."""
    edges, _, uses = edge_table(faces)
    euler = len(vertices) - len(edges) + len(faces)
    found = (len(np.unique(faces)), euler, int(uses.max()), int((uses == 1).sum()))
    if found != (len(vertices), 1, 2, RIM) or len(boundary_loop(faces)) != RIM:
        raise ValueError(f"not a disk: (used vertices, Euler number, most faces per edge, rim edges) = {found}")


def _numbered(vertices: np.ndarray, faces: np.ndarray, tips: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """The mesh with its fingertips at MANO's indices; the other vertices keep their order."""
    at_middle = faces[(faces == tips["middle"]).any(1)]
    neighbour = int(min(set(at_middle.ravel().tolist()) - {tips["middle"]}))
    wanted = {TIPS[name]: site for name, site in tips.items()} | {NEXT_TO_MIDDLE_TIP: neighbour}

    others = iter([site for site in range(NUM_VERTICES) if site not in set(wanted.values())])
    order = np.array([wanted[k] if k in wanted else next(others) for k in range(NUM_VERTICES)])
    new_index = np.empty(NUM_VERTICES, dtype=int)
    new_index[order] = np.arange(NUM_VERTICES)
    return vertices[order], new_index[faces]
