"""From one photograph to its files: meshes, parameters and pictures.

Legend: 2 the hand axis · 778 vertices · S side of the crop in pixels.
"""

from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from common.files import write_atomically, write_json
from common.geometry import apply_affine, crop_affine, vertex_normals
from common.hands import Hand
from common.mano.model import HandModel
from common.types import HandPrediction, ManoParams
from common.view.meshes import WeakCamera, common_frame, hand_params, weak_cameras, wrist_offsets, write_obj
from common.view.overlay import PAPER_COLOR, paint_hands, side_view
from data.frames import Photo, crop_image

OVERLAY_OPACITY = 0.85
MAX_OVERLAY_SIDE = 2048     # larger photographs are shrunk for their overlay
TILE = 512                  # pixels of a side view and of each tile of a panel
GAP = 12                    # white pixels between tiles


class Reconstruction(NamedTuple):
    """Both hands of one photograph, on the CPU, without batch axis."""

    rough: HandPrediction           # M_r
    final: HandPrediction           # M_f
    cameras: list[WeakCamera]       # of M_f, to pixels of the photograph


@torch.no_grad()
def reconstruct(model: nn.Module, photo: Photo, size: int, device: torch.device) -> Reconstruction:
    """Run LGNet, in evaluation mode, on the crop of one photograph."""
    crop_from_image = crop_affine(photo.square, size)
    crop = crop_image(photo.image, crop_from_image, size)
    image = torch.from_numpy(crop).to(device).permute(2, 0, 1)[None].float() / 255
    stages = model(image)
    rough, final = (_first(hands) for hands in (stages.mesh, stages.final))
    return Reconstruction(rough, final, weak_cameras(final.camera, crop_from_image, size))


def result_files(output: Path, name: str) -> dict[str, Path]:
    """Where `write_results` puts what it writes for one photograph."""
    pictures = {kind: output / kind / f"{name}.png" for kind in ("overlay", "side", "panel")}
    meshes = {f"mesh_{hand.label}": output / "meshes" / f"{name}_{hand.label}.obj" for hand in Hand}
    params = {f"params_{hand.label}": output / "params" / f"{name}_{hand.label}.json" for hand in Hand}
    return pictures | meshes | params


def write_results(files: dict[str, Path], photo: Photo, result: Reconstruction, model: HandModel,
                  source: dict[str, Any]) -> None:
    """Write all files of one photograph.

    files: from `result_files`.  source: what the parameter files say about the photograph and the network.
    """
    vertices = common_frame(result.final)                                     # (2, 778, 3)
    for hand in Hand:
        comments = [f"LGNet, refined mesh of the {hand.label} hand in {source['image']}"]
        write_obj(files[f"mesh_{hand.label}"], vertices[hand], model.faces[hand], comments)
        write_json(files[f"params_{hand.label}"], _params(photo, result, hand, model, source))

    side = side_view(vertices, model.faces, TILE)
    write_png(files["overlay"], _overlay(photo, result, model.faces))
    write_png(files["side"], side)
    write_png(files["panel"], _panel(photo, result, model.faces, side))


def _first(hands: HandPrediction) -> HandPrediction:
    """The only sample of a batch, on the CPU."""
    mano = ManoParams(*(value[0].float().cpu() for value in hands.mano))
    return HandPrediction(*(mano if field == "mano" else getattr(hands, field)[0].float().cpu()
                            for field in hands._fields))


def _params(photo: Photo, result: Reconstruction, hand: Hand, model: HandModel,
            source: dict[str, Any]) -> dict[str, Any]:
    camera = result.cameras[hand]
    return {
        **hand_params(result.rough, hand, model),
        "camera": {
            "model": "weak perspective: pixel = scale_px_per_m * (x, y) + wrist_px, x and y relative to the own wrist",
            "scale_px_per_m": camera.scale_px_per_m,
            "wrist_px": list(camera.wrist_px),
        },
        "box": list(photo.box_px),
        "crop": {"center_px": photo.square.center.tolist(), "side_px": photo.square.side},
        **source,
    }


# ---------------------------------------------------------------- pictures

def _overlay(photo: Photo, result: Reconstruction, faces: Tensor) -> np.ndarray:
    """The photograph with both hands painted on it."""
    shrink = min(1.0, MAX_OVERLAY_SIDE / max(photo.image.shape[:2]))
    canvas_from_image = np.array([[shrink, 0, (shrink - 1) / 2], [0, shrink, (shrink - 1) / 2], [0, 0, 1]])
    canvas = photo.image
    if shrink < 1:
        width, height = (max(1, round(side * shrink)) for side in photo.image.shape[1::-1])
        canvas = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    return painted(canvas, canvas_from_image, result, faces)


def _panel(photo: Photo, result: Reconstruction, faces: Tensor, side: np.ndarray) -> np.ndarray:
    """Crop, crop with both hands, side view."""
    tile_from_image = crop_affine(photo.square, TILE)
    crop = crop_image(photo.image, tile_from_image, TILE, outside=PAPER_COLOR)
    return side_by_side([crop, painted(crop, tile_from_image, result, faces), side])


def side_by_side(tiles: list[np.ndarray]) -> np.ndarray:
    """Square pictures (TILE, TILE, 3) next to each other, white between them."""
    gap = np.full((TILE, GAP, 3), 255, dtype=np.uint8)
    return np.hstack([part for tile in tiles for part in (tile, gap)][:-1])


def painted(canvas: np.ndarray, canvas_from_image: np.ndarray, result: Reconstruction, faces: Tensor) -> np.ndarray:
    """The canvas (H, W, 3) uint8 with both hands on it: each where its own camera puts it, which fits the pixels best;
    depth decides what hides what.

    canvas_from_image: 3×3, from the photograph's pixels.  faces: (2, 1538, 3).
    """
    vertices = result.final.vertices                                          # (2, 778, 3)
    points_px = np.stack([camera.scale_px_per_m * vertices[hand, :, :2].numpy() + camera.wrist_px
                          for hand, camera in zip(Hand, result.cameras, strict=True)])
    points = torch.from_numpy(apply_affine(canvas_from_image, points_px)).float()
    depth = vertices[..., 2:] + wrist_offsets(result.final.relative)[:, None, 2:]
    return paint_hands(canvas, torch.cat([points, depth], dim=-1), vertex_normals(vertices, faces), faces,
                       OVERLAY_OPACITY)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write a picture (H, W, 3) uint8 RGB."""
    _, encoded = cv2.imencode(".png", picture[..., ::-1])
    write_atomically(path, lambda file: file.write(encoded.tobytes()))
