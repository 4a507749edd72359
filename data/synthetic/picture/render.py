"""The renderer: from posed hands, cameras and random keys to photographs, batched, on the CPU or a GPU.

`render` is a pure function of its arguments, and each image depends on its own row of them alone. Colours are linear
RGB until `develop`.

Legend: B batch · H, W image size in pixels · h, w samples · V vertices. Person frame.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from common.geometry import project
from common.hands import Hand
from common.view.rasterizer import Fragments, rasterize
from data.synthetic.picture import backdrop
from data.synthetic.picture.appearance import Appearance, Keys, sample_appearance
from data.synthetic.picture.body import Body, Hands, Topology, body_topology, build_body, gathered_normals, sample_wear
from data.synthetic.picture.camera import Camera
from data.synthetic.picture.develop import develop, resampled, sample_optics
from data.synthetic.picture.dice import Dice
from data.synthetic.picture.lighting import visibility
from data.synthetic.picture.shading import gather_samples, shade
from data.synthetic.picture.skin import SkinMap, skin_map
from data.synthetic.surface import Surface

STAGES = ("body", "shadows", "z-buffer", "shading", "background", "lens and film")    # of `render`, in this order
_OVERSAMPLING = 1.25        # samples per pixel, along each side, of the body
_FAR_SAMPLING = 0.5         # the same of the backdrop, which is out of focus


class View(NamedTuple):
    """Cameras: X_cam = rotation·(X − position), pixels = camera·X_cam."""

    camera: Tensor          # (B, 3, 3)     intrinsics, pixels
    rotation: Tensor        # (B, 3, 3)
    position: Tensor        # (B, 3) metres
    is_grey: Tensor         # (B,) bool
    is_studio: Tensor       # (B,) bool     like InterHand2.6M's studio, else like photographs


def stack_views(cameras: list[Camera], is_studio: bool) -> View:
    """Cameras of one place as a batch."""
    def tensor(arrays: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).float()

    return View(tensor([camera.intrinsics for camera in cameras]), tensor([camera.rotation for camera in cameras]),
                tensor([camera.position for camera in cameras]),
                torch.tensor([camera.is_grey for camera in cameras]), torch.full((len(cameras),), is_studio))


class Assets(NamedTuple):
    """What all images share, on one device."""

    topology: Topology
    skin: SkinMap


def load_assets(surface: Surface, rest: np.ndarray, device: torch.device | str = "cpu") -> Assets:
    """rest: (778, 3) the right hand's rest vertices."""
    fine = surface.fine_from_mid @ (surface.mid_from_coarse @ rest.astype(np.float32))
    return Assets(body_topology(surface, rest, device), skin_map(fine, surface.faces[Hand.RIGHT], device))


def render(hands: Hands, view: View, keys: Keys, assets: Assets, height: int, width: int) -> Tensor:
    """Photographs (B, height, width, 3), sRGB in [0, 1]."""
    person, place, step, picture = _dice(keys)
    with record_function(STAGES[0]):
        appearance = sample_appearance(person, place, step, view.is_studio)
        body = sample_body(hands, keys, assets)
        normals = gathered_normals(body.vertices, assets.topology)
    with record_function(STAGES[1]):
        visible = visibility(body.vertices, normals, body.vertices, assets.topology.occluders,
                             appearance.lights.directions, _hands_center(hands))
    with record_function(STAGES[2]):
        vertices = _to_samples(body.vertices, view, _OVERSAMPLING)
        size = (round(height * _OVERSAMPLING), round(width * _OVERSAMPLING))
        fragments = rasterize(vertices, assets.topology.faces, *size, facing=1)
    with record_function(STAGES[3]):
        layer = _body_layer(body, normals, visible, appearance, view, assets, fragments)
    with record_function(STAGES[4]):
        behind = _backdrop(view, place, picture, height, width)
    with record_function(STAGES[5]):
        optics = sample_optics(picture, view.is_studio, view.camera[:, 0, 0] * math.radians(1))
        layer = resampled(layer, optics.near, optics.sharpening, height, width)
        behind = resampled(behind, optics.far, torch.zeros_like(optics.far), height, width)
        # Sharpened coverage may leave [0, 1]: edges come out as if the composite had been sharpened.
        light = layer[..., :3] + (1 - layer[..., 3:]) * behind
        return develop(light, appearance.cast, view.is_grey, view.is_studio, picture)


def sample_body(hands: Hands, keys: Keys, assets: Assets) -> Body:
    """The body that images of these keys show, from whatever camera."""
    person, place, step, _ = _dice(keys)
    return build_body(hands, sample_wear(person, place, step), person, step, assets.topology)


