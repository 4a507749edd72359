"""Order, randomness and images on top of a reader.

Every sample is a pure function of (seed, epoch, index): the number of loader processes, their start method and
where a run was interrupted change nothing. The sampler hands the epoch to the workers inside the index.
"""

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from common.errors import EXIT_ENVIRONMENT, UserError
from common.hands import NUM_JOINTS, WRIST
from common.images import BadImage, is_black, read_rgb
from common.types import Sample
from data.augment import AugmentConfig, View, draw_view, empty_sample, make_sample
from data.checks import BadSample, Reason, check_record
from data.schema import Reader, Record
from data.subset import spread_evenly


class TwoHandDataset(Dataset[Sample]):
    """Samples of a reader, indexed by (epoch, index). One that cannot be used comes empty, with its fault.

    size: side of the crop, pixels.  box_ratio: share of the crop that the hands fill.
    augment: None for evaluation; then the epoch and the seed change nothing.
    """

    def __init__(self, reader: Reader, *, size: int, box_ratio: float, augment: AugmentConfig | None = None,
                 seed: int = 0):
        self.reader, self.size, self.box_ratio = reader, size, box_ratio
        self.augment, self.seed = augment, seed
        # OpenCV's own threads do not survive a fork, and there is a process for each core already.
        cv2.setNumThreads(0)

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        view = View()
        if self.augment is not None:
            view = draw_view(self.augment, np.random.default_rng((self.seed, epoch, index)))
        try:
            record, image = read_frame(self.reader, index)
        except BadSample as bad:
            return empty_sample(index, bad.reason.code, self.size)
        return make_sample(record, image, index, size=self.size, box_ratio=self.box_ratio, view=view)


class EpochSampler(Sampler[tuple[int, int]]):
    """(epoch, index) pairs of one process, in an order that depends on (seed, epoch) only.

    With several processes each takes every `world_size`-th sample; the first samples are repeated at the end until
    all processes have the same number.
    """

    def __init__(self, length: int, *, seed: int = 0, shuffle: bool = True, rank: int = 0, world_size: int = 1):
        self.length, self.seed, self.shuffle = length, seed, shuffle
        self.rank, self.world_size = rank, world_size
        self.epoch, self.start = 0, 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """What the next iteration yields: `epoch`, without the first `start` samples of its order."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return max(0, -(-(self.length - self.start) // self.world_size))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.arange(self.length)
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        padded = np.resize(order, self.start + len(self) * self.world_size)
        mine = padded[self.start:][self.rank::self.world_size]
        return ((self.epoch, index) for index in mine.tolist())


def read_frame(reader: Reader, index: int) -> tuple[Record, np.ndarray]:
    """A record and its stored image, (H, W, 3) uint8 RGB. Raises BadSample if either cannot be used."""
    record = read_record(reader, index)
    try:
        image = read_rgb(record.image_path, upright=False, size=record.image_size)
    except BadImage as error:
        raise BadSample(Reason(error.fault), error.detail) from None
    if is_black(image):
        raise BadSample(Reason.IMAGE_BLACK, "it shows nothing: every part of it is dark")
    return record, image


def read_record(reader: Reader, index: int) -> Record:
    """A record whose labels can be right; no image is read. Raises BadSample."""
    try:
        with np.errstate(all="ignore"):     # what is not finite is found below
            record = reader.read(index)
    except UserError as error:
        if error.exit_code == EXIT_ENVIRONMENT:     # no fault of the sample
            raise
        raise BadSample(Reason.LABELS_UNREADABLE, error.message) from None
    check_record(record)
    return record


def mean_joints(reader: Reader, limit: int = 10_000) -> torch.Tensor:
    """Mean wrist-relative joints (2, 21, 3) float64 of at most `limit` records spread evenly over the reader.

    No image is read, and records that cannot be right are left out. Joints that no record annotates are 0.
    """
    total, count = np.zeros((2, NUM_JOINTS, 3)), np.zeros((2, NUM_JOINTS, 1))
    for index in spread_evenly(len(reader), limit):
        try:
            record = read_record(reader, index)
        except BadSample:
            continue
        valid = record.joints_valid[..., None]
        total += (record.joints_cam - record.joints_cam[:, WRIST, None]) * valid
        count += valid
    return torch.from_numpy(total / np.maximum(count, 1))
