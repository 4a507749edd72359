"""Between `Predictions` and the forms in which other programs keep two hands.

Each form goes both ways without loss, up to the rounding of its numbers, whose type is kept. Poses:

- flat_hand_mean=True, as rotations here always are: the rotations are what the model applies.
- flat_hand_mean=False, as InterWild and InterHand2.6M store axis-angles: the model adds its mean pose to the fingers.

Legend: N samples · 2 the hand axis · 16 joints in MODEL16 order · 21 joints · 778 vertices.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch

from common.errors import UserError
from common.exchange.predictions import Predictions
from common.hands import (
    INTERHAND21,
    MANO21,
    WRIST,
    Hand,
    joint_regressor,
    mirror_rotations,
    mirror_vectors,
)
from common.mano.model import HandModel, ManoLayer
from common.types import ManoParams

JOINT_SETS = {"mano21": MANO21, "interhand21": INTERHAND21}
METRES = {"m": 1.0, "mm": 1e-3}     # of a unit
# What a translation is. "wrist": where the wrist that is regressed from the posed mesh ends up. "mano": what is added
# to the vertices as MANO poses them, that is, turned about the wrist joint of the resting hand.
Pivot = Literal["wrist", "mano"]
# What points are relative to. "wrist": each hand to its own. "camera": both to the camera, or to any other point.
Frame = Literal["wrist", "camera"]

_CHUNK = 256


class Matrices(NamedTuple):
    """Hands as parameters of the hand model, flat_hand_mean=True."""

    image: np.ndarray           # (N,)
    predicted: np.ndarray       # (N, 2) bool
    rotations: np.ndarray       # (N, 2, 16, 3, 3)
    shape: np.ndarray           # (N, 2, 10)
    translation: np.ndarray     # (N, 2, 3)


class Points(NamedTuple):
    """Hands as meshes, joints, or both; None for what there is not."""

    image: np.ndarray               # (N,)
    predicted: np.ndarray           # (N, 2) bool
    vertices: np.ndarray | None     # (N, 2, 778, 3)
    joints: np.ndarray | None       # (N, 2, 21, 3)
    relative: np.ndarray | None     # (N, 3)    left wrist − right wrist; only where points are relative to the wrist


Form = TypeVar("Form", Matrices, Points)
Typed = TypeVar("Typed", Points, Predictions)


# ---------------------------------------------------------------- wrists and meshes

def common_wrists(predictions: Predictions) -> np.ndarray:
    """Both wrists (N, 2, 3) in one frame with the camera's axes; its origin is the right wrist where the camera's is
    not known. Raises UserError if the predictions do not say how the hands lie to each other."""
    if predictions.relative is None:
        raise UserError("The predictions hold no 'relative': how the hands lie to each other is not known.",
                        "Only meshes and joints relative to the own wrist can be written (--frame wrist).")
    relative = predictions.relative.astype(np.float64)
    right = np.zeros_like(relative) if predictions.right_wrist is None else predictions.right_wrist
    return np.stack([right, right + relative], axis=1)


def _placed(predictions: Predictions, wrists: np.ndarray) -> Predictions:
    """The predictions with their wrists (N, 2, 3). A hand that is not predicted is at the origin of the other."""
    right = np.where(predictions.predicted[:, [Hand.RIGHT]], wrists[:, Hand.RIGHT], 0.0)
    relative = np.where(predictions.predicted[:, [Hand.LEFT]], wrists[:, Hand.LEFT] - right, 0.0)
    return predictions._replace(relative=relative, right_wrist=right)


def wrist_relative_meshes(predictions: Predictions, layer: ManoLayer) -> np.ndarray | None:
    """Meshes (N, 2, 778, 3) relative to the own wrist: those of the file, else the posed parameters, else None."""
    if predictions.vertices is not None or predictions.rotations is None or predictions.shape is None:
        return predictions.vertices
    pairs = _posed(predictions.rotations, predictions.shape, layer)
    return np.concatenate([vertices - wrists[:, :, None] for vertices, wrists in pairs])


def _posed_wrists(rotations: np.ndarray, shape: np.ndarray, model: HandModel) -> np.ndarray:
    """The wrists (N, 2, 3) regressed from the meshes as the model poses them."""
    return np.concatenate([wrists for _, wrists in _posed(rotations, shape, ManoLayer(model))])


def _posed(rotations: np.ndarray, shape: np.ndarray, layer: ManoLayer) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Vertices (n, 2, 778, 3) as the model poses them and the wrists (n, 2, 3) regressed from them, chunk by chunk."""
    for start in range(0, len(rotations), _CHUNK):
        rows = slice(start, start + _CHUNK)
        with torch.inference_mode():
            vertices = layer(ManoParams(torch.tensor(rotations[rows]), torch.tensor(shape[rows]))).double()
            wrists = layer.regressor[:, WRIST, None].double() @ vertices        # (n, 2, 1, 3)
        yield vertices.numpy(), wrists[:, :, 0].numpy()


