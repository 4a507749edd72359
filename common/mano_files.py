"""MANO's own files, read without chumpy, without scipy and without running anything that they contain.

A MANO file is a pickle: a program that may call any function. The reader here knows the few names that MANO's
pickles use, replaces each of them by a harmless stand-in, and refuses every other name.
"""

import hashlib
import io
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.hands import MODEL16, NUM_FACES, NUM_MODEL_JOINTS, NUM_SHAPE, NUM_VERTICES, Hand
from common.mano import HandModel, stack_hands

ROOT = Path(__file__).resolve().parent.parent
DOWNLOAD_URL = "https://mano.is.tue.mpg.de"
# Tried in this order when the config names no folder; the last two are where InterWild and IntagHand keep the files.
DEFAULT_FOLDERS = ("data/mano", "common/utils/human_model_files/mano", "misc/mano")
MAX_BYTES = 100_000_000     # a MANO file has about 4 MB

_SHAPES = {
    "v_template": (NUM_VERTICES, 3),
    "shapedirs": (NUM_VERTICES, 3, NUM_SHAPE),
    "posedirs": (NUM_VERTICES, 3, 135),
    "J_regressor": (NUM_MODEL_JOINTS, NUM_VERTICES),
    "weights": (NUM_VERTICES, NUM_MODEL_JOINTS),
    "faces": (NUM_FACES, 3),
    "hands_mean": (45,),
}


def load_mano(path: str = "") -> HandModel:
    """MANO's right and left hand from a folder with MANO_RIGHT and MANO_LEFT, each .pkl or .npz.

    path: the folder, absolute or relative to the repository. When it is empty, `$MANO_DIR` and the usual folders
    are tried. The left hand's shape directions are mirrored where the file has the known error
    (https://github.com/vchoutas/smplx/issues/48).

    Raises UserError when the files are missing, damaged, unsafe or not a MANO hand.
    """
    sources = find_mano(path)
    contents = [_read_bytes(source) for source in sources]
    hands = [_parse(source, content) for source, content in zip(sources, contents, strict=True)]
    for hand, source, arrays in zip(Hand, sources, hands, strict=True):
        _check(arrays, hand, source)
    hands[Hand.LEFT]["shapedirs"] = _mirrored_once(hands[Hand.LEFT]["shapedirs"], hands[Hand.RIGHT]["shapedirs"])
    return stack_hands("mano", hashlib.sha256(b"".join(contents)).hexdigest(), hands)


def find_mano(path: str = "") -> list[Path]:
    """The two files, right first; a folder that the user named is never replaced by another one."""
    folders = _folders(path)
    for folder in folders:
        found = [next((f for f in _names(folder, hand) if f.is_file()), None) for hand in Hand]
        if all(found):
            return found
    tried = ", ".join(str(file) for folder in folders for hand in Hand for file in _names(folder, hand))
    raise UserError(
        "The hand model 'mano' needs MANO_RIGHT.pkl and MANO_LEFT.pkl in one folder, and they were not found.",
        f"Download them from {DOWNLOAD_URL} (free registration), then use --set hand_model.path=FOLDER or the "
        f"environment variable MANO_DIR. Tried: {tried}.",
    )


def _folders(path: str) -> list[Path]:
    if path or os.environ.get("MANO_DIR"):
        named = ROOT / Path(path or os.environ["MANO_DIR"]).expanduser()
        # The official archive unpacks to mano_v1_2/models; smplx wants a folder called mano.
        return [named, named / "models", named / "mano"]
    return [ROOT / folder for folder in DEFAULT_FOLDERS]


def _names(folder: Path, hand: Hand) -> list[Path]:
    return [folder / f"MANO_{hand.name}{suffix}" for suffix in (".pkl", ".npz")]


def _read_bytes(source: Path) -> bytes:
    try:
        size = source.stat().st_size
        if size > MAX_BYTES:
            raise _not_mano(source, f"has {size / 1e6:.0f} MB")
        return source.read_bytes()
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error.strerror}.") from None


def _not_mano(source: Path, reason: str) -> UserError:
    return UserError(f"{source} {reason}, so it is not a hand model of MANO.",
                     f"Use MANO_RIGHT.pkl and MANO_LEFT.pkl as they come from {DOWNLOAD_URL}.")


