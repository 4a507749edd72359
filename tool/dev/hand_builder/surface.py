"""A dense triangle mesh of the flesh, open at the wrist, by surface nets.

One vertex per grid cell that the surface crosses, one quad per grid edge that crosses the surface.
Legend: V vertices, F faces, Q quads of the dense mesh. Millimetres.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tool.dev.hand_builder.field import onto_level_set

Field = Callable[[np.ndarray], np.ndarray]  # points (N, 3) → (N,), negative inside


def dense_surface(field: Field, low: np.ndarray, high: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) and faces (F, 3) of `field == 0` in the box from `low` to `high` (3,), cut open at x = high[0].

    The surface must leave the box through that plane only.
    """
    counts = np.round((high - low) / cell).astype(int) + 1
    axes = [low[k] + cell * np.arange(counts[k]) for k in range(3)]
    values = _sample(field, axes, cell)

    inside = values < 0
    cells = _crossed_cells(inside)
    index = np.full(cells.shape, -1)
    index[cells] = np.arange(cells.sum())
    vertices = low + cell * (np.argwhere(cells) + 0.5)

    quads = _crossing_quads(inside, index)
    used, faces = np.unique(np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]), return_inverse=True)
    faces = faces.reshape(-1, 3)
    return _relaxed(field, vertices[used], faces, high[0], cell), faces


def _sample(field: Field, axes: list[np.ndarray], cell: float) -> np.ndarray:
    """Field values (X, Y, Z) on the grid, exact only near the surface."""
    coarse = [axis[::4] for axis in axes]
    values = field(np.stack(np.meshgrid(*coarse, indexing="ij"), -1).reshape(-1, 3)).reshape([len(a) for a in coarse])
    nearest = np.ix_(*[np.minimum(np.arange(len(a)) // 4, len(c) - 1) for a, c in zip(axes, coarse, strict=True)])
    values = values[nearest]
    near = np.abs(values) < 9 * cell
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    values[near] = field(grid[near])
    return values


def _crossed_cells(inside: np.ndarray) -> np.ndarray:
    """Cells (X-1, Y-1, Z-1) whose eight corners are neither all inside nor all outside."""
    corners = [inside[i : i - 1 or None, j : j - 1 or None, k : k - 1 or None]
               for i in (0, 1) for j in (0, 1) for k in (0, 1)]
    count = np.sum(corners, axis=0)
    return (count > 0) & (count < 8)


def _crossing_quads(inside: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The quads (Q, 4), outward winding, of the cells around every grid edge that crosses the surface."""
    quads = []
    for axis in range(3):
        b, c = (axis + 1) % 3, (axis + 2) % 3
        start = np.moveaxis(inside, (axis, b, c), (0, 1, 2))
        around = np.moveaxis(index, (axis, b, c), (0, 1, 2))
        leaving = start[:-1] & ~start[1:]
        entering = ~start[:-1] & start[1:]
        for crossing, order in ((leaving, (0, 1, 2, 3)), (entering, (3, 2, 1, 0))):
            i, j, k = np.nonzero(crossing[:, 1:-1, 1:-1])
            ring = (around[i, j, k], around[i, j + 1, k], around[i, j + 1, k + 1], around[i, j, k + 1])
            quads.append(np.stack([ring[o] for o in order], -1))
    return np.concatenate(quads)


def _relaxed(field: Field, vertices: np.ndarray, faces: np.ndarray, cut: float, cell: float) -> np.ndarray:
    """Vertices smoothed and moved onto the surface; the open rim lies in the plane x = cut."""
    ends = np.concatenate([faces, np.roll(faces, 1, 1), np.roll(faces, -1, 1)])
    hub, other = ends[:, [0, 0]].ravel(), ends[:, 1:].ravel()
    count = np.bincount(hub, minlength=len(vertices))
    rim = vertices[:, 0] > cut - cell
    for _ in range(4):
        mean = np.stack([np.bincount(hub, vertices[other, k], len(vertices)) / count for k in range(3)], -1)
        mean[rim, 0] = cut
        vertices = onto_level_set(field, mean, reach=cell)
        vertices[rim, 0] = cut
    return vertices
