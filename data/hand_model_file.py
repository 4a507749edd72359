"""The file in which a rendered set names the hand that it shows. The real sets show MANO's and have no such file."""

from pathlib import Path

from common.errors import UserError
from common.files import read_json
from common.mano.model import HandModel, check_same_model

HAND_MODEL_FILE = "hand_model.json"     # in the root of a set: HandModel.identity


def names_hand_model(root: Path, hand_model: HandModel) -> bool:
    """Whether the set under `root` names its hand model; UserError if that is another one than `hand_model`."""
    file = root / HAND_MODEL_FILE
    if not file.is_file():
        return False
    found = read_json(file)
    if not isinstance(found, dict) or {"name", "sha256"} - found.keys():
        raise UserError(f"{file} does not name a hand model.", "It must hold 'name' and 'sha256'.")
    check_same_model(hand_model.identity, found, where=str(root))
    return True
