"""The arrays in MANO's pickles, read without chumpy, without scipy and without running anything.

A pickle is a program that may call any function. The reader here knows the few names that MANO's pickles use, puts
a harmless stand-in in the place of each, and refuses every other name. What a file can cost is bounded too: a small
file cannot make it reserve much memory or run for long.
"""

import io
import operator
import pickle
import re
import struct
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

MAX_OPERATIONS = 100_000    # steps of the pickle's program; MANO's take a few hundred
MAX_DENSE = 1_000_000       # entries of a sparse matrix made dense; MANO's regressor has 12,448


class RefusedName(Exception):
    """A pickle asks for a function, a class or an operation outside the list; the text is its name."""


class UnusableFile(Exception):
    """A file that is no hand model; the text goes on where `FILE …` stops."""


def read_arrays(content: bytes, keys: Collection[str]) -> dict[str, np.ndarray]:
    """Those of `keys` that the dictionary in a pickle holds, as arrays of numbers. Other keys are not looked at.

    Raises RefusedName, UnusableFile, and anything else for damaged bytes.
    """
    values = _ManoUnpickler(content).load()
    if not isinstance(values, dict):
        raise UnusableFile(f"holds a {type(values).__name__.strip('_')}")
    return {key: _named_array(key, values[key]) for key in keys if key in values}


def _named_array(key: str, value: Any) -> np.ndarray:
    try:
        return _array(value)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UnusableFile(f"stores {key} in an unknown way ({error})") from None


# ---------------------------------------------------------------- stand-ins

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
    # Lists are refused: numpy would walk through a nested one, which a few bytes can make endless.
    if not isinstance(value, _StandIn):
        raise ValueError(f"a {type(value).__name__}, not an array")
    return value.array()


def _plain_array(value: Any) -> np.ndarray:
    """An array that is stored as such: chumpy nodes may hang on one input only, so reading them takes linear time."""
    if not isinstance(value, (_NumpyArray, _NumpyBuffer)):
        raise ValueError(f"a {type(value).__name__}, not an array")
    return value.array()


class _NumpyType(_StandIn):
    """`numpy.dtype`: numbers and text only."""

    def dtype(self) -> np.dtype:
        name, byte_order = self.args[0], self.state[1]
        if not re.fullmatch(r"[biufSU]\d{1,3}", name):
            raise ValueError(f"an array of type {name}")
        return np.dtype(name).newbyteorder(byte_order)


class _NumpyArray(_StandIn):
    """`numpy.ndarray`."""

    def array(self) -> np.ndarray:
        _, shape, kind, is_fortran, data = self.state
        data = data.encode("latin1") if isinstance(data, str) else data
        return np.frombuffer(data, kind.dtype()).reshape(shape, order="F" if is_fortran else "C")


class _NumpyBuffer(_StandIn):
    """`numpy.ndarray` in pickles of protocol 5."""

    def array(self) -> np.ndarray:
        data, kind, shape, order = self.args
        return np.frombuffer(data, kind.dtype()).reshape(shape, order=order)


class _SparseColumns(_StandIn):
    """`scipy.sparse.csc_matrix`, made dense. MANO's J_regressor is one."""

    def array(self) -> np.ndarray:
        rows, columns = map(operator.index, self.state["_shape"] if "_shape" in self.state else self.state["shape"])
        starts, indices, data = (_plain_array(self.state[key]) for key in ("indptr", "indices", "data"))
        if not (0 < rows * columns <= MAX_DENSE and len(starts) == columns + 1 and len(indices) == len(data)):
            raise ValueError(f"a sparse matrix of {rows} rows and {columns} columns that do not fit its entries")
        counts: np.ndarray = np.diff(starts.astype(np.int64))
        if starts[0] != 0 or starts[-1] != len(data) or counts.min() < 0 or (indices < 0).any():
            raise ValueError("a sparse matrix with impossible positions")
        dense = np.zeros((rows, columns), data.dtype)
        np.add.at(dense, (indices, np.repeat(np.arange(columns), counts)), data)
        return dense


class _Chumpy(_StandIn):
    """`chumpy.ch.Ch`, a constant: its value is `x`."""

    def array(self) -> np.ndarray:
        return _array(self.state["x"])


