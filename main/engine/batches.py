"""Batches: from files through loader processes, or rendered on the device; both give the same type."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Event, Queue
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader

from common.errors import EXIT_ENVIRONMENT, EXIT_USER_ERROR, UserError, is_exhausted
from common.signals import obey_parent_alone, signals_held
from common.types import Sample, Stages, TwoHandBatch, map_tensors
from data.augment import float_image
from data.dataset import EpochSampler, TwoHandDataset
from data.schema import Reader

if TYPE_CHECKING:
    from data.synthetic.batches import RenderedBatches  # training from files imports no renderer

# How torch's messages begin when a loader process has died; the thread that pins memory dies of it too.
_DEAD_LOADER = ("DataLoader worker (pid", "Pin memory thread exited")
_FILES, _FILES_PER_WORKER = 128, 64     # open ones: of a program, and of the batches that a loader process has ready
_SIGNAL_S = 1.0     # seconds in which a dead process has been signalled


class TrainingBatch(NamedTuple):
    """What is learned from at once."""

    batch: TwoHandBatch     # the usable samples
    faults: dict[int, int]  # index: code of a data.checks.Reason, for each sample that was taken out
    is_blank: bool          # too few were usable: the batch holds bad ones, which annotate nothing


class Batches(Protocol):
    """The training batches of an epoch, in the order of a sampler; iterated once for each epoch."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[TrainingBatch]: ...


class TrainingSamples(Protocol):
    """What is trained on."""

    reader: Reader
    max_bad_fraction: float     # of the samples may prove unusable before training stops

    def __len__(self) -> int: ...

    def batches(self, sampler: EpochSampler, *, batch_size: int, drop_last: bool, device: torch.device) -> Batches:
        """Batches on a device.  drop_last: leave out an incomplete last one."""
        ...


class SamplesOnDisk:
    """The samples of a dataset, read by `workers` processes that live as long as the batches."""

    def __init__(self, dataset: TwoHandDataset, *, workers: int, max_bad_fraction: float):
        self.dataset, self.reader = dataset, dataset.reader
        self.workers, self.max_bad_fraction = workers, max_bad_fraction

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(self, sampler: EpochSampler, *, batch_size: int, drop_last: bool, device: torch.device) -> Batches:
        return _UsableBatches(build_loader(self.dataset, sampler, batch_size=batch_size, workers=self.workers,
                                           device=device, drop_last=drop_last), device)


class _UsableBatches:
    """The loader's batches on the device, without their bad samples.

    Taking those rows out, and not only their masks, keeps black images out of the statistics of batch normalisation. A
    batch with fewer than two usable samples has no statistics and comes blank.
    """

    def __init__(self, loader: DataLoader[Sample], device: torch.device):
        self.loader, self.device = loader, device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[TrainingBatch]:
        for samples in loaded(self.loader):
            bad = samples.fault > 0
            faults = dict(zip(samples.index[bad].tolist(), samples.fault[bad].tolist(), strict=True))
            is_blank = int((~bad).sum()) < min(2, len(bad))
            if faults:
                rows = bad if is_blank else ~bad
                samples = map_tensors(lambda tensor, rows=rows: tensor[rows], samples)
            yield TrainingBatch(on_device(samples, self.device), faults, is_blank)


class RenderedSamples:
    """The samples of a rendered set, drawn anew on the device in every epoch. None of them is bad."""

    max_bad_fraction = 0.0

    def __init__(self, reader: Reader, rendered: "RenderedBatches"):
        self.reader, self.rendered = reader, rendered

    def __len__(self) -> int:
        return len(self.reader)

    def batches(self, sampler: EpochSampler, *, batch_size: int, drop_last: bool, device: torch.device) -> Batches:
        return _RenderedBatches(self.rendered, sampler, batch_size, drop_last, device)


class _RenderedBatches:
    """Batches drawn in a sampler's order."""

    def __init__(self, rendered: "RenderedBatches", sampler: EpochSampler, batch_size: int, drop_last: bool,
                 device: torch.device):
        self.rendered, self.device = rendered, device
        self.keys: Any = BatchSampler(sampler, batch_size, drop_last)   # type: ignore[arg-type]   # of any sampler

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[TrainingBatch]:
        for keys in self.keys:
            epoch, _ = keys[0]
            indices = torch.tensor([index for _, index in keys], device=self.device)
            yield TrainingBatch(self.rendered.batch(epoch, indices), {}, is_blank=False)


