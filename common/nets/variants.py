"""Variants of LGNet, each named and each a replacement of a part or two: the paper's ablations (Table III) and other
readings of what it leaves open.

`apply_variants` puts them into a built network. The paper's own network is `common.nets.lgnet.build_lgnet`.
Legend: B batch · 2 the hand axis · 64 tokens of a hand (8×8 cells, row by row) · 21 joints · C channels · D = C + C/4.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from common.geometry import HEATMAP_CELLS
from common.hands import MANO21, MODEL16, NUM_JOINTS, NUM_SHAPE, Hand, joint_regressor
from common.mano.model import HandModel
from common.nets.attention import LGFA
from common.nets.gin import GraphStack, NeighbourSum, gin, grid_edges, mesh_edges
from common.nets.joint_head import HandSplit
from common.nets.layers import PerHand
from common.nets.lgnet import LGNet, build_offset_net
from common.nets.mano_head import POSE_CHANNELS, JointPose, joint_coordinates, small_linear
from common.nets.refine import RefineStage
from common.types import HandPrediction, JointPrediction

# A part of the network by the name of its module, and what takes its place.
Replacements = dict[str, nn.Module | None]


def apply_variants(net: LGNet, variants: Sequence[str], hand_model: HandModel, *, channels: int) -> LGNet:
    """The network with some of its parts replaced, in place.

    variants: names in `VARIANTS`.  channels: C of the network.
    Raises UserError for an unknown name and for two variants that replace the same part.
    """
    chosen: dict[str, str] = {}
    parts: Replacements = {}
    for name in variants:
        if name not in VARIANTS:
            raise UserError(f"model.variants names '{name}'.", f"It may name: {', '.join(VARIANTS)}.")
        replacements = VARIANTS[name](net, hand_model, channels)
        for part in replacements:
            if part in chosen:
                raise UserError(f"model.variants: '{chosen[part]}' and '{name}' both replace {part}.", "Choose one.")
            chosen[part] = name
        parts |= replacements
    # Parts of parts first: a variant of LGFA has no effect where the whole unit round it is replaced.
    for part in sorted(parts, key=lambda part: -part.count(".")):
        parent, _, child = part.rpartition(".")
        setattr(net.get_submodule(parent), child, parts[part])
    return net


# ---------------------------------------------------------------- joint stage

class PooledJoints(nn.Module):
    """2.5D joints (B, 2, 21, 3) in cells straight from GAP(F)."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.regress = PerHand(lambda: nn.Sequential(
            nn.Linear(in_channels, channels), nn.ReLU(), nn.Linear(channels, NUM_JOINTS * 3),
        ))

    def forward(self, adapted: Tensor, feature_map: Tensor) -> Tensor:
        """feature_map: F (B, C, H, W).  adapted: not needed here."""
        pooled = feature_map.mean(dim=(-2, -1))[:, None].expand(-1, 2, -1)    # (B, 2, C)
        offsets = self.regress(pooled).float().unflatten(-1, (NUM_JOINTS, 3))
        return HEATMAP_CELLS / 2 + offsets


# ---------------------------------------------------------------- LGBlock

class LinearUnit(nn.Module):
    """F_local (B, 64, C): both hands' tokens (B, 2, 64, C) through one linear layer."""

    def __init__(self, channels: int):
        super().__init__()
        self.mix = nn.Linear(2 * channels, channels)

    def forward(self, hands: Tensor) -> Tensor:
        return self.mix(hands.transpose(1, 2).flatten(-2))                    # (B, 64, 2C), right before left


class LocalOnly(nn.Module):
    """F_global is F_local (B, 64, C)."""

    def forward(self, hands: Tensor, local: Tensor) -> Tensor:
        return local


class Chebyshev(nn.Module):
    """Chebyshev convolution of order K = 2, eq. 2, on (B, N, C)."""

    def __init__(self, channels: int, edges: Tensor):
        super().__init__()
        from torch_geometric.nn import ChebConv  # imported here: nothing else needs it, and it is slow to import

        self.conv = ChebConv(channels, channels, K=2)
        self.register_buffer("edges", edges, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, self.edges)


class CoarseMesh(nn.Module):
    """Eq. 1: nodes of a coarse hand mesh and one global node, each concat(FC(F), d_i).

    Turns the hands' tokens (B, 2, N, C) into node features (B, 2, 1 + nodes, C). FC(F) is one vector for all nodes of a
    hand, from its mean token; d_i is the node's position, and zero for the global node 0.
    positions: (2, nodes, 3) in [−1, 1].
    """

    positions: Tensor

    def __init__(self, channels: int, positions: Tensor):
        super().__init__()
        self.register_buffer("positions", F.pad(positions, (0, 0, 1, 0)), persistent=False)   # (2, 1 + nodes, 3)
        self.shared = PerHand(lambda: nn.Linear(channels, channels - 3))

    def forward(self, hands: Tensor) -> Tensor:
        shared = self.shared(hands.mean(dim=2))                               # (B, 2, C − 3)
        shared = shared[:, :, None].expand(-1, -1, self.positions.shape[1], -1)
        positions = self.positions.to(shared.dtype).expand(len(hands), -1, -1, -1)
        return torch.cat([shared, positions], dim=-1)


