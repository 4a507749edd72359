"""Measure how fast the parts are.   python tool/bench.py raster [--size 256] [--batch 8] [--device cpu]

Prints the median of several runs.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

from common.errors import run_entry_point  # noqa: E402
from common.hands import Hand  # noqa: E402
from common.mano import load_hand_model  # noqa: E402
from common.rasterizer import rasterize  # noqa: E402


def main() -> None:
    args = _parse_args()
    args.run(args)


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    raster = commands.add_parser("raster", help="z-buffer of two hands filling the image")
    raster.add_argument("--size", type=int, default=256, help="side of the image, pixels")
    raster.add_argument("--batch", type=int, default=8, help="images at once")
    raster.add_argument("--device", default="cpu")
    raster.add_argument("--repeats", type=int, default=30)
    raster.set_defaults(run=_bench_raster)
    return parser.parse_args()


def _bench_raster(args: argparse.Namespace) -> None:
    """Two resting hands, side by side, that fill 0.8 of the image: 3076 faces."""
    model = load_hand_model("builtin")
    vertices = model.template + torch.tensor([[[0.0, 0.0, 0.06]], [[0.0, 0.0, -0.06]]])     # (2, 778, 3)
    vertices = vertices.flatten(0, 1)[:, [2, 0, 1]]                                         # seen from the back
    span = (vertices.amax(0) - vertices.amin(0))[:2].max()
    pixels = (vertices - (vertices.amax(0) + vertices.amin(0)) / 2) / span * 0.8 * args.size + args.size / 2
    pixels[:, 2] = vertices[:, 2] + 1.0
    faces = torch.cat([model.faces[hand] + hand * model.template.shape[1] for hand in Hand]).to(args.device)
    batch = pixels.expand(args.batch, -1, -1).to(args.device)

    seconds = _median_seconds(lambda: rasterize(batch, faces, args.size, args.size), args.repeats, args.device)
    print(f"raster: {args.batch} images of {args.size}x{args.size}, {len(faces)} faces, {args.device}, "
          f"{torch.get_num_threads()} threads: median {1e3 * seconds:.1f} ms, {args.batch / seconds:.0f} images/s")


def _median_seconds(run: Callable[[], object], repeats: int, device: str) -> float:
    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        run()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


if __name__ == "__main__":
    run_entry_point(main)
