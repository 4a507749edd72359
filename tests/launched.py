"""Trains the toy of the tests, in whatever processes it finds itself:   launched.py DATA OUTPUT EPOCHS [two]

`two` starts two processes on the CPU as `--gpu 0-1` starts two on GPUs.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository, however Python was started
import main._bootstrap as _bootstrap

from functools import partial

import torch
from toy_training import plain_trainer, toy_dataset

import main.engine.processes.launch as launch
from common.errors import run_entry_point
from common.mano.load import load_hand_model


def train(data: Path, output: Path, epochs: int, process: launch.Process) -> int:
    torch.set_num_threads(1)
    return plain_trainer(toy_dataset(data, load_hand_model("builtin")), output, process, epochs=epochs).fit()


if __name__ == "__main__":
    data, output, epochs, *two = sys.argv[1:]
    if two:
        launch.choose_devices = lambda gpu, available: [torch.device("cpu")] * 2
    run_entry_point(lambda: launch.launch(partial(train, Path(data), Path(output), int(epochs)), "cpu"))
