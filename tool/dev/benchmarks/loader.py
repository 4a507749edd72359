"""How many samples per second the loader delivers: decoding, cropping, augmenting and targets, without any training.

Frames are read again and again, so the page cache is warm: a disk is not measured. The rounds go through the numbers
of loader processes in turn, beside a bare cv2.imread of the same files in this process, so that a machine that is
busy for a while slows all of them; the medians over the rounds are told.

--json FILE: samples_per_s   by number of loader processes; 0 loads in the process that trains
             imread_per_s    files that cv2.imread alone decodes, one process
             sample_ms       where the time of one sample goes, one process
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import torch
from torch.utils.data import default_collate

import data.augment
import data.dataset
from common.errors import UserError
from data.dataset import EpochSampler, TwoHandDataset
from main.engine.batches import build_loader, loaded
from tool.dev.benchmarks import training_set

HELP = "samples per second of the loader, and where the time goes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    training_set.add_arguments(parser)
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2], help="loader processes (default: 0 1 2)")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=20, help="timed in each round (default: 20)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the numbers here")


def run(args: argparse.Namespace) -> None:
    if min(args.batch_size, args.batches, args.rounds) < 1 or min(args.workers) < 0:
        raise UserError("--batch_size, --batches and --rounds must be at least 1, --workers at least 0.")
    torch.set_num_threads(1)
    args.set = [*args.set, f"train.batch_size={args.batch_size}"]
    rates: dict[str, list[float]] = defaultdict(list)
    with training_set.training_set(args, steps=args.batches + 1) as (config, samples):
        dataset = samples.dataset
        print(f"{config.data.trainset}, crops of {dataset.size} px, {args.rounds} rounds of {args.batches} batches of "
              f"{args.batch_size}; the page cache is warm")
        for _ in range(args.rounds):
            rates["imread"].append(_imread_rate(dataset))
            for workers in args.workers:
                rates[str(workers)].append(_rate(dataset, args.batch_size, workers))
        sample_ms = _sample_ms(dataset, args.batch_size)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    results = {"imread_per_s": medians.pop("imread"), "samples_per_s": medians, "sample_ms": sample_ms}
    _report(results, rates)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _report(results: dict[str, Any], rates: dict[str, list[float]]) -> None:
    for workers, rate in results["samples_per_s"].items():
        print(f"{workers} loader processes: {rate:6.1f} samples/s   ({min(rates[workers]):.0f} to "
              f"{max(rates[workers]):.0f})")
    print(f"cv2.imread alone:   {results['imread_per_s']:6.1f} files/s     ({min(rates['imread']):.0f} to "
          f"{max(rates['imread']):.0f})")
    stages = "   ".join(f"{stage} {ms:.2f}" for stage, ms in results["sample_ms"].items())
    print(f"one sample in ms:   {stages}")


def _rate(dataset: TwoHandDataset, batch_size: int, workers: int) -> float:
    """Samples per second after the first batch."""
    loader = build_loader(dataset, EpochSampler(len(dataset)), batch_size=batch_size, workers=workers,
                          device=torch.device("cpu"), drop_last=True)
    batches = loaded(loader)
    next(batches)
    start = time.perf_counter()
    count = sum(len(batch.index) for batch in batches)
    return count / (time.perf_counter() - start)


def _imread_rate(dataset: TwoHandDataset, files: int = 300) -> float:
    paths = [dataset.reader.describe(index)["path"] for index in range(min(files, len(dataset)))]
    start = time.perf_counter()
    for path in paths:
        cv2.imread(path)
    return len(paths) / (time.perf_counter() - start)


# ---------------------------------------------------------------- where the time goes

def _sample_ms(dataset: TwoHandDataset, batch_size: int, batches: int = 10) -> dict[str, float]:
    """Milliseconds of each stage of a sample, and `total`, in this process."""
    places = {
        "labels": (dataset.reader, "read"), "decode": (data.dataset, "read_rgb"),
        "check labels": (data.dataset, "check_record"), "check black": (data.dataset, "is_black"),
        "crop": (data.augment, "_crop_image"), "make": (data.dataset, "make_sample"),
    }
    spent: dict[str, float] = defaultdict(float)
    start = time.perf_counter()
    with _clocked(places, spent):
        for batch in range(batches):
            samples = [dataset[0, batch * batch_size + row] for row in range(batch_size)]
            collating = time.perf_counter()
            default_collate(samples)
            spent["collate"] += time.perf_counter() - collating
    total = time.perf_counter() - start
    stages = {
        "labels": spent["labels"], "decode": spent["decode"], "checks": spent["check labels"] + spent["check black"],
        "crop": spent["crop"], "targets": spent["make"] - spent["crop"], "collate": spent["collate"],
    }
    stages = stages | {"rest": total - sum(stages.values()), "total": total}
    return {stage: 1e3 * seconds / (batches * batch_size) for stage, seconds in stages.items()}


@contextmanager
def _clocked(places: dict[str, tuple[object, str]], spent: dict[str, float]) -> Iterator[None]:
    """While entered, the seconds inside each function (its owner and its name there) are added up in `spent`."""
    def clock(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            spent[name] += time.perf_counter() - start
            return result

        return timed

    with ExitStack() as stack:
        for name, (owner, attribute) in places.items():
            stack.enter_context(patch.object(owner, attribute, clock(name, getattr(owner, attribute))))
        yield
