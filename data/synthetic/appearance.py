"""What things look like: skin, cloth, lights and surroundings of one capture.

Colours are linear RGB reflectance or radiance unless a name says `srgb`.
"""

from typing import NamedTuple

import cv2
import numpy as np

from common.mano import BUILTIN_HAND
from data.synthetic.body import ArmStyle

TEXTURE = 256               # side of a tileable texture, pixels
_TEXELS_PER_METRE = 1700

_SKY_DIRECTIONS = 12        # light from all round
# Skin from very light to very dark, sRGB.
_SKIN_SRGB = np.array([
    [247, 221, 205], [238, 202, 178], [226, 180, 148], [206, 153, 117], [178, 122, 88], [141, 92, 64], [105, 67, 48],
    [72, 46, 35],
]) / 255


class SkinDetail(NamedTuple):
    """Per vertex of the fine surface."""

    channels: dict[str, np.ndarray]     # name: (12337,) in [0, 1]
    bump: np.ndarray                    # (12337,) metres along the normal
    rest: np.ndarray                    # (12337, 3) where the vertex rests


def load_skin_detail(rest: np.ndarray) -> SkinDetail:
    """The built-in hand's skin detail.  rest: (12337, 3) its fine surface at rest."""
    with np.load(BUILTIN_HAND, allow_pickle=False) as file:
        names, values = file["skin_channels"], file["skin"].astype(np.float32) / 255
        bump = file["bump"].astype(np.float32) * 1e-5
    return SkinDetail({str(name): values[:, k] for k, name in enumerate(names)}, bump, rest)


class Lights(NamedTuple):
    """Light from D directions, with soft shadows from those marked."""

    directions: np.ndarray      # (D, 3) unit, person frame, towards the light
    colors: np.ndarray          # (D, 3)
    is_sharp: np.ndarray        # (D,) bool: part of a lamp, makes highlights


class Person(NamedTuple):
    """One identity and what it wears."""

    shape: np.ndarray           # (10,) hand shape
    albedo: np.ndarray          # (2, 12337, 3) right and left hand
    arm_albedo: np.ndarray      # (3,)
    gloss: float
    bump_gain: float
    arms: ArmStyle
    torso: np.ndarray           # (3,)
    textures: np.ndarray        # (4, TEXTURE, TEXTURE, 3): reflectance of body.HAND, ARM, SLEEVE, SHIRT


class Surroundings(NamedTuple):
    """Where a capture takes place."""

    kind: str                   # "studio" or "room"
    lights: Lights
    lamps: np.ndarray           # (N, 3) visible lamps of a studio, person frame
    cast: np.ndarray            # (3,) colour cast of the pictures
    exposure: float
    has_torso: bool
    seed: int                   # of the room's clutter


def sample_person(detail: SkinDetail, rng: np.random.Generator) -> Person:
    skin = _skin_color(rng)
    shape = np.clip(rng.normal(0, 0.9, 10), -2.2, 2.2)
    style = rng.choice(["bare", "rolled", "long"], p=[0.5, 0.2, 0.3])
    cuff = {"bare": rng.uniform(0.26, 0.38), "rolled": rng.uniform(0.10, 0.2), "long": rng.uniform(0.0, 0.035)}[style]
    arms = ArmStyle(
        rng.uniform(0.85, 1.15), cuff, rng.uniform(0.006, 0.014) if style != "long" else rng.uniform(0.004, 0.008),
        np.stack([rng.uniform(0.3, 1.6, 4), rng.integers(1, 5, 4), rng.uniform(0, 2 * np.pi, 4)], axis=1),
    )
    cloth = _cloth_texture(rng)
    sleeve = cloth if rng.random() < 0.75 else _cloth_texture(rng)
    # The shirt is sampled coarsely: it is smoothed so that its pattern does not shimmer.
    shirt = cv2.GaussianBlur(np.tile(cloth, (3, 3, 1)), (0, 0), 1.8)[TEXTURE: 2 * TEXTURE, TEXTURE: 2 * TEXTURE]
    textures = np.stack([np.ones((TEXTURE, TEXTURE, 3)), _arm_texture(rng), sleeve, shirt]).astype(np.float32)
    albedo = np.stack([_hand_albedo(skin, detail, rng) for _ in range(2)]).astype(np.float32)
    return Person(shape, albedo, skin.astype(np.float32), rng.uniform(0.4, 1.2), rng.uniform(1.0, 2.2), arms,
                  rng.uniform(0.85, 1.2, 3), textures)


