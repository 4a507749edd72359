"""Attention: the block every transformer here is made of, and LGFA (Algorithm 1 of the supplement).

Legend: B batch · N tokens of a hand · M context tokens · C channels · h heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def fused_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q·kᵀ/√d)·v for q (B, h, N, d) and k, v (B, h, M, d).

    Always float32 on a CPU: there the fused kernel takes three to ten times as long in bfloat16.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float())


class AttentionBlock(nn.Module):
    """Queries (B, N, C) that looked at a context (B, M, C): attention and an MLP, each with a skip connection.

    prenorm: LayerNorm before attention and MLP and a projection after attention, as in ViT. Without it the block is
    lines 25–27 of Algorithm 1.
    """

    def __init__(self, channels: int, heads: int, prenorm: bool):
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(channels) if prenorm else nn.Identity()
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Linear(channels, channels) if prenorm else nn.Identity()
        self.norm_mlp = nn.LayerNorm(channels) if prenorm else nn.Identity()
        # Algorithm 1 lists two linear layers with nothing between them, which would collapse into one.
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        q, k = self._queries_keys(queries, context)
        v = self._split(self.to_v(self.norm_attention(context)))              # (B, h, M, C/h)
        seen = fused_attention(q, k, v)                                       # (B, h, N, C/h)
        attended = queries + self.to_out(seen.transpose(1, 2).flatten(-2))    # (B, N, C)
        return attended + self.mlp(self.norm_mlp(attended))

    def attention_map(self, queries: Tensor, context: Tensor) -> Tensor:
        """How much each query looks at each context token, (B, N, M), the mean over the heads."""
        q, k = self._queries_keys(queries, context)
        return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1).mean(dim=1)

    def _queries_keys(self, queries: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        return (self._split(self.to_q(self.norm_attention(queries))),
                self._split(self.to_k(self.norm_attention(context))))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)              # (B, h, N, C/h)


class LGFA(nn.Module):
    """Interaction features (B, N, C) of two token sets (B, N, C), Algorithm 1 of the supplement.

    The FCToken is a linear mix of the two sets, token by token. The SAToken is [class token, first, second] after
    self-attention. The FCToken then looks at the SAToken. The order of the two sets matters in the FCToken only.

    prenorm: false, the listing as printed: one head, no normalisation, the same weights in both steps. True: LayerNorm,
    four heads and separate weights.
    """

    def __init__(self, channels: int, prenorm: bool = False):
        super().__init__()
        self.to_fc_token = nn.Linear(2 * channels, channels)
        self.class_token = nn.Parameter(torch.randn(1, 1, channels) * 0.02)
        blocks = ([AttentionBlock(channels, heads=4, prenorm=True) for _ in range(2)] if prenorm
                  else [AttentionBlock(channels, heads=1, prenorm=False)])
        self.steps = nn.ModuleList(nn.ModuleList([block]) for block in blocks)     # named as in stored weights

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        fc_token, sa_token = self._tokens(first, second)
        return self._block(-1)(fc_token, sa_token)

    def attention_map(self, first: Tensor, second: Tensor) -> Tensor:
        """How much each output token attends to [class token, first, second] in the last step, (B, N, 1 + 2N)."""
        return self._block(-1).attention_map(*self._tokens(first, second))

    def _block(self, step: int) -> AttentionBlock:
        return next(iter(self.steps[step].children()))      # type: ignore[return-value]

    def _tokens(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        fc_token = self.to_fc_token(torch.cat([first, second], dim=-1))       # (B, N, C)
        class_token = self.class_token.expand(len(first), -1, -1)
        sa_token = torch.cat([class_token, first, second], dim=1)             # (B, 1 + 2N, C)
        return fc_token, self._block(0)(sa_token, sa_token)
