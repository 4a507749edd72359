"""InterHand2.6M's JSON files as flat arrays: small, and cheap to share with loader processes.

Entries are joined by image id, capture, camera and frame number, never by their position in a file. Joints leave
this module in MANO21 order. Legend: N annotations · C cameras · F time steps · 2 the hand axis. Metres.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np

from common.errors import UserError
from common.hands import INTERHAND21, MANO21, NUM_JOINTS, NUM_SHAPE, WRIST, Hand
from data.InterHand26M.layout import Layout, read_json

HandTypes = Literal["interacting", "all"]

_MILLIMETRE = 1e-3
_MANO21_FROM_FILE = MANO21.gather_from(INTERHAND21)


class Images(NamedTuple):
    """One row for each annotation of an image, in the order of the file."""

    annotation_id: np.ndarray   # (N,) int64
    image_id: np.ndarray        # (N,) int64
    file_name: np.ndarray       # (N,) UTF-8 bytes, relative to Layout.images
    size: np.ndarray            # (N, 2) int64          width, height of this image
    hand_type: np.ndarray       # (N,) bytes            right, left or interacting
    type_valid: np.ndarray      # (N,) bool             the hand type is annotated
    capture: np.ndarray         # (N,) int64
    camera: np.ndarray          # (N,) bytes
    frame: np.ndarray           # (N,) int64
    bbox: np.ndarray            # (N, 4) float64        x, y, width, height in image pixels
    joints_valid: np.ndarray    # (N, 2, 21) bool       usable in this image

    def take(self, rows: np.ndarray) -> "Images":
        return Images(*(column[rows] for column in self))


class Cameras(NamedTuple):
    """X_cam = rotation·X_world + translation; pixels by `intrinsics`."""

    intrinsics: np.ndarray      # (C, 3, 3)
    rotation: np.ndarray        # (C, 3, 3)
    translation: np.ndarray     # (C, 3)


class Frames(NamedTuple):
    """One row for each (capture, time step). What is missing is 0 and masked."""

    joints_world: np.ndarray    # (F, 2, 21, 3)
    joints_valid: np.ndarray    # (F, 2, 21) bool       triangulated
    pose: np.ndarray            # (F, 2, 16, 3)         axis-angle, root in the world, mean pose not included
    shape: np.ndarray           # (F, 2, 10)
    translation: np.ndarray     # (F, 2, 3)             world
    mano_valid: np.ndarray      # (F, 2) bool


class Annotations(NamedTuple):
    """A split, joined: row n of `images` has camera `camera_row[n]` and time step `frame_row[n]`."""

    images: Images
    cameras: Cameras
    frames: Frames
    camera_row: np.ndarray      # (N,) int64
    frame_row: np.ndarray       # (N,) int64
    has_mano_file: bool
    left_out: dict[str, int]    # reason: number of annotations

    def joints_valid(self, row: int | slice) -> np.ndarray:
        """Joints annotated in the image and in 3D, (..., 2, 21) bool; none for a hand without its wrist."""
        valid = self.images.joints_valid[row] & self.frames.joints_valid[self.frame_row[row]]
        return valid & valid[..., WRIST, None]


def load_annotations(layout: Layout, hand_types: HandTypes) -> Annotations:
    """The annotations of a split that can be used, with the number of those left out for each reason.

    "interacting" keeps what two-hand papers train and test on: interacting frames whose type is annotated and
    whose hands both have a mesh (both wrists where the split has no meshes). "all" keeps every frame with an
    annotated hand.
    """
    images = _read_images(layout.data)
    mano_file = layout.file("MANO_NeuralAnnot")
    has_mano_file = mano_file.is_file()

    cameras, camera_rows = _read_cameras(layout.file("camera"))
    camera_row = np.array([camera_rows.get((capture, camera), -1) for capture, camera in
                           zip(images.capture.tolist(), images.camera.tolist(), strict=True)], dtype=np.int64)
    steps, frame_row = np.unique(np.stack([images.capture, images.frame], axis=1), axis=0, return_inverse=True)
    frames = _read_frames(steps, layout.file("joint_3d"), mano_file if has_mano_file else None)
    table = Annotations(images, cameras, frames, camera_row, frame_row.reshape(-1), has_mano_file, {})

    wrists = table.joints_valid(slice(None))[..., WRIST]
    meshes = frames.mano_valid[table.frame_row]
    if hand_types == "interacting":
        complete = meshes if has_mano_file else wrists
        rules = {
            "not interacting": (images.hand_type == b"interacting") & images.type_valid,
            f"without both {'meshes' if has_mano_file else 'wrists'}": complete.all(axis=1),
        }
    else:
        rules = {"without an annotated hand": (meshes | wrists).any(axis=1)}
    return _keep(table, {**rules, "without a camera": camera_row >= 0})


def _keep(table: Annotations, rules: dict[str, np.ndarray]) -> Annotations:
    """The rows that pass every rule; each row left out is counted under the first rule that it fails."""
    keep = np.ones(len(table.camera_row), dtype=bool)
    left_out = {}
    for reason, passes in rules.items():
        left_out[reason] = int((keep & ~passes).sum())
        keep &= passes
    rows = np.flatnonzero(keep)
    return table._replace(images=table.images.take(rows), camera_row=table.camera_row[rows],
                          frame_row=table.frame_row[rows], left_out=left_out)


# ---------------------------------------------------------------- one file each

def _read_images(path: Path) -> Images:
    content = read_json(path)
    with _reading(path, "the top level"):
        entries, annotations = list(content["images"]), list(content["annotations"])
        by_id = {image["id"]: image for image in entries}
    rows = []
    for number, annotation in enumerate(annotations):
        with _reading(path, f"annotations[{number}]"):
            rows.append(_image_row(annotation, by_id[annotation["image_id"]]))
    if not rows:
        raise UserError(f"{path} has no annotations.", "Copy or download it again.")
    types = (np.int64, np.int64, None, np.int64, None, bool, np.int64, None, np.int64, np.float64, bool)
    return Images(*(np.array(column, dtype=kind) for column, kind in zip(zip(*rows, strict=True), types, strict=True)))


def _image_row(annotation: dict[str, Any], image: dict[str, Any]) -> tuple:
    name = PurePosixPath(image["file_name"])
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(f"file_name '{name}' leaves the image folder")
    valid = np.asarray(annotation["joint_valid"], dtype=bool).reshape(2, NUM_JOINTS)
    return (
        _integer(annotation["id"]), _integer(annotation["image_id"]), str(name).encode(),
        (_integer(image["width"]), _integer(image["height"])), str(annotation["hand_type"]).encode(),
        bool(annotation["hand_type_valid"]), _integer(image["capture"]), str(image["camera"]).encode(),
        _integer(image["frame_idx"]), _numbers(annotation["bbox"], (4,)), valid[:, _MANO21_FROM_FILE],
    )


def _read_cameras(path: Path) -> tuple[Cameras, dict[tuple[int, bytes], int]]:
    """All cameras of a split, and the row of each (capture, camera)."""
    content = read_json(path)
    with _reading(path, "the top level"):
        names = [(capture, camera) for capture, entry in content.items() for camera in entry["campos"]]
        rows = {(int(capture), camera.encode()): row for row, (capture, camera) in enumerate(names)}

    cameras = Cameras(np.tile(np.eye(3), (len(names), 1, 1)), np.zeros((len(names), 3, 3)), np.zeros((len(names), 3)))
    for row, (capture, camera) in enumerate(names):
        with _reading(path, f"capture {capture}, camera {camera}"):
            entry = content[capture]
            position = _numbers(entry["campos"][camera], (3,)) * _MILLIMETRE
            rotation = _numbers(entry["camrot"][camera], (3, 3))
            focal, center = _numbers(entry["focal"][camera], (2,)), _numbers(entry["princpt"][camera], (2,))
            if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3 or np.linalg.det(rotation) < 0:
                raise ValueError("camrot is not a rotation")
            if focal.min() <= 0:
                raise ValueError(f"focal is {focal.tolist()}")
            cameras.intrinsics[row, [0, 1], [0, 1]] = focal
            cameras.intrinsics[row, :2, 2] = center
            cameras.rotation[row] = rotation
            cameras.translation[row] = -rotation @ position
    return cameras, rows


def _read_frames(steps: np.ndarray, joints_file: Path, mano_file: Path | None) -> Frames:
    """The time steps `steps` (F, 2), each (capture, frame number)."""
    count = len(steps)
    frames = Frames(
        np.zeros((count, 2, NUM_JOINTS, 3)), np.zeros((count, 2, NUM_JOINTS), dtype=bool), np.zeros((count, 2, 16, 3)),
        np.zeros((count, 2, NUM_SHAPE)), np.zeros((count, 2, 3)), np.zeros((count, 2), dtype=bool),
    )
    def fill_joints(row: int, entry: dict[str, Any]) -> None:
        joints = _numbers(entry["world_coord"], (2 * NUM_JOINTS, 3)).reshape(2, NUM_JOINTS, 3)
        valid = np.asarray(entry["joint_valid"], dtype=bool).reshape(2, NUM_JOINTS)
        frames.joints_world[row] = joints[:, _MANO21_FROM_FILE] * _MILLIMETRE
        frames.joints_valid[row] = valid[:, _MANO21_FROM_FILE]

    def fill_mano(row: int, entry: dict[str, Any]) -> None:
        for hand in Hand:
            fit = entry.get(hand.label)     # null where the hand's wrist could not be triangulated
            if fit is not None:
                frames.pose[row, hand] = _numbers(fit["pose"], (48,)).reshape(16, 3)
                frames.shape[row, hand] = _numbers(fit["shape"], (NUM_SHAPE,))
                frames.translation[row, hand] = _numbers(fit["trans"], (3,))
                frames.mano_valid[row, hand] = True

    _for_each_step(joints_file, steps, fill_joints)
    if mano_file is not None:
        _for_each_step(mano_file, steps, fill_mano)
    return frames


def _for_each_step(path: Path, steps: np.ndarray, fill: Callable[[int, dict[str, Any]], None]) -> None:
    """`fill(row, entry)` for the time steps that a file {capture: {frame: entry}} has; any may be absent."""
    content = read_json(path)
    for row, (capture, frame) in enumerate(steps.tolist()):
        with _reading(path, f"capture {capture}, frame {frame}"):
            entry = content.get(str(capture), {}).get(str(frame))
            if entry is not None:
                fill(row, entry)


def _integer(value: Any) -> int:
    if not isinstance(value, int) or abs(value) >= 2**62:
        raise ValueError(f"expected a whole number, got {str(value)[:80]}")
    return value


def _numbers(values: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != shape or not np.isfinite(array).all():
        raise ValueError(f"expected {'×'.join(map(str, shape))} finite numbers, got {str(values)[:80]}")
    return array


@contextmanager
def _reading(path: Path, where: str) -> Iterator[None]:
    """Turn a malformed entry into an error that names the file and the entry."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path}, {where}: {problem}.", "Copy or download the file again.") from None
