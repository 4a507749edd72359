"""What a reader of a dataset gives: one un-augmented frame at a time.

Legend: 2 the hand axis (`common.hands.Hand`) · 21 joints in MANO21 order · 778 vertices · 16 model joints.
Everything is float64 or bool numpy; lengths are metres in the camera frame (x right, y down, z forward).
"""

from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

from common.errors import UserError
from common.mano.model import HandModel

# Which frames are used. "ih_hm": interacting frames with two meshes, what two-hand papers train and test on; "human":
# those that people annotated; "all": every frame with an annotated hand.
Filter = Literal["ih_hm", "human", "all"]
# What a crop is put round: the projected meshes, the projected joints, or the annotated box.
BoxSource = Literal["vertices", "joints", "json"]


class Record(NamedTuple):
    """One frame as stored: the whole image, not augmented. Masked-out values are finite and meaningless."""

    image_path: Path
    image_size: tuple[int, int]     # width, height of the stored image, pixels
    camera: np.ndarray              # (3, 3)            intrinsics: camera frame to image pixels
    vertices_cam: np.ndarray        # (2, 778, 3)
    joints_cam: np.ndarray          # (2, 21, 3)        G·mesh where there is a mesh, else the annotated joints
    joints_annotated_cam: np.ndarray    # (2, 21, 3)    the dataset's own (triangulated) joints, never G·mesh
    rotations: np.ndarray           # (2, 16, 3, 3)     the root in the camera frame, mean pose included
    shape: np.ndarray               # (2, 10)
    box_px: np.ndarray              # (2, 2)            tight box round both hands: low and high corner, image pixels

    vertices_valid: np.ndarray      # (2,) bool         the hand has a mesh
    joints_valid: np.ndarray        # (2, 21) bool      all False for a hand whose wrist is not annotated
    joints_annotated_valid: np.ndarray  # (2, 21) bool  the same; all False where a set has none
    mano_valid: np.ndarray          # (2,) bool         the hand has model parameters
    present: np.ndarray             # (2,) bool         the image shows the hand, annotated or not: by hand_type


class NoSuchSplit(UserError):
    """A dataset is there, but this split of it is not."""


class Reader(Protocol):
    """A dataset on disk. Reading an index twice gives the same record; records can be read in any process.

    `read` raises data.checks.BadSample or UserError where one record is damaged and others may not be.
    """

    name: str
    hand_model: HandModel
    summary: str                    # one line for the log: what was found and what was left out
    left_out: dict[str, int]        # reason: number of annotations that are not read

    def __len__(self) -> int: ...

    def read(self, index: int) -> Record: ...

    def sample_id(self, index: int) -> str:
        """The record's own name, which another filter, folder or order of the same split does not change."""
        ...

    def hand_type(self, index: int) -> str:
        """What the record shows as the data set says it: right, left or interacting."""
        ...

    def sources(self) -> dict[str, str]:
        """SHA-256 of each annotation file, by its name."""
        ...

    def broken(self) -> dict[str, list[str]]:
        """By reason, the names of annotations that are not read because they cannot be right."""
        ...

    def describe(self, index: int) -> dict[str, str | int]:
        """What a person needs to find the record again: path, ids, capture, camera, frame."""
        ...
