"""From InterHand2.6M's JSON files to the columns of `data.InterHand26M.annotations`.

Entries are joined by image id, capture, camera and frame number, never by their position in a file. Image ids and
annotation ids are unique, or the file is refused; several annotations of one image are several samples. A record
that is well written but cannot be right is no error: its `fault` says why.

Legend: N annotations · M images · B a batch of them · C cameras · F time steps · 2 the hand axis. Metres.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, NoReturn, TypeVar

import msgspec
import numpy as np
from msgspec import Raw
from tqdm import tqdm

from common.errors import UserError
from common.hands import INTERHAND21, MANO21, MIDDLE_MCP, NUM_JOINTS, NUM_MODEL_JOINTS, NUM_SHAPE, WRIST, Hand
from data.checks import BONE_RANGE
from data.index import Columns, ReadSource
from data.InterHand26M import entries
from data.InterHand26M.entries import HAND_TYPES, damaged, decode
from data.InterHand26M.layout import Layout

VERSION = 2                 # raise it when the columns mean something else

# Why a record cannot be right; of several the first one counts.
FAULTS = (
    "",
    "without a camera",
    "with a focal length that is not positive",
    "whose camrot is not a rotation",
    "whose hands are not of a hand's size (in millimetres?)",
    "with joints behind the camera",
    "whose hand_type contradicts joint_valid",
)
_NO_CAMERA, _FOCAL, _CAMROT, _HAND_SIZE, _BEHIND, _HAND_TYPE = range(1, len(FAULTS))

_MILLIMETRE = 1e-3
_BATCH = 4096
_MANO21_FROM_FILE = MANO21.gather_from(INTERHAND21)
_CAMERA_DECODERS = {key: msgspec.json.Decoder(kind) for key, kind in (
    ("campos", entries.Three), ("camrot", entries.Matrix), ("focal", entries.Two), ("princpt", entries.Two))}
_Entry = TypeVar("_Entry")


class _Images(NamedTuple):
    """The images, and the rows of the cameras and time steps that they name."""

    columns: Columns
    cameras: dict[tuple[int, str], int]
    steps: dict[tuple[int, int], int]


class _Scene(NamedTuple):
    """What the annotations are checked against."""

    columns: Columns
    camera_fault: np.ndarray    # (C,) uint8
    frame_fault: np.ndarray     # (F,) uint8
    joints_valid: np.ndarray    # (F, 2, 21) bool   triangulated


def build_columns(layout: Layout, read: ReadSource) -> Columns:
    """All columns of a split. Raises UserError that names file, entry and key where something is malformed."""
    with np.errstate(all="ignore"), _no_garbage_collection():
        return _build_columns(layout, read)


def _build_columns(layout: Layout, read: ReadSource) -> Columns:
    path = layout.data
    file = entries.read_file(path, read(path), entries.DataFile)
    if not file.annotations or not file.images:
        raise UserError(f"{path} has no {'annotations' if file.images else 'images'}.", "A split needs both.")
    with tqdm(total=len(file.images) + len(file.annotations), unit="entry", delay=1, leave=False,
              desc=f"indexing {path.name}") as bar:
        images = _read_images(layout, file.images, bar)
        scene = _read_scene(layout, read, images)
        samples = _read_samples(layout, file.annotations, images.columns, scene, bar)
    return {**samples, **images.columns, **scene.columns}


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Millions of small lists without cycles come and go while building: looking for cycles takes 4/5 of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


# ---------------------------------------------------------------- images and annotations

def _read_images(layout: Layout, raws: list[Raw], bar: "tqdm[NoReturn]") -> _Images:
    cameras: dict[tuple[int, str], int] = {}
    steps: dict[tuple[int, int], int] = {}
    names, parts = [], []
    for start, batch in _batches(raws, entries.Image, layout, "images", bar):
        for number, image in enumerate(batch, start):
            if _leaves_its_folder(image.file_name):
                raise damaged(layout.data, f"images[{number}].file_name",
                              f"'{image.file_name}' leaves the image folder (id {image.id})")
        encoded = [image.file_name.encode() for image in batch]
        names.append(b"".join(encoded))
        parts.append((
            np.array([image.id for image in batch]),
            np.array([len(name) for name in encoded]),
            np.array([(image.width, image.height) for image in batch], dtype=np.int32),
            np.array([cameras.setdefault((image.capture, str(image.camera)), len(cameras)) for image in batch],
                     dtype=np.int32),
            np.array([steps.setdefault((image.capture, image.frame_idx), len(steps)) for image in batch],
                     dtype=np.int32),
        ))
    ids, lengths, size, camera_row, frame_row = map(np.concatenate, zip(*parts, strict=True))
    _refuse_duplicates(ids, layout, "images")
    return _Images({
        "images.image_id": ids, "images.names": np.frombuffer(b"".join(names), dtype=np.uint8),
        "images.name_end": np.cumsum(lengths), "images.size": size, "images.camera_row": camera_row,
        "images.frame_row": frame_row,
    }, cameras, steps)


def _read_samples(layout: Layout, raws: list[Raw], images: Columns, scene: _Scene, bar: "tqdm[NoReturn]") -> Columns:
    ids = images["images.image_id"]
    order = np.argsort(ids, kind="stable")
    parts = []
    for start, batch in _batches(raws, entries.Annotation, layout, "annotations", bar):
        image_id = np.array([annotation.image_id for annotation in batch])
        image_row = order[np.searchsorted(ids, image_id, sorter=order).clip(max=len(ids) - 1)].astype(np.int32)
        unknown = np.flatnonzero(ids[image_row] != image_id)
        if unknown.size:
            number = int(unknown[0])
            raise damaged(layout.data, f"annotations[{start + number}].image_id",
                          f"there is no image with the id {image_id[number]} (id {batch[number].id})")
        marked = np.frombuffer(b"".join(entries.flags(annotation.joint_valid) for annotation in batch), dtype=bool)
        marked = marked.reshape(-1, len(Hand), NUM_JOINTS)[:, :, _MANO21_FROM_FILE]             # (B, 2, 21)
        hand_type = np.array([HAND_TYPES.index(annotation.hand_type) for annotation in batch], dtype=np.uint8)
        joints = _usable_joints(marked, image_row, images, scene)
        parts.append({
            "samples.annotation_id": np.array([annotation.id for annotation in batch]),
            "samples.image_row": image_row, "samples.hand_type": hand_type,
            "samples.type_valid": np.array([annotation.hand_type_valid for annotation in batch], dtype=bool),
            "samples.bbox": np.array([annotation.bbox for annotation in batch]).astype(np.float32),
            "samples.joints": np.packbits(joints.reshape(len(batch), -1), axis=1),
            "samples.has_wrist": joints[..., WRIST],
            "samples.has_mesh": scene.columns["frames.mano_valid"][images["images.frame_row"][image_row]],
            "samples.fault": _faults(joints, marked, hand_type, image_row, images, scene),
        })
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    _refuse_duplicates(columns["samples.annotation_id"], layout, "annotations")
    return columns


def _usable_joints(marked: np.ndarray, image_row: np.ndarray, images: Columns, scene: _Scene) -> np.ndarray:
    """Joints (B, 2, 21) that are marked in the image and triangulated; none of a hand whose wrist is not."""
    joints = marked & scene.joints_valid[images["images.frame_row"][image_row]]
    return joints & joints[..., WRIST, None]


def _faults(joints: np.ndarray, marked: np.ndarray, hand_type: np.ndarray, image_row: np.ndarray, images: Columns,
            scene: _Scene) -> np.ndarray:
    """The fault of each record of a batch, (B,) uint8.  joints, marked: (B, 2, 21), usable and marked in the image."""
    camera, frame = (images[f"images.{key}_row"][image_row] for key in ("camera", "frame"))
    axis = scene.columns["cameras.rotation"][camera, 2]                                         # (B, 3)
    depth = (scene.columns["frames.joints_world"][frame] @ axis[:, None, :, None])[..., 0]      # (B, 2, 21)
    depth = depth + scene.columns["cameras.translation"][camera, 2, None, None]
    is_behind = (joints & ~(depth > 0)).any(axis=(1, 2))

    has_hand = np.asarray(marked.any(axis=2))                                                               # (B, 2)
    rows, named = np.arange(len(hand_type)), np.minimum(hand_type, Hand.LEFT)
    contradicts = (hand_type < len(Hand)) & ~has_hand[rows, named] & has_hand[rows, 1 - named]
    return np.select(
        [scene.camera_fault[camera] > 0, scene.frame_fault[frame] > 0, is_behind, contradicts],
        [scene.camera_fault[camera], scene.frame_fault[frame], np.uint8(_BEHIND), np.uint8(_HAND_TYPE)],
    ).astype(np.uint8)


def _leaves_its_folder(name: str) -> bool:
    """Whether a file name is empty, absolute, or climbs out of the folder that it is relative to, on any system."""
    parts = name.replace("\\", "/").split("/")
    return not parts[0] or ".." in parts or ":" in parts[0] or "\0" in name


def _refuse_duplicates(ids: np.ndarray, layout: Layout, list_name: str) -> None:
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(np.diff(ids[order]) == 0)
    if again.size:
        first, second = order[again[0]], order[again[0] + 1]
        raise damaged(layout.data, f"{list_name}[{second}].id",
                      f"{ids[second]} is the id of {list_name}[{first}] already")


def _batches(raws: list[Raw], kind: type[_Entry], layout: Layout, list_name: str,
             bar: "tqdm[NoReturn]") -> Iterator[tuple[int, list[_Entry]]]:
    """The entries of a list in batches, each with the place of its first one."""
    decoder, path = msgspec.json.Decoder(kind), layout.data
    for start in range(0, len(raws), _BATCH):
        batch = raws[start:start + _BATCH]
        yield start, entries.decode_all(batch, decoder, path, list_name, start)
        bar.update(len(batch))


# ---------------------------------------------------------------- cameras and time steps

def _read_scene(layout: Layout, read: ReadSource, images: _Images) -> _Scene:
    cameras, camera_fault = _read_cameras(layout, read, list(images.cameras))
    frames, joints_valid = _read_frames(layout, read, list(images.steps))
    joints = frames["frames.joints_world"]
    length = np.linalg.norm(joints[:, :, MIDDLE_MCP] - joints[:, :, WRIST], axis=-1)            # (F, 2)
    is_hand = (length >= BONE_RANGE[0]) & (length <= BONE_RANGE[1])
    is_wrong = joints_valid[:, :, MIDDLE_MCP] & joints_valid[:, :, WRIST] & ~is_hand
    frame_fault = np.where(is_wrong.any(axis=1), _HAND_SIZE, 0).astype(np.uint8)
    return _Scene({**cameras, **frames}, camera_fault, frame_fault, joints_valid)


def _read_cameras(layout: Layout, read: ReadSource, keys: list[tuple[int, str]]) -> tuple[Columns, np.ndarray]:
    """The columns of the cameras `keys` (capture, name), and the fault of each, (C,) uint8."""
    path = layout.file("camera")
    decoder = msgspec.json.Decoder(entries.Cameras)
    captures = {capture: decode(raw, decoder, path, f"capture {capture}")
                for capture, raw in entries.read_file(path, read(path), dict[str, Raw]).items()}
    count = len(keys)
    intrinsics, rotation = np.zeros((count, 3, 3)), np.zeros((count, 3, 3))
    translation, fault = np.zeros((count, 3)), np.zeros(count, dtype=np.uint8)
    for row, (capture, name) in enumerate(keys):
        camera = _camera(layout, captures.get(str(capture)), capture, name)
        fault[row] = _camera_fault(camera)
        if not fault[row]:
            intrinsics[row, [0, 1], [0, 1]], intrinsics[row, :, 2] = camera["focal"], (*camera["princpt"], 1)
            rotation[row], translation[row] = camera["camrot"], -camera["camrot"] @ camera["campos"] * _MILLIMETRE
    columns = {"capture": np.array([capture for capture, _ in keys]),
               "name": np.array([name.encode() for _, name in keys]), "intrinsics": intrinsics, "rotation": rotation,
               "translation": translation}
    return {f"cameras.{name}": values for name, values in columns.items()}, fault


def _camera(layout: Layout, entry: entries.Cameras | None, capture: int, name: str) -> dict[str, np.ndarray]:
    """The values of a camera by key; empty if the file does not have it."""
    raws = {key: getattr(entry, key).get(name) for key in _CAMERA_DECODERS} if entry else {}
    missing = [key for key, raw in raws.items() if raw is None]
    if len(missing) == len(raws):
        return {}
    path = layout.file("camera")
    if missing:
        raise damaged(path, f"capture {capture}.{missing[0]}", f"there is no camera '{name}'")
    return {key: np.array(decode(raw, _CAMERA_DECODERS[key], path, f"capture {capture}.{key}.{name}"))
            for key, raw in raws.items()}


def _camera_fault(camera: dict[str, np.ndarray]) -> int:
    if not camera:
        return _NO_CAMERA
    if not camera["focal"].min() > 0:
        return _FOCAL
    rotation = camera["camrot"]
    is_rotation = np.abs(rotation @ rotation.T - np.eye(3)).max() <= 1e-3 and np.linalg.det(rotation) > 0
    return 0 if is_rotation else _CAMROT


def _read_frames(layout: Layout, read: ReadSource, keys: list[tuple[int, int]]) -> tuple[Columns, np.ndarray]:
    """The columns of the time steps `keys` (capture, frame number), and which joints are triangulated (F, 2, 21)."""
    count = len(keys)
    joints, joints_valid = np.zeros((count, 2, NUM_JOINTS, 3)), np.zeros((count, 2, NUM_JOINTS), dtype=bool)
    pose, shape = np.zeros((count, 2, NUM_MODEL_JOINTS, 3)), np.zeros((count, 2, NUM_SHAPE))
    translation, mano_valid = np.zeros((count, 2, 3)), np.zeros((count, 2), dtype=bool)

    for row, entry in _each_step(layout, "joint_3d", read, entries.Joints, keys):
        points = np.array(entry.world_coord).reshape(2, NUM_JOINTS, 3)
        valid = np.frombuffer(entries.flags(entry.joint_valid), dtype=bool).reshape(2, NUM_JOINTS)
        joints[row] = points[:, _MANO21_FROM_FILE] * _MILLIMETRE
        joints_valid[row] = valid[:, _MANO21_FROM_FILE]
    if layout.file("MANO_NeuralAnnot").is_file():
        for row, fits in _each_step(layout, "MANO_NeuralAnnot", read, entries.Fits, keys):
            for hand in Hand:
                fit = getattr(fits, hand.label)    # null where the hand's wrist could not be triangulated
                if fit is not None:
                    pose[row, hand] = np.reshape(fit.pose, (NUM_MODEL_JOINTS, 3))
                    shape[row, hand], translation[row, hand], mano_valid[row, hand] = fit.shape, fit.trans, True

    columns = {"capture": np.array([capture for capture, _ in keys]), "frame": np.array([frame for _, frame in keys]),
               "joints_world": joints, "pose": pose, "shape": shape, "translation": translation,
               "mano_valid": mano_valid}
    return {f"frames.{name}": values for name, values in columns.items()}, joints_valid


def _each_step(layout: Layout, kind: str, read: ReadSource, entry_type: type[_Entry],
               keys: list[tuple[int, int]]) -> Iterator[tuple[int, _Entry]]:
    """The entries of a file {capture: {frame: entry}} with the row of their time step; any may be absent or null."""
    path = layout.file(kind)
    decoder = msgspec.json.Decoder(dict[str, Raw])
    by_capture = {capture: decode(raw, decoder, path, f"capture {capture}")
                  for capture, raw in entries.read_file(path, read(path), dict[str, Raw]).items()}
    entry_decoder = msgspec.json.Decoder(entry_type | None)
    for row, (capture, frame) in enumerate(keys):
        raw = by_capture.get(str(capture), {}).get(str(frame))
        entry = None if raw is None else decode(raw, entry_decoder, path, f"capture {capture}, frame {frame}")
        if entry is not None:
            yield row, entry
