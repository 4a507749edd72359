"""Irradiance at each vertex with soft shadows, independent of the view.

Each light direction has an orthographic shadow map. Ambient directions together give ambient occlusion, between fingers
and at contacts; lamps that are split into several directions give soft shadows.

Legend: B batch · D light directions · V vertices · N occluding vertices.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from common.view.rasterizer import rasterize
from data.synthetic.picture.appearance import LAMPS, RING, SKY, Lights

_MAP_SIZE = 80
_MAP_RADIUS = 0.21          # metres around the hands that a shadow map covers; everything beyond is lit
_FAR = 10.0                 # depth of the centre, metres: so large that perspective-correct depth is nearly linear
_BIAS, _SOFTNESS, _LIFT = 0.0024, 0.0028, 0.0018
_SKY_WRAP = 0.1             # wrap lighting: cosine below the horizon that ambient light still reaches


def visibility(points: Tensor, normals: Tensor, occluders: Tensor, faces: Tensor, directions: Tensor,
               center: Tensor) -> Tensor:
    """Share (B, D, V) of each light direction that reaches points (B, V, 3) with normals (B, V, 3).

    occluders: (B, N, 3) vertices of `faces`.  directions: (B, D, 3) towards the light.  center: (B, 3) of the maps.
    """
    batch, count = directions.shape[:2]
    scale = points.new_tensor([_MAP_SIZE / (2 * _MAP_RADIUS)] * 2 + [1.0])
    axes = _light_frames(directions) * scale[:, None]                               # (B, D, 3, 3)
    origin = points.new_tensor([_MAP_SIZE / 2 - 0.5] * 2 + [_FAR])
    # Back faces of closed meshes cast the same shadows as front faces, but none on the meshes' own lit sides, and they
    # keep the seam dark where two fingers touch.
    vertices = (occluders - center[:, None])[:, None] @ axes.transpose(-1, -2) + origin
    maps = rasterize(vertices.flatten(0, 1), faces, _MAP_SIZE, _MAP_SIZE, facing=-1).depth
    depth = torch.nn.functional.pad(maps, (1, 1, 1, 1), value=torch.inf).flatten(1)             # (B·D, texels)
    lifted = (points + _LIFT * normals - center[:, None]).transpose(-1, -2).contiguous()        # (B, 3, V)
    x, y, distance = ((axes[:, :, k] @ lifted + origin[k]).flatten(0, 1) for k in range(3))
    return _soft_compare(depth, x, y, distance).view(batch, count, -1)


def _light_frames(directions: Tensor) -> Tensor:
    """Rotations (B, D, 3, 3) into frames whose z axis points away from the light."""
    forward = -directions
    is_steep = forward[..., 1:2].abs() > 0.9
    helper = torch.where(is_steep, forward.new_tensor([1.0, 0.0, 0.0]), forward.new_tensor([0.0, 1.0, 0.0]))
    right = normalize(torch.linalg.cross(helper, forward), dim=-1)
    return torch.stack([right, torch.linalg.cross(forward, right), forward], dim=-2)


def _soft_compare(depth: Tensor, x: Tensor, y: Tensor, distance: Tensor) -> Tensor:
    """Percentage-closer filtering over the four texels around each point (N, V); maps have a border of one texel."""
    size = _MAP_SIZE + 2
    x, y = (x + 1).clamp(0, size - 1.001), (y + 1).clamp(0, size - 1.001)
    left, top = x.floor(), y.floor()
    u, v = x - left, y - top
    corner = top.long() * size + left.long()
    nearest = distance - _BIAS
    def lit(offset: int) -> Tensor:
        return (1 - (nearest - depth.gather(1, corner + offset)) / _SOFTNESS).clamp(0, 1)

    return torch.lerp(torch.lerp(lit(0), lit(1), u), torch.lerp(lit(size), lit(size + 1), u), v)


def arriving_light(normals: Tensor, visible: Tensor, lights: Lights) -> tuple[Tensor, Tensor]:
    """Ambient irradiance (B, V, 3) at normals (B, V, 3), and the visible share of each lamp (B, V, LAMPS)."""
    facing = normals @ lights.directions[:, :SKY].transpose(-1, -2)                 # (B, V, SKY)
    received = (facing + _SKY_WRAP).clamp(min=0) * visible[:, :SKY].transpose(-1, -2) / (1 + _SKY_WRAP)
    lamps = visible[:, SKY:].unflatten(1, (LAMPS, RING)).mean(dim=2).transpose(-1, -2)
    return received @ lights.sky, lamps
