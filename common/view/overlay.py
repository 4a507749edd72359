"""Images of the hands that are present: over the photograph, and from the side. Right orange, left blue.

Legend: K hands · V 778 vertices · F 1538 faces · H, W the canvas. Canvas points are (x px, y px, depth m).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.geometry import apply_affine, vertex_normals
from common.hands import NUM_VERTICES
from common.types import TwoHands
from common.view.rasterizer import interpolate, rasterize

HAND_COLORS = ((0.95, 0.58, 0.36), (0.36, 0.62, 0.93))  # RGB; told apart by colour-blind readers too
PAPER_COLOR = (246, 246, 248)
TO_LIGHT = (-0.35, -0.60, -0.72)                        # camera axes: from the upper left, behind the viewer
SUPERSAMPLING = 2
OVERLAY_OPACITY = 0.85
CONTOUR_JUMP = 0.006                                    # metres of depth between neighbours that draw a line
CONTOUR_DARKNESS = 0.45
FAR = 10.0                                              # metres
SIDE_AZIMUTH_DEG, SIDE_ELEVATION_DEG = 60, 15


def draw_hands(canvas: np.ndarray, canvas_from_image: np.ndarray, hands: TwoHands, faces: Tensor) -> np.ndarray:
    """A copy of the canvas (H, W, 3) uint8 with the hands on it: each where its own camera puts it, which fits the
    pixels best; depth decides what hides what.

    canvas_from_image: 3×3, from the pixels of the image that the hands were predicted from.  faces: (2, F, 3).
    """
    present = torch.from_numpy(hands.present)
    if not present.any():
        return canvas.copy()
    vertices = torch.from_numpy(hands.vertices)[present]
    points = torch.from_numpy(apply_affine(canvas_from_image, hands.to_px(hands.vertices))).float()[present]
    return paint_hands(canvas, torch.cat([points, vertices[..., 2:]], dim=-1), vertex_normals(vertices, faces[present]),
                       faces[present], _colors(present), OVERLAY_OPACITY)


def paint_hands(background: np.ndarray, points: Tensor, normals: Tensor, faces: Tensor, colors: Tensor, opacity: float
                ) -> np.ndarray:
    """A copy of the background (H, W, 3) uint8 with hands painted on it, nearer surfaces in front.

    points: (K, V, 3) on the canvas, whose first pixel has its centre at (0, 0); depths of the hands are comparable.
    normals: (K, V, 3) unit, camera axes.  faces: (K, F, 3).  colors: (K, 3) RGB in [0, 1].
    """
    image = background.copy()
    size = torch.tensor([image.shape[1], image.shape[0]])
    low = (points[..., :2].amin(dim=(0, 1)).floor() - 1).clamp(min=0).minimum(size).int().tolist()
    high = (points[..., :2].amax(dim=(0, 1)).ceil() + 2).clamp(min=0).minimum(size).int().tolist()
    if high[0] <= low[0] or high[1] <= low[1]:
        return image
    window = image[low[1]:high[1], low[0]:high[0]]
    local = points - points.new_tensor([*low, 0])
    layer = _shaded_layer(local, normals, faces, colors, height=window.shape[0], width=window.shape[1])
    color, alpha = layer[:3], layer[3:] * opacity                             # (3, h, w), (1, h, w)
    under = torch.from_numpy(window).permute(2, 0, 1) / 255
    blended = color * opacity + under * (1 - alpha)
    window[:] = (blended.permute(1, 2, 0) * 255).round().byte().numpy()
    return image


def side_view(hands: TwoHands, faces: Tensor, size: int) -> np.ndarray:
    """The hands on plain paper, seen from the right of the photograph and a little above, (size, size, 3) uint8.

    faces: (2, F, 3).
    """
    paper = np.full((size, size, 3), PAPER_COLOR, dtype=np.uint8)
    present = torch.from_numpy(hands.present)
    if not present.any():
        return paper
    rotated = torch.from_numpy(hands.vertices)[present] @ _side_axes().to(torch.float32).T
    low, high = rotated.amin(dim=(0, 1)), rotated.amax(dim=(0, 1))
    scale = 0.84 * size / (high - low)[:2].max()
    points = torch.cat([(rotated - (low + high) / 2)[..., :2] * scale + (size - 1) / 2, rotated[..., 2:]], dim=-1)
    return paint_hands(paper, points, vertex_normals(rotated, faces[present]), faces[present], _colors(present), 1.0)


def _colors(present: Tensor) -> Tensor:
    return torch.tensor(HAND_COLORS)[present]


def _side_axes() -> Tensor:
    """The viewer's right, down and forward (3, 3) in camera axes. A full quarter turn would hide one hand."""
    azimuth, elevation = np.deg2rad(SIDE_AZIMUTH_DEG), np.deg2rad(SIDE_ELEVATION_DEG)
    right = np.array([np.cos(azimuth), 0, np.sin(azimuth)])
    level = np.array([-np.sin(azimuth), 0, np.cos(azimuth)])
    forward = np.cos(elevation) * level + np.array([0, np.sin(elevation), 0])
    return torch.from_numpy(np.stack([right, np.cross(forward, right), forward]))


