"""Where are the hands of a photograph? Palm detection and hand landmarks by MediaPipe's two networks.

The networks are third-party files (Apache-2.0) that `tool/fetch_finder.py` fetches; ai-edge-litert runs them. What is
here is the way from an image to their inputs and back, after the graphs that MediaPipe 0.10.21 ships with them.

Legend: N anchors or detections · 7 points of a palm (wrist, the knuckles from index to pinky, two of the thumb) ·
21 joints in MANO21 order, which is MediaPipe's own.
"""

import hashlib
import importlib.util
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.errors import UserError
from common.files import ROOT, cannot_read
from common.geometry import apply_affine
from common.hands import MANO21, WRIST
from common.images import crop_image

FOLDER = ROOT / "common" / "assets" / "finder"
# Name of each file and its SHA-256.
FILES = {
    "palm_detection_full.tflite": "1b14e9422c6ad006cde6581a46c8b90dd573c07ab7f3934b5589e7cea3f89a54",
    "hand_landmark_full.tflite": "11c272b891e1a99ab034208e23937a8008388cf11ed2a9d776ed3d01d0ba00e3",
}

PALM_SIZE, LANDMARK_SIZE = 192, 224
MIN_PALM = 0.35             # score below which a detection is no palm
MIN_HAND = 0.5              # presence below which a crop shows no hand
_OVERLAP = 0.3              # of two detections of one palm
_SAME = 0.35                # mean distance of the joints of one hand seen twice, as a share of its size
_TILE_SHARE = 0.6           # of the shorter side: the side of a tile
_MIN_TILED = 320            # pixels of the longer side above which tiles show more than the whole


class FoundHand(NamedTuple):
    """One hand that the finder sees."""

    joints_px: np.ndarray   # (21, 2)   pixels of the image
    joints_m: np.ndarray    # (21, 3)   metres relative to the wrist, axes of the camera: of a hand of average size
    presence: float         # that this is a hand, 0 to 1
    right: float            # that it is a right one, 0 to 1

    @property
    def size_px(self) -> float:
        """Of the longer side of the box round the joints."""
        return float(np.ptp(self.joints_px, axis=0).max())


class FinderMissing(UserError):
    """What finds hands was not set up."""


class HandFinder:
    """Finds every hand of an image.

        finder = HandFinder.from_files()
        hands = finder(image)           # list of FoundHand, the surest first
    """

    def __init__(self, palm: "Network", landmark: "Network"):
        self.palm, self.landmark = palm, landmark

    @classmethod
    def from_files(cls, folder: Path = FOLDER, threads: int = 1) -> "HandFinder":
        """FinderMissing if a file or the library that runs it is missing, UserError if a file is not the tested one."""
        if importlib.util.find_spec("ai_edge_litert") is None:
            raise FinderMissing("the package ai-edge-litert is not installed.", "bash tool/setup_env.sh installs it.")
        return cls(*(Network(read_checked(folder, name), threads) for name in FILES))

    def __call__(self, image: np.ndarray) -> list[FoundHand]:
        """image: (H, W, 3) uint8 RGB."""
        hands: list[FoundHand] = []
        for view in views(*image.shape[:2]):
            for palm in self.palms(image, view):
                hand = self.hand(image, palm)
                if hand is not None:
                    add_hand(hands, hand)
        return sorted(hands, key=lambda hand: -hand.presence)

    def palms(self, image: np.ndarray, view: np.ndarray) -> list["Palm"]:
        """Palms in one view of an image. view: `view_from_image` (3, 3), to the network's input."""
        raw, logits = self.palm(crop_image(image, view, PALM_SIZE))
        scores = 1 / (1 + np.exp(-np.clip(logits[:, 0], -100, 100)))
        kept = scores >= MIN_PALM
        centers = ANCHORS[kept]
        points = raw[kept, 4:].reshape(-1, 7, 2) / PALM_SIZE + centers[:, None]
        middle, size = raw[kept, :2] / PALM_SIZE + centers, raw[kept, 2:4] / PALM_SIZE
        palms = np.concatenate([middle[:, None], points], axis=1) * PALM_SIZE - 0.5
        image_from_view = np.linalg.inv(view)
        return [Palm(apply_affine(image_from_view, place), side / view[0, 0])
                for place, side in merged(palms, size.max(axis=1) * PALM_SIZE, scores[kept])]

    def hand(self, image: np.ndarray, palm: "Palm") -> FoundHand | None:
        """The hand of a palm, looked at twice: the crop round the joints of the first look is the better one."""
        first = self.landmarks(image, palm.crop)
        return None if first is None else self.landmarks(image, hand_crop(first.joints_px))

    def landmarks(self, image: np.ndarray, crop: "TurnedSquare") -> FoundHand | None:
        """The hand in a crop; None if there is none."""
        crop_from_image = crop.affine(LANDMARK_SIZE)
        joints, presence, right, joints_m = self.landmark(crop_image(image, crop_from_image, LANDMARK_SIZE))
        if not presence[0] >= MIN_HAND:
            return None
        joints, joints_m = joints.reshape(21, 3), joints_m.reshape(21, 3)
        image_from_crop = np.linalg.inv(crop_from_image)
        turn = image_from_crop[:2, :2] * (LANDMARK_SIZE / crop.side)                 # a rotation
        joints_m = np.concatenate([joints_m[:, :2] @ turn.T, joints_m[:, 2:]], axis=1)
        return FoundHand(apply_affine(image_from_crop, joints[:, :2] - 0.5),
                         joints_m - joints_m[WRIST], float(presence[0]), float(right[0]))


