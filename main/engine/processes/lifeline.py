"""Every process of a run learns at once when another is gone, and all end with one sentence and one exit code.

Each process holds a connection to the main one, on which nothing is sent while all is well. The kernel closes the
connection of a process that dies, however it dies, and its keepalive probes find a machine that is gone: neither the
backend of the collectives nor what a process is busy with makes a difference. The main process hears who is lost or
what has failed, tells it once and ends the others, which may be waiting in a collective that will never finish.
"""

import contextlib
import json
import multiprocessing
import os
import re
import secrets
import socket
import sys
import threading
import time
import traceback
from typing import Any, NamedTuple, NoReturn, TextIO

import torch.distributed as dist

from common.errors import EXIT_ENVIRONMENT, EXIT_INTERRUPTED, EXIT_OK, UserError, as_user_error

RERUN = "All processes have ended. Run the command again; train.py goes on from its last snapshot with --continue."

# A machine that does not answer is given up after 10 + 4 × 5 seconds.
_KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 4}
_GREETING_TIMEOUT = 10.0    # seconds for a connection to say who it is
_GRACE = 2.0                # seconds in which the cause of a broken collective must have been heard
_ANSWER_TIMEOUT = 10.0      # seconds for the main process to end another that has failed
_BROKEN_COLLECTIVE = re.compile("timed? ?out|closed by peer|reset by peer|broken pipe|pair closure", re.IGNORECASE)


class _Peer(NamedTuple):
    """The other end of a connection."""

    rank: int
    host: str
    connection: socket.socket
    lines: TextIO

    def tell(self, **message: Any) -> None:
        """Send a message; a peer that is gone does not hear it."""
        with contextlib.suppress(OSError):
            self.connection.sendall(f"{json.dumps(message)}\n".encode())

    def __str__(self) -> str:
        return f"Process {self.rank} on {self.host}"


class Lifeline:
    """The connections of one process; made by all processes of a group together.

    store: of the group.  address: of the main process, as the others reach it.  timeout: seconds to wait for them all.
    names_the_lost: whether a lost process is told here; a launcher that saw it die can say more.
    saving: hold it while a file is written that must be finished although another process is gone.
    """

    def __init__(self, store: dist.Store, address: str, rank: int, world_size: int, *, timeout: float,
                 names_the_lost: bool):
        self.rank, self.names_the_lost = rank, names_the_lost
        self.saving = threading.Lock()
        self._ending = threading.Lock()     # taken by the first reason to end, and never given back
        self._broken: set[int] = set()      # ranks whose collectives failed
        self._peers = [_join(store, address, rank, timeout)] if rank else _meet(store, address, world_size, timeout)
        for peer in self._peers:
            threading.Thread(target=self._listen, args=[peer], name=f"lifeline {peer.rank}", daemon=True).start()

    def leave(self) -> None:
        """Tell the others that this process ends in order."""
        for peer in self._peers:
            peer.tell(code=EXIT_OK)

    def fail(self, error: BaseException) -> NoReturn:
        """End all processes because of an error in this one. It is told unless another process had a reason before."""
        code, text, is_broken = 1, "".join(traceback.format_exception(error)).rstrip(), False
        if told := as_user_error(error):
            code, text = told.exit_code, f"error: {told}"
        elif isinstance(error, KeyboardInterrupt):
            code, text = EXIT_INTERRUPTED, "interrupted"
        elif isinstance(error, RuntimeError):
            is_broken = isinstance(error, dist.DistError) or bool(_BROKEN_COLLECTIVE.search(str(error)))
        if self.rank == 0:
            self._judge(0, code, text, is_broken)
        main = self._peers[0]
        main.tell(code=code, text=text, is_broken=is_broken)
        time.sleep(_ANSWER_TIMEOUT)
        if is_broken:
            code, text = EXIT_ENVIRONMENT, self._for_all_here(f"error: {main} does not answer: does it hang? {RERUN}")
        _leave(code, text)

    def _listen(self, peer: _Peer) -> None:
        """Wait for the only thing that a peer ever says; if it ends without, it is gone."""
        with contextlib.suppress(OSError):      # reset, or the probes had no answer
            for line in peer.lines:
                message = json.loads(line)
                if message["code"] == EXIT_OK:
                    return
                if self.rank:
                    _leave(message["code"])
                where = "" if peer.host == socket.gethostname() else f"{peer}: "
                self._judge(peer.rank, message["code"], where + message["text"], message["is_broken"])
        text = f"error: {peer} is gone: it was killed, it crashed, or its machine is down. {RERUN}"
        if self.rank == 0:
            self._end_all(EXIT_ENVIRONMENT, text if self.names_the_lost else "")
        _leave(EXIT_ENVIRONMENT, self._for_all_here(text) if self.names_the_lost else "")

    def _for_all_here(self, text: str) -> str:
        """The text in one process of each machine that misses the main process, none in its others."""
        return text if self.rank == 1 or os.environ["LOCAL_RANK"] == "0" else ""

    def _judge(self, rank: int, code: int, text: str, is_broken: bool) -> NoReturn:
        """End all because of a failure, or because of what is behind it: a collective breaks when others fail."""
        if is_broken:
            self._broken.add(rank)
            time.sleep(_GRACE)
            hanging = [str(peer) for peer in self._peers if peer.rank not in self._broken]
            if 0 not in self._broken:
                hanging.append("Process 0")
            if hanging:
                code, text = EXIT_ENVIRONMENT, (
                    f"error: {', '.join(hanging)} did not take part in a step that the others waited for "
                    f"until their time ran out: does it hang? {RERUN}")
        self._end_all(code, text)

    def _end_all(self, code: int, text: str) -> NoReturn:
        self._ending.acquire()
        self.saving.acquire()
        for peer in self._peers:
            peer.tell(code=code)
        _leave(code, text)


