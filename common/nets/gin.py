"""Graph convolutions on one fixed graph, and the graphs themselves.

Inside a graph network the nodes come first, (N, B, C): then a sum over neighbours adds whole rows.
Legend: B batch · N nodes · C channels · E directed edges.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import ChebConv

from common.nets.layers import PerHand, TokenBatchNorm


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
    """x_i + Σ_{j∈N(i)} x_j for nodes (N, B, C).

    `embedding_bag` adds up listed rows of a table, on a CPU in a tenth of the time of a scatter-add over edges. Each of
    `edges` (2, E) must be there in both directions: then the sum is its own transpose, and the gradient is the same sum
    again, many times faster than the one that embedding_bag has and deterministic on a GPU.
    """

    def __init__(self, edges: Tensor, num_nodes: int):
        super().__init__()
        assert torch.equal(edges.unique(dim=1), edges.flip(0).unique(dim=1)), "an edge goes one way only"
        own = torch.arange(num_nodes)
        sources, targets = torch.cat([edges, own.expand(2, -1)], dim=1)
        starts = F.pad(targets.bincount().cumsum(0)[:-1], (1, 0))
        self.register_buffer("rows", sources[targets.argsort(stable=True)], persistent=False)
        self.register_buffer("starts", starts, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return _SymmetricSum.apply(x, self.rows, self.starts)


class _SymmetricSum(torch.autograd.Function):
    """The sum of NeighbourSum, whose gradient is itself."""

    @staticmethod
    def forward(ctx, x: Tensor, rows: Tensor, starts: Tensor) -> Tensor:
        ctx.save_for_backward(rows, starts)
        return F.embedding_bag(rows, x.flatten(1), starts, mode="sum").view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _SymmetricSum.apply(gradient, *ctx.saved_tensors), None, None


class GIN(nn.Module):
    """Graph isomorphism convolution, eq. 11: MLP(x_i + Σ_{j∈N(i)} x_j), MLP = Linear–ReLU–Linear, on (N, B, C).

    The same function as torch-geometric's GINConv. The MLP's first matrix, `project`, is applied before the sum, which
    gives the same numbers and sums over fewer channels.
    """

    def __init__(self, project: nn.Module, hidden: int, out_channels: int, sum_neighbours: NeighbourSum):
        super().__init__()
        self.project, self.sum_neighbours = project, sum_neighbours
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.to_out = nn.Linear(hidden, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.sum_neighbours(self.project(x)) + self.bias
        return self.to_out(F.relu(hidden))


def gin(in_channels: int, hidden: int, out_channels: int, sum_neighbours: NeighbourSum) -> GIN:
    """A GIN on plain node features (N, B, in_channels)."""
    return GIN(nn.Linear(in_channels, hidden, bias=False), hidden, out_channels, sum_neighbours)


class Chebyshev(nn.Module):
    """Chebyshev convolution of order K = 2, eq. 2, on (N, B, C)."""

    def __init__(self, in_channels: int, out_channels: int, edges: Tensor):
        super().__init__()
        self.conv = ChebConv(in_channels, out_channels, K=2)
        self.register_buffer("edges", edges, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.transpose(0, 1), self.edges).transpose(0, 1)


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

    kind: "gin" (eq. 11) or "cheb" (eq. 2).
    """

    def __init__(self, channels: int, edges: Tensor, num_nodes: int, kind: str):
        super().__init__()
        sum_neighbours = NeighbourSum(edges, num_nodes)

        def block() -> GraphConvBlock:
            conv = (gin(channels, channels, channels, sum_neighbours) if kind == "gin"
                    else Chebyshev(channels, channels, edges))
            return GraphConvBlock(conv, channels)

        self.blocks = nn.Sequential(block(), *(GraphResBlock(block(), block()) for _ in range(3)), block())

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x.transpose(0, 1)).transpose(0, 1)


class CoarseMesh(nn.Module):
    """Eq. 1: nodes of a coarse hand mesh and one global node, each concat(FC(F), d_i).

    Turns the hands' tokens (B, 2, N, C) into node features (B, 2, 1 + nodes, C). FC(F) is one vector for all nodes of a
    hand, from its mean token; d_i is the node's position, and zero for the global node 0.
    positions: (2, nodes, 3) in [−1, 1].
    """

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
