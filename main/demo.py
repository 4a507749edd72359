"""Reconstruct both hands in photographs.

    python demo.py --test_epoch 29 --input FOLDER_OR_IMAGE --output DIR [--boxes FILE.json] [--gpu 0]

For each picture: overlay/NAME.png, side/NAME.png, panel/NAME.png (both beside the photograph),
meshes/NAME_{right,left}.obj and params/NAME_{right,left}.json. One line for each picture tells what became of it.
The folders of RGB2Hands and EgoHands are recognised and bring their own boxes. Exit code 4: some pictures could not
be used.
"""

import _bootstrap  # noqa: F401, I001   repository root on sys.path

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from common.engine.acceleration import for_inference
from common.engine.build import ROOT, configured_hand_model, refuse_changes, trained_model
from common.engine.checkpoint import load_snapshot, snapshot_path
from common.engine.demo import reconstruct, result_files, write_results
from common.engine.launch import GPU_FORMS, Process, launch
from common.errors import EXIT_OK, EXIT_SOME_FAILED, UserError, run_entry_point
from common.mano import HandModel, check_same_model
from data.checks import BadSample
from data.ImageFolder import ImageFolder, read_boxes
from main.config import Config, changed_config, config_from_dict, mano_overrides


def demo(args: argparse.Namespace, process: Process) -> int:
    """Reconstruct this process's share of the pictures."""
    sys.stdout.reconfigure(errors="backslashreplace")   # a name may have letters that the terminal has not
    boxes = read_boxes(args.boxes) if args.boxes else {}
    folder = ImageFolder(args.input, boxes)
    outputs = [result_files(args.output, name) for name in folder.names]
    prepare_output(args.output, outputs, args.overwrite)
    network = load_network(args.checkpoint or snapshot_path(ROOT / "output" / "model_dump", args.test_epoch),
                           [*args.set, *mano_overrides(args.mano)], process.device)
    process.gather(None)        # nobody writes before everybody has looked at what exists
    box_ratio, size = network.config.data.box_ratio, network.config.model.input_size
    if process.is_main and folder.without_box:
        print(f"{len(folder.without_box)} of {len(folder)} pictures have no box and are used whole. LGNet expects both "
              f"hands to fill about {box_ratio:.0%} of the picture: see --boxes.")

    failed = 0
    for index in tqdm(range(process.rank, len(folder), process.world_size), "demo", disable=not process.is_main):
        label = folder.pictures[index].label
        try:
            photo = folder.read(index, box_ratio)
        except BadSample as bad:
            failed += 1
            tqdm.write(f"{label}: not used: {bad.detail}", file=sys.stderr)
            continue
        result = reconstruct(network.model, photo, size, process.device)
        source = {"image": label, "checkpoint_sha256": network.sha256}
        write_results(outputs[index], photo, result, network.hand_model, source)
        tqdm.write(f"{label}: {folder.names[index]}")

    failed = sum(process.gather(failed))
    if process.is_main:
        print(f"{len(folder) - failed} of {len(folder)} pictures reconstructed in {args.output}.")
    return EXIT_SOME_FAILED if failed else EXIT_OK


class Network(NamedTuple):
    """A trained LGNet and what it was trained with."""

    model: nn.Module
    hand_model: HandModel
    config: Config
    sha256: str     # of the snapshot


def load_network(path: Path, overrides: list[str], device: torch.device) -> Network:
    """The network of a snapshot, in evaluation mode."""
    snapshot, sha256 = load_snapshot(path)
    stored = config_from_dict(snapshot.config)
    config = changed_config(stored, overrides)
    refuse_changes(stored, config, str(path))
    if config.model.refine_camera == "ground_truth":
        raise UserError(f"{path} is an ablation that needs the true camera (model.refine_camera is ground_truth).",
                        "Photographs have none: use another snapshot.")
    hand_model = configured_hand_model(config)
    check_same_model(hand_model.identity, snapshot.hand_model, str(path))
    model = trained_model(config, hand_model, snapshot.model, str(path)).to(device)
    return Network(for_inference(model), hand_model, config, sha256)


def prepare_output(output: Path, outputs: list[dict[str, Path]], overwrite: bool) -> None:
    """Make the folders; UserError if that fails, or if a result exists that may not be replaced."""
    existing = [file for files in outputs for file in files.values() if file.exists()]
    if existing and not overwrite:
        raise UserError(f"--output: {len(existing)} results exist already, the first is {existing[0]}.",
                        "Use --overwrite to replace them, or another --output.")
    try:
        for file in outputs[0].values():
            file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: {output} cannot be made a folder: {error.strerror}.") from None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", help=GPU_FORMS)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--test_epoch", type=int, help="N of output/model_dump/snapshot_N.pth.tar")
    which.add_argument("--checkpoint", type=Path, metavar="FILE", help="a snapshot elsewhere")
    parser.add_argument("--input", type=Path, required=True, help="a folder of pictures, or one picture")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--boxes", type=Path, metavar="FILE",
                        help='JSON with tight boxes round both hands: {"file name": [x, y, width, height]} in pixels')
    parser.add_argument("--mano", metavar="FOLDER",
                        help="where the MANO files are, for a snapshot that was trained with them")
    parser.add_argument("--overwrite", action="store_true", help="replace results that exist")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="change the configuration, for example data.box_ratio=0.7")
    args = parser.parse_args()
    return launch(partial(demo, args), args.gpu)


if __name__ == "__main__":
    run_entry_point(main)
