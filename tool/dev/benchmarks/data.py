"""How long annotations take to open and what memory they cost, for a set of InterHand2.6M's size, generated for this.

Beside the index it measures the plain way of this field, on fewer images because of its memory: pycocotools, json and
a list with a dictionary for each sample. Every number comes from a process of its own. Memory is in 10^6 bytes.

--json FILE: build_s, build_peak_gb   the index: time, and highest resident memory of the process, libraries included
             open_s, private_mb       opening the reader: time, and what the process' private memory grows by
             worker_growth_mb         the most that one of 4 loader processes' private memory grows by in an epoch
             per_sample_ms            reading a sample without its picture, by the number of images in the set
             plain_s, plain_peak_gb   the plain way, for --plain_size images
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from common.errors import UserError
from common.mano.load import load_hand_model
from data.InterHand26M.annotations import open_annotations
from data.InterHand26M.layout import find_layout
from data.InterHand26M.reader import InterHand26M
from tool.dev.benchmarks.annotation_set import IMAGES, write_annotation_set

HELP = "opening annotations: time and memory"

SMALL = 1000            # images; reading a sample must not take longer from a large set than from this one
WORKERS = 4
READS = 1000            # samples whose reading is timed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, default=IMAGES, help=f"images (default: {IMAGES}, as in InterHand2.6M)")
    parser.add_argument("--plain_size", type=int, default=100_000, help="images for the plain way (default: 100000)")
    parser.add_argument("--folder", type=Path, help="where to put the generated sets, about 1.5 kB for each image")
    parser.add_argument("--json", type=Path, help="write the numbers here")


def run(args: argparse.Namespace) -> None:
    if min(args.size, args.plain_size) < 1:
        raise UserError(f"--size is {args.size} and --plain_size {args.plain_size}.", "Both must be at least 1.")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        roots = {size: Path(folder) / str(size) for size in {args.size, min(args.plain_size, args.size), SMALL}}
        for size, root in roots.items():
            print(f"writing a set of {size} images")
            write_annotation_set(root, size, load_hand_model("builtin"))
        results, same_size = _measure(roots, args.size, min(args.plain_size, args.size))
    _report(results, same_size, args.size, min(args.plain_size, args.size))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _measure(roots: dict[int, Path], size: int, plain_size: int) -> tuple[dict[str, Any], dict[str, float]]:
    """All numbers, and what opening costs at the plain way's size."""
    built = {count: _in_process(_build, root) for count, root in roots.items()}
    os.sync()       # until a file is on disk, the kernel counts its mapped pages as the process' own
    opened = {count: _in_process(_open, root, roots[SMALL]) for count, root in roots.items()}
    results = {
        "build_s": built[size]["seconds"], "build_peak_gb": built[size]["peak_gb"],
        "open_s": opened[size]["seconds"], "private_mb": opened[size]["private_mb"],
        "worker_growth_mb": max(_in_process(_epoch, roots[size], method)["growth_mb"] for method in ("fork", "spawn")),
        "per_sample_ms": {str(count): opened[count]["per_sample_ms"] for count in sorted({SMALL, size})},
    }
    plain = _in_process(_plain, roots[plain_size])
    return results | {"plain_s": plain["seconds"], "plain_peak_gb": plain["peak_gb"]}, opened[plain_size]


def _report(results: dict[str, Any], same_size: dict[str, float], size: int, plain_size: int) -> None:
    samples = ", ".join(f"{ms:.2f} ms of {count} images" for count, ms in results["per_sample_ms"].items())
    print(f"index of {size} images: built in {results['build_s']:.1f} s with at most "
          f"{results['build_peak_gb']:.2f} GB, opened in {results['open_s']:.2f} s with "
          f"{results['private_mb']:.1f} MB of private memory")
    print(f"{WORKERS} loader processes over an epoch: each grows by at most {results['worker_growth_mb']:.1f} MB")
    print(f"reading a sample without its picture: {samples}")
    print(f"the plain way, {plain_size} images: {results['plain_s']:.1f} s, at most {results['plain_peak_gb']:.2f} GB, "
          "in every process")
    print(f"ratio for the same {plain_size} images: the index opens {results['plain_s'] / same_size['seconds']:.0f} "
          f"times faster ({same_size['seconds']:.3f} s) and the process needs "
          f"{results['plain_peak_gb'] / same_size['peak_gb']:.1f} times less memory ({same_size['peak_gb']:.2f} GB, "
          "libraries included)")


# ---------------------------------------------------------------- each in a process of its own

