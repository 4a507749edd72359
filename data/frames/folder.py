"""Images with the boxes that say where in them the hands are."""

import math
import os
import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import UserError
from common.geometry import Box
from common.images import BadImage, read_rgb, shows_nothing
from data.checks import BadSample, Reason
from data.frames.sources import find_images

_MAX_NAME = 180     # bytes; with what is added to it a file name stays below 255


class Photo(NamedTuple):
    """One image, upright."""

    image: np.ndarray           # (H, W, 3) uint8 RGB
    boxes_px: tuple[Box, ...]   # x, y, width, height of a box round the hands of each person; none: not known


class ImageFolder:
    """The images of a folder, of a data set or of one file, in natural order: see `find_images`.

    boxes: by name of the image; they replace those of the data set. An image without a box is used whole.
    unknown: the names among `boxes` that are no image of the source.
    """

    def __init__(self, path: Path, boxes: dict[str, tuple[Box, ...]]):
        found = find_images(path)
        named, self.unknown = _by_image(boxes, [image.name for image in found])
        if boxes and not named:
            raise UserError(f"None of the {len(boxes)} names in the boxes file is an image in {path}.",
                            f"The file names '{next(iter(boxes))}', the folder holds '{found[0].name}'.")
        self.images = [image._replace(boxes=named.get(image.name, image.boxes)) for image in found]
        self.names = unique_names([image.name for image in found])
        self.without_box = [image for image in self.images if not image.boxes]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Photo:
        """The image at a position; BadSample says why it cannot be used."""
        file = self.images[index]
        try:
            image = read_rgb(file.path, upright=True)
        except BadImage as error:
            raise BadSample(Reason(error.fault), error.detail) from None
        for part in [_in_box(image, box) for box in file.boxes] or [image]:
            if shows_nothing(part):
                where = " in its box" if file.boxes else ""
                raise BadSample(Reason.IMAGE_BLACK, f"it shows nothing{where}: it is black or of one colour")
        return Photo(image, file.boxes)


def _by_image(boxes: dict[str, tuple[Box, ...]], images: list[str]
              ) -> tuple[dict[str, tuple[Box, ...]], list[str]]:
    """The boxes by the names that the images have, and the names of boxes that no image has.

    A name stands for the image of that very name, or else for the one whose name looks the same.
    """
    exact = {name: box for name, box in boxes.items() if name in set(images)}
    alike = {_composed(image): image for image in images if image not in exact}
    rest = {name: alike.get(_composed(name)) for name in boxes if name not in exact}
    named = exact | {image: boxes[name] for name, image in rest.items() if image is not None}
    return named, [name for name, image in rest.items() if image is None]


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _in_box(image: np.ndarray, box: Box) -> np.ndarray:
    """The pixels of an image (H, W, 3) that its box touches; BadSample if it touches none."""
    height, width = image.shape[:2]
    x, y, box_width, box_height = box
    if x + box_width <= 0 or y + box_height <= 0 or x >= width or y >= height:
        raise BadSample(Reason.OUT_OF_FRAME, f"its box {list(box)} lies outside the image of {width}×{height} pixels")
    left, top = max(0, int(x)), max(0, int(y))
    return image[top:math.ceil(y + box_height), left:math.ceil(x + box_width)]


def unique_names(images: list[str]) -> list[str]:
    """A name for each image's results: seq01/7.png gives seq01_7, but a.jpg beside a.png a_jpg.

    Case does not count, because it does not on every disk. Long names are cut.
    """
    paths = [Path(image.replace("/", "_")) for image in images]
    stems = [_cut(path.stem) for path in paths]
    count_of = Counter(stem.casefold() for stem in stems)
    taken, names = set(), []
    for stem, path in zip(stems, paths, strict=True):
        name = base = stem if count_of[stem.casefold()] == 1 else f"{stem}_{path.suffix[1:]}"
        count = 1
        while name.casefold() in taken or (name != stem and name.casefold() in count_of):
            count += 1
            name = f"{base}_{count}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _cut(stem: str) -> str:
    text = stem.encode(errors="surrogateescape")[:_MAX_NAME].decode(errors="ignore")
    return os.fsdecode(text.encode()) or "image"        # an ASCII locale writes names as it reads them, byte by byte
