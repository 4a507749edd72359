"""Loop subdivision as a sparse matrix.

Subdivision is linear in the vertices: it is worked out once per topology and applied to any posed mesh as
`fine = matrix @ coarse`.

Legend: V coarse vertices · F coarse faces · E edges. Coarse vertices keep their indices 0 … V − 1.
"""

import numpy as np
from scipy import sparse


def subdivide(faces: np.ndarray, num_vertices: int, levels: int) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Matrix (V', V) from coarse to fine vertices, its rows summing to 1, and fine faces (4^levels·F, 3) int64.

    faces: (F, 3) integer, a manifold with or without boundary, whose winding the fine faces keep.
    """
    matrix = sparse.identity(num_vertices, format="csr")
    fine = np.asarray(faces, dtype=np.int64)
    for _ in range(levels):
        step, fine = _loop_step(fine, matrix.shape[0])
        matrix = step @ matrix
    matrix.sort_indices()
    return matrix, fine


def edge_table(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges (E, 2) in lexicographic order, the edge of each face side (F, 3), and the faces of each edge (E,).

    Side k of a face joins its corners k and k + 1. An edge of one face lies on the boundary.
    """
    sides = np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1)                  # (F, 3, 2)
    edges, side_to_edge, uses = np.unique(np.sort(sides.reshape(-1, 2), axis=1), axis=0, return_inverse=True,
                                          return_counts=True)
    return edges, side_to_edge.reshape(-1, 3), uses


def _loop_step(faces: np.ndarray, num_vertices: int) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Matrix (V + E, V) and faces (4F, 3) of one level; new vertex V + e lies on edge e."""
    edges, side_to_edge, uses = edge_table(faces)
    matrix = sparse.vstack([_old_vertex_rule(edges, uses, num_vertices),
                            _edge_rule(faces, edges, side_to_edge, uses, num_vertices)])
    a, b, c = faces.T
    ab, bc, ca = num_vertices + side_to_edge.T
    fine = np.concatenate([np.stack(corner, 1) for corner in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))])
    return matrix.tocsr(), fine


def _old_vertex_rule(edges: np.ndarray, uses: np.ndarray, num_vertices: int) -> sparse.csr_matrix:
    """Rows (V, V) of the old vertices; the boundary is a cubic B-spline of its own."""
    inner = adjacency(edges, num_vertices)
    border = adjacency(edges[uses == 1], num_vertices)
    on_border = np.asarray(border.sum(1)).ravel() > 0
    valence = np.maximum(np.asarray(inner.sum(1)).ravel(), 1)
    # Loop's beta, which keeps the surface curvature-bounded at every valence.
    beta = (5 / 8 - (3 / 8 + np.cos(2 * np.pi / valence) / 4) ** 2) / valence
    keep = np.where(on_border, 3 / 4, 1 - valence * beta)
    pull_inner = sparse.diags(np.where(on_border, 0, beta)) @ inner
    pull_border = sparse.diags(np.where(on_border, 1 / 8, 0)) @ border
    return sparse.csr_matrix(sparse.diags(keep) + pull_inner + pull_border)


def _edge_rule(faces: np.ndarray, edges: np.ndarray, side_to_edge: np.ndarray, uses: np.ndarray,
               num_vertices: int) -> sparse.csr_matrix:
    """Rows (E, V) of the new vertices: 3/8 of each end + 1/8 of each opposite corner; the midpoint on the boundary."""
    inner = uses == 2
    end_weight = np.where(inner, 3 / 8, 1 / 2)
    wing_weight = np.where(inner, 1 / 8, 0)

    edge = np.arange(len(edges))
    side_edge, wing = side_to_edge.ravel(), np.roll(faces, -2, axis=1).ravel()      # the corner opposite each side
    rows = np.concatenate([edge, edge, side_edge])
    cols = np.concatenate([edges[:, 0], edges[:, 1], wing])
    values = np.concatenate([end_weight, end_weight, wing_weight[side_edge]])
    rule = sparse.csr_matrix((values, (rows, cols)), shape=(len(edges), num_vertices))
    rule.eliminate_zeros()
    return rule


def adjacency(edges: np.ndarray, num_vertices: int) -> sparse.csr_matrix:
    """Symmetric 0/1 matrix (V, V) of the given edges (E, 2)."""
    ends = np.concatenate([edges, edges[:, ::-1]])
    return sparse.csr_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(num_vertices, num_vertices))
