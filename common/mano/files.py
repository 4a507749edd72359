"""MANO's own files: where they lie, whether they are what they should be, and the hand model in them."""

import hashlib
import io
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import ROOT, cannot_read, from_repository
from common.hands import MODEL16, NUM_FACES, NUM_MODEL_JOINTS, NUM_SHAPE, NUM_VERTICES, Hand
from common.mano.model import HandModel, stack_hands
from common.mano.unpickle import RefusedName, UnusableFile, read_arrays

DOWNLOAD_URL = "https://mano.is.tue.mpg.de"
MAX_BYTES = 20_000_000      # a MANO file has about 4 MB
# SHA-256 of MANO 1.2's MANO_RIGHT.pkl and MANO_LEFT.pkl by their sizes, as many projects publish them.
OFFICIAL_SHA256 = {
    3_821_356: "45d60aa3b27ef9107a7afd4e00808f307fd91111e1cfa35afd5c4a62de264767",
    3_821_391: "c4022f7083f2ca7c78b2b3d595abbab52debd32b09d372b16923a801f0ea6a30",
}

# Tried in this order below the folder that the user names, or else below this repository.
_SUBFOLDERS = (
    "", "mano",
    "models", "mano_v1_2/models",                               # MANO's archive
    "models/mano",                                              # smplx
    "data/mano",
    "smplx/models/mano",                                        # InterHand2.6M
    "common/utils/human_model_files/mano",                      # InterWild, Hand4Whole
    "common/utils/smplx/models/mano",                           # EANet
    "misc/mano",                                                # IntagHand, DIR
    "mano/models",                                              # manopth
    "_DATA/data/mano",                                          # HaMeR
)

_SHAPES = {
    "v_template": (NUM_VERTICES, 3),
    "shapedirs": (NUM_VERTICES, 3, NUM_SHAPE),
    "posedirs": (NUM_VERTICES, 3, 135),
    "J_regressor": (NUM_MODEL_JOINTS, NUM_VERTICES),
    "weights": (NUM_VERTICES, NUM_MODEL_JOINTS),
    "f": (NUM_FACES, 3),
    "hands_mean": (45,),
}
# Not needed here, but checked, and kept in converted files because smplx asks for them.
_OPTIONAL = {"kintree_table": (2, NUM_MODEL_JOINTS), "hands_components": (45, 45)}
# No hand has entries this large (metres, radians); a byte changed on the disk easily has.
_LIMITS = {"v_template": 0.5, "shapedirs": 0.1, "posedirs": 1.0, "J_regressor": 2.0, "weights": 1.001,
           "hands_mean": 6.3, "hands_components": 1e3}
_BODIES = {6890: "the SMPL or SMPL-H body", 10475: "the SMPL-X body", 5023: "the FLAME head"}   # by vertices
_BEGINNINGS = {b"<": "is a web page, perhaps of a download without signing in",
               b"version https://git-lfs": "is a pointer of Git LFS"}


@dataclass(frozen=True)
class ManoFile:
    """One checked file."""

    path: Path
    sha256: str                     # of its bytes
    arrays: dict[str, np.ndarray]   # under MANO's own names, of the file's types, after the corrections
    corrections: tuple[str, ...]    # what was wrong in the file, in words

    @property
    def is_official(self) -> bool:
        return self.sha256 in OFFICIAL_SHA256.values()


def load_mano(path: str = "") -> HandModel:
    """MANO's right and left hand from a folder with MANO_RIGHT and MANO_LEFT, each .pkl or .npz.

    path: the folder, absolute or relative to the repository; see `find_mano`. The left hand's shape directions are
    mirrored where the file has the known error (https://github.com/vchoutas/smplx/issues/48). The model's sha256 is
    that of its arrays as they are used, so a pickle, its .npz and a corrected copy count as one model.

    Raises UserError when the files are missing, damaged, unsafe or not a MANO hand.
    """
    return hand_model_of(read_mano(find_mano(path)))


