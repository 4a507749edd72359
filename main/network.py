"""A trained network, ready to predict from photographs."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from common.mano.model import HandModel
from common.weights import Trained
from main.build import build_hand_model, build_inference_model
from main.config import Config, changed_config, config_from_dict, refuse_changes
from main.engine.run.snapshots import load_trained


class Network(NamedTuple):
    """A trained LGNet in evaluation mode, and what it was trained with."""

    model: nn.Module
    hand_model: HandModel
    config: Config
    trained: Trained


def load_network(path: Path, overrides: list[str], device: torch.device) -> Network:
    """The network of a snapshot or of a file of weights, its configuration changed by `a.b=c` overrides.

    Raises UserError if it cannot be read, if the overrides change the model, or if it is of no use on photographs.
    """
    trained = load_trained(path)
    stored = config_from_dict(trained.config)
    config = changed_config(stored, overrides)
    refuse_changes(stored, config, str(path))
    hand_model = build_hand_model(config.hand_model)
    return Network(build_inference_model(config, hand_model, trained, str(path), device), hand_model, config, trained)
