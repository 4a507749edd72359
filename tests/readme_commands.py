"""The commands that README.md and docs/ tell people to type."""

import re
import shlex
from collections.abc import Sequence
from itertools import dropwhile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


class Command(NamedTuple):
    """A line of a page's `bash` block."""

    page: str
    folder: str             # where the lines before it went, relative to the repository
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def commands(page: Path) -> list[Command]:
    """The commands of a page in their order. What stands in brackets may be left out by a reader, but not here."""
    found = []
    for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE):
        folder = "."
        for line in block.replace("\\\n", " ").splitlines():
            words = [word.strip("[]") for word in shlex.split(line, comments=True)]
            if words[:1] == ["cd"]:
                folder = words[1]
            elif words:
                found.append(Command(page.name, folder, tuple(words)))
    return found


def all_commands() -> list[Command]:
    return [command for page in PAGES for command in commands(page)]


def unwrapped(words: Sequence[str]) -> list[str]:
    """The words of the command that a shell, a batch system or variables before it start in the end."""
    while "=" in words[0]:
        words = words[1:]
    if words[0] == "srun":
        return unwrapped(list(dropwhile(lambda word: word.startswith("-"), words[1:])))
    if tuple(words[:2]) == ("bash", "-c"):
        text = re.sub(r"\$\([^)]*\)|\$\w+", "1", words[2])       # what the shell would put there
        return unwrapped(shlex.split(text.replace("\\\n", " ")))
    return list(words)
