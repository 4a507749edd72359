"""Tileable noise textures, generated once: the source of pores, blotches, folds, walls and sensor noise."""

from enum import IntEnum
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

SIDE = 512


class Noise(IntEnum):
    """Index of a tile in the bank. Wavelengths in texels."""

    WHITE = 0               # normally distributed
    GRAIN = 1               # between 2 and 6
    BLOTCH = 2              # around 40
    FRACTAL = 3             # all, with the power spectrum of natural images
    FOLDS = 4               # ridges between rounded valleys, 20 to 100
    MOTTLE = 5              # between 10 and 50


@lru_cache(maxsize=4)
def noise_bank(device: torch.device | str = "cpu") -> Tensor:
    """All tiles, flattened (len(Noise)·SIDE·SIDE,), each of mean 0 and variance 1."""
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
    """Texel of a tile at (x, y), in texels, of any shape; repeats beyond the tile."""
    column, row = x.floor().long() & (SIDE - 1), y.floor().long() & (SIDE - 1)
    return noise_bank(x.device)[(kind * SIDE + row) * SIDE + column]


def look_up_smooth(kind: Noise, x: Tensor, y: Tensor) -> Tensor:
    """As `look_up`, bilinear between the four texels around (x, y)."""
    left, top = x.floor(), y.floor()
    u, v = x - left, y - top
    left, top, bank = left.long() & (SIDE - 1), top.long() & (SIDE - 1), noise_bank(x.device)
    right = (left + 1) & (SIDE - 1)
    above, below = (kind * SIDE + top) * SIDE, (kind * SIDE + ((top + 1) & (SIDE - 1))) * SIDE
    return torch.lerp(torch.lerp(bank[above + left], bank[above + right], u),
                      torch.lerp(bank[below + left], bank[below + right], u), v)
