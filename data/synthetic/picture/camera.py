"""Calibrated cameras around the hands: like those of InterHand2.6M's studio, or like those of photographs."""

import math
from typing import NamedTuple

import numpy as np

PORTRAIT, LANDSCAPE = (334, 512), (512, 334)    # width, height
STUDIO_SHARE = 0.5                              # of captures
MAX_AZIMUTH = math.radians(125)                 # of cameras, from the direction that the person faces
SINES = (-0.75, 0.98)                           # of the lowest and highest elevation
_STUDIO_DISTANCE = (1.0, 1.2)                   # metres from the hands
_FOCAL = (300.0, 1300.0)                        # pixels, of photographs: from a phone's wide angle to the studio's
_CLOSENESS = (0.8, 1.45)                        # metres from the hands, for a focal length of 1000 pixels
_OWN_SHARE = 0.15                               # of photographs: taken by the owner of the hands
_GREY_SHARE = {True: 0.15, False: 0.06}         # of cameras in the studio, and elsewhere


class Camera(NamedTuple):
    """A calibrated camera: X_cam = rotation·(X − position), u = focal·X/Z + center."""

    name: str                   # 40xxxx colour, 41xxxx grey
    size: tuple[int, int]       # width, height
    rotation: np.ndarray        # (3, 3)
    position: np.ndarray        # (3,) metres
    focal: np.ndarray           # (2,) pixels
    center: np.ndarray          # (2,) pixels

    @property
    def is_grey(self) -> bool:
        return self.name.startswith("41")

    @property
    def intrinsics(self) -> np.ndarray:
        """Matrix (3, 3) from the camera frame to homogeneous pixels."""
        return np.array([[self.focal[0], 0, self.center[0]], [0, self.focal[1], self.center[1]], [0, 0, 1]])

    def to_cam(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 3) in the camera frame."""
        return (points - self.position) @ self.rotation.T

    def to_px(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 3) as (x in pixels, y in pixels, depth in metres)."""
        cam = self.to_cam(points)
        pixels = cam[..., :2] / cam[..., 2:] * self.focal + self.center
        return np.concatenate([pixels, cam[..., 2:]], axis=-1)

    def moved(self, rotation: np.ndarray, translation: np.ndarray) -> "Camera":
        """The same camera after the scene has moved by X' = rotation·X + translation."""
        return self._replace(rotation=self.rotation @ rotation.T, position=rotation @ self.position + translation)


def sample_cameras(count: int, is_studio: bool, rng: np.random.Generator) -> list[Camera]:
    """Cameras in the person frame, stratified over the directions from which the body does not hide the hands."""
    azimuth, height = ((np.arange(count) + rng.uniform(0, 1)) / count for _ in range(2))
    azimuths = rng.permutation((2 * azimuth % 2 - 1) * MAX_AZIMUTH)
    # Uniform in the sine of the elevation is uniform on the sphere.
    elevations = np.arcsin(rng.permutation(SINES[0] + (height % 1) * (SINES[1] - SINES[0])))
    return [_camera(k, *angles, is_studio, rng) for k, angles in enumerate(zip(azimuths, elevations, strict=True))]


def _camera(number: int, azimuth: float, elevation: float, is_studio: bool, rng: np.random.Generator) -> Camera:
    is_own = not is_studio and rng.random() < _OWN_SHARE
    if is_own:
        azimuth, elevation = np.pi + rng.normal(0, 0.3), np.radians(np.clip(rng.normal(48, 10), 25, 75))
    out = np.array([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
    aim = rng.normal(0, 0.012, 3)
    focal, distance = np.clip(rng.normal(1268, 6), 1250, 1286), rng.uniform(*_STUDIO_DISTANCE)
    if not is_studio:
        focal = np.exp(rng.uniform(*np.log((_FOCAL[0], 600.0) if is_own else _FOCAL)))
        distance = max(0.3, rng.uniform(*_CLOSENESS) * focal / 1000)
    position = aim + out * distance
    roll = np.radians(np.clip(rng.normal(0, 6), -18, 18))
    size = PORTRAIT if rng.random() < 0.6 else LANDSCAPE
    center = np.array(size) / 2 + np.clip(rng.normal(0, 12, 2), -30, 30)
    prefix = "41" if rng.random() < _GREY_SHARE[is_studio] else "40"
    name = f"{prefix}{2 + 3 * number + rng.integers(0, 3):04d}"
    return Camera(name, size, _look_at(-out, roll), position, np.array([focal, focal + rng.normal(0, 0.2)]), center)


def _look_at(forward: np.ndarray, roll: float) -> np.ndarray:
    """Rotation (3, 3) into the frame of a camera that looks along `forward` (3,), upright before it is rolled."""
    right = np.cross(forward, [0.0, 1.0, 0.0])
    right = right / np.linalg.norm(right)
    upright = np.stack([right, np.cross(forward, right), forward])
    rolled = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    return rolled @ upright
