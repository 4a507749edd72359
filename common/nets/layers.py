"""Small layers shared by the stages.

Legend: B batch · 2 the hand axis · N tokens or points · C channels · S side of the crop in pixels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PerHand(nn.Module):
    """Runs one sub-net on each hand of (B, 2, …): a single shared copy if tied, else two."""

    def __init__(self, build: Callable[[], nn.Module], tied: bool = False):
        super().__init__()
        self.tied = tied
        self.nets = nn.ModuleList([build() for _ in range(1 if tied else 2)])

    def forward(self, *inputs: Tensor) -> Tensor:
        """(B, 2, …) from inputs that all start with (B, 2)."""
        if self.tied:
            both = self.nets[0](*(x.flatten(0, 1) for x in inputs))
            return both.unflatten(0, inputs[0].shape[:2])
        return torch.stack([net(*(x[:, hand] for x in inputs)) for hand, net in enumerate(self.nets)], dim=1)


class TokenBatchNorm(nn.Module):
    """BatchNorm over the channels of (…, C), all other axes being samples."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


class TokenConv(nn.Sequential):
    """1×1 convolution, BatchNorm and ReLU on tokens (…, C)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(nn.Linear(in_channels, out_channels, bias=False), TokenBatchNorm(out_channels), nn.ReLU())


def sample_map(feature_map: Tensor, points_grid: Tensor) -> Tensor:
    """Bilinear samples (M, N, C) of maps (M, C, H, W) at points (M, N, 2) in `_grid`; outside, the border's value.

    Always in float32: half precision cannot tell neighbouring pixels of a grid apart.
    """
    with torch.autocast(points_grid.device.type, enabled=False):
        # The gradient at a point that is NaN is written anywhere in memory. What the point came from is NaN too, and
        # stops the training.
        points = points_grid.float().nan_to_num()[:, :, None]
        samples = F.grid_sample(feature_map.float(), points, padding_mode="border", align_corners=False)
    return samples.squeeze(-1).transpose(1, 2)


def sample_tokens(tokens: Tensor, points_grid: Tensor) -> Tensor:
    """`sample_map` of n² tokens (M, n², C) that are the cells of an n×n map, row by row: (M, N, C).

    For so few cells a matrix of bilinear weights is faster than a lookup. It is made in float32, and applied in the
    tokens' own precision.
    """
    side = round(tokens.shape[-2] ** 0.5)
    with torch.autocast(tokens.device.type, enabled=False):
        cells = torch.arange(side, device=tokens.device)
        position = ((points_grid.float() + 1) * side / 2 - 0.5).clamp(0, side - 1)   # (M, N, 2)
        x, y = (1 - (position[..., None] - cells).abs()).clamp(min=0).unbind(dim=-2)          # (M, N, n) each
        weights = (y[..., :, None] * x[..., None, :]).flatten(-2)                             # (M, N, n²)
        return weights.to(tokens.dtype) @ tokens
