"""Which program, with which libraries: what a result must name so that it can be had again.

The standard library alone is needed here. Nothing that is written into files names a home folder: paths below the
repository are relative to it, and those below the home folder start with `~`.
"""

import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from common.files import ROOT

# All that decides what a run does. Fixed depths in `data`: below data/InterHand26M/data lie a million images.
_SOURCES = ("main/**/*.py", "main/configs/**/*.yaml", "common/**/*.py", "data/*.py", "data/*/*.py",
            "data/synthetic/**/*.py", "tool/**/*.py", "requirements.txt")
_FOLDERS = ("main", "common", "data", "tool", "requirements.txt")
_MAX_NAMED = 20
_REPOSITORY = "{repository}"
_BEFORE, _AFTER = r"(?<![\w.~-])", r"(?![\w.-])"     # round a folder's path inside a longer text: it ends there


def code_revision() -> dict[str, Any]:
    """Which state of the code this is.

    `sources_sha256` tells two states apart in any case. `commit` is git's, None where git or its folder is missing;
    `changed` names the files (at most 20) that differ from that commit.
    """
    revision: dict[str, Any] = {"commit": _git("rev-parse", "HEAD"), "changed": [],
                                "sources_sha256": sources_sha256(ROOT)}
    if revision["commit"]:
        changes = _git("status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--", *_FOLDERS) or ""
        # Two letters and a space before each name; the first line may have lost a leading space.
        revision["changed"] = [entry.split(maxsplit=1)[1] for entry in changes.split("\0") if entry][:_MAX_NAMED]
    return revision


def source_files(root: Path) -> list[Path]:
    """All files that decide what a run does."""
    return sorted({file for pattern in _SOURCES for file in root.glob(pattern)})


def sources_sha256(root: Path) -> str:
    """Digest of the program's files and their names."""
    digest = hashlib.sha256()
    for file in source_files(root):
        digest.update(f"{file.relative_to(root).as_posix()}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _git(*words: str) -> str | None:
    """What git prints, stripped; None if it fails or if the repository is not this folder's own."""
    command = ["git", "-C", str(ROOT), *words]
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(ROOT.parent), "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=10, env=environment)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions() -> dict[str, str | None]:
    """Installed versions of Python and of every package that requirements.txt pins, None for one that is missing."""
    pins = pinned_versions((ROOT / "requirements.txt").read_text(encoding="utf-8"))
    return {"python": platform.python_version()} | {name: _version(name) for name in pins}


def pinned_versions(requirements: str) -> dict[str, str]:
    """Versions by package name, from the lines `name==version`."""
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;#]+)", requirements, flags=re.MULTILINE))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# ---------------------------------------------------------------- paths

def portable(value: Any) -> Any:
    """Plain values with the paths in their texts written without the repository's place and the home folder."""
    if isinstance(value, dict):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(item) for item in value]
    if isinstance(value, (str, os.PathLike)):
        return _without_home(_without_root(os.fspath(value)))
    return value


def portable_command(words: list[str]) -> list[str]:
    """As `portable`, for words that may be relative to any folder: the repository's place becomes `{repository}`."""
    return [_without_home(re.sub(f"{_BEFORE}{re.escape(str(ROOT))}{_AFTER}", _REPOSITORY, word)) for word in words]


def local(text: str) -> str:
    """What `portable` or `portable_command` gave, with this machine's folders."""
    return re.sub(r"(?<![\w~/.-])~(?=/|$)", lambda _: os.path.expanduser("~"), text.replace(_REPOSITORY, str(ROOT)))


def _without_root(text: str) -> str:
    text = re.sub(rf"{_BEFORE}{re.escape(str(ROOT))}/(?=[^/\s])", "", text)
    return re.sub(rf"{_BEFORE}{re.escape(str(ROOT))}{_AFTER}", ".", text)


def _without_home(text: str) -> str:
    home = os.path.expanduser("~")
    for folder in {home, os.path.realpath(home)} - {"/", "~"}:
        text = re.sub(f"{_BEFORE}{re.escape(folder)}{_AFTER}", "~", text)
    # A path may hold bytes that are no text, and any letter is such a byte under an ASCII locale.
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


# ---------------------------------------------------------------- comparing

def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """Dotted keys of nested values that differ, each with `old → new`."""
    before, after = dict(_flat(old)), dict(_flat(new))
    return {key: f"{before.get(key)} → {after.get(key)}" for key in {**before, **after}
            if before.get(key) != after.get(key)}


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value
