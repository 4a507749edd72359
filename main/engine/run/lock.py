"""One run at a time in a folder: a locked file, and beside it a text that says who holds it."""

import contextlib
import logging
import os
import platform
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from common.errors import UserError
from common.files import cannot_write, write_atomically
from main.engine.processes.launch import Process

log = logging.getLogger(__name__)
_MAX_TEXT = 200     # of the holder's file, which anything may have been written to


@contextlib.contextmanager
def run_lock(file: Path, process: Process, hint: str) -> Iterator[None]:
    """Hold the lock `file` while entered, in the main process for all. UserError naming the holder if another run has
    it; `hint` is what to do then.

    The system takes the lock from a process that ends, however it ends; loader processes never have it. Other machines
    see it on file systems that carry flock between them (NFS with its lock service, Lustre mounted with `flock`,
    CephFS). Where flock is unknown, a marker file stands for it, which a run killed on another machine leaves behind;
    where locks fail, a warning says that nothing guards the folder.
    """
    with contextlib.ExitStack() as held:
        if process.is_main:
            held.enter_context(_held(file, hint))
        process.gather(None)        # nobody begins before the main process has the lock
        yield


@contextlib.contextmanager
def _held(file: Path, hint: str) -> Iterator[None]:
    lock, holder = FileLock(file), file.with_name(f"{file.name}.txt")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(f"{file.parent} is in use by {_read(holder)}.", hint) from None
    except OSError as error:
        if not file.is_file():
            raise cannot_write(file, error) from None
        log.warning("%s cannot be locked (%s): another run in its folder would not be noticed.", file, error.strerror)
    try:
        started = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        text = f"process {os.getpid()} on {platform.node()} since {started}\n"
        write_atomically(holder, lambda out: out.write(text.encode()))
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


def _read(holder: Path) -> str:
    """What the holder says of itself; it may not have come to that yet."""
    with contextlib.suppress(OSError):
        text = holder.read_text(encoding="utf-8", errors="replace").strip()[:_MAX_TEXT]
        if text:
            return text
    return "another process"
