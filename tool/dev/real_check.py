"""Measure trained weights on images whose 3D joints are annotated and whose meshes are not, as real frames are.

    python tool/dev/real_check.py FOLDER [--checkpoint FILE] [--out DIR] [--gpu 0] [--set test.flip_test=false]

FOLDER has the layout of InterHand2.6M, or holds a few frames beside their annotations. Scored are the annotated joints
of each hand, as the protocol 'lgnet' scores those of meshes: aligned at the wrist, scaled to the true bone from the
wrist to the middle knuckle, mean over all joints; and once more without scaling. Annotated joints lie some millimetres
from those that are regressed from a mesh: compare these numbers with each other only. The crop is the one the network
was trained with; hands without a mesh are boxed by their joints, with room for the flesh. Where there are meshes,
test.py says more.

DIR (output/real_check) gets metrics.json and, in overlay/, an image of each frame: its crop, the predicted meshes
over it, true joints (white bones) and predicted ones, and a side view. Exit code 4: some frames could not be used.
"""

import _bootstrap

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from common.errors import EXIT_OK, EXIT_SOME_FAILED, run_entry_point
from common.files import (
    ROOT,
    finite_or_none,
    write_json,
)
from common.geometry import apply_affine, crop_affine, project, square_box
from common.hands import MANO21, WRIST, Hand
from common.images import crop_image
from common.predict.predictor import two_hands
from common.score.metrics import PROTOCOLS, PredictedHands
from common.score.scores import plain
from common.score.tally import Scorer, Tally
from common.types import HandPrediction, Stages, Targets, map_tensors
from common.view.overlay import HAND_COLORS, PAPER_COLOR, draw_hands, side_view
from common.weights import SHIPPED
from data.dataset import EpochSampler, TwoHandDataset, read_frame
from data.frames.folder import unique_names
from data.subset import spread_evenly
from main.arguments import GPU_FORMS
from main.build import build_dataset
from main.config import changed_config, mano_overrides
from main.engine.bad_samples import BadSamples
from main.engine.batches import batches, build_loader, predict
from main.engine.evaluator import samples_sha256
from main.engine.processes.launch import Process, choose_devices
from main.engine.results import TILE, side_by_side, write_png
from main.engine.run.provenance import code_revision, portable, versions
from main.network import Network, load_network

SCALED = replace(PROTOCOLS["lgnet"], name="scaled", truth="annotated", masked=True, metrics=("mpjpe", "mrrpe"),
                 aliases=(), set="all", source="the protocol 'lgnet', on annotated joints")
UNSCALED = replace(SCALED, name="unscaled", scaled=False, source="the same without scaling")
MAX_IMAGES = 64         # of a large set, spread evenly over it
SHOWN = 20              # frames in the printed table; metrics.json has all
WHITE, DARK = (255, 255, 255), (40, 40, 40)


def main() -> int:
    args = _parse_args()
    device = choose_devices(args.gpu, torch.cuda.device_count())[0]
    network = load_network(args.checkpoint, [*args.set, *mano_overrides(args.mano)], device)
    dataset = open_set(network, args.folder, args.split)
    print(f"{dataset.reader.summary}\nMeasured are the weights {args.checkpoint}"
          f"{', with flip test' if network.config.test.flip_test else ''}.")
    measured = measure(network.predictor.model, dataset, network.trained.mean_joints, device)

    report = describe(measured, dataset)
    metadata = {"checkpoint": args.checkpoint.name, "checkpoint_sha256": network.trained.sha256,
             "flip_test": network.config.test.flip_test, "hand_model": network.predictor.hand_model.identity,
             "program": code_revision(), "versions": versions()}
    write_json(args.out / "metrics.json", finite_or_none(portable(report | metadata)))
    names = unique_names([dataset.reader.sample_id(index) for index in measured.predictions])
    for name, (index, prediction) in zip(names, measured.predictions.items(), strict=True):
        write_png(args.out / "overlay" / f"{name}.png", draw(network, dataset, index, prediction))
    print_report(report, args.out)
    failed = measured.bad.faults or measured.tallies["final"].not_finite
    return EXIT_SOME_FAILED if failed else EXIT_OK


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a set in InterHand2.6M's format")
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED, metavar="FILE",
                        help="a snapshot or a file of weights; left out: the weights that come with the repository")
    parser.add_argument("--split", default="test", help="whose annotations are read")
    parser.add_argument("--out", type=Path, default=ROOT / "output" / "real_check", metavar="DIR")
    parser.add_argument("--mano", metavar="FOLDER", help="where the MANO files are, for weights trained with them")
    parser.add_argument("--gpu", help=GPU_FORMS + " One device is used.")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="change the configuration, for example test.flip_test=false")
    return parser.parse_args()


