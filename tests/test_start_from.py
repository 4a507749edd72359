"""A new run that begins with the weights of another one."""

import dataclasses
import logging

import pytest
import torch
from toy_training import CPU

from common.errors import UserError
from common.nets.zoo import build_model
from main.build import load_initial_weights
from main.config import load_config
from main.engine.run.snapshots import load_latest, save_snapshot
from main.train import train

COARSE = "model.variants=[lgfa_prenorm, wo_refine_stage]"


@pytest.fixture(scope="module")
def snapshot(config_file, tmp_path_factory):
    """Of a run without the refine stage."""
    output = tmp_path_factory.mktemp("rough")
    config = load_config(str(config_file), [COARSE, "train.epochs=1", f"output={output}"])
    assert train(config, False, CPU) == 0
    return load_latest(output / "model_dump")


def configured(config_file, path, *changes):
    return load_config(str(config_file), [f"train.start_from={path}", *changes])


def starting_model(config, hand_model) -> torch.nn.Module:
    model = build_model(config.model, hand_model)
    load_initial_weights(model, config, hand_model)
    return model


def test_a_run_starts_with_the_weights_it_was_given(config_file, snapshot, hand_model):
    found, path = snapshot
    model = starting_model(configured(config_file, path, COARSE), hand_model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, found.model[name]), name


def test_a_part_that_the_weights_lack_is_new_and_named(config_file, snapshot, hand_model, caplog):
    found, path = snapshot
    caplog.set_level(logging.INFO)
    model = starting_model(configured(config_file, path), hand_model)
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in found.model.items())
    assert {name.split(".")[0] for name in state.keys() - found.model.keys()} == {"refine"}
    assert f"Starts from {path}; new: refine." in caplog.text


def test_a_part_that_the_model_lacks_is_left_out_and_named(config_file, snapshot, hand_model, tmp_path, caplog):
    """The rough run's weights, as a file that has a refine stage too."""
    found, _ = snapshot
    path = tmp_path / "model_dump" / "snapshot_0.pth.tar"
    save_snapshot(dataclasses.replace(found, model=found.model | {"refine.weight": torch.zeros(3)}), path)
    caplog.set_level(logging.INFO)
    model = starting_model(configured(config_file, path, COARSE), hand_model)
    assert all(torch.equal(value, found.model[name]) for name, value in model.state_dict().items())
    assert f"Starts from {path}; left out: refine." in caplog.text


def test_weights_of_another_shape_are_refused(config_file, snapshot, hand_model):
    with pytest.raises(UserError, match="do not fit"):
        starting_model(configured(config_file, snapshot[1], "model.channels=64"), hand_model)


def test_another_hand_model_is_allowed_and_said(config_file, snapshot, hand_model, caplog):
    other = dataclasses.replace(hand_model, name="mano", sha256="0" * 64)
    starting_model(configured(config_file, snapshot[1]), other)
    assert "another hand model" in caplog.text
