"""The training losses: values by hand, gradients, masks, symmetry."""

import dataclasses
import math

import pytest
import torch
from tiny_lgnet import SIZE, random_targets

from common.geometry import HEATMAP_CELLS, inside_cells, joints_to_cells
from common.hands import joint_regressor, mirror_points, mirror_relative, mirror_rotations, mirror_vectors
from common.losses import LossConfig, SurfaceLoss, TwoHandLoss, masked_l1, masked_mean
from common.types import HandPrediction, JointPrediction, ManoParams, Stages, Targets

TERMS = {field.name for field in dataclasses.fields(LossConfig)} - {"aux_losses", "normal_edges"}
TETRAHEDRON = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
CORNERS = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])


def two_hand_loss(hand_model, **weights) -> TwoHandLoss:
    return TwoHandLoss(LossConfig(**weights), hand_model.faces, input_size=SIZE, depth_range=0.4)


def perfect(targets: Targets) -> Stages:
    """Predictions equal to the ground truth, as far as it says what they are."""
    mesh = HandPrediction(targets.vertices, targets.joints, targets.relative, targets.mano,
                          camera=torch.tensor([5.0, 0, 0]).expand(len(targets.wrist), 2, 3))
    cells = joints_to_cells(targets.joints_crop, targets.joints[..., 2], SIZE, 0.4)
    return Stages(mesh, mesh, JointPrediction(cells, cells), 1e4 * (2 * targets.present - 1))


def noisy(hand_model, targets: Targets, seed: int = 0) -> Stages:
    """Predictions somewhat off the ground truth, all of them leaves of the graph."""
    generator = torch.Generator().manual_seed(seed)
    regressor = joint_regressor(hand_model.regressor)

    def off(x, scale):
        return (x + scale * torch.randn(x.shape, generator=generator)).detach().requires_grad_()

    mesh, _, joint, _ = perfect(targets)
    camera, relative = off(mesh.camera, 0.1), off(mesh.relative, 0.02)
    mano = ManoParams(off(mesh.mano.rotations, 0.1), off(mesh.mano.shape, 0.5))
    rough, final = off(mesh.vertices, 0.01), off(mesh.vertices, 0.005)
    return Stages(HandPrediction(rough, regressor @ rough, relative, mano, camera),
                  HandPrediction(final, regressor @ final, relative, mano, camera),
                  JointPrediction(off(joint.joints_cells, 0.3), joint.features),
                  off(torch.zeros_like(targets.present), 1))


def leaves(stages: Stages) -> list[torch.Tensor]:
    return [stages.joint.joints_cells, stages.mesh.vertices, stages.final.vertices, stages.mesh.relative,
            *stages.mesh.mano, stages.mesh.camera, stages.presence]


# ---------------------------------------------------------------- values by hand

def test_a_masked_mean_counts_valid_entries_only():
    values = torch.tensor([[1.0, 3.0], [5.0, 7.0], [100.0, torch.nan]])
    assert masked_mean(values, torch.tensor([1, 1, 0])) == 4
    assert masked_mean(values, torch.zeros(3)) == 0
    assert masked_l1(torch.zeros(3, 2), values, torch.tensor([0, 1, 0])) == 6


def two_hands(vertices: torch.Tensor) -> torch.Tensor:
    return vertices.expand(1, 2, *vertices.shape)


def test_surface_terms_on_a_tetrahedron_have_the_values_worked_out_by_hand():
    surface = SurfaceLoss(TETRAHEDRON.expand(2, 4, 3), num_vertices=4, unit_edges=True)
    moved = CORNERS.clone()
    moved[3] = torch.tensor([0.0, 0, 2.0])                      # the top goes up by 1
    terms = surface(two_hands(moved), two_hands(CORNERS), torch.ones(1, 2))

    # Edges 0–3, 1–3, 2–3 grow from 1, √2, √2 to 2, √5, √5; each lies on two of the four faces.
    growth = 1 + 2 * (5 ** 0.5 - 2 ** 0.5)
    assert terms["edge"].item() == pytest.approx(2 * growth / 12, rel=1e-5)
    # Every other vertex is a neighbour: the top's offset of 1 is 1 for itself and 1/3 for each of the three others.
    assert terms["laplacian"].item() == pytest.approx((1 + 3 * (1 / 9)) / 4, rel=1e-5)
    # Only edges of the slanted face leave its plane x + y + z = 1: (−1, 0, 2) and (0, −1, 2), each 1/√(3·5) off.
    assert terms["normal"].item() == pytest.approx(2 * (1 / 15 ** 0.5) / 12, rel=1e-5)
    # As eq. 14 prints it, both rise 1/√3 out of the plane.
    printed = SurfaceLoss(TETRAHEDRON.expand(2, 4, 3), num_vertices=4)
    raw = printed(two_hands(moved), two_hands(CORNERS), torch.ones(1, 2))
    assert raw["normal"].item() == pytest.approx(2 * (1 / 3 ** 0.5) / 12, rel=1e-5)
    assert raw["edge"] == terms["edge"] and raw["laplacian"] == terms["laplacian"]


