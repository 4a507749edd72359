"""Puts the repository root on sys.path, so that the entry points run from any folder (the only such line), and lets
Ctrl-C end them quietly while they still import."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.errors import leave_on_interrupt  # noqa: E402   needs the standard library only

leave_on_interrupt()
