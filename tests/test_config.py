"""The configuration: what a file or a flag may say, and how it is refused."""

import dataclasses
import json
import math
import typing
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from common.files import ROOT, from_repository
from common.nets.zoo import ModelConfig
from common.settings import Range
from main.config import CONFIG_DIR, Config, config_from_dict, config_to_dict, keys_fixing, load_config

ALL_CONFIGS = sorted(CONFIG_DIR.rglob("*.yaml"))


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "run.yaml").write_text("train:\n  lr: 1e-4\n  epochs: 3\n  lr: 1e-3\n")
    with pytest.raises(UserError, match=r"run\.yaml has the key 'lr' twice, the second time in line 4"):
        load_config(tmp_path / "run.yaml")


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


def test_a_configuration_stored_before_there_were_two_normal_losses_goes_on_with_its_own():
    stored = config_to_dict(load_config("lgnet"))
    assert config_from_dict(stored).loss.normal_edges == "raw"
    del stored["loss"]["normal_edges"]
    assert config_from_dict(stored).loss.normal_edges == "unit"


@pytest.mark.parametrize("switch", [{"refine_camera": "ground_truth"}, {"lgfa_depth": 2}, {"normalize_input": False}])
def test_a_stored_network_that_is_gone_is_refused_by_its_switch(switch):
    with pytest.raises(UserError, match=next(iter(switch))):
        config_from_dict({"model": OLD_SWITCHES | switch})


def test_the_keys_that_fix_a_model_are_those_of_its_network_and_hand():
    model = {f"model.{field.name}" for field in dataclasses.fields(ModelConfig)} - {"model.pretrained"}
    assert keys_fixing("model") == model | {"hand_model.name"}


# ---------------------------------------------------------------- texts, numbers, switches and lists

AS_WRITTEN = ["20261201_1530", "007", "1:30", "on", "no", "~", "null", "true", "2026-12-01", "my set: v2", "run #1",
              "1e3", "0x1f", "[x", "{a", "it's", '"quoted"', "a, b", " spaced ", "%d", "&a", "*a", "!!int 3", "a=b"]


@pytest.mark.parametrize("text", AS_WRITTEN)
def test_a_text_is_what_was_typed_to_the_letter(text):
    assert load_config("lgnet", [f"data.trainset={text}"]).data.trainset == text


@given(st.text())
def test_no_text_is_changed_by_being_typed(text):
    assert load_config("lgnet", [f"data.trainset={text}"]).data.trainset == text


@pytest.mark.parametrize("name", ["20261201_1530", "run #1", "007", "1:30", "on", "2026-12-01", "my set: v2"])
def test_a_folder_has_the_name_that_was_typed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert from_repository(load_config("lgnet", [f"output={name}"]).output) == tmp_path / name
    assert load_config("lgnet", [f"output={tmp_path}/{name}"]).output == f"{tmp_path}/{name}"


@pytest.mark.parametrize("text", ["20261201_1530", "007", "1:30", "on", "2026-12-01", "0x1f", "1e3", "null"])
def test_a_text_in_a_file_is_what_stands_there_with_quotes_and_without(text, tmp_path):
    for written in (text, f"'{text}'"):
        (tmp_path / "run.yaml").write_text(f"output: {written}    # a comment")
        assert load_config(tmp_path / "run.yaml").output == text


def test_an_empty_text_in_a_file_is_empty_and_a_list_is_none(tmp_path):
    (tmp_path / "run.yaml").write_text("model:\n  pretrained:\n")
    assert load_config(tmp_path / "run.yaml").model.pretrained == ""
    (tmp_path / "run.yaml").write_text("output: [a]\n")
    with pytest.raises(UserError, match="'output' is .'a'.*must be text"):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize(("text", "number"), [
    ("0010", 10), ("7", 7), ("1e3", 1000), ("1_000", 1000), ("9007199254740993", 9007199254740993)])
def test_whole_numbers_are_decimal_typed_and_in_a_file(text, number, tmp_path):
    (tmp_path / "run.yaml").write_text(f"train:\n  seed: {text}\n")
    for config in (load_config("lgnet", [f"train.seed={text}"]), load_config(tmp_path / "run.yaml")):
        assert config.train.seed == number and type(config.train.seed) is int


