"""Mesh stage: hand model parameters, camera and relative position from the joint stage.

Legend: B batch · 2 the hand axis · 64 tokens of a hand · 21 joints · C channels · D = C + C/4.
"""

import torch
from torch import Tensor, nn

from common.geometry import HEATMAP_CELLS, matrix_to_rot6d, rot6d_to_matrix
from common.hands import NUM_JOINTS, NUM_MODEL_JOINTS, NUM_SHAPE
from common.mano.model import HandModel, ManoLayer
from common.nets.attention import AttentionBlock
from common.nets.layers import PerHand
from common.types import HandPrediction, JointPrediction, ManoParams

POSE_CHANNELS = NUM_MODEL_JOINTS * 6
START_SCALE = 5.0       # half crops per metre: a crop about 0.4 m wide


class JointPose(nn.Module):
    """6-D pose (B, 96) of one hand: the self-joint transformer and one linear layer.

    Takes the hand's tokens F* (B, 64, D), not needed here, joint features (B, 21, C) and coordinates (B, 21, 3).
    outputs: 96, or more for what else is regressed from F_J*.
    """

    def __init__(self, channels: int, depth: int = 4, heads: int = 4, outputs: int = POSE_CHANNELS):
        super().__init__()
        self.position = nn.Parameter(torch.randn(NUM_JOINTS, channels) * 0.02)
        self.blocks = nn.ModuleList(AttentionBlock(channels, heads, prenorm=True) for _ in range(depth))
        self.to_pose = small_linear(NUM_JOINTS * (channels + 3), outputs)

    def forward(self, adapted: Tensor, features: Tensor, coordinates: Tensor) -> Tensor:
        tokens = features + self.position
        for block in self.blocks:
            tokens = block(tokens, tokens)                                    # F_J* (B, 21, C)
        return self.to_pose(torch.cat([tokens, coordinates], dim=-1).flatten(1))


class ManoHead(nn.Module):
    """M_r, the coarse mesh of both hands, with camera and relative position.

    pose: PerHand of JointPose.  channels: D.  hidden: C.  depth_range: as in `joints_to_cells`.
    """

    def __init__(self, model: HandModel, pose: PerHand, *, channels: int, hidden: int, depth_range: float):
        super().__init__()
        self.pose, self.depth_range = pose, depth_range
        self.shape: PerHand | None = PerHand(lambda: small_linear(channels, NUM_SHAPE))     # None: `pose` gives it too
        self.camera = PerHand(lambda: small_linear(channels, 3))
        self.relative = nn.Sequential(nn.Linear(2 * channels, hidden), nn.ReLU(), small_linear(hidden, 3))
        self.mano = ManoLayer(model)
        self.register_buffer("rest_rot6d", matrix_to_rot6d(_mean_rotations(model)), persistent=False)   # (2, 16, 6)

    def forward(self, adapted: Tensor, joint: JointPrediction) -> HandPrediction:
        """adapted: F* (B, 2, 64, D)."""
        pooled = adapted.mean(dim=2)                                          # (B, 2, D)
        coordinates = joint_coordinates(joint.joints_cells, self.depth_range)
        parameters = self.pose(adapted, joint.features, coordinates).float()
        rot6d = parameters[..., :POSE_CHANNELS].unflatten(-1, (NUM_MODEL_JOINTS, 6))
        shape = parameters[..., POSE_CHANNELS:] if self.shape is None else self.shape(pooled).float()
        params = ManoParams(rot6d_to_matrix(self.rest_rot6d + rot6d), shape)

        vertices, joints = self.mano.about_wrist(params)
        relative = self.relative(pooled.flatten(1)).float()
        return HandPrediction(vertices, joints, relative, params, self._camera(pooled))

    def _camera(self, pooled: Tensor) -> Tensor:
        """Weak perspective (B, 2, 3); the exponential keeps the scale positive."""
        raw = self.camera(pooled).float()
        return torch.cat([START_SCALE * raw[..., :1].exp(), raw[..., 1:]], dim=-1)


def joint_coordinates(joints_cells: Tensor, depth_range: float) -> Tensor:
    """Joints (B, 2, 21, 3) as x, y in [−1, 1] of the crop and z in decimetres, whatever range the cells cover."""
    centered = joints_cells / (HEATMAP_CELLS / 2) - 1
    return torch.cat([centered[..., :2], 10 * depth_range / 2 * centered[..., 2:]], dim=-1)


def small_linear(in_channels: int, out_channels: int) -> nn.Linear:
    """A last layer whose first outputs are close to zero: the rest pose, the mean shape, the starting camera."""
    linear = nn.Linear(in_channels, out_channels)
    nn.init.xavier_uniform_(linear.weight, gain=0.01)
    nn.init.zeros_(linear.bias)
    return linear


def _mean_rotations(model: HandModel) -> Tensor:
    """Rotations (2, 16, 3, 3) of the model's mean pose with an upright wrist."""
    from smplx.lbs import batch_rodrigues

    fingers = batch_rodrigues(model.mean_pose.reshape(-1, 3)).reshape(2, NUM_MODEL_JOINTS - 1, 3, 3)
    return torch.cat([torch.eye(3).expand(2, 1, 3, 3), fingers], dim=1)
