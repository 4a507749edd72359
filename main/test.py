"""Test a snapshot.   python test.py [--gpu 0] --test_epoch 29 [--split test] [--set data.root=… …]

--checkpoint FILE tests a snapshot elsewhere or a file of weights instead.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository, however Python was started
import main._bootstrap as _bootstrap

from functools import partial
from typing import Literal

from common.errors import EXIT_OK, run_entry_point
from common.exchange.predictions import Origin, PredictionWriter, join_parts
from common.files import ROOT
from common.score.plots import write_curves
from main.arguments import test_parser
from main.build import build_dataset
from main.config import config_to_dict, mano_overrides
from main.engine.batches import predict
from main.engine.evaluator import Evaluator, report, samples_sha256, write_samples
from main.engine.processes.launch import Process, launch
from main.engine.run.lock import run_lock
from main.engine.run.log import start_log
from main.engine.run.snapshots import best_epoch, snapshot_path
from main.network import load_network


def test(output: Path, which: int | Literal["best"] | Path, overrides: list[str], dump: Path | None,
         predictions: Path | None, process: Process) -> int:
    """which: an epoch of the run in `output`, or a file."""
    with run_lock(output / "test.lock", process, "Wait for that test to end: each replaces the result of the one "
                  "before."):
        start_log(output / "log" / "test.log", is_main=process.is_main)
        if which == "best":     # training may save another one meanwhile: the main process decides
            which = int(process.gather(best_epoch(output / "model_dump"))[0])
        return score(output, which, overrides, dump, predictions, process)


def score(output: Path, which: int | Path, overrides: list[str], dump: Path | None, predictions: Path | None,
          process: Process) -> int:
    path = which if isinstance(which, Path) else snapshot_path(output / "model_dump", which)
    predictor, config, trained = load_network(path, overrides, process.device)
    process.refuse_difference("snapshot", f"{path.name} with sha256 {trained.sha256[:12]}")
    dataset = build_dataset(config, predictor.hand_model, config.data.testset, config.data.test_split)
    writer = PredictionWriter(predictions, process.rank) if predictions else None
    evaluator = Evaluator(partial(predict, predictor.model), dataset, trained.mean_joints, settings=config.test,
                          workers=config.data.workers, process=process, save=writer.add if writer else None)
    tally = evaluator.run()
    assert tally is not None, "nothing stops a test"
    if writer:
        writer.close()
    process.gather(None)        # the predictions of all processes are on disk
    if not process.is_main:
        return EXIT_OK
    if predictions:
        origin = Origin(config.data.testset, config.data.test_split, trained.hand_model)
        join_parts(predictions, process.world_size, origin, evaluator.sample_id)
    curves = write_curves(tally, evaluator.protocol, output / "result" / "curves", config.test.bins)
    data = {"name": config.data.testset, "split": config.data.test_split, "root": Path(config.data.root).name,
            "filter": config.data.filter, "box_source": config.data.box_source,
            "samples_sha256": samples_sha256(evaluator.size, evaluator.sample_id)}
    metadata = {"curves": curves, "data": data, "hand_model": trained.hand_model, "checkpoint": path.name,
             "checkpoint_sha256": trained.sha256, "epoch": None if which == path else which,
             "config": config_to_dict(config)}
    code = report(evaluator.scores(), metadata, output / "result")
    if dump:
        write_samples(dump, tally, evaluator.sample_id)
    return code


def main() -> int:
    args = test_parser(__doc__).parse_args()
    chosen = {"data.testset": args.testset, "data.test_split": args.split, "test.protocol": args.protocol,
              "test.pck_exclude_root": args.pck_exclude_root, "test.pck_strict": args.pck_strict,
              "test.bins": args.bins and f"[{','.join(args.bins)}]"}
    overrides = [*args.set, *(f"{key}={value}" for key, value in chosen.items() if value is not None)]
    overrides += mano_overrides(args.mano)
    which = args.checkpoint or args.test_epoch
    return launch(partial(test, ROOT / args.output, which, overrides, args.dump, args.save_predictions), args.gpu)


if __name__ == "__main__":
    run_entry_point(main)