def open_set(network: Network, folder: Path, split: str) -> TwoHandDataset:
    """All frames of a split with an annotated hand, cropped as for the network's own test."""
    named = [f"data.root={folder.absolute()}", "data.testset=InterHand26M", "data.filter=all"]
    return build_dataset(changed_config(network.config, named), network.predictor.hand_model, "InterHand26M", split)


# ---------------------------------------------------------------- measuring

class Measured(NamedTuple):
    """What is left of a pass over a set."""

    tallies: dict[str, Tally]               # final, coarse and baseline, under SCALED and UNSCALED
    hands: int                              # annotated hands
    meshes: int                             # hands with a true mesh
    joints: int                             # annotated joints
    bad: BadSamples
    predictions: dict[int, Stages]          # of the frames that are drawn, by their position in the reader; on the CPU,
                                            # without batch axis


@torch.inference_mode()
def measure(model: nn.Module, dataset: TwoHandDataset, mean_joints: Tensor, device: torch.device) -> Measured:
    """Predict and score every frame.

    model: in evaluation mode, on the device.  mean_joints: (2, 21, 3) metres, what the baseline predicts.
    """
    reader = dataset.reader
    regressor, mean_joints = reader.hand_model.regressor.to(device), mean_joints.to(device)
    scorers = {stage: Scorer(regressor, len(reader), reader.sample_id, reader.hand_type, protocols=(SCALED, UNSCALED))
               for stage in ("final", "coarse", "baseline")}
    drawn, predictions, counts = set(spread_evenly(len(reader), MAX_IMAGES)), {}, np.zeros(3, dtype=int)
    bad = BadSamples(reader, Process(device))
    loader = build_loader(dataset, EpochSampler(len(dataset), shuffle=False), batch_size=16, workers=0, device=device,
                          drop_last=False)
    for batch in batches(loader, device):
        stages = predict(model, batch)
        hands = {"final": _scored(stages.final), "coarse": _scored(stages.mesh),
                 "baseline": PredictedHands(joints=mean_joints.expand(len(batch.index), -1, -1, -1))}
        for stage, scorer in scorers.items():
            scorer.add(hands[stage], batch.targets, batch.index)
        counts += _counted(batch.targets)
        for row, (index, fault) in enumerate(zip(batch.index.tolist(), batch.fault.tolist(), strict=True)):
            if fault:
                bad.add({index: fault})
            elif index in drawn:
                predictions[index] = map_tensors(lambda tensor, row=row: tensor[row].cpu(), stages)
    return Measured({stage: scorer.tally for stage, scorer in scorers.items()}, *counts.tolist(), bad, predictions)


def _scored(hands: HandPrediction) -> PredictedHands:
    return PredictedHands(hands.vertices, hands.joints, hands.relative)


def _counted(targets: Targets) -> np.ndarray:
    """Annotated hands, hands with a mesh, annotated joints."""
    known = targets.joints_annotated_valid
    return np.array([int(part.sum()) for part in (known[..., WRIST], targets.vertices_valid, known)])


def describe(measured: Measured, dataset: TwoHandDataset) -> dict[str, Any]:
    """What metrics.json holds about the measurement, mm."""
    reader, frames = dataset.reader, len(dataset) - len(measured.bad)
    scores = {stage: {protocol.name: tally.protocol_scores(protocol) for protocol in (SCALED, UNSCALED)}
              for stage, tally in measured.tallies.items()}
    return {
        "protocols": {name: plain(each) for name, each in scores["final"].items()},
        "frames": [_frame(row, reader.sample_id(int(row["index"]))) for row in measured.tallies["final"].samples()],
        **{key: {name: each.mpjpe for name, each in scores[stage].items()}
           for key, stage in (("rough", "coarse"), ("baseline", "baseline"))},
        "counts": {"frames": frames, "hands": measured.hands, "joints": measured.joints, "meshes": measured.meshes,
                   "not_finite": measured.tallies["final"].not_finite},
        "left_out": {
            "annotations": {reason: count for reason, count in reader.left_out.items() if count},
            "frames": measured.bad.reasons(),
            "hands_without_wrist": 2 * frames - measured.hands,
            "joints_of_the_other_hands": len(MANO21.names) * measured.hands - measured.joints,
        },
        "data": {"name": reader.name, "samples_sha256": samples_sha256(len(reader), reader.sample_id)},
    }


def _frame(row: np.void, name: str) -> dict[str, Any]:
    """MPJPE of each hand of a frame, and of both, under both protocols; None where nothing is scored."""
    counts, errors = row["joints_n"].astype(int), np.nan_to_num(row["mpjpe"], posinf=np.inf)   # (protocols, 2)
    groups = {hand.label: [hand] for hand in Hand} | {"both": list(Hand)}
    return {"image": name} | {label: {
        protocol.name: float((errors[number, hands] * counts[number, hands]).sum() / counts[number, hands].sum())
        for number, protocol in enumerate((SCALED, UNSCALED))
    } if counts[0, hands].any() else None for label, hands in groups.items()}


