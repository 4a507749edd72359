"""Every tensor type that crosses a module boundary.

Legend: B batch · 2 the hand axis (`common.hands.Hand`: right 0, left 1) · 21 joints in MANO21 order ·
778 mesh vertices · S crop side in pixels. Lengths are metres in the camera frame (x right, y down,
z forward) after augmentation; `_crop` is in pixels of the S×S crop. The fields of one `Sample` have no leading B.

Missing supervision is a validity mask, never None: where a mask is 0 the value is finite but meaningless.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

Tree = TypeVar("Tree")


class ManoParams(NamedTuple):
    """Parameters of the hand model, any leading shape."""

    rotations: Tensor       # (B, 2, 16, 3, 3) the model's full local rotations, mean pose included
    shape: Tensor           # (B, 2, 10)


class Targets(NamedTuple):
    """What a sample annotates, and the masks that say where it does."""

    vertices: Tensor        # (B, 2, 778, 3)   relative to the own wrist
    joints: Tensor          # (B, 2, 21, 3)    relative to the own wrist
    wrist: Tensor           # (B, 2, 3)        camera frame
    relative: Tensor        # (B, 3)           left wrist − right wrist
    joints_crop: Tensor     # (B, 2, 21, 2)    projected joints, crop pixels
    joints_annotated: Tensor    # (B, 2, 21, 3)    camera frame: the dataset's own (triangulated) joints, never G·mesh
    mano: ManoParams

    present: Tensor         # (B, 2)           1 for a hand that the image shows, annotated or not

    vertices_valid: Tensor  # (B, 2)           the hand has a mesh
    joints_valid: Tensor    # (B, 2, 21)       joints[...] is annotated
    joints_annotated_valid: Tensor  # (B, 2, 21)   in the image and in 3D; none for a hand without its wrist
    relative_valid: Tensor  # (B,)             both wrists are annotated
    mano_valid: Tensor      # (B, 2)           the hand has model parameters
    present_valid: Tensor   # (B, 2)           it is known whether the image shows the hand


class Sample(NamedTuple):
    """What the dataset gives and the loader stacks. The image is bytes: a quarter of what its floats would weigh."""

    pixels: Tensor          # (B, 3, S, S)     RGB, uint8
    gain: Tensor            # (B, 3)           what turns each channel's bytes into floats: colour augmentation / 255
    targets: Targets
    camera_crop: Tensor     # (B, 3, 3)        intrinsics from the camera frame to crop pixels
    index: Tensor           # type: ignore[assignment]  # (B,) position in the reader: joins predictions to samples
    fault: Tensor           # (B,) int64       0, or the code of a data.checks.Reason: then all masks are 0


class TwoHandBatch(NamedTuple):
    """What a network trains and is tested on: stacked samples on a device, their images in floats."""

    image: Tensor           # (B, 3, S, S)     RGB in [0, 1]
    targets: Targets
    camera_crop: Tensor     # the rest as in Sample
    index: Tensor           # type: ignore[assignment]
    fault: Tensor


class JointPrediction(NamedTuple):
    """Joint stage: 2.5D joints and their features."""

    joints_cells: Tensor    # (B, 2, 21, 3)    x, y, z in heatmap cells: see common.geometry.joints_to_cells
    features: Tensor        # (B, 2, 21, C)    F_J of the paper


class HandPrediction(NamedTuple):
    """Both hands, camera frame, metres."""

    vertices: Tensor        # (B, 2, 778, 3)   relative to the own wrist
    joints: Tensor          # (B, 2, 21, 3)    relative to the own wrist: G·vertices
    relative: Tensor        # (B, 3)           left wrist − right wrist
    mano: ManoParams        # of the coarse mesh
    camera: Tensor          # (B, 2, 3)        weak perspective s, tx, ty: see common.geometry.project_weak


class Stages(NamedTuple):
    """Everything a network predicts, coarse to fine. A network without one of the stages leaves it None."""

    mesh: HandPrediction                    # M_r, the coarse mesh
    refined: HandPrediction | None = None   # M_f = M_r + ΔM
    joint: JointPrediction | None = None
    presence: Tensor | None = None          # (B, 2) logits: the image shows the hand

    @property
    def final(self) -> HandPrediction:
        """The result: the last mesh there is."""
        return self.mesh if self.refined is None else self.refined


class TwoHands(NamedTuple):
    """Both hands of one image, in numpy. Metres; origin at the right wrist; x right, y down, z away from the camera.

    The meshes are M_f, the result. Rotations and shape describe the coarse mesh M_r, because the refine stage moves
    vertices one by one and leaves the hand model.
    """

    vertices: np.ndarray        # (2, 778, 3)      right hand first; faces are those of the hand model
    joints: np.ndarray          # (2, 21, 3)       in MANO21 order
    rotations: np.ndarray       # (2, 16, 3, 3)    local, in MODEL16 order, the root's in the camera frame
    shape: np.ndarray           # (2, 10)          standard deviations
    relative: np.ndarray        # (3,)             left wrist − right wrist
    scale_px_per_m: np.ndarray  # (2,)             weak perspective: pixel = scale · (x, y) relative to the own wrist
    wrist_px: np.ndarray        # (2, 2)             + the wrist's pixel in the image
    crop_px: np.ndarray         # (3,)             centre x, y and side of the square that the network saw, pixels
    presence: np.ndarray        # (2,)             probability that the image shows the hand; 1: not known
    confidence: np.ndarray      # (2, 21)          probability that a joint lies within a tenth of the hand's size of
                                #                  its true place in the image

    @property
    def present(self) -> np.ndarray:
        """(2,) bool. What is said of a hand that is not present is meaningless."""
        return self.presence >= 0.5

    @property
    def wrists(self) -> np.ndarray:
        """(2, 3)"""
        return np.stack([np.zeros_like(self.relative), self.relative])

    def to_px(self, points: np.ndarray) -> np.ndarray:
        """Image pixels (2, N, 2) of points (2, N, 3) of each hand, by the camera of that hand."""
        own = points - self.wrists[:, None]
        return self.scale_px_per_m[:, None, None] * own[..., :2] + self.wrist_px[:, None]


def map_tensors(function: Callable[..., Tensor], *trees: Tree) -> Tree:
    """`function` of the tensors that stand in the same place of nested NamedTuples; None stays None."""
    first: Any = trees[0]
    if first is None or isinstance(first, Tensor):
        return first if first is None else function(*trees)     # type: ignore[return-value]
    return type(first)(*(map_tensors(function, *parts) for parts in zip(*trees, strict=True)))
