"""Poses of many time steps at once: sampled, brought into contact and centred in front of the person.

Legend: B time steps · 2 the hand axis · 778 vertices · 16 joints. Metres.
"""

from typing import NamedTuple, TypeVar

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from common.hands import MODEL16, Hand
from common.mano.model import HandModel
from common.types import map_tensors
from data.synthetic.pose.arm import forearm_direction
from data.synthetic.pose.articulation import load_rig
from data.synthetic.pose.contact import Settled, Solver, Task, build_solver, mend, model_rotations, settle
from data.synthetic.pose.families import FAMILY_SHARES, Start, sample_pair, sample_single
from data.synthetic.pose.interaction import Interaction, measure
from data.synthetic.pose.kinematics import OWN_SIGNS, HandPoses
from data.synthetic.surface import Surface, hand_surface

_TO_MEND = (0.0024, 0.0030) # metres of penetration beyond which pairs are mended once, and once more
_MAX_DEPTH = 0.0030         # beyond which another start is sampled
_TRIES = 5                  # of which the one with the least penetration is kept
_BLOCK = 8                  # matrix products round alike for all batches of a multiple of this size
_MAX_ATTRACTIONS = 5        # of a family
Batch = TypeVar("Batch")


class HandSet(NamedTuple):
    """The hand model and everything that posing precomputes from it."""

    model: HandModel
    surface: Surface
    solver: Solver

    def joints(self, vertices: np.ndarray) -> np.ndarray:
        """The joints (2, 21, 3) of meshes (2, 778, 3)."""
        return self.solver.layer.regressor.double().numpy() @ vertices


class Step(NamedTuple):
    """One time step in the person frame."""

    present: tuple[Hand, ...]
    rotations: np.ndarray               # (2, 16, 3, 3)  local rotations, mean pose included; the first is the hand's
    wrist: np.ndarray                   # (2, 3)
    vertices: np.ndarray                # (2, 778, 3)
    angles: np.ndarray                  # (2, 15, 3)     about the rig's axes
    rotation_own: np.ndarray            # (2, 3, 3)
    forearm_own: np.ndarray             # (2, 3)

    def interaction(self, model: HandModel) -> Interaction | None:
        """Contact and penetration of the two hands; None for one hand."""
        if len(self.present) < 2:
            return None
        return measure(self.vertices.astype(np.float64), model.faces.numpy())


def build_hand_set(model: HandModel) -> HandSet:
    return HandSet(model, hand_surface(model), build_solver(model, load_rig()))


def pose_steps(kinds: list[str], shapes: np.ndarray, rngs: list[np.random.Generator], solver: Solver) -> list[Step]:
    """One time step for each kind: a family of two hands, "right" or "left".

    shapes: (B, 10). Each step depends on its own kind, shape and generator alone; poses that penetrate too deeply are
    resampled. Runs on the solver's device.
    """
    best: dict[int, Step] = {}
    depth = np.full(len(kinds), np.inf)
    for _ in range(_TRIES):
        todo = [k for k in range(len(kinds)) if depth[k] > _MAX_DEPTH]
        if not todo:
            break
        starts = [_sample(kinds[k], rngs[k]) for k in todo]
        steps, found = _settled(starts, shapes[todo], solver)
        for k, step, deepest in zip(todo, steps, found, strict=True):
            if deepest < depth[k]:
                best[k], depth[k] = step, deepest
    return [_recentered(best[k], rngs[k]) for k in range(len(kinds))]


def _sample(kind: str, rng: np.random.Generator) -> Start:
    rig = load_rig()
    return sample_pair(kind, rig, rng) if kind in FAMILY_SHARES else sample_single(Hand[kind.upper()], rig, rng)


def _settled(starts: list[Start], shapes: np.ndarray, solver: Solver) -> tuple[list[Step], np.ndarray]:
    """The settled steps, and how deep their hands penetrate each other or themselves (B,), metres."""
    task, rows = _task(starts, shapes, solver), torch.arange(len(starts))
    settled = _rows(settle(_rows(task, _padded_to_blocks(rows)), solver), rows)
    for limit in _TO_MEND:
        poor = torch.nonzero(settled.depth > limit)[:, 0]
        if len(poor):
            settled = _mended(task, settled, poor, solver)
    return _steps(starts, settled, solver), settled.depth.cpu().numpy()


def _mended(task: Task, settled: Settled, poor: Tensor, solver: Solver) -> Settled:
    """`settled` with those rows of `poor` mended whose penetration becomes less."""
    padded = _padded_to_blocks(poor)
    mended = _rows(mend(_rows(task, padded), _rows(settled, padded), solver), torch.arange(len(poor)))
    is_better = mended.depth < settled.depth[poor]
    return map_tensors(lambda old, new: old.index_copy(0, poor[is_better], new[is_better]), settled, mended)


