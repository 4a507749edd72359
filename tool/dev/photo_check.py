"""Measure the whole way from a photograph to its hands on labelled photographs, and show every one of them.

    python tool/dev/photo_check.py FOLDER [--checkpoint FILE] [--out DIR] [--every N] [--align]

FOLDER has labels.json: {"images": [{"file", "set"?, "hands": [{"side", "keypoints_2d" (21×2 pixels), "visible" (21),
"keypoints_3d_cam_mm"? (21×3)}]}]}, joints in MANO21 order. Each image is taken twice: as it is, with the finder on, and
with the true box. Counted are the labelled hands that were found, missed, or found as the other hand, and the hands
that no label knows. The 2D error is the mean distance of the visible joints in % of the diagonal of their box; the 3D
error is wrist-aligned and scaled to the bone from the wrist to the middle knuckle, in mm. Intervals are 95 % ones over
images.

DIR (output/photo_check) gets metrics.json, index.html and an image of each photograph.
"""

import _bootstrap

import argparse
import html
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from tqdm import tqdm

from common.errors import EXIT_OK, UserError, run_entry_point
from common.files import ROOT, finite_or_none, read_json, write_atomically, write_json
from common.geometry import Box
from common.hands import MANO21, WRIST, Hand
from common.images import read_rgb
from common.predict.align import Aligner
from common.predict.finder import HandFinder
from common.predict.photo import PhotoPredictor
from common.types import TwoHands
from common.view.overlay import draw_hands
from common.weights import SHIPPED
from data.frames.folder import unique_names
from main.network import load_network

_SPARE = 0.1            # of the longer side of the joints' box, on each side: the true box
_ON_IT = 25.0           # % of the diagonal: up to here a prediction of the other side lies on the hand
_SHOWN = 480            # pixels of the longer side of an image on the page
_RESAMPLED = 2000


class Label(NamedTuple):
    """A labelled hand."""

    hand: Hand | None           # None: not known
    joints_px: np.ndarray       # (21, 2)
    visible: np.ndarray         # (21,) bool
    joints_mm: np.ndarray | None    # (21, 3) relative to the wrist

    @property
    def diagonal(self) -> float:
        return float(np.linalg.norm(np.ptp(self.joints_px[self.visible], axis=0)))


class Outcome(NamedTuple):
    """What became of one labelled hand."""

    image: int
    group: str
    is_found: bool
    is_other_side: bool
    error_2d: float         # nan if it was not found
    error_3d: float         # nan without 3D joints


def labels_of(entry: dict[str, Any]) -> list[Label]:
    """The labelled hands of one image."""
    found = []
    for hand in entry["hands"]:
        metric = hand.get("keypoints_3d_cam_mm")
        joints = None if metric is None else np.array(metric, dtype=float) - np.array(metric, dtype=float)[WRIST]
        side = {one.label: one for one in Hand}.get(hand["side"])
        found.append(Label(side, np.array(hand["keypoints_2d"], dtype=float), np.array(hand["visible"]) > 0, joints))
    return found


def true_box(labels: Sequence[Label]) -> Box:
    """The box round the visible joints of all hands."""
    points = np.concatenate([label.joints_px[label.visible] for label in labels])
    low, high = points.min(axis=0), points.max(axis=0)
    spare = _SPARE * float((high - low).max())
    return (*(low - spare).tolist(), *(high - low + 2 * spare).tolist())


def judge(index: int, group: str, labels: Sequence[Label], people: Sequence[TwoHands]) -> tuple[list[Outcome], int]:
    """The outcome of each labelled hand of known side, and the number of hands that no label knows."""
    outcomes, explained = [], set()
    for label in labels:
        drawn = [(place, hand) for place, hands in enumerate(people) for hand in Hand if hands.present[hand]]
        errors = {one: error_2d(label, people[one[0]], one[1]) for one in drawn}
        on_it = [one for one in drawn if errors[one] < _ON_IT]
        explained |= set(on_it)
        if label.hand is None:
            continue
        own = [one for one in drawn if one[1] is label.hand]
        if not own:
            outcomes.append(Outcome(index, group, False, bool(on_it), float("nan"), float("nan")))
            continue
        best = min(own, key=lambda one: errors[one])
        explained.add(best)
        outcomes.append(Outcome(index, group, True, False, errors[best], error_3d(label, people[best[0]], best[1])))
    count = sum(int(hands.present.sum()) for hands in people)
    return outcomes, count - len(explained)


