"""Trained networks from files that the user names, used as the configuration in the file and `--set` say."""

from pathlib import Path
from typing import NamedTuple

import torch

from common.mano.model import check_same_model
from common.predict.fast import for_inference
from common.predict.predictor import TwoHandPredictor
from common.weights import Trained
from main.build import build_hand_model, build_trained_model
from main.config import Config, changed_config, config_from_dict, refuse_changes
from main.engine.run.snapshots import load_trained


class Network(NamedTuple):
    """A predictor, and what its network was trained with."""

    predictor: TwoHandPredictor
    config: Config
    trained: Trained


def load_network(path: Path, overrides: list[str], device: torch.device) -> Network:
    """The network of a snapshot or of a file of weights, its configuration changed by `a.b=c` overrides and prepared
    for prediction as the section `test` says.

    Raises UserError if it cannot be read, if the overrides change the model or if the hand model is another one.
    """
    trained = load_trained(path)
    stored = config_from_dict(trained.config)
    config = changed_config(stored, overrides)
    refuse_changes(stored, config, str(path))
    hand_model = build_hand_model(config.hand_model)
    check_same_model(hand_model.identity, trained.hand_model, str(path))
    model = build_trained_model(config.model, hand_model, trained.model, str(path)).to(device)
    model = for_inference(model, hand_model, precision=config.test.precision, compile_mode=config.test.compile,
                          channels_last=config.test.channels_last, flip_test=config.test.flip_test)
    predictor = TwoHandPredictor(model, hand_model, input_size=config.model.input_size,
                                 box_ratio=config.data.box_ratio, device=device)
    return Network(predictor, config, trained)
