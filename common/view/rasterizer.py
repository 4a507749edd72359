"""Which triangle each pixel sees: a batched z-buffer in plain torch, on the CPU and on CUDA.

Every triangle is cut into the exact run of pixels it covers in each image row; all runs are expanded at once and the
nearest triangle of each pixel wins a scatter of packed (depth, triangle) keys. The cost follows the number of covered
pixels, so many small triangles are as cheap as a few large ones.

Legend: B batch · V vertices · F faces · H, W image size · N triangles that can be seen · R rows of triangles ·
P covered pixels, counted once for each triangle. Pixel (0, 0) has its centre at (0, 0).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_EMPTY = torch.iinfo(torch.int64).max
_INDEX_BITS = 32


class Fragments(NamedTuple):
    """What each pixel sees."""

    face: Tensor            # (B, H, W) int64       index into the faces of its image, −1 where empty
    barycentric: Tensor     # (B, H, W, 3)          perspective-correct weights of the face's corners, 0 where empty
    depth: Tensor           # (B, H, W)             inf where empty


class _Triangles(NamedTuple):
    """Triangles in front of the camera, as affine functions on screen.

    The edges are in float64, so that neighbours agree on every pixel. The rest counts from the first corner: its
    numbers stay small and float32 is enough.
    """

    image: Tensor           # (N,)
    face: Tensor            # (N,)
    edges: Tensor           # (N, 3, 3)     (a, b, c) of a·x + b·y + c for the edge opposite each corner; ≥ 0 inside
    corner: Tensor          # (N, 2)        the first corner, pixels
    weights: Tensor         # (N, 3, 3)     slope in x, in y and value at the corner of barycentric weight / depth
    inverse_depth: Tensor   # (N, 4)        the same of 1/depth, their sum, and its largest value
    rows: Tensor            # (N, 2) int64  first and last image row


def rasterize(vertices_px: Tensor, faces: Tensor, height: int, width: int, facing: int = 0) -> Fragments:
    """The nearest face at every pixel centre; of faces at one depth the one with the lowest index.

    vertices_px: (B, V, 3) = x and y in pixels, depth in front of the camera (> 0 where visible).
    faces: (F, 3), or (B, F, 3) with other faces for each image. Both sides of a face are seen, unless `facing` is 1
    (outward sides only) or −1 (inward sides only). Faces with a corner at depth ≤ 0, or without area, are left out;
    the rest is clipped at the image.
    """
    batch = len(vertices_px)
    faces = faces.expand(batch, -1, -1)
    corners = _gather_corners(vertices_px.detach(), faces)                          # (B, F, 3, 3)
    triangles = _visible_triangles(corners, height, facing)
    keys = _nearest_keys(triangles, batch, height, width)
    fragments = _resolve(keys, triangles, (batch, height, width))
    return fragments._replace(barycentric=fragments.barycentric.to(vertices_px.dtype),
                              depth=fragments.depth.to(vertices_px.dtype))


def interpolate(attributes: Tensor, faces: Tensor, fragments: Fragments) -> Tensor:
    """Vertex attributes (B, V, C) or (V, C) at every pixel: (B, H, W, C), 0 where empty."""
    pixel, values = interpolate_covered(attributes.expand(len(fragments.face), -1, -1), faces, fragments)
    image = values.new_zeros(fragments.face.numel(), len(values))
    return image.index_put((pixel,), values.T).view(*fragments.face.shape, -1)


def interpolate_covered(attributes: Tensor, faces: Tensor, fragments: Fragments) -> tuple[Tensor, Tensor]:
    """The covered pixels (P,), counted through all images, and the vertex attributes (B, V, C) there: (C, P)."""
    batch, count, _ = attributes.shape
    pixel = torch.nonzero(fragments.face.flatten() >= 0).squeeze(-1)                # (P,)
    image = pixel // fragments.face[0].numel()
    face = fragments.face.flatten().index_select(0, pixel)
    faces = faces.expand(batch, -1, -1)
    corners = faces[image, face] if faces.stride(0) else faces[0].index_select(0, face)
    corners = (corners + image[:, None] * count).T.contiguous()                     # (3, P)
    weights = fragments.barycentric.flatten(0, 2).index_select(0, pixel).to(attributes.dtype).T.contiguous()

    # One attribute after the other: rows that lie together in memory are several times as fast.
    table = attributes.permute(2, 0, 1).flatten(1)                                  # (C, B·V)
    first, second, third = (weights[k] * table.index_select(1, corners[k]) for k in range(3))
    return pixel, first + second + third


def _gather_corners(vertices_px: Tensor, faces: Tensor) -> Tensor:
    batch, count = vertices_px.shape[:2]
    rows = faces + count * torch.arange(batch, device=faces.device)[:, None, None]
    return vertices_px.flatten(0, 1).index_select(0, rows.flatten()).view(*faces.shape, 3)


def _visible_triangles(corners: Tensor, height: int, facing: int) -> _Triangles:
    """The triangles of corners (B, F, 3, 3) that can cover a pixel centre."""
    # One coordinate of one corner after the other: reductions over three neighbours are many times as slow.
    x, y, depth = ([corners[..., corner, k] for corner in range(3)] for k in range(3))
    low, high = _least(y), _most(y)
    can_cover = (_least(depth) > 0) & (_sum(x) + _sum(y) + _sum(depth)).isfinite()
    can_cover &= (low.ceil() <= high.floor()) & (high >= 0) & (low <= height - 1)
    if facing:
        turn = (x[1] - x[0]) * (y[2] - y[0]) - (y[1] - y[0]) * (x[2] - x[0])
        can_cover &= turn * facing < 0                  # y points down: outward sides turn to the left
    image, face = torch.nonzero(can_cover, as_tuple=True)

    edges, area = _edge_functions(corners[image, face].double())
    has_area = area != 0
    image, face, edges, area = image[has_area], face[has_area], edges[has_area], area[has_area]
    rows = torch.stack([low[image, face].ceil(), high[image, face].floor()], dim=-1).clamp(0, height - 1).long()

    seen = corners[image, face]                                                     # (N, 3, 3)
    inverse_depth = seen[..., 2].double().reciprocal()
    weights = edges * (inverse_depth / area[:, None])[..., None]
    weights[..., 2] = 0
    weights[:, 0, 2] = inverse_depth[:, 0]
    weights = weights.float()
    of_depth = torch.cat([weights.sum(dim=1), inverse_depth.amax(dim=-1, keepdim=True).float()], dim=-1)
    return _Triangles(image, face, edges * area.sign()[:, None, None], seen[:, 0, :2].float(), weights, of_depth, rows)


def _sum(values: Sequence[Tensor]) -> Tensor:
    return values[0] + values[1] + values[2]


def _least(values: Sequence[Tensor]) -> Tensor:
    return torch.minimum(torch.minimum(values[0], values[1]), values[2])


def _most(values: Sequence[Tensor]) -> Tensor:
    return torch.maximum(torch.maximum(values[0], values[1]), values[2])


def _edge_functions(corners: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b, c) of the edge opposite each corner (N, 3, 3), and twice the signed area (N,).

    Divided by the area they are the barycentric weights on screen. Two faces that share an edge get exactly opposite
    numbers for it, so no pixel falls between them.
    """
    start, end = corners.roll(-1, dims=-2), corners.roll(-2, dims=-2)
    (x0, y0), (x1, y1) = start[..., :2].unbind(-1), end[..., :2].unbind(-1)
    edges = torch.stack([y0 - y1, x1 - x0, x0 * y1 - x1 * y0], dim=-1)
    return edges, edges[..., 2].sum(dim=-1)


