"""Predictions as a file, so that they can be scored, shared and compared without the model that made them.

The file is one .npz of plain arrays, listed in docs/predictions.md: any program writes it with a line of numpy. It is
read and written row by row, because the meshes of a large test set (261,494 samples: 4.9 GB) do not fit into memory.

Legend: N samples · 2 the hand axis · 21 joints in MANO21 order · 778 vertices · 16 joints in MODEL16 order. Metres.
"""

import contextlib
import difflib
import math
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.files import cannot_read, write_atomically
from common.hands import NUM_JOINTS, NUM_MODEL_JOINTS, NUM_SHAPE, NUM_VERTICES
from common.mano.model import HandModel, check_same_model
from common.types import HandPrediction

VERSION = 1

_CHUNK = 256        # rows in memory at once: 5 MB of meshes
_FARTHEST = 0.5     # metres: no hand is so large that half of it lies farther from its wrist
_HINT = "docs/predictions.md lists what a prediction file holds; tool/convert_predictions.py writes one."


class Origin(NamedTuple):
    """What the predictions of a file were made for."""

    dataset: str                    # a name in data.READERS
    split: str
    hand_model: dict[str, str]      # common.mano.model.HandModel.identity; "sha256" is empty where it is not known


class Predictions(NamedTuple):
    """Rows of a prediction file; None for what the file does not hold.

    A number that is not finite means that the model failed on that sample. Where `predicted` is False anything may
    stand.
    """

    image: np.ndarray                           # (N,) str             the sample: Reader.sample_id
    predicted: np.ndarray                       # (N, 2) bool          the model says something about the hand
    vertices: np.ndarray | None = None          # (N, 2, 778, 3)       relative to the own wrist
    joints: np.ndarray | None = None            # (N, 2, 21, 3)        relative to the own wrist
    relative: np.ndarray | None = None          # (N, 3)               left wrist − right wrist
    rotations: np.ndarray | None = None         # (N, 2, 16, 3, 3)     the hand model's, mean pose included
    shape: np.ndarray | None = None             # (N, 2, 10)
    right_wrist: np.ndarray | None = None       # (N, 3)               camera frame, where it is known; never scored


# What follows the row in each numeric member.
ROW_SHAPES: dict[str, tuple[int, ...]] = {
    "vertices": (2, NUM_VERTICES, 3),
    "joints": (2, NUM_JOINTS, 3),
    "relative": (3,),
    "rotations": (2, NUM_MODEL_JOINTS, 3, 3),
    "shape": (2, NUM_SHAPE),
    "right_wrist": (3,),
}


# ---------------------------------------------------------------- writing

class PredictionWriter:
    """Writes the predictions of a model while it is being tested.

    Each process appends its rows to scratch files of its own in `PATH.parts`; `join` makes the file of them once all
    processes have called `close`. A run that is killed leaves `PATH` as it was, and the next one replaces the parts.
    """

    COLUMNS = ("vertices", "joints", "relative", "rotations", "shape")
    FILES = ("index", "predicted", *COLUMNS)

    def __init__(self, path: Path, part: int = 0):
        """part: a number of this process among those that write, from 0."""
        if path.is_dir():
            raise UserError(f"{path} is a folder.", "Name the file that the predictions go to.")
        self.path = path
        with _disk_errors(path):
            _parts_folder(path).mkdir(parents=True, exist_ok=True)
            self.files = {name: open(_part_file(path, part, name), "wb") for name in self.FILES}

    def add(self, index: Tensor, hands: HandPrediction, presence: Tensor | None = None) -> None:
        """Append a batch. index: (B,) positions in the reader; a sample may be added twice.

        presence: (B, 2) probabilities; a hand below one half is not predicted. None: both are.
        """
        predicted = torch.ones(len(index), 2, dtype=torch.bool) if presence is None else presence.cpu() >= 0.5
        columns = {"vertices": hands.vertices, "joints": hands.joints, "relative": hands.relative,
                   "rotations": hands.mano.rotations, "shape": hands.mano.shape}
        with _disk_errors(self.path):
            self.files["index"].write(index.cpu().numpy().astype(np.int64).tobytes())
            self.files["predicted"].write(predicted.numpy().tobytes())
            for name, values in columns.items():
                self.files[name].write(values.float().cpu().numpy().tobytes())

    def close(self) -> None:
        """Finish this process's part."""
        with _disk_errors(self.path):
            for file in self.files.values():
                file.close()


