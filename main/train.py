"""Train LGNet.   python train.py [--gpu 0-1] [--config lgnet] [--continue] [--set train.lr=3e-4 …]"""

import _bootstrap

import argparse
from functools import partial

from common.errors import run_entry_point
from common.files import ROOT
from main.config import Config, load_config, mano_overrides
from main.engine.processes.launch import GPU_FORMS, Process, launch
from main.engine.run.lock import run_lock
from main.engine.run.record import fit_recorded
from main.engine.trainer import Trainer


def train(config: Config, resume: bool, process: Process) -> int:
    with run_lock(ROOT / config.output / "train.lock", process,
                  "Wait for that run to end, or give this one a folder of its own with --set output=FOLDER."):
        return fit_recorded(Trainer.build(config, process, resume=resume), config, resume=resume)


def main() -> int:
    parser = argparse.ArgumentParser(description="Train LGNet.")
    parser.add_argument("--gpu", help=GPU_FORMS)
    parser.add_argument("--config", default="lgnet", help="a YAML file, or the name of one in main/configs")
    parser.add_argument("--continue", dest="resume", action="store_true", help="go on from the last snapshot")
    parser.add_argument("--mano", metavar="FOLDER",
                        help="folder of the MANO files; short for --set hand_model.name=mano hand_model.path=FOLDER")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="change the configuration, for example train.lr=3e-4")
    args = parser.parse_args()
    config = load_config(args.config, [*args.set, *mano_overrides(args.mano)])
    return launch(partial(train, config, args.resume), args.gpu)


if __name__ == "__main__":
    run_entry_point(main)
