"""The plan of a rendered set: its splits, captures and sequences, and their random streams.

A sequence is a few time steps of one capture that show the same kind of interaction; it is the unit of work. Every
random number comes from (seed, split, capture, frame, purpose), so the set does not depend on how work is distributed.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from common.errors import UserError
from data.synthetic.picture.camera import STUDIO_SHARE, Camera, sample_cameras
from data.synthetic.pose.families import FAMILY_SHARES

SPLITS = ("train", "val", "test")
SPLIT_SHARES = {"val": 0.05, "test": 0.10}              # the rest is train
MAX_CAPTURES = {"train": 400, "val": 25, "test": 50}    # people and places: transfer to other data depends on them
CAMERAS_PER_CAPTURE = 12
_STEPS_PER_CAPTURE = 10                                 # in small sets, so that they show several people
_STEPS_PER_SEQUENCE = 8                                 # at most
_SEQUENCES_PER_SPLIT = len(FAMILY_SHARES) + 2           # at least, given enough steps: each kind once


class Purpose(IntEnum):
    """The use of a random stream."""

    CAPTURE = 1
    POSE = 2
    CAMERAS = 3


@dataclass(frozen=True)
class Settings:
    """The parameters that determine the content of a set."""

    frames: int                 # images over all splits
    seed: int
    cameras: int = 2            # images of each time step
    interacting: float = 0.8    # share of time steps with both hands

    def __post_init__(self) -> None:
        if self.frames < len(SPLITS):
            raise UserError(f"--frames is {self.frames}.", f"It must be at least {len(SPLITS)}: one for each split.")
        if not 1 <= self.cameras <= CAMERAS_PER_CAPTURE:
            raise UserError(f"--cameras is {self.cameras}.", f"It must be from 1 to {CAMERAS_PER_CAPTURE}.")
        if not 0 <= self.interacting <= 1:
            raise UserError(f"--interacting is {self.interacting}.", "It is a share: from 0 to 1.")
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}.", "It must not be negative.")


@dataclass(frozen=True)
class Sequence:
    """Consecutive time steps of one capture."""

    split: str
    capture: int
    name: str                   # as InterHand2.6M names them: 0003_dh_clasped; dh is "double hand"
    kind: str                   # a family of two hands, or "right" or "left"
    first_frame: int
    images: tuple[int, ...]     # number of images of each time step

    @property
    def frames(self) -> range:
        return range(self.first_frame, self.first_frame + len(self.images))


class Capture(NamedTuple):
    """A person at a place with calibrated cameras. Their appearance follows from `image_keys`."""

    shape: np.ndarray                   # (10,) of the person's hands
    is_studio: bool
    cameras: list[Camera]               # in the person frame
    rotation: np.ndarray                # (3, 3)    world = rotation·person + translation
    translation: np.ndarray             # (3,)


def plan_sequences(settings: Settings) -> list[Sequence]:
    """All sequences of the set, ordered by split and capture."""
    counts = {split: max(1, round(share * settings.frames)) for split, share in SPLIT_SHARES.items()}
    counts["train"] = settings.frames - sum(counts.values())
    return [sequence for split in SPLITS for sequence in _plan_split(settings, split, counts[split])]


def stream(settings: Settings, split: str, capture: int, purpose: Purpose, *path: int) -> np.random.Generator:
    """The random stream of one purpose; `path` tells streams of the same purpose apart."""
    # Plus one, because a seed sequence ignores trailing zeros.
    key = (SPLITS.index(split), capture, int(purpose), *path)
    return np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=[part + 1 for part in key]))


@lru_cache(maxsize=2)
def capture_of(settings: Settings, split: str, number: int) -> Capture:
    """A capture of a set, sampled from its random stream."""
    rng = stream(settings, split, number, Purpose.CAPTURE)
    shape = np.clip(rng.normal(0, 0.9, 10), -2.2, 2.2)
    is_studio = bool(rng.random() < STUDIO_SHARE)
    cameras = sample_cameras(CAMERAS_PER_CAPTURE, is_studio, rng)
    rotation = Rotation.random(rng=rng).as_matrix()
    translation = rng.normal(0, 0.3, 3)
    return Capture(shape, is_studio, cameras, rotation, translation)


def pose_streams(settings: Settings, sequence: Sequence) -> list[np.random.Generator]:
    """The random stream of the pose of each frame."""
    return [stream(settings, sequence.split, sequence.capture, Purpose.POSE, frame) for frame in sequence.frames]


def _plan_split(settings: Settings, split: str, num_images: int) -> list[Sequence]:
    images = [settings.cameras] * (num_images // settings.cameras)
    if rest := num_images % settings.cameras:
        images.append(rest)
    captures = int(np.clip(round(len(images) / _STEPS_PER_CAPTURE), 1, MAX_CAPTURES[split]))
    shares = {kind: settings.interacting * share for kind, share in FAMILY_SHARES.items()}
    shares |= {"right": (1 - settings.interacting) / 2, "left": (1 - settings.interacting) / 2}

    length = int(np.clip(len(images) // _SEQUENCES_PER_SPLIT, 1, _STEPS_PER_SEQUENCE))
    sequences: list[Sequence] = []
    given = dict.fromkeys(shares, 0)
    for capture, steps in enumerate(np.array_split(np.array(images), captures)):
        frame = 100
        pieces = np.array_split(steps, -(-len(steps) // length))
        for number, piece in enumerate(pieces):
            # Next is the kind furthest behind its share.
            total = sum(given.values()) + len(piece)
            kind = max(shares, key=lambda name: shares[name] * total - given[name])
            given[kind] += len(piece)
            name = f"{number + 1:04d}_{'dh' if kind in FAMILY_SHARES else kind[0] + 'h'}_{kind}"
            sequences.append(Sequence(split, capture, name, kind, frame, tuple(int(n) for n in piece)))
            frame += len(piece)
    return sequences
