"""Flip testing: a crop and its mirror image are predicted, and the two predictions averaged.

Customary in pose estimation (Newell et al., ECCV 2016). LGNet's paper does not say that it does so.

The mirror image of a crop is the crop of the mirrored photograph, as training sees it. Both have the middle of the box
at S/2 (`common.geometry.crop_affine`), so pixel x becomes S − x, not S − 1 − x.

Legend: B batch · 2 the hand axis · S side of the crop in pixels.
"""

import torch
from torch import Tensor, nn

from common.hands import mirror_points, mirror_relative, mirror_rotations
from common.mano.model import ManoLayer
from common.types import HandPrediction, ManoParams, Stages, map_tensors


class FlipTest(nn.Module):
    """A network that predicts crops as the mean of what `model` predicts for them and for their mirror images.

    The mean is taken of the hand model's parameters, the camera, the relative position and, in the frame of each
    wrist, the offsets of the refine stage: a mean of vertices would shrink hands about whose orientation the two
    predictions differ. The joint stage's prediction is that for the crop alone.

    model: any network of `common.nets.zoo`.  mano: the hand model that its parameters pose.
    """

    def __init__(self, model: nn.Module, mano: ManoLayer):
        super().__init__()
        self.model, self.mano = model, mano

    def forward(self, image: Tensor) -> Stages:
        """Stages for crops (B, 3, S, S), in float32. Crops and mirror images are one batch of 2·B."""
        size = image.shape[-1]
        stages = map_tensors(Tensor.float, self.model(torch.cat([image, mirrored_crop(image)])))
        seen, reflected = (map_tensors(lambda tensor, half=half: tensor.chunk(2)[half], stages) for half in (0, 1))
        other = mirrored(reflected.mesh, size)
        mesh = self._mean(seen.mesh, other)
        presence = None if seen.presence is None else (seen.presence + reflected.presence.flip(1)) / 2
        if stages.refined is None:
            return Stages(mesh, None, seen.joint, presence)
        own_offset = (_own_offset(seen.mesh, seen.refined) + _own_offset(other, mirrored(reflected.refined, size))) / 2
        vertices = mesh.vertices + own_offset @ _from_wrist(mesh).mT
        return Stages(mesh, mesh._replace(vertices=vertices, joints=self.mano.joints(vertices)), seen.joint, presence)

    def _mean(self, seen: HandPrediction, other: HandPrediction) -> HandPrediction:
        rotations = halfway(seen.mano.rotations, other.mano.rotations)
        params = ManoParams(rotations, (seen.mano.shape + other.mano.shape) / 2)
        vertices, joints = self.mano.about_wrist(params)
        return HandPrediction(vertices, joints, (seen.relative + other.relative) / 2, params,
                              (seen.camera + other.camera) / 2)


def mirrored_crop(image: Tensor) -> Tensor:
    """The mirror images of crops (B, 3, S, S). Their first column would lie outside the crop: it repeats the second."""
    columns = image.flip(-1)[..., :-1]
    return torch.cat([columns[..., :1], columns], dim=-1)


def mirrored(hands: HandPrediction, size: int) -> HandPrediction:
    """What a prediction for a crop of `size` pixels says of the mirrored crop, hands swapped; twice gives the
    prediction again."""
    params = ManoParams(mirror_rotations(hands.mano.rotations).flip(1), hands.mano.shape.flip(1))
    scale, x, y = hands.camera.unbind(-1)
    camera = torch.stack([scale, 2 / size - x, y], dim=-1)      # S − x of a pixel, in the camera's half crops
    return HandPrediction(mirror_points(hands.vertices), mirror_points(hands.joints), mirror_relative(hands.relative),
                          params, camera.flip(1))


def halfway(first: Tensor, second: Tensor) -> Tensor:
    """The rotation (..., 3, 3) half-way from one to the other.

    With D the turn by θ between them, it is the square root of D that follows: I + H + H² / (1 + cos ½θ), where
    H = (D − Dᵀ) / (4 cos ½θ). Half-way through a turn by 180° lie two; the result is then `first`.
    """
    turn = first.mT @ second
    trace = turn.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    cos_half = ((1 + trace).clamp(min=0).sqrt() / 2).clamp(min=1e-4)[..., None, None]
    half = (turn - turn.mT) / (4 * cos_half)
    return first + first @ (half + half @ half / (1 + cos_half))


def _own_offset(mesh: HandPrediction, final: HandPrediction) -> Tensor:
    """What the refine stage added, (B, 2, 778, 3), in the frame of the own wrist."""
    return (final.vertices - mesh.vertices) @ _from_wrist(mesh)


def _from_wrist(hands: HandPrediction) -> Tensor:
    """Rotations (B, 2, 3, 3) from the frame of the wrist to that of the camera."""
    return hands.mano.rotations[:, :, 0]