class Palm(NamedTuple):
    """A palm in image pixels."""

    points: np.ndarray      # (8, 2)    the centre of its box, then the 7 points
    side: float             # of its square box

    @property
    def crop(self) -> "TurnedSquare":
        """Round the whole hand, with the fingers up."""
        up = self.points[3] - self.points[1]                    # from the wrist to the middle knuckle
        up = up / max(float(np.linalg.norm(up)), 1e-6)
        return TurnedSquare(self.points[0] + 0.5 * self.side * up, 2.6 * self.side, up)


class TurnedSquare(NamedTuple):
    """A square in image pixels, turned so that `up` points upwards in its crop."""

    center: np.ndarray      # (2,)
    side: float
    up: np.ndarray          # (2,) unit vector

    def affine(self, size: int) -> np.ndarray:
        """`crop_from_image` (3, 3) to a crop of `size` pixels."""
        rows = np.stack([[-self.up[1], self.up[0]], -self.up]) * (size / self.side)
        affine = np.eye(3)
        affine[:2, :2] = rows
        affine[:2, 2] = size / 2 - 0.5 - rows @ self.center
        return affine


# What the crop is put round: the palm and the middle joints, which move less than the fingertips.
_STABLE = [MANO21.index(name) for name in ("wrist", "thumb1", "thumb2", "thumb3", "index1", "index2", "middle1",
                                           "middle2", "ring1", "ring2", "pinky1", "pinky2")]


def hand_crop(joints_px: np.ndarray) -> TurnedSquare:
    """The crop round a hand whose joints (21, 2) are known."""
    index, middle, ring = (joints_px[MANO21.index(name)] for name in ("index1", "middle1", "ring1"))
    up = ((index + ring) / 2 + middle) / 2 - joints_px[WRIST]
    up = up / max(float(np.linalg.norm(up)), 1e-6)
    across = np.array([-up[1], up[0]])
    frame = np.stack([across, up])
    inside = joints_px[_STABLE] @ frame.T
    low, high = inside.min(axis=0), inside.max(axis=0)
    side = float((high - low).max())
    return TurnedSquare((low + high) / 2 @ frame + 0.1 * side * up, 2.0 * side, up)


def views(height: int, width: int) -> Iterator[np.ndarray]:
    """What the palm network looks at: `view_from_image` (3, 3) of the whole image, of the image with a wide border, and
    of tiles."""
    longer, shorter = max(height, width), min(height, width)
    center = np.array([width - 1, height - 1]) / 2
    yield view(center, longer)
    yield view(center, 2 * longer)
    if longer < _MIN_TILED:
        return
    tile = _TILE_SHARE * shorter
    for y in _positions(height, tile):
        for x in _positions(width, tile):
            yield view(np.array([x, y]), tile)


