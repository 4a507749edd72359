"""Several processes of one run, forked from the tests: what a batch system starts, in a tenth of a second."""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.utils.tensorboard  # noqa: F401   imported once here, not in every process

from common.errors import run_entry_point
from main.engine.processes.launch import Process, launch


class Ended(NamedTuple):
    """How one process of a group ended."""

    code: int       # minus the signal that killed it
    errors: str     # what it wrote to stderr


def run_group(worker: Callable[[Process], int], folder: Path, *, size: int = 2, seconds: float = 30) -> list[Ended]:
    """Run `worker` in `size` CPU processes with gloo, described by their environment; by rank, how each ended.

    One that was stopped is killed when the others have ended. AssertionError if they have not ended after `seconds`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    children = {rank: _fork(worker, folder / f"errors_{rank}.txt", {
        "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    }) for rank in range(size)}
    codes: dict[int, int] = {}
    stopped: set[int] = set()
    deadline = time.monotonic() + seconds
    while len(codes) < len(children) and time.monotonic() < deadline:
        for rank in children.keys() - codes.keys():
            child, status = os.waitpid(children[rank], os.WNOHANG | os.WUNTRACED)
            if child and os.WIFSTOPPED(status):
                stopped.add(rank)
            elif child:
                codes[rank] = os.waitstatus_to_exitcode(status)
        if len(codes) == len(children) - len(stopped):       # as the batch system does when the others have ended
            for rank in stopped - codes.keys():
                os.kill(children[rank], signal.SIGKILL)
        time.sleep(0.01)
    hanging = sorted(children.keys() - codes.keys())
    for rank in hanging:
        os.kill(children[rank], signal.SIGKILL)
        os.waitpid(children[rank], 0)
    errors = {rank: (folder / f"errors_{rank}.txt").read_text() for rank in children}
    assert not hanging, f"processes {hanging} have not ended after {seconds} s: {errors}"
    return [Ended(codes[rank], errors[rank]) for rank in children]


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def _fork(worker: Callable[[Process], int], errors: Path, environment: dict[str, object]) -> int:
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        with open(errors, "w") as file:
            os.dup2(file.fileno(), 2)
        sys.stderr, sys.stdout = os.fdopen(2, "w", buffering=1), open(os.devnull, "w")
        os.environ.update({name: str(value) for name, value in environment.items()})
        torch.set_num_threads(1)
        run_entry_point(lambda: launch(worker, "cpu"))
    except SystemExit as left:
        code = left.code
    finally:
        sys.stderr.flush()
        os._exit(code)
