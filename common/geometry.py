"""Rotations, projection and the crop, each with one convention.

Image and crop coordinates put (0, 0) on the centre of the first pixel. Frames: `_cam` metres, x right,
y down, z forward · `_px` pixels of the stored image · `_crop` pixels of the S×S crop · `_grid` the
[−1, 1] of `grid_sample(align_corners=False)`, whose ends are the outer edges of the crop · `_cells` the
heatmap volume of the joint stage. A transform reads right to left: `crop_from_image @ p_px`.

The crop functions work on float64 numpy arrays (the data path), the rest on tensors.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

HEATMAP_CELLS = 8   # the joint stage's volume is 8×8×8


# ---------------------------------------------------------------- rotations

def rot6d_to_matrix(rot6d: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) from two columns (..., 6) by Gram–Schmidt (Zhou et al., CVPR 2019).

    Any input gives a rotation: a zero first column becomes x, a second column parallel to the first
    becomes the axis least aligned with it.
    """
    eps = 1e-6
    first, second = rot6d[..., :3], rot6d[..., 3:]
    axes = torch.eye(3, dtype=rot6d.dtype, device=rot6d.device)

    is_zero = first.norm(dim=-1, keepdim=True) < eps
    x = F.normalize(torch.where(is_zero, axes[0], first), dim=-1)
    second = second - (x * second).sum(-1, keepdim=True) * x
    spare = axes[x.detach().abs().argmin(dim=-1)]
    spare = spare - (x * spare).sum(-1, keepdim=True) * x
    is_parallel = second.norm(dim=-1, keepdim=True) < eps
    y = F.normalize(torch.where(is_parallel, spare, second), dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], dim=-1)


def matrix_to_rot6d(matrix: Tensor) -> Tensor:
    """First two columns (..., 6) of rotation matrices (..., 3, 3)."""
    return matrix[..., :2].transpose(-1, -2).flatten(-2)


# ---------------------------------------------------------------- projection

def project(points_cam: Tensor, camera: Tensor) -> Tensor:
    """Perspective projection of camera-frame points (..., N, 3) by intrinsics (..., 3, 3) to (..., N, 2).

    u = fx·X/Z + cx, v = fy·Y/Z + cy; `camera` may be any 3×3 matrix with last row (0, 0, 1).
    """
    homogeneous = points_cam @ camera.transpose(-1, -2)
    return homogeneous[..., :2] / homogeneous[..., 2:]


def project_weak(points: Tensor, camera: Tensor) -> Tensor:
    """Weak-perspective projection of wrist-relative points (..., N, 3), metres, to `_grid` (..., N, 2).

    camera: (..., 3) = (s, tx, ty); s is in half crops per metre, (tx, ty) is where the wrist lands.
    """
    return camera[..., None, :1] * points[..., :2] + camera[..., None, 1:]


def crop_to_grid(points_crop: Tensor, size: int) -> Tensor:
    """Crop pixels to [−1, 1]; pixel −0.5 maps to −1 and size − 0.5 to 1."""
    return (2 * points_crop + 1) / size - 1


def grid_to_crop(points_grid: Tensor, size: int) -> Tensor:
    """Inverse of `crop_to_grid`."""
    return ((points_grid + 1) * size - 1) / 2


# ---------------------------------------------------------------- meshes

def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit outward normals (M, V, 3) of M meshes, means over the faces around each vertex weighted by area.

    vertices: (M, V, 3).  faces: (M, F, 3).
    """
    corners = torch.stack([mesh[triangles] for mesh, triangles in zip(vertices, faces, strict=True)])   # (M, F, 3, 3)
    face_normals = torch.linalg.cross(corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0])
    index = faces.flatten(1)[..., None].expand(-1, -1, 3)                     # (M, 3F, 3)
    total = torch.zeros_like(vertices).scatter_add(1, index, face_normals.repeat_interleave(3, dim=1))
    return F.normalize(total, dim=-1)


# ---------------------------------------------------------------- 2.5D joints

def joints_to_cells(joints_crop: Tensor, depth: Tensor, size: int, depth_range: float) -> Tensor:
    """2.5D joints (..., 3) in heatmap cells: x = 8·u/S, y = 8·v/S, z = 4·(depth/(range/2) + 1).

    joints_crop: (..., 2) crop pixels.  depth: (...) metres relative to the own wrist.
    depth_range: metres covered by the 8 cells (0.4 by default: 0.3 drops real fingertips).
    """
    xy = joints_crop * (HEATMAP_CELLS / size)
    z = (depth / (depth_range / 2) + 1) / 2 * HEATMAP_CELLS
    return torch.cat([xy, z.unsqueeze(-1)], dim=-1)


def cells_to_crop(joints_cells: Tensor, size: int) -> Tensor:
    """Crop pixels (..., 2) of 2.5D joints (..., 3)."""
    return joints_cells[..., :2] * (size / HEATMAP_CELLS)


def inside_cells(joints_cells: Tensor) -> Tensor:
    """Whether each 2.5D joint (..., 3) lies in the volume [0, 8)³, (...) bool."""
    return ((joints_cells >= 0) & (joints_cells < HEATMAP_CELLS)).all(dim=-1)


# ---------------------------------------------------------------- boxes and crops, in numpy

Box = tuple[float, float, float, float]     # x, y, width and height in pixels


def check_box(box: Sequence[float]) -> None:
    """Raise ValueError, which says what is wrong, for what cannot be x, y, width and height in pixels."""
    if len(box) != 4 or not all(abs(number) < 1e9 for number in box):
        raise ValueError("is not four finite numbers")
    if min(box[2:]) <= 0:
        raise ValueError("has no area")
    if max(box[2:]) <= 1:
        raise ValueError("is not larger than a pixel: shares of the image's size are no pixels")


class SquareBox(NamedTuple):
    """A square in image pixels: centre (2,) and side. It may leave the image; it is never clamped."""

    center: np.ndarray
    side: float


def square_box(points_px: np.ndarray, ratio: float = 0.8) -> SquareBox:
    """The square around points (N, 2) whose longer extent fills `ratio` of the side (IntagHand: 0.8)."""
    low, high = points_px.min(axis=0), points_px.max(axis=0)
    return SquareBox((low + high) / 2, float((high - low).max()) / ratio)


def crop_affine(box: SquareBox, size: int, scale: float = 1.0, rotation_deg: float = 0.0) -> np.ndarray:
    """`crop_from_image`, 3×3: p' = A·(p − c) + S/2 with A = (S/s)·[[cos, sin], [−sin, cos]].

    scale multiplies the side of the box; a positive rotation turns the image counter-clockwise on
    screen, which is R_z(−φ) in the camera frame (y points down).
    """
    angle = np.deg2rad(rotation_deg)
    linear = size / (box.side * scale) * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    affine = np.eye(3)
    affine[:2, :2] = linear
    affine[:2, 2] = size / 2 - linear @ box.center
    return affine


def rotation_about_z(rotation_deg: float) -> np.ndarray:
    """R_z(−φ): the camera-frame rotation that turns the image as `crop_affine(rotation_deg=φ)` does."""
    angle = np.deg2rad(rotation_deg)
    return np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1.0]])


def apply_affine(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """`affine @ p` for points (..., 2)."""
    return points @ affine[:2, :2].T + affine[:2, 2]
