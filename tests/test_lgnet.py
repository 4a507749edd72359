"""The whole network: shapes, invariants, every switch, sizes."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_lgnet import SIZE, TINY, random_camera, random_images, random_targets, tiny_lgnet

from common.errors import UserError
from common.losses import TwoHandLoss
from common.nets.lgnet import attention_maps, build_lgnet
from common.types import Stages
from main.config import CONFIG_DIR, ModelConfig, load_config

ABLATIONS = sorted((CONFIG_DIR / "ablation").glob("*.yaml"))
REWEIGHTED = ("wo_normal_loss", "wo_edge_loss", "wo_laplacian_loss")    # the full network, one weight 0


@pytest.fixture(scope="module")
def model(hand_model):
    return tiny_lgnet(hand_model)


def predict(model, images) -> Stages:
    with torch.no_grad():
        return model(images)


def tensors(stages: Stages) -> list[torch.Tensor]:
    return torch.utils._pytree.tree_leaves(stages)


@pytest.mark.parametrize("size", [32, 64, 128, 160])
def test_every_input_size_divisible_by_32_gives_the_documented_shapes(hand_model, size: int):
    stages = predict(tiny_lgnet(hand_model, input_size=size), random_images(2, size=size))
    for mesh in (stages.mesh, stages.final):
        assert mesh.vertices.shape == (2, 2, 778, 3) and mesh.joints.shape == (2, 2, 21, 3)
        assert mesh.relative.shape == (2, 3) and mesh.camera.shape == (2, 2, 3)
        assert mesh.mano.rotations.shape == (2, 2, 16, 3, 3) and mesh.mano.shape.shape == (2, 2, 10)
    assert stages.joint.joints_cells.shape == (2, 2, 21, 3)
    assert stages.joint.features.shape == (2, 2, 21, 32)


@pytest.mark.parametrize("change", [{"input_size": 100}, {"input_size": 0}, {"channels": 40}, {"channels": -16},
                                    {"lgfa_depth": 0}, {"lgfa_depth": 2}])
def test_a_size_that_cannot_work_is_refused_by_name(hand_model, change: dict):
    with pytest.raises(UserError, match=f"model.{next(iter(change))} is"):
        tiny_lgnet(hand_model, **change)


@pytest.mark.parametrize("image", [
    torch.zeros(1, 3, SIZE, SIZE), torch.ones(1, 3, SIZE, SIZE), random_images(1),
    torch.eye(SIZE).expand(1, 3, SIZE, SIZE), torch.zeros(1, 3, SIZE, SIZE).index_fill(3, torch.tensor([7]), 1.0),
], ids=["black", "white", "noise", "diagonal", "line"])
def test_any_image_gives_finite_hands_with_true_rotations_and_a_positive_scale(model, image):
    stages = predict(model, image)
    assert all(tensor.isfinite().all() for tensor in tensors(stages))
    rotations = stages.mesh.mano.rotations
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3).expand_as(rotations), atol=1e-5, rtol=0)
    assert (torch.linalg.det(rotations) > 0.99).all()
    assert (stages.mesh.camera[..., 0] > 0).all()


def test_meshes_are_relative_to_their_own_wrist(model):
    stages = predict(model, random_images(2))
    assert not torch.equal(stages.final.vertices, stages.mesh.vertices)
    for mesh in (stages.mesh, stages.final):
        torch.testing.assert_close(mesh.joints[:, :, 0], torch.zeros(2, 2, 3), atol=1e-6, rtol=0)


def test_joints_are_regressed_from_the_mesh_they_belong_to(model):
    stages = predict(model, random_images(2))
    for mesh in (stages.mesh, stages.final):
        tips = mesh.vertices[:, :, [745, 317, 444, 556, 673]]
        torch.testing.assert_close(mesh.joints[:, :, 4::4], tips, atol=1e-6, rtol=0)


def test_the_refine_stage_starts_silent(hand_model):
    config = dataclasses.replace(ModelConfig(), **TINY)
    untouched = build_lgnet(hand_model, depth_range=0.4, **dataclasses.asdict(config))
    stages = predict(untouched.train(), random_images(2))
    assert torch.equal(stages.final.vertices, stages.mesh.vertices)
    torch.testing.assert_close(stages.final.joints, stages.mesh.joints)


def test_permuting_the_batch_permutes_the_output(model):
    images, order = random_images(4), torch.tensor([2, 0, 3, 1])
    for straight, permuted in zip(tensors(predict(model, images)), tensors(predict(model, images[order])), strict=True):
        torch.testing.assert_close(permuted, straight[order], atol=1e-6, rtol=1e-6)


def test_a_sample_alone_gives_what_it_gives_in_a_batch(model):
    images = random_images(8)
    for alone, together in zip(tensors(predict(model, images[3:4])), tensors(predict(model, images)), strict=True):
        torch.testing.assert_close(alone, together[3:4], atol=1e-5, rtol=1e-5)


def test_a_broken_sample_does_not_reach_its_neighbours(model):
    images = random_images(3)
    broken = images.clone()
    broken[1] = torch.nan
    for clean, beside in zip(tensors(predict(model, images)), tensors(predict(model, broken)), strict=True):
        assert torch.equal(clean[[0, 2]], beside[[0, 2]])


def test_evaluation_repeats_itself_and_changes_no_state(model):
    images = random_images(2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = predict(model, images), predict(model, images)
    assert all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(second), strict=True))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bfloat16_autocast_stays_close_and_returns_float32(model):
    images = random_images(4)
    exact = predict(model, images)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = predict(model, images)
    assert all(tensor.dtype == torch.float32 for tensor in tensors(rounded) if tensor is not rounded.joint.features)
    assert (rounded.final.vertices - exact.final.vertices).abs().mean() < 2e-3      # metres


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_every_ablation_changes_one_thing(path: Path):
    full, ablated = load_config("lgnet.yaml"), load_config(path)
    changed = {field.name for section in ("model", "loss") for field in dataclasses.fields(getattr(full, section))
               if getattr(getattr(full, section), field.name) != getattr(getattr(ablated, section), field.name)}
    assert len(changed) == 1
    assert dataclasses.replace(ablated, model=full.model, loss=full.loss) == full


@pytest.mark.parametrize("path", [path for path in ABLATIONS if path.stem not in REWEIGHTED],
                         ids=lambda path: path.stem)
def test_every_ablation_trains_every_parameter(hand_model, path: Path):
    config = load_config(path, [f"model.{key}={value}" for key, value in TINY.items()])
    torch.manual_seed(0)
    model = build_lgnet(hand_model, depth_range=0.4, **dataclasses.asdict(config.model)).train()
    loss = TwoHandLoss(hand_model.faces, input_size=SIZE, depth_range=0.4, refine_stage=config.model.refine_stage,
                       **dataclasses.asdict(config.loss))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)

    for seed in (0, 1):     # in the second step the refine stage's last layer has left zero
        terms = loss(model(random_images(2, seed), random_camera(2, seed)), random_targets(hand_model, 2, seed))
        optimizer.zero_grad()
        terms["total"].backward()
        optimizer.step()

    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    # A parameter without a gradient hangs DistributedDataParallel, so it must be there even where it is zero.
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    silent = {name for name, gradient in gradients.items() if not gradient.any() and "to_k.bias" not in name}
    unsupervised = ("mano_head.camera", "mano_head.relative") if not config.loss.aux_losses else ()
    assert {name for name in silent if not name.startswith(unsupervised)} == set()


def test_switches_work_together(hand_model):
    bare = tiny_lgnet(hand_model, joint_stage=False, mesh_stage=False, refine_stage=False, separate_hands=False,
                      lgblock=False, normalize_input=False)
    stages = predict(bare, random_images(2))
    assert stages.final is stages.mesh and stages.mesh.vertices.isfinite().all()
    assert stages.joint.features.shape == (2, 2, 21, 0)

    units_off = tiny_lgnet(hand_model, local_unit=False, global_unit=False, backbone="resnet34", refine_shared=False)
    assert predict(units_off, random_images(2)).final.vertices.isfinite().all()

    deep = tiny_lgnet(hand_model, lgfa="prenorm", lgfa_depth=2, local_graph="mesh63", graph_conv="cheb")
    assert predict(deep, random_images(2)).final.vertices.isfinite().all()


def test_without_separate_features_both_hands_see_the_same(hand_model):
    shared = tiny_lgnet(hand_model, separate_hands=False)
    tokens = shared.split_hands(shared.backbone(random_images(1)).layer4)
    assert torch.equal(tokens[:, 0], tokens[:, 1])

    separate = tiny_lgnet(hand_model)
    tokens = separate.split_hands(separate.backbone(random_images(1)).layer4)
    assert not torch.equal(tokens[:, 0], tokens[:, 1])


def test_normalisation_happens_inside_the_model(hand_model):
    inside, outside = tiny_lgnet(hand_model), tiny_lgnet(hand_model, normalize_input=False)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (random_images(1) - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(predict(inside, random_images(1)).mesh, predict(outside, normalised).mesh)


def test_attention_maps_name_every_lgfa_and_leave_the_model_as_it_was(model, hand_model):
    images = random_images(2)
    before = predict(model, images)
    maps = attention_maps(model, images)
    assert len(maps) == 4
    for attention in maps.values():
        assert attention.shape == (2, 64, 129)
        torch.testing.assert_close(attention.sum(dim=-1), torch.ones(2, 64))
    assert torch.equal(predict(model, images).final.vertices, before.final.vertices)
    assert not any(module._forward_hooks for module in model.modules())
    assert len(attention_maps(tiny_lgnet(hand_model, global_unit=False), images)) == 1
    assert attention_maps(tiny_lgnet(hand_model, lgblock=False), images) == {}


@pytest.mark.parametrize(("name", "millions"), [("lgnet.yaml", 77.6), ("lgnet_light.yaml", 38.6)])
def test_the_paper_sizes_have_the_expected_number_of_parameters(hand_model, name: str, millions: float):
    model = build_lgnet(hand_model, depth_range=0.4, **dataclasses.asdict(load_config(name).model))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.05)
