"""Joint, mesh and refine stage, each alone."""

import os

import pytest
import torch
import torch.nn.functional as F
from forks import run_in_fork
from tiny_lgnet import random_images, tiny_lgnet

from common.geometry import cells_to_crop
from common.hands import MANO21, MODEL16, Hand, mirror_points
from common.mano.model import ManoLayer
from common.nets.joint_head import HeatmapJoints, JointHead
from common.nets.layers import PerHand, sample_map, sample_tokens
from common.nets.mano_head import joint_coordinates
from common.types import JointPrediction, ManoParams

C = 64


@pytest.fixture(scope="module")
def model(hand_model):
    return tiny_lgnet(hand_model)


def peaked(x: int, y: int, z: int) -> torch.Tensor:
    """Logits (512,) with all their weight on one cell."""
    logits = torch.zeros(8, 8, 8)                       # (y, x, z)
    logits[y, x, z] = 1000.0
    return logits.flatten()


# ---------------------------------------------------------------- joint stage

@pytest.mark.parametrize("size", [64, 128, 256])
def test_a_heatmap_peak_decodes_to_the_crop_pixel_at_its_cells_centre(size: int):
    joint = HeatmapJoints(C, size).soft_argmax(peaked(x=2, y=5, z=3))
    pixels_per_cell = size // 8
    covered = torch.arange(size).reshape(8, pixels_per_cell).float()     # crop pixels of each cell
    expected = torch.stack([covered[2].mean(), covered[5].mean()])
    torch.testing.assert_close(cells_to_crop(joint, size), expected)
    assert joint[2] == 3.5


def test_two_equal_peaks_decode_to_the_point_between_them():
    joint = HeatmapJoints(C, 256).soft_argmax(peaked(1, 1, 0) + peaked(3, 5, 7))
    torch.testing.assert_close(joint, torch.tensor([2.5 - 4 / 256, 3.5 - 4 / 256, 4.0]))


def test_the_heatmap_is_read_row_by_row():
    """A logit raised at one token pulls the joints to that token's column and row."""
    head = HeatmapJoints(C, 256)
    for net in head.to_logits.nets:
        torch.nn.init.constant_(net.weight, 1.0)
        torch.nn.init.zeros_(net.bias)
    tokens = torch.zeros(1, 2, 64, C)
    tokens[:, :, 8 * 6 + 1] = 10.0                      # row 6, column 1
    joints = head(tokens, feature_map=torch.empty(0))
    expected = torch.tensor([1.5 - 4 / 256, 6.5 - 4 / 256, 4.0])
    torch.testing.assert_close(joints, expected.expand(1, 2, 21, 3))


def test_half_precision_does_not_reach_the_soft_argmax():
    head, logits = HeatmapJoints(C, 256), torch.randn(3, 512)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head.soft_argmax(logits), head.soft_argmax(logits.float()))


def test_joint_features_are_those_under_the_joints_pixel():
    """The feature map's channels number its cells; a joint at a cell's centre reads that cell and nothing else."""
    class At(torch.nn.Module):
        def forward(self, adapted, feature_map):
            return HeatmapJoints(C, 256).soft_argmax(peaked(x=6, y=2, z=0)).expand(1, 2, 21, 3)

    head = JointHead(At(), PerHand(torch.nn.Identity), input_size=256)
    tokens = torch.eye(64).expand(1, 2, 64, 64)
    features = head(tokens, torch.empty(0)).features
    torch.testing.assert_close(features, F.one_hot(torch.tensor(8 * 2 + 6), 64).float().expand(1, 2, 21, 64))


def test_features_do_not_pull_joints_about(model):
    model.zero_grad()
    model.joint_head(torch.randn(1, 2, 64, 40), torch.empty(0)).features.sum().backward()
    assert all(parameter.grad is None for parameter in model.joint_head.locate.parameters())


def test_sampling_tokens_by_weights_is_bilinear_sampling_of_their_map():
    torch.manual_seed(0)
    tokens, points = torch.randn(3, 64, C), 2.6 * torch.rand(3, 50, 2) - 1.3      # some outside
    feature_map = tokens.transpose(1, 2).unflatten(-1, (8, 8))
    torch.testing.assert_close(sample_tokens(tokens, points), sample_map(feature_map, points), atol=1e-5, rtol=1e-5)


