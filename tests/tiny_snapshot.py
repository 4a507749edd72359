"""A snapshot of an untrained tiny LGNet, for tests of what runs on one."""

from pathlib import Path

import torch

from common.mano.model import HandModel
from common.nets.zoo import ModelConfig, build_model
from main.config import Config, config_to_dict
from main.engine.run.snapshots import Snapshot, save_snapshot


def save_tiny_snapshot(path: Path, hand_model: HandModel) -> None:
    """Write the snapshot of 16 channels for 64 px to `path`, whose name must be that of a snapshot."""
    config = Config(model=ModelConfig(backbone="resnet18", input_size=64, channels=16, variants=("lgfa_prenorm",)))
    torch.manual_seed(0)
    model = build_model(config.model, hand_model)
    save_snapshot(Snapshot(model.state_dict(), {}, [], 0, 1, 0, config_to_dict(config), hand_model.identity,
                           torch.zeros(2, 21, 3), "any", 1), path)
