"""One reconstruction as files: meshes as OBJ, hand model parameters as JSON, with unit and frame written in each.

The frame is that of `common.types.TwoHands`. The meshes are M_f, the result. The parameters describe M_r, the coarse
mesh; posing them gives M_r, a few millimetres from the OBJ.

Legend: 2 the hand axis · 778 vertices.
"""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from common.files import write_atomically
from common.hands import Hand
from common.mano.model import HandModel
from common.mano.pose import POSE_CONVENTION, POSE_UNITS, pose_from_rotations
from common.types import TwoHands

FRAME = "origin at the right wrist; x right, y down, z away from the camera"


def write_obj(path: Path, vertices: np.ndarray, faces: Tensor, comments: list[str]) -> None:
    """A mesh with vertices (778, 3) in metres, its order kept; each comment becomes a line at the top."""
    import trimesh  # imported here so that training does not need it
    from trimesh.exchange.obj import export_obj

    mesh = trimesh.Trimesh(vertices, faces.numpy(), process=False)
    header = "\n# ".join([*comments, "unit: metre", f"frame: {FRAME}"])
    text = export_obj(mesh, include_normals=False, include_color=False, include_texture=False, header=header)
    write_atomically(path, lambda file: file.write(text.encode()))


def hand_params(hands: TwoHands, hand: Hand, model: HandModel) -> dict[str, Any]:
    """Parameters of one hand under InterWild's names, with unit, frame and convention; posing them gives M_r. Those of
    a hand that is not present are None."""
    pose = pose_from_rotations(hands.rotations[hand].astype(np.float64), model.mean_pose[hand].double().numpy())
    values = {
        "root_pose": pose[:3].tolist(),
        "hand_pose": pose[3:].tolist(),
        "shape": hands.shape[hand].astype(np.float64).tolist(),
        "root_trans": hands.wrists[hand].astype(np.float64).tolist(),
    }
    return {
        **(values if hands.present[hand] else dict.fromkeys(values)),
        "hand": hand.label,
        "units": POSE_UNITS,
        "frame": FRAME,
        "convention": f"{POSE_CONVENTION} Posing gives the coarse mesh; the OBJ holds the refined mesh.",
        "hand_model": model.identity,
    }
