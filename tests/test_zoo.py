"""A stranger's network: a function in MODELS passes training, test and demo untouched."""

import json

import pytest
import torch
from torch import Tensor, nn

from common.errors import UserError
from common.geometry import rot6d_to_matrix
from common.mano.model import HandModel, ManoLayer
from common.nets import zoo
from common.nets.zoo import MODELS, ModelConfig, build_model
from common.predict.predictor import TwoHandPredictor
from common.types import HandPrediction, ManoParams, Stages


class Stranger(nn.Module):
    """Parameters, camera and relative position by one layer from a small picture: no backbone, no 2.5D joints, no
    refine stage."""

    def __init__(self, hand_model: HandModel):
        super().__init__()
        self.mano = ManoLayer(hand_model)
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.regress = nn.Linear(48, 2 * (16 * 6 + 10 + 3) + 3)

    def forward(self, image: Tensor) -> Stages:
        hands, relative = self.regress(self.pool(image).flatten(1)).split([218, 3], dim=-1)
        rot6d, shape, camera = hands.unflatten(-1, (2, 109)).split([96, 10, 3], dim=-1)
        rest = torch.eye(3)[:, :2].T.flatten().to(image)
        params = ManoParams(rot6d_to_matrix(rest + 0.1 * rot6d.unflatten(-1, (16, 6))), shape)
        vertices, joints = self.mano.about_wrist(params)
        return Stages(HandPrediction(vertices, joints, relative, params, camera + camera.new_tensor([5.0, 0, 0])))


@pytest.fixture
def stranger(monkeypatch):
    monkeypatch.setitem(MODELS, "stranger", lambda config, hand_model: Stranger(hand_model))


def test_a_strangers_network_is_trained_resumed_tested_exported_and_shown(stranger, run, config_file, tmp_path):
    data = f"data.root={config_file.parent / 'data'}"
    train = ["train.py", "--gpu", "cpu", "--config", config_file, "--set", "model.name=stranger", "model.variants=[]",
             f"output={tmp_path / 'run'}"]
    assert run(*train, "train.epochs=1")[0] == 0
    code, text = run(*train, "train.epochs=2", "--continue")
    assert code == 0 and "Training is complete: 2 epochs" in text

    snapshot, weights = tmp_path / "run" / "model_dump" / "snapshot_1.pth.tar", tmp_path / "stranger.safetensors"
    assert run("test.py", "--gpu", "cpu", "--test_epoch", "1", "--output", tmp_path / "run", "--set", data)[0] == 0
    metrics = json.loads((tmp_path / "run" / "result" / "metrics.json").read_text())
    assert metrics["protocols"]["lgnet"]["mpjpe"] == metrics["rough"]["mpjpe"] > 0
    assert run("tool/export_weights.py", snapshot, weights, "--set", "test.flip_test=true")[0] == 0

    picture = next((config_file.parent / "data" / "images").rglob("*.jpg"))
    code, text = run("demo.py", "--gpu", "cpu", "--checkpoint", weights, "--input", picture,
                     "--output", tmp_path / "out")
    assert code == 0 and (tmp_path / "out" / "panel" / f"{picture.stem}.png").is_file(), text
    assert TwoHandPredictor.from_weights(weights, "cpu")(picture).vertices.shape == (2, 778, 3)


def test_a_network_without_a_backbone_takes_no_weights_for_one(stranger, run, config_file, tmp_path):
    code, text = run("train.py", "--gpu", "cpu", "--config", config_file, "--set", "model.name=stranger",
                     "model.pretrained=imagenet", f"output={tmp_path / 'run'}")
    assert code == 2 and "stranger has no backbone" in text


def test_an_unknown_name_is_refused_with_those_that_exist(hand_model):
    with pytest.raises(UserError, match="model.name is 'lgnett'.*lgnet, lgnet_light"):
        build_model(ModelConfig(name="lgnett"), hand_model)


def test_the_zoo_builds_silently_and_the_light_network_has_half_the_channels(hand_model, caplog, capfd):
    caplog.set_level("DEBUG")
    full, light = (build_model(ModelConfig(name=name, backbone="resnet18", input_size=64), hand_model)
                   for name in ("lgnet", "lgnet_light"))
    assert [net.split_hands.position.shape[-1] for net in (full, light)] == [512, 256]
    assert caplog.records == [] and capfd.readouterr() == ("", "")
    assert zoo.MODELS.keys() >= {"lgnet", "lgnet_light"}
