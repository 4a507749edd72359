"""Images per second of training, by the trainer's own steps, and what share of each step waited for data.

First the trainer runs alone: its speed, waiting included, and its peak memory. Then its steps take turns with those of
a bare torchvision ResNet (the configuration's backbone: forward, backward and Adam on a batch that is always there)
under the same options. A busy machine slows both, so the ratio of their times tells more than either; it is the
median over the steps, the trainer's waiting left out, since its loader works on while the ResNet's turn is.

--json FILE: one row: config, device, torch, batch_size, accumulate, precision, compile, channels_last, workers,
             images_per_s, step_ms, data_share, peak_gb (of the device; on the CPU of this process),
             resnet (its name), resnet_images_per_s, ratio_resnet
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from common.errors import EXIT_OK, UserError
from common.nets.torchvision_import import import_torchvision
from common.nets.zoo import build_model
from common.predict.fast import accelerated
from main.build import build_loss
from main.config import Config
from main.engine.batches import SamplesOnDisk
from main.engine.processes.launch import Process, choose_devices, launch
from main.engine.run.folder import RunFolder
from main.engine.trainer import Trainer
from tool.dev.benchmarks import training_set

HELP = "images per second of training, beside a bare ResNet"

WARM_UP = 3    # steps before the clock counts: they compile, choose algorithms and fill caches
_CHANGES = {    # flags and the configuration that they change
    "batch_size": "train.batch_size", "accumulate": "train.accumulate", "precision": "train.precision",
    "compile": "train.compile", "workers": "data.workers",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    training_set.add_arguments(parser)
    for flag, key in _CHANGES.items():
        parser.add_argument(f"--{flag}", help=f"short for --set {key}=…")
    parser.add_argument("--channels_last", action="store_true", help="short for --set train.channels_last=true")
    parser.add_argument("--gpu", help="one device, as for train.py")
    parser.add_argument("--steps", type=int, default=20, help="timed, after warming up; twice (default: 20)")
    parser.add_argument("--json", type=Path, help="write the row here")


def run(args: argparse.Namespace) -> None:
    if args.steps < 1:
        raise UserError(f"--steps is {args.steps}.", "It must be at least 1.")
    changes = [f"{key}={getattr(args, flag)}" for flag, key in _CHANGES.items() if getattr(args, flag) is not None]
    args.set = [*args.set, *changes, *(["train.channels_last=true"] if args.channels_last else [])]
    device = choose_devices(args.gpu, torch.cuda.device_count())[0]
    launch(partial(_measure, args), "cpu" if device.type == "cpu" else str(device.index))


def _measure(args: argparse.Namespace, process: Process) -> int:
    with training_set.training_set(args, steps=WARM_UP + args.steps) as (config, samples):
        alone = _timed_steps(config, samples, process)
        peak_gb = _peak_gb(process.device)
        in_turns = _timed_steps(config, samples, process, _resnet_step(config, process.device))
    row = _row(args, config, process.device) | _figures(config, alone, in_turns) | {"peak_gb": peak_gb}
    _report(row)
    if args.json:
        args.json.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    return EXIT_OK


def _row(args: argparse.Namespace, config: Config, device: torch.device) -> dict[str, Any]:
    train = config.train
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return {
        "config": args.config, "device": name, "torch": str(torch.__version__), "batch_size": train.batch_size,
        "accumulate": train.accumulate, "precision": train.precision, "compile": train.compile,
        "channels_last": train.channels_last, "workers": config.data.workers, "resnet": config.model.backbone,
    }


def _figures(config: Config, alone: list["_Step"], in_turns: list["_Step"]) -> dict[str, Any]:
    batch_size, accumulate = config.train.batch_size, config.train.accumulate
    seconds, resnet_s = sum(step.whole for step in alone), sum(step.between for step in in_turns)
    return {
        "images_per_s": len(alone) * batch_size * accumulate / seconds, "step_ms": 1e3 * seconds / len(alone),
        "data_share": sum(step.waited for step in alone) / seconds,
        "resnet_images_per_s": len(in_turns) * batch_size / resnet_s,
        "ratio_resnet": statistics.median((step.whole - step.waited) / accumulate / step.between for step in in_turns),
    }


def _report(row: dict[str, Any]) -> None:
    layout = "channels_last" if row["channels_last"] else "usual layout"
    print(f"{row['config']} on {row['device']}: {row['accumulate']} × {row['batch_size']} images in a step, "
          f"{row['precision']}, {layout}, compile {row['compile'] or 'off'}, {row['workers']} loader processes")
    print(f"  {row['images_per_s']:.1f} images/s, {row['step_ms']:.0f} ms/step, of which {row['data_share']:.1%} waits "
          f"for data; peak memory {row['peak_gb']:.2f} GB")
    print(f"  bare {row['resnet']}: {row['resnet_images_per_s']:.1f} images/s; the trainer takes "
          f"{row['ratio_resnet']:.2f} times as long for an image")


# ---------------------------------------------------------------- timing

class _Step(NamedTuple):
    """Seconds."""

    whole: float
    waited: float       # for data
    between: float      # what ran between this step and the next


def _timed_steps(config: Config, samples: SamplesOnDisk, process: Process, between: Callable[[], None] | None = None
                 ) -> list[_Step]:
    """The steps of an epoch as train.py takes it, without the first ones; `between` runs after each, off the clock."""
    settings = replace(config.train, epochs=1, lr_drops=(), validate_every=0, save_every=0)
    steps, clock = [], {"start": 0.0, "waited": 0.0}

    def time_step(trainer: Trainer) -> None:
        if between:
            _await(process.device)
        whole, waited = time.perf_counter() - clock["start"], trainer.waited_s - clock["waited"]
        steps.append(_Step(whole, waited, _seconds(between, process.device) if between else 0.0))
        if len(steps) == WARM_UP and process.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(process.device)
        clock.update(start=time.perf_counter(), waited=trainer.waited_s)

    hand_model = samples.dataset.reader.hand_model
    with tempfile.TemporaryDirectory() as output, \
            RunFolder(replace(config, output=output), hand_model, process, resume=False) as run:
        trainer = Trainer(build_model(config.model, hand_model), build_loss(config, hand_model), samples, settings, run,
                          on_step=time_step)
        with patch.object(trainer, "save"):
            if trainer.fit():
                raise UserError("Training stopped: the reason stands above.")
    return steps[WARM_UP:]


def _resnet_step(config: Config, device: torch.device) -> Callable[[], None]:
    """A training step of the bare backbone, with a classifier, on as many pictures as one of the trainer's batches."""
    train, size = config.train, config.model.input_size
    net = import_torchvision().models.get_model(config.model.backbone).to(device).train()
    fast = accelerated(net, channels_last=train.channels_last, compile_mode=train.compile)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)
    image = torch.rand(train.batch_size, 3, size, size, device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=train.precision == "bfloat16"):
            scores = fast(image)
        scores.float().square().mean().backward()
        optimizer.step()

    return step


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    _await(device)
    return time.perf_counter() - start


def _await(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
