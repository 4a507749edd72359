"""Errors that a user can cause, and the exit codes of every entry point."""

import errno
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from common.console import drop_what_is_left, is_lost
from common.memory import keep_freed_memory

EXIT_OK = 0
EXIT_USER_ERROR = 2     # config, path, file or flag: fix it and run again
EXIT_DIVERGED = 3       # a loss or gradient stopped being finite
EXIT_SOME_FAILED = 4    # finished, but some inputs failed
EXIT_ENVIRONMENT = 5    # the machine failed: disk, worker or peer; train.py goes on with --continue
EXIT_INTERRUPTED = 130  # Ctrl-C
EXIT_UNREAD = 141       # nobody reads what is printed, as after `| head`: a tool that only prints leaves


class UserError(Exception):
    """Something the user can fix. Shown as one paragraph without a traceback.

    message: what is wrong, naming the file, the field and the value.
    hint: what to do about it.
    exit_code: 2 unless the error has a code of its own.
    """

    def __init__(self, message: str, hint: str = "", exit_code: int = EXIT_USER_ERROR):
        super().__init__(message)
        self.message, self.hint, self.exit_code = message, hint, exit_code

    def __str__(self) -> str:
        return printable(f"{self.message} {self.hint}".strip())

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes send their errors back by pickling them.
        return type(self), (self.message, self.hint, self.exit_code)


# What the system says of a path that cannot be one of a file here, or not for this user.
_WRONG_PATH = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)


# What it says where the machine has no more to give.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOMEM)


def is_exhausted(error: BaseException) -> bool:
    """Whether the machine, and not a file, is why something failed: it is out of space, memory or open files. Torch and
    processes that hand on an error leave but the text of what the system said."""
    if isinstance(error, OSError) and error.errno:
        return error.errno in _EXHAUSTED
    return isinstance(error, MemoryError) or isinstance(error, (OSError, RuntimeError)) and any(
        text in str(error) for text in (*map(os.strerror, _EXHAUSTED), "out of memory", "allocate memory"))


def as_user_error(error: BaseException) -> UserError | None:
    """The error as one that the user can fix; None for one of the program. Whoever looks for a file need not expect
    that its path is too long, its folder closed or the disk full: that is told here."""
    if isinstance(error, UserError):
        return error
    if is_exhausted(error):
        what = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        return UserError(f"The machine has no more to give: {what.strip().rstrip('.')[:300]}.",
                         "Free memory, disk or /dev/shm, raise its limits (ulimit -a), or ask for less: smaller "
                         "batches (train.batch_size, test.batch_size) or no loader processes (data.workers=0).",
                         EXIT_ENVIRONMENT)
    if isinstance(error, OSError) and error.errno in _WRONG_PATH and isinstance(error.filename, (str, os.PathLike)):
        return UserError(f"{os.fspath(error.filename)} cannot be used: {error.strerror}.",
                         "Give another path, or make this one accessible.")
    return None


def printable(text: str) -> str:
    """Text on one line that changes nothing in a terminal, whatever names are in it: letters that do not print are
    escaped."""
    with suppress(UnicodeEncodeError):      # names that an ASCII locale took apart into bytes
        text = text.encode(errors="surrogateescape").decode(errors="surrogateescape")
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def leave_on_interrupt() -> None:
    """Until `run_entry_point`, let Ctrl-C end the process at once: while modules are imported nothing is to be saved,
    and an exception in the middle of an import comes out as any other."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:     # not where a shell has it ignored
        signal.signal(signal.SIGINT, _leave)


def _leave(*_: object) -> None:
    os.write(sys.stderr.fileno(), b"interrupted\n")
    os._exit(EXIT_INTERRUPTED)


def run_entry_point(main: Callable[[], int | None]) -> None:
    """Call `main` and leave the process with its exit code; user errors print one paragraph."""
    keep_freed_memory()
    try:
        if signal.getsignal(signal.SIGINT) is _leave:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = main() or EXIT_OK
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except Exception as error:
        told = as_user_error(error)
        if isinstance(error, OSError) and is_lost():        # as by `| head`
            code = EXIT_UNREAD
        elif told is None:
            raise
        else:
            with suppress(OSError):
                print(f"error: {told}", file=sys.stderr)
            code = told.exit_code
    drop_what_is_left()
    sys.exit(code)
