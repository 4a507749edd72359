"""Reconstruct both hands in photographs.

    python demo.py                                      # the images that come with the repository
    python demo.py --input FOLDER_OR_IMAGE --output DIR [--boxes FILE.json | --finder none] [--align] [--gpu 0]
    python demo.py --input FOLDER_OR_IMAGE --output DIR --resume        # after an interruption

The network is the one that comes with the repository, unless --test_epoch or --checkpoint names another. Results lie in
output/demo, those of --input in a folder of its name there, unless --output names another.
For each image: overlay/NAME.png, side/NAME.png, panel/NAME.png (both beside the photograph),
meshes/NAME_{right,left}.obj and params/NAME_{right,left}.json. Further people in it have results of their own, NAME_1,
NAME_2 and so on. One line for each image tells what became of it.
The folders of RGB2Hands and EgoHands are recognised and bring their own boxes. Exit code 4: some images could not
be used.
"""

import _bootstrap

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.errors import EXIT_OK, EXIT_SOME_FAILED, UserError, printable, run_entry_point
from common.files import ROOT
from common.predict.align import Aligner
from common.predict.fast import use_free_cores
from common.predict.finder import FinderMissing, HandFinder
from common.predict.photo import PhotoPredictor, predicted_box
from common.weights import SHIPPED
from data.checks import BadSample
from data.frames.boxes import read_boxes, write_boxes
from data.frames.folder import ImageFolder
from main.arguments import demo_parser
from main.config import mano_overrides
from main.engine.processes.launch import Process, launch
from main.engine.results import are_written, result_files, write_results
from main.engine.run.snapshots import best_epoch, snapshot_path
from main.network import Network, load_network

OUTPUT = ROOT / "output" / "demo"
EXAMPLES = ROOT / "common" / "assets" / "examples"
NAMED = 5               # names without an image that are listed


def demo(args: argparse.Namespace, process: Process) -> int:
    """Reconstruct this process's share of the images."""
    use_free_cores()
    boxes = read_boxes(args.boxes) if args.boxes else {}
    folder = ImageFolder(args.input, boxes)
    outputs = [result_files(args.output, name) for name in folder.names]
    prepare_output(args.output, outputs, args.overwrite or args.resume)
    finder = find_finder(args, process)
    path = chosen_file(args, process)
    network = load_network(path, [*args.set, *mano_overrides(args.mano)], process.device)
    sources = [{"image": image.label, "checkpoint_sha256": network.trained.sha256} for image in folder.images]
    todo = [index for index, image in enumerate(folder.images)
            if not (args.resume and are_written(outputs[index], sources[index], image.boxes))]
    process.gather(None)        # nobody writes before everybody has looked at what exists
    if process.is_main:
        introduce(args, path, folder, network, len(folder) - len(todo), finder is not None)
    photographs = PhotoPredictor(network.predictor, finder=finder,
                                 aligner=Aligner(network.predictor.hand_model) if args.align else None)

    failed, boxes_found = 0, {}
    for index in tqdm(todo[process.rank::process.world_size], "demo", disable=not process.is_main):
        label = folder.images[index].label
        try:
            photo = folder.read(index)
        except BadSample as bad:
            failed += 1
            tqdm.write(f"{label}: not used: {bad.detail}", file=sys.stderr)
            continue
        people = photographs(photo.image, photo.boxes_px)
        write_results(args.output, folder.names[index], photo, people, network.predictor.hand_model, sources[index],
                      folder.names)
        boxes_found[folder.images[index].name] = [box for hands in people if (box := predicted_box(hands))]
        if not boxes_found[folder.images[index].name]:
            failed += 1
            tqdm.write(f"{label}: no hand found", file=sys.stderr)
        else:
            tqdm.write(f"{label}: {printable(folder.names[index])}")

    failed = sum(process.gather(failed))
    everywhere = process.gather(boxes_found)
    if process.is_main:
        if args.save_boxes:
            write_boxes(args.save_boxes, {name: found for part in everywhere for name, found in part.items()})
        print(f"{len(folder) - failed} of {len(folder)} images reconstructed in {printable(str(args.output))}: see "
              "panel/ there.")
    return EXIT_SOME_FAILED if failed else EXIT_OK


def find_finder(args: argparse.Namespace, process: Process) -> HandFinder | None:
    """The finder, unless --finder none says otherwise or its files are missing, which is told."""
    if args.finder == "none":
        return None
    try:
        return HandFinder.from_files()
    except FinderMissing as missing:
        if process.is_main:
            print(f"There is no hand finder: {missing.message} {missing.hint}")
        return None


def chosen_file(args: argparse.Namespace, process: Process) -> Path:
    """The snapshot or file of weights that the arguments choose."""
    snapshots = ROOT / "output" / "model_dump"
    if args.test_epoch == "best":       # training may save another one meanwhile: the main process decides
        return snapshot_path(snapshots, process.gather(best_epoch(snapshots))[0])
    if args.test_epoch is not None:
        return snapshot_path(snapshots, args.test_epoch)
    return args.checkpoint or SHIPPED


def introduce(args: argparse.Namespace, path: Path, folder: ImageFolder, network: Network, written: int,
              finds: bool) -> None:
    """Say what is worth knowing before the first image.

    path: of the network's file.  written: images whose results exist.  finds: hands are looked for.
    """
    if path == SHIPPED:
        print(introduction(network.trained.metrics))
    if args.resume:
        print(f"{written} of {len(folder)} images have their results already.")
    if folder.unknown:
        names = f"{', '.join(folder.unknown[:NAMED])}{', …' if len(folder.unknown) > NAMED else ''}"
        print(printable(f"{len(folder.unknown)} names in {args.boxes} are no images in {args.input}: {names}."))
    if folder.without_box and not finds:
        print(f"{len(folder.without_box)} of {len(folder)} images have no box and are used whole. LGNet expects both "
              f"hands to fill about {network.predictor.box_ratio:.0%} of the image: see --boxes.")


def introduction(metrics: dict[str, Any] | None) -> str:
    """One line on the weights that come with the repository.

    metrics: as in `common.weights.Metadata`.
    """
    scores = "not measured" if metrics is None else (
        f"MPJPE {metrics['mpjpe']:.2f} mm on {metrics['samples']} rendered test samples, protocol "
        f"'{metrics['protocol']}'{', flip test' if metrics['flip_test'] else ''}")
    return f"Weights: {SHIPPED.name} ({scores}), trained on rendered hands only."


def prepare_output(output: Path, outputs: list[dict[str, Path]], overwrite: bool) -> None:
    """Make the folders; UserError if that fails, or if a result exists that may not be replaced."""
    existing = [file for files in outputs for file in files.values() if file.exists()]
    if existing and not overwrite:
        raise UserError(f"--output: {len(existing)} results exist already, the first is {existing[0]}.",
                        "Use --resume to go on with them, --overwrite to replace them, or another --output.")
    try:
        for file in outputs[0].values():
            file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: {output} cannot be made a folder: {error.strerror}.") from None


def main() -> int:
    parser = demo_parser(__doc__)
    args = parser.parse_args()
    if args.input is None:
        if args.boxes:
            parser.error("--boxes needs --input, the images that the boxes are of")
        args.input, args.boxes = EXAMPLES, EXAMPLES / "boxes.json"
        if args.output is None:         # nobody else writes there
            args.output, args.overwrite = OUTPUT, not args.resume
    elif args.output is None:
        source = args.input.resolve()
        args.output = OUTPUT / (source.stem if source.is_file() else source.name)
    return launch(partial(demo, args), args.gpu)


if __name__ == "__main__":
    run_entry_point(main)