def unhidden_share(body: Body, view: View, assets: Assets, height: int, width: int) -> Tensor:
    """Share (B,) of the hands' silhouette that no arm and no object hides, at a quarter of the image's resolution."""
    vertices = _to_samples(body.vertices, view, 0.25)
    faces, is_hand = assets.topology.occluders, assets.topology.occluder_is_hand
    face = rasterize(vertices, faces, height // 4, width // 4).face
    alone = rasterize(vertices, faces[is_hand], height // 4, width // 4).face
    shown = (face >= 0) & is_hand[face.clamp(min=0)]
    return shown.sum(dim=(1, 2)) / (alone >= 0).sum(dim=(1, 2)).clamp(min=1)


def hand_mask(body: Body, view: View, assets: Assets, height: int, width: int) -> Tensor:
    """Silhouettes (B, height, width) bool of the hands alone, without what hides them."""
    faces = assets.topology.faces[assets.topology.is_hand]
    return rasterize(_to_samples(body.vertices, view, 1.0), faces, height, width).face >= 0


def _dice(keys: Keys) -> list[Dice]:
    return [Dice.of(name, key, device=key.device) for name, key in keys._asdict().items()]


def _hands_center(hands: Hands) -> Tensor:
    """Mean vertex (B, 3) of the present hands."""
    weight = hands.present.to(hands.vertices.dtype)
    return (hands.vertices.mean(dim=2) * weight[..., None]).sum(dim=1) / weight.sum(dim=1, keepdim=True)


def _to_samples(points: Tensor, view: View, scale: float) -> Tensor:
    """Points (B, V, 3) as x, y in samples, `scale` of them per pixel, and depth in metres."""
    cam = (points - view.position[:, None]) @ view.rotation.transpose(-1, -2)
    return torch.cat([(project(cam, view.camera) + 0.5) * scale - 0.5, cam[..., 2:]], dim=-1)


def _rays(view: View, height: int, width: int, scale: float) -> tuple[Tensor, Tensor]:
    """Camera-frame rays (B, h, w, 3) of depth 1 through all samples, and their steps right and down (B, 2, 3)."""
    y = (torch.arange(height, device=view.camera.device) + 0.5) / scale - 0.5
    x = (torch.arange(width, device=view.camera.device) + 0.5) / scale - 0.5
    inverse = torch.linalg.inv(view.camera).transpose(-1, -2)                       # (B, 3, 3)
    grid = torch.stack([*torch.meshgrid(y, x, indexing="ij"), torch.ones(height, width, device=x.device)], dim=-1)
    rays = grid[..., [1, 0, 2]].flatten(0, 1) @ inverse
    return rays.unflatten(1, (height, width)), inverse[:, :2] / scale


def _body_layer(body: Body, normals: Tensor, visible: Tensor, appearance: Appearance, view: View, assets: Assets,
                fragments: Fragments) -> Tensor:
    """Exposed radiance, premultiplied by coverage, and coverage of all samples: (B, 4, h, w)."""
    size = fragments.face.shape
    rays, steps = _rays(view, *size[1:], _OVERSAMPLING)
    rays = (view.rotation.transpose(-1, -2) @ rays.flatten(1, 2).transpose(-1, -2)).transpose(0, 1).flatten(1)
    steps = steps @ view.rotation
    samples = gather_samples(body, normals, visible, appearance.lights, assets.topology, fragments, rays)
    color = shade(samples, appearance, assets.skin, (steps[:, 0], steps[:, 1]), size)
    exposure = _exposure(color, samples.image, samples.part < 2, appearance)
    layer = color.new_zeros(4, fragments.face.numel())
    layer[:, samples.index] = torch.cat([color * exposure[samples.image], torch.ones_like(color[:1])])
    return layer.view(4, *size).transpose(0, 1)


def _exposure(color: Tensor, image: Tensor, is_hand: Tensor, appearance: Appearance) -> Tensor:
    """Factor (B,) that takes hands to the exposure of the place; dark skin stays darker than pale skin.

    color: (3, P) of samples.  image, is_hand: (P,).
    """
    level = color.new_zeros(len(appearance.exposure), 2)
    weight = is_hand.to(color.dtype)
    level.index_add_(0, image, torch.stack([color.mean(dim=0).clamp(max=2) * weight, weight], dim=-1))
    mean = level[:, 0] / level[:, 1].clamp(min=1)
    return appearance.exposure / (mean.clamp(min=1e-3) ** 0.55 * 0.35**0.45)


def _backdrop(view: View, place: Dice, picture: Dice, height: int, width: int) -> Tensor:
    """Radiance (B, 3, h, w) behind the body."""
    rays, _ = _rays(view, round(height * _FAR_SAMPLING), round(width * _FAR_SAMPLING), _FAR_SAMPLING)
    light = torch.empty_like(rays)
    at = torch.nonzero(view.is_studio).squeeze(-1)
    light[at] = backdrop.studio(rays[at], Dice(place.key[at]), Dice(picture.key[at]))
    at = torch.nonzero(~view.is_studio).squeeze(-1)
    rays = (rays[at].flatten(1, 2) @ view.rotation[at]).view(-1, *rays.shape[1:])
    light[at] = backdrop.surroundings(rays, view.position[at], Dice(place.key[at]))
    return light.permute(0, 3, 1, 2).contiguous()