def view(center: np.ndarray, side: float) -> np.ndarray:
    """`view_from_image` (3, 3) of an upright square in image pixels."""
    return TurnedSquare(center, side, np.array([0.0, -1.0])).affine(PALM_SIZE)


def _positions(length: int, tile: float) -> list[float]:
    count = max(1, math.ceil((length - tile) / (0.75 * tile)) + 1)
    return np.linspace(tile / 2, length - tile / 2, count).tolist() if count > 1 else [length / 2]


def merged(places: np.ndarray, sides: np.ndarray, scores: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
    """One detection for each palm: the mean of those that overlap, weighted by their scores.

    places: (N, 8, 2), the centre first.  sides: (N,).  scores: (N,).
    """
    rest = np.argsort(-scores, kind="stable")
    while len(rest):
        overlap = _overlap(places[rest, 0], sides[rest], places[rest[0], 0], sides[rest[0]])
        alike = overlap >= _OVERLAP
        weights = scores[rest[alike]] / scores[rest[alike]].sum()
        yield np.tensordot(weights, places[rest[alike]], 1), float(weights @ sides[rest[alike]])
        rest = rest[~alike]


def _overlap(centers: np.ndarray, sides: np.ndarray, center: np.ndarray, side: float) -> np.ndarray:
    """Intersection over union (N,) of squares with one square."""
    low = np.maximum(centers - sides[:, None] / 2, center - side / 2)
    high = np.minimum(centers + sides[:, None] / 2, center + side / 2)
    shared = (high - low).clip(min=0).prod(axis=1)
    return shared / (sides ** 2 + side ** 2 - shared)


def add_hand(hands: list[FoundHand], hand: FoundHand) -> None:
    """Add a hand to those found, or let the surer one stand for both where it is one of them."""
    for place, known in enumerate(hands):
        distance = np.linalg.norm(known.joints_px - hand.joints_px, axis=1).mean()
        if distance < _SAME * max(known.size_px, hand.size_px):
            if hand.presence > known.presence:
                hands[place] = hand
            return
    hands.append(hand)


def _anchors() -> np.ndarray:
    """(2016, 2) centres, as shares of the side: two in each cell of a 24×24 grid, six in each of a 12×12 grid."""
    grids = []
    for cells, each in ((24, 2), (12, 6)):
        center = (np.arange(cells) + 0.5) / cells
        y, x = np.meshgrid(center, center, indexing="ij")
        grids.append(np.stack([x, y], axis=-1).reshape(-1, 1, 2).repeat(each, axis=1).reshape(-1, 2))
    return np.concatenate(grids)


ANCHORS = _anchors()


# ---------------------------------------------------------------- the files and what runs them

class Network:
    """A .tflite network on an image."""

    def __init__(self, content: bytes, threads: int):
        self.content, self.threads = content, threads

    @cached_property
    def _interpreter(self) -> Any:
        # Imported here: only a finder needs it.
        from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-untyped]

        interpreter = Interpreter(model_content=self.content, num_threads=self.threads)
        interpreter.allocate_tensors()
        return interpreter

    def __call__(self, pixels: np.ndarray) -> list[np.ndarray]:
        """The network's outputs, without their batch axis, for RGB (H, W, 3) uint8."""
        interpreter = self._interpreter
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], pixels[None].astype(np.float32) / 255)
        interpreter.invoke()
        return [interpreter.get_tensor(output["index"])[0] for output in interpreter.get_output_details()]


def is_known(name: str, content: bytes) -> bool:
    """Whether the bytes are those of the file of that name."""
    return hashlib.sha256(content).hexdigest() == FILES[name]


def read_checked(folder: Path, name: str) -> bytes:
    """The bytes of a file; FinderMissing if it is not there, UserError if it cannot be read or is another one."""
    path = folder / name
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FinderMissing(f"{path} is missing.", "python tool/fetch_finder.py fetches it.") from None
    except OSError as error:
        raise cannot_read(path, error) from None
    if not is_known(name, content):
        raise UserError(f"{path} is damaged or another file than was tested (sha256 "
                        f"{hashlib.sha256(content).hexdigest()[:12]} instead of {FILES[name][:12]}).",
                        "Delete it and run: python tool/fetch_finder.py")
    return content
