"""From a frame as stored to a sample: flip, rotation, scale, crop and colour, each applied to everything at once.

The order is fixed: mirror the whole image with its camera, turn the whole camera frame about the viewing axis,
then crop. So projecting the camera-frame targets with `camera_crop` lands on the pixels of the crop, exactly.
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from common.geometry import SquareBox, crop_affine, rotation_about_z, square_box
from common.hands import (
    NUM_JOINTS,
    NUM_MODEL_JOINTS,
    NUM_SHAPE,
    NUM_VERTICES,
    WRIST,
    Hand,
    mirror_points,
    mirror_rotations,
)
from common.settings import Range, Share
from common.types import ManoParams, Sample, Targets
from data.damage import Damage, damaged, draw_damage
from data.schema import Record

_MIN_EMPTY, _MIN_EMPTY_SHARE = 24, 0.4      # side of a crop without hands: pixels, share of the hands' box


@dataclass(frozen=True)
class AugmentConfig:
    """How far `draw_view` goes. The ranges are those of EANet, the code LGNet descends from; the paper names the kinds
    only."""

    scale: Annotated[float, Range(0, 0.9)] = 0.25       # side of the box × (1 + scale·clip(N(0, 1), ±1))
    rotation: Annotated[float, Range(0, 180)] = 30.0    # degrees × clip(N(0, 1), ±2)
    rotation_probability: Share = 0.6
    flip_probability: Share = 0.5
    color: Share = 0.2                      # each channel × U(1 − color, 1 + color)
    # What follows is ours, for photographs that nobody prepared: off unless asked for.
    shift: Share = 0.0                      # of the box's side, in a random direction × U(0, 1)
    far_probability: Share = 0.0            # that the box is 1 to 3 times as large, as of hands not yet found
    empty_probability: Share = 0.0          # that the crop shows a part of the image without hands, if there is one
    damage_probability: Share = 0.0         # of each kind of damage: see `data.damage`


class View(NamedTuple):
    """One way of looking at a frame."""

    flip: bool = False
    rotation_deg: float = 0.0                               # positive: counter-clockwise on screen
    scale: float = 1.0                                      # of the box
    color: tuple[float, float, float] = (1.0, 1.0, 1.0)     # gain of red, green, blue
    shift: tuple[float, float] = (0.0, 0.0)                 # of the box, in its sides
    empty: int | None = None                                # the crop lies beside the hands; chooses where
    damage: Damage = Damage()                               # to the pixels


def draw_view(ranges: AugmentConfig, rng: np.random.Generator) -> View:
    """A random view. Every draw is made every time, so that no range changes what another one draws."""
    scale, rotation = np.clip(rng.standard_normal(2), (-1, -2), (1, 2))
    turns, flips = rng.random(2) < (ranges.rotation_probability, ranges.flip_probability)
    color = rng.uniform(1 - ranges.color, 1 + ranges.color, size=3)
    angle, length, far = rng.random(3) * (2 * np.pi, ranges.shift, 2)
    is_far, is_empty = rng.random(2) < (ranges.far_probability, ranges.empty_probability)
    return View(
        flip=bool(flips),
        rotation_deg=float(ranges.rotation * rotation) if turns else 0.0,
        scale=float((1 + ranges.scale * scale) * (1 + far * is_far)),
        color=tuple(color.tolist()),
        shift=(float(length * np.cos(angle)), float(length * np.sin(angle))),
        empty=int(rng.integers(2**31)) if is_empty else None,
        damage=draw_damage(ranges.damage_probability, rng),
    )


def make_sample(record: Record, image: np.ndarray, index: int, *, size: int, box_ratio: float, view: View) -> Sample:
    """The crop of a frame in one view, with its targets. Changes neither `record` nor `image`.

    image: (H, W, 3) uint8 RGB, as stored.  index: the frame's position in its reader.
    size: side of the crop, pixels.  box_ratio: share of the crop that the hands fill when view.scale is 1.
    """
    if view.flip:
        record, image = mirror_record(record), cv2.flip(image, 1)
    box = square_box(record.box_px, box_ratio)
    beside = None if view.empty is None else square_beside(record, view.empty)
    if beside is None:
        square = SquareBox(box.center + box.side * np.array(view.shift), box.side)
    else:
        square, record = beside, without_hands(record)
    crop_from_image = crop_affine(square, size, view.scale if beside is None else 1.0, view.rotation_deg)
    turn = rotation_about_z(view.rotation_deg)
    camera_crop = crop_from_image @ record.camera @ turn.T
    return Sample(
        pixels=_crop_image(image, crop_from_image, size, view.damage),
        gain=_float32(np.array(view.color)) / 255,
        targets=_targets(rotate_record(record, turn), camera_crop),
        camera_crop=_float32(camera_crop),
        index=torch.tensor(index),
        fault=torch.tensor(0),
    )


def empty_sample(index: int, fault: int, size: int) -> Sample:
    """What stands for a sample that cannot be used: a black image of which nothing is annotated.

    fault: the code of a `data.checks.Reason`.  size: side of the crop, pixels.
    """
    def none(*shape: int) -> Tensor:
        return torch.zeros(shape)

    targets = Targets(
        vertices=none(2, NUM_VERTICES, 3), joints=none(2, NUM_JOINTS, 3),
        wrist=torch.tensor([[0.0, 0.0, 1.0]] * 2),      # at 0 its projection would not be finite
        relative=none(3), joints_crop=none(2, NUM_JOINTS, 2), joints_annotated=none(2, NUM_JOINTS, 3),
        mano=ManoParams(torch.eye(3).repeat(2, NUM_MODEL_JOINTS, 1, 1), none(2, NUM_SHAPE)),
        present=none(2),
        vertices_valid=none(2), joints_valid=none(2, NUM_JOINTS), joints_annotated_valid=none(2, NUM_JOINTS),
        relative_valid=none(), mano_valid=none(2), present_valid=none(2),
    )
    return Sample(torch.zeros(3, size, size, dtype=torch.uint8), none(3), targets, torch.eye(3), torch.tensor(index),
                  torch.tensor(fault))


def float_image(pixels: Tensor, gain: Tensor) -> Tensor:
    """A sample's image as RGB in [0, 1], (…, 3, S, S), with its colours augmented; what would be brighter is white.

    pixels: (…, 3, S, S) uint8.  gain: (…, 3).
    """
    return (pixels * gain[..., None, None]).clamp_(max=1.0)


def mirror_record(record: Record) -> Record:
    """The frame seen in a mirror: x → W − 1 − x in the image, x → −x in the camera frame, hands swapped.

    The principal point is mirrored too; keeping it, as InterWild does, moves the mesh off the image.
    """
    width = record.image_size[0]
    camera = record.camera.copy()
    camera[0, 2] = width - 1 - camera[0, 2]
    box = record.box_px.copy()
    box[:, 0] = width - 1 - box[::-1, 0]
    of_hands = ("shape", "vertices_valid", "joints_valid", "joints_annotated_valid", "mano_valid", "present")
    swapped = {key: getattr(record, key)[::-1].copy() for key in of_hands}
    return record._replace(
        camera=camera, box_px=box, **swapped,
        vertices_cam=mirror_points(torch.from_numpy(record.vertices_cam)).numpy(),
        joints_cam=mirror_points(torch.from_numpy(record.joints_cam)).numpy(),
        joints_annotated_cam=mirror_points(torch.from_numpy(record.joints_annotated_cam)).numpy(),
        rotations=mirror_rotations(torch.from_numpy(record.rotations)).flip(0).numpy(),
    )


def rotate_record(record: Record, rotation: np.ndarray) -> Record:
    """The camera-frame points and root rotations of a frame, turned about the camera; the rest is unchanged."""
    rotations = record.rotations.copy()
    rotations[:, 0] = rotation @ rotations[:, 0]
    turned = {key: getattr(record, key) @ rotation.T for key in ("vertices_cam", "joints_cam", "joints_annotated_cam")}
    return record._replace(**turned, rotations=rotations)


def square_beside(record: Record, choice: int) -> SquareBox | None:
    """A square of the image that its hands do not touch, nor one turned about its centre; None if there is none.

    choice: any number ≥ 0, which chooses among them.
    """
    width, height = record.image_size
    low, high = record.box_px
    rng = np.random.default_rng(choice)
    # Left of the hands, right of them, above and below: what room there is, along and across.
    rooms = [(np.array([0, 0]), np.array([low[0], height])), (np.array([high[0], 0]), np.array([width, height])),
             (np.array([0, 0]), np.array([width, low[1]])), (np.array([0, high[1]]), np.array([width, height]))]
    smallest = max(_MIN_EMPTY, _MIN_EMPTY_SHARE * float((high - low).max()))
    rooms = [(start, end) for start, end in rooms if (end - start).min() / np.sqrt(2) >= smallest]
    if not rooms:
        return None
    start, end = rooms[rng.integers(len(rooms))]
    side = rng.uniform(smallest, (end - start).min() / np.sqrt(2))
    half = side / np.sqrt(2)
    return SquareBox(rng.uniform(start + half, end - half), float(side))


def without_hands(record: Record) -> Record:
    """The record as one that shows no hand and annotates nothing."""
    masks = ("vertices_valid", "joints_valid", "joints_annotated_valid", "mano_valid", "present")
    return record._replace(**{key: np.zeros_like(getattr(record, key)) for key in masks})


def _crop_image(image: np.ndarray, crop_from_image: np.ndarray, size: int, damage: Damage) -> Tensor:
    """(3, S, S) uint8 in the image's order of channels; black outside the image."""
    crop = cv2.warpAffine(image, crop_from_image[:2], (size, size), flags=cv2.INTER_LINEAR)
    crop = damaged(crop, damage)
    return torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))


