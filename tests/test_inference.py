"""The model prepared for inference: the numbers of the model that was trained, whatever was folded and packed."""

import copy
import os

import pytest
import torch
from tiny_lgnet import random_images, tiny_lgnet
from torch import nn

import common.predict.fast as acceleration
from common.errors import UserError
from common.predict.fast import Autocast, accelerated, can_compile, for_inference, use_free_cores
from common.predict.packed import PackedConv2d, PackedLinear, fold_batch_norms, pack_layers
from common.types import Stages

ARCHITECTURES = {
    "paper": (), "prenorm": ("lgfa_prenorm",), "chebyshev": ("graph_conv_cheb",), "mesh graph": ("local_graph_mesh63",),
    "two refine nets": ("refine_unshared",), "no stages": ("wo_joint_stage", "wo_mesh_stage", "wo_refine_stage"),
    "no block": ("wo_lgblock", "wo_lr_feature"), "linear unit": ("wo_local_unit", "wo_global_unit"),
}


def trained_like(model: nn.Module) -> nn.Module:
    """The model with normalisations as training leaves them: no mean is 0 and no scale is 1, and the sums of the
    residual blocks do not grow."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.3, 0.8)
            nn.init.normal_(module.bias, std=0.2)
    return model


def farthest(found: Stages, expected: Stages) -> float:
    """Metres by which the vertex that moved most has moved."""
    return (found.final.vertices.float() - expected.final.vertices).norm(dim=-1).max().item()


@pytest.mark.parametrize(("variants", "backbone"), [
    ((), "resnet50"), *((variants, "resnet18") for variants in ARCHITECTURES.values())])
@torch.no_grad()
def test_the_prepared_model_predicts_what_the_trained_one_does(hand_model, variants, backbone):
    model = trained_like(tiny_lgnet(hand_model, *variants, backbone=backbone))
    image = random_images(3)
    torch.testing.assert_close(for_inference(model, hand_model)(image), model(image), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_comparison_notices_a_normalisation_that_is_dropped(hand_model):
    model = trained_like(tiny_lgnet(hand_model))
    wrong = for_inference(model, hand_model)
    wrong.split_hands.projections[0][0].bias.zero_()
    with pytest.raises(AssertionError):
        torch.testing.assert_close(wrong(random_images(2)), model(random_images(2)), rtol=1e-5, atol=1e-5)


def test_nothing_is_left_to_fold_or_to_pack(hand_model):
    """But the normalisation of a sum, before the last graph convolution of the refine stage."""
    fast = for_inference(tiny_lgnet(hand_model), hand_model)
    kinds = {type(module) for module in fast.modules()}
    assert not kinds & {nn.BatchNorm2d, nn.Linear, nn.Conv2d}
    assert {PackedConv2d, PackedLinear} <= kinds
    norms = [name for name, module in fast.named_modules() if isinstance(module, nn.BatchNorm1d)]
    assert norms == ["refine.offset_net.nets.0.layers.4.norm"]


@torch.no_grad()
def test_the_trained_model_is_left_alone(hand_model):
    model = trained_like(tiny_lgnet(hand_model)).train()
    before = copy.deepcopy(model.state_dict())
    for_inference(model, hand_model, channels_last=True)(random_images(2))
    assert model.training
    assert list(model.state_dict()) == list(before)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0, check_stride=True)


@torch.no_grad()
def test_a_normalisation_without_a_layer_before_it_stays():
    model = trained_like(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 3), nn.BatchNorm1d(3))).eval()
    folded = copy.deepcopy(model)
    fold_batch_norms(folded)
    x = torch.randn(5, 4)
    assert [type(layer) for layer in folded] == [nn.ReLU, nn.BatchNorm1d, nn.Linear, nn.Identity]
    torch.testing.assert_close(folded(x), model(x))


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_packed_layers_take_any_strides_and_any_batch(bias):
    layers = nn.ModuleDict({"linear": nn.Linear(6, 5, bias=bias),
                            "conv": nn.Conv2d(6, 4, 3, stride=2, padding=1, bias=bias)})
    packed = copy.deepcopy(layers)
    pack_layers(packed, torch.float32)
    x, maps = torch.randn(3, 6, 7).transpose(1, 2), torch.randn(2, 6, 9, 9)
    torch.testing.assert_close(packed["linear"](x), layers["linear"](x))
    for image in (maps, maps[:1], maps[:, :, :8, :6], maps.to(memory_format=torch.channels_last)):
        torch.testing.assert_close(packed["conv"](image), layers["conv"](image))


@torch.no_grad()
def test_bfloat16_stays_within_a_millimetre(hand_model):
    model = trained_like(tiny_lgnet(hand_model))
    fast = for_inference(model, hand_model, precision="bfloat16")
    dtypes = set()
    for module in fast.modules():
        if isinstance(module, PackedLinear | PackedConv2d):
            module.register_forward_hook(lambda _module, _inputs, output: dtypes.add(output.dtype))
    moved = farthest(fast(random_images(4)), model(random_images(4)))
    assert dtypes == {torch.bfloat16}
    assert 0 < moved < 1e-3


@torch.no_grad()
def test_channels_last_changes_the_layout_and_not_the_numbers(hand_model):
    model = trained_like(tiny_lgnet(hand_model))
    laid_out = accelerated(copy.deepcopy(model), channels_last=True, compile_mode="")
    maps = laid_out.backbone(random_images(2)).layer1
    assert maps.is_contiguous(memory_format=torch.channels_last)
    assert not model.backbone(random_images(2)).layer1.is_contiguous(memory_format=torch.channels_last)
    assert farthest(laid_out(random_images(2)), model(random_images(2))) < 1e-5


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="torch.compile finds no C++ compiler")
@torch.inference_mode()
def test_a_compiled_model_predicts_the_same(hand_model):
    model = trained_like(tiny_lgnet(hand_model))
    fast = for_inference(model, hand_model, compile_mode="default")
    assert farthest(fast(random_images(2)), model(random_images(2))) < 1e-5


def test_compiling_without_a_compiler_is_told_in_a_sentence(hand_model, monkeypatch):
    monkeypatch.setattr(acceleration, "can_compile", lambda: False)
    with pytest.raises(UserError, match="needs a C\\+\\+ compiler"):
        for_inference(nn.Linear(2, 2), hand_model, compile_mode="default")


def test_autocast_ends_with_the_call():
    model = Autocast(nn.Linear(2, 2))
    assert model(torch.ones(1, 2)).dtype == torch.bfloat16
    assert model.model(torch.ones(1, 2)).dtype == torch.float32


@pytest.mark.parametrize(("load", "chosen", "threads"), [
    (0.2, None, 4), (1.4, None, 3), (3.0, None, 1), (9.0, None, 1), (9.0, "4", 4)])
def test_the_demo_leaves_cores_that_are_busy_to_others(monkeypatch, load, chosen, threads):
    used = []
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: used[-1] if used else 4)
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if chosen:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    use_free_cores()
    assert torch.get_num_threads() == threads