def _meet(store: dist.Store, address: str, world_size: int, timeout: float) -> list[_Peer]:
    """The main process's end: wait until all others have come."""
    is_local = address in ("127.0.0.1", "localhost")
    either = socket.has_dualstack_ipv6() and not is_local
    server = socket.create_server((address if is_local else "", 0), backlog=world_size, dualstack_ipv6=either,
                                  family=socket.AF_INET6 if either else socket.AF_INET)
    secret = secrets.token_hex(16)
    store.set("lifeline", json.dumps({"port": server.getsockname()[1], "secret": secret, "host": socket.gethostname()}))
    peers: dict[int, _Peer] = {}
    deadline = time.monotonic() + timeout
    with server:
        while len(peers) < world_size - 1:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                missing = ", ".join(str(rank) for rank in range(1, world_size) if rank not in peers)
                raise UserError(f"Processes {missing} of {world_size} have not come within {timeout:g} s.",
                                "Look at what they printed.", EXIT_ENVIRONMENT) from None
            with contextlib.suppress(OSError, ValueError, KeyError):     # somebody else's connection
                connection.settimeout(_GREETING_TIMEOUT)
                lines = connection.makefile("r", encoding="utf-8")
                greeting = json.loads(lines.readline(4096))
                if secrets.compare_digest(greeting["secret"], secret):
                    peers[greeting["rank"]] = _kept_alive(greeting["rank"], greeting["host"], connection, lines)
    return [peers[rank] for rank in sorted(peers)]


def _join(store: dist.Store, address: str, rank: int, timeout: float) -> _Peer:
    """Another process's end: connect to the main one."""
    metadata = json.loads(store.get("lifeline"))
    try:
        connection = socket.create_connection((address, metadata["port"]), timeout=timeout)
    except OSError as error:
        raise UserError(f"Process {rank} on {socket.gethostname()} cannot reach the main process at {address}, port "
                        f"{metadata['port']}: {error}.", "Processes of a run need all ports between their machines.",
                        EXIT_ENVIRONMENT) from None
    peer = _kept_alive(0, metadata["host"], connection, connection.makefile("r", encoding="utf-8"))
    peer.tell(secret=metadata["secret"], rank=rank, host=socket.gethostname())
    return peer


def _kept_alive(rank: int, host: str, connection: socket.socket, lines: TextIO) -> _Peer:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    return _Peer(rank, host, connection, lines)


def _leave(code: int, text: str = "") -> NoReturn:
    """End this process although its main thread may be waiting for something that will never come."""
    if text:
        print(text, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    for loader in multiprocessing.active_children():
        loader.kill()
    os._exit(code)
