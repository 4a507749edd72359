"""A part of a reader that stands for the whole, and several readers as one."""

from collections import Counter

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

    def hand_type(self, index: int) -> str:
        return self.reader.hand_type(self.indices[index])

    def describe(self, index: int) -> dict[str, str | int]:
        return self.reader.describe(self.indices[index])

    def sources(self) -> dict[str, str]:
        return self.reader.sources()

    def broken(self) -> dict[str, list[str]]:
        return self.reader.broken()


class JoinedReader:
    """The records of several readers of one dataset, one reader after the other: a `data.schema.Reader`."""

    def __init__(self, readers: list[Reader]):
        self.readers, self.ends = readers, np.cumsum([len(reader) for reader in readers])
        self.name, self.hand_model = readers[0].name, readers[0].hand_model
        self.summary = "\n".join(reader.summary for reader in readers)
        self.left_out: dict[str, int] = Counter()
        for reader in readers:
            self.left_out.update(reader.left_out)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def read(self, index: int) -> Record:
        reader, own = self._find(index)
        return reader.read(own)

    def sample_id(self, index: int) -> str:
        reader, own = self._find(index)
        return reader.sample_id(own)

    def hand_type(self, index: int) -> str:
        reader, own = self._find(index)
        return reader.hand_type(own)

    def describe(self, index: int) -> dict[str, str | int]:
        reader, own = self._find(index)
        return reader.describe(own)

    def sources(self) -> dict[str, str]:
        """As of one reader; each name begins with the position of its reader."""
        return {f"{position}/{name}": sha256 for position, reader in enumerate(self.readers)
                for name, sha256 in reader.sources().items()}

    def broken(self) -> dict[str, list[str]]:
        parts = [reader.broken() for reader in self.readers]
        return {reason: [name for part in parts for name in part.get(reason, [])]
                for reason in dict.fromkeys(reason for part in parts for reason in part)}

    def _find(self, index: int) -> tuple[Reader, int]:
        position = int(np.searchsorted(self.ends, index, side="right"))
        return self.readers[position], index - int(self.ends[position]) + len(self.readers[position])