def _targets(record: Record, camera_crop: np.ndarray) -> Targets:
    """Targets of a frame in its final camera frame; 0 where nothing is annotated."""
    valid = record.joints_valid[..., None]                                  # (2, 21, 1)
    wrist = record.joints_cam[:, WRIST] * valid[:, WRIST]                   # (2, 3)
    has_both = bool(valid[:, WRIST].all())
    homogeneous = np.where(valid, record.joints_cam, (0.0, 0.0, 1.0)) @ camera_crop.T
    return Targets(
        vertices=_float32((record.vertices_cam - wrist[:, None]) * record.vertices_valid[:, None, None]),
        joints=_float32((record.joints_cam - wrist[:, None]) * valid),
        wrist=_float32(wrist),
        relative=_float32((wrist[Hand.LEFT] - wrist[Hand.RIGHT]) * has_both),
        joints_crop=_float32(homogeneous[..., :2] / homogeneous[..., 2:] * valid),
        joints_annotated=_float32(record.joints_annotated_cam * record.joints_annotated_valid[..., None]),
        mano=ManoParams(_float32(record.rotations), _float32(record.shape)),
        present=_float32(record.present),
        vertices_valid=_float32(record.vertices_valid),
        joints_valid=_float32(record.joints_valid),
        joints_annotated_valid=_float32(record.joints_annotated_valid),
        relative_valid=torch.tensor(float(has_both)),
        mano_valid=_float32(record.mano_valid),
        present_valid=torch.ones(2),
    )


def _float32(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))