def test_sampling_an_image_at_a_pixel_reads_that_pixel():
    image = random_images(1, size=16)
    points_crop = torch.tensor([[[0.0, 0.0], [15.0, 3.0], [7.0, 9.0]]])
    points_grid = (2 * points_crop + 1) / 16 - 1
    expected = torch.stack([image[0, :, 0, 0], image[0, :, 3, 15], image[0, :, 9, 7]])
    torch.testing.assert_close(sample_map(image, points_grid), expected[None])


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_a_point_that_is_nowhere_writes_its_gradient_nowhere(broken):
    """In a process of its own: torch alone writes it outside of its memory, which may end the process."""
    def sample() -> int:
        points = torch.rand(2, 50, 2) * 2 - 1
        points[0, 7] = broken
        image = torch.rand(2, 8, 16, 16, requires_grad=True)
        for _ in range(20):
            sample_map(image, points.requires_grad_()).square().sum().backward()
        return 0 if image.grad.isfinite().all() else 3

    assert os.waitstatus_to_exitcode(run_in_fork(sample)) == 0


# ---------------------------------------------------------------- mesh stage

def test_an_untrained_network_starts_near_the_mean_hand(hand_model):
    head = tiny_lgnet(hand_model, "lgfa_prenorm").mano_head
    joint = JointPrediction(torch.full((2, 2, 21, 3), 4.0), torch.randn(2, 2, 21, 32))
    mesh = head(torch.randn(2, 2, 64, 40), joint)

    layer = ManoLayer(hand_model)
    neutral = layer(ManoParams(_mean_rotations_by_expm(hand_model), torch.zeros(1, 2, 10)))
    neutral = neutral - layer.joints(neutral)[:, :, :1]
    assert (mesh.vertices - neutral).norm(dim=-1).mean() < 0.01
    assert ((mesh.camera - torch.tensor([5.0, 0, 0])).abs() < 0.5).all()
    assert mesh.relative.abs().max() < 0.05 and mesh.mano.shape.abs().max() < 0.5


def test_the_camera_scale_is_positive_whatever_the_net_says(hand_model):
    head = tiny_lgnet(hand_model).mano_head
    for net, raw_scale in zip(head.camera.nets, (-3.0, 1.0), strict=True):
        torch.nn.init.constant_(net.bias, raw_scale)
        torch.nn.init.zeros_(net.weight)
    scale = head._camera(torch.randn(1, 2, 40))[0, :, 0]
    torch.testing.assert_close(scale, 5 * torch.tensor([-3.0, 1.0]).exp())


def _mean_rotations_by_expm(hand_model) -> torch.Tensor:
    x, y, z = hand_model.mean_pose.reshape(2, 15, 3).unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    return torch.cat([torch.eye(3).expand(2, 1, 3, 3), torch.linalg.matrix_exp(skew)], dim=1)[None]


def test_tied_pose_nets_treat_both_hands_alike(hand_model):
    pose = tiny_lgnet(hand_model).mano_head.pose
    pose.nets[Hand.LEFT].load_state_dict(pose.nets[Hand.RIGHT].state_dict())
    inputs = torch.randn(2, 2, 64, 40), torch.randn(2, 2, 21, 32), torch.randn(2, 2, 21, 3)
    torch.testing.assert_close(pose(*(each.flip(1) for each in inputs)), pose(*inputs).flip(1))


def test_depth_reaches_the_pose_in_the_same_unit_whatever_the_cells_cover():
    joints = torch.full((1, 2, 21, 3), 6.0)                 # half way from the centre to the far end
    assert joint_coordinates(joints, 0.4)[0, 0, 0].tolist() == pytest.approx([0.5, 0.5, 1.0])     # 0.4 m: 1 dm
    assert joint_coordinates(joints, 0.3)[0, 0, 0].tolist() == pytest.approx([0.5, 0.5, 0.75])


@pytest.mark.parametrize(("variants", "follows"), [((), "tokens"), (("shape_from_joints",), "joints")])
def test_the_shape_follows_the_features_that_its_reading_names(hand_model, variants, follows):
    head = tiny_lgnet(hand_model, *variants).mano_head
    torch.manual_seed(0)
    tokens = torch.randn(1, 2, 64, 40)
    joint = JointPrediction(torch.full((1, 2, 21, 3), 4.0), torch.randn(1, 2, 21, 32))
    mesh, other_tokens = head(tokens, joint), head(tokens + 1, joint)
    other_joints = head(tokens, joint._replace(features=-joint.features))
    same, moved = (other_joints, other_tokens) if follows == "tokens" else (other_tokens, other_joints)
    assert torch.equal(same.mano.shape, mesh.mano.shape)
    assert (moved.mano.shape - mesh.mano.shape).abs().min() > 0