# ---------------------------------------------------------------- report

def print_report(report: dict[str, Any], folder: Path) -> None:
    """The table of the frames and their means."""
    final, counts, left_out = report["protocols"], report["counts"], report["left_out"]
    meshes = f"{counts['meshes']} hands have a mesh, which is not scored" if counts["meshes"] else "No hand has a mesh"
    print(f"{meshes}: these are errors of {counts['joints']} annotated joints of {counts['hands']} hands in "
          f"{counts['frames']} frames.")
    print("\nMPJPE in mm, wrists aligned and each hand scaled to the true one; unscaled in brackets")
    print(f"  {'':<32}{'right':>18}{'left':>18}{'both':>18}")
    for frame in report["frames"][:SHOWN]:
        print(f"  {frame['image'][-32:]:<32}" + "".join(f"{_cell(frame[group]):>18}"
                                                        for group in ("right", "left", "both")))
    if report["frames"][SHOWN:]:
        print(f"  ({len(report['frames']) - SHOWN} more)")
    means = [{name: final[name]["hands"][hand.label]["mpjpe"] for name in final} for hand in Hand]
    means.append({name: final[name]["mpjpe"] for name in final})
    print(f"  {'all':<32}" + "".join(f"{_cell(mean):>18}" for mean in means))
    for title, stage in (("coarse mesh", "rough"), ("every hand in the mean pose", "baseline")):
        print(f"  {title:<32}{_cell(report[stage]):>54}")
    print(f"\nLeft out: hands that are not annotated: {left_out['hands_without_wrist']}; joints of the others: "
          f"{left_out['joints_of_the_other_hands']}; frames that cannot be used: {_listed(left_out['frames'])}; "
          f"annotations: {_listed(left_out['annotations'])}."
          f"\nAll numbers are in {folder / 'metrics.json'}, images in {folder / 'overlay'}.")


def _listed(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "none"


def _cell(errors: dict[str, float | None] | None) -> str:
    if errors is None or errors["scaled"] is None:
        return "–"
    return f"{errors['scaled']:.2f} ({errors['unscaled']:.2f})"


# ---------------------------------------------------------------- images

def draw(network: Network, dataset: TwoHandDataset, index: int, stages: Stages) -> np.ndarray:
    """Crop, meshes over it, joints over it and side view of a frame: (TILE, about 4·TILE, 3) uint8."""
    record, image = read_frame(dataset.reader, index)
    square, faces = square_box(record.box_px, dataset.box_ratio), network.predictor.hand_model.faces
    hands = two_hands(stages, square, dataset.size)
    tile_from_image = crop_affine(square, TILE)
    crop = crop_image(image, tile_from_image, TILE, outside=PAPER_COLOR)
    meshes = draw_hands(crop, tile_from_image, hands, faces)

    joints, everywhere = crop.copy(), np.ones(len(MANO21.names), dtype=bool)
    true_px = project(torch.from_numpy(record.joints_annotated_cam), torch.from_numpy(record.camera)).numpy()
    predicted_px = hands.to_px(hands.joints)
    for hand in Hand:
        color = tuple(int(255 * channel) for channel in HAND_COLORS[hand])
        _draw_joints(joints, apply_affine(tile_from_image, predicted_px[hand]), everywhere, color, color)
        _draw_joints(joints, apply_affine(tile_from_image, true_px[hand]), record.joints_annotated_valid[hand], color,
                     WHITE)
    return side_by_side([crop, meshes, joints, side_view(hands, faces, TILE)])


def _draw_joints(canvas: np.ndarray, points: np.ndarray, valid: np.ndarray, color: tuple[int, int, int],
                 bone_color: tuple[int, int, int]) -> None:
    """Joints and bones of one hand on the canvas.  points: (21, 2) pixels.  valid: (21,) bool."""
    places = [tuple(point) for point in np.nan_to_num(points).round().clip(-TILE, 2 * TILE).astype(int).tolist()]
    bones = [(joint, parent) for joint, parent in enumerate(MANO21.parents)
             if parent >= 0 and valid[joint] and valid[parent]]
    for thickness, ink in ((4, DARK), (2, bone_color)):
        for joint, parent in bones:
            cv2.line(canvas, places[joint], places[parent], ink, thickness, cv2.LINE_AA)
    for joint in np.flatnonzero(valid):
        cv2.circle(canvas, places[joint], 5, DARK, -1, cv2.LINE_AA)
        cv2.circle(canvas, places[joint], 4, color, -1, cv2.LINE_AA)


if __name__ == "__main__":
    run_entry_point(main)
