"""Trained weights as one small file, for whatever does not go on training them.

NAME.safetensors holds the tensors of a network in half precision, `mean_joints`, and in its header, as JSON, what
`Metadata` lists. NAME.safetensors.sha256 beside it is a line that `sha256sum -c` reads. Reading runs nothing that is in
the file.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from common.errors import UserError, is_exhausted
from common.files import ROOT, checked_sha256, write_signed
from common.hands import NUM_JOINTS, Hand

WEIGHTS_SUFFIX = ".safetensors"
SHIPPED = ROOT / "common" / "assets" / f"lgnet_rendered{WEIGHTS_SUFFIX}"
VERSION = 1

_METADATA_KEY = "lgnet"         # the only key of the header's metadata: the library writes several in any order
_MEAN_JOINTS = "mean_joints"    # the only tensor that is not the network's, whose names have dots
_TYPES = (torch.float16, torch.float32, torch.float64, torch.int64, torch.bool)     # torch cannot check all others
_MAX_HEADER = 1 << 20           # bytes; a header of the largest network has some 80,000
_HINT = "Copy the file again, with its .sha256, or write it with tool/export_weights.py."


class Metadata(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a file says about its weights. Paths are those of `main.engine.run.provenance.portable`."""

    version: int
    config: dict[str, Any]              # of the training, and how the network is used unless told otherwise
    hand_model: dict[str, str]          # common.mano.model.HandModel.identity
    training: dict[str, Any]            # tool.export_weights.training: how long, on what, by which program
    metrics: dict[str, Any] | None      # of a test of the snapshot they come from; None: not measured
    torch_version: str


class Trained(NamedTuple):
    """What it takes to use a trained network."""

    model: dict[str, Tensor]            # state dict, float32, on the CPU
    config: dict[str, Any]
    hand_model: dict[str, str]
    mean_joints: Tensor                 # (2, 21, 3) metres, of the training set
    training: dict[str, Any] | None     # as in Metadata; None for a snapshot, which has a record beside it
    metrics: dict[str, Any] | None      # as in Metadata; None for a snapshot
    sha256: str                         # of the file


def load_weights(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Put `weights` into the model if every name, shape and type agrees and every value is finite, else raise
    UserError."""
    own = model.state_dict()
    differences = {
        "missing": [name for name in own if name not in weights],
        "unexpected": [name for name in weights if name not in own],
        "of another shape": [
            f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
            for name in own if name in weights and weights[name].shape != own[name].shape
        ],
        "of another type": [
            f"{name} {weights[name].dtype} instead of {own[name].dtype}"
            for name in own if name in weights and weights[name].dtype != own[name].dtype
        ],
        "not finite": [name for name, value in weights.items() if not torch.isfinite(value).all()],
    }
    found = [f"{len(names)} {kind}: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
             for kind, names in differences.items() if names]
    if found:
        raise UserError(f"The weights in {where} do not fit the model. {'; '.join(found)}.",
                        "Was it made with another model configuration?")
    model.load_state_dict(weights)


def load_shared_parts(model: nn.Module, weights: dict[str, Tensor], where: str) -> tuple[set[str], set[str]]:
    """Give the model the weights of the parts that it shares with a state dict: a part is what its first name says,
    such as `backbone`. Raises UserError if a shared part does not fit.

    Returns the parts that only the model has, which stay as they are, and those that only `weights` has.
    """
    def part(name: str) -> str:
        return name.partition(".")[0]

    own = model.state_dict()
    parts, given = set(map(part, own)), set(map(part, weights))
    only_model, only_weights = parts - given, given - parts
    load_weights(model, {name: value for name, value in own.items() if part(name) in only_model}
                 | {name: value for name, value in weights.items() if part(name) not in only_weights}, where)
    return only_model, only_weights


def write_weights(path: Path, model: dict[str, Tensor], mean_joints: Tensor, metadata: Metadata) -> None:
    """Write a file of weights and its digest; equal arguments give equal bytes.

    model: a state dict. Raises UserError if a value does not fit into half precision or the disk takes no file.
    """
    tensors = {name: _halved(value) for name, value in model.items()}
    too_large = [name for name, value in model.items() if value.isfinite().all() > tensors[name].isfinite().all()]
    if too_large:
        raise UserError(f"{len(too_large)} tensors do not fit into half precision, the first is '{too_large[0]}'.",
                        "Its largest number is 65504.")
    text = json.dumps(msgspec.to_builtins(metadata), sort_keys=True)
    content = safetensors.torch.save(tensors | {_MEAN_JOINTS: mean_joints.contiguous()}, {_METADATA_KEY: text})
    write_signed(path, lambda file: file.write(content), len(content))


def read_weights(path: Path) -> Trained:
    """The content of a file of weights.

    Raises UserError if it is missing, incomplete, damaged, of another version or not a file of weights of LGNet.
    """
    if not path.is_file():
        raise UserError(f"There is no file of weights {path}.", "tool/export_weights.py writes one of a snapshot.")
    sha256 = checked_sha256(path, _HINT)
    try:
        _check_header(path)
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = _decode_metadata((file.metadata() or {}).get(_METADATA_KEY, ""))
            tensors = {name: _widened(file.get_tensor(name)) for name in file.keys()}
        mean_joints = tensors.pop(_MEAN_JOINTS, torch.zeros(0))
        if mean_joints.shape != (len(Hand), NUM_JOINTS, 3):
            raise ValueError(f"'{_MEAN_JOINTS}' has the shape {tuple(mean_joints.shape)}")
        if not mean_joints.isfinite().all():
            raise ValueError(f"'{_MEAN_JOINTS}' holds numbers that are not finite")
    except (safetensors.SafetensorError, msgspec.MsgspecError, RecursionError, OSError, ValueError) as error:
        if is_exhausted(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is not a file of LGNet's weights that this program reads: {reason}.", _HINT) from None
    return Trained(tensors, metadata.config, metadata.hand_model, mean_joints, metadata.training, metadata.metrics,
                   sha256)


def _check_header(path: Path) -> None:
    """Refuse a header that no file of ours has before the library takes it into memory."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > _MAX_HEADER:
        raise ValueError(f"its header claims {size} bytes")


def _decode_metadata(text: str) -> Metadata:
    version = msgspec.json.decode(text, type=_Versioned).version
    if version != VERSION:
        raise ValueError(f"its format has version {version} instead of {VERSION}")
    return msgspec.json.decode(text, type=Metadata)


class _Versioned(msgspec.Struct, frozen=True):
    """What every version of the metadata has."""

    version: int


def _halved(value: Tensor) -> Tensor:
    return (value.half() if value.is_floating_point() else value).contiguous()


def _widened(value: Tensor) -> Tensor:
    if value.dtype not in _TYPES:
        raise ValueError(f"it holds numbers of the type {value.dtype}")
    return value.float() if value.dtype == torch.float16 else value