def test_the_printed_normal_loss_pulls_as_hard_as_the_mesh_loss_and_unit_edges_a_hundred_times_harder(hand_model):
    """Mean gradient on a vertex of a mesh with 5 mm of noise, at the printed weights of 1."""
    torch.manual_seed(0)
    target = random_targets(hand_model, 2).vertices
    vertices = (target + 0.005 * torch.randn_like(target)).requires_grad_()

    def pull(loss: torch.Tensor) -> float:
        return torch.autograd.grad(loss, vertices)[0].norm(dim=-1).mean().item()

    mesh = pull(masked_l1(vertices, target, torch.ones(2, 2)))
    raw, unit = (pull(SurfaceLoss(hand_model.faces, unit_edges=unit)(vertices, target, torch.ones(2, 2))["normal"])
                 for unit in (False, True))
    assert 1 < raw / mesh < 3 and 60 < unit / mesh < 200


def test_moving_a_mesh_rigidly_costs_nothing_in_edges_and_laplacian():
    surface = SurfaceLoss(TETRAHEDRON.expand(2, 4, 3), num_vertices=4)
    terms = surface(two_hands(CORNERS + torch.tensor([3.0, -1, 2])), two_hands(CORNERS), torch.ones(1, 2))
    assert all(term.abs() < 1e-6 for term in terms.values())


def test_mesh_and_joint_terms_are_metres_counted_on_rough_and_final_mesh(hand_model):
    targets = random_targets(hand_model, 2)
    stages = perfect(targets)
    shifted = stages.mesh._replace(vertices=targets.vertices + 0.01, joints=targets.joints + 0.02)
    loss = two_hand_loss(hand_model)
    terms = loss(stages._replace(mesh=shifted), targets)
    assert terms["mesh"].item() == pytest.approx(0.01, rel=1e-3)
    assert terms["joint"].item() == pytest.approx(0.02, rel=1e-3)
    assert loss(stages._replace(mesh=shifted, refined=shifted), targets)["mesh"].item() == pytest.approx(0.02, rel=1e-3)


def test_the_laplacian_term_sees_the_final_mesh_only(hand_model):
    targets = random_targets(hand_model, 1)
    stages, loss = perfect(targets), two_hand_loss(hand_model)
    bumpy = stages.mesh._replace(vertices=targets.vertices + 0.01 * torch.randn(1, 2, 778, 3))
    assert loss(stages._replace(mesh=bumpy), targets)["laplacian"] == 0
    assert loss(stages._replace(refined=bumpy), targets)["laplacian"] > 0


def test_without_a_refine_stage_the_rough_mesh_counts_once(hand_model):
    targets = random_targets(hand_model, 1)
    stages = noisy(hand_model, targets)
    loss = two_hand_loss(hand_model)
    single, double = (loss(stages._replace(refined=refined), targets) for refined in (None, stages.mesh))
    for name in ("mesh", "joint", "normal", "edge", "joint_projected"):
        torch.testing.assert_close(2 * single[name], double[name])
    for name in ("laplacian", "joint_25d", "relative", "pose", "shape"):
        torch.testing.assert_close(single[name], double[name])
    assert single["laplacian"] > 0


def test_stages_without_25d_joints_have_no_term_for_them(hand_model):
    targets = random_targets(hand_model, 1)
    stages, loss = noisy(hand_model, targets), two_hand_loss(hand_model)
    with_joints, without = loss(stages, targets), loss(stages._replace(joint=None), targets)
    assert with_joints.keys() - without.keys() == {"joint_25d"}
    torch.testing.assert_close(with_joints["total"] - with_joints["joint_25d"], without["total"])


def test_the_25d_term_is_in_half_volumes_and_leaves_out_joints_outside_the_volume(hand_model):
    targets = random_targets(hand_model, 1)
    targets.joints_crop[0, 0, 5] = torch.tensor([SIZE + 3.0, 10.0])
    stages = perfect(targets)
    off = stages.joint.joints_cells + 0.4
    off[0, 0, 5] = -100.0
    assert inside_cells(stages.joint.joints_cells).sum() == 41
    term = two_hand_loss(hand_model)(stages._replace(joint=JointPrediction(off, off)), targets)["joint_25d"]
    assert term.item() == pytest.approx(0.4 / (HEATMAP_CELLS / 2), rel=1e-4)


