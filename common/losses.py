"""The training losses: the paper's five (eqs. 12–16) and the auxiliary ones that supervise what those leave free.

Every term is a mean, not a sum, over what the batch annotates, and exactly 0 where it annotates nothing. Targets under
a mask of 0 may hold anything, NaN too: they reach neither value nor gradient.

Legend: B batch · 2 the hand axis · 21 joints · 778 vertices · F faces · S side of the crop in pixels.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.geometry import HEATMAP_CELLS, crop_to_grid, inside_cells, joints_to_cells, project_weak
from common.hands import NUM_VERTICES
from common.settings import Weight
from common.types import HandPrediction, Stages, Targets

AUXILIARY = ("joint_25d", "joint_projected", "relative", "pose", "shape", "presence")
TERMS = ("mesh", "joint", "normal", "edge", "laplacian", *AUXILIARY)


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of values (*v, …) where valid (*v) is nonzero; exactly 0 when nothing is valid."""
    per_entry = values.flatten(valid.dim()).mean(dim=-1) if values.dim() > valid.dim() else values
    valid = valid.bool()
    return torch.where(valid, per_entry, 0.0).sum() / valid.sum().clamp(min=1)


def hide_invalid(target: Tensor, pred: Tensor, valid: Tensor) -> Tensor:
    """target (*v, …) with the entries where valid (*v) is 0 replaced by the prediction, without gradient."""
    return torch.where(_spread(valid, target), target, pred.detach())