def error_2d(label: Label, hands: TwoHands, hand: Hand) -> float:
    """% of the diagonal of the label's box."""
    distance = np.linalg.norm(hands.to_px(hands.joints)[hand] - label.joints_px, axis=1)
    return 100 * float(distance[label.visible].mean()) / label.diagonal


def error_3d(label: Label, hands: TwoHands, hand: Hand) -> float:
    """mm; nan if the label has no 3D joints."""
    if label.joints_mm is None:
        return float("nan")
    joints = 1000 * (hands.joints[hand] - hands.joints[hand, WRIST])
    bone = MANO21.index("middle1")
    scale = np.linalg.norm(label.joints_mm[bone]) / np.linalg.norm(joints[bone])
    return float(np.linalg.norm(scale * joints - label.joints_mm, axis=1).mean())


def summary(outcomes: Sequence[Outcome], invented: dict[int, int]) -> dict[str, Any]:
    """Counts and mean errors with intervals over images."""
    images = sorted({outcome.image for outcome in outcomes})
    by_image = defaultdict(list)
    for outcome in outcomes:
        by_image[outcome.image].append(outcome)

    def interval(value: Callable[[Outcome], float]) -> list[float | None]:
        sums = np.array([[np.nansum(v := [value(one) for one in by_image[image]]), np.isfinite(v).sum()]
                         for image in images])
        drawn = np.random.default_rng(0).integers(len(images), size=(_RESAMPLED, len(images)))
        totals = sums[drawn].sum(axis=1)
        means = totals[totals[:, 1] > 0, 0] / totals[totals[:, 1] > 0, 1]
        mean = sums[:, 0].sum() / max(1, sums[:, 1].sum()) if sums[:, 1].any() else float("nan")
        low, high = np.quantile(means, [0.025, 0.975]) if len(means) else (float("nan"), float("nan"))
        return [finite_or_none(float(number)) for number in (mean, low, high)]

    return {
        "images": len(images), "hands": len(outcomes), "found": sum(one.is_found for one in outcomes),
        "missed": sum(not one.is_found and not one.is_other_side for one in outcomes),
        "other_side": sum(one.is_other_side for one in outcomes), "invented": sum(invented[image] for image in images),
        "found_share": interval(lambda one: float(one.is_found)),
        "error_2d_percent": interval(lambda one: one.error_2d),
        "error_3d_mm": interval(lambda one: one.error_3d),
    }


def picture(image: np.ndarray, people: Sequence[TwoHands], labels: Sequence[Label], faces: torch.Tensor) -> np.ndarray:
    """The photograph with the predicted hands, and the true joints in white."""
    zoom = _SHOWN / max(image.shape[:2])
    canvas_from_image = np.array([[zoom, 0, (zoom - 1) / 2], [0, zoom, (zoom - 1) / 2], [0, 0, 1]])
    shown = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR)
    for hands in people:
        shown = draw_hands(shown, canvas_from_image, hands, faces)
    for label in labels:
        points = (label.joints_px * zoom + (zoom - 1) / 2).round().astype(int)
        for joint, parent in enumerate(MANO21.parents):
            if parent >= 0 and label.visible[joint] and label.visible[parent]:
                cv2.line(shown, points[parent].tolist(), points[joint].tolist(), (255, 255, 255), 1, cv2.LINE_AA)
    return shown


