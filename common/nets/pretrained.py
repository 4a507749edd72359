"""Weights for a backbone to start from: ImageNet's, a file's, or those of a trained LGNet."""

import logging
import re
from pathlib import Path

import torch
from torch import Tensor

from common.errors import UserError
from common.nets.resnet import ResNet
from common.nets.torchvision_import import import_torchvision
from common.weights import WEIGHTS_SUFFIX, read_weights

log = logging.getLogger(__name__)
IMAGENET = ("imagenet", "download")     # what `model.pretrained` may be besides a file
_BACKBONE = "backbone."                 # what the names of an LGNet's backbone begin with
_WRAPPERS = ("module.", "_orig_mod.")   # of DistributedDataParallel and torch.compile


def load_pretrained(backbone: ResNet, pretrained: str) -> None:
    """Fill a backbone with weights and say so in one log line.

    pretrained: "imagenet" reads torchvision's IMAGENET1K_V1 weights where torchvision keeps them, "download" fetches
    them first if they are not there, anything else is a file: a torchvision state dict (a classifier `fc` in it is not
    needed), or weights of an LGNet, whose backbone is taken (`common.weights`).
    Raises UserError when the weights cannot be had or belong to another network.
    """
    name, is_imagenet = backbone.name, pretrained in IMAGENET
    state = _read_state(_imagenet_file(name, pretrained)) if is_imagenet else _read_weights(Path(pretrained))
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    expected = backbone.state_dict()
    wrong = sorted(key for key in expected.keys() | state.keys() if not _same_shape(expected.get(key), state.get(key)))
    if wrong:
        raise UserError(
            f"model.pretrained is '{pretrained}', which does not hold weights of {name}: {len(wrong)} of "
            f"{len(expected)} tensors are missing, unknown or of another shape, for example '{wrong[0]}'.",
            "Give weights of the same network, or change model.backbone.",
        )
    broken = [key for key, value in state.items() if not value.isfinite().all()]
    if broken:
        raise UserError(f"model.pretrained is '{pretrained}', which holds numbers that are not finite, for example in "
                        f"'{broken[0]}'.", "Use another file: the training that wrote this one had diverged.")
    backbone.load_state_dict(state)
    log.info("%s starts from %s", name, "ImageNet (torchvision)" if is_imagenet else pretrained)


def _same_shape(expected: Tensor | None, found: object) -> bool:
    return expected is not None and isinstance(found, Tensor) and expected.shape == found.shape


def _imagenet_file(name: str, pretrained: str) -> Path:
    url = import_torchvision().models.get_model_weights(name).IMAGENET1K_V1.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if file.is_file():
        return file
    if pretrained != "download":
        raise UserError(
            f"model.pretrained is 'imagenet', and torchvision's ImageNet weights of {name} are not here: there is no "
            f"file {file}.",
            f"Let this program fetch them with --set model.pretrained=download, or fetch {url} elsewhere and put it "
            "there or name it with --set model.pretrained=FILE. To start from random weights instead, which needs far "
            "more training, say --set model.pretrained=.",
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # The name ends in the first digits of the file's SHA-256.
        torch.hub.download_url_to_file(url, str(file), hash_prefix=re.findall(r"-([0-9a-f]+)\.", file.name)[0])
    except (OSError, RuntimeError) as error:
        raise UserError(f"model.pretrained is 'download', but {url} could not be downloaded: {error}.",
                        "Download that file elsewhere and set model.pretrained to its path, or leave it empty.",
                        ) from None
    return file


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(
            f"model.pretrained is '{path}', and there is no such file.",
            "Give a file with a torchvision state dict, 'download' to fetch ImageNet's, or nothing for random weights.",
        )
    if path.suffix == WEIGHTS_SUFFIX:
        weights = read_weights(path).model
        return {name.removeprefix(_BACKBONE): weights[name] for name in weights if name.startswith(_BACKBONE)}
    return _read_state(path)


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:      # damaged or hostile bytes may raise anything
        # What torch says before this is how to load the file without the protection.
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip() or type(error).__name__
        raise UserError(f"model.pretrained is '{path}', which cannot be read: {reason.splitlines()[0][:200]}.",
                        "Give a torchvision state dict: a file of tensors and nothing else.") from None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise UserError(f"model.pretrained is '{path}', which holds {type(state).__name__} and not a state dict.")
    return _unwrapped(state)


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights without what wrappers of a model put before all of its names."""
    for prefix in _WRAPPERS * 2:        # one wrapper may be inside the other
        if state and all(name.startswith(prefix) for name in state):
            log.info("the weights' names begin with '%s', which is left out", prefix)
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state