def test_the_projected_term_compares_the_weak_cameras_picture_with_the_annotated_pixels(hand_model):
    targets = random_targets(hand_model, 1)
    stages, loss = perfect(targets), two_hand_loss(hand_model)
    scale, move = 4.0, torch.tensor([0.2, -0.1])
    seen = ((scale * targets.joints[..., :2] + move + 1) * SIZE - 1) / 2          # `_grid` to crop pixels
    camera = torch.tensor([scale, *move]).expand(1, 2, 3)
    exact = stages.mesh._replace(camera=camera)
    targets = targets._replace(joints_crop=seen)
    assert loss(Stages(exact, exact), targets)["joint_projected"] < 1e-6
    moved = exact._replace(camera=camera + torch.tensor([0, 0.1, 0.1]))
    term = loss(Stages(moved, moved), targets)["joint_projected"]
    assert term.item() == pytest.approx(0.2, rel=1e-4)                            # on both meshes


def test_presence_is_the_entropy_worked_out_by_hand(hand_model):
    """Of logits 0 and log 3 for a hand that is there and one that is not, with a third that nobody knows of."""
    targets = random_targets(hand_model, 2)._replace(present=torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
                                                     present_valid=torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    stages = noisy(hand_model, targets)._replace(presence=torch.tensor([[0.0, math.log(3)], [9.0, 9.0]]))
    term = two_hand_loss(hand_model, presence=1.0)(stages, targets)["presence"]
    assert term.item() == pytest.approx((math.log(2) + math.log(4)) / 2, rel=1e-6)
    assert "presence" not in two_hand_loss(hand_model)(stages._replace(presence=None), targets)


# ---------------------------------------------------------------- invariants

def test_the_ground_truth_as_prediction_costs_nothing(hand_model):
    targets = random_targets(hand_model, 2)
    terms = two_hand_loss(hand_model)(perfect(targets), targets)
    assert set(terms) == TERMS | {"total"}
    for name in TERMS - {"joint_projected", "normal"}:      # a weak camera cannot repeat a perspective view
        assert terms[name] == 0, name
    assert terms["normal"] < 1e-5


def test_the_total_is_the_weighted_sum_of_the_terms(hand_model):
    targets = random_targets(hand_model, 1)
    stages = noisy(hand_model, targets)
    ones = two_hand_loss(hand_model, laplacian=1.0)(stages, targets)
    doubled = two_hand_loss(hand_model, laplacian=1.0, pose=2.0, edge=0.0)(stages, targets)
    torch.testing.assert_close(sum(ones[name] for name in TERMS), ones["total"])
    torch.testing.assert_close(doubled["pose"], 2 * ones["pose"])
    torch.testing.assert_close(doubled["total"], ones["total"] + ones["pose"] - ones["edge"])


def test_switching_the_auxiliary_losses_off_leaves_the_papers_five(hand_model):
    targets = random_targets(hand_model, 1)
    terms = two_hand_loss(hand_model, aux_losses=False)(noisy(hand_model, targets), targets)
    assert {name for name in TERMS if terms[name] > 0} == {"mesh", "joint", "normal", "edge", "laplacian"}


def test_mirroring_prediction_and_truth_changes_no_term(hand_model):
    targets = random_targets(hand_model, 2)
    stages = noisy(hand_model, targets)
    flip = torch.tensor([-1.0, 1.0])

    def mirror_mesh(mesh):
        mano = ManoParams(mirror_rotations(mesh.mano.rotations).flip(1), mesh.mano.shape.flip(1))
        return HandPrediction(mirror_points(mesh.vertices), mirror_points(mesh.joints), mirror_relative(mesh.relative),
                              mano, (mesh.camera * torch.tensor([1.0, -1, 1])).flip(1))

    def mirror_crop(points):
        return (points * flip + torch.tensor([SIZE - 1.0, 0])).flip(1)

    cells = stages.joint.joints_cells
    mirrored_cells = torch.cat([mirror_crop(cells[..., :2] * SIZE / 8) * 8 / SIZE, cells[..., 2:].flip(1)], dim=-1)
    mirrored = Stages(mirror_mesh(stages.mesh), mirror_mesh(stages.final), JointPrediction(mirrored_cells, cells),
                      stages.presence.flip(1))
    mirrored_targets = targets._replace(
        vertices=mirror_points(targets.vertices), joints=mirror_points(targets.joints),
        wrist=mirror_vectors(targets.wrist).flip(1), relative=mirror_relative(targets.relative),
        joints_crop=mirror_crop(targets.joints_crop), present=targets.present.flip(1),
        mano=ManoParams(mirror_rotations(targets.mano.rotations).flip(1), targets.mano.shape.flip(1)),
    )
    straight, turned = (two_hand_loss(hand_model)(*pair) for pair in ((stages, targets), (mirrored, mirrored_targets)))
    for name, term in straight.items():
        torch.testing.assert_close(turned[name], term, atol=1e-6, rtol=1e-4, msg=name)


def test_turning_prediction_and_truth_about_the_view_axis_changes_no_surface_term():
    torch.manual_seed(0)
    surface = SurfaceLoss(TETRAHEDRON.expand(2, 4, 3), num_vertices=4)
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, -0.7, 0], [0.7, 0, 0], [0, 0, 0]]))
    pred, target = torch.randn(2, 3, 2, 4, 3)
    straight = surface(pred, target, torch.ones(3, 2))
    turned = surface(pred @ turn.T, target @ turn.T, torch.ones(3, 2))
    for name in straight:
        torch.testing.assert_close(turned[name], straight[name])


