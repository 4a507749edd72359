"""Left and right, joint orders and fingertip vertices: written here and nowhere else.

Every two-hand tensor has a hand axis of length 2 indexed by `Hand`. Joint arrays carry the order of a
`JointSet`; orders are converted by joint name.

Legend: N any number of points.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

NUM_VERTICES = 778
NUM_FACES = 1538
NUM_JOINTS = 21         # MANO21: 16 model joints and 5 fingertips
NUM_MODEL_JOINTS = 16   # wrist and three joints for each finger
NUM_SHAPE = 10


class Hand(IntEnum):
    """Index into every hand axis in this repository."""

    RIGHT = 0
    LEFT = 1

    @property
    def label(self) -> str:
        return self.name.lower()

    @property
    def other(self) -> "Hand":
        return Hand(1 - self)


@dataclass(frozen=True)
class JointSet:
    """The joints of one hand in a fixed order; names are unique."""

    names: tuple[str, ...]
    parents: tuple[int, ...]    # index of the parent joint, -1 for the wrist

    def index(self, name: str) -> int:
        return self.names.index(name)

    def gather_from(self, other: "JointSet") -> list[int]:
        """Indices that reorder an array of `other` into this order."""
        return [other.index(name) for name in self.names]


_FINGERS = ("thumb", "index", "middle", "ring", "pinky")
_MODEL_FINGERS = ("index", "middle", "pinky", "ring", "thumb")   # MANO's own finger order

# The working order: wrist, then each finger from base (1) to tip (4).
MANO21 = JointSet(
    names=("wrist", *(f"{finger}{k}" for finger in _FINGERS for k in (1, 2, 3, 4))),
    parents=(-1, *(0 if k == 1 else 4 * f + k - 1 for f in range(5) for k in (1, 2, 3, 4))),
)
# InterHand2.6M's annotation files: each finger from tip to base, then the wrist.
INTERHAND21 = JointSet(
    names=(*(f"{finger}{k}" for finger in _FINGERS for k in (4, 3, 2, 1)), "wrist"),
    parents=tuple(20 if k == 3 else 4 * f + k + 1 for f in range(5) for k in range(4)) + (-1,),
)
# MANO's 16 articulated joints.
MODEL16 = JointSet(
    names=("wrist", *(f"{finger}{k}" for finger in _MODEL_FINGERS for k in (1, 2, 3))),
    parents=(-1, *(0 if k == 0 else 3 * f + k for f in range(5) for k in range(3))),
)

WRIST = MANO21.index("wrist")
MIDDLE_MCP = MANO21.index("middle1")

# Fingertip vertices of MANO's topology in thumb..pinky order. InterWild's evaluation uses 445 for the
# middle finger and smplx's own table 443; the papers that evaluate joints as G·M use 444.
TIP_VERTICES = (745, 317, 444, 556, 673)
INTERWILD_TIP_VERTICES = (745, 317, 445, 556, 673)


def joint_regressor(model_regressor: Tensor, tip_vertices: Sequence[int] = TIP_VERTICES) -> Tensor:
    """G of the paper: 21 joints in MANO21 order from a mesh, (..., 21, 778).

    model_regressor: (..., 16, 778), rows in MODEL16 order.
    """
    tips = model_regressor.new_zeros(*model_regressor.shape[:-2], 5, NUM_VERTICES)
    tips[..., range(5), list(tip_vertices)] = 1.0
    rows = torch.cat([model_regressor, tips], dim=-2)
    names = (*MODEL16.names, *(f"{finger}4" for finger in _FINGERS))
    return rows[..., [names.index(name) for name in MANO21.names], :]


def mirror_vectors(vectors: Tensor) -> Tensor:
    """Mirror camera-frame vectors (..., 3) across x = 0. Nothing is swapped."""
    # A constant tensor of signs would be copied to the device in each call, and a GPU be waited for.
    return torch.cat([-vectors[..., :1], vectors[..., 1:]], dim=-1)


def mirror_points(points: Tensor) -> Tensor:
    """Mirror camera-frame points (..., 2, N, 3) across x = 0 and swap the hands."""
    return mirror_vectors(points).flip(-3)


def mirror_rotations(rotations: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) seen in a mirror across x = 0: M·R·M. Nothing is swapped.

    For an axis-angle vector this is (x, y, z) → (x, −y, −z).
    """
    signs = rotations.new_tensor([-1.0, 1.0, 1.0])
    return rotations * signs[:, None] * signs


def mirror_relative(relative: Tensor) -> Tensor:
    """`left wrist − right wrist` (..., 3) after mirroring and swapping the hands: (x, −y, −z)."""
    return -mirror_vectors(relative)
