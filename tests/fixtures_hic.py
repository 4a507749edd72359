"""A small set in HIC's layout, with the irregularities of the real one, and the truth it was made from.

Meshes come from the numpy skinning of `fixtures_interhand`, PLY files from the format's description.
"""

import json
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from fixtures_interhand import HAND_MODEL_FILE, skin

from common.hands import Hand
from common.mano.model import HandModel

FITS = "IJCV16___Results_MANO___parms_for___joints21"
INTRINSICS = np.array([[525.0, 0, 319.5], [0, 525.0, 239.5], [0, 0, 1]])

# (sequence, frame): what is special about it. Frame numbers have gaps.
FRAMES = {
    ("01", 5): "interacting",
    ("01", 6): "interacting, left mesh is null",
    ("01", 12): "interacting",
    ("01", 13): "interacting, right mesh file is missing",
    ("01", 30): "interacting, both meshes are null",
    ("16", 0): "interacting",
    ("16", 4): "right",
    ("16", 9): "left",
    ("16", 10): "right, a left mesh is named",
}
BOTH_MESHES = [("01", 5), ("01", 12), ("16", 0)]
ANY_MESH = [*BOTH_MESHES, ("01", 6), ("01", 13), ("16", 4), ("16", 9), ("16", 10)]


class HICFixture(NamedTuple):
    root: Path                                      # holds HIC.json
    vertices: dict[tuple[str, int], np.ndarray]     # (2, 778, 3) metres, camera frame: both hands, used or not


def write_hic(root: Path, model: HandModel, seed: int = 0) -> HICFixture:
    """Write the set under `root` with a file that names `model`.

    Ids have gaps, the two lists of HIC.json are in different orders, PLY files are ASCII and binary.
    """
    rng = np.random.default_rng(seed)
    images, annotations, truth = [], [], {}
    for number, ((sequence, frame), trait) in enumerate(FRAMES.items()):
        name = f"{sequence}/1/rgb/{frame:03d}.png"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / name), np.full((480, 640, 3), rng.integers(256, size=3), dtype=np.uint8))
        images.append({"id": 500 + 11 * number, "file_name": name, "width": 640, "height": 480, "seq_name": sequence})

        truth[sequence, frame] = _hands(rng, model)
        paths = {}
        for hand in Hand:
            path = f"{FITS}/IJCV16___fakeGT___IJCV___{sequence}___Model_Hand_{hand.name[0]}___ncomps45/{frame:03d}.ply"
            paths[f"{hand.label}_mano_path"] = path if _has_mesh(trait, hand) else None
            if paths[f"{hand.label}_mano_path"] and trait != f"interacting, {hand.label} mesh file is missing":
                write_ply(root / path, truth[sequence, frame][hand], model.faces[hand].numpy(), binary=number % 2 == 0)
        annotations.append({"id": 9000 - 7 * number, "image_id": 500 + 11 * number, "bbox": [100.0, 90.0, 210.0, 150.0],
                            "hand_type": trait.split(",")[0], **paths})
    order = rng.permutation(len(annotations)).tolist()
    content = {"images": images, "annotations": [annotations[place] for place in order]}
    (root / "HIC.json").write_text(json.dumps(content))
    (root / HAND_MODEL_FILE).write_text(json.dumps(model.identity))
    return HICFixture(root, truth)


def _has_mesh(trait: str, hand: Hand) -> bool:
    if trait in ("right", "left"):
        return trait == hand.label
    return trait not in (f"interacting, {hand.label} mesh is null", "interacting, both meshes are null")


def _hands(rng: np.random.Generator, model: HandModel) -> np.ndarray:
    """Both hands 60 cm before the camera, (2, 778, 3)."""
    hands = []
    for hand in Hand:
        mesh = skin(model, hand, rng.normal(0, 0.3, (16, 3)), rng.normal(0, 1, 10))
        place = [-0.08 if hand == Hand.RIGHT else 0.08, rng.normal(0, 0.03), 0.6 + rng.normal(0, 0.04)]
        hands.append(mesh - mesh.mean(axis=0) + place)
    return np.stack(hands)


def write_ply(path: Path, vertices: np.ndarray, faces: np.ndarray, binary: bool) -> None:
    """A PLY file with float32 vertices in the given order and triangles."""
    header = "\n".join([
        "ply", f"format {'binary_little_endian' if binary else 'ascii'} 1.0", f"element vertex {len(vertices)}",
        *(f"property float {axis}" for axis in "xyz"), f"element face {len(faces)}",
        "property list uchar int vertex_indices", "end_header", ""])
    if binary:
        rows = np.empty(len(faces), dtype=[("count", "u1"), ("corners", "<i4", 3)])
        rows["count"], rows["corners"] = 3, faces
        body = vertices.astype("<f4").tobytes() + rows.tobytes()
    else:
        lines = [" ".join(f"{value:.9g}" for value in vertex) for vertex in vertices]
        lines += [f"3 {' '.join(map(str, face))}" for face in faces]
        body = ("\n".join(lines) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.encode() + body)
