"""Files that are named like images, in the order in which a person would sort them."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import printable
from common.geometry import Box
from common.images import RAW_SUFFIXES

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".avif", ".heic", ".heif", ".hif", ".tif",
            ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm")
_OTHERS = (".jp2", ".jxl", ".psd", *RAW_SUFFIXES)       # images too: each gets a line that says why it is not used


class ImageFile(NamedTuple):
    """One file that should be an image."""

    name: str           # unique in its source; what a boxes file calls it
    path: Path
    boxes: tuple[Box, ...]  # that come with the data set, one round the hands of each person

    @property
    def label(self) -> str:
        """The name as text for one line of a report or file, whatever bytes it is made of."""
        return printable(self.name)


def images_in(folder: Path, prefix: str = "") -> list[ImageFile]:
    """Everything in a folder that is named like an image; each name is `prefix` and the file's, none has a box.

    macOS leaves a file ._NAME beside each NAME on foreign disks and in archives: these are no images.
    """
    paths = [path for path in folder.iterdir()
             if path.suffix.lower() in (*SUFFIXES, *_OTHERS) and not path.name.startswith("._")]
    return [ImageFile(prefix + path.name, path, ()) for path in sorted(paths, key=natural_order)]


def natural_order(path: Path) -> tuple[list[str | int], str]:
    """A sorting key that puts frame_2 before frame_10."""
    parts = re.split(r"([0-9]+)", path.name.casefold())
    return [int(part) if number % 2 else part for number, part in enumerate(parts)], path.name


def boxes_round(points: np.ndarray) -> tuple[Box, ...]:
    """The tight box round points (N, 2) in pixels; none where they span no area."""
    points = points[np.isfinite(points).all(axis=1)]
    if not len(points):
        return ()
    low, high = points.min(axis=0), points.max(axis=0)
    return ((*low.tolist(), *(high - low).tolist()),) if (high > low).all() else ()
