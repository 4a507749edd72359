"""InterHand2.6M's JSON files as memory-mapped tables: built once, small, and shared by all loader processes.

Legend: N annotations · M images · C cameras · F time steps · 2 the hand axis. Metres; joints in MANO21 order.
"""

from typing import Any, NamedTuple, TypeVar

import numpy as np

from common.errors import UserError
from common.hands import NUM_JOINTS, Hand
from data.index import Index, open_index
from data.InterHand26M.indexing import VERSION, build_columns
from data.InterHand26M.layout import Layout

BRIGHTNESS = "images.brightness"    # a column that is measured on request: data.InterHand26M.brightness


class Samples(NamedTuple):
    """One row for each annotation of an image, in the order of the file."""

    annotation_id: np.ndarray   # (N,) int64
    image_row: np.ndarray       # (N,) int32        row of Images
    hand_type: np.ndarray       # (N,) uint8        place in HAND_TYPES
    type_valid: np.ndarray      # (N,) bool         the hand type is annotated
    bbox: np.ndarray            # (N, 4) float32    x, y, width, height in image pixels
    joints: np.ndarray          # (N, 6) uint8      42 bits: see Annotations.joints_valid
    has_wrist: np.ndarray       # (N, 2) bool       of joints_valid
    has_mesh: np.ndarray        # (N, 2) bool       Frames.mano_valid of the time step
    fault: np.ndarray           # (N,) uint8        place in FAULTS: why the record cannot be right, or 0


class Images(NamedTuple):
    """One row for each image, in the order of the file."""

    image_id: np.ndarray        # (M,) int64
    names: np.ndarray           # (bytes,) uint8    all file names, one after the other, UTF-8
    name_end: np.ndarray        # (M,) int64        where each one ends
    size: np.ndarray            # (M, 2) int32      width, height of this image
    camera_row: np.ndarray      # (M,) int32        row of Cameras
    frame_row: np.ndarray       # (M,) int32        row of Frames


class Cameras(NamedTuple):
    """X_cam = rotation·X_world + translation; pixels by `intrinsics`. Zero where a camera is missing or faulty."""

    capture: np.ndarray         # (C,) int64
    name: np.ndarray            # (C,) bytes
    intrinsics: np.ndarray      # (C, 3, 3) float64
    rotation: np.ndarray        # (C, 3, 3) float64
    translation: np.ndarray     # (C, 3) float64


class Frames(NamedTuple):
    """One row for each (capture, time step). What is missing is 0."""

    capture: np.ndarray         # (F,) int64
    frame: np.ndarray           # (F,) int64
    joints_world: np.ndarray    # (F, 2, 21, 3) float64
    pose: np.ndarray            # (F, 2, 16, 3) float64    axis-angle, root in the world, mean pose not included
    shape: np.ndarray           # (F, 2, 10) float64
    translation: np.ndarray     # (F, 2, 3) float64        world
    mano_valid: np.ndarray      # (F, 2) bool


Table = TypeVar("Table", Samples, Images, Cameras, Frames)


class Annotations:
    """A split, joined. Pickled, it is the path of its index, so that loader processes map the same files."""

    def __init__(self, index: Index):
        self.index = index
        self.samples = _table(Samples, "samples", index)
        self.images = _table(Images, "images", index)
        self.cameras = _table(Cameras, "cameras", index)
        self.frames = _table(Frames, "frames", index)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.index,)

    def joints_valid(self, row: int) -> np.ndarray:
        """Joints annotated in the image and in 3D, (2, 21) bool; none for a hand without its wrist."""
        bits = np.unpackbits(self.samples.joints[row], count=len(Hand) * NUM_JOINTS)
        return bits.reshape(len(Hand), NUM_JOINTS).astype(bool)

    def file_name(self, image_row: int) -> str:
        """An image's path below the folder of its split, with slashes also where it was written on Windows."""
        start = self.images.name_end[image_row - 1] if image_row else 0
        return self.images.names[start:self.images.name_end[image_row]].tobytes().decode().replace("\\", "/")

    def brightness(self) -> np.ndarray:
        """Mean of each image over all channels, 0 to 255, (M,) float32; NaN where it has not been measured."""
        measured = self.index.extra_column(BRIGHTNESS)
        unknown = np.broadcast_to(np.float32(np.nan), self.images.image_id.shape)     # takes no memory
        return unknown if measured is None else measured


def open_annotations(layout: Layout, *, rebuild: bool = False) -> Annotations:
    """The annotations of a split, from their index; it is built first if there is none or the files have changed.

    Raises UserError when a file is missing or damaged, or has superseded content.
    """
    sources = [layout.data, layout.file("camera"), layout.file("joint_3d")]
    mano_file, old_fits = layout.file("MANO_NeuralAnnot"), layout.file("MANO")
    if mano_file.is_file():
        sources.append(mano_file)
    elif old_fits.is_file():
        raise UserError(
            f"{old_fits} holds the first MANO fits of InterHand2.6M, one for each camera; papers and this program use "
            f"those that replaced them in November 2020, and {mano_file.name} is not there.",
            f"Download {mano_file.name} from https://mks0601.github.io/InterHand2.6M/, or remove {old_fits.name} to go "
            "on without meshes.")
    for source in sources:
        if not source.is_file():
            raise UserError(f"{source} is missing.", "The annotation files of a split belong together.")
    return Annotations(open_index(layout.data.stem, VERSION, sources,
                                  lambda read: build_columns(layout, read), rebuild=rebuild))


def _table(kind: type[Table], name: str, index: Index) -> Table:
    return kind(*(index[f"{name}.{field}"] for field in kind._fields))
