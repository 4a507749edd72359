"""Pictures of posed hands: from vertices, cameras and keys to photographs, batched, on the CPU or a GPU.

`render` is a pure function of its arguments; each picture depends on its own row of them alone. Everything is linear
RGB until `develop`.

Legend: B batch · H, W image size in pixels · V vertices. Person frame.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from common.hands import Hand
from common.view.rasterizer import Fragments, rasterize
from data.synthetic.picture import backdrop
from data.synthetic.picture.camera import Camera
from data.synthetic.picture.develop import develop, resampled, sample_optics
from data.synthetic.picture.dice import Dice
from data.synthetic.picture.figure import Figure, Hands, Topology, build_figure, sample_wear, topology, vertex_normals
from data.synthetic.picture.lighting import visibility
from data.synthetic.picture.look import Keys, Look, sample_look
from data.synthetic.picture.shading import gather_samples, shade
from data.synthetic.picture.skin import SkinMap, skin_map
from data.synthetic.pose.body import Surface

STAGES = ("figure", "shadows", "z-buffer", "shading", "background", "lens and film")    # of `render`, in this order
_OVERSAMPLING = 1.25        # samples a pixel along each side of the figure
_FAR_SAMPLING = 0.5         # the same of what lies behind: it is out of focus


class View(NamedTuple):
    """Cameras: X_cam = rotation·(X − position), pixels = camera·X_cam."""

    camera: Tensor          # (B, 3, 3)     intrinsics, pixels
    rotation: Tensor        # (B, 3, 3)
    position: Tensor        # (B, 3) metres
    is_grey: Tensor         # (B,) bool
    is_studio: Tensor       # (B,) bool     the look of InterHand2.6M, or that of photographs


def stack_views(cameras: list[Camera], is_studio: bool) -> View:
    """Cameras of one place as a batch."""
    def tensor(arrays: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).float()

    return View(tensor([camera.intrinsics for camera in cameras]), tensor([camera.rotation for camera in cameras]),
                tensor([camera.position for camera in cameras]),
                torch.tensor([camera.is_grey for camera in cameras]), torch.full((len(cameras),), is_studio))


class Assets(NamedTuple):
    """What all pictures share, on one device."""

    shared: Topology
    skin: SkinMap


def load_assets(surface: Surface, rest: np.ndarray, device: torch.device | str = "cpu") -> Assets:
    """rest: (778, 3) the right hand's resting vertices."""
    fine = surface.fine_from_mid @ (surface.mid_from_coarse @ rest.astype(np.float32))
    return Assets(topology(surface, rest, device), skin_map(fine, surface.faces[Hand.RIGHT], device))


def render(hands: Hands, view: View, keys: Keys, assets: Assets, height: int, width: int) -> Tensor:
    """Photographs (B, height, width, 3), sRGB in [0, 1]."""
    person, place, step, picture = _dice(keys)
    with record_function(STAGES[0]):
        wear = sample_wear(person, place, step)
        look = sample_look(person, place, step, view.is_studio)
        figure = build_figure(hands, wear, person, step, assets.shared)
        normals = vertex_normals(figure.vertices, assets.shared)
    with record_function(STAGES[1]):
        visible = visibility(figure.vertices, normals, figure.vertices, assets.shared.occluders,
                             look.lights.directions, hands_center(hands))
    with record_function(STAGES[2]):
        samples = (round(height * _OVERSAMPLING), round(width * _OVERSAMPLING))
        seen = project(figure.vertices, view, _OVERSAMPLING)
        fragments = rasterize(seen, assets.shared.faces, *samples, facing=1)
    with record_function(STAGES[3]):
        layer = _figure_layer(figure, normals, visible, look, view, assets, fragments)
    with record_function(STAGES[4]):
        behind = _behind(view, place, picture, height, width)
    with record_function(STAGES[5]):
        optics = sample_optics(picture, view.is_studio, view.camera[:, 0, 0] * math.radians(1))
        layer = resampled(layer, optics.near, optics.sharpening, height, width)
        behind = resampled(behind, optics.far, torch.zeros_like(optics.far), height, width)
        # Coverage goes beyond 0 and 1 where sharpening does: so edges come out as if the whole had been sharpened.
        light = layer[..., :3] + (1 - layer[..., 3:]) * behind
        return develop(light, look.cast, view.is_grey, view.is_studio, picture)


def solid_figure(hands: Hands, keys: Keys, assets: Assets) -> Figure:
    """Everything solid in the pictures of these keys, whatever camera looks at it."""
    person, place, step, _ = _dice(keys)
    return build_figure(hands, sample_wear(person, place, step), person, step, assets.shared)


