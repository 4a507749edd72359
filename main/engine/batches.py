"""Batches: from a dataset through loader processes to a device."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader

from common.errors import EXIT_ENVIRONMENT, UserError
from common.types import GroundTruthCamera, Sample, Stages, TwoHandBatch, map_tensors
from data.augment import float_image
from data.dataset import EpochSampler, TwoHandDataset
from data.synthetic.batches import RenderedBatches
from main.engine.processes.seeding import use_one_thread

# How torch's messages begin when a loader process has died; the thread that pins memory dies of it too.
_DEAD_LOADER = ("DataLoader worker (pid", "Pin memory thread exited")
_SIGNAL_S = 1.0     # seconds in which a dead process has been signalled


class TrainingBatch(NamedTuple):
    """What one step learns from."""

    batch: TwoHandBatch     # the usable samples
    faults: dict[int, int]  # index: code of a data.checks.Reason, for each sample that was taken out
    is_blank: bool          # too few were usable: the batch holds bad ones, which annotate nothing
    waited_s: float         # how long the loader kept the caller waiting


def build_loader(dataset: TwoHandDataset, sampler: EpochSampler, *, batch_size: int, workers: int,
                 device: torch.device, drop_last: bool) -> DataLoader:
    """Batches of `dataset` in the sampler's order. The loader processes live as long as the loader."""
    return DataLoader(
        dataset, batch_size, sampler=sampler, drop_last=drop_last, num_workers=workers, worker_init_fn=use_one_thread,
        persistent_workers=workers > 0, pin_memory=device.type == "cuda",
        generator=torch.Generator(),    # its own: reading data must not move the training's random state
    )


class RenderingLoader:
    """Batches of samples rendered on the device, in the sampler's order: a loader without a disk."""

    def __init__(self, rendered: RenderedBatches, sampler: EpochSampler, *, batch_size: int, device: torch.device,
                 drop_last: bool):
        self.rendered, self.device = rendered, device
        self.keys = BatchSampler(sampler, batch_size, drop_last)

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[TwoHandBatch]:
        for keys in self.keys:
            epoch, _ = keys[0]
            yield self.rendered.batch(epoch, torch.tensor([index for _, index in keys], device=self.device))


def batches(loader: DataLoader, device: torch.device) -> Iterator[TwoHandBatch]:
    """The loader's batches on the device, bad samples and all."""
    for batch in loaded(loader):
        yield on_device(batch, device)


def training_batches(loader: DataLoader | RenderingLoader, device: torch.device) -> Iterator[TrainingBatch]:
    """The loader's batches on the device, without their bad samples.

    Taking those rows out, and not only their masks, keeps black pictures out of the statistics of batch
    normalisation. A batch with fewer than two usable samples has no statistics and comes blank.
    """
    start = time.perf_counter()
    for batch in loaded(loader):
        waited_s = time.perf_counter() - start
        if isinstance(batch, TwoHandBatch):     # just rendered: nothing in it is bad
            yield TrainingBatch(batch, {}, False, waited_s)
            start = time.perf_counter()
            continue
        bad = batch.fault > 0
        faults = dict(zip(batch.index[bad].tolist(), batch.fault[bad].tolist(), strict=True))
        is_blank = int((~bad).sum()) < min(2, len(bad))
        if faults:
            batch = _take(batch, bad if is_blank else ~bad)
        yield TrainingBatch(on_device(batch, device), faults, is_blank, waited_s)
        start = time.perf_counter()


def on_device(samples: Sample, device: torch.device) -> TwoHandBatch:
    """Stacked samples as a batch on the device. Bytes travel there; it makes the floats itself."""
    samples = map_tensors(lambda tensor: tensor.to(device, non_blocking=True), samples)
    return TwoHandBatch(float_image(samples.pixels, samples.gain), samples.targets, samples.camera_crop, samples.index,
                        samples.fault)


def _take(samples: Sample, rows: Tensor) -> Sample:
    return map_tensors(lambda tensor: tensor[rows], samples)


def loaded(loader: DataLoader | RenderingLoader) -> Iterator[Any]:
    """What the loader gives. What goes wrong in its processes is told as the user's error it is."""
    iterator = iter(loader)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except UserError as error:
            # A loader process hands its error over as the text of a traceback.
            raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None
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
    stages = model(batch.image, GroundTruthCamera(batch.camera_crop, batch.targets.wrist))
    return map_tensors(Tensor.float, stages)
