"""Work that processes share: in order, and told when one of them is lost."""

import multiprocessing
import os
import signal
import time

import pytest

from common.errors import UserError
from common.workers import map_in_processes


def square(number: int) -> int:
    time.sleep(0.05 * (number % 3))     # later jobs are finished first
    return number * number


def end(number: int) -> int:
    """As the kernel does where the memory is full."""
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fail(number: int) -> int:
    raise UserError(f"number {number}")


def signal_all(number: int) -> int:
    """What a terminal and a batch system send to every process."""
    for asking in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(os.getpid(), asking)
    time.sleep(0.05)
    return number


@pytest.mark.parametrize("chunk", [1, 3])
def test_results_come_in_the_order_of_their_jobs(chunk):
    assert list(map_in_processes(square, range(8), 2, chunk=chunk)) == [0, 1, 4, 9, 16, 25, 36, 49]


def test_a_process_that_is_lost_is_told_and_not_waited_for():
    start, found = time.monotonic(), []
    with pytest.raises(UserError, match="One of the processes that shared the work is gone") as caught:
        found.extend(map_in_processes(end, range(20), 2))
    assert caught.value.exit_code == 5 and found == [0, 1, 2][:len(found)] and time.monotonic() - start < 20


def test_a_users_error_in_a_process_is_the_users_error_here():
    with pytest.raises(UserError, match="number 0"):
        list(map_in_processes(fail, range(4), 2))


def test_the_processes_are_deaf_to_what_all_are_signalled():
    assert list(map_in_processes(signal_all, range(4), 2)) == [0, 1, 2, 3]


def test_nothing_runs_on_when_it_is_left_early():
    results = map_in_processes(square, range(1000), 2)
    assert next(results) == 0 and len(multiprocessing.active_children()) == 2
    results.close()
    assert multiprocessing.active_children() == []