def masked_l1(pred: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean |pred − target| over the valid entries.  pred, target: (*v, …).  valid: (*v)."""
    return masked_mean((pred - hide_invalid(target, pred, valid)).abs(), valid)


def _spread(valid: Tensor, like: Tensor) -> Tensor:
    return valid.bool().reshape(*valid.shape, *(1,) * (like.dim() - valid.dim()))


@dataclass(frozen=True)
class LossConfig:
    """Weights. The first five are the paper's (eqs. 12–16), the rest supervise what its losses leave free."""

    mesh: Weight = 1.0
    joint: Weight = 1.0
    normal: Weight = 1.0
    edge: Weight = 1.0
    laplacian: Weight = 50.0
    normal_edges: Literal["raw", "unit"] = "raw"    # eq. 14's edge vectors: as printed, in metres, or of length 1
    aux_losses: bool = True                 # false switches every term below off
    joint_25d: Weight = 1.0
    joint_projected: Weight = 1.0
    relative: Weight = 1.0
    pose: Weight = 1.0
    shape: Weight = 1.0
    presence: Weight = 0.1


class TwoHandLoss(nn.Module):
    """Weighted loss terms by name, and `total`, their sum.

    faces: (2, F, 3).  input_size: S.  depth_range: as in `joints_to_cells`.

    A term of weight 0 is still computed: under DistributedDataParallel every parameter has to receive a gradient, and
    camera and relative position are reached by the auxiliary terms alone.
    """

    def __init__(self, config: LossConfig, faces: Tensor, *, input_size: int, depth_range: float):
        super().__init__()
        self.input_size, self.depth_range = input_size, depth_range
        self.weights = {name: getattr(config, name) for name in TERMS}
        if not config.aux_losses:
            self.weights |= dict.fromkeys(AUXILIARY, 0.0)
        self.surface = SurfaceLoss(faces, unit_edges=config.normal_edges == "unit")

    def forward(self, stages: Stages, targets: Targets) -> dict[str, Tensor]:
        """Every term is a scalar; lengths are metres before weighting, except where its function says otherwise. Stages
        without 2.5D joints have no `joint_25d`, those that do not say which hands there are no `presence`."""
        meshes = [stages.mesh] if stages.refined is None else [stages.mesh, stages.refined]
        with torch.autocast(targets.vertices.device.type, enabled=False):
            joint = {} if stages.joint is None else {"joint_25d": self._joint_25d(stages.joint.joints_cells, targets)}
            presence = {} if stages.presence is None else {"presence": presence_loss(stages.presence, targets)}
            terms = self._paper_terms(meshes, targets) | joint | self._aux_terms(meshes, targets) | presence
            terms = {name: self.weights[name] * term for name, term in terms.items()}
            return terms | {"total": torch.stack(list(terms.values())).sum()}

    def _paper_terms(self, meshes: list[HandPrediction], targets: Targets) -> dict[str, Tensor]:
        valid = targets.vertices_valid
        surface = [self.surface(mesh.vertices, targets.vertices, valid) for mesh in meshes]
        return {
            "mesh": _sum(masked_l1(mesh.vertices, targets.vertices, valid) for mesh in meshes),
            "joint": _sum(masked_l1(mesh.joints, targets.joints, targets.joints_valid) for mesh in meshes),
            "normal": _sum(term["normal"] for term in surface),
            "edge": _sum(term["edge"] for term in surface),
            "laplacian": surface[-1]["laplacian"],    # eq. 16 smooths the final mesh only
        }

    def _aux_terms(self, meshes: list[HandPrediction], targets: Targets) -> dict[str, Tensor]:
        params, camera, relative = meshes[0].mano, meshes[0].camera, meshes[0].relative
        return {
            "joint_projected": _sum(self._joint_projected(mesh.joints, camera, targets) for mesh in meshes),
            "relative": masked_l1(relative, targets.relative, targets.relative_valid),
            "pose": masked_l1(params.rotations, targets.mano.rotations, targets.mano_valid),    # matrix entries
            "shape": masked_l1(params.shape, targets.mano.shape, targets.mano_valid),           # standard deviations
        }

    def _joint_25d(self, joints_cells: Tensor, targets: Targets) -> Tensor:
        """L1 of the 2.5D joints in half volumes, the unit of `_grid`; joints outside the volume do not count."""
        target = joints_to_cells(targets.joints_crop, targets.joints[..., 2], self.input_size, self.depth_range)
        valid = targets.joints_valid.bool() & inside_cells(target)
        return masked_l1(joints_cells, target, valid) / (HEATMAP_CELLS / 2)

    def _joint_projected(self, joints: Tensor, camera: Tensor, targets: Targets) -> Tensor:
        """L1 in `_grid` between a mesh's joints under the weak camera and the annotated image joints."""
        target = crop_to_grid(targets.joints_crop, self.input_size)
        return masked_l1(project_weak(joints, camera), target, targets.joints_valid)


def presence_loss(logits: Tensor, targets: Targets) -> Tensor:
    """Cross-entropy of each hand's presence, in nats."""
    present = hide_invalid(targets.present, logits.sigmoid(), targets.present_valid)
    entropy = F.binary_cross_entropy_with_logits(logits, present, reduction="none")
    return masked_mean(entropy, targets.present_valid)


class SurfaceLoss(nn.Module):
    """Normal, edge and Laplacian terms (eqs. 14–16) of one mesh per hand, unweighted.

    faces: (2, F, 3), any winding.  unit_edges: the normal term measures the angle of an edge and not, in metres, how
    far it rises out of the true face.
    """

    corners: Tensor
    laplacian: Tensor

    def __init__(self, faces: Tensor, num_vertices: int = NUM_VERTICES, *, unit_edges: bool = False):
        super().__init__()
        self.unit_edges = unit_edges
        offsets = torch.tensor([0, num_vertices], device=faces.device)[:, None, None]
        self.register_buffer("corners", faces + offsets, persistent=False)                      # (2, F, 3)
        self.register_buffer("laplacian", torch.stack([_laplacian(hand, num_vertices) for hand in faces]),
                             persistent=False)                                                  # (2, V, V)

    def forward(self, pred: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """pred, target: (B, 2, V, 3).  valid: (B, 2)."""
        target = hide_invalid(target, pred, valid)
        pred_edges, target_edges = self._edges(pred), self._edges(target)                       # (B, 2, F, 3, 3)
        normals = F.normalize(torch.linalg.cross(target_edges[..., 0, :], target_edges[..., 1, :]), dim=-1)

        directions = F.normalize(pred_edges, dim=-1) if self.unit_edges else pred_edges
        tilt = (directions * normals[..., None, :]).sum(dim=-1).abs()
        stretch = (pred_edges.norm(dim=-1) - target_edges.norm(dim=-1)).abs()
        return {
            "normal": masked_mean(tilt, valid),              # metres, or the cosine of edge and true normal
            "edge": masked_mean(stretch, valid),
            "laplacian": masked_mean(self._roughness(target - pred), valid),                    # square metres
        }

    def _edges(self, vertices: Tensor) -> Tensor:
        """The three edge vectors of every face, (B, 2, F, 3 edges, 3)."""
        # An embedding is a lookup of rows with a fast gradient: vertices are the rows, the batch lies inside them.
        corners = F.embedding(self.corners, _as_rows(vertices).flatten(0, 1))                   # (2, F, 3 corners, B·3)
        corners = corners.unflatten(-1, (len(vertices), 3)).permute(3, 0, 1, 2, 4)
        return corners.roll(-1, dims=-2) - corners

    def _roughness(self, delta: Tensor) -> Tensor:
        """‖δ_i − mean of the neighbours' δ‖², (B, 2, V)."""
        smoothed = self.laplacian.to(delta.dtype) @ _as_rows(delta)                             # (2, V, B·3)
        return smoothed.unflatten(-1, (len(delta), 3)).square().sum(dim=-1).permute(2, 0, 1)


def _as_rows(vertices: Tensor) -> Tensor:
    """(B, 2, V, 3) with the batch inside the rows, (2, V, B·3)."""
    return vertices.permute(1, 2, 0, 3).flatten(2)


def _laplacian(faces: Tensor, num_vertices: int) -> Tensor:
    """L with (L·δ)_i = δ_i − mean of the neighbours' δ, (V, V); a vertex of no face has no neighbours and counts 0."""
    adjacency = torch.zeros(num_vertices, num_vertices, device=faces.device)
    for a, b in ((0, 1), (1, 2), (2, 0)):
        adjacency[faces[:, a], faces[:, b]] = 1.0
        adjacency[faces[:, b], faces[:, a]] = 1.0
    degree = adjacency.sum(dim=1, keepdim=True)
    return torch.diag((degree > 0).float().squeeze(1)) - adjacency / degree.clamp(min=1)


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum()
