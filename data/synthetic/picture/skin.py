"""Skin: a detail map over the resting hand and arm, and the albedo that follows from its pigments.

The map has two charts, palm and back, both projected along y: `x` runs from the fingertips along the arm, `z` towards
the thumb. It is baked once from the channels of the built-in hand, with hair, pores and fine lines added here.

Legend: P samples · C channels of the map · H, W texels. Rest frame of a right hand, metres.
"""

from typing import NamedTuple

import cv2
import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from common.mano.load import BUILTIN_HAND
from common.view.rasterizer import interpolate, rasterize
from data.synthetic.picture.noise import Noise, look_up, look_up_smooth

ARM_END = 0.46              # x on the upper arm where the map ends; its last texels continue
_LOW, _HIGH = np.array([-0.10, -0.075]), np.array([ARM_END, 0.105])        # (x, z)
_TEXEL = 0.0006
_PALM, _BACK = 0, 1
MAP_CHANNELS = ("nail", "crease", "knuckle", "palm", "tip", "vein", "tendon", "height", "hair")
_HAIRS = 9000
_LUMPS = 0.4e-4             # standard deviation of the skin's unevenness

# R G B: absorption by melanin and blood, and the albedo of skin without either. Ratios after Jacques, "Optical
# properties of biological tissues", Phys. Med. Biol. 2013, in the broad bands of a camera.
_MELANIN = (1.0, 1.25, 1.48)
_BLOOD = (0.10, 1.0, 0.85)
_DERMIS = (0.93, 0.82, 0.72)
_VEIN = (0.17, 0.06, 0.03)              # share of the albedo that a vein removes
_HAIR = (0.30, 0.27, 0.24)              # factor of hair on the albedo


class SkinMap(NamedTuple):
    """Skin detail over the resting hand and arm."""

    table: Tensor           # (2·H·W, C)    palm, back
    size: tuple[int, int]   # H along z, W along x


def skin_map(rest: np.ndarray, faces: np.ndarray, device: torch.device | str = "cpu") -> SkinMap:
    """The skin of the built-in hand.  rest: (12337, 3) its fine mesh at rest.  faces: (24608, 3)."""
    with np.load(BUILTIN_HAND, allow_pickle=False) as file:
        names = [str(name) for name in file["skin_channels"]]
        values = np.concatenate([file["skin"] / 255, file["bump"][:, None] * 1e-5], axis=1, dtype=np.float32)
    height, width = (np.ceil((_HIGH - _LOW) / _TEXEL).astype(int))[::-1]
    charts = np.stack([_chart(rest, faces, values, side, height, width) for side in (-1.0, 1.0)])
    layers = {name: charts[..., k] for k, name in enumerate([*names, "height"])}
    layers["hair"] = np.stack([np.zeros((height, width), np.float32), _hair(height, width)])
    _continue_on_arm(layers, width)
    layers["height"] = layers["height"] + _fine_relief(layers, height, width)
    table = np.stack([layers[name] for name in MAP_CHANNELS], axis=-1).astype(np.float32)
    return SkinMap(torch.from_numpy(table.reshape(-1, len(MAP_CHANNELS))).to(device), (int(height), int(width)))


def _chart(rest: np.ndarray, faces: np.ndarray, values: np.ndarray, side: float, height: int,
           width: int) -> np.ndarray:
    """Vertex values (12337, C) as a map (H, W, C) of the back (side 1) or palm (−1), padded with the nearest values."""
    texels = (rest[:, [0, 2]] - _LOW) / _TEXEL
    vertices = np.concatenate([texels, 1 - side * rest[:, 1:2]], axis=1)
    triangles = torch.from_numpy(faces.astype(np.int64))
    fragments = rasterize(torch.from_numpy(vertices)[None].float(), triangles, height, width)
    image = interpolate(torch.from_numpy(values), triangles, fragments)[0].numpy()
    nearest = ndimage.distance_transform_edt(fragments.face[0].numpy() < 0, return_distances=False, return_indices=True)
    return image[tuple(nearest)]


def _continue_on_arm(layers: dict[str, np.ndarray], width: int) -> None:
    """Extend the layers over the arm, in place: the palm fades into its inner side, veins continue."""
    past = (np.arange(width) * _TEXEL + _LOW[0] - 0.095) / 0.10
    fade = np.clip(1 - past, 0, 1).astype(np.float32)
    layers["palm"] = layers["palm"] * (0.35 + 0.65 * fade)
    layers["crease"] = layers["crease"] * (past < 0.14)
    layers["height"] = layers["height"] * fade
    y, x = np.mgrid[: layers["vein"].shape[1], :width].astype(np.float32) * _TEXEL
    x, z = x + _LOW[0], y + _LOW[1]
    for bend, offset, strength in ((0.010, 0.012, 0.8), (0.014, -0.014, 0.7), (0.008, 0.026, 0.5)):
        line = np.exp(-(((z - offset - bend * np.sin(38 * x + 40 * offset)) / 0.0018) ** 2)) * (x > 0.10)
        layers["vein"] = np.maximum(layers["vein"], strength * line * np.clip((x - 0.10) / 0.03, 0, 1))


