"""What can be wrong with a sample, and the labels' share of finding it out.

One definition for training, testing and `tool/verify_data.py`. The limits separate what cannot be right from what is
merely unusual: a hand that is partly outside the image, a dark image or a poor fit of the mesh is no fault.

Legend: 2 the hand axis · 21 joints · 778 vertices. Metres in the camera frame, `_px` in image pixels.
"""

from enum import StrEnum

import numpy as np

from common.hands import MIDDLE_MCP, WRIST, Hand
from data.schema import Record

BONE_RANGE = (0.010, 0.200)     # metres from wrist to middle knuckle; a tenth to twice that of a hand
MIN_DEPTH = 0.010               # metres before the camera
MIN_BOX_SIDE = 1.0              # pixels
MAX_BOX_SIDE = 10.0             # times the longer side of the image
MAX_MESH_DISTANCE = 0.100       # metres, mean of the joints; fits to InterHand2.6M are 0.005 off, poor ones 0.04
MAX_ROTATION_ERROR = 1e-3       # of RᵀR from the identity


class Reason(StrEnum):
    """Why a sample cannot be used."""

    IMAGE_MISSING = "image missing"
    IMAGE_DAMAGED = "image damaged"
    IMAGE_TOO_LARGE = "image too large"
    IMAGE_SIZE = "image of another size"
    IMAGE_KIND = "image of a kind that is not read"
    IMAGE_BLACK = "image black"
    LABELS_UNREADABLE = "labels unreadable"
    NOT_FINITE = "numbers not finite"
    NO_HAND = "no annotated hand"
    CAMERA = "impossible camera"
    ROTATION = "impossible rotation"
    UNIT = "wrong unit"
    BEHIND_CAMERA = "behind the camera"
    BOX = "impossible box"
    OUT_OF_FRAME = "out of frame"
    BOX_ELSEWHERE = "box beside the hands"
    MESH_ELSEWHERE = "mesh far from joints"

    @property
    def code(self) -> int:
        """How a batch carries the reason: its place in the list above, from 1."""
        return 1 + list(Reason).index(self)

    @classmethod
    def from_code(cls, code: int) -> "Reason":
        return list(cls)[code - 1]


