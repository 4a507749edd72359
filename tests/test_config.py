"""The configuration: what a file or a flag may say, and how it is refused."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from common.nets.zoo import ModelConfig
from main.config import CONFIG_DIR, Config, config_from_dict, config_to_dict, keys_fixing, load_config

ALL_CONFIGS = sorted(CONFIG_DIR.rglob("*.yaml"))


@pytest.mark.parametrize("path", ALL_CONFIGS, ids=lambda path: str(path.relative_to(CONFIG_DIR)))
def test_every_shipped_config_loads(path):
    assert isinstance(load_config(path), Config)


@pytest.mark.parametrize("path", ALL_CONFIGS, ids=lambda path: str(path.relative_to(CONFIG_DIR)))
def test_a_config_survives_being_stored_as_plain_values(path):
    config = load_config(path)
    stored = yaml.safe_load(yaml.safe_dump(yaml.safe_load(yaml.safe_dump(_lists(config_to_dict(config))))))
    assert config_from_dict(stored) == config


def _lists(values):
    if isinstance(values, dict):
        return {key: _lists(value) for key, value in values.items()}
    return list(values) if isinstance(values, tuple) else values


def test_the_light_configuration_differs_from_the_full_one_in_the_network_only():
    full, light = (config_to_dict(load_config(name)) for name in ("lgnet", "lgnet_light"))
    assert (full["model"].pop("name"), light["model"].pop("name")) == ("lgnet", "lgnet_light")
    assert full == light


OLD_SWITCHES = {
    "joint_stage": True, "mesh_stage": True, "refine_stage": True, "separate_hands": True, "lgblock": True,
    "local_unit": True, "global_unit": True, "local_graph": "grid8", "graph_conv": "gin", "lgfa": "paper",
    "lgfa_depth": 1, "refine_shared": True, "refine_camera": "predicted", "normalize_input": True,
}


@pytest.mark.parametrize(("switches", "model"), [
    ({}, {"name": "lgnet", "channels": 0, "variants": ()}),
    ({"channels": 256, "lgfa": "prenorm"}, {"name": "lgnet_light", "channels": 0, "variants": ("lgfa_prenorm",)}),
    ({"channels": 64, "lgfa": "prenorm", "refine_stage": False},
     {"name": "lgnet", "channels": 64, "variants": ("wo_refine_stage", "lgfa_prenorm")}),
    ({"local_graph": "mesh63", "separate_hands": False}, {"variants": ("wo_lr_feature", "local_graph_mesh63")}),
])
def test_configurations_stored_with_switches_are_read_as_variants(switches, model):
    old = {"model": {"backbone": "resnet18", "channels": 512, **OLD_SWITCHES, **switches}, "data": {"depth_range": 0.3}}
    config = config_from_dict(old)
    assert config.model.depth_range == 0.3 and config.model.backbone == "resnet18"
    assert {key: getattr(config.model, key) for key in model} == model
    assert config_from_dict(config_to_dict(config)) == config


@pytest.mark.parametrize("switch", [{"refine_camera": "ground_truth"}, {"lgfa_depth": 2}, {"normalize_input": False}])
def test_a_stored_network_that_is_gone_is_refused_by_its_switch(switch):
    with pytest.raises(UserError, match=next(iter(switch))):
        config_from_dict({"model": OLD_SWITCHES | switch})


def test_the_keys_that_fix_a_model_are_those_of_its_network_and_hand():
    model = {f"model.{field.name}" for field in dataclasses.fields(ModelConfig)} - {"model.pretrained"}
    assert keys_fixing("model") == model | {"hand_model.name"}


def test_numbers_in_exponent_form_are_numbers():
    """PyYAML reads 3e-4 as a string."""
    assert load_config("lgnet", ["train.lr=3e-4"]).train.lr == 3e-4


@pytest.mark.parametrize(("override", "expected"), [
    ("train.lrr=1", "Did you mean 'train.lr'?"),
    ("modle.channels=1", "Did you mean 'model'?"),
    ("train.lr=fast", "'train.lr' is 'fast'"),
    ("train.epochs=1.5", "type int"),
    ("train.lr=-1", "must be positive"),
    ("train.lr_drops=3", "a list"),
    ("model.backbone=other", "one of: resnet18, resnet34, resnet50"),
    ("test.flip_test=maybe", "type bool"),
    ("train=3", "must hold keys"),
    ("train.lr.x=3", "not a section"),
    ("train.lr", "key=value"),
    ("=3", "key=value"),
    ("train.lr=!!python/object:os.system x", "'train.lr' is"),
    ("train.seed=.inf", "type int"),
])
def test_a_wrong_override_is_refused_with_key_and_remedy(override, expected):
    with pytest.raises(UserError) as caught:
        load_config("lgnet", [override])
    assert expected in str(caught.value)


@given(st.text(max_size=40))
def test_no_override_text_gives_anything_but_a_config_or_a_user_error(text):
    for override in (text, f"train.lr={text}", f"model.{text}", f"data.root={text}"):
        try:
            load_config("lgnet", [override])
        except UserError:
            pass


@pytest.mark.parametrize("text", ["{", "- 1\n- 2", "a: !!python/object/apply:os.system [ls]", "\x00", "[" * 5000])
def test_a_broken_file_is_refused_in_one_paragraph(text, tmp_path: Path):
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(file)
    assert "broken.yaml" in str(caught.value) or "Unknown config key" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused_with_the_names_that_exist():
    with pytest.raises(UserError, match=r"lgnet_light\.yaml"):
        load_config("lgnett")
