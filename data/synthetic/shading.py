"""The colour of every covered sample: skin, cloth and things under the lights of a place.

Relief is a height in metres at each sample; its slope on screen bends the normal (Mikkelsen, "Bump mapping
unparametrized surfaces on the GPU", 2010), so every material needs one number and no tangent frame.

Legend: B batch · H, W samples · P covered samples. Vectors are in the person frame.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from common.rasterizer import Fragments, interpolate_covered
from data.synthetic.cloth import cloth_albedo
from data.synthetic.figure import OBJECT, SHIRT, SKIN, SLEEVE, WATCH, Figure, Topology
from data.synthetic.lighting import arriving_light
from data.synthetic.look import LAMPS, RING, SKY, Look
from data.synthetic.noise import Noise, look_up
from data.synthetic.skin import SkinMap, read_map, skin_albedo

# How far light wraps round an edge, R G B: red light travels farthest under skin.
_SKIN_WRAP, _OTHER_WRAP = (0.32, 0.15, 0.09), (0.06, 0.06, 0.06)
_SHADOW_BLUSH = (0.5, -0.05, -0.1)          # how far half shadow on skin is lit, R G B: its border is reddish
_STEEPEST = 1.2                             # slope beyond which relief is not believed
_NECK = 0.255                               # metres up the torso, where skin begins


class Samples(NamedTuple):
    """Covered samples of a batch."""

    place: Tensor           # (P,)      index into B·H·W
    image: Tensor           # (P,)
    normal: Tensor          # (P, 3)
    sky: Tensor             # (P, 3)    light from all round
    lamps: Tensor           # (P, LAMPS)
    uv: Tensor              # (P, 3)
    material: Tensor        # (P,)
    part: Tensor            # (P,)
    ray: Tensor             # (P, 3)    from the camera, of depth 1
    depth: Tensor           # (P,)


class Surface(NamedTuple):
    """What a material gives to shading, for P samples."""

    albedo: Tensor          # (P, 3)
    relief: Tensor          # (P,)      metres
    gloss: Tensor           # (P,)
    metal: Tensor           # (P,)      0, or 1 for metal, whose albedo is its mirror colour
    sharpness: Tensor       # (P,)      exponent of the highlight


def gather_samples(figure: Figure, normals: Tensor, visible: Tensor, look: Look, shared: Topology, fragments: Fragments,
                   rays: Tensor) -> Samples:
    """The covered samples.  rays: (B, H, W, 3)."""
    sky, lamps = arriving_light(normals, visible, look.lights)
    attributes = torch.cat([normals, sky, lamps, figure.uv], dim=-1)
    place, values = interpolate_covered(attributes, shared.faces, fragments)
    face = fragments.face.flatten()[place]
    normal, sky, lamps, uv = values.split([3, 3, LAMPS, 3], dim=-1)
    return Samples(place, place // fragments.face[0].numel(), normalize(normal, dim=-1), sky, lamps, uv,
                   shared.material[face], shared.part[face], rays.flatten(0, 2).index_select(0, place),
                   fragments.depth.flatten()[place])


def shade(samples: Samples, look: Look, skin: SkinMap, steps: tuple[Tensor, Tensor],
          size: tuple[int, int, int]) -> Tensor:
    """Radiance (P, 3) towards the camera, before exposure.

    steps: (B, 3) each: how the ray changes from sample to sample, to the right and down.  size: (B, H, W).
    """
    surface = _surface(samples, look, skin)
    normal = _bent(samples, surface.relief, steps, size)
    to_camera = -normalize(samples.ray, dim=-1)
    is_skin = (samples.material == SKIN)[:, None]
    wrap = torch.where(is_skin, normal.new_tensor(_SKIN_WRAP), normal.new_tensor(_OTHER_WRAP))
    blush = torch.where(is_skin, normal.new_tensor(_SHADOW_BLUSH), 0.0)

    # Relief changes the light from all round as if that came from above and from the camera.
    tilt = normal - samples.normal
    sky = samples.sky * (1 + 0.5 * tilt[:, 1:2] + 0.5 * (tilt * to_camera).sum(-1, keepdim=True)).clamp(0.3, 1.6)
    diffuse, mirrored = sky, 0.5 * sky
    facing = (normal * to_camera).sum(-1).clamp(0, 1)
    for lamp in range(LAMPS):
        first = SKY + lamp * RING
        direction = normalize(look.lights.directions[:, first: first + RING].mean(dim=1), dim=-1)[samples.image]
        color = look.lights.lamps[:, lamp][samples.image]
        seen = samples.lamps[:, lamp, None]
        toward = (normal * direction).sum(-1, keepdim=True)
        diffuse = diffuse + color * ((toward + wrap).clamp(min=0) / (1 + wrap)) * (seen + blush * seen * (1 - seen))
        halfway = normalize(direction + to_camera, dim=-1)
        lobe = (normal * halfway).sum(-1).clamp(0, 1) ** surface.sharpness * (surface.sharpness + 8) / 25
        mirrored = mirrored + color * (lobe[:, None] * seen * (toward > -0.1))

    grazing = (1 - facing).square().square() * (1 - facing)
    fresnel = surface.gloss * (0.035 + 0.35 * grazing)
    mirror = torch.where(surface.metal[:, None] > 0, surface.albedo * 0.9, fresnel[:, None])
    return diffuse * surface.albedo * (1 - surface.metal[:, None]) + mirror * mirrored


def _bent(samples: Samples, relief: Tensor, steps: tuple[Tensor, Tensor], size: tuple[int, int, int]) -> Tensor:
    """Normals (P, 3) bent by the slope of the relief between neighbouring samples of one part."""
    batch, height, width = size
    packed = relief.new_full((batch * height * width + width + 1,), torch.nan)
    packed[samples.place] = relief
    parts = samples.part.new_full((len(packed),), -1)
    parts[samples.place] = samples.part

    normal, ray, depth = samples.normal, samples.ray, samples.depth[:, None]
    leaning = (normal * ray).sum(-1, keepdim=True).clamp(max=-0.15)
    tangents, slopes = [], []
    for offset, step in ((1, steps[0]), (width, steps[1])):
        step = step[samples.image]
        # Where the next ray meets the plane of this surface.
        tangents.append(depth * (step - ray * ((normal * step).sum(-1, keepdim=True) / leaning)))
        after = samples.place + offset
        rise = packed[after] - relief
        slopes.append(torch.where(parts[after] == samples.part, rise, 0.0).nan_to_num(0.0)[:, None])
    across_x, across_y = torch.linalg.cross(tangents[1], normal), torch.linalg.cross(normal, tangents[0])
    area = (tangents[0] * across_x).sum(-1, keepdim=True)
    slope = (slopes[0] * across_x + slopes[1] * across_y) / torch.where(area.abs() < 1e-12, 1e-12, area)
    steepness = slope.norm(dim=-1, keepdim=True)
    slope = slope * (_STEEPEST / steepness.clamp(min=_STEEPEST))
    return normalize(normal - slope, dim=-1)


# ---------------------------------------------------------------- materials

def _surface(samples: Samples, look: Look, skin: SkinMap) -> Surface:
    numbers = samples.uv.new_zeros(len(samples.uv), 7)
    is_neck = (samples.material == SHIRT) & (samples.uv[:, 1] > _NECK)
    is_skin = (samples.material == SKIN) | is_neck
    is_cloth = ((samples.material == SLEEVE) | (samples.material == SHIRT)) & ~is_neck
    for mask, of_material in ((is_skin, _skin), (is_cloth, _cloth), (samples.material >= WATCH, _thing)):
        at = torch.nonzero(mask).squeeze(-1)
        picked = Samples(*(values.index_select(0, at) for values in samples))
        surface = of_material(picked, look, skin)
        numbers[at] = torch.cat([surface.albedo, *(values[:, None] for values in surface[1:])], dim=-1)
    return Surface(numbers[:, :3], *numbers[:, 3:].unbind(-1))


def _skin(samples: Samples, look: Look, skin: SkinMap) -> Surface:
    """Skin, nails and rings."""
    x, z, upward = samples.uv.unbind(-1)
    x = torch.where(samples.material == SKIN, x, x.clamp(0.2, 0.4))                 # necks look like arms
    detail = read_map(skin, x, z, upward)
    person = look.pigment[samples.image]
    shift = person[:, 1] * 4096 + 31.0 * (samples.part % 2)
    blotch = look_up(Noise.BLOTCH, x * 2400 + shift * 5, z * 2400 + 90 * upward)
    freckle = look_up(Noise.GRAIN, x * 1100 + shift, z * 1100)
    freckle = ((freckle - 2.4) * 2).clamp(0, 1) * look.freckles[samples.image]
    albedo = skin_albedo(detail, blotch, freckle, person)

    nail = (1.4 * detail[:, 0]).clamp(max=1)
    polish = look.polish[samples.image]
    albedo = torch.lerp(albedo, polish[:, :3], (polish[:, 3] * nail)[:, None])
    relief = look.relief[samples.image] * detail[:, 7]
    gloss = look.gloss[samples.image] * (1 + 0.9 * nail - 0.35 * detail[:, 3])
    sharpness = 14 + 60 * nail

    ring = look.rings[samples.image, samples.part.clamp(0, 1)]
    dx, dz = x - ring[:, 0], z - ring[:, 1]
    along, across = dx * ring[:, 2] + dz * ring[:, 3], dx * ring[:, 3] - dz * ring[:, 2]
    is_near = (across.abs() < 0.0125) & (ring[:, 5] > 0) & (samples.part < 2)
    inside = 1 - along.abs() / ring[:, 4]
    on_ring = is_near & (inside > 0)
    shaded = is_near & (inside > -0.5)
    albedo = torch.where(shaded[:, None], 0.6 * albedo, albedo)
    albedo = torch.where(on_ring[:, None], look.metal[samples.image], albedo)
    relief = torch.where(on_ring, relief + 0.0012 * inside.clamp(0, 1).sqrt(), relief)
    return Surface(albedo, relief, gloss, on_ring.float(), torch.where(on_ring, 40.0, sharpness))


def _cloth(samples: Samples, look: Look, skin: SkinMap) -> Surface:
    which = (samples.material == SHIRT).long()
    albedo, relief = cloth_albedo(samples.uv[:, 0], samples.uv[:, 1], look.cloth[samples.image, which])
    plain = torch.ones_like(relief)
    return Surface(albedo, relief, 0.35 * plain, 0 * plain, 6 * plain)


def _thing(samples: Samples, look: Look, skin: SkinMap) -> Surface:
    """Watch straps and cases, and the object."""
    is_object = samples.material == OBJECT
    is_case = (samples.material == WATCH) & (samples.part >= 20)
    thing = look.things[samples.image, is_object.long()]
    u, v, w = samples.uv.unbind(-1)
    striped = (is_object & ((thing[:, 4] * w) % 1 > 0.6) & (thing[:, 4] > 1))[:, None]
    albedo = torch.where(striped, 0.2 + 0.6 * (1 - thing[:, :3]), thing[:, :3])
    radius = (u**2 + v**2).sqrt()
    is_dial = is_case & (w > 0.5) & (radius < 0.8)
    metal = (is_case & ~is_dial).float()
    albedo = torch.where(is_dial[:, None], (thing[:, [1, 2, 0]] * 1.4).clamp(0.01, 0.9), albedo)
    albedo = torch.where(metal[:, None] > 0, look.metal[samples.image], albedo)
    worn = look_up(Noise.FRACTAL, u * 130 + 4096 * thing[:, 0], v * 130 + w * 90)
    albedo = (albedo * (1 + 0.06 * worn[:, None])).clamp(0.003, 0.97)
    return Surface(albedo, torch.zeros_like(u), torch.where(is_dial, 1.5, thing[:, 3]), metal,
                   10 + 50 * thing[:, 3].clamp(max=1))