def page(results: dict[str, Any], shown: list[tuple[str, str]]) -> str:
    """The page: what was measured, then every photograph, as it is taken and with its true box."""
    names = ("", "hands", "found", "missed", "other side", "invented", "2D, %", "3D, mm")
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    rows = "".join(
        f"<tr><td>{html.escape(way)}: {html.escape(group)}</td><td>{row['hands']}</td><td>{row['found']}</td>"
        f"<td>{row['missed']}</td><td>{row['other_side']}</td><td>{row['invented']}</td>"
        f"<td>{_shown(row['error_2d_percent'])}</td><td>{_shown(row['error_3d_mm'])}</td></tr>"
        for way, groups in results.items() for group, row in groups.items())
    images = "".join(f'<figure><img src="{html.escape(file)}" loading="lazy"><figcaption>{html.escape(caption)}'
                     "</figcaption></figure>" for file, caption in shown)
    return ("<!doctype html><meta charset=utf-8><title>Photographs</title><style>body{font:15px sans-serif;margin:2em}"
            "td,th{padding:.2em .8em;text-align:right}td:first-child{text-align:left}figure{display:inline-block;"
            "margin:.4em;vertical-align:top}figcaption{font-size:12px;max-width:960px}</style>"
            f"<h1>Photographs</h1><table><tr>{head}</tr>{rows}</table><p>Left: the finder looks for the hands. Right: "
            f"the true box is given. White lines are the true joints.</p>{images}")


def _shown(values: list[float | None]) -> str:
    mean, low, high = values
    return "–" if mean is None else f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--out", type=Path, default=ROOT / "output" / "photo_check")
    parser.add_argument("--every", type=int, default=1, help="take every Nth image only")
    parser.add_argument("--align", action="store_true", help="as for demo.py")
    args = parser.parse_args()
    entries = read_json(args.folder / "labels.json")["images"][::args.every]
    if not entries:
        raise UserError(f"{args.folder / 'labels.json'} names no image.")
    predictor = load_network(args.checkpoint, [], torch.device("cpu")).predictor
    photo = PhotoPredictor(predictor, finder=HandFinder.from_files(),
                           aligner=Aligner(predictor.hand_model) if args.align else None)
    outcomes: dict[str, list[Outcome]] = {"finder": [], "true box": []}
    invented: dict[str, dict[int, int]] = {way: {} for way in outcomes}
    shown = []
    for index, (entry, name) in enumerate(zip(tqdm(entries), unique_names([entry["file"] for entry in entries]),
                                              strict=True)):
        image, labels = read_rgb(args.folder / entry["file"], upright=True), labels_of(entry)
        pictures, caption = [], entry["file"]
        for way in outcomes:
            people = photo(image, [true_box(labels)] if way == "true box" else ())
            own, invented[way][index] = judge(index, entry.get("set", "photographs"), labels, people)
            outcomes[way] += own
            pictures.append(picture(image, people, labels, predictor.hand_model.faces))
            caption += "; " + ", ".join("missed" if not one.is_found else f"{one.error_2d:.1f} %" for one in own)
        _, coded = cv2.imencode(".jpg", np.hstack(pictures)[..., ::-1])
        file = args.out / "images" / f"{name}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lambda out, coded=coded: out.write(coded.tobytes()))
        shown.append((f"images/{name}.jpg", caption))

    results = {way: {group: summary([one for one in own if group in (one.group, "all")], invented[way])
                     for group in [*sorted({one.group for one in own}), "all"]} for way, own in outcomes.items()}
    write_json(args.out / "metrics.json", {"checkpoint": str(args.checkpoint), "align": args.align, **results})
    text = page(results, shown)
    write_atomically(args.out / "index.html", lambda out: out.write(text.encode()))
    for way, groups in results.items():
        for group, row in groups.items():
            print(f"{way}, {group}: {row['found']} of {row['hands']} hands found, {row['missed']} missed, "
                  f"{row['other_side']} as the other hand, {row['invented']} invented; 2D "
                  f"{_shown(row['error_2d_percent'])} %, 3D {_shown(row['error_3d_mm'])} mm")
    print(f"See {args.out / 'index.html'}.")
    return EXIT_OK


if __name__ == "__main__":
    run_entry_point(main)
