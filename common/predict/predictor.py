"""Two hands from an image, for a program of your own: start at `TwoHandPredictor.from_weights`."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from common.errors import UserError
from common.geometry import (
    Box,
    SquareBox,
    apply_affine,
    cells_to_crop,
    check_box,
    crop_affine,
    grid_to_crop,
    project_weak,
    square_box,
)
from common.images import BadImage, crop_image, read_rgb
from common.mano.load import load_hand_model
from common.mano.model import HandModel, check_same_model
from common.nets.zoo import ModelConfig, build_model, upgraded
from common.predict.fast import for_inference
from common.types import Stages, TwoHands, map_tensors
from common.weights import SHIPPED, load_weights, read_weights

# Of a logistic curve over the logarithm of the gap, laid through the shares in seven bins of 12,159 joints: the shipped
# weights on rendered validation images.
CONFIDENCE = (-2.6, 1.3)


class TwoHandPredictor:
    """Predicts both hands of images, each in one look at a square crop.

        predictor = TwoHandPredictor.from_weights()
        hands = predictor("photo.jpg", box=(410, 220, 380, 300))
        hands.vertices          # (2, 778, 3) metres, right hand first: see common.types.TwoHands

    model: a network of `common.nets.zoo` in evaluation mode, or what `for_inference` makes of one.
    hand_model: whose `faces` (2, 1538, 3) join the vertices.
    input_size: side of the crop, pixels.  box_ratio: share of the crop that a box fills.  device: of the model.
    """

    def __init__(self, model: nn.Module, hand_model: HandModel, *, input_size: int, box_ratio: float,
                 device: torch.device):
        self.model, self.hand_model, self.device = model, hand_model, device
        self.input_size, self.box_ratio = input_size, box_ratio

    @classmethod
    def from_weights(cls, path: str | Path | None = None, device: str | torch.device | None = None,
                     mano: str = "") -> "TwoHandPredictor":
        """The network in a file of weights, used as the file says (flip test).

        path: None for the weights that come with this repository.  device: None for a GPU if there is one, else the
        CPU.  mano: folder of the MANO files, for weights that were trained with MANO.
        Raises UserError if the file cannot be read, or if the hand model is not the one of the training.
        """
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        path = SHIPPED if path is None else Path(path)
        trained = read_weights(path)
        config = msgspec.convert(upgraded(trained.config), _Config)
        hand_model = load_hand_model(config.hand_model.name, mano or config.hand_model.path)
        check_same_model(hand_model.identity, trained.hand_model, str(path))
        model = build_model(config.model, hand_model)
        load_weights(model, trained.model, str(path))
        return cls(for_inference(model.to(device), hand_model, flip_test=config.test.flip_test), hand_model,
                   input_size=config.model.input_size, box_ratio=config.data.box_ratio, device=device)

    def __call__(self, image: np.ndarray | str | Path, box: Box | None = None) -> TwoHands:
        """Both hands of one image.

        image: RGB (H, W, 3) uint8, or a file, which is read upright.
        box: tight round both hands, in pixels of the image; None: the whole image, which works if both hands fill it.
        Raises UserError for a file that gives no image, and for what is no box.
        """
        return self.batch([image], [box])[0]

    @torch.inference_mode()
    def batch(self, images: Sequence[np.ndarray | str | Path], boxes: Sequence[Box | None] | None = None
              ) -> list[TwoHands]:
        """As for one image, for as many as fit into memory together.  boxes: one for each image, or None."""
        arrays = [_read(image) for image in images]
        squares = [self._square(image, box) for image, box in
                   zip(arrays, [None] * len(arrays) if boxes is None else boxes, strict=True)]
        transforms = [crop_affine(square, self.input_size) for square in squares]
        crops = np.stack([crop_image(image, transform, self.input_size)
                          for image, transform in zip(arrays, transforms, strict=True)])
        stages = self.model(torch.from_numpy(crops).to(self.device).permute(0, 3, 1, 2).float() / 255)
        stages = map_tensors(lambda tensor: tensor.float().cpu(), stages)
        return [two_hands(_row(stages, k), squares[k], self.input_size) for k in range(len(arrays))]

    def _square(self, image: np.ndarray, box: Box | None) -> SquareBox:
        if box is None:
            height, width = image.shape[:2]
            return SquareBox(np.array([width - 1, height - 1]) / 2, float(max(width, height)))
        try:
            check_box(box)
        except ValueError as error:
            raise UserError(f"The box {tuple(box)} {error}.", "A box is x, y, width and height in pixels.") from None
        x, y, width, height = box
        return square_box(np.array([[x, y], [x + width, y + height]]), self.box_ratio)


def two_hands(stages: Stages, square: SquareBox, size: int) -> TwoHands:
    """Predictions for one crop, as they lie in the image.

    stages: without batch axis, on the CPU.  square: of the image, which the crop of `size` pixels shows, not rotated.
    """
    mesh, final = stages.mesh, stages.final
    wrists = torch.stack([torch.zeros_like(final.relative), final.relative])[:, None]
    image_from_crop = np.linalg.inv(crop_affine(square, size))
    return TwoHands(
        vertices=(final.vertices + wrists).numpy(), joints=(final.joints + wrists).numpy(),
        rotations=mesh.mano.rotations.numpy(), shape=mesh.mano.shape.numpy(), relative=final.relative.numpy(),
        scale_px_per_m=final.camera[:, 0].double().numpy() * size / 2 * image_from_crop[0, 0],
        wrist_px=apply_affine(image_from_crop, grid_to_crop(final.camera[:, 1:], size).double().numpy()),
        crop_px=np.array([*square.center, square.side]),
        presence=np.ones(2) if stages.presence is None else stages.presence.sigmoid().double().numpy(),
        confidence=joint_confidence(stages, size).numpy(),
    )


def joint_confidence(stages: Stages, size: int) -> Tensor:
    """Confidence (2, 21) of joints, see `TwoHands`: the less the joint stage and the mesh agree, the lower it is.

    stages: without batch axis.  size: of the crop, pixels. Networks without 2.5D joints know nothing: 0.5.
    """
    final = stages.final
    if stages.joint is None:
        return torch.full(final.joints.shape[:2], 0.5)
    on_mesh = grid_to_crop(project_weak(final.joints, final.camera), size)                          # (2, 21, 2)
    extent = (on_mesh.amax(dim=1) - on_mesh.amin(dim=1)).norm(dim=-1, keepdim=True)
    gap = (cells_to_crop(stages.joint.joints_cells, size) - on_mesh).norm(dim=-1) / extent.clamp(min=1.0)
    return (CONFIDENCE[0] - CONFIDENCE[1] * gap.clamp(min=1e-3).log()).sigmoid()


def _row(stages: Stages, row: int) -> Stages:
    return map_tensors(lambda tensor: tensor[row], stages)


def _read(image: np.ndarray | str | Path) -> np.ndarray:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(f"An image has the type {image.dtype} and the shape {image.shape}.",
                            "It must be RGB: (height, width, 3), uint8.")
        return image
    try:
        return read_rgb(Path(image), upright=True)
    except BadImage as error:
        raise UserError(f"{image}: {error.detail}.") from None


class _HandModel(msgspec.Struct):
    name: str
    path: str


class _Data(msgspec.Struct):
    box_ratio: float


class _Test(msgspec.Struct):
    flip_test: bool = False


class _Config(msgspec.Struct):
    """What prediction needs of a stored configuration."""

    model: ModelConfig
    hand_model: _HandModel
    data: _Data
    test: _Test
