"""Test a snapshot.   python test.py [--gpu 0] --test_epoch 29 [--split test] [--set data.root=… …]"""

import _bootstrap  # noqa: F401, I001   repository root on sys.path

import argparse
from functools import partial
from pathlib import Path

from common.engine.build import ROOT, refuse_changes
from common.engine.checkpoint import load_snapshot, snapshot_path
from common.engine.evaluator import Evaluator, report
from common.engine.launch import GPU_FORMS, Process, launch
from common.engine.log import start_log
from common.errors import EXIT_OK, run_entry_point
from main.config import changed_config, config_from_dict, config_to_dict


def test(output: Path, epoch: int, overrides: list[str], process: Process) -> int:
    start_log(output / "log" / "test.log", is_main=process.is_main)
    path = snapshot_path(output / "model_dump", epoch)
    snapshot, sha256 = load_snapshot(path)
    stored = config_from_dict(snapshot.config)
    config = changed_config(stored, overrides)
    refuse_changes(stored, config, str(path))

    scores = Evaluator.build(config, snapshot, str(path), process).run()
    if not process.is_main:
        return EXIT_OK
    data = {"name": config.data.testset, "split": config.data.test_split, "root": Path(config.data.root).name,
            "filter": config.data.filter, "box_source": config.data.box_source}
    facts = {"data": data, "hand_model": snapshot.hand_model, "checkpoint_sha256": sha256, "epoch": epoch,
             "config": config_to_dict(config)}
    return report(scores, facts, output / "result")


def main() -> int:
    parser = argparse.ArgumentParser(description="Test a snapshot; the model is built from the configuration in it.")
    parser.add_argument("--gpu", help=GPU_FORMS)
    parser.add_argument("--test_epoch", type=int, required=True, help="N of snapshot_N.pth.tar")
    parser.add_argument("--testset", help="short for --set data.testset=NAME")
    parser.add_argument("--split", help="short for --set data.test_split=NAME")
    parser.add_argument("--output", default="output", help="the run's output folder; relative to the repository")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="change data and test options, for example data.root=FOLDER")
    args = parser.parse_args()
    chosen = {"data.testset": args.testset, "data.test_split": args.split}
    overrides = [*args.set, *(f"{key}={value}" for key, value in chosen.items() if value is not None)]
    return launch(partial(test, ROOT / args.output, args.test_epoch, overrides), args.gpu)


if __name__ == "__main__":
    run_entry_point(main)
