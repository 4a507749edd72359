"""How fast the z-buffer is."""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from common.hands import Hand
from common.mano.load import load_hand_model
from common.view.rasterizer import rasterize

HELP = "z-buffer of two hands filling the image"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, default=256, help="side of the image, pixels")
    parser.add_argument("--batch", type=int, default=8, help="images at once")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=30)


def run(args: argparse.Namespace) -> None:
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


def _median_seconds(call: Callable[[], object], repeats: int, device: str) -> float:
    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])
