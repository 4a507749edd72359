"""Light that arrives at each vertex, with soft shadows: view independent, so all cameras of a time step share it.

Every light direction looks at the scene through an orthographic depth map. Light from all round gives the darkening
between fingers and at contacts, lamps split into several directions give soft shadows.

Legend: D light directions · V vertices · N occluding vertices.
"""

import numpy as np
import torch

from common.rasterizer import rasterize
from data.synthetic.appearance import Lights

_MAP_SIZE = 96
_MAP_RADIUS = 0.21          # metres round the hands that a depth map covers; all beyond is lit
_FAR = 10.0                 # depth of the centre: so far away that a perspective z-buffer is orthographic
_BIAS, _SOFTNESS, _LIFT = 0.0022, 0.0025, 0.0018

# How far light wraps round an edge, R G B: red light travels farthest under skin.
SKIN_WRAP = np.array([0.30, 0.14, 0.09], np.float32)
CLOTH_WRAP = np.array([0.08, 0.08, 0.08], np.float32)


def visibility(points: np.ndarray, normals: np.ndarray, occluders: np.ndarray, faces: np.ndarray,
               directions: np.ndarray) -> np.ndarray:
    """How much of each light direction reaches points (V, 3): (D, V) in [0, 1].

    occluders: (N, 3) vertices of `faces`.  directions: (D, 3) towards the light.
    """
    center = occluders.mean(axis=0)
    axes = _light_frames(directions)                                                # (D, 3, 3)
    scale = np.array([_MAP_SIZE / (2 * _MAP_RADIUS)] * 2 + [1.0])
    origin = np.array([_MAP_SIZE / 2 - 0.5] * 2 + [_FAR])
    seen = (np.einsum("dij,nj->dni", axes, occluders - center) * scale + origin).astype(np.float32)
    maps = rasterize(torch.from_numpy(seen), _turned_away(seen, faces), _MAP_SIZE, _MAP_SIZE).depth
    depth = np.pad(maps.numpy(), ((0, 0), (1, 1), (1, 1)), constant_values=np.inf).astype(np.float32)

    lifted = (points + _LIFT * normals - center).astype(np.float32)
    x, y, distance = (axes[:, k].astype(np.float32) @ lifted.T * np.float32(scale[k]) + np.float32(origin[k])
                      for k in range(3))
    return _soft_compare(depth, x, y, distance)


def _turned_away(seen: np.ndarray, faces: np.ndarray) -> torch.Tensor:
    """The faces turned away from each light, (D, M, 3), shorter rows filled up with faces without area.

    The far sides of closed bodies cast the same shadows as the near ones, but none on the bodies' own lit sides, and
    they keep the seam dark where two fingers touch.
    """
    a, b, c = (seen[:, faces[:, corner], :2] for corner in range(3))
    area = (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (c[..., 0] - a[..., 0]) * (b[..., 1] - a[..., 1])
    is_turned = area > 0
    picked = np.zeros((len(seen), is_turned.sum(axis=1).max(), 3), np.int64)
    for row, keep in zip(picked, is_turned, strict=True):
        row[: keep.sum()] = faces[keep]
    return torch.from_numpy(picked)


def _light_frames(directions: np.ndarray) -> np.ndarray:
    """Rotations (D, 3, 3) into frames whose z axis runs away from the light."""
    forward = -directions
    helper = np.where(np.abs(forward[:, 1:2]) > 0.9, [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]])
    right = np.cross(helper, forward)
    right = right / np.linalg.norm(right, axis=1, keepdims=True)
    return np.stack([right, np.cross(forward, right), forward], axis=1)


def _soft_compare(depth: np.ndarray, x: np.ndarray, y: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Share of the four texels round each place (D, V) that are not in front of it; maps have a border of 1."""
    size = depth.shape[-1]
    x, y = np.clip(x + 1, 0, size - 1.001), np.clip(y + 1, 0, size - 1.001)
    left, top = x.astype(np.int32), y.astype(np.int32)
    u, v = x - left, y - top
    flat = depth.reshape(len(depth), -1)
    corner = top * size + left
    lit = np.zeros(u.shape, np.float32)
    for offset, weight in ((0, (1 - u) * (1 - v)), (1, u * (1 - v)), (size, (1 - u) * v), (size + 1, u * v)):
        behind = distance - _BIAS - np.take_along_axis(flat, corner + offset, axis=1)
        lit += weight * np.clip(1 - behind / _SOFTNESS, 0, 1)
    return lit


def irradiance(normals: np.ndarray, visible: np.ndarray, lights: Lights, wrap: np.ndarray) -> np.ndarray:
    """Light (V, 3) arriving at normals (V, 3), with visibility (D, V), that wraps round edges by `wrap` (3,)."""
    facing = lights.directions.astype(np.float32) @ normals.T                       # (D, V)
    light = np.empty((normals.shape[0], 3), np.float32)
    for c in range(3):
        received = np.maximum(facing + wrap[c], 0) * visible
        light[:, c] = (lights.colors[:, c] / (1 + wrap[c])).astype(np.float32) @ received
    return light


def highlights(normals: np.ndarray, visible: np.ndarray, to_camera: np.ndarray, lights: Lights,
               sharpness: float) -> np.ndarray:
    """Reflected lamp light (V, 3) towards the camera (to_camera: (V, 3) unit), before any gloss."""
    lamps = lights.directions[lights.is_sharp].astype(np.float32)                   # (D, 3)
    # Cosine between the normal and the direction halfway between lamp and camera.
    facing = lamps @ normals.T + np.einsum("vc,vc->v", normals, to_camera)
    facing /= np.sqrt(2.0002 + 2 * (lamps @ to_camera.T))
    lobe = np.clip(facing, 0, 1) ** sharpness * visible[lights.is_sharp]
    return lobe.T @ lights.colors[lights.is_sharp].astype(np.float32)
