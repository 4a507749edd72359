"""Where images come from: a data set that is recognised by its layout, any other folder, or one file."""

from pathlib import Path

from common.errors import UserError
from common.files import cannot_read
from data.frames import egohands, rgb2hands
from data.frames.listing import SUFFIXES, ImageFile, images_in

_KINDS = (egohands.images, rgb2hands.images, images_in)


def find_images(path: Path) -> list[ImageFile]:
    """The images of a source in natural order, with the boxes that the source itself gives.

    An image of a folder has the name of its file, one of a data set those of its sequence and file, such as
    "seq01_crossed/17_color.png". Subfolders of any other folder are not searched. UserError if nothing is found.
    """
    if path.is_file():
        return [ImageFile(path.name, path, ())]
    if not path.is_dir():
        raise UserError(f"--input: there is no file or folder {path}.")
    try:
        found = next((images for kind in _KINDS if (images := kind(path))), None)
    except OSError as error:
        raise cannot_read(f"--input: {error.filename or path}", error) from None
    if found is None:
        raise UserError(
            f"--input: the folder {path} holds no images.",
            f"They must lie in the folder itself and end in one of: {' '.join(SUFFIXES)}. Only in RGB2Hands (color, "
            "annotation/annot2D_color) and EgoHands (_LABELLED_SAMPLES) are subfolders searched.")
    return found