def _shaded_layer(points: Tensor, normals: Tensor, faces: Tensor, colors: Tensor, height: int, width: int) -> Tensor:
    """Premultiplied colour and coverage (4, height, width) of the hands, antialiased."""
    k = SUPERSAMPLING
    # The rasteriser wants positive depths; from afar its perspective is the parallel one of the canvas.
    depth = points[..., 2:] - points[..., 2:].amin() + FAR
    fine = torch.cat([k * (points[..., :2] + 0.5) - 0.5, depth], dim=-1).flatten(0, 1)                 # (KV, 3)
    joined = (faces + NUM_VERTICES * torch.arange(len(faces))[:, None, None]).flatten(0, 1)            # (KF, 3)
    seen = rasterize(fine[None], joined, height * k, width * k)

    covered = (seen.face[0] >= 0)[..., None]                                                           # (kh, kw, 1)
    normal = F.normalize(interpolate(normals.flatten(0, 1), joined, seen)[0], dim=-1)
    color = colors[seen.face[0].clamp(min=0) // faces.shape[1]]
    shaded = _shade(color, normal) * (1 - CONTOUR_DARKNESS * _contours(seen.depth[0]))[..., None]
    layer = torch.cat([shaded, torch.ones_like(covered)], dim=-1) * covered                            # (kh, kw, 4)
    return F.avg_pool2d(layer.permute(2, 0, 1)[None], k)[0]


def _shade(color: Tensor, normal: Tensor) -> Tensor:
    """Lit colour (H, W, 3) of surfaces with unit normals (H, W, 3); the inside of the open wrist is darker."""
    inside = normal[..., 2:] > 0
    normal = torch.where(inside, -normal, normal)
    to_light = F.normalize(normal.new_tensor(TO_LIGHT), dim=0)
    halfway = F.normalize(to_light + normal.new_tensor([0, 0, -1]), dim=0)
    diffuse = (normal @ to_light).clamp(min=0)[..., None]
    gloss = (normal @ halfway).clamp(min=0)[..., None] ** 40
    facing = -normal[..., 2:]
    lit = color * (0.42 + 0.62 * diffuse) * (0.72 + 0.28 * facing) + 0.10 * gloss
    return torch.where(inside, 0.45 * lit, lit).clamp(0, 1)


def _contours(depth: Tensor) -> Tensor:
    """1 where a surface (H, W) lies right behind a nearer one: the lines that tell crossing fingers apart.

    depth: (H, W), inf where empty.
    """
    nearest = -F.max_pool2d(-depth[None, None], 3, stride=1, padding=1)[0, 0]
    return (depth.isfinite() & (depth - nearest > CONTOUR_JUMP)).float()
