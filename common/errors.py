"""Errors that a user can cause, and the exit codes of every entry point."""

import sys
from collections.abc import Callable

EXIT_OK = 0
EXIT_USER_ERROR = 2     # config, path, file or flag: fix it and run again
EXIT_DIVERGED = 3       # a loss or gradient stopped being finite
EXIT_SOME_FAILED = 4    # finished, but some inputs failed
EXIT_INTERRUPTED = 130  # Ctrl-C


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
        return f"{self.message} {self.hint}".strip()

    def __reduce__(self):
        # Worker processes send their errors back by pickling them.
        return type(self), (self.message, self.hint, self.exit_code)


def run_entry_point(main: Callable[[], int | None]) -> None:
    """Call `main` and leave the process with its exit code; user errors print one paragraph."""
    try:
        code = main() or EXIT_OK
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    sys.exit(code)