def coarsen(vertices: Tensor, faces: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Which vertices (nodes,) stand for a mesh, and the coarse graph's edges (2, E) between 1 + nodes nodes.

    Farthest-point sampling, started at the vertex farthest from the centroid, picks the vertices. Two of them are
    neighbours if a mesh edge joins the sets of vertices nearest to each. Node 0 is global, a neighbour of all; node
    k + 1 is the k-th picked vertex.
    """
    picked = [int((vertices - vertices.mean(dim=0)).norm(dim=-1).argmax())]
    distance = (vertices - vertices[picked[0]]).norm(dim=-1)
    while len(picked) < nodes:
        picked.append(int(distance.argmax()))
        distance = torch.minimum(distance, (vertices - vertices[picked[-1]]).norm(dim=-1))
    owner = torch.cdist(vertices, vertices[picked]).argmin(dim=1)             # (V,)

    coarse = owner[mesh_edges(faces)]
    coarse = coarse[:, coarse[0] != coarse[1]].unique(dim=1) + 1
    spokes = torch.stack([torch.zeros(nodes, dtype=torch.int64), torch.arange(1, nodes + 1)])
    return torch.tensor(picked), torch.cat([coarse, spokes, spokes.flip(0)], dim=1)


# ---------------------------------------------------------------- mesh stage

class PooledPose(nn.Module):
    """6-D pose (B, 96) of one hand by two linear layers.

    Takes what `JointPose` takes: the hand's tokens (B, 64, D), of which it sees the mean, joint features, which it does
    not see, and joint coordinates (B, 21, 3).
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.to_hidden = nn.Linear(channels + NUM_JOINTS * 3, hidden)
        self.to_pose = small_linear(hidden, POSE_CHANNELS)

    def forward(self, adapted: Tensor, features: Tensor, coordinates: Tensor) -> Tensor:
        pooled = torch.cat([adapted.mean(dim=1), coordinates.flatten(1)], dim=-1)
        return self.to_pose(self.to_hidden(pooled).relu())


# ---------------------------------------------------------------- refine stage

class JointRefineStage(RefineStage):
    """A vertex also sees F_J and J of its hand's joints, mixed by the hand model's skinning weights.

    offset_net: with C + 3 more features than that of RefineStage.  weights: (2, 778, 16).  depth_range: as in
    `joints_to_cells`.
    """

    mix: Tensor

    def __init__(self, offset_net: PerHand, regressor: Tensor, weights: Tensor, depth_range: float):
        super().__init__(offset_net, regressor)
        self.depth_range = depth_range
        mix = weights.new_zeros(*weights.shape[:-1], NUM_JOINTS)              # (2, 778, 21); fingertips move nothing
        mix[..., [MANO21.index(name) for name in MODEL16.names]] = weights
        self.register_buffer("mix", mix, persistent=False)

    def vertex_features(self, mesh: HandPrediction, joint: JointPrediction) -> list[Tensor]:
        place = self.mirrored(joint_coordinates(joint.joints_cells, self.depth_range))        # (B, 2, 21, 3)
        of_joints = torch.cat([place, joint.features], dim=-1)
        return [*super().vertex_features(mesh, joint), self.mix.to(of_joints.dtype) @ of_joints]


# ---------------------------------------------------------------- which hands there are

class PresenceHead(nn.Module):
    """Logits (B, 2) that the image shows each hand, from the mean and the maximum of its tokens F* (B, 2, 64, D)."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.per_hand = PerHand(lambda: nn.Sequential(nn.Linear(2 * channels, hidden), nn.ReLU(), nn.Linear(hidden, 1)))

    def forward(self, adapted: Tensor) -> Tensor:
        pooled = torch.cat([adapted.mean(dim=2), adapted.amax(dim=2)], dim=-1)
        return self.per_hand(pooled)[..., 0].float()


# ---------------------------------------------------------------- all variants by name

def presence(net: LGNet, hand_model: HandModel, channels: int) -> Replacements:
    """Not in the paper: the network also says which of the two hands the image shows."""
    return {"presence": PresenceHead(channels + channels // 4, channels)}


def wo_lr_feature(net: LGNet, hand_model: HandModel, channels: int) -> Replacements:
    """Table III "w/o L/R feature": one shared feature instead of F_R and F_L."""
    return {"split_hands": HandSplit(net.backbone.channels.layer4, channels, shared=True)}


def wo_lgblock(net: LGNet, hand_model: HandModel, channels: int) -> Replacements:
    """Table III "w/o LGBlock": F* is F_h, projected to the same width."""
    return {"lgblock": PerHand(lambda: nn.Linear(channels, channels + channels // 4))}


def wo_local_unit(net: LGNet, hand_model: HandModel, channels: int) -> Replacements:
    """Table III "w/o Local unit": F_local is one linear layer of F_R and F_L."""
    return {"lgblock.local_unit": LinearUnit(channels)}


def wo_global_unit(net: LGNet, hand_model: HandModel, channels: int) -> Replacements:
    """Table III "w/o Global unit": F_local goes straight to the last layer of LGBlock."""
    return {"lgblock.global_unit": LocalOnly()}


def wo_joint_stage(net: LGNet, hand_model: HandModel, channels: int) -> Replacements:
    """Table III "w/o joint stage": fully connected layers regress the joints from GAP(F)."""
    return {"joint_head.locate": PooledJoints(net.backbone.channels.layer4, channels)}


def wo_mesh_stage(net: LGNet, hand_model: HandModel, channels: int) -> Replacements:
    """Table III "w/o mesh stage": fully connected layers regress the MANO parameters."""
    return {"mano_head.pose": PerHand(lambda: PooledPose(channels + channels // 4, channels)),
            "joint_head.describe": nn.Identity()}


def wo_refine_stage(net: LGNet, hand_model: HandModel, channels: int) -> Replacements:
    """Table III "w/o refine stage": the coarse mesh is the result."""
    return {"refine": None}


def refine_unshared(net: LGNet, hand_model: HandModel, channels: int) -> Replacements:
    """One refine network for each hand; the paper's single one may mean either."""
    return {"refine.offset_net": build_offset_net(hand_model, net.backbone, channels, tied=False)}


def shape_from_joints(net: LGNet, hand_model: HandModel, channels: int) -> Replacements:
    """Another reading of III-B: the shape, like the pose, from F_J* and not from GAP(F*)."""
    return {"mano_head.pose": PerHand(lambda: JointPose(channels, outputs=POSE_CHANNELS + NUM_SHAPE)),
            "mano_head.shape": None}


def refine_from_joints(net: LGNet, hand_model: HandModel, channels: int) -> Replacements:
    """The arrow of fig. 2 from J and F_J into the refine stage, of which the text says nothing."""
    offset_net = build_offset_net(hand_model, net.backbone, channels, tied=True, more=channels + 3)
    return {"refine": JointRefineStage(offset_net, joint_regressor(hand_model.regressor), hand_model.weights,
                                       net.mano_head.depth_range)}


def lgfa_prenorm(net: LGNet, hand_model: HandModel, channels: int) -> Replacements:
    """A stronger LGFA: LayerNorm, four heads, separate weights for its two steps."""
    def lgfa() -> LGFA:
        return LGFA(channels, prenorm=True)

    return {"lgblock.local_unit.lgfa": lgfa(), "lgblock.global_unit.adapt": PerHand(lgfa),
            "lgblock.global_unit.fuse": lgfa()}


def graph_conv_cheb(net: LGNet, hand_model: HandModel, channels: int) -> Replacements:
    """Another reading of the local unit: the Chebyshev convolution of eq. 2."""
    edges = grid_edges(HEATMAP_CELLS)
    return {"lgblock.local_unit.graph": PerHand(lambda: GraphStack(channels, lambda: Chebyshev(channels, edges)))}


def local_graph_none(net: LGNet, hand_model: HandModel, channels: int) -> Replacements:
    """Another reading of the local unit: no graph network, as in Algorithm 2 of the supplement."""
    return {"lgblock.local_unit.graph": nn.Identity()}


def local_graph_mesh63(net: LGNet, hand_model: HandModel, channels: int) -> Replacements:
    """Another reading of the local unit: the 63 coarse mesh vertices and one global node of eq. 1."""
    template = hand_model.template                                            # (2, 778, 3)
    picked, edges = coarsen(template[Hand.RIGHT], hand_model.faces[Hand.RIGHT], nodes=HEATMAP_CELLS ** 2 - 1)
    low, high = template.amin(dim=1, keepdim=True), template.amax(dim=1, keepdim=True)
    positions = (2 * template - low - high) / (high - low).amax(dim=-1, keepdim=True)
    neighbours = NeighbourSum(edges, HEATMAP_CELLS ** 2)
    stack = PerHand(lambda: GraphStack(channels, lambda: gin(channels, channels, channels, neighbours)))
    return {"lgblock.local_unit.graph": nn.Sequential(CoarseMesh(channels, positions[:, picked]), stack)}


VARIANTS: dict[str, Callable[[LGNet, HandModel, int], Replacements]] = {variant.__name__: variant for variant in (
    wo_lr_feature, wo_lgblock, wo_local_unit, wo_global_unit, wo_joint_stage, wo_mesh_stage, wo_refine_stage,
    refine_unshared, refine_from_joints, shape_from_joints, presence, lgfa_prenorm, graph_conv_cheb, local_graph_none,
    local_graph_mesh63,
)}
