"""Random numbers that are a pure function of a key and a name, for whole batches and on any device.

There is no state, so an image does not depend on the batch, process or device that draws it. Keys are hashed by
SplitMix64 (Steele, Lea and Flood, OOPSLA 2014). Names are hashed too: renaming one changes the images.

Legend: B batch.
"""

import math
import zlib

import torch
from torch import Tensor

_GOLDEN, _MIX_1, _MIX_2 = -7046029254386353131, -4658895280553007687, -7723592293110705685    # as signed integers


class Dice:
    """A random stream for each image of a batch. Different names give independent numbers."""

    def __init__(self, key: Tensor):
        self.key = key                                                  # (B,) int64

    @classmethod
    def of(cls, *parts: Tensor | int | str, device: torch.device | str = "cpu") -> "Dice":
        """Dice keyed by integers, strings and int64 tensors (B,), in this order."""
        key = torch.zeros(1, dtype=torch.int64, device=device)
        for part in parts:
            number = zlib.crc32(part.encode()) if isinstance(part, str) else part
            key = _mixed((key ^ number) + _GOLDEN)
        return cls(key)

    def uniform(self, name: str, low: float | Tensor = 0.0, high: float | Tensor = 1.0, *shape: int) -> Tensor:
        """Uniform numbers (B, *shape) in [low, high)."""
        bits = _mixed(self._slots(name, math.prod(shape)))
        unit = ((bits >> 40) & 0xFFFFFF).float() / (1 << 24)
        return low + (high - low) * unit.view(len(self.key), *shape)

    def normal(self, name: str, *shape: int) -> Tensor:
        """Standard normal numbers (B, *shape), by Box and Muller."""
        radius = (-2 * (1 - self.uniform(name + "/radius", 0.0, 1.0, *shape)).log()).sqrt()
        return radius * (2 * math.pi * self.uniform(name + "/angle", 0.0, 1.0, *shape)).cos()

    def chance(self, name: str, probability: float | Tensor) -> Tensor:
        """True (B,) with the given probability."""
        return self.uniform(name) < probability

    def pick(self, name: str, shares: tuple[float, ...]) -> Tensor:
        """Indices (B,) int64 with probabilities proportional to `shares`."""
        ends = torch.tensor(shares, device=self.key.device).cumsum(0)
        return torch.searchsorted(ends / ends[-1], self.uniform(name), right=True).clamp(max=len(shares) - 1)

    def direction(self, name: str) -> Tensor:
        """Unit vectors (B, 3), uniform on the sphere."""
        return torch.nn.functional.normalize(self.normal(name, 3), dim=-1)

    def _slots(self, name: str, count: int) -> Tensor:
        start = _mixed(self.key ^ zlib.crc32(name.encode()))
        return start[:, None] + _GOLDEN * torch.arange(1, count + 1, device=self.key.device)


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _MIX_1
    x = (x ^ _shifted(x, 27)) * _MIX_2
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
