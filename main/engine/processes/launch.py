"""Devices and processes: `--gpu` to one process in place, or one process for each GPU under torchrun's launcher."""

import gc
import logging
import os
import re
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from common.console import outlive_console
from common.errors import EXIT_ENVIRONMENT, UserError
from common.signals import signal_at_death_of_parent
from main.arguments import GPU_FORMS
from main.engine.processes.lifeline import RERUN, Lifeline

# How long a process waits for the others in a step. Longer than the main process takes alone for a snapshot on a slow
# disk or for its part of a validation: what is waited for is a process that hangs, since one that dies is heard of.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)

_MEETING_TIMEOUT = timedelta(minutes=10)    # for all processes to start
_SHUTDOWN_SECONDS = 60                      # which a process that is asked to stop has for its step and its snapshot
_GROUP_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_RUN_ID = "lgnet-gpu"                       # of processes that were started here
_NO_CUDA = "There is no CUDA device: running on the CPU."


@dataclass(frozen=True)
class Process:
    """Which of the processes this is, and the device it computes on.

    saving: entered while a file is written that must be finished although another process is gone.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    saving: AbstractContextManager[object] = nullcontext()

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes files."""
        return self.rank == 0

    def maximum(self, values: list[float]) -> list[float]:
        """Element-wise maximum over the processes."""
        if self.world_size == 1:
            return values
        reduced = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(reduced, op=dist.ReduceOp.MAX)
        return reduced.tolist()

    def gather(self, item: Any) -> list[Any]:
        """`item` of every process, by rank. Tensors must be on the CPU."""
        if self.world_size == 1:
            return [item]
        items = [None] * self.world_size
        dist.all_gather_object(items, item)
        return items

    def refuse_difference(self, what: str, mine: str) -> None:
        """UserError unless all processes say the same: machines may not share the files that they should."""
        seen = self.gather((mine, socket.gethostname()))
        (first, first_host), *others = seen
        for rank, (text, host) in enumerate(others, start=1):
            if text != first:
                raise UserError(f"Process 0 on {first_host} reads the {what} {first}, but process {rank} on {host} "
                                f"reads {text}.", "The machines must share the output folder or have equal copies.")

    def spread_buffers(self, model: torch.nn.Module) -> None:
        """Give the model of every process the main process's buffers: a step leaves each with statistics of its own."""
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def parallel(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model with gradients averaged over the processes; the model itself for one process.

        Batch normalisation stays per process, as in the paper's training: each of its GPUs holds 32 samples,
        enough for statistics of its own. The running statistics are the main process's.
        """
        if self.world_size == 1:
            return model
        # The gradient of LGNet's class token is a slice of another tensor; to copy it costs nothing.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        return torch.nn.parallel.DistributedDataParallel(model, device_ids=device_ids)


def launch(worker: Callable[[Process], int], gpu: str | None) -> int:
    """Run `worker` on the chosen devices and give its exit code.

    gpu: the text of `--gpu`, None if left out. One device runs in this process. For several, this command is started
    again once for each device by torchrun's launcher. A process that torchrun or a batch system started as one of
    several joins the others. From here on a lost console stops nothing.
    """
    outlive_console()
    if "LOCAL_RANK" in os.environ or os.environ.get("WORLD_SIZE", "1") != "1":
        return _run_in_group(worker, gpu)
    devices = choose_devices(gpu, torch.cuda.device_count())
    if gpu is None and devices == [torch.device("cpu")]:
        print(_NO_CUDA)
    if len(devices) > 1:
        return _run_under_torchrun(len(devices))
    _use(devices[0])
    return worker(Process(devices[0]))


def choose_devices(gpu: str | None, available: int) -> list[torch.device]:
    """The devices that the text of `--gpu` names, where `available` CUDA devices exist; never a silent CPU."""
    if gpu is None:
        return [torch.device("cuda", index) for index in range(available)] or [torch.device("cpu")]
    if gpu.lower() == "cpu":
        return [torch.device("cpu")]
    existing = f"CUDA devices here: {', '.join(map(str, range(available))) or 'none, use --gpu cpu'}."
    indices = _gpu_indices(gpu, existing)
    missing = [index for index in indices if index >= available]
    if missing:
        raise UserError(f"--gpu {gpu}: there is no CUDA device {missing[0]}.", f"{existing} {GPU_FORMS}")
    return [torch.device("cuda", index) for index in indices]


def _gpu_indices(gpu: str, existing: str) -> list[int]:
    if not re.fullmatch(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*", gpu, flags=re.ASCII):
        raise UserError(f"--gpu '{gpu}' is not a list of devices.", f"{GPU_FORMS} {existing}")
    indices: list[int] = []
    for part in gpu.split(","):
        first, _, last = part.partition("-")
        if last and int(last) < int(first):
            raise UserError(f"--gpu {gpu}: the range {part} runs backwards.", f"Write {last}-{first}. {existing}")
        indices += range(int(first), int(last or first) + 1)
    if len(set(indices)) < len(indices):
        raise UserError(f"--gpu {gpu} names a device twice.", existing)
    return indices


def _use(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True     # the crops never change their size


def _run_under_torchrun(processes: int) -> int:
    """Start this command once for each device; the exit code of the first that failed, else 0.

    UserError if one was killed.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The processes say what went wrong themselves; the launcher would repeat it in a page of its own.
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_SHUTDOWN_SECONDS))
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, max_restarts=0, run_id=_RUN_ID,
        logs_specs=DefaultLogsSpecs(), rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", local_addr="127.0.0.1",
    )
    try:
        elastic_launch(config, sys.executable)("-u", *sys.argv)
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except ChildFailedError as failed:
        for rank, failure in failed.failures.items():
            if failure.exitcode < 0:
                memory = " Is the memory full?" if failure.exitcode == -signal.SIGKILL else ""
                raise UserError(f"Process {rank} was killed by {failure.signal_name()}.{memory}", RERUN,
                                EXIT_ENVIRONMENT) from None
        return failed.get_first_failure()[1].exitcode
    return 0


