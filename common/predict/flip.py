"""Flip testing: a crop and its mirror image are predicted, and the two opinions averaged.

Customary in pose estimation (Newell et al., ECCV 2016). LGNet's paper does not say that it does so.

Legend: B batch · 2 the hand axis · S side of the crop in pixels.
"""

import torch
from torch import Tensor, nn

from common.hands import mirror_points, mirror_relative, mirror_rotations, mirror_vectors
from common.mano.model import ManoLayer
from common.types import GroundTruthCamera, HandPrediction, ManoParams, Stages, map_tensors


class FlipTest(nn.Module):
    """A model that predicts crops as the mean of what `model` says of them and of their mirror images.

    The mean is taken of the hand model's parameters, the camera, the relative position and, in the frame of each
    wrist, the offsets of the refine stage: a mean of vertices would shrink hands about whose direction the two opinions
    differ. The joint stage's prediction is that for the crop alone.

    model: an LGNet, or what `for_inference` makes of one.  mano: its hand model.
    """

    def __init__(self, model: nn.Module, mano: ManoLayer):
        super().__init__()
        self.model, self.mano = model, mano

    def forward(self, image: Tensor, camera: GroundTruthCamera | None = None) -> Stages:
        """As `LGNet.forward`, in float32. Crops and mirror images are one batch of 2·B."""
        cameras = camera and map_tensors(_joined, camera, mirrored_camera(camera, image.shape[-1]))
        stages = map_tensors(Tensor.float, self.model(_joined(image, image.flip(-1)), cameras))
        seen, reflected = (map_tensors(lambda tensor, half=half: tensor.chunk(2)[half], stages) for half in (0, 1))
        return self._mean(seen, mirrored(reflected.mesh), mirrored(reflected.final))

    def _mean(self, seen: Stages, other_mesh: HandPrediction, other_final: HandPrediction) -> Stages:
        params = ManoParams(halfway(seen.mesh.mano.rotations, other_mesh.mano.rotations),
                            (seen.mesh.mano.shape + other_mesh.mano.shape) / 2)
        vertices, joints = self.mano.about_wrist(params)
        mesh = HandPrediction(vertices, joints, (seen.mesh.relative + other_mesh.relative) / 2, params,
                              (seen.mesh.camera + other_mesh.camera) / 2)
        own_offset = (_own_offset(seen.mesh, seen.final) + _own_offset(other_mesh, other_final)) / 2
        vertices = vertices + own_offset @ _from_wrist(mesh).mT
        return Stages(seen.joint, mesh, mesh._replace(vertices=vertices, joints=self.mano.joints(vertices)))


def mirrored(hands: HandPrediction) -> HandPrediction:
    """What a prediction for a crop says of the mirrored crop, hands swapped; twice gives the prediction again."""
    params = ManoParams(mirror_rotations(hands.mano.rotations).flip(1), hands.mano.shape.flip(1))
    camera = hands.camera * hands.camera.new_tensor([1.0, -1.0, 1.0])
    return HandPrediction(mirror_points(hands.vertices), mirror_points(hands.joints), mirror_relative(hands.relative),
                          params, camera.flip(1))


def mirrored_camera(camera: GroundTruthCamera, size: int) -> GroundTruthCamera:
    """The camera that sees the mirrored hands in the mirrored crop of S = `size` pixels."""
    reflection = camera.camera_crop.new_tensor([[-1.0, 0.0, size - 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    return GroundTruthCamera(mirror_vectors(reflection @ camera.camera_crop), mirror_vectors(camera.wrist).flip(1))


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


def _joined(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat([first, second])
