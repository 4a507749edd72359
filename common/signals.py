"""Signals that reach a program together with its worker processes: from a terminal, a batch system or `timeout`."""

import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)    # a program to stop
_PR_SET_PDEATHSIG = 1                                       # of prctl in linux/prctl.h


def signal_at_death_of_parent(number: int) -> None:
    """Let this process get a signal when the one that started it ends in whatever way."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


@contextmanager
def signals_held() -> Iterator[None]:
    """Within it, signals that ask to stop wait. Processes that are started meanwhile never see them, until
    `obey_parent_alone` says which they listen to."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_parent_alone() -> None:
    """In a worker process, started with `signals_held`: end when the parent says so by SIGTERM, or ends. What all
    processes are signalled is the parent's business, which needs its workers until it has saved its state."""
    parent = os.getppid()
    signal_at_death_of_parent(signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_BLOCK, _ASKING)
    threading.Thread(target=_await_parent, args=(parent,), daemon=True).start()


def _await_parent(parent: int) -> None:
    while signal.sigwaitinfo(_ASKING).si_pid != parent:
        pass
    os._exit(0)
