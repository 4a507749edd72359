"""Random numbers that are a pure function of a key and a name, for whole batches and on any device.

No state is kept, so a picture looks the same whichever batch, process or device draws it. Keys are hashed by
SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).

Legend: B batch.
"""

import math
import zlib

import torch
from torch import Tensor

_GOLDEN, _MIX_1, _MIX_2 = -7046029254386353131, -4658895280553007687, -7723592293110705685    # as signed integers


class Dice:
    """One die for each picture of a batch. Different names give independent numbers."""

    def __init__(self, key: Tensor):
        self.key = key                                                  # (B,) int64

    @classmethod
    def of(cls, *parts: Tensor | int | str, device: torch.device | str = "cpu") -> "Dice":
        """Dice keyed by integers, texts and integer tensors (B,), in this order."""
        key = torch.zeros(1, dtype=torch.int64, device=device)
        for part in parts:
            number = zlib.crc32(part.encode()) if isinstance(part, str) else part
            key = _mixed((key ^ number) + _GOLDEN)
        return cls(key)

    def uniform(self, name: str, low: float | Tensor = 0.0, high: float | Tensor = 1.0, *shape: int) -> Tensor:
        """Evenly spread numbers (B, *shape)."""
        bits = _mixed(self._slots(name, math.prod(shape)))
        unit = ((bits >> 40) & 0xFFFFFF).float() / (1 << 24)
        return low + (high - low) * unit.view(len(self.key), *shape)

    def normal(self, name: str, *shape: int) -> Tensor:
        """Normally distributed numbers (B, *shape) of mean 0 and variance 1 (Box and Muller)."""
        radius = (-2 * (1 - self.uniform(name + "/radius", 0.0, 1.0, *shape)).log()).sqrt()
        return radius * (2 * math.pi * self.uniform(name + "/angle", 0.0, 1.0, *shape)).cos()

    def chance(self, name: str, probability: float | Tensor) -> Tensor:
        """True with a probability, (B,)."""
        return self.uniform(name) < probability

    def pick(self, name: str, shares: tuple[float, ...]) -> Tensor:
        """An index (B,) int64 drawn with the given shares."""
        ends = torch.tensor(shares, device=self.key.device).cumsum(0)
        return torch.searchsorted(ends / ends[-1], self.uniform(name), right=True).clamp(max=len(shares) - 1)

    def direction(self, name: str) -> Tensor:
        """Unit vectors (B, 3), evenly spread."""
        return torch.nn.functional.normalize(self.normal(name, 3), dim=-1)

    def _slots(self, name: str, count: int) -> Tensor:
        start = _mixed(self.key ^ zlib.crc32(name.encode()))
        return start[:, None] + _GOLDEN * torch.arange(1, count + 1, device=self.key.device)


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _MIX_1
    x = (x ^ _shifted(x, 27)) * _MIX_2
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """A right shift that fills up with zeros."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
