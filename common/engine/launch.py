"""Devices and processes: `--gpu` to one process in place, or one process for each GPU under torchrun's launcher."""

import gc
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from common.errors import UserError

GPU_FORMS = "Write --gpu as 0, 0,2, 0-3 or cpu; left out, it takes every GPU."


@dataclass(frozen=True)
class Process:
    """Which of the processes this is, and the device it computes on."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

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

    def parallel(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model with gradients averaged over the processes; the model itself for one process.

        Batch normalisation stays per process, as in the paper's training: each of its GPUs holds 32 samples,
        enough for statistics of its own. The running statistics are the main process's.
        """
        if self.world_size == 1:
            return model
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        return torch.nn.parallel.DistributedDataParallel(model, device_ids=device_ids)


def launch(worker: Callable[[Process], int], gpu: str | None) -> int:
    """Run `worker` on the chosen devices and give its exit code.

    gpu: the text of `--gpu`, None if left out. One device runs in this process. For several, this command is started
    again once for each device by torchrun's launcher; a process that torchrun started joins its group.
    """
    devices = choose_devices(gpu, torch.cuda.device_count())
    if "LOCAL_RANK" in os.environ:
        return _run_in_group(worker, devices)
    if gpu is None and devices == [torch.device("cpu")]:
        print("There is no CUDA device: running on the CPU.")
    if len(devices) > 1:
        return _run_under_torchrun(len(devices))
    _use(devices[0])
    return worker(Process(devices[0]))


def choose_devices(gpu: str | None, available: int) -> list[torch.device]:
    """The devices that the text of `--gpu` names, where `available` CUDA devices exist; never a silent CPU."""
    if gpu is None:
        return [torch.device("cuda", index) for index in range(available)] or [torch.device("cpu")]
    if gpu == "cpu":
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
    indices = []
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
    """Start this command once for each device; the exit code of the first that failed, else 0."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The processes say what went wrong themselves; the launcher would repeat it in a page of its own.
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, max_restarts=0, run_id="lgnet",
        logs_specs=DefaultLogsSpecs(), rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", local_addr="127.0.0.1",
    )
    try:
        elastic_launch(config, sys.executable)("-u", *sys.argv)
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except ChildFailedError as failed:
        _, failure = failed.get_first_failure()
        code = failure.exitcode
        if code < 0:
            print(f"error: process {failure.local_rank} was killed by {failure.signal_name()}.", file=sys.stderr)
        return code if code > 0 else 128 - code
    return 0


def _run_in_group(worker: Callable[[Process], int], devices: list[torch.device]) -> int:
    """Join the group that torchrun started, run `worker` and leave the group in order."""
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    on_cpu = devices[0].type == "cpu"
    if not on_cpu and local_size > len(devices):
        raise UserError(f"torchrun started {local_size} processes for {len(devices)} GPUs.", "Start one for each GPU.")
    device = devices[0 if on_cpu else local_rank]
    _use(device)

    store, rank, world_size = next(dist.rendezvous("env://"))
    dist.init_process_group("gloo" if on_cpu else "nccl", store=dist.PrefixStore("group", store), rank=rank,
                            world_size=world_size)
    try:
        code = worker(Process(device, rank, world_size))
    except BaseException as error:
        _leave_after(error, store)
    # A process that still holds a DDP model when the group is destroyed aborts now and then.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
    return code


def _leave_after(error: BaseException, store: dist.Store) -> None:
    """End this process without waiting for the others, which may never come: the launcher ends them.

    Only the first process that fails says why, and all end with its exit code. All of them often meet the same error,
    and the rest fail because a peer is gone.
    """
    code = error.exit_code if isinstance(error, UserError) else 1
    if store.add("failures", 1) == 1:
        store.set("exit_code", str(code))
        if isinstance(error, UserError):
            print(f"error: {error}", file=sys.stderr)
        else:
            traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    # The launcher cannot tell which of several processes failed first.
    os._exit(int(store.get("exit_code")))
