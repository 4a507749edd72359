"""A trainer of a tiny model on a tiny set on disk: everything the engine touches, in milliseconds."""

import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from fixtures_interhand import write_interhand
from torch import Tensor, nn

from common.hands import NUM_JOINTS, NUM_VERTICES
from common.losses import LossConfig, TwoHandLoss
from common.mano.model import HandModel
from common.types import HandPrediction, JointPrediction, ManoParams, Stages
from data import build_reader
from data.augment import AugmentConfig
from data.dataset import TwoHandDataset
from main.config import Config, TestConfig, TrainConfig
from main.engine.batches import SamplesOnDisk, predict
from main.engine.evaluator import Evaluator
from main.engine.processes.launch import Process
from main.engine.run.folder import RunFolder
from main.engine.run.snapshots import Snapshot, load_latest
from main.engine.trainer import Trainer

SIZE, DEPTH_RANGE = 32, 0.4
SHORT = {"epochs": 2, "lr_drops": (1,)}     # six steps, three in each epoch
CPU = Process(torch.device("cpu"))


class ToyHands(nn.Module):
    """Stages by one linear layer on a small picture; batch normalisation and dropout carry state of their own."""

    def __init__(self, dropout: float = 0.2, normalized: bool = True):
        super().__init__()
        self.sizes = {
            "joints": (2, NUM_JOINTS, 3), "rough": (2, NUM_VERTICES, 3), "offset": (2, NUM_VERTICES, 3),
            "rotations": (2, 16, 3, 3), "shape": (2, 10), "camera": (2, 3), "relative": (3,),
        }
        self.norm = nn.BatchNorm1d(12) if normalized else nn.Identity()
        self.drop = nn.Dropout(dropout)
        self.heads = nn.ModuleDict({
            name: nn.Linear(12, int(torch.tensor(size).prod())) for name, size in self.sizes.items()})

    def forward(self, image: Tensor) -> Stages:
        features = self.drop(self.norm(nn.functional.adaptive_avg_pool2d(image, 2).flatten(1)))
        out = {name: 0.1 * head(features).unflatten(-1, self.sizes[name]) for name, head in self.heads.items()}

        def hands(vertices: Tensor) -> HandPrediction:
            return HandPrediction(vertices, vertices[:, :, :NUM_JOINTS], out["relative"],
                                  ManoParams(out["rotations"], out["shape"]), out["camera"])

        return Stages(hands(out["rough"]), hands(out["rough"] + out["offset"]),
                      JointPrediction(out["joints"], out["joints"]))


def toy_dataset(root: Path, hand_model: HandModel, *, augment: bool = True) -> TwoHandDataset:
    """Six interacting frames with both meshes."""
    if not root.exists():
        write_interhand(root, hand_model)
    reader = build_reader("InterHand26M", root=root, split="train", hand_model=hand_model, filter="ih_hm",
                          box_source="vertices")
    return TwoHandDataset(reader, size=SIZE, box_ratio=0.8, augment=AugmentConfig() if augment else None)


def toy_loss(hand_model: HandModel) -> TwoHandLoss:
    return TwoHandLoss(LossConfig(), hand_model.faces, input_size=SIZE, depth_range=DEPTH_RANGE)


def toy_trainer(dataset: TwoHandDataset, output: Path, *, model: nn.Module | None = None, workers: int = 0,
                process: Process = CPU, max_bad_fraction: float = 0.001, validated: TwoHandDataset | None = None,
                on_step: Callable[[Trainer], None] = lambda trainer: None, config: Config | None = None, **settings
                ) -> Trainer:
    """A trainer that starts from seed 0 whatever ran before it.

    validated: what it is scored on after epochs, None for nothing.  config: what its run folder is told besides
    `settings`.
    """
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    hand_model = dataset.reader.hand_model
    settings = TrainConfig(**{"epochs": 3, "batch_size": 2, "lr": 1e-2, "lr_drops": (2,), **settings})
    run = RunFolder(replace(config or Config(), train=settings, output=str(output)), hand_model, process, resume=False)
    samples = SamplesOnDisk(dataset, workers=workers, max_bad_fraction=max_bad_fraction)
    return Trainer(model or ToyHands(), toy_loss(hand_model), samples, settings, run,
                   validated and partial(toy_evaluator, validated, process), on_step)


def plain_trainer(dataset: TwoHandDataset, output: Path, process: Process = CPU, **settings) -> Trainer:
    """A trainer whose steps do not depend on how two samples are shared out over processes: without dropout, without
    batch normalisation, which sees the samples of its own process only, and on samples that annotate alike."""
    torch.manual_seed(0)
    settings = {"epochs": 1, "batch_size": 2 // process.world_size, "lr": 1e-4, **settings}
    return toy_trainer(dataset, output, model=ToyHands(dropout=0.0, normalized=False), process=process, **settings)


def toy_evaluator(dataset: TwoHandDataset, process: Process, model: nn.Module, mean_joints: Tensor) -> Evaluator:
    return Evaluator(partial(predict, model), dataset, mean_joints, settings=TestConfig(batch_size=4), workers=0,
                     process=process)


def stop_after(steps: int) -> Callable[[Trainer], None]:
    """An `on_step` by which a SIGTERM comes after a step; it is met in the one after."""
    def on_step(trainer: Trainer) -> None:
        if trainer.progress.step == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_step


def resumed(dataset: TwoHandDataset, output: Path, **settings) -> Trainer:
    """A trainer that goes on from the last snapshot under `output`."""
    trainer = toy_trainer(dataset, output, **settings)
    random.seed(1234)           # whatever the new process drew before it went on
    np.random.seed(1234)
    torch.manual_seed(1234)
    trainer.restore(load_latest(output / "model_dump")[0])
    return trainer


def assert_same_end(output: Path, reference: Snapshot) -> None:
    """The run ended in the state of `reference`, to the bit."""
    snapshot = load_latest(output / "model_dump")[0]
    assert (snapshot.step, snapshot.next_epoch) == (reference.step, reference.next_epoch) and not snapshot.next_sample
    torch.testing.assert_close(snapshot.model, reference.model, rtol=0, atol=0)
    torch.testing.assert_close(snapshot.optimizer, reference.optimizer, rtol=0, atol=0)
    for mine, theirs in zip(snapshot.random_states, reference.random_states, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
