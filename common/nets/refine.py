"""Refine stage: an offset for every vertex from the image features under it (fig. 5).

Legend: B batch · 2 the hand axis · 778 vertices · 64 tokens of a hand · C channels · S side of the crop in pixels.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.geometry import project_weak
from common.hands import NUM_VERTICES, WRIST, Hand, mirror_vectors
from common.nets.gin import GIN, GraphConvBlock, GraphResBlock, NeighbourSum, gin
from common.nets.layers import PerHand, TokenBatchNorm, sample_map, sample_tokens
from common.types import HandPrediction, JointPrediction


class VertexInputs(NamedTuple):
    """What the vertex features of one hand are made of."""

    features: Tensor    # (B, 778, C)  position and image features at the vertices
    tokens: Tensor      # (B, 64, D)   the hand's own maps, F_h and F*_h
    points: Tensor      # (B, 778, 2)  where the vertices lie in the image, `_grid`


class VertexProjection(nn.Module):
    """One matrix applied to all vertex features, (B, 778, hidden): concat(features, sample(tokens)).

    Sampling is linear, and there are fewer tokens than vertices, so the tokens go through the matrix before they are
    sampled.
    """

    def __init__(self, feature_channels: int, token_channels: int, hidden: int):
        super().__init__()
        self.from_features = nn.Linear(feature_channels, hidden, bias=False)
        self.from_tokens = nn.Linear(token_channels, hidden, bias=False)

    def forward(self, inputs: VertexInputs) -> Tensor:
        sampled = sample_tokens(self.from_tokens(inputs.tokens), inputs.points)
        return self.from_features(inputs.features) + sampled


class OffsetNet(nn.Module):
    """ΔM (B, 778, 3) of one hand from the fields of VertexInputs, by the Graph-CNN of fig. 3 with its own widths.

    GIN in–256–64, three residual blocks at 64, GIN 64–32–3; the last has neither BatchNorm nor ReLU behind it and
    starts at zero. A BatchNorm goes before it: sums of ReLUs over a vertex and its neighbours are all positive, and
    then a few large steps push every hidden unit of the last GIN below zero for good.
    """

    def __init__(self, feature_channels: int, token_channels: int, edges: Tensor):
        super().__init__()
        sum_neighbours = NeighbourSum(edges, NUM_VERTICES)

        def block() -> GraphConvBlock:
            return GraphConvBlock(gin(64, 64, 64, sum_neighbours), 64)

        first = GIN(VertexProjection(feature_channels, token_channels, 256), 256, 64, sum_neighbours)
        last = gin(64, 32, 3, sum_neighbours)
        nn.init.zeros_(last.to_out.weight)
        nn.init.zeros_(last.to_out.bias)
        residual = [GraphResBlock(block(), block()) for _ in range(3)]
        self.layers = nn.Sequential(GraphConvBlock(first, 64), *residual, TokenBatchNorm(64), last)

    def forward(self, features: Tensor, tokens: Tensor, points: Tensor) -> Tensor:
        return self.layers(VertexInputs(features, tokens, points))


class RefineStage(nn.Module):
    """M_f = M_r + ΔM.

    offset_net: PerHand of OffsetNet. When it is tied, the left hand is mirrored to a right one on the way in and its
    offset back on the way out.  regressor: (2, 21, 778), G of the paper.
    """

    regressor: Tensor

    def __init__(self, offset_net: PerHand, regressor: Tensor):
        super().__init__()
        self.offset_net = offset_net
        self.register_buffer("regressor", regressor, persistent=False)

    def forward(self, mesh: HandPrediction, joint: JointPrediction, image_maps: list[Tensor], tokens: Tensor
                ) -> HandPrediction:
        """image_maps: (B, C, H, W) each, seen by both hands.  tokens: (B, 2, 64, D), each hand's own."""
        # Detached: the gradient must not move vertices to where features are convenient.
        points = project_weak(mesh.vertices.detach(), mesh.camera.detach())   # (B, 2, 778, 2)
        sampled = [sample_map(image, points.flatten(1, 2)).unflatten(1, points.shape[1:3]) for image in image_maps]
        features = torch.cat([*self.vertex_features(mesh, joint), *sampled], dim=-1)          # (B, 2, 778, C)
        offset = self.mirrored(self.offset_net(features, tokens, points).float())

        with torch.autocast(offset.device.type, enabled=False):
            # Only the shape may change: the wrist stays the origin.
            offset = offset - (self.regressor @ offset)[:, :, WRIST, None]
            vertices = mesh.vertices + offset
            return mesh._replace(vertices=vertices, joints=self.regressor @ vertices)

    def vertex_features(self, mesh: HandPrediction, joint: JointPrediction) -> list[Tensor]:
        """What a vertex knows besides the image maps, (B, 2, 778, ·) each.  joint: not needed here."""
        return [self.mirrored(10 * mesh.vertices)]                            # decimetres: the scale of the features

    def mirrored(self, vectors: Tensor) -> Tensor:
        """Vectors (B, 2, N, 3) with the left hand's mirrored if one net serves both hands."""
        if not self.offset_net.tied:
            return vectors
        return torch.stack([vectors[:, Hand.RIGHT], mirror_vectors(vectors[:, Hand.LEFT])], dim=1)
