"""Imported first by whatever is run as a program: puts the repository on sys.path (the only such line), lets Ctrl-C end
the program quietly while it still imports, lets it print any text whatever the terminal can show, and answers `--help`
before anything slow is imported.

Programs find it in their own folder, those that `python -m` starts at the root. PYTHONSAFEPATH leaves both out: then it
is found by what tool/setup_env.sh leaves in the environment.
"""

import sys
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path

# Looked for and not counted: the links to this file in other folders may have been copied as files.
ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "common" / "files.py").is_file())
if sys.path[0] != str(ROOT):
    sys.path.insert(0, str(ROOT))


def _start() -> None:
    from common.console import open_closed_streams  # these two need the standard library only
    from common.errors import leave_on_interrupt

    open_closed_streams()
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