def _skin_color(rng: np.random.Generator) -> np.ndarray:
    place = rng.uniform(0, len(_SKIN_SRGB) - 1)
    low = min(int(place), len(_SKIN_SRGB) - 2)
    srgb = _SKIN_SRGB[low] + (place - low) * (_SKIN_SRGB[low + 1] - _SKIN_SRGB[low])
    srgb = srgb + rng.uniform(0.05, 0.25) * (srgb.mean() - srgb)        # shadows and bounces redden it again
    tint = 1 + rng.normal(0, 0.03) * np.array([1.0, 0.1, -0.6]) + rng.normal(0, 0.015, 3)
    return np.clip(to_linear(srgb * tint), 0.01, 0.9)


def _hand_albedo(skin: np.ndarray, detail: SkinDetail, rng: np.random.Generator) -> np.ndarray:
    """Reflectance (12337, 3) of a hand: paler palms, red knuckles and tips, nails, veins, blotches and pores."""
    c, lightness = detail.channels, skin.mean()
    strength = {name: rng.uniform(0.6, 1.3) for name in c}
    def layer(name: str) -> np.ndarray:
        return (c[name] * strength[name])[:, None]

    color = np.broadcast_to(skin, (len(detail.rest), 3))
    palm = 0.45 * skin + 0.55 * to_linear(np.array([0.87, 0.66, 0.55])) * (0.35 + 0.75 * lightness**0.35)
    color = color + layer("palm") * 0.8 * (palm - color)
    redden = np.array([1.06, 0.80, 0.76])
    color = color * (1 + layer("knuckle") * 0.5 * (redden * (0.72 + 0.3 * lightness) - 1))
    color = color * (1 + layer("tip") * 0.45 * (redden - 1))
    paleness = 0.12 + 0.35 * lightness**0.5
    nail = (1 - paleness) * color + paleness * to_linear(np.array([0.95, 0.74, 0.68]))
    color = color + np.minimum(layer("nail"), 1) * (nail * 1.05 - color)
    color = color * (1 - layer("crease") * np.array([0.32, 0.42, 0.45]))
    color = color * (1 + layer("vein") * 0.6 * (np.array([0.80, 0.93, 0.98]) - 1))
    color = color * (1 + layer("tendon") * 0.05)

    blotch = 0.06 * waves(detail.rest, 0.018, 24, rng) + 0.04 * waves(detail.rest, 0.006, 24, rng)
    color = color * (1 + blotch[:, None] * np.array([0.6, 1.0, 1.0]))
    color = color * (1 + rng.normal(0, 0.022, len(color))[:, None])
    if rng.random() < 0.3:
        color = color * (1 - 0.4 * _freckles(detail.rest, rng)[:, None] * np.array([0.6, 0.9, 1.0]))
    return np.clip(color, 0.004, 0.95)