# ---------------------------------------------------------------- parsing

def _parse(source: Path, content: bytes) -> dict[str, np.ndarray]:
    """The arrays of one file under our names."""
    read = _read_npz if source.suffix == ".npz" else _read_pickle
    try:
        values = read(content)
    except _RefusedName as error:
        raise UserError(
            f"{source} refers to '{error}', which no hand model needs; nothing of the file was used.",
            f"If it comes from {DOWNLOAD_URL}, please report this name; otherwise do not trust the file.",
        ) from None
    except Exception as error:  # damaged or hostile bytes may raise anything
        raise _not_mano(source, f"is damaged ({type(error).__name__}: {' '.join(str(error).split())[:120]})") from None
    if not isinstance(values, dict):
        raise _not_mano(source, f"holds a {type(values).__name__}")
    if "f" in values:
        values["faces"] = values.pop("f")
    missing = [key for key in _SHAPES if key not in values]
    if missing:
        raise _not_mano(source, f"lacks {', '.join(missing)}")
    wanted = [*_SHAPES, *(["kintree_table"] if "kintree_table" in values else [])]
    return {key: _number_array(source, key, values[key]) for key in wanted}


def _number_array(source: Path, key: str, value: Any) -> np.ndarray:
    try:
        array = _array(value)
    except Exception as error:
        raise _not_mano(source, f"stores {key} in an unknown way ({type(error).__name__}: {error})") from None
    if array.dtype.kind not in "iuf":
        raise _not_mano(source, f"stores {key} as {array.dtype}")
    return array[..., :NUM_SHAPE] if key == "shapedirs" and array.ndim == 3 else array


