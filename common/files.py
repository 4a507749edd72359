"""Files that are complete or absent, with a SHA-256 beside those that matter, and JSON.

What `write_signed` writes is two files: NAME and NAME.sha256, a line that `sha256sum -c` reads. The second is written
last: without it, or with another digest in it, the first does not count.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

from common.errors import EXIT_ENVIRONMENT, EXIT_USER_ERROR, UserError, is_exhausted

ROOT = Path(__file__).resolve().parent.parent


def from_repository(path: str) -> Path:
    """A path of a configuration: relative to the repository, absolute, or in the home folder by `~`."""
    return ROOT / os.path.expanduser(path)


# ---------------------------------------------------------------- atomic writes

def write_atomically(path: Path, write: Callable[[BinaryIO], Any], size: int = 0) -> None:
    """Let `write` fill a file that appears under `path` only when it is complete and on the disk.

    size: about how many bytes it needs, if that is known. Raises the error that `cannot_write` makes.
    """
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__       # torch.save ends with an error of its own after that of the disk
        if cause is None:
            raise
        raise cannot_write(path, cause, size) from error


def cannot_read(what: object, error: OSError, hint: str = "") -> UserError:
    """What to raise if a file cannot be read: exit code 5 where the machine is at its limits, else 2."""
    return UserError(f"{what} cannot be read: {error.strerror or error}.", hint,
                     EXIT_ENVIRONMENT if is_exhausted(error) else EXIT_USER_ERROR)


def cannot_write(path: Path, error: OSError, size: int = 0) -> UserError:
    """What to raise if `path` cannot be written: exit code 2 if no file can be there, 5 if the disk or the folder does
    not take one of `size` bytes (0: unknown)."""
    reason = error.strerror or str(error)
    is_no_path = error.errno in (errno.ENAMETOOLONG, errno.ELOOP)
    if is_no_path or isinstance(error, (NotADirectoryError, IsADirectoryError, FileExistsError)):
        return UserError(f"Cannot write {path}: {reason}.", "Choose another path.")
    needs = f"needs about {megabytes(size)}, " if size else ""
    return UserError(f"Cannot write {path}: {reason} ({needs}{megabytes(free_bytes(path))} are free).",
                     "Make room or make the folder writable, then run again; train.py goes on with --continue.",
                     EXIT_ENVIRONMENT)


def free_bytes(path: Path) -> int:
    """Free space where `path` lies or would lie."""
    return shutil.disk_usage(next(place for place in (path, *path.absolute().parents) if place.exists())).free


def megabytes(size: int) -> str:
    """A number of bytes, to read."""
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e6:.2f} MB"


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---------------------------------------------------------------- digests

def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_signed(path: Path, write: Callable[[BinaryIO], Any], size: int = 0) -> None:
    """Let `write` fill a file, then put its digest beside it. A failure leaves whatever was there before.

    size: as in `write_atomically`. Raises UserError with exit code 5 if the file cannot be written, or is not read back
    as it was written.
    """
    written = hashlib.sha256()
    write_atomically(path, lambda file: write(cast(BinaryIO, HashedFile(file, written))), size)
    if sha256_of(path) != written.hexdigest():
        raise UserError(f"{path} is not read back as it was written.", "Check the disk, then run again; train.py goes "
                        "on with --continue.", EXIT_ENVIRONMENT)
    line = f"{written.hexdigest()}  {path.name}\n".encode()
    write_atomically(digest_path(path), lambda file: file.write(line))


def checked_sha256(path: Path, hint: str) -> str:
    """The SHA-256 of a file that `write_signed` wrote; UserError, with `hint`, if it is not as it was written."""
    if not digest_path(path).is_file():
        raise UserError(f"{path} is incomplete: {digest_path(path).name}, which is written last, is missing beside "
                        "it.", f"Copy that file too; if there is none, {path.name} was never finished: use another.")
    try:
        expected, found = stored_sha256(path), sha256_of(path)
    except OSError as error:
        raise cannot_read(path, error, hint) from None
    if found != expected:
        raise UserError(f"{path} is damaged (sha256 {found[:12]} instead of {expected[:12]}).", hint)
    return found


def stored_sha256(path: Path) -> str:
    """The SHA-256 that a file of `write_signed` had when it was written."""
    return digest_path(path).read_text(encoding="utf-8", errors="replace")[:64]


def digest_path(path: Path) -> Path:
    """Where `write_signed` puts the digest of a file."""
    return path.with_name(f"{path.name}.sha256")


class HashedFile:
    """A file whose bytes are hashed on their way."""

    def __init__(self, file: BinaryIO, digest: "hashlib._Hash"):
        self.file, self.digest, self.flush = file, digest, file.flush

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)


# ---------------------------------------------------------------- JSON

def read_json(path: Path, hint: str = "") -> Any:
    """The content of a JSON file in any of Unicode's encodings, with or without a byte order mark.

    hint: what to do where the file is missing or wrong. Raises UserError for such a file, and for one in which an
    object has a key twice: of two values, the one that was meant is not known.
    """
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=_unique_keys)
    except FileNotFoundError:
        raise UserError(f"{path} is missing.", hint or "Files that were made together belong together.") from None
    except _DoubledKey as error:
        raise UserError(f"{path} has the key '{error}' twice in one object.", hint or "Remove one of the two.") \
            from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a complete JSON file: {error}.", hint or "Copy or download it again.") from None
    except OSError as error:
        raise cannot_read(path, error) from None


class _DoubledKey(Exception):
    """A key that an object has twice."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise _DoubledKey(Counter(key for key, _ in pairs).most_common(1)[0][0])
    return values


def write_json(path: Path, values: Any, *, compact: bool = False) -> None:
    """Write plain values atomically, numbers in full. Raises ValueError for a number that is not finite.

    A line for each key and each item that is not a plain value, so that a list of numbers stays on one line; `compact`
    puts everything on one line, as large tables want it.
    """
    text = json.dumps(values, allow_nan=False) if compact else f"{_json_text(values, '')}\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def _json_text(value: Any, indent: str) -> str:
    deeper = f"{indent}  "
    if isinstance(value, dict) and value:
        lines = [f"{deeper}{json.dumps(str(key), ensure_ascii=False)}: {_json_text(item, deeper)}"
                 for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, (list, tuple)) and any(isinstance(item, (dict, list, tuple)) for item in value):
        lines = [f"{deeper}{_json_text(item, deeper)}" for item in value]
        return "[\n" + ",\n".join(lines) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def finite_or_none(values: Any) -> Any:
    """Plain values with None in place of each number that JSON cannot hold."""
    if isinstance(values, dict):
        return {key: finite_or_none(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [finite_or_none(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
