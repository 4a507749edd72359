"""Random appearance of a batch of images: skin, cloth, accessories, lights and exposure.

A person keeps skin and clothes from image to image, a place its lights and a time step its object: each has dice of
its own. Colours are linear RGB.

Legend: B batch · D = SKY + LAMPS·RING light directions: ambient ones first, then those of each lamp.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from data.synthetic.picture.dice import Dice

SKY, LAMPS, RING = 6, 2, 2
CLOTH_PARAMS = 17

# Where finger rings sit on the resting hand: (x, z) of the middle of a first finger bone, and its direction.
_RING_PLACES = ((-0.016, 0.0240, -0.994, 0.110), (-0.018, 0.0007, -1.0, 0.0), (-0.0095, -0.0203, -0.995, -0.097),
                (0.0057, -0.0385, -0.973, -0.230))


class Keys(NamedTuple):
    """Random keys (B,) int64 that decide the appearance of images. Field names are hashed: do not rename them."""

    person: Tensor
    place: Tensor
    step: Tensor
    picture: Tensor


class Lights(NamedTuple):
    """Ambient light and lamps as light from D directions, person frame."""

    directions: Tensor      # (B, D, 3) unit, towards the light
    sky: Tensor             # (B, SKY, 3)
    lamps: Tensor           # (B, LAMPS, 3)


class Appearance(NamedTuple):
    """Materials, lights and exposure of each image."""

    pigment: Tensor         # (B, 4)        melanin, blood, strength of the skin's detail, hairiness
    gloss: Tensor           # (B,)
    relief: Tensor          # (B,)          factor on the skin's relief
    freckles: Tensor        # (B,)          0 to 1
    polish: Tensor          # (B, 4)        nail polish: colour and opacity
    rings: Tensor           # (B, 2, 6)     finger ring of each hand: x, z, direction x, z, half width, whether worn
    metal: Tensor           # (B, 3)        of rings and watch cases
    cloth: Tensor           # (B, 2, CLOTH_PARAMS)   sleeve, shirt: see `cloth.py`
    solids: Tensor          # (B, 2, 5)     watch strap, held object: colour, gloss, stripes
    lights: Lights
    is_studio: Tensor       # (B,) bool
    exposure: Tensor        # (B,)
    cast: Tensor            # (B, 3)        colour cast


def sample_appearance(person: Dice, place: Dice, step: Dice, is_studio: Tensor) -> Appearance:
    exposure = torch.where(is_studio, place.uniform("studio exposure", 0.13, 0.34),
                           place.uniform("exposure", 0.2, 0.5))
    metal = torch.where(person.chance("gold", 0.5)[:, None], exposure.new_tensor([1.0, 0.72, 0.33]),
                        exposure.new_tensor([0.85, 0.85, 0.87]))
    polish = torch.cat([dye(person, "polish"), (0.92 * person.chance("painted nails", 0.12))[:, None]], dim=-1)
    return Appearance(
        _pigment(person), person.uniform("gloss", 0.5, 1.3), person.uniform("relief", 0.9, 1.9),
        person.uniform("freckles", -1.5, 1.0).clamp(min=0), polish, _rings(person), metal, _clothes(person),
        _solids(person, step), _lights(place, is_studio), is_studio, exposure, _cast(place, is_studio),
    )


def _pigment(person: Dice) -> Tensor:
    melanin = person.uniform("melanin", 0.05, 2.75) * person.uniform("light", 0.55, 1.0)
    return torch.stack([melanin, person.uniform("blood", 0.12, 0.36), person.uniform("detail", 0.6, 1.3),
                        person.uniform("hair", -0.6, 0.8).clamp(min=0)], dim=-1)


def _rings(person: Dice) -> Tensor:
    """At most one finger ring on each hand."""
    places = person.uniform("ring", 0, 1, 2, 1)
    table = places.new_tensor(_RING_PLACES)
    shares = places.new_tensor([0.15, 0.4, 0.9, 1.0])
    place = table[torch.searchsorted(shares, places[..., 0].contiguous()).clamp(max=3)]         # (B, 2, 4)
    half = person.uniform("ring width", 0.0012, 0.0030, 2, 1)
    worn = (person.uniform("rings", 0, 1, 2, 1) < places.new_tensor([[0.18], [0.28]])).float()
    return torch.cat([place, half, worn], dim=-1)


def dye(dice: Dice, name: str) -> Tensor:
    """Colours (B, 3) of dyed or painted things: mostly dark or pale, now and then vivid."""
    value = dice.uniform(name + " value", 0.14, 0.97)
    hue = dice.uniform(name + " hue", 0, 2 * math.pi)[:, None] + value.new_tensor([0.0, 2.094, 4.189])
    saturation = dice.uniform(name + " saturation") ** 2
    value = value * (1 - 0.3 * saturation)                                          # vivid dyes are not bright
    srgb = value[:, None] * (1 - 0.75 * saturation[:, None] * (0.5 - 0.5 * hue.cos()))
    return srgb.clamp(0.03, 0.97) ** 2.2


def paint(dice: Dice, name: str, vivid: float = 0.06) -> Tensor:
    """Colours (B, 3) of rooms and furniture: white, grey, beige, wood, and a share `vivid` of dyes."""
    is_wood = dice.chance(name + " is wood", 0.3)
    value = torch.where(is_wood, dice.uniform(name + " wood", 0.25, 0.75), dice.uniform(name + " tone", 0.2, 0.95))
    saturation = torch.where(is_wood, dice.uniform(name + " grain", 0.4, 0.85),
                             dice.uniform(name + " tint", -0.12, 0.24))[:, None]    # below 0: cold
    hue = dice.uniform(name + " warmth", -0.9, -0.3)[:, None] + value.new_tensor([0.0, 2.094, 4.189])
    plain = (value[:, None] * (1 - 0.75 * saturation * (0.5 - 0.5 * hue.cos()))).clamp(0.03, 0.97) ** 2.2
    return torch.where(dice.chance(name + " is vivid", vivid)[:, None], dye(dice, name), plain)


def _clothes(person: Dice) -> Tensor:
    """Sleeve and shirt (B, 2, CLOTH_PARAMS); mostly of one cloth."""
    shirt, other = _cloth(person, "shirt"), _cloth(person, "sleeve")
    return torch.stack([torch.where(person.chance("one cloth", 0.8)[:, None], shirt, other), shirt], dim=1)


def _cloth(person: Dice, name: str) -> Tensor:
    """Parameters (B, CLOTH_PARAMS) of one cloth, in the order in which `cloth_albedo` reads them."""
    colors = [dye(person, f"{name} {layer}") for layer in range(3)]
    kind = person.pick(name + " pattern", (0.34, 0.18, 0.28, 0.06, 0.14)).float()
    params = [kind, 1 / person.uniform(name + " period", 0.008, 0.07),
              1 / person.uniform(name + " second", 0.02, 0.09), person.uniform(name + " share", 0.2, 0.6),
              person.chance(name + " turn", 0.5).float(), person.uniform(name + " folds", 0.5, 1.5),
              person.uniform(name + " weave", 0.3, 1.2), person.uniform(name + " offset", 0, 4096)]
    return torch.cat([*colors, torch.stack(params, dim=-1)], dim=-1)


def _solids(person: Dice, step: Dice) -> Tensor:
    gloss = person.uniform("strap gloss", 0.1, 0.8, 1)
    strap = torch.cat([dye(person, "strap") * 0.6, gloss, torch.zeros_like(gloss)], dim=-1)
    held = torch.cat([dye(step, "thing"), step.uniform("thing gloss", 0.05, 1.2, 1),
                      step.uniform("stripes", -6.0, 6.0, 1).clamp(min=0)], dim=-1)
    return torch.stack([strap, held], dim=1)


def _cast(place: Dice, is_studio: Tensor) -> Tensor:
    """Colour cast (B, 3): towards yellow and green in the studio, warm or cold elsewhere."""
    lean, warm = place.uniform("lean"), 0.07 * place.normal("warm")
    studio = 1 + lean[:, None] * lean.new_tensor([-0.03, 0.10, -0.38])
    elsewhere = torch.stack([1 + warm, 1 + 0.02 * place.normal("green"), 1 - warm], dim=-1)
    return torch.where(is_studio[:, None], studio, elsewhere)


# ---------------------------------------------------------------- light

def _lights(place: Dice, is_studio: Tensor) -> Lights:
    """The studio: nearly uniform light and two stronger lamps. Elsewhere: coloured surroundings, a window, a lamp."""
    axis = place.direction("turn a")
    side = normalize(torch.linalg.cross(axis, place.direction("turn b")), dim=-1)
    basis = torch.stack([axis, side, torch.linalg.cross(axis, side)], dim=-1)       # a random rotation
    around = _fibonacci_sphere(SKY).to(axis) @ basis.transpose(-1, -2)              # (B, SKY, 3)
    height = around[..., 1:2] * 0.5 + 0.5

    even = (0.8 / SKY * (1 + 0.8 * around[..., 1:2])).expand(-1, -1, 3)
    above, below = (place.uniform(name, 0.5, 1.0, 1) * (1 + 0.1 * place.normal(name + " tint", 3))
                    for name in ("above", "below"))
    room = place.uniform("sky", 0.18, 0.55)[:, None, None] / SKY * (
        height * above[:, None] * 1.4 + (1 - height) * below[:, None] * 0.7)
    studio = is_studio[:, None]
    first = torch.where(is_studio, place.uniform("first studio", 0.15, 0.5), place.uniform("first", 0.3, 1.0))
    second = torch.where(is_studio, place.uniform("second studio", 0.1, 0.4), place.uniform("second", -0.25, 0.5))
    strength = torch.stack([first, second.clamp(min=0)], dim=1)
    warm = 0.09 * place.normal("temperature")
    tint = torch.stack([1 + warm, torch.ones_like(warm), 1 - warm], dim=-1)
    tints = torch.where(studio[..., None], 1.0, torch.stack([tint, 2 - tint], dim=1))
    rings = [_ring(place, name, torch.where(is_studio, 0.12, place.uniform(name + " radius", 0.03, 0.3)))
             for name in ("lamp 0", "lamp 1")]
    return Lights(torch.cat([around, *rings], dim=1), torch.where(studio[..., None], even, room).clamp(min=0),
                  strength[..., None] * tints)


def _ring(place: Dice, name: str, radius: Tensor) -> Tensor:
    """Directions (B, RING, 3) around the centre of a lamp, which is mostly above and on the cameras' side."""
    center = place.normal(name, 3)
    center = normalize(center * center.new_tensor([1.0, 0.6, 0.8]) + center.new_tensor([0.0, 0.7, 0.5]), dim=-1)
    side = normalize(torch.linalg.cross(center, center.new_tensor([0.3, 1.0, 0.2]).expand_as(center)), dim=-1)
    up = torch.linalg.cross(side, center)
    angle = torch.arange(RING, device=center.device)[:, None] * (2 * math.pi / RING) + 0.5
    spread = angle.cos() * side[:, None] + angle.sin() * up[:, None]                # (B, RING, 3)
    return normalize(center[:, None] + radius[:, None, None] * spread, dim=-1)


def _fibonacci_sphere(count: int) -> Tensor:
    """Unit directions (count, 3), spread evenly."""
    k = torch.arange(count) + 0.5
    height, azimuth = 1 - 2 * k / count, math.pi * (1 + 5**0.5) * k
    radius = (1 - height**2).sqrt()
    return torch.stack([azimuth.cos() * radius, height, azimuth.sin() * radius], dim=1)
