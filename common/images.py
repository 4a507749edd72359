"""Image files of any kind, damaged ones and none at all: every file gives an image or a reason. And crops of images.

Pillow decodes because it says when a file ends early; OpenCV fills the rest with grey and says nothing.
"""

import warnings
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features
from PIL.TiffImagePlugin import TiffImageFile

from common.errors import is_exhausted

MAX_PIXELS = 100_000_000
MAX_SIDE = 32_766               # OpenCV cannot warp longer ones
MAX_BLACK = 10.0                # mean and standard deviation, of 255, up to which an image shows nothing
_STRIP = 1 << 20                # pixels, more than datasets' images have
# Other decoders of Pillow start programs (EPS) or are of no use here.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF")
RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2")
_OTHER_FORMATS = {              # by how their files begin
    "JPEG XL": (b"\xff\x0a", b"\0\0\0\x0cJXL "),
    "JPEG 2000": (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  "),
    "Photoshop": (b"8BPS",),
}
_BITS_PER_SAMPLE, _IS_BLACK_ZERO, _SUBFILE = 258, 262, 254      # tags of TIFF


class ImageFault(StrEnum):
    """Why a file gives no image."""

    MISSING = "image missing"
    DAMAGED = "image damaged"
    TOO_LARGE = "image too large"
    SIZE = "image of another size"
    KIND = "image of a kind that is not read"


class BadImage(Exception):
    """A file that gives no image.

    detail: what was found, to read after the name of the file.
    """

    def __init__(self, fault: ImageFault, detail: str):
        super().__init__(f"{fault}: {detail}")
        self.fault, self.detail = fault, detail


def read_rgb(path: Path, *, upright: bool, size: tuple[int, int] | None = None) -> np.ndarray:
    """The image in a file as RGB, (H, W, 3) uint8; of an animation the first frame, over white where transparent.

    upright: whether the camera's orientation tag is followed. Labels of datasets are in stored pixels: not there.
    size: width and height that it must have.
    Raises BadImage. Neither an image of another size nor one of more than 100 million pixels is decoded.
    """
    try:
        if not path.is_file():
            path.stat()                         # says why, unless something else lies there
            raise BadImage(ImageFault.MISSING, "it is not a file")
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")     # Pillow's own size warning, and oddities in metadata
            formats = _formats(path.suffix.lower(), file.read(64))
            file.seek(0)
            with Image.open(file, formats=formats) as image:
                _check_size(image.size, size)   # only the header has been read so far
                _check_pixels(image)
                if upright:
                    ImageOps.exif_transpose(image, in_place=True)
                return _rgb_array(image)
    except BadImage:
        raise
    except Image.DecompressionBombError:
        raise BadImage(ImageFault.TOO_LARGE, "it has more than 100 million pixels") from None
    except UnidentifiedImageError:
        is_empty = path.stat().st_size == 0
        raise BadImage(ImageFault.DAMAGED, "it is empty" if is_empty else "it is not an image") from None
    except OSError as error:
        if is_exhausted(error):
            raise
        fault = ImageFault.MISSING if error.errno else ImageFault.DAMAGED     # Pillow's own have no number
        raise BadImage(fault, error.strerror or " ".join(str(error).split())) from None
    except Exception as error:                  # Pillow's decoders raise many types for damaged files
        raise BadImage(ImageFault.DAMAGED, f"it is damaged ({type(error).__name__})") from None


def _formats(suffix: str, head: bytes) -> tuple[str, ...]:
    """The decoders that a file may be given to; BadImage names the format if it has none.

    suffix: of its name.  head: its first 64 bytes.
    """
    if suffix in RAW_SUFFIXES:                  # many are TIFF files whose first image is a thumbnail
        raise _unread("a camera's raw file")
    for name, beginnings in _OTHER_FORMATS.items():
        if head.startswith(beginnings):
            raise _unread(f"a {name} file")
    if head[4:8] != b"ftyp":
        return _FORMATS
    brands = {head[place:place + 4] for place in range(8, min(len(head), int.from_bytes(head[:4])), 4)}
    if brands & {b"avif", b"avis"}:
        if not features.check("avif"):
            raise _unread("an AVIF image, and Pillow was built without support for it")
        return ("AVIF",)
    if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
        if find_spec("pillow_heif") is None:
            raise BadImage(ImageFault.KIND, "it is a HEIC image, which needs pillow-heif: python -m pip install -r "
                                            "requirements-extra.txt")
        from pillow_heif import register_heif_opener  # an extra that few need

        register_heif_opener()
        return ("HEIF",)
    return _FORMATS


def _unread(kind: str) -> BadImage:
    return BadImage(ImageFault.KIND, f"it is {kind}; save it as JPEG or PNG")


def is_black(image: np.ndarray) -> bool:
    """Whether an image (H, W, 3) uint8 shows nothing.

    IntagHand drops every image whose mean is below 10. A hand lit before a dark wall can be as dark: its
    image varies, one that shows nothing does not.
    """
    sample = image[::4, ::4]                    # enough for a mean
    return sample.mean() < MAX_BLACK and sample.std() < MAX_BLACK


def shows_nothing(image: np.ndarray) -> bool:
    """Whether an image (H, W, 3) uint8 is black or all of one colour."""
    return is_black(image) or bool((image == image[:1, :1]).all())


def _check_size(found: tuple[int, int], expected: tuple[int, int] | None) -> None:
    width, height = found
    if width * height > MAX_PIXELS or max(found) > MAX_SIDE:
        raise BadImage(ImageFault.TOO_LARGE,
                       f"it has {width}×{height} pixels; the limit is 100 million, and {MAX_SIDE} on a side")
    if expected is not None and found != expected:
        raise BadImage(ImageFault.SIZE,
                       f"it has {width}×{height} pixels, its annotation says {expected[0]}×{expected[1]}")


def _check_pixels(image: Image.Image) -> None:
    """Refuse pixels whose range the file does not tell, and thumbnails that stand before an image."""
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):      # Pillow scales those of PPM
        kind = "floats" if image.mode == "F" else "signed integers or of 32 bits"
        raise BadImage(ImageFault.KIND, f"its pixels are {kind}, whose range it does not tell; save it with 8 bits per "
                                        "colour")
    if isinstance(image, TiffImageFile):
        tags = image.tag_v2
        if tags.get(_SUBFILE, 0) & 1:
            raise BadImage(ImageFault.KIND, "it begins with a thumbnail, as cameras' raw files do; save it as JPEG or "
                                            "PNG")
        if image.mode.startswith("I;16") and (tags.get(_BITS_PER_SAMPLE), tags.get(_IS_BLACK_ZERO)) != ((16,), 1):
            raise BadImage(ImageFault.KIND, "its pixels have 12 bits, or 0 for white; save it with 8 bits per colour")


def _rgb_array(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8, converted in strips: Pillow holds several copies of what it converts and exports."""
    image.load()
    rgb = np.empty((image.height, image.width, 3), dtype=np.uint8)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        rgb[top:bottom] = np.asarray(_to_rgb(image.crop((0, top, image.width, bottom))))
    return rgb


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):              # 16 bits: Pillow's conversion would clip to the lowest 8
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def crop_image(image: np.ndarray, crop_from_image: np.ndarray, size: int,
               outside: tuple[int, int, int] = (0, 0, 0)) -> np.ndarray:
    """The crop (S, S, 3) uint8 that a transform cuts out; outside the image it is black, as in training.

    As in training down to half the size. Below that, a larger crop is averaged: skipping pixels would leave noise.
    """
    reduction = np.sqrt(np.linalg.det(np.linalg.inv(crop_from_image)[:2, :2]))
    factor = int(np.clip(np.ceil(reduction / 2), 1, 16))
    enlarge = np.array([[factor, 0, (factor - 1) / 2], [0, factor, (factor - 1) / 2], [0, 0, 1]])
    crop = cv2.warpAffine(image, (enlarge @ crop_from_image)[:2], (size * factor, size * factor),
                          borderValue=outside)
    return cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
