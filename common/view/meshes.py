"""One reconstruction as files: meshes as OBJ, hand model parameters as JSON, with unit and frame written in each.

The common frame of both hands has its origin at the right wrist and the camera's axes (x right, y down, z forward).
The meshes are M_f, the result. The parameters describe M_r, the rough mesh, because the last stage moves vertices
one by one and leaves the hand model; posing them gives M_r, a few millimetres from the OBJ.

Legend: 2 the hand axis · 778 vertices.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.files import write_atomically
from common.geometry import apply_affine, grid_to_crop
from common.hands import Hand
from common.mano.model import HandModel
from common.mano.pose import POSE_CONVENTION, POSE_UNITS, pose_from_rotations
from common.types import HandPrediction

FRAME = "origin at the right wrist; x right, y down, z away from the camera"


class WeakCamera(NamedTuple):
    """Weak perspective of one hand on a picture: pixel = scale · (x, y) + wrist, x and y relative to its own wrist."""

    scale_px_per_m: float
    wrist_px: tuple[float, float]


def common_frame(hands: HandPrediction) -> Tensor:
    """Vertices (2, 778, 3) of both hands of one picture, metres, in the frame whose origin is the right wrist.

    hands: without batch axis.
    """
    return hands.vertices + wrist_offsets(hands.relative)[:, None]


def wrist_offsets(relative: Tensor) -> Tensor:
    """Where each wrist (2, 3) lies in the common frame."""
    return torch.stack([torch.zeros_like(relative), relative])


def weak_cameras(camera: Tensor, crop_from_image: np.ndarray, size: int) -> list[WeakCamera]:
    """The predicted cameras (2, 3) in pixels of the picture; the crop must not be rotated.

    crop_from_image: 3×3, from the picture to the crop of `size` pixels.
    """
    image_from_crop = np.linalg.inv(crop_from_image)
    wrists_px = apply_affine(image_from_crop, grid_to_crop(camera[:, 1:], size).double().numpy())
    scales = camera[:, 0].double().numpy() * size / 2 * image_from_crop[0, 0]
    return [WeakCamera(float(scale), tuple(wrist)) for scale, wrist in zip(scales, wrists_px.tolist(), strict=True)]


def write_obj(path: Path, vertices: Tensor, faces: Tensor, comments: list[str]) -> None:
    """A mesh with vertices (778, 3) in metres, its order kept; each comment becomes a line at the top."""
    import trimesh  # imported here so that training does not need it
    from trimesh.exchange.obj import export_obj

    mesh = trimesh.Trimesh(vertices.numpy(), faces.numpy(), process=False)
    header = "\n# ".join([*comments, "unit: metre", f"frame: {FRAME}"])
    text = export_obj(mesh, include_normals=False, include_color=False, include_texture=False, header=header)
    write_atomically(path, lambda file: file.write(text.encode()))


def hand_params(rough: HandPrediction, hand: Hand, model: HandModel) -> dict[str, Any]:
    """Parameters of one hand under InterWild's names, with unit, frame and convention.

    rough: of one picture, without batch axis.
    """
    pose = pose_from_rotations(rough.mano.rotations[hand].double().numpy(), model.mean_pose[hand].double().numpy())
    return {
        "root_pose": pose[:3].tolist(),
        "hand_pose": pose[3:].tolist(),
        "shape": rough.mano.shape[hand].double().tolist(),
        "root_trans": wrist_offsets(rough.relative)[hand].double().tolist(),
        "hand": hand.label,
        "units": POSE_UNITS,
        "frame": FRAME,
        "convention": f"{POSE_CONVENTION} Posing gives the rough mesh; the OBJ holds the refined mesh.",
        "hand_model": model.identity,
    }
