"""The hands of one sequence: posed, brought together and placed in front of the person.

Legend: T time steps · 2 the hand axis · 778 vertices · 16 joints. Metres.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from common.hands import Hand, mirror_rotations
from common.mano import HandModel, ManoLayer
from common.types import ManoParams
from data.synthetic.articulation import Rig, finger_rotations, load_rig
from data.synthetic.body import OWN_SIGNS, Surface, forearm_direction, hand_surface
from data.synthetic.contact import Pairs, Proxies, settle
from data.synthetic.families import PairStart, sample_pair, sample_single
from data.synthetic.interaction import Interaction, measure, mending_shift

_CLEARANCE = 0.0002         # between the spheres that fill the hands
_MAX_DEPTH = 0.0035         # metres of overlap beyond which a pair is tried again
_TRIES = 4                  # of which the least overlap is kept


class HandSet(NamedTuple):
    """The hand model with all that is worked out from it once."""

    model: HandModel
    layer: ManoLayer
    rig: Rig
    surface: Surface

    def joints(self, vertices: np.ndarray) -> np.ndarray:
        """The joints (2, 21, 3) of meshes (2, 778, 3)."""
        return self.layer.regressor.double().numpy() @ vertices


class Step(NamedTuple):
    """One time step in the person frame."""

    present: tuple[Hand, ...]
    rotations: np.ndarray               # (2, 16, 3, 3)  full local rotations; the first is the hand's orientation
    wrist: np.ndarray                   # (2, 3)
    vertices: np.ndarray                # (2, 778, 3)
    angles: np.ndarray                  # (2, 15, 3)     about the rig's axes
    rotation_own: np.ndarray            # (2, 3, 3)
    forearm_own: np.ndarray             # (2, 3)
    interaction: Interaction | None     # of interacting steps


def build_hand_set(model: HandModel) -> HandSet:
    return HandSet(model, ManoLayer(model), load_rig(), hand_surface(model))


def pose_single(hand: Hand, hands: HandSet, shape: np.ndarray, rng: np.random.Generator) -> Step:
    """One hand alone near the origin."""
    angles, rotation_own = sample_single(hands.rig, rng)
    wrist_own = rotation_own @ (0.09, 0.0, 0.0) + rng.normal(0, 0.015, 3)       # the middle of the hand is near 0
    pairs = Pairs(*(torch.from_numpy(np.stack([one, one])[None]).float() for one in (angles, rotation_own, wrist_own)))
    forearm = forearm_direction(rotation_own, wrist_own)
    return _step(pairs, 0, hands, shape, np.stack([forearm, forearm]), (hand,))


def pose_pairs(family: str, hands: HandSet, proxies: Proxies, shape: np.ndarray,
               rngs: list[np.random.Generator]) -> list[Step]:
    """One pair for each generator, all of one family. Pairs that pass through each other are tried again."""
    best: dict[int, Step] = {}
    for _ in range(_TRIES):
        todo = [k for k in range(len(rngs)) if k not in best or _overlap(best[k]) > _MAX_DEPTH]
        if not todo:
            break
        starts = [sample_pair(family, hands.rig, rngs[k]) for k in todo]
        for k, step in zip(todo, _settled(starts, hands, proxies, shape), strict=True):
            if k not in best or _overlap(step) < _overlap(best[k]):
                best[k] = step
    return [_recentered(best[k], rngs[k]) for k in range(len(rngs))]


def _overlap(step: Step) -> float:
    return step.interaction.max_depth_mm / 1000


def _settled(starts: list[PairStart], hands: HandSet, proxies: Proxies, shape: np.ndarray) -> list[Step]:
    """The pairs after settling and mending, with their interaction."""
    rotation = np.stack([start.rotation_own for start in starts])
    palm = np.stack([start.palm_own for start in starts])
    forearms = forearm_direction(rotation, palm + rotation @ (0.08, 0.0, 0.0))
    pairs = settle(starts, proxies, hands.rig, forearms, _CLEARANCE)
    steps, faces = [], hands.model.faces.numpy()
    for k, start in enumerate(starts):
        step = _step(pairs, k, hands, shape, forearms[k], tuple(Hand))
        shift = mending_shift(step.vertices.astype(np.float64), hands.surface, start.touches)
        step = _shifted(step, np.stack([-shift / 2, shift / 2]))
        steps.append(step._replace(interaction=measure(step.vertices.astype(np.float64), faces)))
    return steps


def _step(pairs: Pairs, index: int, hands: HandSet, shape: np.ndarray, forearm_own: np.ndarray,
          present: tuple[Hand, ...]) -> Step:
    """The meshes of pair `index`."""
    angles, rotation_own, wrist_own = (part[index] for part in pairs)
    local = torch.cat([rotation_own[:, None], finger_rotations(hands.rig, angles)], dim=1)      # (2, 16, 3, 3)
    local = torch.stack([local[Hand.RIGHT], mirror_rotations(local[Hand.LEFT])])
    wrist = wrist_own.numpy().astype(np.float64) * OWN_SIGNS
    beta = torch.from_numpy(shape).float().expand(1, 2, -1)
    with torch.no_grad():
        vertices = hands.layer(ManoParams(local[None].float(), beta))[0].numpy()
    vertices = vertices + (wrist - rest_wrists(hands, shape))[:, None]
    return Step(present, local.numpy().astype(np.float64), wrist, vertices, angles.numpy(), rotation_own.numpy(),
                forearm_own, None)


def rest_wrists(hands: HandSet, shape: np.ndarray) -> np.ndarray:
    """The wrists (2, 3) about which the hands of `shape` turn, in the model's own frame."""
    model = hands.model
    shaped = model.template.double() + model.shapedirs.double() @ torch.from_numpy(shape)
    return (model.regressor.double()[:, :1] @ shaped)[:, 0].numpy()


def _shifted(step: Step, shift: np.ndarray) -> Step:
    """The step with each hand moved by its row of `shift` (2, 3)."""
    return step._replace(wrist=step.wrist + shift, vertices=step.vertices + shift[:, None])


def _recentered(step: Step, rng: np.random.Generator) -> Step:
    """The pair with its middle near the origin, where the cameras look."""
    low, high = step.vertices.min(axis=(0, 1)), step.vertices.max(axis=(0, 1))
    return _shifted(step, np.tile(rng.normal(0, 0.012, 3) - (low + high) / 2, (2, 1)))


def stored_pose(step: Step, hand: Hand, model: HandModel, world_from_person: np.ndarray) -> np.ndarray:
    """Axis-angle (48,) as annotations store it: the root in the world, fingers without the model's mean pose."""
    rotations = step.rotations[hand].copy()
    rotations[0] = world_from_person @ rotations[0]
    pose = Rotation.from_matrix(rotations).as_rotvec().reshape(-1)
    pose[3:] -= model.mean_pose[hand].double().numpy()
    return pose


