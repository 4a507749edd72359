"""A part of a reader that stands for the whole."""

import numpy as np

from data.schema import Reader, Record


def spread_evenly(length: int, count: int) -> list[int]:
    """At most `count` different indices below `length`, in rising order."""
    return np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()


class EvenSubset:
    """At most `count` records of a reader, spread evenly over it, with its own names: a `data.schema.Reader`."""

    def __init__(self, reader: Reader, count: int):
        self.reader, self.indices = reader, spread_evenly(len(reader), count)
        self.name, self.hand_model, self.left_out = reader.name, reader.hand_model, reader.left_out
        self.summary = f"{reader.summary} Used: {len(self.indices)} of them."

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Record:
        return self.reader.read(self.indices[index])

    def sample_id(self, index: int) -> str:
        return self.reader.sample_id(self.indices[index])

    def describe(self, index: int) -> dict[str, str | int]:
        return self.reader.describe(self.indices[index])

    def sources(self) -> dict[str, str]:
        return self.reader.sources()

    def broken(self) -> dict[str, list[str]]:
        return self.reader.broken()
