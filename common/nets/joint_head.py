"""Joint stage: hand features, 2.5D joints and joint features.

Legend: B batch · 2 the hand axis · 64 tokens of a hand (8×8 cells, row by row) · C channels · D = C + C/4 ·
S side of the crop in pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.geometry import HEATMAP_CELLS, cells_to_crop, crop_to_grid
from common.hands import NUM_JOINTS
from common.nets.layers import PerHand, sample_tokens
from common.types import JointPrediction


class HandSplit(nn.Module):
    """F_R and F_L (B, 2, 64, C) from the backbone's map F: 1×1 convolution, BatchNorm, ReLU, position embedding.

    A map that is not 8×8, which is any input but 256 px, is first resized to 8×8 bilinearly, so that everything after
    it has the paper's shapes.
    shared: both hands get the same features.
    """

    def __init__(self, in_channels: int, channels: int, shared: bool = False):
        super().__init__()
        count = 1 if shared else 2
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
            for _ in range(count)
        )
        self.position = nn.Parameter(torch.randn(count, HEATMAP_CELLS ** 2, channels) * 0.02)

    def forward(self, feature_map: Tensor) -> Tensor:
        size = (HEATMAP_CELLS, HEATMAP_CELLS)
        if feature_map.shape[-2:] != size:
            feature_map = F.interpolate(feature_map, size, mode="bilinear", align_corners=False)
        hands = [projection(feature_map).flatten(-2).transpose(1, 2) for projection in self.projections]
        return (torch.stack(hands, dim=1) + self.position).expand(-1, 2, -1, -1)


class HeatmapJoints(nn.Module):
    """2.5D joints (B, 2, 21, 3) in cells: the mean of a heatmap over 8×8×8 cells.

    Cell (k, …) has its centre at crop pixel (k + 0.5)·S/8 − 0.5, which is k + 0.5 − 4/S in the unit of
    `joints_to_cells`; depth cells have no pixel centre, so z is k + 0.5.
    """

    centers: Tensor

    def __init__(self, channels: int, input_size: int):
        super().__init__()
        self.to_logits = PerHand(lambda: nn.Linear(channels, NUM_JOINTS * HEATMAP_CELLS))
        centers = torch.arange(HEATMAP_CELLS) + 0.5
        y, x, z = torch.meshgrid(centers - 4 / input_size, centers - 4 / input_size, centers, indexing="ij")
        self.register_buffer("centers", torch.stack([x, y, z], dim=-1).flatten(0, 2), persistent=False)   # (512, 3)

    def forward(self, adapted: Tensor, feature_map: Tensor) -> Tensor:
        """adapted: (B, 2, 64, D).  feature_map: F, not needed here."""
        logits = self.to_logits(adapted).unflatten(-1, (NUM_JOINTS, HEATMAP_CELLS))   # (B, 2, 64, 21, 8)
        return self.soft_argmax(logits.permute(0, 1, 3, 2, 4).flatten(-2))

    def soft_argmax(self, logits: Tensor) -> Tensor:
        """Joints (…, 3) in cells from logits (…, 512), cells numbered (y, x, z); always in float32."""
        with torch.autocast(logits.device.type, enabled=False):
            return logits.float().softmax(dim=-1) @ self.centers


class JointHead(nn.Module):
    """JointPrediction from F* (B, 2, 64, D) and F.

    locate: gives 2.5D joints from F* and F.  describe: makes the map that joint features are sampled from of F*.
    """

    def __init__(self, locate: nn.Module, describe: nn.Module, input_size: int):
        super().__init__()
        self.locate, self.describe, self.input_size = locate, describe, input_size

    def forward(self, adapted: Tensor, feature_map: Tensor) -> JointPrediction:
        joints_cells = self.locate(adapted, feature_map)
        # Features say what is at a joint; they must not pull the joint to where features are convenient.
        points = cells_to_crop(joints_cells.detach(), self.input_size)
        points = crop_to_grid(points, self.input_size)                        # (B, 2, 21, 2)
        features = sample_tokens(self.describe(adapted).flatten(0, 1), points.flatten(0, 1))
        return JointPrediction(joints_cells, features.unflatten(0, points.shape[:2]))
