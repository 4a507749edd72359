"""Imported first by whatever is run as a program: lets Ctrl-C end the program quietly while it still imports, lets it
print any text whatever the terminal can show, and answers `--help` before anything slow is imported.

A program puts the repository on sys.path before, itself: as a script, by `python -m` and under PYTHONSAFEPATH that is
the one way that does not depend on how Python was started.
"""

import sys
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path

from common.errors import leave_on_interrupt  # needs the standard library only

ROOT = Path(__file__).resolve().parents[1]


def _start() -> None:
    leave_on_interrupt()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):           # a terminal or locale may have no "×", a file name any bytes
            stream.reconfigure(errors="backslashreplace")
    program = Path(sys.argv[0]).resolve()
    if {"-h", "--help"} & set(sys.argv[1:]) and program.parent in (ROOT / "main", ROOT / "tool"):
        parsers = import_module(f"{program.parent.name}.arguments").PARSERS
        if program.name in parsers:
            parsers[program.name](sys.modules["__main__"].__doc__).parse_args()


_start()
