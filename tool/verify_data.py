"""Look at every sample of a data set before a night of training: what is missing, broken, black or labelled wrongly?

    python tool/verify_data.py --set data.root=ROOT [--testset HIC] [--split train test] [--limit 1000] [--json FILE]
    python tool/verify_data.py --set data.root=ROOT --preset rendered-v1

Samples are read and checked as in training, in several processes. A table tells how many cannot be used for each
reason, with the first of them; annotations that are broken beyond reading are in it too. --preset compares a rendered
set with what was recorded of one that stands still instead. Exit code: 0 if nothing is wrong, 4 if anything is, 2 if
the set cannot be opened.
"""

import _bootstrap

import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from common.errors import EXIT_OK, EXIT_SOME_FAILED, UserError, printable, run_entry_point
from common.files import from_repository, write_atomically
from common.mano.model import HandModel
from data.checks import BadSample, Reason
from data.dataset import read_frame
from data.schema import NoSuchSplit, Reader
from data.synthetic.on_disk.preset import load_preset, print_verdict
from main.build import build_dataset, build_hand_model
from main.config import Config, load_config, mano_overrides
from main.engine.batches import dead_loaders_told, loaded, start_worker
from tool.arguments import SPLITS, verify_data_parser

SHOWN = 3       # of each reason; --json has all


class Finding(NamedTuple):
    """A sample, and what is wrong with it."""

    index: int
    reason: Reason | None       # None: nothing
    detail: str


class Examination(Dataset):
    """Findings about the samples of a reader."""

    def __init__(self, reader: Reader):
        self.reader = reader

    def __getitem__(self, index: int) -> Finding:
        try:
            read_frame(self.reader, index)
        except BadSample as bad:
            return Finding(index, bad.reason, bad.detail)
        return Finding(index, None, "")


def main() -> int:
    args = verify_data_parser(__doc__).parse_args()
    if args.workers < 0 or args.limit < 0:
        raise UserError(f"--workers is {args.workers} and --limit {args.limit}.", "Neither may be negative.")
    config = load_config(args.config, [*args.set, *mano_overrides(args.mano)])
    if args.preset:
        return print_verdict(from_repository(config.data.root), load_preset(args.preset))
    name = args.testset or config.data.trainset
    reports = {}
    for split, reader in _readers(config, build_hand_model(config.hand_model), name, args.split):
        print(reader.summary)
        reports[split] = report = examine(reader, args.workers, args.limit)
        print_report(f"{name} {split}", report, config.data.max_bad_fraction)
    if args.json:
        content = {"name": name, "root": config.data.root, "filter": config.data.filter, "splits": reports}
        write_atomically(args.json, lambda file: file.write(json.dumps(content, indent=2).encode()))
    return EXIT_SOME_FAILED if any(report["bad"] or report["broken"] for report in reports.values()) else EXIT_OK


def _readers(config: Config, hand_model: HandModel, name: str, splits: list[str] | None
             ) -> Iterator[tuple[str, Reader]]:
    """A reader of each split; of those not asked for by name, the ones that exist."""
    found, missing = False, None
    for split in splits or SPLITS:
        try:
            reader = build_dataset(config, hand_model, name, split).reader
        except NoSuchSplit as error:
            if splits:
                raise
            missing = missing or error
            continue
        found = True
        yield split, reader
    if not found:
        raise missing


@dead_loaders_told()
def examine(reader: Reader, workers: int, limit: int = 0) -> dict[str, Any]:
    """What is wrong with the samples of a reader, as plain values; with a limit of so many, evenly spread."""
    count = min(limit, len(reader)) if limit else len(reader)
    indices = np.linspace(0, len(reader) - 1, count).round().astype(int).tolist()
    loader = DataLoader(Examination(reader), batch_size=32, sampler=indices, num_workers=workers, collate_fn=list,
                        worker_init_fn=start_worker)
    start, bad = time.perf_counter(), []
    # disable=None: no bar where the output is no terminal.
    with tqdm(total=count, unit="samples", leave=False, disable=None) as bar:
        for findings in loaded(loader):
            bad += [finding for finding in findings if finding.reason]
            bar.update(len(findings))
            bar.set_postfix(bad=len(bad))
    seconds = time.perf_counter() - start
    return {
        "samples": len(reader), "examined": count, "bad": len(bad), "left_out": reader.left_out,
        "reasons": dict(Counter(str(finding.reason) for finding in bad).most_common()),
        "broken": reader.broken(),
        "samples_per_second": round(count / seconds, 1), "processes": max(1, workers),
        "bad_samples": [{"index": finding.index, "reason": str(finding.reason), "detail": finding.detail,
                         **reader.describe(finding.index)} for finding in bad],
    }


def print_report(title: str, report: dict[str, Any], max_bad_fraction: float) -> None:
    """The table of one split, and a line that sums it up."""
    bad, examined = report["bad"], report["examined"]
    for reason, count in report["reasons"].items():
        samples = [f"{sample['path']}: {sample['detail']}" for sample in report["bad_samples"]
                   if sample["reason"] == reason]
        _print_row(reason, f"{count} samples, {count / examined:.3%}", samples)
    for reason, names in report["broken"].items():
        _print_row(reason, f"{len(names)} annotations, never read", names)
    verdict = f"{bad} of {examined} samples ({bad / examined:.3%}) cannot be used" if bad else \
        f"all {examined} samples can be used"
    if bad > max_bad_fraction * examined:
        verdict += f"; training stops at more than data.max_bad_fraction={max_bad_fraction}"
    processes = f"{report['processes']} process{'es' if report['processes'] > 1 else ''}"
    print(f"{title}: {verdict}. {report['samples_per_second']:.0f} samples/s in {processes}.")


def _print_row(reason: str, count: str, names: list[str]) -> None:
    print(f"  {reason:24s} {count}")
    for name in names[:SHOWN]:
        print(f"      {printable(name)}")
    if len(names) > SHOWN:
        print(f"      and {len(names) - SHOWN} more")


if __name__ == "__main__":
    run_entry_point(main)
