"""A snapshot of an untrained tiny LGNet, for tests of what runs on one."""

import dataclasses
from pathlib import Path

import torch

from common.mano.model import HandModel
from common.nets.lgnet import build_lgnet
from main.config import Config, ModelConfig, config_to_dict
from main.engine.run.snapshots import Snapshot, save_snapshot


def save_tiny_snapshot(path: Path, hand_model: HandModel) -> None:
    """Write the snapshot of 16 channels for 64 px to `path`, whose name must be that of a snapshot."""
    config = Config(model=ModelConfig(backbone="resnet18", input_size=64, channels=16, lgfa="prenorm"))
    torch.manual_seed(0)
    model = build_lgnet(hand_model, depth_range=config.data.depth_range, **dataclasses.asdict(config.model))
    save_snapshot(Snapshot(model.state_dict(), {}, [], 0, 1, 0, config_to_dict(config), hand_model.identity,
                           torch.zeros(2, 21, 3), "any", 1), path)