def _hair(height: int, width: int) -> np.ndarray:
    """Hairs (H, W), dense on the forearm and sparse on the hand; one of strength s shows at a hairiness above 1 − s."""
    rng, hair = np.random.default_rng(8), np.zeros((height, width), np.float32)
    for strength in np.sort(rng.uniform(0.1, 1, _HAIRS)):
        x = _LOW[0] + (_HIGH[0] - _LOW[0]) * rng.random()
        if x < 0.0 or (x < 0.10 and rng.random() > 0.06):
            continue
        z = rng.uniform(_LOW[1], _HIGH[1])
        direction = 0.5 + 9 * z + rng.normal(0, 0.35)
        length = rng.uniform(0.005, 0.014)
        directions = direction + np.cumsum(np.full(4, rng.normal(0, 0.12)))
        steps = np.stack([-np.cos(directions), np.sin(directions)], axis=1) * length / 4
        points = (np.cumsum(np.concatenate([[(x, z)], steps]), axis=0) - _LOW) / _TEXEL
        cv2.polylines(hair, [np.round(points * 16).astype(np.int32)], False, float(strength), 1, cv2.LINE_AA, shift=4)
    return hair


def _fine_relief(layers: dict[str, np.ndarray], height: int, width: int) -> np.ndarray:
    """Relief (2, H, W) in metres of pores, fine lines, swollen veins, and of fat and tendons below the skin."""
    z, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    net = look_up_smooth(Noise.FOLDS, 9.0 * x + 5.0 * z, 9.0 * z - 3.0 * x)
    pores = look_up(Noise.GRAIN, x, z)
    veins = 0.00025 * layers["vein"] * np.clip((np.arange(width) * _TEXEL + _LOW[0] - 0.09) / 0.02, 0, 1)
    # Lumps are 6 to 20 mm wide, and longer along the hand than across it.
    lumps = look_up_smooth(Noise.MOTTLE, 0.9 * x + 100, 1.4 * z)
    return (-1.2e-5 * net - 0.8e-5 * pores + _LUMPS * lumps).numpy()[None] + veins


def read_map(skin: SkinMap, x: Tensor, z: Tensor, upward: Tensor) -> Tensor:
    """Channels (P, C) at rest positions x, z (P,); upward: (P,) of the normal, positive on the back."""
    height, width = skin.size
    column = ((x - _LOW[0]) / _TEXEL).round().long().clamp(0, width - 1)
    row = ((z - _LOW[1]) / _TEXEL).round().long().clamp(0, height - 1)
    return skin.table.index_select(0, ((upward > 0).long() * height + row) * width + column)


def skin_albedo(detail: Tensor, blotch: Tensor, freckle: Tensor, person: Tensor) -> Tensor:
    """Albedo (3, P), linear RGB.

    detail: (C, P) of the map.  blotch: (P,) noise of variance 1.  freckle: (P,) in [0, 1].
    person: (4, P) as `Appearance.pigment`.
    """
    melanin, blood, strength, hairiness = person
    nail, crease, knuckle, palm, tip, vein, _, _, hair = detail
    nail = (1.4 * nail).clamp(max=1)
    melanin = melanin * (1 - 0.62 * palm) * (1 + strength * (0.38 * knuckle + 0.30 * crease) + 0.03 * blotch)
    melanin = melanin * (1 - 0.45 * nail) + 0.5 * freckle
    blood = blood * (1 + strength * (0.55 * tip + 0.7 * knuckle + 0.3 * palm + 0.6 * crease) + 0.15 * blotch)
    blood = (blood * (1 - 0.1 * nail)).clamp(min=0.02)
    veins, creases = strength * vein, 1 - 0.24 * (strength * crease).clamp(max=1.5)
    drawn = (2 * (hair - 1 + hairiness)).clamp(0, 0.42)
    return torch.stack([
        _DERMIS[c] * (-_MELANIN[c] * melanin - _BLOOD[c] * blood).exp() * (1 - _VEIN[c] * veins) * creases
        * (1 - (1 - _HAIR[c]) * drawn) for c in range(3)
    ])
