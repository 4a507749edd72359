"""The boxes file: `{"file name": [x, y, width, height]}`, one tight box round both hands of each image.

Pixels of the image as a viewer shows it (after the EXIF rotation); x and y are the upper left corner. The frames of a
data set have their sequence in the name: "seq01_crossed/17_color.png".
"""

import json
from pathlib import Path

from common.errors import UserError

Box = tuple[float, float, float, float]
EXAMPLE = 'Write {"photo.jpg": [x, y, width, height]} in pixels, for example {"photo.jpg": [120, 80, 300, 260]}.'


def read_boxes(path: Path) -> dict[str, Box]:
    """Boxes by file name; UserError names the entry that is wrong."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--boxes: there is no file {path}.", EXAMPLE) from None
    except OSError as error:
        raise UserError(f"--boxes: {path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"--boxes: {path} is not a JSON file: {error}.", EXAMPLE) from None
    if not isinstance(values, dict):
        raise UserError(f"--boxes: {path} holds a {type(values).__name__} at its top level.", EXAMPLE)
    return {name: _checked(path, name, box) for name, box in values.items()}


def _checked(path: Path, name: str, box: object) -> Box:
    are_numbers = isinstance(box, list) and len(box) == 4 and all(
        isinstance(number, int | float) and not isinstance(number, bool) and abs(number) < 1e9 for number in box)
    if not (isinstance(box, list) and are_numbers and min(box[2:]) > 0):
        raise UserError(f"--boxes: {path} gives '{name}' the box {json.dumps(box)[:80]}.", EXAMPLE)
    x, y, width, height = map(float, box)
    return x, y, width, height
