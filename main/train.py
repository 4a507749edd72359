"""Train LGNet.   python train.py [--gpu 0-1] [--config lgnet] [--continue] [--set train.lr=3e-4 …]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository, however Python was started
import main._bootstrap as _bootstrap

from functools import partial

from common.errors import run_entry_point
from common.nets.zoo import build_model
from main.arguments import train_parser
from main.build import build_hand_model, build_loss, build_training_samples, build_validation, load_initial_weights
from main.config import Config, load_config, mano_overrides
from main.engine.processes.launch import Process, launch
from main.engine.processes.seeding import seed_everything
from main.engine.progress import Outcome
from main.engine.run.folder import RunFolder
from main.engine.trainer import Trainer


def train(config: Config, resume: bool, process: Process) -> Outcome:
    """Train the configured network; `resume` goes on from the last snapshot."""
    hand_model = build_hand_model(config.hand_model)
    with RunFolder(config, hand_model, process, resume=resume) as run:      # lock, log, snapshots
        seed_everything(config.train.seed, process.rank)
        samples = build_training_samples(config, hand_model, process.device)
        model = build_model(config.model, hand_model)
        if not resume:
            load_initial_weights(model, config, hand_model)
        loss = build_loss(config, hand_model)
        validation = build_validation(config, hand_model, process)
        return Trainer(model, loss, samples, config.train, run, validation).fit()


def main() -> int:
    args = train_parser(__doc__).parse_args()
    config = load_config(args.config, [*args.set, *mano_overrides(args.mano)])
    return launch(partial(train, config, args.resume), args.gpu)


if __name__ == "__main__":
    run_entry_point(main)
