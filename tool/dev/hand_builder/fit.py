"""Fit the 778 vertices so that the surface after two Loop rounds, not their polygon, is the flesh.

Loop subdivision shrinks: around a finger of ten vertices by six per cent.  Solving for the control
vertices gives the rendered surface its designed thickness and keeps it smooth, which an interpolating
scheme would not at the irregular vertices.  The price is that the 778 stand up to half a millimetre outside.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu

from data.synthetic.subdivision import subdivide
from tool.dev.hand_builder.field import project
from tool.dev.hand_builder.remesh import boundary_loop

ROUNDS = 2
STIFFNESS = 0.02  # pull towards the previous vertices; leaves no vertex undetermined


def fit_to_surface(field, vertices: np.ndarray, faces: np.ndarray, iterations: int = 5) -> np.ndarray:
    """Control vertices (778, 3) whose twice subdivided surface lies on `field == 0`; the rim stays in its plane."""
    coo, _ = subdivide(faces, len(vertices), ROUNDS)
    matrix = sparse.csr_matrix((coo.values, (coo.rows, coo.cols)), shape=coo.shape)
    rim = boundary_loop(faces)
    cut = vertices[rim, 0].mean()

    solver = splu((matrix.T @ matrix + STIFFNESS * sparse.identity(len(vertices))).tocsc())
    for _ in range(iterations):
        target = project(field, matrix @ vertices, rounds=2)
        vertices = solver.solve(matrix.T @ target + STIFFNESS * vertices)
        vertices[rim, 0] = cut
    return vertices
