"""LGBlock: what the hands tell each other (fig. 3, Algorithm 2 of the supplement).

Legend: B batch · 2 the hand axis · 64 tokens of a hand (8×8 cells, row by row) · C channels.
"""

import torch
from torch import Tensor, nn

from common.hands import Hand
from common.nets.attention import LGFA
from common.nets.layers import PerHand


class LocalUnit(nn.Module):
    """F_local (B, 64, C) from both hands' tokens (B, 2, 64, C): a graph network per hand, then LGFA."""

    def __init__(self, graph: nn.Module, lgfa: LGFA):
        super().__init__()
        self.graph, self.lgfa = graph, lgfa

    def forward(self, hands: Tensor) -> Tensor:
        hands = self.graph(hands)
        return self.lgfa(hands[:, Hand.RIGHT], hands[:, Hand.LEFT])


class GlobalUnit(nn.Module):
    """F_global (B, 64, C): each hand adapts F_local to itself, and the two results are fused."""

    def __init__(self, adapt: PerHand, fuse: LGFA):
        super().__init__()
        self.adapt, self.fuse = adapt, fuse

    def forward(self, hands: Tensor, local: Tensor) -> Tensor:
        adapted = self.adapt(hands, local[:, None].expand_as(hands))          # I_R, I_L (B, 2, 64, C)
        return self.fuse(adapted[:, Hand.RIGHT], adapted[:, Hand.LEFT])


class LGBlock(nn.Module):
    """F* (B, 2, 64, C + C/4): each hand's own tokens and the interaction of both."""

    def __init__(self, local_unit: nn.Module, global_unit: nn.Module, channels: int):
        super().__init__()
        self.local_unit, self.global_unit = local_unit, global_unit
        self.reduce = nn.Linear(channels, channels // 4)

    def forward(self, hands: Tensor) -> Tensor:
        interaction = self.global_unit(hands, self.local_unit(hands))         # (B, 64, C)
        shared = self.reduce(interaction)[:, None].expand(-1, 2, -1, -1)      # (B, 2, 64, C/4)
        return torch.cat([hands, shared], dim=-1)
