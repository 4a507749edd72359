"""Score a prediction file without the model that made it.

    python tool/evaluate.py FILE.npz --set data.root=FOLDER [--protocol interwild] [--mano FOLDER] [--allow_missing]

FILE.npz comes from `main/test.py --save_predictions` or from `tool/convert_predictions.py`; docs/predictions.md
describes it. Every protocol is computed, the chosen one is printed. The data set, its split and the hand model are
those that the file names; samples are joined by name, so neither their order nor the folder of the set matters.
Writes metrics.json and the curves into FILE_scores. Exit code 4: some predictions are not finite, or some samples of
the test set cannot be used.
"""

import _bootstrap

import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common.errors import EXIT_OK, EXIT_SOME_FAILED, UserError, run_entry_point
from common.exchange.conversion import wrist_relative_meshes
from common.exchange.predictions import PredictionFile, Predictions
from common.files import finite_or_none, sha256_of, write_json
from common.mano.model import ManoLayer
from common.score.metrics import PckOptions, PredictedHands, protocol_named, report_lines
from common.score.plots import write_curves
from common.score.scores import Scores, plain
from common.score.tally import Scorer, Tally
from data.dataset import TwoHandDataset
from data.schema import Reader
from main.build import build_dataset, build_hand_model
from main.config import Config, load_config, mano_overrides
from main.engine.bad_samples import BadSamples
from main.engine.batches import batches, build_loader, dead_loaders_told
from main.engine.evaluator import samples_sha256
from main.engine.processes.launch import Process
from tool.arguments import evaluate_parser


def main() -> int:
    args = evaluate_parser(__doc__).parse_args()
    file = PredictionFile(args.file)
    chosen = [] if args.protocol is None else [f"test.protocol={args.protocol}"]
    config = configure(file, [*args.set, *chosen, *mano_overrides(args.mano)])
    protocol = protocol_named(config.test.protocol)
    dataset = open_dataset(file, config)
    reader = dataset.reader
    print(reader.summary)
    bad = BadSamples(reader, Process(torch.device("cpu")))
    tally = score(file, join(file, reader, allow_missing=args.allow_missing), dataset, config, bad)
    scores = tally.scores(protocol, unusable=bad.reasons(), allow_missing=args.allow_missing)

    folder = args.output or args.file.with_name(f"{args.file.stem}_scores")
    metadata = {
        "curves": write_curves(tally, protocol, folder / "curves", config.test.bins),
        "data": {"name": file.origin.dataset, "split": file.origin.split, "root": Path(config.data.root).name,
                 "filter": config.data.filter, "box_source": config.data.box_source,
                 "samples_sha256": samples_sha256(len(reader), reader.sample_id)},
        "hand_model": reader.hand_model.identity,
        "predictions": {"file": args.file.name, "sha256": sha256_of(args.file), "samples": len(file)},
        "test": asdict(config.test),
    }
    write_json(folder / "metrics.json", finite_or_none(plain(scores) | metadata))
    return _report(scores, folder)


def configure(file: PredictionFile, overrides: list[str]) -> Config:
    """The configuration with the data set and the hand model of the file, changed by `a.b=c` overrides."""
    origin = file.origin
    named = [f"data.testset={origin.dataset}", f"data.test_split={origin.split}",
             f"hand_model.name={origin.hand_model['name']}"]
    config = load_config("lgnet", [*named, *overrides])
    if (config.data.testset, config.data.test_split) != (origin.dataset, origin.split):
        raise UserError(f"{file.path} holds predictions for {origin.dataset} {origin.split}, not for "
                        f"{config.data.testset} {config.data.test_split}.", "Leave data.testset and test_split out.")
    return config


def open_dataset(file: PredictionFile, config: Config) -> TwoHandDataset:
    """The test set that the configuration names; UserError if the file belongs to another hand model."""
    hand_model = build_hand_model(config.hand_model)
    file.check_hand_model(hand_model)
    return build_dataset(config, hand_model, config.data.testset, config.data.test_split)


def join(file: PredictionFile, reader: Reader, *, allow_missing: bool) -> np.ndarray:
    """The row of the file for each sample of the test set (N,), −1 where there is none.

    Raises UserError if the two do not hold the same samples, unless that is allowed: then it is said.
    """
    row_of = {image: row for row, image in enumerate(file.image.tolist())}
    ids = [reader.sample_id(index) for index in range(len(reader))]
    rows = np.array([row_of.get(image, -1) for image in ids])
    unknown = row_of.keys() - set(ids)
    problems = []
    if (rows < 0).any():
        problems.append(f"{(rows < 0).sum()} of the {len(ids)} samples of the test set have no prediction, the first "
                        f"is '{ids[rows.argmin()]}'")
    if unknown:
        problems.append(f"{len(unknown)} of the {len(file)} predictions are for samples that are not in the test set, "
                        f"such as '{min(unknown)}'")
    if problems and (not allow_missing or (rows < 0).all()):
        raise UserError(f"{file.path} does not fit the test set: {'; '.join(problems)}.",
                        "Is --set data.filter, data.root or the split another one? --allow_missing scores what is in "
                        "both.")
    for problem in problems:
        print(f"Left out: {problem}.")
    return rows


@torch.inference_mode()
@dead_loaders_told()
def score(file: PredictionFile, rows: np.ndarray, dataset: TwoHandDataset, config: Config, bad: BadSamples) -> Tally:
    """Score the predictions of all samples that have one; `bad` counts those that cannot be used.

    rows: from `join`.
    """
    reader = dataset.reader
    layer = ManoLayer(reader.hand_model)
    scorer = Scorer(reader.hand_model.regressor, len(reader), reader.sample_id, reader.hand_type,
                    pck=PckOptions(config.test.pck_exclude_root, config.test.pck_strict))
    # The images are read too: test.py leaves out samples whose image is damaged or black.
    keys = [(0, index) for index in np.flatnonzero(rows >= 0).tolist()]
    loader = build_loader(dataset, keys, batch_size=config.test.batch_size, workers=config.data.workers,
                          device=bad.process.device, drop_last=False)
    for batch in tqdm(batches(loader, bad.process.device), total=len(loader), desc="score", leave=False, disable=None):
        index = batch.index.numpy()
        bad.add({row: code for row, code in zip(index.tolist(), batch.fault.tolist(), strict=True) if code})
        scorer.add(_hands(file.take(rows[index]), layer), batch.targets, batch.index)
    return scorer.tally


def _hands(predictions: Predictions, layer: ManoLayer) -> PredictedHands:
    columns = (wrist_relative_meshes(predictions, layer), predictions.joints, predictions.relative,
               predictions.predicted)
    return PredictedHands(*(None if values is None else torch.from_numpy(values) for values in columns))


def _report(scores: Scores, folder: Path) -> int:
    counts = scores.counts
    for line in report_lines(protocol_named(scores.protocol), scores.printed):
        print(line)
    print(f"{counts.samples} samples under the protocol '{scores.protocol}'; all numbers are in "
          f"{folder / 'metrics.json'}")
    if counts.missing_hands:
        print(f"Left out: {counts.missing_hands} annotated hands that were not predicted.")
    if counts.not_finite:
        print(f"{counts.not_finite} samples have predictions that are not finite.", file=sys.stderr)
    if counts.unusable:
        print(f"{counts.unusable} samples cannot be used and are in no mean: {scores.unusable}.", file=sys.stderr)
    return EXIT_SOME_FAILED if counts.not_finite or counts.unusable else EXIT_OK


if __name__ == "__main__":
    run_entry_point(main)
