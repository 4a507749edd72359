"""Trained networks from files that the user names, used as the configuration in the file and `--set` say."""

from pathlib import Path
from typing import NamedTuple

import torch

from common.predict.predictor import TwoHandPredictor
from common.weights import Trained
from main.build import build_hand_model, build_inference_model
from main.config import Config, changed_config, config_from_dict, refuse_changes
from main.engine.run.snapshots import load_trained


class Network(NamedTuple):
    """A predictor, and what its network was trained with."""

    predictor: TwoHandPredictor
    config: Config
    trained: Trained


def load_network(path: Path, overrides: list[str], device: torch.device) -> Network:
    """The network of a snapshot or of a file of weights, its configuration changed by `a.b=c` overrides.

    Raises UserError if it cannot be read or if the overrides change the model.
    """
    trained = load_trained(path)
    stored = config_from_dict(trained.config)
    config = changed_config(stored, overrides)
    refuse_changes(stored, config, str(path))
    hand_model = build_hand_model(config.hand_model)
    model = build_inference_model(config, hand_model, trained, str(path), device)
    predictor = TwoHandPredictor(model, hand_model, input_size=config.model.input_size,
                                 box_ratio=config.data.box_ratio, device=device)
    return Network(predictor, config, trained)
