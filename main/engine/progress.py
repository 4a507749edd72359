"""Where a training stands, and how it ended."""

import signal
from dataclasses import dataclass
from enum import IntEnum


class Outcome(IntEnum):
    """How a training ended; the value is the exit code of its process."""

    COMPLETE = 0
    DIVERGED = 3        # a loss or gradient stopped being finite
    HUNG_UP = 129       # by SIGHUP, with the state saved
    INTERRUPTED = 130   # by SIGINT, with the state saved
    TERMINATED = 143    # by SIGTERM, with the state saved

    @classmethod
    def of_signal(cls, number: int) -> "Outcome":
        return cls(128 + number)

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self - 128).name}" if self > 128 else self.name.lower()


@dataclass
class Progress:
    """What is done so far: training goes on in epoch `epoch`, after `batch` of its batches."""

    samples_per_batch: int                  # of all processes together
    step: int = 0                           # optimiser steps
    epoch: int = 0                          # epochs
    batch: int = 0                          # batches of this epoch, in each process
    first_sample: int = 0                   # position in the epoch's order at which these batches begin
    best: tuple[int, float] | None = None   # the epoch with the lowest validation score, and that score in mm

    @property
    def sample(self) -> int:
        """Position in the epoch's order, of all processes together, at which training goes on."""
        return self.first_sample + self.batch * self.samples_per_batch

    def go_on_at(self, sample: int) -> None:
        """Go on at a position that batches of another size may have led to."""
        self.batch, self.first_sample = divmod(sample, self.samples_per_batch)

    def end_epoch(self, score: float | None) -> None:
        """Count the epoch.  score: of its validation; None: it was not validated."""
        if score is not None and (self.best is None or score < self.best[1]):
            self.best = (self.epoch, score)
        self.epoch, self.batch, self.first_sample = self.epoch + 1, 0, 0