def find_mano(path: str = "") -> list[Path]:
    """The two files, right first: below the folder `path`, else `$MANO_DIR`, else this repository.

    A folder that the user named is never replaced by another one. Raises UserError that names every path tried.
    """
    if path:
        base = from_repository(path)
    else:
        base = Path(os.path.abspath(os.path.expanduser(os.environ.get("MANO_DIR") or ROOT)))
    if os.path.isfile(base):
        base = base.parent
    folders = list(dict.fromkeys(base / subfolder for subfolder in _SUBFOLDERS))
    lonely: list[str] = []
    for folder in folders:
        found = [next((file for file in _names(folder, hand) if os.path.isfile(file)), None) for hand in Hand]
        files = [file for file in found if file]
        if len(files) == len(Hand):
            return files
        lonely += map(str, files)
    tried = ", ".join(f"{folder}/MANO_{{RIGHT,LEFT}}.{{pkl,npz}}" for folder in folders)
    raise UserError(
        "The hand model 'mano' needs MANO_RIGHT.pkl and MANO_LEFT.pkl in one folder, and they were not found"
        + (f" together: there is only {', '.join(lonely)}." if lonely else "."),
        f"Register at {DOWNLOAD_URL} (free), download them, and name their folder with --mano FOLDER or the "
        f"environment variable MANO_DIR. Tried: {tried}.",
    )


def read_mano(paths: list[Path]) -> list[ManoFile]:
    """The checked and corrected contents of the right and the left hand's file.

    Raises UserError when one is damaged, unsafe or not that hand of MANO.
    """
    contents = [_read_bytes(path) for path in paths]
    digests = [_digest(path, content) for path, content in zip(paths, contents, strict=True)]
    right, left = (_parse(path, content) for path, content in zip(paths, contents, strict=True))
    for hand, path, arrays in zip(Hand, paths, (right, left), strict=True):
        _check(arrays, hand, path)
    corrections = [_turn_faces_outward(right), _turn_faces_outward(left) + _mirror_shape(left, right)]
    return [ManoFile(path, digest, arrays, tuple(done)) for path, digest, arrays, done
            in zip(paths, digests, (right, left), corrections, strict=True)]


def hand_model_of(files: list[ManoFile]) -> HandModel:
    """The hand model in the right and the left hand's file."""
    digest = hashlib.sha256()
    for file in files:
        for key in _SHAPES:
            kind = "<i8" if key == "f" else "<f4"
            digest.update((file.arrays[key].astype(kind) + 0).tobytes())    # + 0: −0 and 0 are the same number
    hands = [{**file.arrays, "faces": file.arrays["f"]} for file in files]
    return stack_hands("mano", digest.hexdigest(), hands)


def _names(folder: Path, hand: Hand) -> list[Path]:
    return [folder / f"MANO_{hand.name}{suffix}" for suffix in (".pkl", ".npz")]


def _read_bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise _not_mano(path, f"has {size / 1e6:.0f} MB, more than any hand (SMPL, SMPL-H and SMPL-X bodies do)")
        return path.read_bytes()
    except OSError as error:
        raise cannot_read(path, error, f"MANO's files come from {DOWNLOAD_URL}.") from None


def _digest(path: Path, content: bytes) -> str:
    """SHA-256 of a file; UserError if it has the size of an official one but other bytes."""
    digest = hashlib.sha256(content).hexdigest()
    if OFFICIAL_SHA256.get(len(content), digest) != digest:
        raise UserError(f"{path} is damaged: it has the size of MANO 1.2's file, but sha256 {digest[:12]} instead of "
                        f"{OFFICIAL_SHA256[len(content)][:12]}.", f"Fetch it again from {DOWNLOAD_URL}.")
    return digest


def _not_mano(path: Path, reason: str) -> UserError:
    return UserError(f"{path} {_printable(reason, 200)}, so it is not a hand model of MANO.",
                     f"Use MANO_RIGHT.pkl and MANO_LEFT.pkl as they come from {DOWNLOAD_URL}.")


