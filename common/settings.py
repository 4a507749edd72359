"""What the keys of a configuration may hold, said where each is defined: `epochs: Count`, `root: FilePath`,
`lr: Annotated[float, Range(1e-9, 10)]`. `main.config` reads by it.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, both included; infinity and NaN never are."""

    low: float
    high: float


@dataclass(frozen=True)
class PathOr:
    """A text that names a file or folder, unless it is empty or one of these words."""

    words: tuple[str, ...] = ()


Count = Annotated[int, Range(1, 10**9)]
CountOr0 = Annotated[int, Range(0, 10**9)]
Share = Annotated[float, Range(0, 1)]
Weight = Annotated[float, Range(0, 1e9)]
FilePath = Annotated[str, PathOr()]


def fixes(what: str, default: Any) -> Any:
    """A key that decides something for good: which "model" weights belong to, or what a "score" of the validation
    means."""
    return field(default=default, metadata={"fixes": what})
