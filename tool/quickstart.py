"""Reconstruct images with the shipped weights; then render a small set, train on it, measure, and reconstruct
images of its test split.   bash tool/quickstart.sh

Every step reuses what an earlier run left. To start over, delete the output folder (output/quickstart).
"""

import _bootstrap

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from common.errors import run_entry_point
from common.files import ROOT, from_repository
from common.mano.load import load_hand_model
from common.score.scores import read_result
from common.weights import SHIPPED
from data import build_reader
from data.subset import spread_evenly
from main.config import Config, load_config
from main.engine.run.snapshots import snapshot_path, snapshots_in
from tool.arguments import quickstart_parser

NUM_PHOTOS = 12


def main() -> int:
    args = quickstart_parser(__doc__).parse_args()
    config = load_config(args.config)
    output, data = from_repository(config.output), from_repository(config.data.root)
    gpu = ["--gpu", args.gpu] if args.gpu else []
    epoch = config.train.epochs - 1

    first, trained = output / "shipped_weights", output / "demo"
    steps = {
        "demo": ["main/demo.py", "--output", first, "--overwrite", *gpu],
        "render": ["tool/make_synthetic.py", "--out", data, "--frames", args.frames, "--seed", 0],
        "train": ["main/train.py", "--config", args.config, *precision(), *gpu],
        "test": ["main/test.py", "--test_epoch", epoch, "--output", output, *gpu],
        "test of the shipped weights": [
            "main/test.py", "--checkpoint", SHIPPED, "--output", first, *gpu, "--set",
            f"data.root={data}", *(f"data.{key}={getattr(config.data, key)}" for key in ("filter", "workers"))],
        "demo of what was trained": [
            "main/demo.py", "--checkpoint", snapshot_path(output / "model_dump", epoch), "--input", output / "photos",
            "--boxes", output / "photos" / "boxes.json", "--output", trained, "--overwrite", *gpu],
    }
    minutes = {}
    for name, command in steps.items():
        if name == "train" and snapshots_in(output / "model_dump"):
            command.append("--continue")
        if name == "demo of what was trained":
            choose_photos(config, output / "photos")
        print(f"\n=== {name} ===", flush=True)
        start = time.monotonic()
        program, *arguments = command
        code = subprocess.run([sys.executable, str(ROOT / program), *map(str, arguments)]).returncode
        minutes[name] = (time.monotonic() - start) / 60
        if code:
            print(f"The step '{name}' stopped with exit code {code}; the steps before it are kept. "
                  f"To start over: rm -r {output}", file=sys.stderr)
            return code
        if name == "demo":
            print(f"Two hands after {minutes[name]:.1f} minutes, with the shipped weights: {first / 'panel'}\n"
                  "What follows trains these weights further, on images rendered here.", flush=True)
    print_summary(output, first, minutes)
    return 0


def precision() -> list[str]:
    """Train in bfloat16 where the CPU computes in it; elsewhere it would be emulated and slow."""
    cpu = Path("/proc/cpuinfo")
    flags = set(cpu.read_text(encoding="utf-8").split()) if cpu.is_file() else set()
    return ["--set", "train.precision=bfloat16"] if flags & {"avx512_bf16", "amx_bf16"} else []


def choose_photos(config: Config, folder: Path) -> None:
    """Copy images spread over the test split into a folder, with their boxes in boxes.json."""
    hand_model = load_hand_model(config.hand_model.name, config.hand_model.path)
    reader = build_reader(config.data.testset, root=from_repository(config.data.root), split=config.data.test_split,
                          hand_model=hand_model, filter=config.data.filter, box_source=config.data.box_source)
    folder.mkdir(parents=True, exist_ok=True)
    boxes = {}
    for index in spread_evenly(len(reader), NUM_PHOTOS):
        record = reader.read(index)
        name = f"test_{index:05d}{record.image_path.suffix}"
        shutil.copyfile(record.image_path, folder / name)
        low, high = record.box_px
        boxes[name] = [*low.tolist(), *(high - low).tolist()]
    (folder / "boxes.json").write_text(json.dumps(boxes, indent=1), encoding="utf-8")


def print_summary(output: Path, shipped: Path, minutes: dict[str, float]) -> None:
    """What was measured, how long it took and where the images are."""
    before, after = (read_result(folder / "result" / "metrics.json") for folder in (shipped, output))
    mpjpe, mpvpe, mrrpe, coarse, shipped_mpjpe, mean_pose = (
        "none" if value is None else f"{value:.2f}"             # no image may show both hands
        for value in (after.printed.mpjpe, after.printed.mpvpe, after.printed.mrrpe, after.rough.mpjpe,
                      before.printed.mpjpe, after.baseline.mean_pose.mpjpe))
    spent = ", ".join(f"{step} {value:.1f}" for step, value in minutes.items())
    print(f"""
Quickstart took {sum(minutes.values()):.1f} minutes ({spent}).
Held-out rendered images, protocol '{after.protocol}', {after.counts.samples} samples, mm, lower is better:
  MPJPE {mpjpe}   MPVPE {mpvpe}   MRRPE {mrrpe}
  coarse mesh {coarse}; the shipped weights {shipped_mpjpe}; the mean pose {mean_pose}
Images: {output / "demo" / "panel"} (photograph, overlay, side view); meshes and parameters beside it""")


if __name__ == "__main__":
    run_entry_point(main)
