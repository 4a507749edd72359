"""The backbone and where its weights come from."""

import builtins
import io
import logging
import urllib.error
from pathlib import Path
from typing import ClassVar

import pytest
import safetensors.torch
import torch

from common.errors import UserError
from common.files import ROOT
from common.nets.pretrained import load_pretrained
from common.nets.resnet import ResNet
from common.nets.torchvision_import import import_torchvision
from common.nets.zoo import build_model
from main.build import load_initial_weights
from main.config import load_config


def pretrained(name: str, source: str) -> ResNet:
    net = ResNet(name)
    load_pretrained(net, source)
    return net


@pytest.mark.parametrize(("name", "channels"), [("resnet18", (64, 64, 512)), ("resnet50", (64, 256, 2048))])
def test_feature_maps_have_the_strides_2_4_and_32(name: str, channels: tuple[int, int, int]):
    net = ResNet(name).eval()
    maps = net(torch.rand(1, 3, 64, 64))
    assert [tuple(feature.shape) for feature in maps] == [(1, channels[0], 32, 32), (1, channels[1], 16, 16),
                                                          (1, channels[2], 2, 2)]
    assert tuple(net.channels) == channels


def test_the_features_are_torchvisions():
    net, image = ResNet("resnet18").eval(), torch.rand(1, 3, 64, 64)
    theirs = import_torchvision().models.resnet18().eval()
    expected = dict(zip(theirs.state_dict(), net.state_dict().values(), strict=False))
    theirs.load_state_dict(expected, strict=False)
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
    torch.testing.assert_close(net(image).layer4, theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x)))))


def test_weights_come_from_a_file_and_the_log_says_so(tmp_path, caplog):
    torch.manual_seed(1)
    source = import_torchvision().models.resnet18()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    with caplog.at_level(logging.INFO):
        net = pretrained("resnet18", str(tmp_path / "weights.pth"))
    assert torch.equal(net.conv1.weight, source.conv1.weight)
    assert torch.equal(net.layer4[-1].bn2.running_var, source.layer4[-1].bn2.running_var)
    assert "weights.pth" in caplog.text


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_names_that_a_wrapper_left_are_accepted_with_a_note(tmp_path, caplog, prefix):
    """As DistributedDataParallel and torch.compile save them."""
    torch.manual_seed(1)
    source = import_torchvision().models.resnet18()
    torch.save({f"{prefix}{name}": value for name, value in source.state_dict().items()}, tmp_path / "weights.pth")
    with caplog.at_level(logging.INFO):
        net = pretrained("resnet18", str(tmp_path / "weights.pth"))
    assert torch.equal(net.conv1.weight, source.conv1.weight)
    assert torch.equal(net.layer4[-1].bn2.running_var, source.layer4[-1].bn2.running_var)
    assert all(f"begin with '{wrapper}.'" in caplog.text for wrapper in prefix.split(".")[:-1])


def test_names_of_which_only_some_begin_like_a_wrappers_are_left_as_they_are(tmp_path):
    state = import_torchvision().models.resnet18().state_dict()
    state["module.conv1.weight"] = state.pop("conv1.weight")
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="missing, unknown or of another shape"):
        pretrained("resnet18", str(tmp_path / "weights.pth"))


def test_building_a_backbone_says_nothing(caplog):
    with caplog.at_level(logging.DEBUG):
        ResNet("resnet18")
    assert caplog.records == []


def test_a_missing_file_of_weights_is_named():
    with pytest.raises(UserError, match="nowhere.pth"):
        pretrained("resnet18", "nowhere.pth")


@pytest.mark.parametrize("content", ["other network", "no dict", "empty dict", "rubbish", "code"])
def test_a_file_that_is_no_state_dict_of_the_network_is_refused(tmp_path, content: str):
    path = tmp_path / "weights.pth"
    if content == "rubbish":
        path.write_bytes(b"not a zip file")
    else:
        torch.save({
            "other network": import_torchvision().models.resnet34().state_dict(), "no dict": [1, 2], "empty dict": {},
            "code": {"run": print},
        }[content], path)
    with pytest.raises(UserError, match="weights.pth"):
        pretrained("resnet18", str(path))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    state = import_torchvision().models.resnet18().state_dict()
    state["layer1.0.conv1.weight"][0, 0] = value
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"not finite.*'layer1\.0\.conv1\.weight'"):
        pretrained("resnet18", str(tmp_path / "weights.pth"))


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Path:
    """Where torchvision's file of ResNet-18 belongs, in an empty folder and without a network."""
    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setattr("torch.hub.urlopen", offline)
    return tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"


def test_imagenet_weights_are_never_fetched_unasked_and_the_way_to_them_is_told(hub):
    with pytest.raises(UserError, match=rf"no file {hub}") as refusal:
        pretrained("resnet18", "imagenet")
    for remedy in ("model.pretrained=download", "https://download.pytorch.org/models/resnet18-f37072fd.pth",
                   "model.pretrained=FILE", "random weights"):
        assert remedy in refusal.value.hint
    assert not hub.exists()


@pytest.mark.parametrize("source", ["imagenet", "download"])
def test_imagenet_weights_are_read_where_torchvision_keeps_them(hub, source):
    hub.parent.mkdir(parents=True)
    kept = import_torchvision().models.resnet18()
    torch.save(kept.state_dict(), hub)
    torch.testing.assert_close(pretrained("resnet18", source).conv1.weight, kept.conv1.weight)


def test_a_download_that_fails_is_a_users_error(hub):
    with pytest.raises(UserError, match="could not be downloaded"):
        pretrained("resnet18", "download")
    assert not hub.exists()


def test_a_download_with_other_bytes_is_refused_and_not_kept(hub, monkeypatch):
    class Answer(io.BytesIO):
        headers: ClassVar = {}

        def info(self):
            return self

        def getheaders(self, _):
            return None

    monkeypatch.setattr("torch.hub.urlopen", lambda *_, **__: Answer(b"not these weights"))
    with pytest.raises(UserError, match="could not be downloaded.*hash"):
        pretrained("resnet18", "download")
    assert not hub.exists()


def test_only_the_known_import_failure_is_worked_around(monkeypatch):
    real_import = builtins.__import__

    def broken(name, *args, **kwargs):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::roi_align does not exist")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(RuntimeError, match="roi_align"):
        import_torchvision()


def stored_backbone(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a torchvision state dict, or of the backbone in a file of weights."""
    if path.suffix == ".pth":
        return torch.load(path, weights_only=True)
    tensors = safetensors.torch.load_file(path)
    return {name.removeprefix("backbone."): tensors[name] for name in tensors if name.startswith("backbone.")}


def test_the_shipped_backbone_is_what_small_yaml_starts_from(hand_model, caplog):
    config = load_config("small")
    shipped = stored_backbone(ROOT / config.model.pretrained)
    with caplog.at_level(logging.INFO):
        model = build_model(config.model, hand_model)
        load_initial_weights(model, config, hand_model)
    state = model.backbone.state_dict()
    assert state.keys() == shipped.keys()
    assert all(torch.equal(state[name], value.to(state[name].dtype)) for name, value in shipped.items())
    assert config.model.pretrained in caplog.text
