"""The commands and Python programs that README.md and docs/ tell people to type."""

import re
import shlex
from collections.abc import Sequence
from itertools import dropwhile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STARTER = r"(python|bash|torchrun|sbatch|srun)\s"


class Command(NamedTuple):
    """A command of a page."""

    page: str               # relative to the repository
    folder: str             # where the lines before it went, relative to the repository
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


class Program(NamedTuple):
    """A `python` block of a page."""

    page: str
    text: str


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def without_blocks(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[Command]:
    """The commands in a page's `bash` blocks. What stands in brackets may be left out by a reader, but not here."""
    found = []
    for block in blocks(page, "bash"):
        folder, clone = ".", ""
        for line in re.split(r"\n|&&", block.replace("\\\n", " ")):
            words = [word.strip("[]") for word in shlex.split(line, comments=True)]
            if words[:1] == ["cd"]:
                folder = "." if words[1] == clone else words[1]
            elif words:
                clone = words[-1] if words[:2] == ["git", "clone"] else clone
                found.append(Command(name(page), folder, tuple(words)))
    return found


def mentioned_commands(page: Path) -> list[Command]:
    """The commands in a page's sentences; they start in the root of the repository."""
    spans = [span for span in re.findall(r"`([^`]+)`", without_blocks(page)) if re.match(STARTER, span)]
    return [Command(name(page), ".", tuple(shlex.split(span))) for span in spans]


def all_commands() -> list[Command]:
    return [command for page in PAGES for command in commands(page)]


def all_mentioned_commands() -> list[Command]:
    return [command for page in PAGES for command in mentioned_commands(page)]


def all_programs() -> list[Program]:
    return [Program(name(page), text) for page in PAGES for text in blocks(page, "python")]


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
