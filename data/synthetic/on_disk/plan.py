"""What a rendered set consists of, worked out before anything is rendered.

A sequence is a few time steps of one capture that show the same kind of interaction; it is the unit of work. Every
random number comes from (seed, split, capture, frame, purpose), so the set does not depend on who renders what.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from common.errors import UserError
from data.synthetic.pose.families import FAMILY_SHARES

SPLITS = ("train", "val", "test")
SPLIT_SHARES = {"val": 0.05, "test": 0.10}              # the rest is train
MAX_CAPTURES = {"train": 400, "val": 25, "test": 50}     # people and places: their number is what transfer rests on
CAMERAS_PER_CAPTURE = 12
_STEPS_PER_CAPTURE = 10                                 # at least, so that small sets show several people
_STEPS_PER_SEQUENCE = 8
_SEQUENCES_PER_SPLIT = len(FAMILY_SHARES) + 2           # at least, where there are enough steps: once each kind


class Purpose(IntEnum):
    """What a stream of random numbers is for."""

    CAPTURE = 1
    POSE = 2
    PICTURE = 3


@dataclass(frozen=True)
class Settings:
    """What decides the content of a set."""

    frames: int                 # images over all splits
    seed: int
    cameras: int = 2            # that see each time step
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
    """Time steps `first_frame` … `first_frame + steps − 1` of one capture."""

    split: str
    capture: int
    name: str                   # as InterHand2.6M names them: 0003_dh_clasped; dh is "double hand"
    kind: str                   # a family of two hands, or "right" or "left"
    first_frame: int
    images: tuple[int, ...]     # of each step

    @property
    def frames(self) -> range:
        return range(self.first_frame, self.first_frame + len(self.images))


def plan_sequences(settings: Settings) -> list[Sequence]:
    """All sequences of the set, split by split and capture by capture."""
    counts = {split: max(1, round(share * settings.frames)) for split, share in SPLIT_SHARES.items()}
    counts["train"] = settings.frames - sum(counts.values())
    return [sequence for split in SPLITS for sequence in _plan_split(settings, split, counts[split])]


def stream(settings: Settings, split: str, capture: int, purpose: Purpose, *path: int) -> np.random.Generator:
    """The random numbers for one purpose."""
    # One is added because a seed sequence takes trailing zeros for nothing.
    key = (SPLITS.index(split), capture, int(purpose), *path)
    return np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=[part + 1 for part in key]))


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
            # The kind that is furthest behind its share comes next.
            total = sum(given.values()) + len(piece)
            kind = max(shares, key=lambda name: shares[name] * total - given[name])
            given[kind] += len(piece)
            name = f"{number + 1:04d}_{'dh' if kind in FAMILY_SHARES else kind[0] + 'h'}_{kind}"
            sequences.append(Sequence(split, capture, name, kind, frame, tuple(int(n) for n in piece)))
            frame += len(piece)
    return sequences
