"""Pictures with the boxes that say where in them the hands are."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import UserError
from common.images import BadImage, read_rgb
from data.checks import BadSample, Reason
from data.frames.boxes import Box
from data.frames.sources import find_pictures

_MAX_NAME = 180     # bytes; with what is added to it a file name stays below 255


class Photo(NamedTuple):
    """One image, upright."""

    image: np.ndarray           # (H, W, 3) uint8 RGB
    box_px: Box | None          # x, y, width, height of a box round both hands; None: not known


class ImageFolder:
    """The pictures of a folder, of a data set or of one file, in natural order: see `find_pictures`.

    boxes: by name of the picture; they replace those of the data set. A picture without a box is used whole.
    """

    def __init__(self, path: Path, boxes: dict[str, Box]):
        found = find_pictures(path)
        if boxes and not boxes.keys() & {picture.name for picture in found}:
            raise UserError(f"None of the {len(boxes)} names in the boxes file is a picture in {path}.",
                            f"The file names '{next(iter(boxes))}', the folder holds '{found[0].name}'.")
        self.pictures = [picture._replace(box=boxes.get(picture.name, picture.box)) for picture in found]
        self.names = unique_names([picture.name for picture in found])
        self.without_box = [picture for picture in self.pictures if picture.box is None]

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, index: int) -> Photo:
        """The picture at a position; BadSample says why it cannot be used."""
        picture = self.pictures[index]
        try:
            image = read_rgb(picture.path, upright=True)
        except BadImage as error:
            raise BadSample(Reason(error.fault), error.detail) from None
        height, width = image.shape[:2]
        if picture.box is not None:
            x, y, box_width, box_height = picture.box
            if x + box_width <= 0 or y + box_height <= 0 or x >= width or y >= height:
                raise BadSample(Reason.OUT_OF_FRAME, f"its box {list(picture.box)} lies outside the picture of "
                                                     f"{width}×{height} pixels")
        return Photo(image, picture.box)


def unique_names(pictures: list[str]) -> list[str]:
    """A name for each picture's results: seq01/7.png gives seq01_7, but a.jpg beside a.png a_jpg.

    Case does not count, because it does not on every disk. Long names are cut.
    """
    paths = [Path(picture.replace("/", "_")) for picture in pictures]
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
    return stem.encode(errors="surrogateescape")[:_MAX_NAME].decode(errors="ignore") or "picture"
