"""What cameras, messengers and browsers do to photographs: augmentation of an image's pixels.

Every kind is drawn every time, so that no probability changes what another kind draws.
"""

from typing import NamedTuple

import cv2
import numpy as np


class Damage(NamedTuple):
    """What is done to one crop, in this order; the values given here do nothing."""

    blur: float = 0.0           # standard deviation of a Gaussian, share of the crop's side
    motion: tuple[float, float] = (0.0, 0.0)        # length, share of the side, and direction in radians
    shrink: float = 1.0         # down to this share of its size, and up again
    gamma: float = 1.0
    contrast: float = 1.0
    grey: float = 0.0           # share of its colour that is taken away
    noise: float = 0.0          # standard deviation of a pixel, of 255
    jpeg: int = 100             # quality
    cut: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)   # a box: x, y, width, height, shares
    seed: int = 0               # of the noise and of the box's colour


def draw_damage(probability: float, rng: np.random.Generator) -> Damage:
    """Damage of which each kind happens with the probability."""
    draw, happens = rng.random(14), rng.random(9) < probability
    if not happens.any():
        return Damage()
    width, height = 0.1 + 0.25 * draw[9:11]
    return Damage(
        blur=float(0.015 * draw[0] * happens[0]),
        motion=(float(0.05 * draw[1] * happens[1]), float(np.pi * draw[2])),
        shrink=float(1 - 0.7 * draw[3] * happens[2]),
        gamma=float(np.exp(0.6 * (2 * draw[4] - 1) * happens[3])),
        contrast=float(np.exp(0.4 * (2 * draw[5] - 1) * happens[4])),
        grey=float(draw[6] ** 0.5 * happens[5]),
        noise=float(16 * draw[7] * happens[6]),
        jpeg=int(95 - 75 * draw[8]) if happens[7] else 100,
        cut=tuple((np.array([*(draw[11:13] * (1 - np.array([width, height]))), width, height]) * happens[8]).tolist()),
        seed=int(draw[13] * 2**31),
    )


def damaged(image: np.ndarray, damage: Damage) -> np.ndarray:
    """The damaged image (S, S, 3) uint8; the image itself if nothing is to be done."""
    if damage == Damage():
        return image
    size, rng = image.shape[0], np.random.default_rng(damage.seed)
    if damage.cut[2] > 0:
        image = image.copy()
        x, y, width, height = (round(size * share) for share in damage.cut)
        image[y:y + height, x:x + width] = rng.integers(0, 256, 3)
    if damage.motion[0] * size > 1:
        image = cv2.filter2D(image, -1, _motion(damage.motion[0] * size, damage.motion[1]))
    if damage.blur * size > 0.2:
        image = cv2.GaussianBlur(image, (0, 0), damage.blur * size)
    if damage.shrink < 1:
        small = max(8, round(size * damage.shrink))
        image = cv2.resize(cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA), (size, size))
    tones = np.arange(256) / 255
    tones = ((tones ** damage.gamma - 0.5) * damage.contrast + 0.5) * 255
    image = cv2.LUT(image, tones.clip(0, 255).round().astype(np.uint8))
    if damage.grey > 0:
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        image = cv2.addWeighted(image, 1 - damage.grey, grey, damage.grey, 0)
    if damage.noise > 0:
        image = (image + rng.normal(0, damage.noise, image.shape)).clip(0, 255).astype(np.uint8)
    if damage.jpeg < 100:
        _, coded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, damage.jpeg])
        decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
        assert decoded is not None      # it was coded a line above
        image = np.ascontiguousarray(decoded[..., ::-1])
    return image


def _motion(length: float, direction: float) -> np.ndarray:
    """A kernel that smears along a line."""
    half = int(np.ceil(length / 2))
    kernel = np.zeros((2 * half + 1, 2 * half + 1), dtype=np.float32)
    steps = np.linspace(-length / 2, length / 2, 4 * half + 1)
    x, y = np.rint(half + steps * np.cos(direction)).astype(int), np.rint(half + steps * np.sin(direction)).astype(int)
    np.add.at(kernel, (y.clip(0, 2 * half), x.clip(0, 2 * half)), 1.0)
    return kernel / kernel.sum()
