"""Networks by name. Whatever trains, tests, predicts, exports or measures a network builds it here.

A network is an nn.Module that takes crops (B, 3, S, S), RGB in [0, 1], S the side of `ModelConfig.input_size`, and
returns `common.types.Stages`. A new one is a function from ModelConfig and HandModel to such a module, under its name
in `MODELS`. Building is silent: random weights, no download, no device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from torch import nn

from common.errors import UserError
from common.mano.model import HandModel
from common.nets.lgnet import LGNet, build_lgnet
from common.nets.pretrained import IMAGENET
from common.nets.variants import apply_variants
from common.settings import PathOr, Range, fixes


@dataclass(frozen=True)
class ModelConfig:
    """Which network, and its sizes."""

    name: str = fixes("model", "lgnet")     # in MODELS
    backbone: Literal["resnet18", "resnet34", "resnet50"] = fixes("model", "resnet50")
    # Of the backbone: "" random, "imagenet" torchvision's, "download" the same, fetched if missing, or a file.
    pretrained: Annotated[str, PathOr(IMAGENET)] = ""
    # The side of the crop, pixels.
    input_size: Annotated[int, Range(32, 4096)] = fixes("model", 256)
    # c of the paper; 0: the network's own, 512, or 256 for LGNet-Light.
    channels: Annotated[int, Range(0, 65_536)] = fixes("model", 0)
    # Metres covered by the 8 depth cells of the 2.5D joints.
    depth_range: Annotated[float, Range(0.01, 10)] = fixes("model", 0.4)
    variants: tuple[str, ...] = fixes("model", ())  # ablations and other readings: common.nets.variants.VARIANTS


def build_model(config: ModelConfig, hand_model: HandModel) -> nn.Module:
    """The configured network with random weights, on the CPU. UserError for a name that is not in `MODELS`."""
    if config.name not in MODELS:
        raise UserError(f"model.name is '{config.name}'.", f"It must be one of: {', '.join(MODELS)}.")
    return MODELS[config.name](config, hand_model)


def _lgnet(config: ModelConfig, hand_model: HandModel, *, channels: int) -> LGNet:
    channels = config.channels or channels
    net = build_lgnet(hand_model, backbone=config.backbone, input_size=config.input_size, channels=channels,
                      depth_range=config.depth_range)
    return apply_variants(net, config.variants, hand_model, channels=channels)


MODELS: dict[str, Callable[[ModelConfig, HandModel], nn.Module]] = {
    "lgnet": partial(_lgnet, channels=512),
    "lgnet_light": partial(_lgnet, channels=256),
}


# ---------------------------------------------------------------- configurations of an earlier form

_SWITCHES = {                           # key, its value, and the variant that it stood for
    ("joint_stage", False): "wo_joint_stage",
    ("mesh_stage", False): "wo_mesh_stage",
    ("refine_stage", False): "wo_refine_stage",
    ("separate_hands", False): "wo_lr_feature",
    ("lgblock", False): "wo_lgblock",
    ("local_unit", False): "wo_local_unit",
    ("global_unit", False): "wo_global_unit",
    ("local_graph", "mesh63"): "local_graph_mesh63",
    ("local_graph", "none"): "local_graph_none",
    ("graph_conv", "cheb"): "graph_conv_cheb",
    ("lgfa", "prenorm"): "lgfa_prenorm",
    ("refine_shared", False): "refine_unshared",
}
_DEFAULTS = {"joint_stage": True, "mesh_stage": True, "refine_stage": True, "separate_hands": True, "lgblock": True,
             "local_unit": True, "global_unit": True, "local_graph": "grid8", "graph_conv": "gin", "lgfa": "paper",
             "refine_shared": True, "refine_camera": "predicted", "normalize_input": True, "lgfa_depth": 1}
_OWN_CHANNELS = {512: "lgnet", 256: "lgnet_light"}


def upgraded(config: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration, as plain values, in today's form: early ones had a switch for each ablation, one reading
    of the normal loss, and `depth_range` with the data. UserError for what no network here has any more."""
    model, data = dict(config.get("model", {})), dict(config.get("data", {}))
    if "depth_range" in data:
        model["depth_range"] = data.pop("depth_range")
    if "loss" in config:
        config = config | {"loss": {"normal_edges": "unit"} | config["loss"]}
    if not _DEFAULTS.keys() & model.keys():
        return config | {"model": model, "data": data}
    switches = {key: model.pop(key) for key in _DEFAULTS.keys() & model.keys()}
    changed = {key: value for key, value in switches.items() if value != _DEFAULTS[key]}
    gone = {key: value for key, value in changed.items() if (key, value) not in _SWITCHES}
    if gone:
        raise UserError(f"The stored configuration has {', '.join(f'model.{k}={v}' for k, v in sorted(gone.items()))}.",
                        "This version has no such network; use the version that trained it.")
    model["variants"] = tuple(name for switch, name in _SWITCHES.items() if switch in changed.items())
    if model.get("channels") in _OWN_CHANNELS:
        model["name"], model["channels"] = _OWN_CHANNELS[model["channels"]], 0
    return config | {"model": model, "data": data}