# ---------------------------------------------------------------- rotation matrices

def from_matrices(form: Matrices, model: HandModel, *, unit: str, pivot: Pivot) -> Predictions:
    """Predictions from parameters whose translations are in `unit` and mean what `pivot` says."""
    translation = form.translation.astype(np.float64) * METRES[unit]
    if pivot == "mano":
        translation = translation + _posed_wrists(form.rotations, form.shape, model)
    bare = Predictions(form.image, form.predicted, rotations=form.rotations, shape=form.shape)
    return _placed(bare, translation)


def to_matrices(predictions: Predictions, model: HandModel, *, unit: str, pivot: Pivot) -> Matrices:
    """Inverse of `from_matrices`. Raises UserError if the predictions have no parameters."""
    if predictions.rotations is None or predictions.shape is None:
        raise UserError("The predictions hold no 'rotations' and 'shape'.", "Meshes can be written with 'points'.")
    translation = common_wrists(predictions)
    if pivot == "mano":
        translation = translation - _posed_wrists(predictions.rotations, predictions.shape, model)
    return Matrices(predictions.image, predictions.predicted, predictions.rotations, predictions.shape,
                    translation / METRES[unit])


# ---------------------------------------------------------------- meshes and joints

def from_points(form: Points, model: HandModel, *, unit: str, order: str, frame: Frame) -> Predictions:
    """Predictions from meshes and joints in `unit` and `frame`, the joints in `order`.

    In the camera's frame the wrists are those regressed from the meshes, or the joints' where there are no meshes.
    """
    vertices, joints, relative = (None if values is None else values.astype(np.float64) * METRES[unit]
                                  for values in (form.vertices, form.joints, form.relative))
    if joints is not None:
        joints = joints[:, :, MANO21.gather_from(JOINT_SETS[order])]
    predictions = Predictions(form.image, form.predicted, vertices, joints, relative)
    if frame == "camera":
        points = joints if vertices is None else _wrist_row(model) @ vertices
        if points is None:
            raise ValueError("hands without meshes and joints have no wrists")
        wrists = points[:, :, WRIST]        # the first joint in MANO21 order
        predictions = _placed(_moved(predictions, -wrists), wrists)
    return _typed_like(form, predictions)


def to_points(predictions: Predictions, model: HandModel, *, unit: str, order: str, frame: Frame) -> Points:
    """Inverse of `from_points`. Predictions that are parameters alone are posed."""
    if predictions.vertices is None and predictions.joints is None:
        predictions = predictions._replace(vertices=wrist_relative_meshes(predictions, ManoLayer(model)))
    placed = predictions
    if frame == "camera":
        placed = _moved(predictions, common_wrists(predictions))._replace(relative=None)
    vertices, joints, relative = (None if values is None else values.astype(np.float64) / METRES[unit]
                                  for values in (placed.vertices, placed.joints, placed.relative))
    if joints is not None:
        joints = joints[:, :, JOINT_SETS[order].gather_from(MANO21)]
    return _typed_like(predictions, Points(predictions.image, predictions.predicted, vertices, joints, relative))


def _typed_like(source: Points | Predictions, result: Typed) -> Typed:
    """The result with meshes and joints in the number type that the source has them in."""
    return result._replace(**{name: getattr(result, name).astype(getattr(source, name).dtype)
                              for name in ("vertices", "joints") if getattr(result, name) is not None})


def _wrist_row(model: HandModel) -> np.ndarray:
    """The wrist's row of G, (2, 1, 778)."""
    return joint_regressor(model.regressor.double())[:, WRIST, None].numpy()


def _moved(predictions: Predictions, by: np.ndarray) -> Predictions:
    """Meshes and joints moved by (N, 2, 3)."""
    vertices, joints = (None if points is None else points + by[:, :, None]
                        for points in (predictions.vertices, predictions.joints))
    return predictions._replace(vertices=vertices, joints=joints)


# ---------------------------------------------------------------- left hands seen in a mirror

def mirrored_left(form: Form) -> Form:
    """The form with its left hands seen in a mirror across x = 0; twice gives the form again.

    For models that know right hands only: they see a mirrored image and keep its left hand as a right one.
    `relative` stays, because it belongs to both hands.
    """
    turned = {}
    for name in {"vertices", "joints", "translation", "rotations"} & set(form._fields):
        values = getattr(form, name)
        if values is None:
            continue
        turned[name] = values.copy()
        mirror = mirror_rotations if name == "rotations" else mirror_vectors
        turned[name][:, Hand.LEFT] = mirror(torch.tensor(values[:, Hand.LEFT])).numpy()
    return form._replace(**turned)
