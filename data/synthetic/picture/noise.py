"""Tileable noise, drawn once and read everywhere: pores, blotches, folds, walls and sensor noise come from here.

Legend: P places.
"""

from enum import IntEnum
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

SIDE = 512


class Noise(IntEnum):
    """A tile of the bank. Wavelengths in texels."""

    WHITE = 0               # normally distributed
    GRAIN = 1               # between 2 and 6
    BLOTCH = 2              # round 40
    FRACTAL = 3             # all, with the spectrum of natural pictures
    FOLDS = 4               # ridges with round valleys between them, 20 to 100
    MOTTLE = 5              # between 10 and 50


@lru_cache(maxsize=4)
def noise_bank(device: torch.device | str = "cpu") -> Tensor:
    """The tiles (len(Noise)·SIDE·SIDE,), each of mean 0 and variance 1, flattened."""
    rng = np.random.default_rng(20240607)
    fy, fx = np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)
    frequency = np.hypot(fx, fy) + 1e-9

    def filtered(gain: np.ndarray) -> np.ndarray:
        tile = np.fft.irfft2(np.fft.rfft2(rng.normal(0, 1, (SIDE, SIDE))) * gain, s=(SIDE, SIDE))
        return tile / tile.std()

    def band(low: float, high: float) -> np.ndarray:
        """Wavelengths from `low` to `high` texels."""
        return np.exp(-0.5 * ((np.log(frequency) + np.log(np.sqrt(low * high))) / (0.5 * np.log(high / low))) ** 2)

    ridges = [-np.sqrt(filtered(band(wavelength, 1.6 * wavelength)) ** 2 + 0.02) for wavelength in (90, 45, 25)]
    folds = ridges[0] + 0.6 * ridges[1] + 0.3 * ridges[2]
    tiles = [rng.normal(0, 1, (SIDE, SIDE)), filtered(band(2, 6)), filtered(band(30, 55)),
             filtered((frequency > 1 / SIDE / 1.5) / frequency), folds, filtered(band(12, 44))]
    stack = np.stack([(tile - tile.mean()) / tile.std() for tile in tiles]).astype(np.float32)
    return torch.from_numpy(stack.reshape(-1)).to(device)


def look_up(kind: Noise, x: Tensor, y: Tensor) -> Tensor:
    """The nearest texel of a tile at (x, y), texels, any shape."""
    return noise_bank(x.device)[_address(kind, x.floor().long(), y.floor().long())]


def look_up_smooth(kind: Noise, x: Tensor, y: Tensor) -> Tensor:
    """A tile at (x, y), texels, interpolated between the four texels round it."""
    left, top = x.floor(), y.floor()
    u, v = x - left, y - top
    left, top, bank = left.long() & (SIDE - 1), top.long() & (SIDE - 1), noise_bank(x.device)
    right = (left + 1) & (SIDE - 1)
    above, below = (kind * SIDE + top) * SIDE, (kind * SIDE + ((top + 1) & (SIDE - 1))) * SIDE
    return torch.lerp(torch.lerp(bank[above + left], bank[above + right], u),
                      torch.lerp(bank[below + left], bank[below + right], u), v)


def _address(kind: Noise, x: Tensor, y: Tensor) -> Tensor:
    return (kind * SIDE + (y & (SIDE - 1))) * SIDE + (x & (SIDE - 1))
