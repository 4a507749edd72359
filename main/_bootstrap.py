"""Puts the repository root on sys.path, so that the entry points run from any folder. The only such line."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
