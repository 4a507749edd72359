"""Render a two-hand set in InterHand2.6M's layout.   python tool/make_synthetic.py --out DIR --frames 3000 --seed 0

--frames counts images over all splits: 85 % train, 5 % val, 10 % test, each with people, clothes, lights and cameras
of its own. The set depends only on --frames, --seed, --cameras and --interacting, not on the number of workers. An
interrupted run goes on where it stopped when it is started again.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402

from common.errors import UserError, run_entry_point  # noqa: E402
from data.synthetic.generate import generate  # noqa: E402
from data.synthetic.plan import Settings  # noqa: E402


def main() -> None:
    args = _parse_args()
    if args.workers < 1:
        raise UserError(f"--workers is {args.workers}.", "It must be at least 1.")
    interactions = generate(args.out, Settings(args.frames, args.seed, args.cameras, args.interacting), args.workers)
    print(f"{args.out}: {args.frames} images.")
    records = [record for split in interactions.values() for capture in split.values() for record in capture.values()]
    if records:
        _print_interactions(records)


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the set")
    parser.add_argument("--frames", type=int, required=True,
                        help="images over all splits: 85 %% train, 5 %% val, 10 %% test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cameras", type=int, default=2, help="that see each time step (default: 2)")
    parser.add_argument("--interacting", type=float, default=0.8,
                        help="share of time steps with both hands; the rest is right or left alone (default: 0.8)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one for each CPU)")
    parser.add_argument("--hand_model", choices=["builtin"], default="builtin",
                        help="MANO has no skin of its own: only the built-in hand can be rendered")
    return parser.parse_args()


def _print_interactions(records: list[dict[str, Any]]) -> None:
    """How deep hands pass through each other, and how often they touch."""
    depth = np.array([record["max_depth_mm"] for record in records])
    print(f"interacting time steps: {len(records)}, in contact {np.mean([r['is_contact'] for r in records]):.0%}, "
          f"deepest vertex inside the other hand: median {np.median(depth):.2f} mm, "
          f"95th percentile {np.percentile(depth, 95):.2f} mm, maximum {depth.max():.2f} mm")
    for family in sorted({record["family"] for record in records}):
        of_family = [record for record in records if record["family"] == family]
        depth = np.array([record["max_depth_mm"] for record in of_family])
        print(f"  {family:17s} {len(of_family):5d}, in contact {np.mean([r['is_contact'] for r in of_family]):4.0%}, "
              f"median {np.median(depth):.2f} mm, 95th percentile {np.percentile(depth, 95):.2f} mm")


if __name__ == "__main__":
    run_entry_point(main)