def _freckles(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    centers = points[rng.choice(len(points), rng.integers(15, 80), replace=False)]
    distance = np.sqrt(((points[:, None] - centers) ** 2).sum(-1)).min(axis=1)
    return np.clip(1.6 - distance / 0.0013, 0, 1)


def waves(points: np.ndarray, wavelength: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of unit variance at points (N, 3): a sum of random plane waves."""
    frequency = rng.normal(0, 1, (count, 3)) * (2 * np.pi / wavelength / 1.7)
    phase = rng.uniform(0, 2 * np.pi, count)
    return np.sin(points @ frequency.T + phase).sum(axis=1) * np.sqrt(2 / count)


# ---------------------------------------------------------------- textures

def _arm_texture(rng: np.random.Generator) -> np.ndarray:
    """A factor on arm skin: blotches, pores and hair along the arm."""
    texture = 1 + 0.05 * _tile_noise(40, rng) + 0.03 * _tile_noise(9, rng) + 0.02 * _tile_noise(1.2, rng)
    hair = np.zeros((TEXTURE, TEXTURE), np.float32)
    for _ in range(int(rng.choice([0, 0, 150, 500, 900]))):
        x, y = rng.integers(0, TEXTURE, 2)
        dx, dy = rng.normal(3, 4), rng.uniform(8, 20)
        cv2.line(hair, (x, y), (int(x + dx), int(y + dy)), 1.0, 1, cv2.LINE_AA)
    texture = texture * (1 - rng.uniform(0.2, 0.45) * cv2.GaussianBlur(hair, (0, 0), 0.6))
    return np.repeat(texture[..., None], 3, axis=2)


def _cloth_texture(rng: np.random.Generator) -> np.ndarray:
    """Reflectance of cloth: plain, striped, checked or printed."""
    base, second, third = (_cloth_color(rng) for _ in range(3))
    kind = rng.choice(["plain", "stripes", "plaid", "dots", "print"], p=[0.45, 0.15, 0.2, 0.08, 0.12])
    y, x = np.mgrid[:TEXTURE, :TEXTURE] / TEXTURE
    texture = np.broadcast_to(base, (TEXTURE, TEXTURE, 3)).copy()
    if kind == "stripes":
        count = rng.integers(2, 12)
        mask = (((x if rng.random() < 0.5 else y) * count) % 1 < rng.uniform(0.2, 0.6))[..., None]
        texture = np.where(mask, second, texture)
    elif kind == "plaid":
        for color, count, share in ((second, rng.integers(2, 5), 0.45), (third, rng.integers(2, 7), 0.12)):
            bars = ((x * count) % 1 < share).astype(float) + ((y * count) % 1 < share)
            texture = texture + 0.5 * bars[..., None] * (color - texture)
    elif kind == "dots":
        count = rng.integers(4, 12)
        mask = ((x * count) % 1 - 0.5) ** 2 + ((y * count) % 1 - 0.5) ** 2 < rng.uniform(0.02, 0.1)
        texture = np.where(mask[..., None], second, texture)
    elif kind == "print":
        mask = np.clip(0.5 + 2.5 * _tile_noise(rng.uniform(6, 25), rng), 0, 1)[..., None]
        texture = texture + mask * (second - texture)
    weave = 1 + 0.05 * _tile_noise(0.8, rng) + 0.10 * _tile_noise(22, rng)
    return np.clip(texture * weave[..., None], 0.003, 0.95)


def _cloth_color(rng: np.random.Generator) -> np.ndarray:
    value = rng.beta(1.2, 2.0)
    hue = rng.uniform(0, 1, 3)
    color = value * (1 + rng.uniform(0, 0.9) * (hue - hue.mean()) * 2)
    return np.clip(to_linear(np.clip(color, 0.02, 0.95)), 0.003, 0.9)


def _tile_noise(sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Noise (TEXTURE, TEXTURE) of unit variance, blurred by `sigma` pixels, that tiles."""
    white = np.fft.rfft2(rng.normal(0, 1, (TEXTURE, TEXTURE)))
    fy, fx = np.fft.fftfreq(TEXTURE)[:, None], np.fft.rfftfreq(TEXTURE)
    noise = np.fft.irfft2(white * np.exp(-2 * (np.pi * sigma) ** 2 * (fx**2 + fy**2)), s=(TEXTURE, TEXTURE))
    return noise / max(noise.std(), 1e-9)


def look_up(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """The texel (N, 3) of a tileable texture at uv (N, 2), metres."""
    texel = np.floor(uv * _TEXELS_PER_METRE).astype(np.int64) % TEXTURE
    return texture[texel[:, 1], texel[:, 0]]


# ---------------------------------------------------------------- light

def sample_surroundings(rng: np.random.Generator) -> Surroundings:
    kind = str(rng.choice(["studio", "room"], p=[0.5, 0.5]))
    if kind == "studio":
        lamps = _lamp_ring(rng)
        cast = np.array([1.0, 1.0, 1.0]) * (1 + rng.uniform(0, 1) * np.array([-0.02, 0.06, -0.30]))
        return Surroundings(kind, _studio_lights(rng), lamps, cast, rng.uniform(0.38, 0.68), rng.random() < 0.8, 0)
    warm = rng.normal(0, 0.06)
    cast = np.array([1 + warm, 1.0 + rng.normal(0, 0.02), 1 - warm])
    return Surroundings(kind, _room_lights(rng), np.zeros((0, 3)), cast, rng.uniform(0.45, 0.75), rng.random() < 0.55,
                        int(rng.integers(2**31)))


def _studio_lights(rng: np.random.Generator) -> Lights:
    """Many lamps all round: nearly even light, a few stronger ones."""
    ambient = fibonacci_sphere(_SKY_DIRECTIONS, rng)
    sky = np.full((_SKY_DIRECTIONS, 3), 0.58 / _SKY_DIRECTIONS) * (1 + 0.5 * np.clip(ambient[:, 1:2], -0.9, 1))
    return _with_lamps(ambient, sky, [(rng.uniform(0.15, 0.5), _lamp_direction(rng), 0.08, np.ones(3))
                                      for _ in range(2)])


def _room_lights(rng: np.random.Generator) -> Lights:
    """Coloured surroundings and one or two lamps or windows."""
    ambient = fibonacci_sphere(_SKY_DIRECTIONS, rng)
    above, below = (rng.uniform(0.5, 1.0) * (1 + rng.normal(0, 0.08, 3)) for _ in range(2))
    height = ambient[:, 1:2] * 0.5 + 0.5
    level = rng.uniform(0.2, 0.6) / _SKY_DIRECTIONS
    sky = level * (height * above * 1.4 + (1 - height) * below * 0.7)
    temperature = rng.normal(0, 0.07)
    warm = np.array([1 + temperature, 1.0, 1 - temperature])
    lamps = [(rng.uniform(0.25, 0.9), _lamp_direction(rng), rng.uniform(0.04, 0.25), warm)]
    if rng.random() < 0.6:
        lamps.append((rng.uniform(0.1, 0.4), _lamp_direction(rng), rng.uniform(0.05, 0.3), 2 - warm))
    return _with_lamps(ambient, sky, lamps)


def _lamp_direction(rng: np.random.Generator) -> np.ndarray:
    """Mostly from above and from the side that the cameras are on."""
    direction = rng.normal(0, 1, 3) * (1.0, 0.6, 0.8) + (0.0, 0.7, 0.5)
    return direction / np.linalg.norm(direction)


def _with_lamps(ambient: np.ndarray, sky: np.ndarray, lamps) -> Lights:
    """Lights with each lamp (strength, direction, radius, colour) split into a ring of four for a soft shadow."""
    directions, colors = [ambient], [sky]
    for strength, direction, radius, color in lamps:
        side = np.cross(direction, [0.3, 1.0, 0.2])
        side = side / np.linalg.norm(side)
        up = np.cross(side, direction)
        angle = np.pi / 4 + np.arange(4) * np.pi / 2
        ring = direction + radius * (np.cos(angle)[:, None] * side + np.sin(angle)[:, None] * up)
        directions.append(ring / np.linalg.norm(ring, axis=1, keepdims=True))
        colors.append(np.tile(strength * color / 4, (4, 1)))
    directions, colors = np.concatenate(directions), np.concatenate(colors)
    return Lights(directions, colors, np.arange(len(directions)) >= len(ambient))


def _lamp_ring(rng: np.random.Generator) -> np.ndarray:
    """Lamps on a cage round the hands."""
    count = int(rng.integers(0, 700))       # a picture shows about one in a hundred
    directions = fibonacci_sphere(max(count, 1), rng)[:count]
    return directions * rng.uniform(1.6, 2.2)


def fibonacci_sphere(count: int, rng: np.random.Generator) -> np.ndarray:
    """Evenly spread unit directions (count, 3), randomly turned."""
    k = np.arange(count) + 0.5
    height, turn = 1 - 2 * k / count, np.pi * (1 + 5**0.5) * k
    flat = np.sqrt(1 - height**2)
    points = np.stack([np.cos(turn) * flat, height, np.sin(turn) * flat], axis=1)
    basis, _ = np.linalg.qr(rng.normal(0, 1, (3, 3)))
    return points @ basis.T


def to_linear(srgb: np.ndarray) -> np.ndarray:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((np.maximum(srgb, 0) + 0.055) / 1.055) ** 2.4)