def join_parts(path: Path, parts: int, origin: Origin, sample_id: Callable[[int], str]) -> int:
    """Make one prediction file of the parts 0 … parts − 1 and remove them; the number of samples in it.

    sample_id: of a position in the reader.  Rows are ordered by position; a sample that several parts hold, because
    samplers repeat some to give every process the same number, is written once.
    """
    with _disk_errors(path):
        columns = {name: _Column(path, parts, name) for name in PredictionWriter.COLUMNS}
        index, rows = np.unique(np.concatenate([np.fromfile(_part_file(path, part, "index"), dtype=np.int64)
                                                for part in range(parts)]), return_index=True)
    chunks = [rows[start:start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
    members = {name: _Member((len(rows), *ROW_SHAPES[name]), np.dtype(np.float32), map(column.take, chunks))
               for name, column in columns.items()}
    ids = np.array([sample_id(row) for row in index.tolist()], dtype=str)
    predicted = np.concatenate([np.fromfile(_part_file(path, part, "predicted"), dtype=bool) for part in range(parts)])
    small = {"image": ids, "index": index, "predicted": predicted.reshape(-1, 2)[rows]}
    write_atomically(path, lambda file: _write_npz(file, _facts(origin) | small, members))
    shutil.rmtree(_parts_folder(path), ignore_errors=True)
    return len(rows)


def write_predictions(path: Path, origin: Origin, predictions: Predictions) -> None:
    """Write predictions that are in memory; numbers keep their type."""
    columns = {name: values for name, values in predictions._asdict().items() if values is not None}
    write_atomically(path, lambda file: _write_npz(file, _facts(origin) | columns, {}))


class _Member(NamedTuple):
    """An array of the file that is written chunk by chunk."""

    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: Iterator[np.ndarray]


class _Column:
    """The rows of one column in all parts, read from disk when they are taken."""

    def __init__(self, path: Path, parts: int, name: str):
        files = [_part_file(path, part, name) for part in range(parts)]
        empty = np.zeros((0, *ROW_SHAPES[name]), np.float32)
        self.maps = [np.memmap(file, np.float32, "r").reshape(-1, *ROW_SHAPES[name]) if file.stat().st_size else empty
                     for file in files]
        self.starts = np.cumsum([0, *map(len, self.maps)])

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the parts laid end to end."""
        taken = np.empty((len(rows), *self.maps[0].shape[1:]), np.float32)
        part = np.searchsorted(self.starts, rows, side="right") - 1
        for number, values in enumerate(self.maps):
            taken[part == number] = values[rows[part == number] - self.starts[number]]
        return taken


def _facts(origin: Origin) -> dict[str, np.ndarray]:
    values = {"version": VERSION, "dataset": origin.dataset, "split": origin.split,
              "hand_model": origin.hand_model["name"], "hand_model_sha256": origin.hand_model["sha256"]}
    return {name: np.array(value) for name, value in values.items()}


def _write_npz(file: BinaryIO, arrays: dict[str, np.ndarray], members: dict[str, _Member]) -> None:
    whole = {name: _Member(array.shape, array.dtype, iter([array])) for name, array in arrays.items()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, (shape, dtype, chunks) in (whole | members).items():
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for chunk in chunks:
                    member.write(chunk.tobytes())


# ---------------------------------------------------------------- reading

class PredictionFile:
    """A prediction file, checked: what it was made for and the names of its samples; the rest is read by `take`.

    Raises UserError, here or in `take`, for a file that is damaged, of another version, or that has members that are
    missing, unknown or of a wrong shape or type, repeated samples, lengths that cannot be metres, or matrices that
    are not rotations.
    """

    def __init__(self, path: Path):
        self.path = path
        with _damages(path), zipfile.ZipFile(path) as archive:
            if archive.testzip():
                raise zipfile.BadZipFile(f"the member {archive.testzip()} is damaged")
            arrays = {info.filename.removesuffix(".npy"): _map_member(path, archive, info)
                      for info in archive.infolist()}
        self._check_names(list(arrays))
        if self._number(arrays["version"]) != VERSION:
            raise self._refuse(f"version is {arrays['version']}.", f"This program reads version {VERSION}.")
        texts = {name: self._text(name, arrays.get(name, np.array("")))
                 for name in ("dataset", "split", "hand_model", "hand_model_sha256")}
        self.origin = Origin(texts["dataset"], texts["split"],
                             {"name": texts["hand_model"], "sha256": texts["hand_model_sha256"]})
        self.image = self._ids(arrays["image"])
        self.predicted = arrays.get("predicted", np.ones((len(self), 2), dtype=bool))
        self._check_array("predicted", self.predicted, "b", (2,))
        self.columns = {name: arrays[name] for name in ROW_SHAPES if name in arrays}
        for name, values in self.columns.items():
            self._check_array(name, values, "f", ROW_SHAPES[name])

    def __len__(self) -> int:
        return len(self.image)

    def check_hand_model(self, model: HandModel) -> None:
        """Refuse predictions of another hand model; one whose hash is not known is compared by name."""
        found = self.origin.hand_model
        if found["sha256"]:
            check_same_model(model.identity, found, str(self.path))
        elif found["name"] != model.name:
            raise self._refuse(f"hand_model is '{found['name']}', but the config asks for '{model.name}'.",
                               f"Use --set hand_model.name={found['name']}.")

    def take(self, rows: np.ndarray | slice) -> Predictions:
        """Some rows, in memory."""
        columns = {name: native(values[rows]) for name, values in self.columns.items()}
        taken = Predictions(self.image[rows], np.array(self.predicted[rows]), **columns)
        for name in ("vertices", "joints"):
            self._check_lengths(name, taken)
        if taken.rotations is not None:
            wrong = taken.predicted & ~_are_rotations(taken.rotations)
            if wrong.any():
                raise self._refuse(f"the rotations of '{taken.image[wrong.any(axis=1)][0]}' are not rotation matrices.")
        return taken

    def _refuse(self, message: str, hint: str = "") -> UserError:
        return UserError(f"The prediction file {self.path}: {message}", hint or _HINT)

    def _check_names(self, names: list[str]) -> None:
        required = ["version", "dataset", "split", "hand_model", "image"]
        known = {*required, "hand_model_sha256", "index", "predicted", *ROW_SHAPES}
        for name in names:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                raise self._refuse(f"there is nothing called '{name}'.", f"Did you mean '{close[0]}'?" if close else "")
        missing = [name for name in required if name not in names]
        if missing:
            raise self._refuse(f"{', '.join(missing)} missing.")
        if not {"vertices", "joints"} & set(names) and not {"rotations", "shape"} <= set(names):
            raise self._refuse("it holds no hands: neither vertices, nor joints, nor rotations and shape.")

    def _number(self, values: np.ndarray) -> int:
        self._check_array("version", values, "iu", None)
        return int(values)

    def _text(self, name: str, values: np.ndarray) -> str:
        self._check_array(name, values, "US", None)
        text = values.item()
        return text.decode("utf-8", "replace") if isinstance(text, bytes) else text

    def _ids(self, values: np.ndarray) -> np.ndarray:
        if values.dtype.kind not in "US" or values.ndim != 1 or not len(values):
            raise self._refuse(f"image has the type {values.dtype} and the shape {values.shape}.",
                               "It must hold the name of each sample, and at least one.")
        ids = np.char.decode(values, "utf-8", "replace") if values.dtype.kind == "S" else np.array(values)
        unique, counts = np.unique(ids, return_counts=True)
        if len(unique) < len(ids):
            raise self._refuse(f"{(counts > 1).sum()} samples occur more than once, the first is "
                               f"'{unique[counts > 1][0]}'.", "Keep one prediction for each sample.")
        return ids

    def _check_array(self, name: str, values: np.ndarray, kinds: str, row_shape: tuple[int, ...] | None) -> None:
        """Refuse another type, or another shape than (N, *row_shape), or () where that is None."""
        shape = () if row_shape is None else (len(self), *row_shape)
        if values.dtype.kind not in kinds or values.shape != shape:
            raise self._refuse(f"{name} has the type {values.dtype} and the shape {values.shape}; "
                               f"the shape must be {shape}.")

    def _check_lengths(self, name: str, rows: Predictions) -> None:
        points = getattr(rows, name)
        if points is None:
            return
        distance = np.linalg.norm(points[rows.predicted].astype(np.float64), axis=-1)
        distance = distance[np.isfinite(distance)]
        if distance.size and np.median(distance) > _FARTHEST:
            raise self._refuse(f"from '{rows.image[0]}' on, {name} lie {np.median(distance):.3g} from the wrist.",
                               "They must be metres relative to the own wrist; tool/convert_predictions.py converts.")


@contextlib.contextmanager
def _damages(path: Path) -> Iterator[None]:
    """Whatever goes wrong in a file that is not a whole .npz becomes one UserError."""
    try:
        yield
    except OSError as error:
        raise cannot_read(path, error, _HINT) from None
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, OverflowError, NotImplementedError,
            RuntimeError, MemoryError) as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UserError(f"{path} is not a whole .npz file of plain arrays: {reason}.", _HINT) from None


def _map_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """An array of an .npz file: mapped into memory, or read if it is compressed."""
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in headers:
            raise ValueError(f"{info.filename} has numpy's format {version}")
        shape, is_fortran, dtype = headers[version](member)
        size = dtype.itemsize * math.prod(shape)
        if dtype.hasobject or info.file_size != member.tell() + size:
            raise ValueError(f"{info.filename} is not a plain array of the size that it states")
        order: Literal["F", "C"] = "F" if is_fortran else "C"
        if info.compress_type != zipfile.ZIP_STORED or not size:
            return np.frombuffer(member.read(), dtype).reshape(shape, order=order)
        header = member.tell()
    # The array lies behind the local file header, whose length depends on its name and extra field.
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
    return np.memmap(path, dtype, "r", info.header_offset + 30 + name + extra + header, shape, order)


def native(values: np.ndarray) -> np.ndarray:
    """A copy in this machine's byte order and in no more than float64, as torch takes it."""
    return values.astype(f"f{min(8, values.dtype.itemsize)}")


def _are_rotations(matrices: np.ndarray) -> np.ndarray:
    """Whether all 16 matrices (..., 16, 3, 3) of a hand are rotations, as far as half precision can tell, or the model
    failed on it."""
    failed = ~np.isfinite(matrices).all(axis=(-1, -2, -3))
    matrices = np.where(failed[..., None, None, None], np.eye(3), matrices.astype(np.float64))
    product = matrices @ matrices.swapaxes(-1, -2)
    is_rotation = (np.abs(product - np.eye(3)).max(axis=(-1, -2)) < 1e-2) & (np.linalg.det(matrices) > 0)
    return is_rotation.all(axis=-1)


# ---------------------------------------------------------------- scratch files

def _parts_folder(path: Path) -> Path:
    return path.with_name(f"{path.name}.parts")


def _part_file(path: Path, part: int, name: str) -> Path:
    return _parts_folder(path) / f"{part}_{name}"


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.",
                        "Is the disk full or the folder read-only?") from error
