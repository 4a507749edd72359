"""HIC's meshes: PLY files with the vertices of one hand, metres, camera frame."""

from pathlib import Path
from typing import Any

import numpy as np

from common.errors import is_exhausted
from common.hands import NUM_VERTICES
from data.checks import BadSample, Reason

_MAX_BYTES = 10_000_000     # a mesh of 778 vertices takes about 50 kB


def read_mesh(path: Path) -> np.ndarray:
    """Vertices (778, 3) float64 in their stored order; BadSample names the file and what is wrong with it."""
    import trimesh  # imported here so that training does not need it

    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError("it is larger than 10 MB")
        mesh: Any = trimesh.load(path, file_type="ply", process=False)      # a Trimesh; without faces a PointCloud
        vertices = np.asarray(mesh.vertices, dtype=np.float64)
    except OSError as error:
        if is_exhausted(error):
            raise
        raise BadSample(Reason.LABELS_UNREADABLE, f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:      # a damaged PLY file makes trimesh raise almost anything
        raise BadSample(Reason.LABELS_UNREADABLE, f"{path} is no mesh ({type(error).__name__}: {error})") from None
    if vertices.shape != (NUM_VERTICES, 3):
        raise BadSample(Reason.LABELS_UNREADABLE,
                        f"{path} has {len(vertices)} vertices, a hand of MANO's topology {NUM_VERTICES}")
    return vertices
