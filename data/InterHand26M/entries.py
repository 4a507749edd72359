"""What one entry of each of InterHand2.6M's JSON files holds, checked as it is read.

A file is first split into its entries without looking into them; then they are decoded one at a time. So a file of a
million images never becomes a tree of Python objects, and what is wrong is named by file, key and annotation.
JSON's rules hold: NaN and Infinity are refused, and of equal keys in one object the last one counts. A byte order mark
before the content is skipped.
"""

import codecs
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from common.errors import UserError
from common.hands import NUM_JOINTS, NUM_MODEL_JOINTS, NUM_SHAPE

HAND_TYPES = ("right", "left", "interacting")

_HINT = "Copy or download the file again."
_FORM = "It must have the form of InterHand2.6M v1.0; if it is a file of that set, download it again."
_Entry = TypeVar("_Entry")
_Whole = Annotated[int, Meta(ge=-(2**62), le=2**62)]
_Pixels = Annotated[int, Meta(ge=1, le=2**31 - 1)]
_Flag = Literal[0, 1] | bool
_OneFlag = Annotated[list[_Flag], Meta(min_length=1, max_length=1)]
# 42 flags, or 42 lists of one flag each, as most releases have them.
_Flags = Annotated[list[_Flag | _OneFlag], Meta(min_length=2 * NUM_JOINTS, max_length=2 * NUM_JOINTS)]
Two = tuple[float, float]
Three = tuple[float, float, float]
Matrix = tuple[Three, Three, Three]


class DataFile(Struct):
    """`*_data.json`."""

    images: list[Raw]
    annotations: list[Raw]


class Image(Struct, gc=False):
    id: _Whole
    file_name: str
    width: _Pixels
    height: _Pixels
    capture: _Whole
    camera: str | int
    frame_idx: _Whole


class Annotation(Struct, gc=False):
    id: _Whole
    image_id: _Whole
    bbox: tuple[float, float, float, float]
    joint_valid: _Flags
    hand_type: Literal["right", "left", "interacting"]
    hand_type_valid: _Flag


class Cameras(Struct):
    """One capture of `*_camera.json`: values by the camera's name."""

    campos: dict[str, Raw]
    camrot: dict[str, Raw]
    focal: dict[str, Raw]
    princpt: dict[str, Raw]


class Joints(Struct):
    """One time step of `*_joint_3d.json`."""

    world_coord: Annotated[list[Three], Meta(min_length=2 * NUM_JOINTS, max_length=2 * NUM_JOINTS)]
    joint_valid: _Flags


class Fit(Struct):
    """MANO parameters of one hand."""

    pose: Annotated[list[float], Meta(min_length=3 * NUM_MODEL_JOINTS, max_length=3 * NUM_MODEL_JOINTS)]
    shape: Annotated[list[float], Meta(min_length=NUM_SHAPE, max_length=NUM_SHAPE)]
    trans: Three


class Fits(Struct):
    """One time step of `*_MANO_NeuralAnnot.json`; null where a hand's wrist could not be triangulated."""

    right: Fit | None = None
    left: Fit | None = None


def flags(values: list[Any]) -> bytes:
    """The 42 flags of `joint_valid`, one byte each."""
    return bytes([value[0] if type(value) is list else value for value in values])


def read_file(path: Path, content: bytes, kind: type[_Entry]) -> _Entry:
    """The content of a file, split into raw entries as `kind` says."""
    return decode(content.removeprefix(codecs.BOM_UTF8), msgspec.json.Decoder(kind), path)


def decode(content: bytes | Raw, decoder: msgspec.json.Decoder[_Entry], path: Path, place: str = "") -> _Entry:
    """`content` as the decoder's type; UserError names the file, the place in it and the key."""
    try:
        return decoder.decode(content)
    except msgspec.ValidationError as error:
        problem, _, key = str(error).partition(" - at `$")
        owner = _owner(content) if place else ""
        raise damaged(path, f"{place}{key.rstrip('`')}" or "the top level", _lower(problem) + owner) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        where = f", {place}" if place else ""
        raise UserError(f"{path}{where} is not a complete JSON file: {_lower(str(error))}"
                        f"{_near(bytes(content), str(error))}.", _HINT) from None
    except RecursionError:
        raise damaged(path, place or "the top level", "values are nested too deeply") from None


def decode_all(raws: list[Raw], decoder: msgspec.json.Decoder[_Entry], path: Path, list_name: str,
               start: int) -> list[_Entry]:
    """All of `raws` as the decoder's type; UserError names the first wrong one. `start`: the number of raws[0]."""
    try:
        return [decoder.decode(raw) for raw in raws]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return [decode(raw, decoder, path, f"{list_name}[{number}]") for number, raw in enumerate(raws, start)]


def damaged(path: Path, place: str, problem: str) -> UserError:
    """The error for what is wrong at a place in a file."""
    return UserError(f"{path}, {place}: {problem}.", _FORM)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _owner(content: bytes | Raw) -> str:
    """Which annotation or image an entry is, as far as it can be told."""
    try:
        found = msgspec.json.decode(content)
        return f" (id {found['id']})" if isinstance(found["id"], int) else ""
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
        return ""


def _near(content: bytes, problem: str) -> str:
    """What stands where the decoder stopped, and the key before it."""
    place = re.search(r"\(byte (\d+)\)", problem)
    end = int(place[1]) if place else len(content)
    keys = re.findall(rb'"([^"\\]{1,40})"\s*:', content[max(0, end - 10_000):end])
    after = f" after the key '{keys[-1].decode(errors='replace')}'" if keys else ""
    excerpt = content[max(0, end - 20):end + 20].decode(errors="replace")
    return f"{after}, near {excerpt!r}"
