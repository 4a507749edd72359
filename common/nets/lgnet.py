"""LGNet: two hands from one RGB image in three stages. Start reading here: `LGNet.forward`, then `build_lgnet`.

Reference: Xue and Wang, "LGNet: Local-and-Global Feature Adaptive Network for Single Image Two-Hand
Reconstruction", and its supplement. Where the paper leaves a question open, the docstrings name the reading taken.

Legend: B batch · 2 the hand axis · 64 tokens of a hand (8×8 cells) · C channels · S side of the crop in pixels.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.geometry import HEATMAP_CELLS
from common.hands import Hand, joint_regressor
from common.mano.model import HandModel
from common.nets.attention import LGFA
from common.nets.gin import GraphStack, NeighbourSum, gin, grid_edges, mesh_edges
from common.nets.joint_head import HandSplit, HeatmapJoints, JointHead
from common.nets.layers import PerHand, TokenConv
from common.nets.lgblock import GlobalUnit, LGBlock, LocalUnit
from common.nets.mano_head import JointPose, ManoHead
from common.nets.refine import OffsetNet, RefineStage
from common.nets.resnet import ResNet
from common.types import Stages

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class LGNet(nn.Module):
    """Two hands from one image. The modules come built: see `build_lgnet`.

    refine: None leaves the coarse mesh as the result.  presence: None does not say which hands there are, as in the
    paper, where each image shows both.
    """

    def __init__(self, *, backbone: ResNet, split_hands: HandSplit, lgblock: nn.Module, joint_head: JointHead,
                 mano_head: ManoHead, refine: RefineStage | None, presence: nn.Module | None = None):
        super().__init__()
        self.normalize, self.backbone = Normalize(IMAGENET_MEAN, IMAGENET_STD), backbone
        self.split_hands, self.lgblock, self.joint_head = split_hands, lgblock, joint_head
        self.mano_head, self.refine, self.presence = mano_head, refine, presence

    def forward(self, image: Tensor) -> Stages:
        """All predictions for crops (B, 3, S, S), RGB in [0, 1]."""
        maps = self.backbone(self.normalize(image))
        hands = self.split_hands(maps.layer4)                                 # F_R, F_L    (B, 2, 64, C)
        adapted = self.lgblock(hands)                                         # F*_R, F*_L  (B, 2, 64, C + C/4)
        joint = self.joint_head(adapted, maps.layer4)

        mesh = self.mano_head(adapted, joint)
        presence = None if self.presence is None else self.presence(adapted)
        if self.refine is None:
            return Stages(mesh, None, joint, presence)

        refined = self.refine(mesh, joint, [image, maps.stem, maps.layer1], torch.cat([hands, adapted], dim=-1))
        return Stages(mesh, refined, joint, presence)


class Normalize(nn.Module):
    """(image − mean) / std for each channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.std


def attention_maps(model: LGNet, image: Tensor) -> dict[str, Tensor]:
    """What every LGFA of the model looks at for crops (B, 3, S, S), by the module's name (fig. 4).

    Each map is (B, 64, 129): output cells × [class token, 64 tokens of the first input, 64 of the second]. The maps
    are computed here, beside the fused attention of the forward pass, which never holds them.
    """
    maps: dict[str, Tensor] = {}

    def record(name: str) -> Callable[..., None]:
        return lambda lgfa, inputs, _: maps.update({name: lgfa.attention_map(*inputs)})

    handles = [module.register_forward_hook(record(name)) for name, module in model.named_modules()
               if isinstance(module, LGFA)]
    try:
        with torch.no_grad():
            model.lgblock(model.split_hands(model.backbone(model.normalize(image)).layer4))
    finally:
        for handle in handles:
            handle.remove()
    return maps


def build_lgnet(hand_model: HandModel, *, backbone: str = "resnet50", input_size: int = 256, channels: int = 512,
                depth_range: float = 0.4) -> LGNet:
    """The paper's network with random weights. `common.nets.variants` replaces parts of it.

    backbone: "resnet18", "resnet34" or "resnet50".  input_size: S, a multiple of 32.  channels: c of the paper, a
    multiple of 16.  depth_range: metres covered by the 8 depth cells of the 2.5D joints.
    """
    if input_size % 32 or input_size <= 0:
        raise UserError(f"model.input_size is {input_size}.", "It must be a positive multiple of 32, such as 256.")
    if channels % 16 or channels <= 0:
        raise UserError(f"model.channels is {channels}.", "It must be a positive multiple of 16, such as 512.")

    net, adapted = ResNet(backbone), channels + channels // 4
    neighbours = NeighbourSum(grid_edges(HEATMAP_CELLS), HEATMAP_CELLS ** 2)

    def graph() -> GraphStack:
        return GraphStack(channels, lambda: gin(channels, channels, channels, neighbours))

    return LGNet(
        backbone=net,
        split_hands=HandSplit(net.channels.layer4, channels),
        lgblock=LGBlock(LocalUnit(PerHand(graph), LGFA(channels)),
                        GlobalUnit(PerHand(lambda: LGFA(channels)), LGFA(channels)), channels),
        joint_head=JointHead(HeatmapJoints(adapted, input_size), PerHand(lambda: TokenConv(adapted, channels)),
                             input_size),
        mano_head=ManoHead(hand_model, PerHand(lambda: JointPose(channels)), channels=adapted, hidden=channels,
                           depth_range=depth_range),
        refine=RefineStage(build_offset_net(hand_model, net, channels, tied=True),
                           joint_regressor(hand_model.regressor)),
    )


def build_offset_net(hand_model: HandModel, backbone: ResNet, channels: int, *, tied: bool, more: int = 0) -> PerHand:
    """The refine stage's network of each hand.

    tied: one network serves both hands, the left one mirrored.  more: channels of further vertex features.
    """
    features = more + 3 + 3 + backbone.channels.stem + backbone.channels.layer1     # position, RGB, maps
    tokens = channels + channels + channels // 4                              # F_h and F*_h
    edges = mesh_edges(hand_model.faces[Hand.RIGHT])                          # the left hand has the same edges
    return PerHand(lambda: OffsetNet(features, tokens, edges), tied)