def _padded_to_blocks(rows: Tensor) -> Tensor:
    """Row indices, repeated up to a multiple of _BLOCK."""
    return torch.from_numpy(np.resize(rows.cpu().numpy(), -(-len(rows) // _BLOCK) * _BLOCK)).to(rows.device)


def _rows(batch: Batch, rows: Tensor) -> Batch:
    return map_tensors(lambda part: part[rows], batch)


def _task(starts: list[Start], shapes: np.ndarray, solver: Solver) -> Task:
    """The starts as tensors."""
    proxies = solver.proxies
    angles, rotation, palm, elbow = (np.stack([getattr(start, name) for start in starts])
                                     for name in ("angles", "rotation_own", "palm_own", "elbow_own"))
    rest = _affine(proxies.joints, shapes)[:, 0]                                    # (B, 3) wrists
    on_palm = _affine(proxies.anchor, shapes)[:, proxies.anchors["palm"]]
    wrist = palm - np.einsum("bhij,bj->bhi", rotation, on_palm - rest)
    rows = np.zeros((len(starts), _MAX_ATTRACTIONS, 2), np.int64)
    gap, pull = np.zeros((2, len(starts), _MAX_ATTRACTIONS))
    for b, start in enumerate(starts):
        for k, attraction in enumerate(start.attractions):
            rows[b, k] = [proxies.anchors[name] + len(proxies.anchors) * hand
                          for hand, name in zip(attraction.hands, attraction.names, strict=True)]
            gap[b, k], pull[b, k] = attraction.gap, 1.0

    def tensor(array: np.ndarray) -> Tensor:
        dtype = torch.float32 if array.dtype.kind == "f" else None
        return torch.as_tensor(array, dtype=dtype, device=solver.synergies.device)
    return Task(
        HandPoses(tensor(angles), tensor(rotation), tensor(wrist)), tensor(shapes),
        tensor(forearm_direction(rotation, wrist, elbow)),
        tensor(np.array([len(start.present) == 2 for start in starts])),
        tensor(np.array([start.touches for start in starts])), tensor(np.array([start.wraps for start in starts])),
        tensor(rows), tensor(gap), tensor(pull),
    )


def _affine(part: tuple[Tensor, Tensor], shapes: np.ndarray) -> np.ndarray:
    """Mean plus change for each of `shapes` (B, 10): (B, ...) float64."""
    mean, change = (tensor.cpu().double().numpy() for tensor in part)
    return mean + np.einsum("...k,bk->b...", change, shapes)


def _steps(starts: list[Start], settled: Settled, solver: Solver) -> list[Step]:
    rotations = model_rotations(settled.poses, solver.rig).cpu().double().numpy()
    vertices = settled.vertices.cpu().numpy()
    angles, rotation, wrist = (part.cpu().numpy() for part in settled.poses)
    wrist = wrist.astype(np.float64)
    forearm = [forearm_direction(rotation[k], wrist[k], start.elbow_own) for k, start in enumerate(starts)]
    return [Step(start.present, rotations[k], wrist[k] * OWN_SIGNS, vertices[k], angles[k], rotation[k], forearm[k])
            for k, start in enumerate(starts)]


def rest_wrists(hands: HandSet, shape: np.ndarray) -> np.ndarray:
    """Wrists (2, 3) of hands of `shape` (10,) at rest, in the model's frame: the centres of their global rotation."""
    model = hands.model
    shaped = model.template.double() + model.shapedirs.double() @ torch.from_numpy(shape)
    return (model.regressor.double()[:, :1] @ shaped)[:, MODEL16.index("wrist")].numpy()


def _recentered(step: Step, rng: np.random.Generator) -> Step:
    """The step translated so that the centre of the present hands is near the origin, where cameras aim."""
    present = step.vertices[list(step.present)]
    shift = rng.normal(0, 0.012, 3) - (present.min(axis=(0, 1)) + present.max(axis=(0, 1))) / 2
    return step._replace(wrist=step.wrist + shift, vertices=(step.vertices + shift).astype(np.float32))


def stored_pose(step: Step, hand: Hand, model: HandModel, world_from_person: np.ndarray) -> np.ndarray:
    """MANO pose (48,), axis-angle: global rotation in the world frame, finger rotations minus the mean pose."""
    rotations = step.rotations[hand].copy()
    rotations[0] = world_from_person @ rotations[0]
    pose = Rotation.from_matrix(rotations).as_rotvec().reshape(-1)
    pose[3:] -= model.mean_pose[hand].double().numpy()
    return pose
