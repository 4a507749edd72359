"""Pictures of a lit scene: limbs in front, torso and surroundings behind, then what a camera does to them.

Everything is linear RGB until `develop`. Legend: H, W image size · P pixels.
"""

from typing import NamedTuple

import cv2
import numpy as np
import torch

from common.rasterizer import Fragments, interpolate, rasterize
from data.synthetic.appearance import Person, Surroundings, look_up
from data.synthetic.body import ARM, HAND, SHIRT
from data.synthetic.camera import Camera
from data.synthetic.lighting import highlights
from data.synthetic.scene import LitScene, LitTorso

_OVERSAMPLING = 1.5         # samples a pixel along each side; pictures are softened afterwards
_MARGIN = 60                # pixels; larger than any triangle of a limb
_TORSO_SHRINK = 2           # the torso stands a little out of focus: half the pixels are enough
_NECK = 0.255               # metres up the torso, where skin begins
_BEHIND_TORSO = 0.01        # metres by which an arm may sink into the torso


class _Layer(NamedTuple):
    """Colour times coverage, and coverage, (H, W, 3) and (H, W)."""

    color: np.ndarray
    alpha: np.ndarray

    def over(self, below: np.ndarray) -> np.ndarray:
        return self.color + (1 - self.alpha[..., None]) * below


def render(scene: LitScene, torso: LitTorso | None, person: Person, place: Surroundings, camera: Camera,
           rng: np.random.Generator) -> np.ndarray:
    """The picture (H, W, 3) uint8 RGB that `camera`, in the person frame, takes."""
    width, height = camera.size
    # Dark skin is exposed a little longer, as cameras and people do.
    exposure = np.float32(place.exposure / scene.level / person.arm_albedo.mean() ** 0.25)
    picture = _backdrop(place, camera, rng)
    torso_depth = np.full((height, width), np.inf, np.float32)
    if torso is not None:
        layer, torso_depth = _torso_layer(torso, person, camera)
    limbs = _limb_layer(scene, person, place, camera, torso_depth)
    if torso is not None:
        picture = _Layer(layer.color * (exposure * _shadow(limbs))[..., None], layer.alpha).over(picture)
    picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.5, 1.3))
    limbs = _blurred(_Layer(limbs.color * exposure, limbs.alpha), rng)
    return _develop(limbs.over(picture), place, camera, rng)


def silhouette(scene: LitScene, camera: Camera) -> np.ndarray:
    """Which pixels show a hand, (H, W) bool: hidden by nothing but the other arm."""
    width, height = camera.size
    seen = camera.project(scene.vertices)
    fragments = rasterize(torch.from_numpy(seen)[None], torch.from_numpy(scene.faces), height, width)
    face = fragments.face[0].numpy()
    return (face >= 0) & (scene.face_material[np.maximum(face, 0)] == HAND)