@pytest.mark.parametrize("text", ["1:30", "0x1f", "0b1", "true", "", "~", "[1]", "1 2", "1,5", "1.5"])
def test_what_is_no_decimal_number_is_refused_typed_and_in_a_file(text, tmp_path):
    (tmp_path / "run.yaml").write_text(f"train:\n  seed: {text}\n")
    for read in (lambda: load_config("lgnet", [f"train.seed={text}"]), lambda: load_config(tmp_path / "run.yaml")):
        with pytest.raises(UserError, match="'train.seed' is .*a whole number"):
            read()


def test_numbers_in_exponent_form_are_numbers():
    """PyYAML reads 3e-4 as a string."""
    assert load_config("lgnet", ["train.lr=3e-4"]).train.lr == 3e-4


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False), ("True", True), ("FALSE", False)])
def test_a_switch_is_true_or_false(text, value):
    assert load_config("lgnet", [f"test.flip_test={text}"]).test.flip_test is value


@pytest.mark.parametrize("text", ["on", "yes", "1", "0", "", "~", "null"])
def test_a_switch_is_nothing_else(text):
    with pytest.raises(UserError, match="true or false"):
        load_config("lgnet", [f"test.flip_test={text}"])


@pytest.mark.parametrize(("text", "items"), [
    ("[a,b]", ("a", "b")), ("[ a , b ]", ("a", "b")), ("[]", ()), ("[a]", ("a",)), ('["a", "b, c"]', ("a", "b, c")),
    ("['a', 'b']", ("a", "b")), ("[007, on, 1:30]", ("007", "on", "1:30")), ("[a #1, b: c]", ("a #1", "b: c")),
    ("[it's, b]", ("it's", "b")), (json.dumps(["lgfa_prenorm", "wo_lgblock"]), ("lgfa_prenorm", "wo_lgblock")),
])
def test_the_items_of_a_typed_list_are_texts_too(text, items):
    assert load_config("lgnet", [f"model.variants={text}"]).model.variants == items


def test_lists_of_numbers_hold_numbers():
    config = load_config("lgnet", ["train.lr_drops=[08, 1e1]", "test.bins=[0, 30.5,400]"])
    assert config.train.lr_drops == (8, 10) and config.test.bins == (0.0, 30.5, 400.0)


# ---------------------------------------------------------------- paths

PATHS = ["output", "data.root", "hand_model.path", "model.pretrained", "train.start_from"]


def value_of(config, key):
    for name in key.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize("key", PATHS)
