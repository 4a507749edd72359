"""Reading photographs that nobody has checked: any size, any mode, damaged or no image at all."""

import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from common.errors import UserError
from common.geometry import SquareBox, square_box
from data.ImageFolder.boxes import Box

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
MAX_PIXELS = 100_000_000
MAX_SIDE = 32_766           # OpenCV cannot warp longer ones


class UnreadableImage(Exception):
    """One picture cannot be used; the text is the reason. The others can."""


class Photo(NamedTuple):
    """One picture, upright."""

    image: np.ndarray           # (H, W, 3) uint8 RGB
    box_px: Box                 # x, y, width, height: as given, or the whole picture
    square: SquareBox           # what the network sees


class ImageFolder:
    """The pictures of a folder in the order of their names, or one picture.

    boxes: by file name. A picture without a box is used whole.
    """

    def __init__(self, path: Path, boxes: dict[str, Box]):
        self.files = list_images(path)
        self.names = unique_names(self.files)
        self.boxes = boxes
        self.without_box = [file for file in self.files if file.name not in boxes]
        if boxes and len(self.without_box) == len(self.files):
            raise UserError(f"None of the {len(boxes)} names in the boxes file is a picture in {path}.",
                            f"The file names '{next(iter(boxes))}', the folder holds '{self.files[0].name}'.")

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int, box_ratio: float) -> Photo:
        """The picture at a position; UnreadableImage says why it cannot be used.

        box_ratio: how much of the crop a box fills.
        """
        file = self.files[index]
        image = read_image(file)
        height, width = image.shape[:2]
        if file.name not in self.boxes:
            center = np.array([width - 1, height - 1]) / 2
            return Photo(image, (0.0, 0.0, float(width), float(height)), SquareBox(center, float(max(width, height))))
        box = x, y, box_width, box_height = self.boxes[file.name]
        if x + box_width <= 0 or y + box_height <= 0 or x >= width or y >= height:
            raise UnreadableImage(f"its box {list(box)} lies outside the picture of {width}×{height} pixels")
        corners = np.array([[x, y], [x + box_width, y + box_height]])
        return Photo(image, box, square_box(corners, box_ratio))


def list_images(path: Path) -> list[Path]:
    """The pictures of a folder, not of its subfolders, by name; or the one file that `path` is."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"--input: there is no file or folder {path}.")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and not file.is_dir())
    if not files:
        raise UserError(f"--input: the folder {path} holds no pictures.",
                        f"They must lie in the folder itself and end in one of: {' '.join(SUFFIXES)}.")
    return files


def unique_names(files: list[Path]) -> list[str]:
    """A name for each file's results: its stem, or stem and suffix where stems repeat (a.jpg, a.png: a_jpg, a_png).

    Case does not count, because it does not on every disk.
    """
    stems = Counter(file.stem.casefold() for file in files)
    taken, names = set(), []
    for file in files:
        name = base = file.stem if stems[file.stem.casefold()] == 1 else f"{file.stem}_{file.suffix[1:]}"
        count = 1
        while name.casefold() in taken or (name != file.stem and name.casefold() in stems):
            count += 1
            name = f"{base}_{count}"
        taken.add(name.casefold())
        names.append(name)
    return names


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


def read_image(path: Path) -> np.ndarray:
    """A picture as upright RGB, (H, W, 3) uint8; of an animation the first frame.

    UnreadableImage says what is wrong with it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")     # Pillow's own size warning, and oddities in metadata
            with Image.open(path) as image:
                # Only the header has been read so far: a few kilobytes can claim any number of pixels.
                if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
                    raise UnreadableImage(f"it has {image.width}×{image.height} pixels; the limit is 100 million, "
                                          f"and {MAX_SIDE} on a side")
                return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except Image.DecompressionBombError:
        raise UnreadableImage("it has more than 100 million pixels") from None
    except UnidentifiedImageError:
        raise UnreadableImage("it is empty" if path.stat().st_size == 0 else "it is not an image") from None
    except OSError as error:
        raise UnreadableImage(error.strerror or " ".join(str(error).split())) from None
    except (ValueError, SyntaxError, EOFError, IndexError, TypeError, MemoryError) as error:
        # What Pillow's decoders raise for damaged files.
        raise UnreadableImage(f"it is damaged ({type(error).__name__})") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):              # 16 bits: Pillow's conversion would clip to the lowest 8
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
