"""A toy pair of hands whose errors can be worked out by hand, and random pairs; metres."""

import math

import msgspec
import numpy as np
import torch
from torch import Tensor

from common.hands import INTERWILD_TIP_VERTICES, MANO21, MODEL16, NUM_VERTICES, TIP_VERTICES, WRIST, Hand
from common.score.metrics import PredictedHands
from common.types import ManoParams, Targets

SIDES = np.array([[1, 1, 1], [-1, 1, 1]])[:, None]     # the left hand is the right one with x negated
RELATIVE = torch.tensor([[0.090, -0.005, 0.040]], dtype=torch.float64)


def _toy_hand() -> np.ndarray:
    """Right hand: finger f, joint k at (15(f − 2), 60 + 20k, 4k) mm."""
    joints = np.zeros((21, 3))
    for finger in range(5):
        for k in range(1, 5):
            joints[4 * finger + k] = 15 * (finger - 2), 60 + 20 * k, 4 * k
    return joints


def toy_truth() -> np.ndarray:
    """Joints (2, 21, 3), camera frame."""
    return (_toy_hand() * SIDES + [[[0, 0, 800]], [[100, -10, 830]]]) / 1000


def toy_prediction() -> np.ndarray:
    j = np.arange(21)
    noise = np.stack([2.0 * (j % 3), -3.0 * (j % 2), 1.5 * (j % 4)], axis=1) * SIDES
    return (_toy_hand() * SIDES * [[[1.1]], [[0.9]]] + noise + [[[5, 5, 700]], [[0, 0, 0]]]) / 1000


def pseudo_vertices(joints: np.ndarray, lift: float) -> np.ndarray:
    """Four points (2, 4, 3) that stand for a mesh; the first is the wrist."""
    middle, center = joints[:, 9:13].mean(axis=1), joints.mean(axis=1) + [0, 0, lift]
    return np.stack([joints[:, 0], (joints[:, 0] + joints[:, 9]) / 2, middle, center], axis=1)


# A regressor (2, 16, 778) that takes model joint k from vertex k.
ONE_HOT = torch.eye(16, NUM_VERTICES, dtype=torch.float64).expand(2, -1, -1)


def mesh_of(joints: np.ndarray) -> np.ndarray:
    """A mesh (…, 778, 3) from which `ONE_HOT` and every protocol's tip vertices regress the joints (…, 21, 3)."""
    mesh = np.repeat(joints[..., :1, :], NUM_VERTICES, axis=-2)
    mesh[..., :16, :] = joints[..., [MANO21.index(name) for name in MODEL16.names], :]
    for tips in (TIP_VERTICES, INTERWILD_TIP_VERTICES):
        mesh[..., list(tips), :] = joints[..., [4, 8, 12, 16, 20], :]
    return mesh


def make_targets(joints: np.ndarray, vertices: np.ndarray, rotations: np.ndarray | None = None) -> Targets:
    """Fully annotated hands (B, 2, n, 3), camera frame; the annotated joints are those of the mesh."""
    wrist, count = joints[:, :, WRIST], len(joints)
    rotations = np.broadcast_to(np.eye(3), (count, 2, 16, 3, 3)) if rotations is None else rotations

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(values))

    return Targets(
        vertices=tensor(vertices - wrist[:, :, None]), joints=tensor(joints - wrist[:, :, None]), wrist=tensor(wrist),
        relative=tensor(wrist[:, Hand.LEFT] - wrist[:, Hand.RIGHT]), joints_crop=torch.zeros(count, 2, 21, 2),
        joints_annotated=tensor(joints), mano=ManoParams(tensor(rotations), torch.zeros(count, 2, 10)),
        present=torch.ones(count, 2),
        vertices_valid=torch.ones(count, 2), joints_valid=torch.ones(count, 2, 21),
        joints_annotated_valid=torch.ones(count, 2, 21), relative_valid=torch.ones(count),
        mano_valid=torch.ones(count, 2), present_valid=torch.ones(count, 2))


def toy_targets(**changes) -> Targets:
    """The toy truth as one sample."""
    return make_targets(toy_truth()[None], mesh_of(toy_truth())[None])._replace(**changes)


def toy_hands(joints: np.ndarray | None = None, **changes) -> PredictedHands:
    """The toy prediction as one sample."""
    joints = toy_prediction() if joints is None else joints
    return PredictedHands(torch.from_numpy(mesh_of(joints))[None], relative=RELATIVE)._replace(**changes)


def random_hands(count: int, seed: int) -> tuple[Targets, PredictedHands]:
    """Targets and predictions of `count` samples: distorted toy hands, every one different."""
    rng = np.random.default_rng(seed)
    place = rng.normal(0, 0.05, (count, 2, 1, 3)) + [0, 0, 0.9]
    truth = mesh_of(_toy_hand() * SIDES / 1000 + rng.normal(0, 0.004, (count, 2, 21, 3)) + place)
    truth += rng.normal(0, 0.001, truth.shape)
    truth[:, :, INTERWILD_TIP_VERTICES[2]] = truth[:, :, TIP_VERTICES[2]]       # one middle fingertip for all protocols
    joints = truth[:, :, [*_rows()]]
    guess = truth * rng.uniform(0.8, 1.25, (count, 2, 1, 1)) + rng.normal(0, 0.008, truth.shape)
    relative = joints[:, 1, 0] - joints[:, 0, 0] + rng.normal(0, 0.02, (count, 3))
    return make_targets(joints, truth), PredictedHands(torch.from_numpy(guess), relative=torch.from_numpy(relative))


def _rows() -> list[int]:
    """The vertex of each joint in `mesh_of`, MANO21 order, with LGNet's tips."""
    tips = dict(zip(("thumb4", "index4", "middle4", "ring4", "pinky4"), TIP_VERTICES, strict=True))
    return [tips[name] if name in tips else MODEL16.index(name) for name in MANO21.names]


def assert_same(one, other, tolerance: float = 1e-9) -> None:
    """Equal structures whose numbers agree to the tolerance."""
    if isinstance(one, msgspec.Struct):
        assert_same(msgspec.to_builtins(one), msgspec.to_builtins(other), tolerance)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key], tolerance)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for first, second in zip(one, other, strict=True):
            assert_same(first, second, tolerance)
    elif isinstance(one, float):
        assert math.isclose(one, other, rel_tol=0, abs_tol=tolerance)
    else:
        assert one == other