def test_typed_paths_count_from_the_working_directory_and_those_of_a_file_from_the_repository(
        key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert value_of(load_config("lgnet", [f"{key}=a/b"]), key) == str(tmp_path / "a" / "b")
    *sections, name = key.split(".")
    Path("run.yaml").write_text("".join(f"{section}:\n  " for section in sections) + f"{name}: a/b")
    assert value_of(load_config("run.yaml"), key) == "a/b" and from_repository("a/b") == ROOT / "a" / "b"


@pytest.mark.parametrize("key", PATHS)
@pytest.mark.parametrize("folder", [".", "main"])
def test_a_typed_path_inside_the_repository_is_stored_without_the_repositorys_place(key, folder, monkeypatch):
    """So that a moved repository finds it, and that a run continued from another folder has not changed."""
    monkeypatch.chdir(ROOT / folder)
    up = "" if folder == "." else "../"
    assert value_of(load_config("lgnet", [f"{key}={up}output/run"]), key) == "output/run"


@pytest.mark.parametrize("key", PATHS)
def test_the_home_folder_can_be_written_short_everywhere(key, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert value_of(load_config("lgnet", [f"{key}=~/run"]), key) == str(tmp_path / "run")
    assert from_repository("~/run") == tmp_path / "run"
    (tmp_path / "mine.yaml").write_text("base: ~/other.yaml")
    (tmp_path / "other.yaml").write_text("output: there")
    assert load_config("~/mine.yaml").output == "there"


def test_words_that_stand_for_no_path_stay_words():
    for word in ("imagenet", "download"):
        assert load_config("lgnet", [f"model.pretrained={word}"]).model.pretrained == word
    assert load_config("lgnet", ["model.pretrained=", "train.start_from="]).train.start_from == ""


def test_lists_of_paths_count_from_the_working_directory_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config("lgnet", [f'data.more_roots=[a, "b, c", {ROOT}/output/x]'])
    assert config.data.more_roots == (str(tmp_path / "a"), str(tmp_path / "b, c"), "output/x")


# ---------------------------------------------------------------- ranges

def numbers(values: dict, prefix: str = "") -> dict[str, str]:
    """The keys whose defaults are numbers or lists of them, each with the form in which one is typed."""
    found = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= numbers(value, f"{prefix}{name}.")
        elif type(value) in (int, float):
            found[f"{prefix}{name}"] = "{}"
        elif isinstance(value, tuple) and type(next(iter(value), None)) in (int, float):
            found[f"{prefix}{name}"] = "[{}]"
    return found


NUMBERS = numbers(config_to_dict(Config())) | {"test.bins": "[0, {}]"}


def range_of(key: str) -> Range:
    hint = Config
    for name in key.split("."):
        hint = typing.get_type_hints(hint, include_extras=True)[name]
    if typing.get_origin(hint) is tuple:
        hint = typing.get_args(hint)[0]
    _, limit = typing.get_args(hint)
    return limit


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_has_a_range_that_holds_both_ends_and_nothing_beyond_them(key):
    limit = range_of(key)
    ends = {limit.low, limit.high} - ({limit.low} if key == "test.bins" else set())     # its edges rise
    for number in ends:
        load_config("lgnet", [f"{key}={NUMBERS[key].format(number)}"])
    spread = max(1e-3, abs(limit.low) * 1e-3)
    beyond = [math.nan, math.inf, -math.inf, 1e300, -1e300, limit.low - spread, limit.high * 1.001, "nan", "Infinity"]
    for number in beyond:
        with pytest.raises(UserError, match=f"'{key}' is "):
            load_config("lgnet", [f"{key}={NUMBERS[key].format(number)}"])


def test_the_keys_with_a_range_are_all_numbers_that_dataclasses_declare():
    """Found by their types, where the test above finds them by their defaults."""
    def declared(kind: type, prefix: str) -> set[str]:
        hints = typing.get_type_hints(kind)
        nested = [declared(hint, f"{prefix}{name}.") for name, hint in hints.items() if dataclasses.is_dataclass(hint)]
        return set().union(*nested) | {f"{prefix}{name}" for name, hint in hints.items()
                                       if hint in (int, float, tuple[int, ...], tuple[float, ...])}

    assert declared(Config, "") == set(NUMBERS)


@pytest.mark.parametrize("override", [
    "data.workers=-1", "train.seed=-1", "train.lr=nan", "train.lr=inf", "train.lr=0", "data.box_ratio=0",
    "data.box_ratio=-0.5", "data.box_ratio=80", "test.batch_size=0", "model.depth_range=0", "model.depth_range=-1",
    "data.augment.scale=3", "data.augment.color=3", "data.augment.flip_probability=7",
    "data.augment.rotation_probability=-1", "train.max_grad_norm=-1", "train.warmup_steps=-5", "loss.mesh=-1",
    "loss.pose=nan", "train.keep_snapshots=0", "train.log_every=0", "train.validate_every=-1", "train.save_every=-1",
    "train.accumulate=0", "train.batch_size=0", "train.epochs=0", "data.max_bad_fraction=-0.1",
    "data.max_bad_fraction=1.5", "data.max_bad_fraction=nan", "data.val_samples=0", "model.input_size=0",
    "model.channels=-16", "train.lr_drops=[-1]", "test.bins=[0, inf]",
])
def test_numbers_that_mean_nothing_are_refused_by_key(override):
    with pytest.raises(UserError) as caught:
        load_config("lgnet", [override])
    assert override.partition("=")[0] in str(caught.value) and " from " in str(caught.value)


def test_stored_numbers_are_checked_as_typed_ones_are():
    stored = config_to_dict(Config())
    stored["data"]["box_ratio"] = -0.5
    with pytest.raises(UserError, match="data.box_ratio"):
        config_from_dict(stored)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(("override", "expected"), [
    ("train.lrr=1", "Did you mean 'train.lr'?"),
    ("modle.channels=1", "Did you mean 'model'?"),
    ("train.lr=fast", "'train.lr' is 'fast'"),
    ("train.epochs=1.5", "a whole number"),
    ("train.lr=-1", "from 1e-09 to 10"),
    ("train.lr_drops=3", "a list"),
    ("model.backbone=other", "one of: resnet18, resnet34, resnet50"),
    ("test.flip_test=maybe", "true or false"),
    ("train=3", "must hold keys"),
    ("train.lr.x=3", "not a section"),
    ("train.lr", "key=value"),
    ("=3", "key=value"),
    ("train.lr=!!python/object:os.system x", "'train.lr' is"),
    ("train.seed=.inf", "a whole number"),
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
