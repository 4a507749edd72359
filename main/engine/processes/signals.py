"""SIGINT, SIGTERM and SIGHUP as a request to stop at the next safe point."""

import os
import signal
from types import FrameType
from typing import Any


class StopRequest:
    """While entered, remembers SIGINT, SIGTERM or SIGHUP in `signal` instead of dying; a second SIGINT ends at once. A
    SIGHUP that is ignored, as under nohup, stays ignored.

    Ctrl-C in a terminal reaches a process once from the terminal and once more, as SIGTERM, from torchrun's launcher:
    only a repeated SIGINT is taken for impatience.
    """

    def __init__(self) -> None:
        self.signal = 0     # number of the signal, 0 for none
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        for number in (signal.SIGINT, signal.SIGTERM, *(() if ignored else (signal.SIGHUP,))):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == self.signal == signal.SIGINT:
            os._exit(128 + number)
        self.signal = self.signal or number
