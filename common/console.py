"""The console that a program writes to: it may be closed, a pipe that nobody reads any more, or on a full disk."""

import os
import select
import sys
from contextlib import suppress
from io import UnsupportedOperation
from typing import Any

_STREAMS = {"stdin": 0, "stdout": 1, "stderr": 2}


def open_closed_streams() -> None:
    """Connect standard streams that were closed before Python started, as by `>&-`, to nothing: the next file that the
    program opens would take the place of one, and what is printed would go into it."""
    for name, descriptor in _STREAMS.items():
        if getattr(sys, name) is None:
            _connect_to_nothing(descriptor)
            setattr(sys, name, open(descriptor, "r" if name == "stdin" else "w", encoding="utf-8", closefd=False))


def is_lost() -> bool:
    """Whether a part of what this program prints can be read by nobody."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            poll.register(stream.fileno(), select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def drop_what_is_left() -> None:
    """Let nothing that was printed and not taken fail once more when Python ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _connect_to_nothing(stream.fileno())
            stream.flush()


def outlive_console() -> None:
    """From now on go on without a console that takes no more: the results of this program are files."""
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), _Outlived):
            setattr(sys, name, _Outlived(getattr(sys, name)))


class _Outlived:
    """A text stream that drops what it cannot write any more."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except OSError:
            self._go_on_without()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._go_on_without()

    def _go_on_without(self) -> None:
        with suppress(OSError, UnsupportedOperation):
            _connect_to_nothing(self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _connect_to_nothing(descriptor: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    if nothing != descriptor:
        os.dup2(nothing, descriptor)
        os.close(nothing)
