"""HIC.json: one entry for each annotation, joined with its image by id."""

from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from common.errors import UserError
from common.files import read_json
from common.hands import Hand

IMAGE_SIZE = (640, 480)
HAND_TYPES = ("right", "left", "interacting")

DOWNLOAD = (
    "Download the sequences (01 to 11 and 15 to 21) and the MANO fits from "
    "https://files.is.tue.mpg.de/dtzionas/Hand-Object-Capture/ and HIC.json through the README of "
    "https://github.com/facebookresearch/InterWild, unpack them into one folder and point data.root at it."
)
_FORM = "It must have the form of InterWild's HIC.json; if it is that file, download it again."


class Entry(NamedTuple):
    """One annotation with its image. File names are relative to a folder that `find_files` knows."""

    annotation_id: int
    image_id: int
    sequence: str
    file_name: str
    hand_type: str                      # right, left or interacting
    box: tuple[float, ...] | None       # x, y, width, height in pixels; None where the file has none
    meshes: tuple[str | None, ...]      # hand axis: PLY file, None where the hand has no mesh


def find_annotations(root: Path) -> Path:
    """The path of HIC.json under `root`; UserError lists all that were tried."""
    tried = [root / "HIC.json", root / "data" / "HIC.json", root / "HIC" / "data" / "HIC.json"]
    for path in tried:
        if path.is_file():
            return path
    raise UserError(f"There is no annotation file of HIC. Tried: {', '.join(map(str, tried))}.", DOWNLOAD)


def read_entries(path: Path) -> list[Entry]:
    """All annotations of HIC.json in the order of their ids; UserError names the entry that is wrong."""
    content = read_json(path)
    images = {}
    for number, image in enumerate(_items(content, "images", path)):
        where = f"{path}, images[{number}]"
        image_id = _whole_number(image, "id", where)
        if image_id in images:
            raise _damaged(where, f"the id {image_id} occurs twice")
        images[image_id] = image, where
    entries = {}
    for number, annotation in enumerate(_items(content, "annotations", path)):
        where = f"{path}, annotations[{number}]"
        image_id = _whole_number(annotation, "image_id", where)
        if image_id not in images:
            raise _damaged(where, f"there is no image with the id {image_id}")
        entry = _entry(annotation, where, *images[image_id])
        if entry.annotation_id in entries:
            raise _damaged(where, f"the id {entry.annotation_id} occurs twice")
        entries[entry.annotation_id] = entry
    if not entries:
        raise UserError(f"{path} has no annotations.", _FORM)
    return [entries[annotation_id] for annotation_id in sorted(entries)]


def _entry(annotation: dict[str, Any], where: str, image: dict[str, Any], where_image: str) -> Entry:
    size = tuple(_whole_number(image, key, where_image) for key in ("width", "height"))
    if size != IMAGE_SIZE:
        raise _damaged(where_image, f"width and height are {size[0]}×{size[1]}; HIC's camera has 640×480")
    hand_type = _value(annotation, "hand_type", where)
    if hand_type not in HAND_TYPES:
        raise _damaged(where, f"hand_type is {_shown(hand_type)}, not one of {', '.join(HAND_TYPES)}")
    return Entry(
        annotation_id=_whole_number(annotation, "id", where), image_id=_whole_number(image, "id", where_image),
        sequence=str(_value(image, "seq_name", where_image)), file_name=_file_name(image, "file_name", where_image),
        hand_type=hand_type, box=_box(annotation.get("bbox"), where),
        meshes=tuple(_mesh_name(annotation, hand, where) for hand in Hand),
    )


def _mesh_name(annotation: dict[str, Any], hand: Hand, where: str) -> str | None:
    """The mesh file of a hand that the annotation speaks of. As in InterWild a mesh of the other hand is not used."""
    key = f"{hand.label}_mano_path"
    name = None if _value(annotation, key, where) is None else _file_name(annotation, key, where)
    return name if annotation["hand_type"] in (hand.label, "interacting") else None


# ---------------------------------------------------------------- one value each

def _items(content: Any, key: str, path: Path) -> list[dict[str, Any]]:
    items = _value(content, key, str(path)) if isinstance(content, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise _damaged(str(path), f"'{key}' is not a list of entries")
    return items


def _value(entry: dict[str, Any], key: str, where: str) -> Any:
    if key not in entry:
        raise _damaged(where, f"there is no '{key}'")
    return entry[key]


def _whole_number(entry: dict[str, Any], key: str, where: str) -> int:
    value = _value(entry, key, where)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**62:
        raise _damaged(where, f"{key} is {_shown(value)}, not a whole number")
    return value


def _file_name(entry: dict[str, Any], key: str, where: str) -> str:
    name = _value(entry, key, where)
    if not isinstance(name, str) or not name or "\0" in name:
        raise _damaged(where, f"{key} is {_shown(name)}, not a file name")
    name = name.replace("\\", "/")       # as Windows writes it
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise _damaged(where, f"{key} '{name}' leaves the folder of the data set")
    return name


def _box(box: Any, where: str) -> tuple[float, ...] | None:
    if box is None:
        return None
    try:
        x, y, width, height = (float(number) for number in box)
    except (TypeError, ValueError, OverflowError):
        raise _damaged(where, f"bbox is {_shown(box)}, not 4 numbers") from None
    if not np.isfinite([x, y, width, height]).all() or min(width, height) <= 0:
        raise _damaged(where, f"bbox is {_shown(box)}, not a box with an area")
    return x, y, width, height


def _shown(value: Any) -> str:
    return repr(value)[:80]


def _damaged(where: str, problem: str) -> UserError:
    return UserError(f"{where}: {problem}.", _FORM)
