"""How many pictures a second are rendered for training, with everything on, and where the time goes.

Hands come from a small bank of settled poses that is made first; settling is timed apart.
"""

import argparse
import statistics
import time

import torch
from torch.profiler import ProfilerActivity, profile

from common.errors import UserError
from common.hands import Hand
from common.mano.load import load_hand_model
from data.synthetic.batches import PoseBank, RenderedBatches, settled_bank
from data.synthetic.on_disk.plan import Settings
from data.synthetic.picture.render import STAGES, load_assets
from data.synthetic.surface import hand_surface
from main.engine.processes.launch import choose_devices

_FEWEST_POSES = 4           # a set has three splits

HELP = "pictures rendered on the training device"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, default=256, help="side of a picture, pixels")
    parser.add_argument("--batch", type=int, default=16, help="pictures at once")
    parser.add_argument("--gpu", help="one device, as for train.py")
    parser.add_argument("--batches", type=int, default=8, help="batches that are timed")
    parser.add_argument("--poses", type=int, default=24, help="time steps in the bank")


def run(args: argparse.Namespace) -> None:
    if min(args.batch, args.batches) < 1 or args.poses < _FEWEST_POSES:
        raise UserError(f"--batch and --batches must be at least 1, --poses at least {_FEWEST_POSES}.")
    device = choose_devices(args.gpu, torch.cuda.device_count())[0]
    bank = _bank(args.poses, device)
    model = load_hand_model("builtin")
    assets = load_assets(hand_surface(model), model.template[Hand.RIGHT].numpy(), device)
    rendered = RenderedBatches(bank, assets, size=args.size, box_ratio=0.8, seed=0)

    seconds = [_timed(rendered, number, args.batch, device) for number in range(args.batches + 2)][2:]
    median = statistics.median(seconds)
    print(f"synth: {args.batch} pictures of {args.size}x{args.size}, {device}, {torch.get_num_threads()} threads: "
          f"median {1e3 * median:.0f} ms a batch, {args.batch / median:.1f} pictures/s "
          f"(fastest batch {args.batch / min(seconds):.1f}, slowest {args.batch / max(seconds):.1f})")
    _print_stages(rendered, args.batch if device.type == "cuda" else min(args.batch, 8), device)


def _bank(poses: int, device: torch.device) -> PoseBank:
    start = time.perf_counter()
    bank, _ = settled_bank(Settings(poses, seed=0, cameras=1), "train", device)
    seconds = time.perf_counter() - start
    count = len(bank.shape)
    print(f"synth: {count} poses settled in {seconds:.1f} s, {count / seconds:.1f} a second on the CPU")
    return bank


def _timed(rendered: RenderedBatches, number: int, batch: int, device: torch.device) -> float:
    indices = torch.arange(batch, device=device) % len(rendered)
    _wait(device)
    start = time.perf_counter()
    rendered.batch(number, indices)         # each epoch has other pictures
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _print_stages(rendered: RenderedBatches, batch: int, device: torch.device) -> None:
    """The share of each stage in pictures rendered at once."""
    is_cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]) as profiler:
        rendered.part(0, torch.arange(batch, device=device) % len(rendered))
        _wait(device)
    times = {event.key: event.device_time_total if is_cuda else event.cpu_time_total
             for event in profiler.key_averages() if event.key in STAGES}
    total = sum(times.values())
    for stage in STAGES:
        print(f"  {stage:14s} {times[stage] / 1000 / batch:7.2f} ms a picture {times[stage] / total:6.0%}")
