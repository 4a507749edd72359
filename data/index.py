"""Tables built once from source files, kept as .npy columns in a folder, and memory-mapped ever after.

On disk, in a folder `index` beside the sources, or in the cache where that folder cannot be written:

    NAME.json       which sources the index was built from (size, time and SHA-256 of each), and its folder
    NAME.<key>/     one .npy file for each column; the key is a hash of the sources' content
    NAME.lock       held while building

A folder appears under its name complete or not at all, and its columns never change, so processes that have it open
are not disturbed by a rebuild. Each opening compares sizes and times of the sources; where only a time differs the
content is hashed. A change that keeps both size and time is not seen: rebuild by hand then.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from common.errors import UserError, is_exhausted
from common.files import cannot_read, sha256_of

CACHE_VARIABLE = "LGNET_CACHE"

log = logging.getLogger(__name__)

Columns = dict[str, np.ndarray]
ReadSource = Callable[[Path], bytes]


class Index(Mapping[str, np.ndarray]):
    """The columns of a folder by name, read-only and memory-mapped. Pickled, it is the path of its folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            names = json.loads((folder / "columns.json").read_text(encoding="utf-8"))
            self._columns = {name: _mapped(folder / f"{name}.npy") for name in names}
        except (OSError, ValueError) as error:
            if is_exhausted(error):
                raise
            raise UserError(f"The index {folder} cannot be opened: {error}.",
                            "Start again: it is rebuilt when it is missing or damaged.") from None

    def __getitem__(self, name: str) -> np.ndarray:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder,)

    def sources(self) -> dict[str, str]:
        """SHA-256 of each file that the columns were built from, by its name."""
        pointer = self.folder.with_name(f"{self.folder.name.rpartition('.')[0]}.json")
        try:
            known = json.loads(pointer.read_text(encoding="utf-8"))
            if known["folder"] == self.folder.name:
                return {name: fact["sha256"] for name, fact in known["sources"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass        # told below
        raise UserError(f"{pointer} does not tell what {self.folder} was built from.",
                        "Another process has built it anew: start again.")

    def extra_column(self, name: str) -> np.ndarray | None:
        """A column that was put there after building (`add_column`), or None."""
        file = self.folder / f"{name}.npy"
        return _mapped(file) if file.is_file() else None

    def add_column(self, name: str, values: np.ndarray) -> None:
        """Put a column beside those that were built, or replace it; UserError where that is not possible."""
        unfinished = self.folder / f".{name}.{os.getpid()}.npy"
        try:
            np.save(unfinished, values, allow_pickle=False)
            unfinished.replace(self.folder / f"{name}.npy")
        except OSError as error:
            raise UserError(f"Cannot write into the index {self.folder}: {error.strerror}.") from None


def open_index(name: str, version: int, sources: list[Path], build: Callable[[ReadSource], Columns], *,
               rebuild: bool = False) -> Index:
    """The index `name` of `sources` (all in one folder), built if there is none, or none of these sources.

    version: raise it when `build` gives other columns than before.
    build: makes the columns, taking the content of each source from the function that it is given.
    Of processes that start together one builds and the others wait for it. Raises UserError when a source cannot be
    read or when no place for the index can be written.
    """
    homes = [sources[0].parent / "index", _cache_of(sources[0].parent)]
    for home in homes if not rebuild else []:
        index = _find(home, name, version, sources)
        if index is not None:
            return index
    problems = []
    for home in homes:
        try:
            home.mkdir(parents=True, exist_ok=True)
            with _locked(home / f"{name}.lock"):
                # Another process may have built it while this one waited.
                index = None if rebuild else _find(home, name, version, sources)
                return index or _build(home, name, version, sources, build)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):     # another place would not help
                raise
            problems.append(f"{home} ({error.strerror or error})")
    raise UserError(f"There is no place for the index of {sources[0]}. Tried: {', '.join(problems)}.",
                    f"Set {CACHE_VARIABLE}=FOLDER in the environment to a folder that can be written and has room.")


def _cache_of(folder: Path) -> Path:
    """Where the index of the files in `folder` goes if the folder cannot be written."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lgnet"
    cache = Path(os.environ.get(CACHE_VARIABLE) or default).expanduser()
    return cache / f"index-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}"


# ---------------------------------------------------------------- finding

def _find(home: Path, name: str, version: int, sources: list[Path]) -> Index | None:
    """The index in `home` if it is whole and was built from these sources."""
    pointer = home / f"{name}.json"
    try:
        known = json.loads(pointer.read_text(encoding="utf-8"))
        if known["version"] != version or list(known["sources"]) != [source.name for source in sources]:
            return None
        stats = {source.name: _still(source, known["sources"][source.name]) for source in sources}
        if None in stats.values():
            return None
        index = Index(home / known["folder"])
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None     # unreadable in whatever way: it is built again
    if stats != known["sources"]:
        _note_new_times(pointer, {**known, "sources": stats})
    return index


def _still(source: Path, known: dict[str, Any]) -> dict[str, Any] | None:
    """What is known of a source, with its present time, if its content has not changed."""
    stat = source.stat()
    if stat.st_size != known["size"]:
        return None
    if stat.st_mtime_ns != known["mtime_ns"]:
        if sha256_of(source) != known["sha256"]:
            return None
    return {**known, "mtime_ns": stat.st_mtime_ns}


def _note_new_times(pointer: Path, content: dict[str, Any]) -> None:
    try:
        _write_json(pointer, content)
    except OSError:
        log.debug("%s cannot be written: the sources will be hashed again next time.", pointer)


# ---------------------------------------------------------------- building

def _build(home: Path, name: str, version: int, sources: list[Path], build: Callable[[ReadSource], Columns]) -> Index:
    """Build and put in place; called by one process at a time."""
    stats: dict[str, dict[str, Any]] = {}

    def read(source: Path) -> bytes:
        """Exactly the bytes that are hashed, so that an index never belongs to another content than it says."""
        try:
            with source.open("rb") as file:
                stat, content = os.fstat(file.fileno()), file.read()
        except OSError as error:
            raise cannot_read(source, error) from None
        stats[source.name] = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns,
                              "sha256": hashlib.sha256(content).hexdigest()}
        return content

    columns = build(read)
    in_order = {source.name: stats[source.name] for source in sources}
    hashes = "".join(fact["sha256"] for fact in in_order.values())
    folder = home / f"{name}.{hashlib.sha256(f'{version} {hashes}'.encode()).hexdigest()[:16]}"
    unfinished = home / f"{name}.unfinished"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        _write_columns(unfinished, columns)
        shutil.rmtree(folder, ignore_errors=True)       # the same content, built again
        unfinished.rename(folder)
        _write_json(home / f"{name}.json", {"version": version, "folder": folder.name, "sources": in_order})
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    for other in home.glob(f"{name}.*/"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    return Index(folder)


def _write_columns(folder: Path, columns: Columns) -> None:
    folder.mkdir()
    for name, values in columns.items():
        np.save(folder / f"{name}.npy", values, allow_pickle=False)
    (folder / "columns.json").write_text(json.dumps(list(columns)), encoding="utf-8")


def _write_json(path: Path, content: Any) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(content, indent=1), encoding="utf-8")
    unfinished.replace(path)


def _mapped(file: Path) -> np.ndarray:
    # The base class: indexing np.memmap itself is several times slower.
    return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    lock = FileLock(file)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        log.info("Waiting for another process that builds the index (%s).", file)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
