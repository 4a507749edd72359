"""Work shared among processes that are started for it."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from typing import TypeVar

from common.errors import EXIT_ENVIRONMENT, UserError
from common.signals import obey_parent_alone, signals_held

Job = TypeVar("Job")
Result = TypeVar("Result")


def map_in_processes(function: Callable[[Job], Result], jobs: Iterable[Job], workers: int, *,
                     prepare: Callable[[], None] | None = None, chunk: int = 1) -> Iterator[Result]:
    """`function(job)` of each job, in their order, from processes that call `prepare` first.

    chunk: jobs that a process is given at a time. The processes end at once if this is left early. UserError with exit
    code 5 if one of them is lost, for which a multiprocessing.Pool would wait for ever.
    """
    others = set(multiprocessing.active_children())
    # Spawned: forking a process that has used torch's threads can hang.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (prepare,))
    resource_tracker.ensure_running()       # which spawning needs, and whose start lets signals through again
    try:
        with signals_held():
            results = pool.map(function, jobs, chunksize=chunk)
        # `yield from` would cancel the rest before the processes are killed, and the pool's thread trips over that.
        for result in results:      # noqa: UP028
            yield result
    except BrokenProcessPool:
        raise UserError("One of the processes that shared the work is gone: it was killed, or it crashed.",
                        "Most often the memory is full: try fewer with --workers. What is finished is kept, and the "
                        "same command goes on from there.", EXIT_ENVIRONMENT) from None
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(prepare: Callable[[], None] | None) -> None:
    obey_parent_alone()
    if prepare is not None:
        prepare()
