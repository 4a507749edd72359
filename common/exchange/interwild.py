"""Hands as InterWild's demo writes them: two JSON files of parameters for each image.

`NAME_right.json` and `NAME_left.json` hold `root_pose` (3), `hand_pose` (45), `shape` (10) and `root_trans` (3):
axis-angles in radian with flat_hand_mean=False, and where the wrist regressed from the posed mesh ends up, in metres,
in a frame that both hands share. (Moon, "Bringing Inputs to Shared Domains for 3D Interacting Hands Recovery in the
Wild", CVPR 2023; its code puts the right wrist at 0.)
"""

from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.exchange.conversion import Matrices, from_matrices, to_matrices
from common.exchange.predictions import Predictions
from common.files import read_json, write_json
from common.hands import NUM_SHAPE, Hand
from common.mano.model import HandModel, check_same_model
from common.mano.pose import POSE_CONVENTION, POSE_UNITS, pose_from_rotations, rotations_from_pose

_LENGTHS = {"root_pose": 3, "hand_pose": 45, "shape": NUM_SHAPE, "root_trans": 3}
_LARGEST = 1e6      # nothing in these files comes near it; not a number and infinity do not pass either


def read_interwild(folder: Path, model: HandModel, suffix: str = ".jpg") -> Predictions:
    """Predictions from all parameter files below `folder`; a missing file is a hand that is not predicted.

    suffix: what follows NAME in the sample's name where a file has no key `image` that says it.
    """
    found: dict[str, dict[Hand, np.ndarray]] = {}
    for hand in Hand:
        files = (file for file in folder.rglob(f"*_{hand.label}.json") if not file.name.startswith("._"))   # of macOS
        for file in sorted(files):
            numbers, image = _read_hand(file, hand, model)
            name = file.relative_to(folder).as_posix().removesuffix(f"_{hand.label}.json")
            hands = found.setdefault(image or f"{name}{suffix}", {})
            if hand in hands:
                raise UserError(f"{file} is the second {hand.label} hand of '{image}'.", "Keep one for each image.")
            hands[hand] = numbers
    if not found:
        raise UserError(f"{folder} holds no NAME_right.json and no NAME_left.json.")

    table = np.zeros((len(found), 2, sum(_LENGTHS.values())))
    predicted = np.zeros((len(found), 2), dtype=bool)
    for row, hands in enumerate(found.values()):
        for hand, numbers in hands.items():
            table[row, hand], predicted[row, hand] = numbers, True
    pose, shape, wrist = np.split(table, np.cumsum([48, NUM_SHAPE]), axis=-1)
    rotations = rotations_from_pose(pose, model.mean_pose.double().numpy())
    form = Matrices(np.array(list(found)), predicted, rotations, shape, wrist)
    return from_matrices(form, model, unit="m", pivot="wrist")


def write_interwild(folder: Path, predictions: Predictions, model: HandModel) -> int:
    """Write a file for each hand that is predicted and finite; the number of files.

    A sample's files lie in `folder` under the sample's own name.
    """
    form = to_matrices(predictions, model, unit="m", pivot="wrist")
    written = 0
    for row, hand in np.ndindex(form.predicted.shape):
        image, hand = str(form.image[row]), Hand(hand)
        values = [column[row, hand].astype(np.float64) for column in (form.rotations, form.shape, form.translation)]
        if not form.predicted[row, hand] or not all(np.isfinite(value).all() for value in values):
            continue
        rotations, shape, wrist = values
        pose = pose_from_rotations(rotations, model.mean_pose[hand].double().numpy())
        write_json(_file_of(folder, image, hand), {
            "root_pose": pose[:3].tolist(), "hand_pose": pose[3:].tolist(), "shape": shape.tolist(),
            "root_trans": wrist.tolist(), "hand": hand.label, "image": image, "units": POSE_UNITS,
            "convention": POSE_CONVENTION, "hand_model": model.identity,
        })
        written += 1
    return written


def _file_of(folder: Path, image: str, hand: Hand) -> Path:
    path = Path(image)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"The sample '{image}' would be written outside of {folder}.")
    return folder / path.with_name(f"{path.stem}_{hand.label}.json")


def _read_hand(file: Path, hand: Hand, model: HandModel) -> tuple[np.ndarray, str]:
    """The numbers of one file (61,), and the image that it names or ""."""
    content = read_json(file)
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no parameters.", f"It must hold {', '.join(_LENGTHS)}.")
    if content.get("hand", hand.label) != hand.label:
        raise UserError(f"{file}: 'hand' is {content['hand']!r}.", f"The name says that it is the {hand.label} hand.")
    image = content.get("image", "")
    if not isinstance(image, str):
        raise UserError(f"{file}: 'image' is {image!r}.", "It must be the name of the sample.")
    identity = content.get("hand_model")
    if isinstance(identity, dict) and {"name", "sha256"} <= identity.keys():
        check_same_model(model.identity, identity, str(file))
    return np.concatenate([_numbers(content, key, file) for key in _LENGTHS]), image


def _numbers(content: dict[str, Any], key: str, file: Path) -> np.ndarray:
    values = content.get(key)
    if not (isinstance(values, list) and len(values) == _LENGTHS[key]
            and all(type(value) in (int, float) and abs(value) < _LARGEST for value in values)):
        raise UserError(f"{file}: '{key}' is {str(values)[:60]}.", f"It must be a list of {_LENGTHS[key]} numbers.")
    return np.array(values, dtype=np.float64)
