"""LGFA against Algorithm 1, graph convolutions against dense formulas, and what the hands exchange."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.nn import GINConv

from common.hands import Hand
from common.nets.attention import LGFA, AttentionBlock
from common.nets.gin import GraphStack, NeighbourSum, gin, grid_edges, mesh_edges
from common.nets.layers import PerHand
from common.nets.lgblock import GlobalUnit, LGBlock, LocalUnit
from common.nets.variants import Chebyshev, LinearUnit, coarsen

C, N = 32, 64


def gin_conv() -> nn.Module:
    return gin(C, C, C, NeighbourSum(grid_edges(8), N))


def cheb_conv() -> nn.Module:
    return Chebyshev(C, grid_edges(8))


def tie_hands(module: nn.Module) -> nn.Module:
    """Give both nets of every PerHand the same weights."""
    for part in module.modules():
        if isinstance(part, PerHand):
            part.nets[Hand.LEFT].load_state_dict(part.nets[Hand.RIGHT].state_dict())
    return module


def forget_input_order(lgfa: LGFA) -> None:
    """Make the FCToken, the only place where the order of LGFA's two inputs matters, treat both alike."""
    half = lgfa.to_fc_token.weight.data[:, :C]
    lgfa.to_fc_token.weight.data = torch.cat([half, half], dim=1)


def tiny_lgblock() -> LGBlock:
    graph = PerHand(lambda: GraphStack(C, gin_conv))
    block = LGBlock(LocalUnit(graph, LGFA(C)), GlobalUnit(PerHand(lambda: LGFA(C)), LGFA(C)), C)
    return block.eval()


# ---------------------------------------------------------------- LGFA