class _ChumpySelect(_StandIn):
    """`chumpy.reordering.Select`, entries of a flattened array: MANO's shapedirs are 10 of 20 columns."""

    def array(self) -> np.ndarray:
        chosen = _array(self.state["a"]).ravel()[_plain_array(self.state["idxs"])]
        return chosen.reshape(self.state.get("preferred_shape", chosen.shape))


def _new_object(kind: Any, *_: Any) -> _StandIn:
    """`copy_reg._reconstructor`, which pickles of protocol 0 and 1 call for an object."""
    return kind()


def _latin1_bytes(text: str, codec: str) -> bytes:
    """`_codecs.encode`, by which Python 3 writes bytes into pickles of protocol 0 to 2."""
    if codec != "latin1":
        raise RefusedName(f"_codecs.encode with {codec}")
    return text.encode("latin1")


# Every name has the spelling of Python 2 and of Python 3, or of old and new numpy and scipy.
_ALLOWED: dict[str, Callable[..., Any]] = {
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
    "numpy.core.numeric._frombuffer": _NumpyBuffer,
    "numpy._core.numeric._frombuffer": _NumpyBuffer,
    "scipy.sparse.csc.csc_matrix": _SparseColumns,
    "scipy.sparse._csc.csc_matrix": _SparseColumns,
    "chumpy.ch.Ch": _Chumpy,
    "chumpy.reordering.Select": _ChumpySelect,
}


# ---------------------------------------------------------------- the restricted unpickler

Operation = Callable[[Any], None]       # takes the unpickler


class _Operations(dict[int, Operation]):
    """pickle's operations by code, those that a hand model needs, and how many a file may still use."""

    left = MAX_OPERATIONS

    def __getitem__(self, code: int) -> Operation:
        self.left -= 1
        if self.left < 0:
            raise UnusableFile(f"has more than {MAX_OPERATIONS} operations")
        return super().__getitem__(code)


class _ManoUnpickler(pickle._Unpickler):
    """The unpickler written in Python: unlike the C one, a forged memo index does not make it reserve memory."""

    stack: list[Any]                        # of the class above, whose stubs do not tell
    read: Callable[[int], bytes]
    append: Callable[[Any], None]

    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content), encoding="latin1")    # latin1: written by Python 2
        self.dispatch = _Operations(_OPERATIONS)    # type: ignore[misc]    # one for each file: they are counted

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _ALLOWED:
            return _ALLOWED[full]
        if module.split(".")[0] == "chumpy":
            return type(full, (_StandIn,), {})      # inert; refused only where a needed array depends on it
        raise RefusedName(full)

    def load_build(self) -> None:
        if not isinstance(self.stack[-2], _StandIn):
            raise RefusedName(f"the state of a {type(self.stack[-2]).__name__}")
        super().load_build()    # type: ignore[misc]    # not in the stubs

    def load_bytearray8(self) -> None:
        size, = struct.unpack("<Q", self.read(8))
        self.append(self.read(size))        # the original reserves the size that the file names


def _refused(name: str) -> Operation:
    def load(_: _ManoUnpickler) -> None:
        raise RefusedName(f"pickle's operation {name}")
    return load


def _with_plain_keys(load: Operation, keys: slice) -> Operation:
    """`load` for stacks whose `keys` are text or numbers: hashing a nested tuple can be made to take for ever."""
    def checked(unpickler: _ManoUnpickler) -> None:
        for key in unpickler.stack[keys]:
            if not isinstance(key, (str, bytes, int)):
                raise UnusableFile(f"has a {type(key).__name__} as a key")
        load(unpickler)
    return checked


def _operations() -> dict[int, Operation]:
    operations: dict[int, Operation] = dict(pickle._Unpickler.dispatch)
    operations[pickle.BUILD[0]] = _ManoUnpickler.load_build
    operations[pickle.BYTEARRAY8[0]] = _ManoUnpickler.load_bytearray8
    for name in ("EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEWOBJ_EX", "NEXT_BUFFER"):
        operations[getattr(pickle, name)[0]] = _refused(name)
    keyed = {"SETITEM": slice(-2, -1), "SETITEMS": slice(0, None, 2), "DICT": slice(0, None, 2),
             "ADDITEMS": slice(None), "FROZENSET": slice(None)}
    for name, keys in keyed.items():
        code = getattr(pickle, name)[0]
        operations[code] = _with_plain_keys(operations[code], keys)
    return operations


_OPERATIONS = _operations()
