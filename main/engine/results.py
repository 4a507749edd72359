"""The files of one photograph: meshes, parameters and images of each person's hands.

The first person's have the photograph's name. Further people of it have results of their own, NAME_1, NAME_2 and so on;
the overlay NAME shows all. A hand that is not present has no mesh, and its parameters are null.

Legend: 2 the hand axis · 778 vertices.
"""

from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import Tensor

from common.errors import UserError
from common.files import read_json, write_atomically, write_json
from common.geometry import Box, SquareBox, crop_affine
from common.hands import Hand
from common.images import crop_image
from common.mano.model import HandModel
from common.types import TwoHands
from common.view.meshes import hand_params, write_obj
from common.view.overlay import PAPER_COLOR, draw_hands, side_view
from data.frames.folder import Photo

MAX_OVERLAY_SIDE = 2048     # larger photographs are shrunk for their overlay
TILE = 512                  # pixels of a side view and of each tile of a panel
GAP = 12                    # white pixels between tiles


def result_files(output: Path, name: str) -> dict[str, Path]:
    """Where `write_results` puts what it writes for one photograph."""
    images = {kind: output / kind / f"{name}.png" for kind in ("overlay", "side", "panel")}
    meshes = {f"mesh_{hand.label}": output / "meshes" / f"{name}_{hand.label}.obj" for hand in Hand}
    params = {f"params_{hand.label}": output / "params" / f"{name}_{hand.label}.json" for hand in Hand}
    return images | meshes | params


def are_written(files: dict[str, Path], source: dict[str, Any], boxes: Sequence[Box]) -> bool:
    """Whether the files of one photograph are there; UserError if other ones are: of another image, network or box.

    files: from `result_files`.  source: as in `write_results`.  boxes: of the photograph.
    """
    # Written last: see `write_results`.
    if not files["panel"].is_file() or not all(files[f"params_{hand.label}"].is_file() for hand in Hand):
        return False
    expected = source | ({"box": list(boxes[0])} if boxes else {})
    for hand in Hand:
        file = files[f"params_{hand.label}"]
        found = read_json(file)
        for key, value in expected.items():
            if not isinstance(found, dict) or found.get(key) != value:
                raise UserError(f"--resume: {file} was made with another '{key}'.",
                                "Use --overwrite to replace such results, or another --output.")
        if found.get("root_pose") is not None and not files[f"mesh_{hand.label}"].is_file():
            return False
    return True


def write_results(output: Path, name: str, photo: Photo, people: list[TwoHands], model: HandModel,
                  source: dict[str, Any], taken: Container[str]) -> None:
    """Write all files of one photograph.

    name: of its results.  people: of one that shows no hand, the prediction that says so.
    source: what the parameter files say about the photograph and the network.  taken: names of other results.
    """
    overlay = _overlay(photo.image, people, model.faces)
    names = [name]
    while len(names) < len(people):
        names.append(_free_name(name, names, taken))
    # The first person last: once their files are there, the photograph is done.
    boxes = photo.boxes_px or (None,) * len(people)
    for own_name, hands, box in reversed(list(zip(names, people, boxes, strict=True))):
        files = result_files(output, own_name)
        _write_person(files, photo, box, hands, overlay if own_name == name else None, model,
                      source if len(people) == 1 else source | {"people": names})


def _free_name(name: str, names: list[str], taken: Container[str]) -> str:
    number = len(names)
    while f"{name}_{number}" in taken or f"{name}_{number}" in names:
        number += 1
    return f"{name}_{number}"


def _write_person(files: dict[str, Path], photo: Photo, box: Box | None, hands: TwoHands,
                  overlay: np.ndarray | None, model: HandModel, source: dict[str, Any]) -> None:
    """Write the files of one person's hands.

    files: from `result_files`.  overlay: of the photograph; None: it is written elsewhere.
    source: what the parameter files say about the photograph and the network.
    """
    for hand in Hand:
        if hands.present[hand]:
            comments = [f"LGNet, refined mesh of the {hand.label} hand in {source['image']}"]
            write_obj(files[f"mesh_{hand.label}"], hands.vertices[hand], model.faces[hand], comments)
        else:
            files[f"mesh_{hand.label}"].unlink(missing_ok=True)     # of an earlier run
        write_json(files[f"params_{hand.label}"], _params(photo, box, hands, hand, model, source))

    side = side_view(hands, model.faces, TILE)
    if overlay is not None:
        write_png(files["overlay"], overlay)
    write_png(files["side"], side)
    write_png(files["panel"], _panel(photo.image, hands, model.faces, side))


def _params(photo: Photo, box: Box | None, hands: TwoHands, hand: Hand, model: HandModel, source: dict[str, Any]
            ) -> dict[str, Any]:
    height, width = photo.image.shape[:2]
    is_present = bool(hands.present[hand])
    return {
        **hand_params(hands, hand, model),
        "presence": float(hands.presence[hand]),
        "joint_confidence": hands.confidence[hand].tolist() if is_present else None,
        "camera": {
            "model": "weak perspective: pixel = scale_px_per_m * (x, y) + wrist_px, x and y relative to the own wrist",
            "scale_px_per_m": float(hands.scale_px_per_m[hand]) if is_present else None,
            "wrist_px": hands.wrist_px[hand].tolist() if is_present else None,
        },
        "box": list(box or (0.0, 0.0, float(width), float(height))),
        "crop": {"center_px": hands.crop_px[:2].tolist(), "side_px": float(hands.crop_px[2])},
        **source,
    }


# ---------------------------------------------------------------- images

def _overlay(image: np.ndarray, people: list[TwoHands], faces: Tensor) -> np.ndarray:
    """The photograph with everybody's hands painted on it."""
    shrink = min(1.0, MAX_OVERLAY_SIDE / max(image.shape[:2]))
    canvas_from_image = np.array([[shrink, 0, (shrink - 1) / 2], [0, shrink, (shrink - 1) / 2], [0, 0, 1]])
    if shrink < 1:
        width, height = (max(1, round(side * shrink)) for side in image.shape[1::-1])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    for hands in people:
        image = draw_hands(image, canvas_from_image, hands, faces)
    return image


def _panel(image: np.ndarray, hands: TwoHands, faces: Tensor, side: np.ndarray) -> np.ndarray:
    """Crop, crop with the hands, side view."""
    tile_from_image = crop_affine(SquareBox(hands.crop_px[:2], hands.crop_px[2]), TILE)
    crop = crop_image(image, tile_from_image, TILE, outside=PAPER_COLOR)
    return side_by_side([crop, draw_hands(crop, tile_from_image, hands, faces), side])


def side_by_side(tiles: list[np.ndarray]) -> np.ndarray:
    """Square images (TILE, TILE, 3) next to each other, white between them."""
    gap = np.full((TILE, GAP, 3), 255, dtype=np.uint8)
    return np.hstack([part for tile in tiles for part in (tile, gap)][:-1])


def write_png(path: Path, image: np.ndarray) -> None:
    """Write an image (H, W, 3) uint8 RGB."""
    _, encoded = cv2.imencode(".png", image[..., ::-1])
    write_atomically(path, lambda file: file.write(encoded.tobytes()))
