"""Render a two-hand set in InterHand2.6M's layout.

    python tool/make_synthetic.py --out DIR --frames 3000 --seed 0
    python tool/make_synthetic.py --out DIR --preset rendered-v1

--frames counts images over all splits: 85 % train, 5 % val, 10 % test, each with people, clothes, lights and cameras
of its own. The set depends only on --frames, --seed, --cameras and --interacting, not on the number of workers. An
interrupted run resumes when it is started again.

--preset renders a frozen benchmark, to compare results on: it has settings of its own, needs the renderer and the hand
that it was frozen with, and is compared with what was recorded then. Started again on a finished set it only compares,
as `tool/verify_data.py --preset` does where nothing can be rendered. Exit code: 4 if it is not the preset.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository, however Python was started
import main._bootstrap as _bootstrap

import argparse
from typing import Any

import numpy as np

from common.errors import EXIT_OK, UserError, run_entry_point
from data.synthetic.on_disk.generate import generate
from data.synthetic.on_disk.plan import Settings
from data.synthetic.on_disk.preset import Preset, load_preset, print_verdict, record_preset
from tool.arguments import make_synthetic_parser

CONTENT_FLAGS = ("frames", "seed", "cameras", "interacting")


def main() -> int:
    args = make_synthetic_parser(__doc__).parse_args()
    if args.workers < 1:
        raise UserError(f"--workers is {args.workers}.", "It must be at least 1.")
    preset = _preset(args)
    settings = preset.settings if preset else _settings(args)
    interactions = generate(args.out, settings, args.workers)
    print(f"{args.out}: {settings.frames} images.")
    _print_interactions(interactions)
    if args.record:
        record_preset(args.out, preset)
        preset = load_preset(args.preset)
    return print_verdict(args.out, preset) if preset else EXIT_OK


def _preset(args: argparse.Namespace) -> Preset | None:
    """The requested preset, if any; UserError if this code cannot render or record it."""
    if not args.preset:
        if args.record:
            raise UserError("--record was given without --preset.")
        return None
    given = [f"--{name}" for name in CONTENT_FLAGS if getattr(args, name) is not None]
    if given:
        raise UserError(f"--preset {args.preset} was given with {', '.join(given)}.",
                        "A preset has settings of its own: leave one or the other out.")
    preset = load_preset(args.preset)
    if not args.record:
        preset.check_code()
    elif preset.splits:
        raise UserError(f"{preset.name} is frozen.", "Make another preset beside it.")
    return preset


def _settings(args: argparse.Namespace) -> Settings:
    if args.frames is None:
        raise UserError("Neither --frames nor --preset was given.", "One of them says how many images to render.")
    given = {name: getattr(args, name) for name in CONTENT_FLAGS if getattr(args, name) is not None}
    return Settings(**{"seed": 0, **given})


def _print_interactions(interactions: dict[str, dict[str, Any]]) -> None:
    """Print how often hands touch and how deep they penetrate each other."""
    records = [record for split in interactions.values() for capture in split.values() for record in capture.values()]
    if not records:
        return
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