def unhidden_share(scene: LitScene, camera: Camera) -> float:
    """The share of the hands' outline that no arm hides, at a quarter of the picture's resolution."""
    width, height = camera.size
    seen = camera.project(scene.coarse)
    seen[:, :2] /= 4
    seen = torch.from_numpy(seen)[None].float()
    faces, is_hand = torch.from_numpy(scene.coarse_faces), torch.from_numpy(scene.coarse_is_hand)
    face = rasterize(seen, faces, height // 4, width // 4).face
    alone = rasterize(seen, faces[is_hand], height // 4, width // 4).face
    shown = (face >= 0) & is_hand[face.clamp(min=0)]
    return float(shown.sum() / (alone >= 0).sum().clamp(min=1))


# ---------------------------------------------------------------- limbs

def _limb_layer(scene: LitScene, person: Person, place: Surroundings, camera: Camera,
                torso_depth: np.ndarray) -> _Layer:
    width, height = camera.size
    seen = camera.project(scene.vertices)
    left, top, right, bottom = _bounds(seen, width, height)
    layer = _Layer(np.zeros((height, width, 3), np.float32), np.zeros((height, width), np.float32))
    if right <= left or bottom <= top:
        return layer

    faces, material = _towards_camera(seen, scene, width, height)
    scale = np.array([round((right - left) * _OVERSAMPLING) / (right - left),
                      round((bottom - top) * _OVERSAMPLING) / (bottom - top)])
    crop = seen - (left, top, 0)
    crop[:, :2] = (crop[:, :2] + 0.5) * scale - 0.5
    size = (round((bottom - top) * _OVERSAMPLING), round((right - left) * _OVERSAMPLING))
    fragments = rasterize(torch.from_numpy(crop)[None].float(), torch.from_numpy(faces), *size)
    behind = cv2.resize(torso_depth[top:bottom, left:right], size[::-1], interpolation=cv2.INTER_NEAREST)
    samples = _shade(scene, person, place, camera, faces, material, fragments, behind)
    for part, sample in zip(layer, samples, strict=True):
        part[top:bottom, left:right] = cv2.resize(sample, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    return layer


def _bounds(seen: np.ndarray, width: int, height: int) -> tuple[int, int, int, int]:
    low = np.floor(seen[:, :2].min(axis=0)).astype(int) - 1
    high = np.ceil(seen[:, :2].max(axis=0)).astype(int) + 2
    return max(int(low[0]), 0), max(int(low[1]), 0), min(int(high[0]), width), min(int(high[1]), height)


def _towards_camera(seen: np.ndarray, scene: LitScene, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """The faces that face the camera and meet the picture, with their materials."""
    place = seen[:, :2].astype(np.float32)
    # No triangle is larger than the margin, so one that meets the picture has its first corner near it.
    is_near = ((place > -_MARGIN) & (place < (width + _MARGIN, height + _MARGIN))).all(axis=1)
    a, b, c = (place[scene.faces[:, corner]] for corner in range(3))
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (c[:, 0] - a[:, 0]) * (b[:, 1] - a[:, 1])
    # y points down, so what faces the camera has a negative area.
    keep = (area < 0) & is_near[scene.faces[:, 0]]
    return scene.faces[keep], scene.face_material[keep]


def _shade(scene: LitScene, person: Person, place: Surroundings, camera: Camera, faces: np.ndarray,
           material: np.ndarray, fragments: Fragments, behind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colour and coverage of every sample.  behind: depth of the torso."""
    used = np.zeros(len(scene.vertices), bool)
    used[faces] = True
    attributes = np.concatenate([scene.light, scene.uv], axis=1, dtype=np.float32)
    attributes[used, :3] += _shine(scene, place, camera, used)
    values = interpolate(torch.from_numpy(attributes), torch.from_numpy(faces), fragments)[0].numpy()

    face, depth = fragments.face[0].numpy(), fragments.depth[0].numpy()
    kind = np.where(face >= 0, material[np.maximum(face, 0)], -1)
    kind[(kind != HAND) & (depth > behind + _BEHIND_TORSO)] = -1
    color = np.ascontiguousarray(values[..., :3])
    flat, uv = color.reshape(-1, 3), values.reshape(-1, 5)[:, 3:]
    for textured in range(ARM, SHIRT):
        at = np.flatnonzero(kind == textured)
        flat[at] *= look_up(person.textures[textured], uv[at])
    alpha = (kind >= 0).astype(np.float32)
    return color * alpha[..., None], alpha


def _shine(scene: LitScene, place: Surroundings, camera: Camera, used: np.ndarray) -> np.ndarray:
    """Reflected lamp light of the vertices in `used`: a broad sheen and a narrow shine, stronger at grazing angles."""
    to_camera = camera.position - scene.vertices[used]
    to_camera = (to_camera / np.linalg.norm(to_camera, axis=1, keepdims=True)).astype(np.float32)
    normals = scene.normals[used]
    facing = np.clip(np.einsum("vc,vc->v", normals, to_camera), 0, 1)
    fresnel = 0.028 + 0.5 * (1 - facing) ** 5
    broad = highlights(normals, scene.visible[:, used], to_camera, place.lights, 9.0)
    return (scene.gloss[used] * fresnel)[:, None] * (1.6 * broad + 4.0 * broad**3)


# ---------------------------------------------------------------- behind

def _shadow(limbs: _Layer) -> np.ndarray:
    """Light (H, W) that arms and hands leave for the clothes behind them: soft, and mostly below."""
    moved = np.roll(limbs.alpha, 14, axis=0)
    moved[:14] = 0
    small = cv2.GaussianBlur(cv2.resize(moved, None, fx=0.25, fy=0.25), (0, 0), 4)
    return 1 - 0.45 * cv2.resize(small, moved.shape[::-1])


def _torso_layer(torso: LitTorso, person: Person, camera: Camera) -> tuple[_Layer, np.ndarray]:
    width, height = camera.size
    seen = camera.project(torso.mesh.vertices)
    seen[:, :2] = (seen[:, :2] + 0.5) / _TORSO_SHRINK - 0.5
    seen = torch.from_numpy(seen).float()[None]
    faces = torch.from_numpy(torso.mesh.faces.copy())
    fragments = rasterize(seen, faces, height // _TORSO_SHRINK, width // _TORSO_SHRINK)
    attributes = np.concatenate([torso.light, torso.mesh.uv], axis=1, dtype=np.float32)
    values = interpolate(torch.from_numpy(attributes), faces, fragments)[0].numpy()
    covered = fragments.face[0].numpy() >= 0
    color = values[..., :3].copy()
    uv = values[covered][:, 3:]
    cloth = look_up(person.textures[SHIRT], uv)
    color[covered] *= np.where(uv[:, 1:] > _NECK, person.arm_albedo, cloth)
    depth = cv2.resize(fragments.depth[0].numpy(), camera.size, interpolation=cv2.INTER_NEAREST)
    soft = (cv2.GaussianBlur(part, (0, 0), 0.6) for part in (color, covered.astype(np.float32)))
    return _Layer(*(cv2.resize(part, camera.size, interpolation=cv2.INTER_CUBIC) for part in soft)), depth


def _backdrop(place: Surroundings, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    return _studio_backdrop(place, camera, rng) if place.kind == "studio" else _room_backdrop(place, camera)


def _studio_backdrop(place: Surroundings, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """Black with lamps in view: a blown-out core, a glow and a star of streaks."""
    width, height = camera.size
    picture = np.full((height, width, 3), 0.0015, np.float32)
    if len(place.lamps) == 0:
        return picture
    seen = camera.project(place.lamps)
    inside = (seen[:, 2] > 0.2) & (np.abs(seen[:, 0] - width / 2) < width / 2 + 30)
    inside &= np.abs(seen[:, 1] - height / 2) < height / 2 + 30
    size, spikes = rng.uniform(1.6, 3.4), int(rng.choice([6, 8, 12]))
    star = _star(size, spikes, rng.uniform(0, np.pi))
    reach = len(star) // 2
    padded = np.zeros((height + 2 * reach + 80, width + 2 * reach + 80), np.float32)
    for x, y in np.round(seen[inside, :2]).astype(int):
        padded[y + 40: y + 40 + len(star), x + 40: x + 40 + len(star)] += star
    glow = padded[reach + 40: reach + 40 + height, reach + 40: reach + 40 + width, None]
    return picture + glow * np.array([1.0, 0.97, 0.9], np.float32)


def _star(size: float, spikes: int, turn: float) -> np.ndarray:
    reach = int(11 * size)
    y, x = np.mgrid[-reach: reach + 1, -reach: reach + 1].astype(np.float32)
    radius, angle = np.hypot(x, y), np.arctan2(y, x) + turn
    core = 3.0 / (1 + np.exp(np.minimum((radius - size) * 3, 30)))
    streaks = 0.9 * np.abs(np.cos(angle * spikes / 2)) ** 40 * np.exp(-radius / (1.8 * size))
    return core + streaks + 0.25 * np.exp(-radius / (1.2 * size))


def _room_backdrop(place: Surroundings, camera: Camera) -> np.ndarray:
    """Out-of-focus clutter: a gradient, shapes in a few colours, blurred; the same for all pictures of a camera."""
    rng = np.random.default_rng([place.seed, int(camera.name)])
    width, height = camera.size
    small = (height // 4 + 2, width // 4 + 2)
    y, x = np.mgrid[: small[0], : small[1]].astype(np.float32) / max(small)
    tones = (rng.beta(1.1, 2.2, (4, 1)) * (1 + 0.3 * rng.normal(0, 1, (4, 3)))).clip(0.01, 1).astype(np.float32)
    slope = rng.normal(0, 1, 2)
    mix = np.clip(0.5 + slope[0] * (x - 0.4) + slope[1] * (y - 0.4), 0, 1)[..., None]
    picture = tones[0] * mix + tones[1] * (1 - mix)
    for _ in range(int(rng.choice([0, 6, 20, 45]))):
        color = (tones[rng.integers(4)] * rng.uniform(0.4, 1.6)).tolist()
        center = rng.uniform(0, 1, 2) * (small[1], small[0])
        if rng.random() < 0.6:
            box = cv2.boxPoints((tuple(center), tuple(rng.uniform(3, 60, 2)), rng.choice([0, 0, rng.uniform(0, 90)])))
            cv2.fillPoly(picture, [box.astype(np.int32)], color)
        else:
            cv2.ellipse(picture, tuple(int(c) for c in center), tuple(int(r) for r in rng.uniform(2, 25, 2)),
                        rng.uniform(0, 180), 0, 360, color, -1)
    picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 4))
    large = cv2.resize(picture, (small[1] * 4, small[0] * 4), interpolation=cv2.INTER_CUBIC)[:height, :width]
    return np.clip(large, 0, 2) * np.float32(rng.choice([0.15, 0.4, 0.7, 1.1]))


# ---------------------------------------------------------------- the camera

def _blurred(layer: _Layer, rng: np.random.Generator) -> _Layer:
    """Defocus, and now and then motion."""
    sigma = rng.uniform(0.25, 0.75) + (rng.uniform(0, 1.0) if rng.random() < 0.1 else 0)
    blurred = _Layer(*(cv2.GaussianBlur(part, (0, 0), sigma) for part in layer))
    if rng.random() > 0.15:
        return blurred
    length, angle = rng.uniform(2, 7), rng.uniform(0, np.pi)
    kernel = np.zeros((9, 9), np.float32)
    for t in np.linspace(-0.5, 0.5, 25):
        kernel[int(round(4 + t * length * np.sin(angle))), int(round(4 + t * length * np.cos(angle)))] += 1
    return _Layer(*(cv2.filter2D(part, -1, kernel / kernel.sum()) for part in blurred))


def _develop(picture: np.ndarray, place: Surroundings, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """Colour cast, sensor noise and the tone curve: uint8 sRGB."""
    picture = picture * (place.cast * rng.uniform(0.85, 1.18)).astype(np.float32)
    if camera.is_grey:
        picture = np.repeat(picture @ np.array([[0.3], [0.55], [0.15]], np.float32), 3, axis=2)
    gain = rng.uniform(0.0004, 0.0022)
    grain = rng.standard_normal(picture.shape[:2], dtype=np.float32)
    # Drawing is slow: the channels share one field, moved so far that nobody sees it.
    shifts = [(0, 0)] * 3 if camera.is_grey else rng.integers(40, 290, (3, 2))
    noise = np.stack([np.roll(grain, shift, axis=(0, 1)) for shift in shifts], axis=-1)
    picture = picture + noise * np.sqrt(gain * np.clip(picture, 0, 1) + 4e-7 + (0.3 * gain) ** 2) - 0.001
    curve = _tone_curve(rng.uniform(0.9, 1.15))
    return curve[np.clip(picture * 4095, 0, 4095).astype(np.int32)]


def _tone_curve(contrast: float) -> np.ndarray:
    """sRGB with a soft shoulder, as a table over [0, 1] in 4096 steps."""
    linear = np.linspace(0, 1, 4096)
    shoulder = np.where(linear < 0.6, linear, 0.6 + 0.4 * np.tanh((linear - 0.6) / 0.4) / np.tanh(1.0))
    srgb = np.where(shoulder <= 0.0031308, 12.92 * shoulder, 1.055 * shoulder ** (1 / 2.4) - 0.055)
    return np.clip(255 * srgb**contrast + 0.5, 0, 255).astype(np.uint8)