def algorithm_1(lgfa: LGFA, right: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """The supplement's listing line by line, on one sample's c×8×8 maps."""
    block = lgfa.steps[0][0]
    c = right.shape[0]

    def linear(layer, x):
        return x @ layer.weight.T + layer.bias

    def mlp(x):
        hidden = linear(block.mlp[0], x)
        return linear(block.mlp[2], 0.5 * hidden * (1 + torch.erf(hidden / 2 ** 0.5)))

    t_f = linear(lgfa.to_fc_token, torch.cat([right, left]).reshape(2 * c, 64).T)                     # line 20
    right, left = right.reshape(c, 64), left.reshape(c, 64)                                           # 22, 23
    t = torch.cat([lgfa.class_token[0].T, right, left], dim=1).T                                      # 24
    q_sa, k_sa, v_sa = linear(block.to_q, t), linear(block.to_k, t), linear(block.to_v, t)            # 25
    a = torch.softmax(q_sa @ k_sa.T / c ** 0.5, dim=-1) @ v_sa + t                                    # 26
    t_s = mlp(a) + a                                                                                  # 27
    q, k, v = linear(block.to_q, t_f), linear(block.to_k, t_s), linear(block.to_v, t_s)               # 29–31
    a2 = torch.softmax(q @ k.T / c ** 0.5, dim=-1) @ v + t_f                                          # 32
    return (a2 + mlp(a2)).T.reshape(c, 8, 8)                                                          # 33


def test_lgfa_is_algorithm_1_of_the_supplement():
    torch.manual_seed(0)
    lgfa, maps = LGFA(C), torch.randn(2, 3, C, 8, 8)                                                  # two hands
    tokens = maps.flatten(-2).transpose(-1, -2)
    expected = torch.stack([algorithm_1(lgfa, maps[0, i], maps[1, i]) for i in range(3)])
    torch.testing.assert_close(lgfa(tokens[0], tokens[1]).transpose(1, 2).reshape(3, C, 8, 8), expected)


def test_the_printed_lgfa_shares_its_weights_and_the_stronger_one_does_not():
    def count(lgfa):
        return sum(parameter.numel() for parameter in lgfa.parameters())

    block = 3 * (C * C + C) + (4 * C * C + 4 * C) + (4 * C * C + C)
    tokens_only = 2 * C * C + C + C
    assert count(LGFA(C)) == tokens_only + block
    stronger = block + (C * C + C) + 4 * C          # projection and two LayerNorms
    assert count(LGFA(C, prenorm=True)) == tokens_only + 2 * stronger


@pytest.mark.parametrize("prenorm", [False, True])
def test_the_attention_map_is_what_the_fused_attention_used(prenorm: bool):
    """Values that only tell the tokens apart make the attended value the map itself."""
    torch.manual_seed(0)
    block = AttentionBlock(N, heads=1, prenorm=prenorm)
    queries, context = torch.randn(2, 8, N), torch.randn(2, N, N)
    block.to_v = nn.Module()
    block.to_v.forward = lambda _: torch.eye(N).expand(2, N, N)
    block.to_out, block.mlp = nn.Identity(), nn.Module()
    block.mlp.forward = torch.zeros_like
    torch.testing.assert_close(block(queries, context) - queries, block.attention_map(queries, context),
                               atol=1e-5, rtol=1e-4)


def test_the_stronger_lgfa_ignores_the_scale_of_its_context():
    torch.manual_seed(0)
    block = AttentionBlock(C, heads=4, prenorm=True)
    queries, context = torch.randn(2, 5, C), torch.randn(2, 9, C)
    torch.testing.assert_close(block(queries, context), block(queries, 100 * context), atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- graphs

def dense_adjacency(edges: torch.Tensor, nodes: int) -> torch.Tensor:
    adjacency = torch.zeros(nodes, nodes)
    adjacency[edges[1], edges[0]] = 1
    return adjacency


def test_the_grid_graph_links_every_cell_to_its_eight_neighbours():
    degree = grid_edges(8)[0].bincount().reshape(8, 8)
    assert degree[0].tolist() == [3, 5, 5, 5, 5, 5, 5, 3] and degree[3].tolist() == [5, 8, 8, 8, 8, 8, 8, 5]
    assert degree.sum() == 4 * 3 + 24 * 5 + 36 * 8
    assert {tuple(edge) for edge in grid_edges(2).T.tolist()} == {(a, b) for a in range(4) for b in range(4) if a != b}


def test_mesh_edges_are_listed_once_in_each_direction():
    square = torch.tensor([[0, 1, 2], [0, 2, 3]])
    expected = {(0, 1), (1, 2), (2, 0), (2, 3), (3, 0)}
    found = [tuple(edge) for edge in mesh_edges(square).T.tolist()]
    assert len(found) == 10 and set(found) == expected | {(b, a) for a, b in expected}


def test_one_graph_serves_both_hands(hand_model):
    right, left = (mesh_edges(faces) for faces in hand_model.faces)
    assert torch.equal(right, left)


@pytest.mark.parametrize("widths", [(12, 5, 7), (5, 12, 3)])
def test_gin_is_the_dense_formula_and_torch_geometrics_layer(widths: tuple[int, int, int], hand_model):
    torch.manual_seed(0)
    edges = mesh_edges(hand_model.faces[Hand.RIGHT])
    ours, x = gin(*widths, NeighbourSum(edges, 778)), torch.randn(3, 778, widths[0])
    torch.nn.init.normal_(ours.bias)
    first = nn.Linear(widths[0], widths[1])
    theirs = GINConv(nn.Sequential(first, nn.ReLU(), nn.Linear(widths[1], widths[2])))
    theirs.nn[0].weight.data, theirs.nn[0].bias.data = ours.project.weight.data, ours.bias.data
    theirs.nn[2].load_state_dict(ours.to_out.state_dict())

    result = ours(x)
    dense = theirs.nn((dense_adjacency(edges, 778) + torch.eye(778)) @ x)
    torch.testing.assert_close(result, dense, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result, theirs(x, edges), atol=1e-5, rtol=1e-5)


def test_the_gradient_of_the_neighbour_sum_is_right():
    summed = NeighbourSum(grid_edges(3), 9)
    torch.autograd.gradcheck(summed, torch.randn(2, 9, 4, dtype=torch.float64, requires_grad=True))


def test_the_chebyshev_stack_is_equation_2():
    torch.manual_seed(0)
    conv = Chebyshev(C, grid_edges(8))
    x = torch.randn(2, N, C)
    adjacency = dense_adjacency(grid_edges(8), N)
    scale = adjacency.sum(1).rsqrt()
    scaled_laplacian = -(scale[:, None] * adjacency * scale)        # L̂ = 2L/λ − I with L normalised and λ = 2
    first, second = (lin.weight for lin in conv.conv.lins)
    expected = x @ first.T + scaled_laplacian @ x @ second.T + conv.conv.bias
    torch.testing.assert_close(conv(x), expected, atol=1e-5, rtol=1e-5)


def test_the_coarse_mesh_is_connected_spread_out_and_has_one_global_node(hand_model):
    vertices, faces = hand_model.template[Hand.RIGHT], hand_model.faces[Hand.RIGHT]
    picked, edges = coarsen(vertices, faces, nodes=63)
    adjacency = dense_adjacency(edges, 64)
    assert len(set(picked.tolist())) == 63
    assert torch.equal(adjacency, adjacency.T) and not adjacency.diagonal().any()
    assert adjacency[0, 1:].all()
    mesh_only = adjacency[1:, 1:]
    assert (torch.linalg.matrix_power(mesh_only + torch.eye(63), 62) > 0).all()
    assert 3 < mesh_only.sum(1).mean() < 7
    spacing = torch.cdist(vertices[picked], vertices[picked]).fill_diagonal_(1).amin()
    assert torch.cdist(vertices, vertices[picked]).amin(1).max() <= spacing + 1e-6      # farthest-point sampling
    assert torch.equal(coarsen(vertices, faces, nodes=63)[1], edges)


# ---------------------------------------------------------------- the block

def test_swapping_the_hands_swaps_the_output_when_the_hands_weights_agree():
    """In the printed algorithm right comes before left in each FCToken; with equal halves nothing tells them apart."""
    torch.manual_seed(0)
    block = tie_hands(tiny_lgblock())
    forget_input_order(block.local_unit.lgfa)
    forget_input_order(block.global_unit.fuse)
    tokens = torch.randn(2, 2, N, C)
    torch.testing.assert_close(block(tokens.flip(1)), block(tokens).flip(1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("untie", ["per-hand weights", "order of the inputs"])
def test_swapping_the_hands_shows_when_anything_tells_them_apart(untie: str):
    torch.manual_seed(0)
    block = tiny_lgblock()
    if untie == "order of the inputs":
        tie_hands(block)
    else:
        forget_input_order(block.local_unit.lgfa)
        forget_input_order(block.global_unit.fuse)
    tokens = torch.randn(2, 2, N, C)
    assert not torch.allclose(block(tokens.flip(1)), block(tokens).flip(1), atol=1e-3)


@pytest.mark.parametrize("conv", [gin_conv, cheb_conv])
def test_tied_graph_stacks_treat_both_hands_alike(conv):
    torch.manual_seed(0)
    graph = tie_hands(PerHand(lambda: GraphStack(C, conv))).eval()
    tokens = torch.randn(2, 2, N, C)
    torch.testing.assert_close(graph(tokens.flip(1)), graph(tokens).flip(1))


def test_one_net_for_both_hands_does_what_two_equal_nets_do():
    torch.manual_seed(0)
    shared, separate = PerHand(lambda: LGFA(C), tied=True), PerHand(lambda: LGFA(C))
    for net in separate.nets:
        net.load_state_dict(shared.nets[0].state_dict())
    first, second = torch.randn(2, 3, 2, N, C)
    torch.testing.assert_close(shared(first, second), separate(first, second), atol=1e-5, rtol=1e-5)


def test_the_block_keeps_each_hands_own_tokens_and_appends_one_shared_part():
    tokens = torch.randn(2, 2, N, C)
    out = tiny_lgblock()(tokens)
    assert out.shape == (2, 2, N, C + C // 4)
    assert torch.equal(out[..., :C], tokens) and torch.equal(out[:, 0, :, C:], out[:, 1, :, C:])


def test_the_linear_unit_mixes_right_before_left():
    unit, tokens = LinearUnit(C), torch.randn(2, 2, N, C)
    expected = F.linear(torch.cat([tokens[:, 0], tokens[:, 1]], dim=-1), unit.mix.weight, unit.mix.bias)
    torch.testing.assert_close(unit(tokens), expected)
