"""The boxes file: `{"file name": [x, y, width, height]}`, one tight box round both hands of each image, or a list of
such boxes, one for each person.

Pixels of the image as a viewer shows it (after the EXIF rotation); x and y are the upper left corner. The frames of a
data set have their sequence in the name: "seq01_crossed/17_color.png". Accents may be composed ("é") or not ("e" and an
accent, as macOS names files).
"""

import json
from pathlib import Path

from common.errors import UserError
from common.files import read_json, write_json
from common.geometry import Box, check_box

EXAMPLE = 'Write {"photo.jpg": [x, y, width, height]} in pixels, for example {"photo.jpg": [120, 80, 300, 260]}.'


def read_boxes(path: Path) -> dict[str, tuple[Box, ...]]:
    """Boxes by file name; UserError names the entry that is wrong."""
    try:
        values = read_json(path, EXAMPLE)
    except UserError as error:
        raise UserError(f"--boxes: {error.message}", error.hint, error.exit_code) from None
    if not isinstance(values, dict):
        raise UserError(f"--boxes: {path} holds a {type(values).__name__} at its top level.", EXAMPLE)
    return {name: tuple(_checked(path, name, box) for box in (value if _is_list_of_boxes(value) else [value]))
            for name, value in values.items()}


def write_boxes(path: Path, boxes: dict[str, list[Box]]) -> None:
    """What `read_boxes` reads back; images without a box are left out."""
    write_json(path, {name: [[round(number, 2) for number in box] for box in own]
                      for name, own in boxes.items() if own})


def _is_list_of_boxes(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, list) for part in value)


def _checked(path: Path, name: str, box: object) -> Box:
    try:
        if not isinstance(box, list) or any(type(number) not in (int, float) for number in box):
            raise ValueError("is not four finite numbers")
        check_box(box)
    except ValueError as error:
        raise UserError(f"--boxes: {path} gives '{name}' the box {json.dumps(box)[:80]}, which {error}.",
                        EXAMPLE) from None
    x, y, width, height = map(float, box)
    return x, y, width, height
