"""Frames to train on for a benchmark: a set of the user's, or a few rendered ones that are read again and again."""

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from common.errors import UserError
from data.schema import Reader, Record
from data.synthetic.on_disk.generate import generate
from data.synthetic.on_disk.plan import Settings
from main.build import build_hand_model, build_training_samples
from main.config import Config, changed_config, load_config
from main.engine.batches import SamplesOnDisk

_FRAMES = 48


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, help="a data set; left out, a few frames are rendered for the occasion")
    parser.add_argument("--config", default="lgnet", help="as for train.py")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="as for train.py")


@contextmanager
def training_set(args: argparse.Namespace, steps: int) -> Iterator[tuple[Config, SamplesOnDisk]]:
    """The configuration, and as many of its augmented training samples as `steps` steps of one process take.

    Frames come again and again, each time in another view.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = args.root or Path(folder)
        if not args.root:
            print(f"rendering {_FRAMES} frames")
            generate(root, Settings(_FRAMES, seed=0, interacting=1.0), workers=os.cpu_count())
        config = changed_config(load_config(args.config), [f"data.root={root.absolute()}", *args.set])
        samples = build_training_samples(config, build_hand_model(config.hand_model), torch.device("cpu"))
        if not isinstance(samples, SamplesOnDisk):
            raise UserError("data.render_anew is true.", "`python tool/dev/bench.py synth` times rendering.")
        length = steps * config.train.accumulate * config.train.batch_size
        samples.dataset.reader = samples.reader = _Repeated(samples.reader, length)
        yield config, samples


class _Repeated:
    """As many frames as asked for, from a reader that may have fewer."""

    def __init__(self, reader: Reader, length: int):
        self.reader, self.length, self.hand_model = reader, length, reader.hand_model

    def __len__(self) -> int:
        return self.length

    def read(self, index: int) -> Record:
        return self.reader.read(index % len(self.reader))

    def describe(self, index: int) -> dict[str, str | int]:
        return self.reader.describe(index % len(self.reader))

    def sources(self) -> dict[str, str]:
        return self.reader.sources()
