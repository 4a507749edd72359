"""Batches: from a dataset through loader processes to a device."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.engine.seeding import use_one_thread
from common.errors import UserError
from common.types import GroundTruthCamera, Stages, TwoHandBatch
from data.dataset import EpochSampler, TwoHandDataset


class TrainingBatch(NamedTuple):
    """What one step learns from."""

    batch: TwoHandBatch     # the usable samples
    faults: dict[int, int]  # index: code of a data.checks.Reason, for each sample that was taken out
    is_blank: bool          # too few were usable: the batch holds bad ones, which annotate nothing


def build_loader(dataset: TwoHandDataset, sampler: EpochSampler, *, batch_size: int, workers: int,
                 device: torch.device, drop_last: bool) -> DataLoader:
    """Batches of `dataset` in the sampler's order. The loader processes live as long as the loader."""
    return DataLoader(
        dataset, batch_size, sampler=sampler, drop_last=drop_last, num_workers=workers, worker_init_fn=use_one_thread,
        persistent_workers=workers > 0, pin_memory=device.type == "cuda",
        generator=torch.Generator(),    # its own: reading data must not move the training's random state
    )


def batches(loader: DataLoader, device: torch.device) -> Iterator[TwoHandBatch]:
    """The loader's batches on the device, bad samples and all."""
    for batch in loaded(loader):
        yield _to_device(batch, device)


def training_batches(loader: DataLoader, device: torch.device) -> Iterator[TrainingBatch]:
    """The loader's batches on the device, without their bad samples.

    Taking those rows out, and not only their masks, keeps black pictures out of the statistics of batch
    normalisation. A batch with fewer than two usable samples has no statistics and comes blank.
    """
    for batch in loaded(loader):
        bad = batch.fault > 0
        faults = dict(zip(batch.index[bad].tolist(), batch.fault[bad].tolist(), strict=True))
        is_blank = int((~bad).sum()) < min(2, len(bad))
        if faults:
            batch = _take(batch, bad if is_blank else ~bad)
        yield TrainingBatch(_to_device(batch, device), faults, is_blank)


def _take(batch: TwoHandBatch, rows: Tensor) -> TwoHandBatch:
    return map_tensors(lambda tensor: tensor[rows], batch)


def _to_device(batch: TwoHandBatch, device: torch.device) -> TwoHandBatch:
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), batch)


def loaded(loader: DataLoader) -> Iterator[Any]:
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
        except (RuntimeError, ConnectionError, EOFError) as error:      # the faces of a process that is gone
            if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker (pid"):
                raise
            raise UserError(f"A loader process died: {str(error).splitlines()[0]}",
                            "Is the memory full? Try --set data.workers=1.") from None
        yield batch


def predict(model: nn.Module, batch: TwoHandBatch) -> Stages:
    """The model's predictions for a batch, in float32 whatever it computes in."""
    stages = model(batch.image, GroundTruthCamera(batch.camera_crop, batch.targets.wrist))
    return map_tensors(Tensor.float, stages)


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """`function` applied to every tensor of nested NamedTuples."""
    if isinstance(tree, Tensor):
        return function(tree)
    return type(tree)(*(map_tensors(function, item) for item in tree))
