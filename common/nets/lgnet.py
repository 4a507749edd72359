"""LGNet: two hands from one RGB image in three stages. Start reading here: `LGNet.forward`, then `build_lgnet`.

Reference: Xue and Wang, "LGNet: Local-and-Global Feature Adaptive Network for Single Image Two-Hand
Reconstruction", and its supplement. Where the paper leaves a question open, the docstrings name the reading taken.

Legend: B batch · 2 the hand axis · 64 tokens of a hand (8×8 cells) · C channels · S side of the crop in pixels.
"""

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.geometry import HEATMAP_CELLS
from common.hands import Hand, joint_regressor
from common.mano.model import HandModel
from common.nets.attention import LGFA
from common.nets.gin import CoarseMesh, GraphStack, coarsen, grid_edges, mesh_edges
from common.nets.joint_head import HandSplit, HeatmapJoints, JointHead, PooledJoints
from common.nets.layers import PerHand, TokenConv
from common.nets.lgblock import GlobalUnit, LGBlock, LinearUnit, LocalUnit
from common.nets.mano_head import JointPose, ManoHead, PooledPose
from common.nets.refine import OffsetNet, RefineStage
from common.nets.resnet import ResNet
from common.types import GroundTruthCamera, Stages

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class LGNet(nn.Module):
    """Two hands from one image. The modules come built: see `build_lgnet`.

    refine: None leaves the rough mesh as the result (an ablation of Table III).
    """

    def __init__(self, *, normalize: nn.Module, backbone: ResNet, split_hands: HandSplit, lgblock: nn.Module,
                 joint_head: JointHead, mano_head: ManoHead, refine: RefineStage | None):
        super().__init__()
        self.normalize, self.backbone = normalize, backbone
        self.split_hands, self.lgblock, self.joint_head = split_hands, lgblock, joint_head
        self.mano_head, self.refine = mano_head, refine

    def forward(self, image: Tensor, camera: GroundTruthCamera | None = None) -> Stages:
        """All predictions for crops (B, 3, S, S), RGB in [0, 1].

        camera: where the hands really are; read only with `refine_camera: ground_truth`.
        """
        maps = self.backbone(self.normalize(image))
        hands = self.split_hands(maps.layer4)                                 # F_R, F_L    (B, 2, 64, C)
        adapted = self.lgblock(hands)                                         # F*_R, F*_L  (B, 2, 64, C + C/4)
        joint = self.joint_head(adapted, maps.layer4)

        mesh = self.mano_head(adapted, joint)
        if self.refine is None:
            return Stages(joint, mesh, final=mesh)

        final = self.refine(mesh, [image, maps.stem, maps.layer1], torch.cat([hands, adapted], dim=-1), camera)
        return Stages(joint, mesh, final)


class Normalize(nn.Module):
    """(image − mean) / std for each channel."""

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

    def record(name: str):
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


def build_lgnet(
    hand_model: HandModel, *, depth_range: float, backbone: str, pretrained: str, input_size: int, channels: int,
    normalize_input: bool, joint_stage: bool, mesh_stage: bool, refine_stage: bool, separate_hands: bool,
    lgblock: bool, local_unit: bool, global_unit: bool, local_graph: str, graph_conv: str, lgfa: str, lgfa_depth: int,
    refine_shared: bool, refine_camera: str,
) -> LGNet:
    """An LGNet from its sizes and switches: the fields of `main.config.ModelConfig`.

    depth_range: metres covered by the 8 depth cells.
    """
    if input_size % 32 or input_size <= 0:
        raise UserError(f"model.input_size is {input_size}.", "It must be a positive multiple of 32, such as 256.")
    if channels % 16 or channels <= 0:
        raise UserError(f"model.channels is {channels}.", "It must be a positive multiple of 16, such as 512.")
    if lgfa_depth < 1 or (lgfa == "paper" and lgfa_depth > 1):
        raise UserError(f"model.lgfa_depth is {lgfa_depth} with model.lgfa={lgfa}.",
                        "It must be 1; with lgfa=prenorm it may be more.")

    net = ResNet(backbone, pretrained)
    adapted_channels = channels + channels // 4

    def build_lgfa() -> LGFA:
        return LGFA(channels, prenorm=lgfa == "prenorm", depth=lgfa_depth)

    def build_lgblock() -> nn.Module:
        if not lgblock:
            return PerHand(lambda: nn.Linear(channels, adapted_channels))
        graph = _build_graph(hand_model, local_graph, graph_conv, channels)
        local = LocalUnit(graph, build_lgfa()) if local_unit else LinearUnit(channels)
        return LGBlock(local, GlobalUnit(PerHand(build_lgfa), build_lgfa()) if global_unit else None, channels)

    def build_joint_head() -> JointHead:
        locate = (HeatmapJoints(adapted_channels, input_size) if joint_stage
                  else PooledJoints(net.channels.layer4, channels))
        describe = PerHand(lambda: TokenConv(adapted_channels, channels)) if mesh_stage else None
        return JointHead(locate, describe, input_size)

    def build_mano_head() -> ManoHead:
        pose = PerHand(lambda: JointPose(channels) if mesh_stage else PooledPose(adapted_channels, channels))
        return ManoHead(hand_model, pose, uses_joint_features=mesh_stage, channels=adapted_channels, hidden=channels,
                        depth_range=depth_range)

    def build_refine() -> RefineStage:
        feature_channels = 3 + 3 + net.channels.stem + net.channels.layer1      # position, RGB, maps
        token_channels = channels + adapted_channels
        edges = mesh_edges(hand_model.faces[Hand.RIGHT])    # the left hand has the same edges
        offset_net = PerHand(lambda: OffsetNet(feature_channels, token_channels, edges), tied=refine_shared)
        return RefineStage(offset_net, joint_regressor(hand_model.regressor), input_size, mirror_left=refine_shared,
                           use_true_camera=refine_camera == "ground_truth")

    return LGNet(
        normalize=Normalize(IMAGENET_MEAN, IMAGENET_STD) if normalize_input else nn.Identity(),
        backbone=net,
        split_hands=HandSplit(net.channels.layer4, channels, separate_hands),
        lgblock=build_lgblock(),
        joint_head=build_joint_head(),
        mano_head=build_mano_head(),
        refine=build_refine() if refine_stage else None,
    )


def _build_graph(hand_model: HandModel, kind: str, graph_conv: str, channels: int) -> nn.Module:
    """The local unit's graph network on (B, 2, 64, C). The paper's text, figure and listing each name another one."""
    num_nodes = HEATMAP_CELLS ** 2
    if kind == "none":
        return nn.Identity()
    if kind == "grid8":
        return PerHand(lambda: GraphStack(channels, grid_edges(HEATMAP_CELLS), num_nodes, graph_conv))

    template = hand_model.template                                            # (2, 778, 3)
    picked, edges = coarsen(template[Hand.RIGHT], hand_model.faces[Hand.RIGHT], nodes=num_nodes - 1)
    low, high = template.amin(dim=1, keepdim=True), template.amax(dim=1, keepdim=True)
    positions = (2 * template - low - high) / (high - low).amax(dim=-1, keepdim=True)
    return nn.Sequential(
        CoarseMesh(channels, positions[:, picked]), PerHand(lambda: GraphStack(channels, edges, num_nodes, graph_conv)),
    )
