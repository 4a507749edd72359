"""Annotations in InterHand2.6M's format of any size, written as a stream: resting hands seen by a ring of cameras.

There are no pictures, but for the first one, whose existence readers check.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from common.hands import INTERHAND21, MANO21, NUM_SHAPE, Hand, joint_regressor
from common.mano.model import HandModel
from data.hand_model_file import HAND_MODEL_FILE

# InterHand2.6M's training split, whose proportions are kept: up to 73 cameras see each time step.
IMAGES, STEPS, CAPTURES, CAMERAS = 1_361_062, 18_718, 27, 73

_WIDTH, _HEIGHT = 334, 512
_FILE_FROM_MANO21 = INTERHAND21.gather_from(MANO21)


def write_annotation_set(root: Path, images: int, model: HandModel) -> None:
    """Write the training split of a set with `images` interacting images under `root`."""
    rng = np.random.default_rng(0)
    steps = -(-images * STEPS // IMAGES)
    places = rng.normal(0, 0.05, (steps, 1, 3)) + [[-0.08, 0, 0], [0.08, 0, 0]]         # (steps, 2, 3) metres
    joints = (joint_regressor(model.regressor) @ model.template).numpy()                # (2, 21, 3)
    _write(root, "data", _data(images, steps, rng))
    _write(root, "camera", _object((str(capture), json.dumps(_cameras(rng))) for capture in range(CAPTURES)))
    _write(root, "joint_3d", _by_step(steps, lambda step: _joint_entry(joints + places[step, :, None])))
    _write(root, "MANO_NeuralAnnot", _by_step(steps, lambda step: _fit_entry(places[step], rng)))
    (root / HAND_MODEL_FILE).write_text(json.dumps(model.identity), encoding="utf-8")
    first = root / "images" / "train" / _file_name(0, steps)
    first.parent.mkdir(parents=True)
    cv2.imwrite(str(first), np.full((_HEIGHT, _WIDTH, 3), 128, dtype=np.uint8))


def _write(root: Path, kind: str, pieces: Iterable[str]) -> None:
    path = root / "annotations" / "train" / f"InterHand2.6M_train_{kind}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(pieces)


def _object(items: Iterable[tuple[str, str]]) -> Iterator[str]:
    """A JSON object in pieces, from keys and encoded values."""
    for number, (key, value) in enumerate(items):
        yield f"{', ' if number else '{'}\"{key}\": {value}"
    yield "}"


def _by_step(steps: int, entry: Callable[[int], dict[str, Any]]) -> Iterator[str]:
    """A file {capture: {frame: entry}} in pieces."""
    return _object((str(capture), "".join(_object((str(_frame(step)), json.dumps(entry(step)))
                                                  for step in range(capture, steps, CAPTURES))))
                   for capture in range(min(CAPTURES, steps)))


def _data(images: int, steps: int, rng: np.random.Generator) -> Iterator[str]:
    yield '{"images": ['
    for number in range(images):
        camera, step = divmod(number, steps)
        yield (f'{", " if number else ""}{{"id": {number}, "file_name": "{_file_name(number, steps)}", '
               f'"width": {_WIDTH}, "height": {_HEIGHT}, "capture": {step % CAPTURES}, "subject": {step % CAPTURES}, '
               f'"seq_name": "0390_dh_touchROM", "camera": "{400_000 + camera}", "frame_idx": {_frame(step)}}}')
    yield '], "annotations": ['
    flags = [json.dumps(row.tolist()) for row in (rng.random((64, 42, 1)) < 0.95).astype(int)]
    for number in range(images):
        yield (f'{", " if number else ""}{{"id": {number}, "image_id": {number}, '
               f'"bbox": [{33.5 + number % 90}, 164.92374, 185.05786, 142.72566], "joint_valid": {flags[number % 64]}, '
               f'"hand_type": "interacting", "hand_type_valid": 1}}')
    yield "]}"


def _frame(step: int) -> int:
    return 1000 + 3 * step


def _file_name(number: int, steps: int) -> str:
    camera, step = divmod(number, steps)
    return f"Capture{step % CAPTURES}/0390_dh_touchROM/cam{400_000 + camera}/image{_frame(step)}.jpg"


def _cameras(rng: np.random.Generator) -> dict[str, dict[str, list]]:
    """Cameras of one capture, 1.1 m from the hands, looking at them."""
    cameras: dict[str, dict[str, list]] = {"campos": {}, "camrot": {}, "focal": {}, "princpt": {}}
    for number in range(CAMERAS):
        toward, up = rng.normal(size=(2, 3))
        toward /= np.linalg.norm(toward)
        right = np.cross(up, toward)
        right /= np.linalg.norm(right)
        name = str(400_000 + number)
        cameras["campos"][name] = (-1100 * toward).tolist()
        cameras["camrot"][name] = np.stack([right, np.cross(toward, right), toward]).tolist()
        cameras["focal"][name] = rng.uniform(1261, 1275, 2).tolist()
        cameras["princpt"][name] = [_WIDTH / 2, _HEIGHT / 2]
    return cameras


def _joint_entry(joints: np.ndarray) -> dict[str, Any]:
    """joints: (2, 21, 3) metres, MANO21."""
    return {"world_coord": (1000 * joints[:, _FILE_FROM_MANO21]).reshape(42, 3).tolist(),
            "joint_valid": [[True]] * 42, "hand_type": "interacting", "hand_type_valid": True}


def _fit_entry(places: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """places: (2, 3) metres."""
    return {hand.label: {"pose": [0.0] * 3 + rng.normal(0, 0.01, 45).tolist(),
                         "shape": rng.normal(0, 0.1, NUM_SHAPE).tolist(), "trans": places[hand].tolist()}
            for hand in Hand}