def _printable(text: str, length: int) -> str:
    """Text from a file, fit for a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text[:length].split()))


# ---------------------------------------------------------------- parsing

def _parse(path: Path, content: bytes) -> dict[str, np.ndarray]:
    """The arrays of one file."""
    for beginning, meaning in _BEGINNINGS.items():
        if content[:100].lstrip().startswith(beginning):
            raise _not_mano(path, meaning)
    keys = (*_SHAPES, *_OPTIONAL)
    is_npz = path.suffix == ".npz" or content.startswith(b"PK")
    try:
        arrays = (_read_npz if is_npz else read_arrays)(content, keys)
    except RefusedName as error:
        raise UserError(
            f"{path} refers to '{_printable(str(error), 80)}', which no hand model needs; nothing of the file was used "
            "or run.", f"If it comes from {DOWNLOAD_URL}, please report this name; otherwise do not trust the file.",
        ) from None
    except UnusableFile as error:
        raise _not_mano(path, str(error)) from None
    except Exception as error:  # damaged or hostile bytes may raise anything
        raise _not_mano(path, f"is damaged ({': '.join(filter(None, (type(error).__name__, str(error))))})") from None
    template = arrays.get("v_template")
    if template is not None and template.ndim and len(template) in _BODIES:
        raise _not_mano(path, f"holds {_BODIES[len(template)]} with its {len(template)} vertices")
    missing = [key for key in _SHAPES if key not in arrays]
    if missing:
        raise _not_mano(path, f"lacks {', '.join(missing)}")
    if arrays["shapedirs"].ndim == 3:
        arrays["shapedirs"] = arrays["shapedirs"][..., :NUM_SHAPE]
    return arrays


def _read_npz(content: bytes, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        size = sum(info.file_size for info in archive.infolist())
        if size > MAX_BYTES:
            raise UnusableFile(f"unpacks to {size / 1e6:.0f} MB, more than any hand")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return {key: file[key] for key in keys if key in file.files}


# ---------------------------------------------------------------- checks

def _check(arrays: dict[str, np.ndarray], hand: Hand, path: Path) -> None:
    for key, shape in (_SHAPES | _OPTIONAL).items():
        if key in arrays:
            _check_array(path, key, arrays[key], shape)
    _check_faces(path, arrays["f"])
    weights = arrays["weights"]
    if weights.min() < -1e-3 or np.abs(weights.sum(axis=1) - 1).max() > 1e-3:
        raise _not_mano(path, "has skinning weights that are negative or do not sum to 1")
    if np.abs(arrays["J_regressor"].sum(axis=1) - 1).max() > 0.05:
        raise _not_mano(path, "has a J_regressor whose rows do not sum to 1")
    tree = arrays.get("kintree_table")     # parents and joints; a converted file may lack it
    if tree is not None and (tuple(tree[0, 1:]) != MODEL16.parents[1:] or tuple(tree[1]) != tuple(range(len(tree[1])))):
        raise _not_mano(path, "has another tree of joints")
    _check_hand(path, arrays, hand)


def _check_array(path: Path, key: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise _not_mano(path, f"has {key} of shape {array.shape} instead of {shape}")
    if array.dtype.kind not in ("iu" if key in ("f", "kintree_table") else "f"):
        raise _not_mano(path, f"stores {key} as {array.dtype}")
    if key in _LIMITS and not (np.abs(array) <= _LIMITS[key]).all():
        raise _not_mano(path, f"has {key} with values that are not finite or beyond {_LIMITS[key]}")


def _check_faces(path: Path, faces: np.ndarray) -> None:
    if faces.min() < 0 or faces.max() >= NUM_VERTICES:
        raise _not_mano(path, f"has faces that refer to vertices outside 0…{NUM_VERTICES - 1}")
    ordered = np.sort(faces, axis=1)
    if (ordered[:, :-1] == ordered[:, 1:]).any() or len(np.unique(faces)) != NUM_VERTICES:
        raise _not_mano(path, "has faces without area or vertices without a face")


def _check_hand(path: Path, arrays: dict[str, np.ndarray], hand: Hand) -> None:
    """Is it in metres, and is it the right one of the two?"""
    wrist, knuckle = (arrays["J_regressor"] @ arrays["v_template"])[[0, MODEL16.index("middle1")]]
    length = np.linalg.norm(knuckle - wrist)
    if not 0.05 < length < 0.15:
        raise _not_mano(path, f"has {length:.3g} m from the wrist to the middle knuckle instead of about 0.09")
    points_left = knuckle[0] < wrist[0]         # the fingers of MANO's right hand point to −x
    if points_left != (hand is Hand.RIGHT):
        raise UserError(f"{path} holds the {hand.other.label} hand.",
                        "Were MANO_RIGHT and MANO_LEFT swapped or copied? Give each file its own name back, or fetch "
                        f"them again from {DOWNLOAD_URL}.")


# ---------------------------------------------------------------- corrections, each made once and only where needed

def _turn_faces_outward(arrays: dict[str, np.ndarray]) -> list[str]:
    corners = (arrays["v_template"] - arrays["v_template"].mean(axis=0))[arrays["f"]]      # (1538, 3, 3)
    if np.linalg.det(corners).sum() > 0:        # six times the volume
        return []
    arrays["f"] = arrays["f"][:, ::-1]
    return ["faces turned outward"]


def _mirror_shape(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> list[str]:
    """In MANO's files x of the left hand's shapedirs is that of the right hand, though its template is mirrored."""
    ours, theirs = left["shapedirs"][:, 0], right["shapedirs"][:, 0]
    if np.abs(ours - theirs).sum() >= np.abs(ours + theirs).sum():
        return []
    left["shapedirs"] = left["shapedirs"] * np.array([-1, 1, 1], left["shapedirs"].dtype)[:, None]
    return ["shapedirs mirrored in x (smplx issue 48)"]
