"""Children of the test process that die on purpose: after `os.fork` everything is imported already."""

import itertools
import os
import signal
from collections.abc import Callable

from common.errors import UserError


def run_in_fork(function: Callable[[], int | None]) -> int:
    """The wait status of a child that runs `function` and leaves with its code, or with that of a UserError."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(function() or 0)
        except UserError as error:
            os._exit(error.exit_code)
        except BaseException:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(owner: object, name: str, call: int, act: Callable[[], None], *, after: bool) -> None:
    """Let `act` happen at the `call`-th call of owner.name, before it does anything or when it has done everything."""
    calls, original = itertools.count(1), getattr(owner, name)

    def watched(*args, **kwargs):
        is_it = next(calls) == call
        if is_it and not after:
            act()
        result = original(*args, **kwargs)
        if is_it and after:
            act()
        return result

    setattr(owner, name, watched)


def count_calls(owner: object, name: str) -> list[None]:
    """A list that grows by one with each call of owner.name."""
    counted, original = [], getattr(owner, name)

    def watched(*args, **kwargs):
        counted.append(None)
        return original(*args, **kwargs)

    setattr(owner, name, watched)
    return counted