def test_gradients_of_the_surface_terms_are_right():
    torch.manual_seed(0)
    surface = SurfaceLoss(TETRAHEDRON.expand(2, 4, 3), num_vertices=4)
    pred, target = torch.randn(2, 3, 2, 4, 3, dtype=torch.float64)
    valid = torch.tensor([[1, 1], [0, 1], [1, 0]])
    assert torch.autograd.gradcheck(lambda x: tuple(surface(x, target, valid).values()), pred.requires_grad_())


# ---------------------------------------------------------------- masks

MASKS = {"vertices_valid": ("vertices",), "joints_valid": ("joints", "joints_crop"), "relative_valid": ("relative",),
         "mano_valid": ("mano",), "present_valid": ("present",)}


def blanked(targets: Targets, mask: str, keep: torch.Tensor) -> Targets:
    """Targets whose entries with keep = 0 are NaN and masked."""
    def blank(x):
        return torch.where(keep.reshape(*keep.shape, *(1,) * (x.dim() - keep.dim())).bool(), x, torch.nan)

    def field(name):
        value = getattr(targets, name)
        return ManoParams(*map(blank, value)) if name == "mano" else blank(value)

    return targets._replace(**{mask: keep.float()}, **{name: field(name) for name in MASKS[mask]})


def test_a_batch_without_any_annotation_costs_exactly_nothing_and_moves_nothing(hand_model):
    targets = random_targets(hand_model, 2)
    stages = noisy(hand_model, targets)
    for mask in MASKS:
        targets = blanked(targets, mask, torch.zeros_like(getattr(targets, mask)))
    terms = two_hand_loss(hand_model)(stages, targets)
    terms["total"].backward()
    assert all(term == 0 for term in terms.values())
    assert all(torch.equal(leaf.grad, torch.zeros_like(leaf)) for leaf in leaves(stages))


@pytest.mark.parametrize("mask", MASKS)
def test_nan_under_a_mask_reaches_neither_loss_nor_gradient(hand_model, mask: str):
    targets = random_targets(hand_model, 3)
    keep = torch.ones_like(getattr(targets, mask))
    keep[1:] = 0
    stages = noisy(hand_model, targets)
    terms = two_hand_loss(hand_model)(stages, blanked(targets, mask, keep))
    terms["total"].backward()
    assert all(term.isfinite() for term in terms.values())
    assert all(leaf.grad.isfinite().all() for leaf in leaves(stages))


def test_masked_samples_change_nothing_for_the_others(hand_model):
    """A batch with one sample masked everywhere gives the loss of the batch without it."""
    targets = random_targets(hand_model, 3)
    stages = noisy(hand_model, targets)
    for other in MASKS:
        keep = torch.ones_like(getattr(targets, other))
        keep[2] = 0
        targets = blanked(targets, other, keep)
    without = torch.utils._pytree.tree_map(lambda x: x[:2], (stages, targets))
    masked, smaller = two_hand_loss(hand_model)(stages, targets), two_hand_loss(hand_model)(*without)
    for name, term in smaller.items():
        torch.testing.assert_close(masked[name], term, msg=name)


def test_joints_count_where_there_is_no_mesh(hand_model):
    targets = random_targets(hand_model, 2)
    stages = noisy(hand_model, targets)
    targets = blanked(targets, "vertices_valid", torch.zeros(2, 2))
    targets = blanked(targets, "mano_valid", torch.zeros(2, 2))
    terms = two_hand_loss(hand_model)(stages, targets)
    left = {"joint", "joint_25d", "joint_projected", "relative", "presence"}
    assert {name for name in TERMS if terms[name] > 0} == left
