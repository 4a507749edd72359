"""Samples that cannot be used: named in the log when they are first met, and counted over all processes."""

import logging
from collections import Counter

from common.errors import UserError, printable
from data.checks import Reason
from data.schema import Reader
from main.engine.processes.launch import Process

log = logging.getLogger(__name__)
MAX_NAMED = 10      # paths in an error message; the log names all


class BadSamples:
    """The unusable samples that any process has met, the same in every process.

    It is no part of a snapshot: a run that goes on counts anew, since what is still bad is met again within an epoch,
    and what was repaired meanwhile is not.
    """

    def __init__(self, reader: Reader, process: Process):
        self.reader, self.process = reader, process
        self.faults: dict[int, int] = {}    # index: code of a Reason

    def __len__(self) -> int:
        return len(self.faults)

    def has_new(self, faults: dict[int, int]) -> bool:
        """Whether any of these (index: code of a Reason) has not been counted yet."""
        return not faults.keys() <= self.faults.keys()

    def add(self, faults: dict[int, int]) -> None:
        """Count what this process met and, since all processes call this together, what the others did."""
        met = {index: code for part in self.process.gather(faults) for index, code in part.items()}
        new = {index: code for index, code in sorted(met.items()) if index not in self.faults}
        for index, code in new.items():
            log.warning("%s is left out: %s.", printable(str(self._path(index))), Reason.from_code(code))
        self.faults |= new

    def reasons(self) -> dict[str, int]:
        """Number of samples by reason, the most frequent first."""
        return dict(Counter(str(Reason.from_code(code)) for code in self.faults.values()).most_common())

    def refuse_more_than(self, fraction: float, total: int) -> None:
        """UserError if more than this fraction of the `total` training samples was met."""
        counts = ", ".join(f"{count} {reason}" for reason, count in self.reasons().items())
        text = f"{len(self)} of {total} training samples cannot be used so far: {counts}"
        if len(self) <= fraction * total:
            log.info("%s.", text)
            return
        paths = ", ".join(self._path(index) for index in sorted(self.faults)[:MAX_NAMED])
        raise UserError(f"{text}; that is {len(self) / total:.2%}, and data.max_bad_fraction allows {fraction:.2%}. "
                        f"{'The first are' if len(self) > MAX_NAMED else 'They are'} {paths}.",
                        "tool/verify_data.py tells what is wrong with them. Repair them, or raise "
                        "data.max_bad_fraction.")

    def _path(self, index: int) -> str:
        return str(self.reader.describe(index)["path"])
