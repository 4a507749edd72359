"""A hand model's arrays, stacked on the hand axis, and the layer that poses them.

The built-in hand and MANO give the same arrays, so that nothing downstream asks which one is in use.
Legend: 2 the hand axis · 778 vertices · 16 joints in MODEL16 order. Metres.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import UserError
from common.hands import MODEL16, NUM_FACES, NUM_SHAPE, NUM_VERTICES, WRIST, Hand, joint_regressor
from common.types import ManoParams


@dataclass(frozen=True)
class HandModel:
    """The arrays of one parametric hand model, right and left."""

    name: str                   # "builtin" or "mano"
    sha256: str                 # of the built-in file or of MANO's arrays: stored with datasets and checkpoints
    template: Tensor            # (2, 778, 3)
    shapedirs: Tensor           # (2, 778, 3, 10)
    posedirs: Tensor            # (2, 135, 2334)     applied to flatten(R_j − I), j = 1..15
    regressor: Tensor           # (2, 16, 778)
    weights: Tensor             # (2, 778, 16)
    faces: Tensor               # (2, 1538, 3) int64, outward winding
    mean_pose: Tensor           # (2, 45)            added to stored finger poses (flat_hand_mean=False)

    @property
    def identity(self) -> dict[str, str]:
        """What datasets and checkpoints store to name the model they belong to."""
        return {"name": self.name, "sha256": self.sha256}


def check_same_model(expected: dict[str, str], found: dict[str, str], where: str) -> None:
    """Refuse data or weights made with another hand model than the configured one."""
    if expected == found:
        return
    hint = f"Use --set hand_model.name={found['name']}, or data and weights made with '{expected['name']}'."
    if expected["name"] == found["name"]:
        hint = "The model's files have changed since: make the data and the weights again, or restore the files."
    raise UserError(
        f"{where} was made with the hand model '{found['name']}' (sha256 {found['sha256'][:12]}), but the config "
        f"asks for '{expected['name']}' (sha256 {expected['sha256'][:12]}).", hint,
    )


def stack_hands(name: str, digest: str, arrays: list[dict[str, np.ndarray]]) -> HandModel:
    """A HandModel from MANO-style arrays of the right and the left hand."""
    def stacked(key: str) -> Tensor:
        return torch.from_numpy(np.stack([np.asarray(hand[key], dtype=np.float32) for hand in arrays]))

    posedirs = stacked("posedirs").reshape(2, NUM_VERTICES * 3, -1).transpose(1, 2).contiguous()
    faces = torch.from_numpy(np.stack([np.asarray(hand["faces"], dtype=np.int64) for hand in arrays]))
    return HandModel(
        name, digest, stacked("v_template"), stacked("shapedirs")[..., :NUM_SHAPE].contiguous(), posedirs,
        stacked("J_regressor"), stacked("weights"), faces.reshape(2, NUM_FACES, 3), stacked("hands_mean"),
    )


class ManoLayer(nn.Module):
    """Both hands' meshes from model parameters, by `smplx.lbs`, always in float32."""

    template: Tensor
    shapedirs: Tensor
    posedirs: Tensor
    weights: Tensor
    model_regressor: Tensor
    regressor: Tensor           # (2, 21, 778)

    def __init__(self, model: HandModel):
        super().__init__()
        for key in ("template", "shapedirs", "posedirs", "weights"):
            self.register_buffer(key, getattr(model, key), persistent=False)
        self.register_buffer("model_regressor", model.regressor, persistent=False)
        self.register_buffer("regressor", joint_regressor(model.regressor), persistent=False)
        # smplx looks up the parents one by one; were they on a GPU, the host would wait for it each time.
        self.parents = np.array(MODEL16.parents)

    def forward(self, params: ManoParams) -> Tensor:
        """Vertices (B, 2, 778, 3), metres, in the model's own frame: the hand turns about its resting wrist."""
        from smplx.lbs import lbs  # imported here so that reading data or scoring files does not need smplx

        with torch.autocast(params.shape.device.type, enabled=False):
            meshes = [
                lbs(
                    params.shape[:, hand].float(), params.rotations[:, hand].float(), self.template[hand],
                    self.shapedirs[hand], self.posedirs[hand], self.model_regressor[hand], self.parents,
                    self.weights[hand], pose2rot=False,
                )[0]
                for hand in Hand
            ]
        return torch.stack(meshes, dim=1)

    def about_wrist(self, params: ManoParams) -> tuple[Tensor, Tensor]:
        """Vertices (B, 2, 778, 3) and joints (B, 2, 21, 3), metres, relative to the own wrist."""
        vertices = self(params)
        with torch.autocast(vertices.device.type, enabled=False):
            vertices = vertices - self.joints(vertices)[:, :, WRIST, None]
            return vertices, self.joints(vertices)

    def joints(self, vertices: Tensor) -> Tensor:
        """G·vertices: joints (B, 2, 21, 3) of meshes (B, 2, 778, 3), in the meshes' frame."""
        return self.regressor @ vertices