# ---------------------------------------------------------------- refine stage

def refine_inputs(model, seed: int = 0):
    torch.manual_seed(seed)
    images = [random_images(2, seed), torch.randn(2, 64, 32, 32), torch.randn(2, 64, 16, 16)]
    tokens = torch.randn(2, 2, 64, 72)
    with torch.no_grad():
        mesh = model(random_images(2, seed)).mesh
    joint = JointPrediction(8 * torch.rand(2, 2, 21, 3), torch.randn(2, 2, 21, 32))
    return mesh._replace(camera=torch.tensor([5.0, 0.1, -0.2]) + 0.1 * torch.randn(2, 2, 3)), joint, images, tokens


def mirrored(mesh, joint, images, tokens):
    """The same scene in a mirror: pictures flipped, hands swapped."""
    turned = mesh._replace(vertices=mirror_points(mesh.vertices), joints=mirror_points(mesh.joints),
                           camera=(mesh.camera * torch.tensor([1.0, -1, 1])).flip(1))
    tokens = tokens.unflatten(2, (8, 8)).flip(1, 3).flatten(2, 3)
    place = torch.cat([8 - joint.joints_cells[..., :1], joint.joints_cells[..., 1:]], dim=-1)
    joint = JointPrediction(place.flip(1), joint.features.flip(1))
    return turned, joint, [image.flip(-1) for image in images], tokens


@pytest.mark.parametrize("variants", [(), ("refine_from_joints",)])
def test_the_shared_refine_net_commutes_with_the_mirror(hand_model, variants):
    model = tiny_lgnet(hand_model, *variants)
    inputs = refine_inputs(model)
    straight, turned = model.refine(*inputs), model.refine(*mirrored(*inputs))
    assert (straight.vertices - inputs[0].vertices).abs().max() > 1e-4
    torch.testing.assert_close(turned.vertices, mirror_points(straight.vertices), atol=1e-6, rtol=1e-5)


def test_separate_refine_nets_do_not_commute_with_the_mirror(hand_model):
    model = tiny_lgnet(hand_model, "refine_unshared")
    inputs = refine_inputs(model)
    straight, turned = model.refine(*inputs), model.refine(*mirrored(*inputs))
    assert (turned.vertices - mirror_points(straight.vertices)).abs().max() > 1e-4


def test_a_vertex_takes_the_joint_features_of_what_moves_it(hand_model):
    """Features that name their joint come out as the vertex's skinning weights."""
    refine = tiny_lgnet(hand_model, "refine_from_joints").refine
    mesh, joint, _, _ = refine_inputs(tiny_lgnet(hand_model))
    names = torch.eye(21).expand(2, 2, 21, 21)
    _, of_joints = refine.vertex_features(mesh, joint._replace(features=names))
    for hand in Hand:
        for vertex in (0, 317, 745):
            found = {MANO21.names[k]: value for k, value in enumerate(of_joints[1, hand, vertex, 3:].tolist()) if value}
            weights = {MODEL16.names[k]: value for k, value in enumerate(hand_model.weights[hand, vertex].tolist())
                       if value}
            assert found == pytest.approx(weights)


def test_offsets_leave_the_wrist_at_the_origin(model):
    inputs = refine_inputs(model)
    torch.testing.assert_close(model.refine(*inputs).joints[:, :, 0], inputs[0].joints[:, :, 0],
                               atol=1e-6, rtol=0)


def test_every_hidden_unit_before_the_offsets_sees_vertices_on_both_sides_of_zero(hand_model):
    """A unit that is off everywhere learns nothing any more, one that is on everywhere is on the way there: one step
    that moves all of its weights by the learning rate then moves all of its values to one side."""
    model = tiny_lgnet(hand_model).train()
    last = model.refine.offset_net.nets[0].layers[-1]
    active = []
    last.to_out.register_forward_pre_hook(lambda _, inputs: active.append((inputs[0] > 0).flatten(0, -2)))
    model.refine(*refine_inputs(model))
    share = active[-1].float().mean(dim=0)
    assert share.shape == (32,) and 0.05 < share.min() and share.max() < 0.95


def test_the_camera_gets_no_gradient_from_where_features_were_sampled(model):
    mesh, *inputs = refine_inputs(model)
    mesh = mesh._replace(camera=mesh.camera.requires_grad_())
    model.refine(mesh, *inputs).vertices.square().sum().backward()
    assert mesh.camera.grad is None
