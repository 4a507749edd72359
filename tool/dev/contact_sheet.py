"""A contact sheet of random frames of a data set with their annotated meshes, for inspection by eye.

python tool/dev/contact_sheet.py --root DIR --out FILE.png [--split train] [--rows 8] [--columns 8]

Each cell shows the crop of one frame and the same crop with the annotated meshes over it: right hands red, left blue.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))     # the repository, however Python was started
import main._bootstrap as _bootstrap

import argparse

import cv2
import numpy as np
import torch

from common.errors import UserError, run_entry_point
from common.geometry import crop_affine, project, square_box, vertex_normals
from common.hands import Hand
from common.mano.load import load_hand_model
from common.view.rasterizer import interpolate, rasterize
from data.InterHand26M.reader import InterHand26M
from data.schema import Record

_COLORS = torch.tensor([[0.95, 0.45, 0.40], [0.40, 0.60, 0.95]])    # right, left
_OPACITY = 0.65


def main() -> None:
    args = _parse_args()
    model = load_hand_model(args.hand_model, args.hand_model_path)
    reader = InterHand26M(args.root, args.split, model, "all")
    count = args.rows * args.columns
    order = np.random.default_rng(args.seed).permutation(len(reader))
    picked = np.resize(order, count)
    cells = [_cell(reader.read(int(index)), model.faces, args.size) for index in picked]
    rows = [np.hstack(cells[row * args.columns: (row + 1) * args.columns]) for row in range(args.rows)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(args.out), np.vstack(rows)[..., ::-1]):
        raise UserError(f"{args.out} cannot be written.")
    print(f"{args.out}: {count} of {len(reader)} frames of split '{args.split}'.")


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder with 'annotations' and 'images'")
    parser.add_argument("--out", type=Path, required=True, help="PNG or JPEG to write")
    parser.add_argument("--split", default="train")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--size", type=int, default=128, help="side of a crop, pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hand_model", choices=["builtin", "mano"], default="builtin")
    parser.add_argument("--hand_model_path", default="", help="folder of the MANO files")
    return parser.parse_args()


def _cell(record: Record, faces: torch.Tensor, size: int) -> np.ndarray:
    """The crop and the crop with meshes, side by side: (size, 2·size, 3) uint8."""
    image = cv2.imread(str(record.image_path))
    if image is None:
        raise UserError(f"{record.image_path} cannot be read.")
    crop_from_image = crop_affine(square_box(record.box_px), size)
    crop = cv2.warpAffine(image[..., ::-1].copy(), crop_from_image[:2], (size, size), flags=cv2.INTER_AREA)
    return np.hstack([crop, _draw_meshes(crop, record, faces, crop_from_image), np.zeros((size, 2, 3), np.uint8)])


def _draw_meshes(crop: np.ndarray, record: Record, faces: torch.Tensor, crop_from_image: np.ndarray) -> np.ndarray:
    """The crop (S, S, 3) with the record's meshes drawn over it."""
    hands = [hand for hand in Hand if record.vertices_valid[hand]]
    if not hands:
        return crop
    vertices = torch.from_numpy(record.vertices_cam[hands]).flatten(0, 1)
    pixels = project(vertices, torch.from_numpy(crop_from_image @ record.camera))
    num_vertices = record.vertices_cam.shape[1]
    triangles = torch.cat([faces[hand] + k * num_vertices for k, hand in enumerate(hands)])
    fragments = rasterize(torch.cat([pixels, vertices[:, 2:]], dim=1)[None].float(), triangles, *crop.shape[:2])

    normals = vertex_normals(vertices[None].float(), triangles[None])[0]
    shade = 0.35 + 0.65 * normals[:, 2:].neg().clamp(min=0)                         # lit from the camera
    colors = shade * _COLORS[hands].repeat_interleave(num_vertices, dim=0)
    drawn = 255 * interpolate(colors, triangles, fragments)[0].numpy()
    opacity = _OPACITY * (fragments.face[0] >= 0).numpy()[..., None]
    return (opacity * drawn + (1 - opacity) * crop).astype(np.uint8)


if __name__ == "__main__":
    run_entry_point(main)
