"""Train LGNet.   python train.py [--gpu 0-1] [--config lgnet] [--continue] [--set train.lr=3e-4 …]"""

import _bootstrap  # noqa: F401, I001   repository root on sys.path

import argparse
from functools import partial

from common.engine.launch import GPU_FORMS, Process, launch
from common.engine.trainer import Trainer
from common.errors import run_entry_point
from main.config import Config, load_config, mano_overrides


def train(config: Config, resume: bool, process: Process) -> int:
    return Trainer.build(config, process, resume=resume).fit()


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