def _in_process(measure: Callable[..., dict[str, float]], *args: object) -> dict[str, float]:
    """What `measure` returns in a fresh process."""
    print(f"measuring: {measure.__name__.strip('_')}", flush=True)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, measure, args))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise UserError(f"The process that measured '{measure.__name__.strip('_')}' ended early.",
                        "Is the memory full? Try a smaller --size or --plain_size.") from None
    finally:
        process.join()


def _send(sender, measure: Callable[..., dict[str, float]], args: tuple) -> None:
    sender.send(measure(*args))


def _build(root: Path) -> dict[str, float]:
    start = time.perf_counter()
    open_annotations(find_layout(root, "train"))
    return {"seconds": time.perf_counter() - start, "peak_gb": _peak_gb()}


def _open(root: Path, other: Path) -> dict[str, float]:
    """Of the set under `root`, once a set under `other` has made the process load the libraries that reading needs."""
    model = load_hand_model("builtin")
    InterHand26M(other, "train", model, "all").read(0)
    before, start = _private_mb(), time.perf_counter()
    reader = InterHand26M(root, "train", model, "all")
    seconds = time.perf_counter() - start
    private = _private_mb() - before
    times = []
    for index in np.random.default_rng(0).integers(0, len(reader), READS).tolist():
        begin = time.perf_counter()
        reader.read(index)
        times.append(time.perf_counter() - begin)
    return {"seconds": seconds, "private_mb": private, "per_sample_ms": 1e3 * statistics.median(times),
            "peak_gb": _peak_gb()}


class _Lookups(Dataset):
    """Every annotation of a set, without its mesh and picture; a batch is (process, growth of its private memory)."""

    def __init__(self, reader: InterHand26M):
        self.reader = reader
        self.start_mb = 0.0

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> None:
        annotations, row = self.reader.annotations, self.reader.rows[index]
        self.reader.describe(index)
        annotations.joints_valid(row)
        frame = annotations.images.frame_row[annotations.samples.image_row[row]]
        for column in annotations.frames:
            column[frame].sum()

    def report(self, _: list[None]) -> tuple[int, float]:
        self.start_mb = self.start_mb or _private_mb()
        return os.getpid(), _private_mb() - self.start_mb


def _epoch(root: Path, method: str) -> dict[str, float]:
    """The highest growth of a loader process, from its first batch on."""
    lookups = _Lookups(InterHand26M(root, "train", load_hand_model("builtin"), "all"))
    loader = DataLoader(lookups, batch_size=max(1, min(2048, len(lookups) // 40)), shuffle=True, num_workers=WORKERS,
                        collate_fn=lookups.report, multiprocessing_context=method)
    return {"growth_mb": max(growth for _, growth in loader)}


def _plain(root: Path) -> dict[str, float]:
    """Everything as Python objects, a dictionary for each sample, as in most code that reads InterHand2.6M."""
    from pycocotools.coco import COCO  # only this needs it

    start = time.perf_counter()
    folder = root / "annotations" / "train"
    cameras, joints, fits = (json.loads((folder / f"InterHand2.6M_train_{kind}.json").read_text(encoding="utf-8"))
                             for kind in ("camera", "joint_3d", "MANO_NeuralAnnot"))
    coco = COCO(str(folder / "InterHand2.6M_train_data.json"))
    samples = []
    for annotation in coco.anns.values():
        image = coco.loadImgs(annotation["image_id"])[0]
        capture, frame, camera = str(image["capture"]), str(image["frame_idx"]), image["camera"]
        rotation = np.array(cameras[capture]["camrot"][camera], dtype=np.float32)
        position = np.array(cameras[capture]["campos"][camera], dtype=np.float32)
        world = np.array(joints[capture][frame]["world_coord"], dtype=np.float32)
        samples.append({
            "img_path": str(root / "images" / "train" / image["file_name"]), "aid": annotation["id"],
            "bbox": np.array(annotation["bbox"], dtype=np.float32), "shape": (image["height"], image["width"]),
            "focal": np.array(cameras[capture]["focal"][camera], dtype=np.float32),
            "princpt": np.array(cameras[capture]["princpt"][camera], dtype=np.float32),
            "joint_cam": (world - position) @ rotation.T,
            "joint_valid": np.array(annotation["joint_valid"], dtype=np.float32),
            "hand_type": annotation["hand_type"], "mano_param": fits[capture][frame],
        })
    return {"seconds": time.perf_counter() - start, "peak_gb": _peak_gb(), "samples": len(samples)}


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _private_mb() -> float:
    """Memory of this process' own, 10^6 bytes; mapped pages of the index are the page cache's, for all processes."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:")) * 1024 / 1e6