def unhidden_share(figure: Figure, view: View, assets: Assets, height: int, width: int) -> Tensor:
    """The share (B,) of the hands' outline that no arm and no thing hides, at a quarter of the picture's resolution."""
    seen = project(figure.vertices, view, 0.25)
    faces, is_hand = assets.shared.occluders, assets.shared.occluder_is_hand
    face = rasterize(seen, faces, height // 4, width // 4).face
    alone = rasterize(seen, faces[is_hand], height // 4, width // 4).face
    shown = (face >= 0) & is_hand[face.clamp(min=0)]
    return shown.sum(dim=(1, 2)) / (alone >= 0).sum(dim=(1, 2)).clamp(min=1)


def hand_mask(figure: Figure, view: View, assets: Assets, height: int, width: int) -> Tensor:
    """Which pixels (B, height, width) would show a hand if nothing hid it."""
    faces = assets.shared.faces[assets.shared.is_hand]
    return rasterize(project(figure.vertices, view, 1.0), faces, height, width).face >= 0


def _dice(keys: Keys) -> list[Dice]:
    return [Dice.of(name, key, device=key.device) for name, key in keys._asdict().items()]


def hands_center(hands: Hands) -> Tensor:
    """The middle (B, 3) of the hands that are there."""
    weight = hands.present.to(hands.vertices.dtype)
    return (hands.vertices.mean(dim=2) * weight[..., None]).sum(dim=1) / weight.sum(dim=1, keepdim=True)


def project(points: Tensor, view: View, scale: float) -> Tensor:
    """Points (B, V, 3) as x and y in samples, `scale` of them to a pixel, and depth in metres."""
    cam = (points - view.position[:, None]) @ view.rotation.transpose(-1, -2)
    seen = cam @ view.camera.transpose(-1, -2)
    return torch.cat([(seen[..., :2] / seen[..., 2:] + 0.5) * scale - 0.5, cam[..., 2:]], dim=-1)


def _rays(view: View, height: int, width: int, scale: float) -> tuple[Tensor, Tensor]:
    """Rays (B, h, w, 3) of depth 1 through all samples, and their steps right and down (B, 2, 3); camera frame."""
    y = (torch.arange(height, device=view.camera.device) + 0.5) / scale - 0.5
    x = (torch.arange(width, device=view.camera.device) + 0.5) / scale - 0.5
    inverse = torch.linalg.inv(view.camera).transpose(-1, -2)                       # (B, 3, 3)
    grid = torch.stack([*torch.meshgrid(y, x, indexing="ij"), torch.ones(height, width, device=x.device)], dim=-1)
    rays = grid[..., [1, 0, 2]].flatten(0, 1) @ inverse
    return rays.unflatten(1, (height, width)), inverse[:, :2] / scale


def _figure_layer(figure: Figure, normals: Tensor, visible: Tensor, look: Look, view: View, assets: Assets,
                  fragments: Fragments) -> Tensor:
    """Exposed light times coverage, and coverage, of all samples: (B, 4, h, w)."""
    size = fragments.face.shape
    rays, steps = _rays(view, *size[1:], _OVERSAMPLING)
    rays = (view.rotation.transpose(-1, -2) @ rays.flatten(1, 2).transpose(-1, -2)).transpose(0, 1).flatten(1)
    steps = steps @ view.rotation
    samples = gather_samples(figure, normals, visible, look, assets.shared, fragments, rays)
    color = shade(samples, look, assets.skin, (steps[:, 0], steps[:, 1]), size)
    exposure = _exposure(color, samples.image, samples.part < 2, look)
    layer = color.new_zeros(4, fragments.face.numel())
    layer[:, samples.place] = torch.cat([color * exposure[samples.image], torch.ones_like(color[:1])])
    return layer.view(4, *size).transpose(0, 1)


def _exposure(color: Tensor, image: Tensor, is_hand: Tensor, look: Look) -> Tensor:
    """The factor (B,) that brings hands to the exposure of the place; dark skin stays darker than pale skin."""
    level = color.new_zeros(len(look.exposure), 2)
    weight = is_hand.to(color.dtype)
    level.index_add_(0, image, torch.stack([color.mean(dim=0).clamp(max=2) * weight, weight], dim=-1))
    mean = level[:, 0] / level[:, 1].clamp(min=1)
    return look.exposure / (mean.clamp(min=1e-3) ** 0.55 * 0.35**0.45)


def _behind(view: View, place: Dice, picture: Dice, height: int, width: int) -> Tensor:
    """What lies behind the figure, (B, 3, h, w)."""
    rays, _ = _rays(view, round(height * _FAR_SAMPLING), round(width * _FAR_SAMPLING), _FAR_SAMPLING)
    light = torch.empty_like(rays)
    at = torch.nonzero(view.is_studio).squeeze(-1)
    light[at] = backdrop.studio(rays[at], Dice(place.key[at]), Dice(picture.key[at]))
    at = torch.nonzero(~view.is_studio).squeeze(-1)
    seen = (rays[at].flatten(1, 2) @ view.rotation[at]).view(-1, *rays.shape[1:])
    light[at] = backdrop.surroundings(seen, view.position[at], Dice(place.key[at]))
    return light.permute(0, 3, 1, 2).contiguous()
