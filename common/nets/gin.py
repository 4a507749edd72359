"""Graph convolutions on one fixed graph, and the graphs themselves.

Legend: B batch · N nodes · C channels · E directed edges.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.nets.layers import TokenBatchNorm


def grid_edges(side: int) -> Tensor:
    """Directed edges (2, E) between the 8-neighbours of a side × side grid, cells numbered row by row."""
    cells = torch.arange(side * side)
    rows, columns = cells // side, cells % side
    row_gap = (rows[:, None] - rows).abs()
    column_gap = (columns[:, None] - columns).abs()
    return (torch.maximum(row_gap, column_gap) == 1).nonzero().T.contiguous()


def mesh_edges(faces: Tensor) -> Tensor:
    """Directed edges (2, E), each once, of a triangle mesh (F, 3)."""
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return torch.cat([edges, edges.flip(1)]).unique(dim=0).T.contiguous()


class NeighbourSum(nn.Module):
    """x_i + Σ_{j∈N(i)} x_j for nodes (B, N, C).

    `embedding_bag` adds up listed rows of a table, on a CPU in a tenth of the time of a scatter-add over edges. Each of
    `edges` (2, E) must be there in both directions: then the sum is its own transpose, and the gradient is the same sum
    again, many times faster than the one that embedding_bag has and deterministic on a GPU.
    """

    rows: Tensor
    starts: Tensor

    def __init__(self, edges: Tensor, num_nodes: int):
        super().__init__()
        assert torch.equal(edges.unique(dim=1), edges.flip(0).unique(dim=1)), "an edge goes one way only"
        own = torch.arange(num_nodes)
        sources, targets = torch.cat([edges, own.expand(2, -1)], dim=1)
        starts = F.pad(targets.bincount().cumsum(0)[:-1], (1, 0))
        self.register_buffer("rows", sources[targets.argsort(stable=True)], persistent=False)
        self.register_buffer("starts", starts, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        graph = torch.arange(len(x), device=x.device)[:, None]
        rows = self.rows + graph * len(self.starts)                             # (B, N + E), of all graphs' nodes
        starts = self.starts + graph * len(self.rows)
        return _SymmetricSum.apply(x, rows.flatten(), starts.flatten())


class _SymmetricSum(torch.autograd.Function):
    """The sum of NeighbourSum, whose gradient is itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, starts: Tensor) -> Tensor:
        ctx.save_for_backward(rows, starts)
        return F.embedding_bag(rows, x.flatten(0, 1), starts, mode="sum").view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _SymmetricSum.apply(gradient, *ctx.saved_tensors), None, None


class GIN(nn.Module):
    """Graph isomorphism convolution, eq. 11: MLP(x_i + Σ_{j∈N(i)} x_j), MLP = Linear–ReLU–Linear, on (B, N, C).

    The same function as torch-geometric's GINConv. The MLP's first matrix, `project`, is applied before the sum, which
    gives the same numbers and sums over fewer channels.
    """

    def __init__(self, project: nn.Module, hidden: int, out_channels: int, sum_neighbours: NeighbourSum):
        super().__init__()
        self.project, self.sum_neighbours = project, sum_neighbours
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.to_out = nn.Linear(hidden, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.sum_neighbours(self.project(x))
        # In the precision of the sum: under autocast a float32 bias would make everything that follows float32.
        return self.to_out(F.relu(hidden + self.bias.to(hidden.dtype)))


def gin(in_channels: int, hidden: int, out_channels: int, sum_neighbours: NeighbourSum) -> GIN:
    """A GIN on plain node features (B, N, in_channels)."""
    return GIN(nn.Linear(in_channels, hidden, bias=False), hidden, out_channels, sum_neighbours)


class GraphConvBlock(nn.Sequential):
    """Graph convolution, BatchNorm over the features, ReLU: with GIN the GINConvBlock of the paper."""

    def __init__(self, conv: nn.Module, out_channels: int):
        super().__init__(conv, TokenBatchNorm(out_channels), nn.ReLU())


class GraphResBlock(nn.Module):
    """Two blocks and an identity connection: GINResBlock of the paper."""

    def __init__(self, first: GraphConvBlock, second: GraphConvBlock):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


class GraphStack(nn.Module):
    """Block, three residual blocks, block on one fixed graph (fig. 3): (B, N, C) → (B, N, C).

    conv: makes a graph convolution from C to C channels, in the paper `gin` (eq. 11).
    """

    def __init__(self, channels: int, conv: Callable[[], nn.Module]):
        super().__init__()

        def block() -> GraphConvBlock:
            return GraphConvBlock(conv(), channels)

        self.blocks = nn.Sequential(block(), *(GraphResBlock(block(), block()) for _ in range(3)), block())

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)