# ---------------------------------------------------------------- loader processes

def build_loader(dataset: TwoHandDataset, sampler: EpochSampler, *, batch_size: int, workers: int,
                 device: torch.device, drop_last: bool) -> DataLoader[Sample]:
    """Stacked samples of `dataset` in the sampler's order. The loader processes live as long as the loader."""
    if workers:
        allow_open_files(_FILES + workers * _FILES_PER_WORKER)
    return DataLoader(
        dataset, batch_size, sampler=sampler, drop_last=drop_last, num_workers=workers, worker_init_fn=start_worker,
        persistent_workers=workers > 0, pin_memory=device.type == "cuda",
        generator=torch.Generator(),    # its own: reading data must not move the training's random state
    )


def allow_open_files(count: int) -> None:
    """Raise this process's limit of open files to `count`; UserError if that is not allowed. Torch hands each tensor of
    a batch over as an open file, and waits for ever where one cannot be opened."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed < count:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (count, most))
        except ValueError:
            raise UserError(f"This process may open {most} files, and loading data in other processes takes {count}.",
                            "Raise the limit (ulimit -n), or load data in this process with --set data.workers=0.",
                            EXIT_ENVIRONMENT) from None


def try_room_for_processes(workers: int) -> None:
    """OSError if there is no room for the locks that so many loader processes share; they lie in /dev/shm. Torch would
    find that out with an iterator half made, which prints a traceback of its own when it is deleted."""
    if workers:
        _held: list[object] = [Event(), *(Queue() for _ in range(workers + 1))]     # at once, as torch makes them


def start_worker(_worker: int) -> None:
    """`worker_init_fn` of every loader: the processes share the cores, so each computes on one thread."""
    torch.set_num_threads(1)
    obey_parent_alone()


def batches(loader: DataLoader[Sample], device: torch.device) -> Iterator[TwoHandBatch]:
    """The loader's batches on the device, bad samples and all."""
    for samples in loaded(loader):
        yield on_device(samples, device)


def on_device(samples: Sample, device: torch.device) -> TwoHandBatch:
    """Stacked samples as a batch on the device. Bytes travel there; it makes the floats itself."""
    samples = map_tensors(lambda tensor: tensor.to(device, non_blocking=True), samples)
    return TwoHandBatch(float_image(samples.pixels, samples.gain), samples.targets, samples.camera_crop, samples.index,
                        samples.fault)


def loaded(loader: DataLoader[Sample]) -> Iterator[Sample]:
    """What the loader gives. What goes wrong in its processes is told as the user's error it is."""
    try_room_for_processes(loader.num_workers)
    with signals_held():
        iterator = iter(loader)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except UserError as error:
            # A loader process hands its error over as the text of a traceback, without its exit code.
            text = str(error).rpartition("UserError: ")[2].strip()
            raise UserError(text, exit_code=EXIT_ENVIRONMENT if is_exhausted(OSError(text)) else EXIT_USER_ERROR
                            ) from None
        except MemoryError as error:
            raise _lost_loader(str(error).splitlines()[0]) from None
        except (ConnectionError, EOFError) as error:
            # A process died while it handed over a batch. Torch's error that says which comes with a signal.
            time.sleep(_SIGNAL_S)
            raise _lost_loader(f"a loader process is gone ({error!r})") from None
        yield batch


@contextmanager
def dead_loaders_told() -> Iterator[None]:
    """Within it, a loader process that dies ends in a UserError.

    torch raises its error for that wherever the main thread happens to be: in a step as well as while it waits.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith(_DEAD_LOADER):
            raise
        raise _lost_loader(str(error).splitlines()[0]) from None


def _lost_loader(what: str) -> UserError:
    return UserError(f"Loading data failed: {what.strip(' .')}.", "Most often the memory or /dev/shm is full: try "
                     "fewer loader processes with --set data.workers=1, or 0 for none. train.py goes on with "
                     "--continue.", EXIT_ENVIRONMENT)


def predict(model: nn.Module, batch: TwoHandBatch) -> Stages:
    """The model's predictions for a batch, in float32 whatever it computes in."""
    return map_tensors(Tensor.float, model(batch.image))