def _read_npz(content: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(info.file_size for info in archive.infolist()) > MAX_BYTES:
            raise ValueError("it unpacks to more than 100 MB")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        # Text fields of a converted file are left alone; only the arrays of a hand are read.
        return {key: file[key] for key in file.files if key in (*_SHAPES, "f", "kintree_table")}


def _read_pickle(content: bytes) -> Any:
    return _ManoUnpickler(io.BytesIO(content), encoding="latin1").load()     # latin1: written by Python 2


# ---------------------------------------------------------------- the restricted unpickler

class _RefusedName(Exception):
    """A pickle asks for a function or class outside the list; the text is its name."""


class _StandIn:
    """Takes the place of a class or function that MANO's pickles name: keeps what it is given and does nothing."""

    state: Any = None

    def __init__(self, *args: Any):
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        raise ValueError(f"no rule to read a {type(self).__name__.strip('_')}")


def _array(value: Any) -> np.ndarray:
    return value.array() if isinstance(value, _StandIn) else np.asarray(value)


class _NumpyType(_StandIn):
    """`numpy.dtype`: numbers and text only."""

    def dtype(self) -> np.dtype:
        name, byte_order = str(self.args[0]), self.state[1]
        if not re.fullmatch(r"[biufSU]\d{1,3}", name):
            raise ValueError(f"an array of type {name}")
        return np.dtype(name).newbyteorder(byte_order)


class _NumpyArray(_StandIn):
    """`numpy.ndarray`."""

    def array(self) -> np.ndarray:
        _, shape, kind, is_fortran, data = self.state
        data = data.encode("latin1") if isinstance(data, str) else data
        return np.frombuffer(data, kind.dtype()).reshape(shape, order="F" if is_fortran else "C")


class _SparseColumns(_StandIn):
    """`scipy.sparse.csc_matrix`, made dense. MANO's J_regressor is one."""

    def array(self) -> np.ndarray:
        shape = tuple(self.state["_shape"] if "_shape" in self.state else self.state["shape"])
        if shape != _SHAPES["J_regressor"]:
            raise ValueError(f"a sparse matrix of shape {shape}")
        dense = np.zeros(shape)
        columns = np.repeat(np.arange(shape[1]), np.diff(_array(self.state["indptr"])))
        np.add.at(dense, (_array(self.state["indices"]), columns), _array(self.state["data"]))
        return dense


class _Chumpy(_StandIn):
    """`chumpy.ch.Ch`, a constant: its value is `x`."""

    def array(self) -> np.ndarray:
        return _array(self.state["x"])


class _ChumpySelect(_StandIn):
    """`chumpy.reordering.Select`, entries of a flattened array: MANO's shapedirs are 10 of 20 columns."""

    def array(self) -> np.ndarray:
        return _array(self.state["a"]).ravel()[_array(self.state["idxs"])].reshape(self.state["preferred_shape"])


def _new_object(kind: type[_StandIn], *_: Any) -> _StandIn:
    return kind()


def _latin1_bytes(text: str, *_: Any) -> bytes:
    return text.encode("latin1")


# Every name has the spelling of Python 2 and of Python 3, or of old and new numpy and scipy.
_ALLOWED = {
    "_codecs.encode": _latin1_bytes,
    "copy_reg._reconstructor": _new_object,
    "copyreg._reconstructor": _new_object,
    "__builtin__.object": _StandIn,
    "builtins.object": _StandIn,
    "__builtin__.set": _StandIn,
    "builtins.set": _StandIn,
    "numpy.ndarray": _NumpyArray,
    "numpy.dtype": _NumpyType,
    "numpy.core.multiarray._reconstruct": _NumpyArray,
    "numpy._core.multiarray._reconstruct": _NumpyArray,
    "numpy.core.multiarray.scalar": _StandIn,
    "numpy._core.multiarray.scalar": _StandIn,
    "scipy.sparse.csc.csc_matrix": _SparseColumns,
    "scipy.sparse._csc.csc_matrix": _SparseColumns,
    "chumpy.ch.Ch": _Chumpy,
    "chumpy.reordering.Select": _ChumpySelect,
}


class _ManoUnpickler(pickle._Unpickler):
    """The unpickler written in Python: unlike the C one, a forged memo index does not make it reserve memory."""

    dispatch = dict(pickle._Unpickler.dispatch)
    del dispatch[pickle.BYTEARRAY8[0]]      # reserves the length it names; MANO's files hold no bytearray

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _ALLOWED:
            return _ALLOWED[full]
        if module.split(".")[0] == "chumpy":
            return type(full, (_StandIn,), {})      # inert; refused only where a needed array depends on it
        raise _RefusedName(full)


# ---------------------------------------------------------------- checks

def _check(arrays: dict[str, np.ndarray], hand: Hand, source: Path) -> None:
    for key, shape in _SHAPES.items():
        if arrays[key].shape != shape:
            raise _not_mano(source, f"has {key} of shape {arrays[key].shape} instead of {shape}")
        if not (np.abs(arrays[key]) < 1e6).all():
            raise _not_mano(source, f"has {key} with values that are not finite or absurdly large")
    if arrays["faces"].min() < 0 or arrays["faces"].max() >= NUM_VERTICES:
        raise _not_mano(source, f"has faces that refer to vertices outside 0…{NUM_VERTICES - 1}")
    if np.abs(arrays["weights"].sum(axis=1) - 1).max() > 1e-4:
        raise _not_mano(source, "has skinning weights that do not sum to 1")
    tree = arrays.get("kintree_table")     # row 0: parents; a converted file may lack it
    if tree is not None and (tree.shape != (2, NUM_MODEL_JOINTS) or tuple(tree[0, 1:]) != MODEL16.parents[1:]):
        raise _not_mano(source, "has another tree of joints")
    wrist, knuckle = (arrays["J_regressor"] @ arrays["v_template"])[[0, MODEL16.index("middle1")]]
    points_left = knuckle[0] < wrist[0]         # the fingers of MANO's right hand point to −x
    if points_left != (hand is Hand.RIGHT):
        raise UserError(f"{source} holds the {hand.other.label} hand.",
                        "The names of MANO_RIGHT and MANO_LEFT are swapped; give each file its own name back.")


def _mirrored_once(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The left hand's shapedirs with x mirrored, unless they are mirrored already (test of smplx, issue 48)."""
    if np.abs(left[:, 0] - right[:, 0]).sum() < 1:
        return left * np.array([-1.0, 1.0, 1.0])[:, None]
    return left