def _run_in_group(worker: Callable[[Process], int], gpu: str | None) -> int:
    """Join the group that the environment describes, run `worker` and leave the group in order."""
    place = _place()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        signal_at_death_of_parent(signal.SIGTERM)       # the launcher could not end it any more
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=_MEETING_TIMEOUT))
    except (dist.DistError, ValueError) as error:
        reason = str(error).splitlines()[0].strip(" .")
        raise UserError(f"Process {place.rank} of {place.world_size} has not met the others at {address}:{port}: "
                        f"{reason}.", "Have all been started? Is MASTER_ADDR the machine of process 0, and is "
                        "MASTER_PORT free there and open to the others?", EXIT_ENVIRONMENT) from None
    lifeline = Lifeline(store, address, rank, world_size, timeout=_MEETING_TIMEOUT.total_seconds(),
                        names_the_lost=os.environ.get("TORCHELASTIC_RUN_ID") != _RUN_ID)
    try:
        code = _work(worker, gpu, place, store, lifeline)
    except BaseException as error:
        lifeline.fail(error)
    lifeline.leave()
    dist.destroy_process_group()
    return code


class _Place(NamedTuple):
    """Which process of a group this is."""

    rank: int
    world_size: int
    local_rank: int


def _place() -> _Place:
    """What the environment says; UserError if it does not say all that is needed."""
    missing = [name for name in _GROUP_VARIABLES if not os.environ.get(name)]
    if missing:
        given = ", ".join(f"{name}={os.environ[name]}" for name in _GROUP_VARIABLES if name not in missing)
        raise UserError(f"The environment describes one of several processes ({given}), but not {', '.join(missing)}.",
                        "Set them too, or unset the others to run alone.")
    try:
        place = _Place(*(int(os.environ[name]) for name in _GROUP_VARIABLES[:3]))
    except ValueError:
        place = _Place(-1, 0, 0)
    if not 0 <= place.rank < place.world_size or not 0 <= place.local_rank < place.world_size:
        given = ", ".join(f"{name}={os.environ[name]}" for name in _GROUP_VARIABLES[:3])
        raise UserError(f"The environment describes an impossible process: {given}.",
                        "RANK and LOCAL_RANK count from 0 and lie below WORLD_SIZE.")
    return place


def _work(worker: Callable[[Process], int], gpu: str | None, place: _Place, store: dist.Store, lifeline: Lifeline
          ) -> int:
    """Run `worker` as a member of a process group, until all others have come as far."""
    device = own_device(choose_devices(gpu, torch.cuda.device_count()), place.local_rank)
    check_devices(_devices_of_all(device, place, store))
    if gpu is None and device.type == "cpu" and place.rank == 0:
        print(_NO_CUDA)
    _use(device)
    dist.init_process_group(
        "gloo" if device.type == "cpu" else "nccl", store=dist.PrefixStore("group", store), rank=place.rank,
        world_size=place.world_size, timeout=COLLECTIVE_TIMEOUT, device_id=None if device.type == "cpu" else device)
    code = worker(Process(device, place.rank, place.world_size, lifeline.saving))
    # A process that still holds a DDP model when the group is destroyed aborts now and then.
    gc.collect()
    dist.barrier()
    return code


def own_device(devices: list[torch.device], local_rank: int) -> torch.device:
    """The device of a process, of those that it was given; a batch system may show each its own GPU only."""
    if len(devices) == 1:
        return devices[0]
    if local_rank >= len(devices):
        raise UserError(f"Process {local_rank} of this machine has no GPU: there are {len(devices)}.",
                        "Start one process for each GPU.")
    return devices[local_rank]


def _devices_of_all(device: torch.device, place: _Place, store: dist.Store) -> list[str]:
    """The device of each process, by rank: cpu, or the identity of its GPU."""
    mine = "cpu" if device.type == "cpu" else f"GPU {torch.cuda.get_device_properties(device).uuid}"
    store.set(f"device {place.rank}", f"{mine} on {socket.gethostname()}")
    return [store.get(f"device {rank}").decode() for rank in range(place.world_size)]


def check_devices(devices: list[str]) -> None:
    """UserError unless all processes compute on CPUs, or each on a GPU of its own.

    devices: of each process, by rank, as `cpu on HOST` or `GPU ID on HOST`.
    """
    on_cpu = [rank for rank, device in enumerate(devices) if device.startswith("cpu ")]
    if on_cpu and len(on_cpu) < len(devices):
        raise UserError(f"Process {on_cpu[0]} is to compute on the {devices[on_cpu[0]]}, but others on GPUs.",
                        "All must have a GPU, or none: see --gpu and CUDA_VISIBLE_DEVICES.")
    for rank, device in enumerate(devices):
        if not on_cpu and devices.index(device) < rank:
            raise UserError(f"Processes {devices.index(device)} and {rank} were given the same {device}.",
                            "Start one process for each GPU.")
