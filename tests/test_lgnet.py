"""The whole network: shapes, invariants, every switch, sizes."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_lgnet import SIZE, TINY, random_images, random_targets, tiny_lgnet

from common.errors import UserError
from common.nets.lgnet import attention_maps
from common.nets.variants import VARIANTS
from common.nets.zoo import ModelConfig, build_model
from common.types import Stages
from main.build import build_loss
from main.config import CONFIG_DIR, load_config

ABLATIONS = sorted((CONFIG_DIR / "ablation").glob("*.yaml"))
REWEIGHTED = ("wo_normal_loss", "wo_edge_loss", "wo_laplacian_loss", "normal_unit")   # the full network, another loss


@pytest.fixture(scope="module")
def model(hand_model):
    return tiny_lgnet(hand_model)


def predict(model, images) -> Stages:
    with torch.no_grad():
        return model(images)


def tensors(stages: Stages) -> list[torch.Tensor]:
    """All there are: without a head for it, nothing is said of presence."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(stages) if leaf is not None]


@pytest.mark.parametrize("size", [32, 64, 128, 160])
def test_every_input_size_divisible_by_32_gives_the_documented_shapes(hand_model, size: int):
    stages = predict(tiny_lgnet(hand_model, input_size=size), random_images(2, size=size))
    for mesh in (stages.mesh, stages.final):
        assert mesh.vertices.shape == (2, 2, 778, 3) and mesh.joints.shape == (2, 2, 21, 3)
        assert mesh.relative.shape == (2, 3) and mesh.camera.shape == (2, 2, 3)
        assert mesh.mano.rotations.shape == (2, 2, 16, 3, 3) and mesh.mano.shape.shape == (2, 2, 10)
    assert stages.joint.joints_cells.shape == (2, 2, 21, 3)
    assert stages.joint.features.shape == (2, 2, 21, 32)


@pytest.mark.parametrize("change", [{"input_size": 100}, {"input_size": 0}, {"channels": 40}, {"channels": -16}])
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
    stages = predict(build_model(ModelConfig(**TINY), hand_model).train(), random_images(2))
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
    model = build_model(config.model, hand_model).train()
    loss = build_loss(config, hand_model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)

    for seed in (0, 1):     # in the second step the refine stage's last layer has left zero
        terms = loss(model(random_images(2, seed)), random_targets(hand_model, 2, seed))
        optimizer.zero_grad()
        terms["total"].backward()
        optimizer.step()

    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    # A parameter without a gradient hangs DistributedDataParallel, so it must be there even where it is zero.
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    silent = {name for name, gradient in gradients.items() if not gradient.any() and "to_k.bias" not in name}
    unsupervised = ("mano_head.camera", "mano_head.relative") if not config.loss.aux_losses else ()
    assert {name for name in silent if not name.startswith(unsupervised)} == set()


def test_variants_work_together(hand_model):
    bare = tiny_lgnet(hand_model, "wo_joint_stage", "wo_mesh_stage", "wo_refine_stage", "wo_lr_feature", "wo_lgblock")
    stages = predict(bare, random_images(2))
    assert stages.refined is None and stages.final is stages.mesh and stages.mesh.vertices.isfinite().all()

    units_off = tiny_lgnet(hand_model, "wo_local_unit", "wo_global_unit", "refine_unshared", backbone="resnet34")
    assert predict(units_off, random_images(2)).final.vertices.isfinite().all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_works_beside_the_normalised_lgfa_and_replaces_what_it_names(hand_model, variant: str):
    """In either order: the shipped network's LGFA is a variant itself."""
    if variant == "lgfa_prenorm":
        return
    first, second = (tiny_lgnet(hand_model, *names, seed=1)
                     for names in (("lgfa_prenorm", variant), (variant, "lgfa_prenorm")))
    assert first.state_dict().keys() == second.state_dict().keys()
    assert predict(first, random_images(1)).final.vertices.isfinite().all()
    plain = tiny_lgnet(hand_model, "lgfa_prenorm")
    shapes = [{name: value.shape for name, value in net.state_dict().items()} for net in (plain, first)]
    assert shapes[0] != shapes[1]


@pytest.mark.parametrize(("variants", "message"), [
    (("wo_everything",), "model.variants names 'wo_everything'.*wo_lgblock"),
    (("local_graph_none", "graph_conv_cheb"), "'local_graph_none' and 'graph_conv_cheb' both replace"),
])
def test_variants_that_cannot_be_are_refused(hand_model, variants: tuple[str, ...], message: str):
    with pytest.raises(UserError, match=message):
        tiny_lgnet(hand_model, *variants)


def test_without_separate_features_both_hands_see_the_same(hand_model):
    shared = tiny_lgnet(hand_model, "wo_lr_feature")
    tokens = shared.split_hands(shared.backbone(random_images(1)).layer4)
    assert torch.equal(tokens[:, 0], tokens[:, 1])

    separate = tiny_lgnet(hand_model)
    tokens = separate.split_hands(separate.backbone(random_images(1)).layer4)
    assert not torch.equal(tokens[:, 0], tokens[:, 1])


def test_normalisation_happens_inside_the_model(hand_model):
    inside, outside = tiny_lgnet(hand_model), tiny_lgnet(hand_model)
    outside.normalize = torch.nn.Identity()
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
    assert len(attention_maps(tiny_lgnet(hand_model, "wo_global_unit"), images)) == 1
    assert attention_maps(tiny_lgnet(hand_model, "wo_lgblock"), images) == {}


@pytest.mark.parametrize(("name", "millions"), [("lgnet.yaml", 77.6), ("lgnet_light.yaml", 38.6)])
def test_the_paper_sizes_have_the_expected_number_of_parameters(hand_model, name: str, millions: float):
    model = build_model(load_config(name).model, hand_model)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.05)
