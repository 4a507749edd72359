"""EgoHands (Bambach et al., ICCV 2015): videos of two people, with polygons round the hands of both.

    metadata.mat                                        video(n): video_id, labelled_frames(k): frame_num, myleft, …
    _LABELLED_SAMPLES/CARDS_COURTYARD_B_T/frame_0011.jpg
                                         /polygons.mat  polygons(k): myleft, myright, yourleft, yourright
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.geometry import Box
from data.frames.listing import ImageFile, boxes_round, images_in, natural_order

_OWN_HANDS = ("myleft", "myright")      # of the person who wears the camera

Boxes = dict[int, tuple[Box, ...]]      # by frame number


def images(root: Path) -> list[ImageFile]:
    """The labelled frames under `root`, the data set or one of its videos; none if it is neither.

    A frame's box is the tight one round both hands of the person who wears the camera, from metadata.mat, or from the
    video's polygons.mat where there is no metadata.mat. A frame that shows neither has no box.
    """
    if (root / "polygons.mat").is_file():
        return _video(root, _boxes_of_video(root), prefix="")
    samples = root / "_LABELLED_SAMPLES" if (root / "_LABELLED_SAMPLES").is_dir() else root
    videos = sorted((file.parent for file in samples.glob("*/polygons.mat")), key=natural_order)
    if not videos and samples == root:
        return []
    metadata = samples.parent / "metadata.mat"
    if not metadata.is_file():
        return [frame for video in videos for frame in _video(video, _boxes_of_video(video), f"{video.name}/")]
    boxes = _boxes_of_all(metadata)
    found = [samples / name for name in boxes if (samples / name).is_dir()]
    return [frame for video in sorted(found, key=natural_order)
            for frame in _video(video, boxes[video.name], f"{video.name}/")]


def _video(folder: Path, boxes: Boxes, prefix: str) -> list[ImageFile]:
    return [image._replace(boxes=boxes.get(_number(image.path), ())) for image in images_in(folder, prefix)]


def _number(path: Path) -> int:
    digits = re.search(r"[0-9]+", path.stem)
    return int(digits[0]) if digits else -1


def _boxes_of_all(metadata: Path) -> dict[str, Boxes]:
    """Boxes of every video by its name."""
    with _reading(metadata):
        return {str(video["video_id"].item()): {int(frame["frame_num"].item()): _box(frame)
                                                for frame in video["labelled_frames"].ravel()}
                for video in _variable(metadata, "video")}


def _boxes_of_video(folder: Path) -> Boxes:
    """Boxes of one video: its polygons are in the order of its frames."""
    file, numbers = folder / "polygons.mat", [_number(image.path) for image in images_in(folder)]
    with _reading(file):
        boxes = [_box(frame) for frame in _variable(file, "polygons")]
    if len(boxes) != len(numbers):
        raise UserError(f"{file} has polygons of {len(boxes)} frames, its folder {len(numbers)} frames.",
                        "Put metadata.mat beside _LABELLED_SAMPLES, or unpack the video again.")
    return dict(zip(numbers, boxes, strict=True))


def _variable(file: Path, name: str) -> np.ndarray:
    from scipy.io import loadmat  # imported here so that other images do not need it

    return loadmat(file, variable_names=[name])[name].ravel()


def _box(frame: np.void) -> tuple[Box, ...]:
    polygons = [frame[hand].astype(np.float64) for hand in _OWN_HANDS if frame[hand].size]      # (N, 2) each
    return boxes_round(np.concatenate([np.zeros((0, 2)), *polygons]))


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:      # scipy's reader raises many types for damaged files
        raise UserError(f"{file} is not the file of EgoHands ({type(error).__name__}: {str(error)[:80]}).",
                        "Unpack the data set again.") from None