def _nearest_keys(triangles: _Triangles, batch: int, height: int, width: int) -> Tensor:
    """The smallest packed (depth, triangle) of every pixel, (B·H·W,) int64.

    Triangles are in the order of their faces, so of equal depths the lower face wins.
    """
    owner, y = _expand(triangles.rows[:, 0], triangles.rows[:, 1])                  # (R,)
    first, last = _row_spans(triangles.edges.index_select(0, owner), y, width)
    row, x = _expand(first, last)                                                   # (P,)
    owner, y = owner.index_select(0, row), y.index_select(0, row)

    slope_x, slope_y, value, nearest = triangles.inverse_depth.index_select(0, owner).unbind(-1)
    corner_x, corner_y = triangles.corner.index_select(0, owner).unbind(-1)
    inverse_depth = (value + slope_x * (x - corner_x) + slope_y * (y - corner_y)).clamp(min=1e-9)
    inverse_depth = torch.minimum(inverse_depth, nearest)
    # The bits of positive floats sort like the floats.
    depth_bits = inverse_depth.reciprocal().view(torch.int32).long()
    packed = (depth_bits << _INDEX_BITS) | owner
    pixel = (triangles.image.index_select(0, owner) * height + y) * width + x
    keys = torch.full((batch * height * width,), _EMPTY, dtype=torch.int64, device=packed.device)
    return keys.scatter_reduce_(0, pixel, packed, reduce="amin")


def _row_spans(edges: Tensor, y: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """First and last column inside three edges (R, 3, 3) on row y (R,); last < first where none is."""
    slope, rest = edges[..., 0], edges[..., 1] * y[:, None] + edges[..., 2]
    crossing = rest / -slope                                                        # ±inf or nan where slope is 0
    starts = _most(torch.where(slope > 0, crossing, -torch.inf).unbind(-1))
    ends = _least(torch.where(slope < 0, crossing, torch.inf).unbind(-1))
    is_outside = _most(((slope == 0) & (rest < 0)).unbind(-1))
    first = starts.clamp(0, width).ceil().long()
    last = ends.clamp(-1, width - 1).floor().long()
    return first, torch.where(is_outside, first - 1, last)


def _expand(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """All integers of the ranges first..last (N,), and the range that each belongs to."""
    counts = (last - first + 1).clamp(min=0)
    owner = torch.repeat_interleave(counts)
    ends = counts.cumsum(dim=0)
    position = torch.arange(len(owner), device=first.device)
    return owner, position + (first - ends + counts).index_select(0, owner)


def _resolve(keys: Tensor, triangles: _Triangles, shape: tuple[int, int, int]) -> Fragments:
    """Fragments of `shape` = (B, H, W) from the winning keys."""
    pixel = torch.nonzero(keys != _EMPTY).squeeze(-1)                               # (P,)
    winner = keys[pixel] & ((1 << _INDEX_BITS) - 1)
    y, x = pixel // shape[2] % shape[1], pixel % shape[2]
    corner = triangles.corner.index_select(0, winner)
    slope_x, slope_y, value = triangles.weights.index_select(0, winner).unbind(-1)  # (P, 3)
    weights = value + slope_x * (x - corner[:, 0])[:, None] + slope_y * (y - corner[:, 1])[:, None]
    weights = weights.clamp(min=0)

    face = torch.full_like(keys, -1)
    face[pixel] = triangles.face[winner]
    barycentric = weights.new_zeros(len(keys), 3)
    barycentric[pixel] = weights / weights.sum(dim=-1, keepdim=True)
    depth = torch.full(keys.shape, torch.inf, device=keys.device)
    depth[pixel] = (keys[pixel] >> _INDEX_BITS).int().view(torch.float32)
    return Fragments(face.view(shape), barycentric.view(*shape, 3), depth.view(shape))
