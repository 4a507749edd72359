"""Pictures with the boxes that say where in them the hands are."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from common.errors import UserError
from common.geometry import SquareBox, square_box
from data.checks import BadSample, Reason
from data.frames.boxes import Box
from data.frames.sources import find_pictures
from data.images import read_rgb

_MAX_NAME = 180     # bytes; with what is added to it a file name stays below 255


class Photo(NamedTuple):
    """One picture, upright."""

    image: np.ndarray           # (H, W, 3) uint8 RGB
    box_px: Box                 # x, y, width, height: as given, or the whole picture
    square: SquareBox           # what the network sees


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

    def read(self, index: int, box_ratio: float) -> Photo:
        """The picture at a position; BadSample says why it cannot be used.

        box_ratio: how much of the crop a box fills.
        """
        picture = self.pictures[index]
        image = read_rgb(picture.path, upright=True)
        height, width = image.shape[:2]
        if picture.box is None:
            center = np.array([width - 1, height - 1]) / 2
            return Photo(image, (0.0, 0.0, float(width), float(height)), SquareBox(center, float(max(width, height))))
        x, y, box_width, box_height = picture.box
        if x + box_width <= 0 or y + box_height <= 0 or x >= width or y >= height:
            raise BadSample(Reason.OUT_OF_FRAME, f"its box {list(picture.box)} lies outside the picture of "
                                                 f"{width}×{height} pixels")
        corners = np.array([[x, y], [x + box_width, y + box_height]])
        return Photo(image, picture.box, square_box(corners, box_ratio))


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


def crop_image(image: np.ndarray, crop_from_image: np.ndarray, size: int,
               outside: tuple[int, int, int] = (0, 0, 0)) -> np.ndarray:
    """The crop (S, S, 3) uint8 that a transform cuts out; outside the picture it is black, as in training.

    As in training down to half the size. Below that, a larger crop is averaged: skipping pixels would leave noise.
    """
    reduction = np.sqrt(np.linalg.det(np.linalg.inv(crop_from_image)[:2, :2]))
    factor = int(np.clip(np.ceil(reduction / 2), 1, 16))
    enlarge = np.array([[factor, 0, (factor - 1) / 2], [0, factor, (factor - 1) / 2], [0, 0, 1]])
    crop = cv2.warpAffine(image, (enlarge @ crop_from_image)[:2], (size * factor, size * factor),
                          borderValue=outside)
    return cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
