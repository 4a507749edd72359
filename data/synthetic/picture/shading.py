"""Radiance of every covered sample: skin, cloth and accessories under the lights of a place.

Relief is a height in metres at each sample; its screen-space slope perturbs the normal (Mikkelsen, "Bump mapping
unparametrized surfaces on the GPU", 2010), so a material needs one scalar and no tangent frame.

Legend: B batch · H, W samples · P covered samples. Vectors are in the person frame and stored as (3, P): sums over
whole rows are many times as fast.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from common.view.rasterizer import Fragments, interpolate_covered
from data.synthetic.picture.appearance import LAMPS, RING, SKY, Appearance, Lights
from data.synthetic.picture.body import OBJECT, SHIRT, SKIN, WATCH, WATCH_CASES, Body, Topology
from data.synthetic.picture.cloth import cloth_albedo
from data.synthetic.picture.lighting import arriving_light
from data.synthetic.picture.noise import Noise, look_up
from data.synthetic.picture.skin import MAP_CHANNELS, SkinMap, read_map, skin_albedo

# Wrap lighting past the terminator, R G B: red light scatters farthest under skin.
_SKIN_WRAP, _OTHER_WRAP = (0.27, 0.14, 0.09), (0.06, 0.06, 0.06)
_SHADOW_BLUSH = (0.3, -0.03, -0.06)         # light added in the penumbra on skin, R G B: scattering makes it reddish
_STEEPEST = 1.2                             # slope to which relief is clamped
_NECK = 0.255                               # height on the torso where skin begins, metres


class Samples(NamedTuple):
    """Interpolated attributes of the covered samples of a batch."""

    index: Tensor           # (P,)      into B·H·W
    image: Tensor           # (P,)      index into B
    normal: Tensor          # (3, P)
    sky: Tensor             # (3, P)    ambient irradiance
    lamps: Tensor           # (LAMPS, P) visible share of each lamp
    uv: Tensor              # (3, P)
    material: Tensor        # (P,)
    part: Tensor            # (P,)
    ray: Tensor             # (3, P)    from the camera, of depth 1
    depth: Tensor           # (P,)


class Material(NamedTuple):
    """Material properties of P samples."""

    albedo: Tensor          # (3, P)
    relief: Tensor          # (P,)      metres
    gloss: Tensor           # (P,)
    metal: Tensor           # (P,)      0, or 1 for metal, whose albedo is its specular colour
    sharpness: Tensor       # (P,)      exponent of the specular lobe


def gather_samples(body: Body, normals: Tensor, visible: Tensor, lights: Lights, topology: Topology,
                   fragments: Fragments, rays: Tensor) -> Samples:
    """The covered samples.

    normals: (B, V, 3).  visible: (B, D, V) share of each light direction.  rays: (3, B·H·W) of all samples.
    """
    sky, lamps = arriving_light(normals, visible, lights)
    attributes = torch.cat([normals, sky, lamps, body.uv], dim=-1)
    index, values = interpolate_covered(attributes, topology.faces, fragments)
    face = fragments.face.flatten().index_select(0, index)
    normal, sky, lamps, uv = values.split([3, 3, LAMPS, 3])
    return Samples(index, index // fragments.face[0].numel(), _unit(normal), sky, lamps, uv,
                   topology.material.index_select(0, face), topology.part.index_select(0, face),
                   rays.index_select(1, index), fragments.depth.flatten().index_select(0, index))


def shade(samples: Samples, appearance: Appearance, skin: SkinMap, steps: tuple[Tensor, Tensor],
          size: tuple[int, int, int]) -> Tensor:
    """Radiance (3, P) towards the camera, before exposure.

    steps: (B, 3) each, change of the ray from one sample to the next, rightwards and downwards.  size: (B, H, W).
    """
    material = _material(samples, appearance, skin)
    normal = _perturbed(samples, material.relief, steps, size)
    to_camera = -_unit(samples.ray)
    is_skin = (samples.material == SKIN).to(normal.dtype)

    # Relief modulates ambient light as if that came from above and from the camera.
    tilt = normal - samples.normal
    sky = samples.sky * (1 + 0.5 * tilt[1] + 0.5 * _dot(tilt, to_camera)).clamp(0.3, 1.6)
    diffuse, specular = sky.clone(), 0.5 * sky
    facing = _dot(normal, to_camera).clamp(0, 1)
    for lamp in range(LAMPS):
        first = SKY + lamp * RING
        directions = appearance.lights.directions[:, first: first + RING].mean(dim=1)
        direction = _per_sample(_unit(directions.T), samples)
        color = _per_sample(appearance.lights.lamps[:, lamp].T, samples)
        visible = samples.lamps[lamp]
        penumbra = visible * (1 - visible) * is_skin
        toward = _dot(normal, direction)
        for c in range(3):
            wrap = _OTHER_WRAP[c] + (_SKIN_WRAP[c] - _OTHER_WRAP[c]) * is_skin
            lit = visible + _SHADOW_BLUSH[c] * penumbra
            diffuse[c] += color[c] * lit * (toward + wrap).clamp(min=0) / (1 + wrap)
        halfway = _unit(direction + to_camera)
        lobe = _dot(normal, halfway).clamp(0, 1) ** material.sharpness * (material.sharpness + 8) / 25
        specular += color * (lobe * visible * (toward > -0.1))

    grazing = (1 - facing).square().square() * (1 - facing)
    fresnel = material.gloss * (0.035 + 0.35 * grazing)
    reflectance = torch.lerp(fresnel.expand(3, -1), 0.9 * material.albedo, material.metal)
    return diffuse * material.albedo * (1 - material.metal) + reflectance * specular


def _perturbed(samples: Samples, relief: Tensor, steps: tuple[Tensor, Tensor], size: tuple[int, int, int]) -> Tensor:
    """Normals (3, P) perturbed by the slope of the relief (P,) between neighbouring samples of one part."""
    batch, height, width = size
    heights = relief.new_zeros(batch * height * width + width + 1)
    heights[samples.index] = relief
    parts = samples.part.new_full((len(heights),), -1)
    parts[samples.index] = samples.part

    normal, ray, depth = samples.normal, samples.ray, samples.depth
    leaning = _dot(normal, ray).clamp(max=-0.15)            # bounds the tangents at grazing angles
    tangents, rises = [], []
    for offset, step in ((1, steps[0]), (width, steps[1])):
        step = _per_sample(step.T, samples)
        # To the point where the next ray hits the tangent plane.
        tangents.append(depth * (step - ray * (_dot(normal, step) / leaning)))
        after = samples.index + offset
        rises.append((heights.index_select(0, after) - relief) * (parts.index_select(0, after) == samples.part))
    across_x, across_y = _cross(tangents[1], normal), _cross(normal, tangents[0])
    area = _dot(tangents[0], across_x)
    slope = (rises[0] * across_x + rises[1] * across_y) / torch.where(area.abs() < 1e-12, 1e-12, area)
    slope = slope * (_STEEPEST / _dot(slope, slope).sqrt().clamp(min=_STEEPEST))
    return _unit(normal - slope)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _unit(vectors: Tensor) -> Tensor:
    return vectors * _dot(vectors, vectors).clamp(min=1e-20).rsqrt()


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def _per_sample(values: Tensor, samples: Samples) -> Tensor:
    """Values (C, B) of images at each of their samples, (C, P)."""
    return values.contiguous().index_select(1, samples.image)


# ---------------------------------------------------------------- materials

def _material(samples: Samples, appearance: Appearance, skin: SkinMap) -> Material:
    values = samples.uv.new_zeros(7, samples.uv.shape[1])
    is_neck = (samples.material == SHIRT) & (samples.uv[1] > _NECK)
    is_skin, is_solid = (samples.material == SKIN) | is_neck, samples.material >= WATCH
    for mask, of_material in ((is_skin, _skin), (~(is_skin | is_solid), _cloth), (is_solid, _solid)):
        at = torch.nonzero(mask).squeeze(-1)
        picked = samples._replace(**{name: getattr(samples, name).index_select(-1, at)
                                     for name in ("image", "uv", "material", "part")})
        material = of_material(picked, appearance, skin)
        values[:, at] = torch.cat([material.albedo, torch.stack(material[1:])])
    return Material(values[:3], *values[3:].unbind(0))


def _skin(samples: Samples, appearance: Appearance, skin: SkinMap) -> Material:
    """Skin, nails and finger rings."""
    x, z, upward = samples.uv
    is_limb = samples.material == SKIN                                              # the neck takes an arm's texture
    x, z = torch.where(is_limb, x, x.clamp(0.2, 0.4)), torch.where(is_limb, z, 0.5 * z - 0.2)
    detail = read_map(skin, x, z, upward).T.contiguous()
    person = _per_sample(appearance.pigment.T, samples)
    shift = person[1] * 4096 + 31.0 * (samples.part % 2)
    blotch = look_up(Noise.MOTTLE, x * 1700 + shift * 5, z * 1700 + 14 * upward)
    freckle = look_up(Noise.GRAIN, x * 1100 + shift, z * 1100)
    freckle = ((freckle - 2.4) * 2).clamp(0, 1) * appearance.freckles[samples.image]
    albedo = skin_albedo(detail, blotch, freckle, person)

    nail, palm, height = (detail[MAP_CHANNELS.index(name)] for name in ("nail", "palm", "height"))
    nail = (1.4 * nail).clamp(max=1)
    polish = _per_sample(appearance.polish.T, samples)
    albedo = torch.lerp(albedo, polish[:3], polish[3] * nail)
    relief = appearance.relief[samples.image] * height
    gloss = appearance.gloss[samples.image] * (1 + 0.9 * nail - 0.35 * palm)

    # Finger rings are drawn on the resting hand.
    which = 2 * samples.image + samples.part.clamp(0, 1)
    ring = appearance.rings.flatten(0, 1).T.contiguous().index_select(1, which)
    dx, dz = x - ring[0], z - ring[1]
    along, across = dx * ring[2] + dz * ring[3], dx * ring[3] - dz * ring[2]
    is_near = (across.abs() < 0.0125) & (ring[5] > 0) & (samples.part < 2)
    inside = 1 - along.abs() / ring[4]
    on_ring = is_near & (inside > 0)
    albedo = albedo * (1 - 0.4 * (is_near & (inside > -0.5)))
    albedo = torch.where(on_ring, _per_sample(appearance.metal.T, samples), albedo)
    relief = torch.where(on_ring, relief + 0.0012 * inside.clamp(0, 1).sqrt(), relief)
    return Material(albedo, relief, gloss, on_ring.to(relief.dtype), torch.where(on_ring, 40.0, 14 + 60 * nail))


def _cloth(samples: Samples, appearance: Appearance, skin: SkinMap) -> Material:
    which = 2 * samples.image + (samples.material == SHIRT)
    cloth = appearance.cloth.flatten(0, 1).T.contiguous().index_select(1, which)
    albedo, relief = cloth_albedo(samples.uv[0], samples.uv[1], cloth)
    plain = torch.ones_like(relief)
    return Material(albedo, relief, 0.35 * plain, 0 * plain, 6 * plain)


def _solid(samples: Samples, appearance: Appearance, skin: SkinMap) -> Material:
    """Watch straps, watch cases and the held object."""
    is_object = samples.material == OBJECT
    is_case = (samples.material == WATCH) & (samples.part >= WATCH_CASES[0])
    solid = appearance.solids.flatten(0, 1).T.contiguous().index_select(1, 2 * samples.image + is_object)
    u, v, w = samples.uv
    striped = is_object & ((solid[4] * w) % 1 > 0.6) & (solid[4] > 1)
    albedo = torch.where(striped, 0.2 + 0.6 * (1 - solid[:3]), solid[:3])
    is_dial = is_case & (w > 0.5) & (u**2 + v**2 < 0.64)
    is_metal = is_case & ~is_dial
    albedo = torch.where(is_dial, (solid[[1, 2, 0]] * 1.4).clamp(0.01, 0.9), albedo)
    albedo = torch.where(is_metal, _per_sample(appearance.metal.T, samples), albedo)
    worn = look_up(Noise.FRACTAL, u * 130 + 4096 * solid[0], v * 130 + w * 90)
    albedo = (albedo * (1 + 0.06 * worn)).clamp(0.003, 0.97)
    return Material(albedo, torch.zeros_like(u), torch.where(is_dial, 1.5, solid[3]), is_metal.to(u.dtype),
                    10 + 50 * solid[3].clamp(max=1))
