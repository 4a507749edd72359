"""Keep the backbone of a trained snapshot, in half precision, as a file for `model.pretrained`.

    python tool/export_backbone.py output/backbone/model_dump/snapshot_23.pth.tar common/assets/resnet18_rendered.pth
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

from common.engine.checkpoint import load_snapshot, write_atomically  # noqa: E402
from common.errors import EXIT_OK, run_entry_point  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("snapshot", type=Path, help="written by train.py")
    parser.add_argument("out", type=Path, help="the file to write: a torchvision state dict")
    args = parser.parse_args()

    snapshot, _ = load_snapshot(args.snapshot)
    prefix = "backbone."
    weights = {name.removeprefix(prefix): value.half() if value.is_floating_point() else value
               for name, value in snapshot.model.items() if name.startswith(prefix)}
    write_atomically(args.out, lambda file: torch.save(weights, file))
    print(f"{args.out}: {snapshot.config['model']['backbone']}, {len(weights)} tensors, "
          f"{args.out.stat().st_size / 1e6:.1f} MB")
    return EXIT_OK


if __name__ == "__main__":
    run_entry_point(main)
