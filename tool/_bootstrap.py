"""Imported first by whatever is run as a program: puts the repository on sys.path (the only such line), lets Ctrl-C end
the program quietly while it still imports, and answers `--help` before anything slow is imported."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


def _start() -> None:
    from common.errors import leave_on_interrupt  # needs the standard library only
    from main.arguments import PARSERS

    leave_on_interrupt()
    program = Path(sys.argv[0]).resolve()
    if program.parent == ROOT / "main" and program.name in PARSERS and {"-h", "--help"} & set(sys.argv[1:]):
        PARSERS[program.name]().parse_args()


_start()