class BadSample(Exception):
    """A sample that cannot be used; the others can.

    detail: what was found, to read after the name of the sample.
    """

    def __init__(self, reason: Reason, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def check_record(record: Record) -> None:
    """Raise BadSample for the first thing in the labels of a frame that cannot be right."""
    for check in (_check_numbers, _check_camera, _check_rotations, _check_unit, _check_depth, _check_box,
                  _check_frame, _check_mesh):
        check(record)


def _check_numbers(record: Record) -> None:
    names = ("vertices_cam", "joints_cam", "joints_annotated_cam", "rotations", "shape")
    wrong = [name for name in names if not np.isfinite(getattr(record, name)).all()]
    if wrong:
        raise BadSample(Reason.NOT_FINITE, f"NaN or infinity in {', '.join(wrong)}")
    if not (record.joints_valid.any() or record.vertices_valid.any()):
        raise BadSample(Reason.NO_HAND, "no joint and no mesh is annotated")


def _check_camera(record: Record) -> None:
    camera = record.camera
    is_possible = np.isfinite(camera).all() and min(camera[0, 0], camera[1, 1]) > 0
    if not is_possible or not np.array_equal(camera[2], (0, 0, 1)):
        raise BadSample(Reason.CAMERA, f"the intrinsics are {np.round(camera, 3).tolist()}")


def _check_rotations(record: Record) -> None:
    rotations = record.rotations[record.mano_valid]                                     # (n, 16, 3, 3)
    error = np.abs(rotations.swapaxes(-1, -2) @ rotations - np.eye(3)).max(initial=0)
    if error > MAX_ROTATION_ERROR or (np.linalg.det(rotations) < 0).any():
        raise BadSample(Reason.ROTATION, f"a hand's rotation is off an orthonormal one by {error:.3g}, or mirrors")


def _check_unit(record: Record) -> None:
    for joints, valid in ((record.joints_cam, record.joints_valid),
                          (record.joints_annotated_cam, record.joints_annotated_valid)):
        bones = np.linalg.norm(joints[:, MIDDLE_MCP] - joints[:, WRIST], axis=-1)
        for hand in Hand:
            has_bone = valid[hand, MIDDLE_MCP] and valid[hand, WRIST]
            if has_bone and not BONE_RANGE[0] <= bones[hand] <= BONE_RANGE[1]:
                raise BadSample(Reason.UNIT, f"the {hand.label} hand measures {1000 * bones[hand]:.4g} mm from wrist "
                                             "to middle knuckle")


def _check_depth(record: Record) -> None:
    depth = np.concatenate([record.joints_cam[record.joints_valid][:, 2],
                            record.vertices_cam[record.vertices_valid][..., 2].ravel()]).min()
    if depth < MIN_DEPTH:
        raise BadSample(Reason.BEHIND_CAMERA, f"a point lies at a depth of {1000 * depth:.4g} mm")


def _check_box(record: Record) -> None:
    low, high = record.box_px
    side = (high - low).max()
    is_possible = np.isfinite(record.box_px).all() and (high >= low).all() and side >= MIN_BOX_SIDE
    if not is_possible or side > MAX_BOX_SIDE * max(record.image_size):
        raise BadSample(Reason.BOX, f"the hands' box is {_text(record.box_px)} in an image of {_size(record)} pixels")


def _check_frame(record: Record) -> None:
    """Hands and box lie in the image, at least in part, and so do hands in the box."""
    homogeneous = _visible_points(record) @ record.camera.T
    points = homogeneous[:, :2] / homogeneous[:, 2:]
    image = np.array([[0, 0], record.image_size]) - 0.5
    if not ((points >= image[0]) & (points <= image[1])).all(axis=-1).any():
        raise BadSample(Reason.OUT_OF_FRAME, f"no joint lies in the image of {_size(record)} pixels; they project to "
                                             f"{_text(_bounds(points))}")
    if not _overlap(record.box_px, image):
        raise BadSample(Reason.OUT_OF_FRAME,
                        f"the hands' box {_text(record.box_px)} lies outside the image of {_size(record)} pixels")
    if not _overlap(record.box_px, _bounds(points)):
        raise BadSample(Reason.BOX_ELSEWHERE,
                        f"the box is {_text(record.box_px)}, but the joints project to {_text(_bounds(points))}")


def _check_mesh(record: Record) -> None:
    """A mesh agrees with the joints that were annotated beside it."""
    both = record.joints_annotated_valid & record.joints_valid & record.vertices_valid[:, None]
    distance = np.linalg.norm(record.joints_annotated_cam - record.joints_cam, axis=-1)     # (2, 21)
    for hand in Hand:
        mean = distance[hand][both[hand]].mean() if both[hand].any() else 0.0
        if mean > MAX_MESH_DISTANCE:
            raise BadSample(Reason.MESH_ELSEWHERE, f"the {hand.label} mesh is {1000 * mean:.4g} mm from its annotated "
                                                   "joints")


def _visible_points(record: Record) -> np.ndarray:
    """The annotated joints (n, 3); the vertices where only meshes are annotated."""
    joints = record.joints_cam[record.joints_valid]
    return joints if len(joints) else record.vertices_cam[record.vertices_valid].reshape(-1, 3)


def _bounds(points: np.ndarray) -> np.ndarray:
    return np.stack([points.min(axis=0), points.max(axis=0)])


def _overlap(box: np.ndarray, other: np.ndarray) -> bool:
    return bool((np.maximum(box[0], other[0]) <= np.minimum(box[1], other[1])).all())


def _size(record: Record) -> str:
    return "×".join(map(str, record.image_size))


def _text(box: np.ndarray) -> str:
    (left, top), (right, bottom) = box
    return f"({left:.4g}, {top:.4g}) to ({right:.4g}, {bottom:.4g})"
