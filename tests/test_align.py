"""Alignment of predicted hands to joints found in the image."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from common.hands import MANO21, MODEL16, Hand, joint_regressor, mirror_rotations
from common.mano.load import BUILTIN_HAND
from common.predict.align import AlignedHands, Aligner, Evidence, joint_axes
from common.predict.align import _moved as moved

SIDES = torch.tensor([Hand.RIGHT, Hand.LEFT, Hand.RIGHT, Hand.LEFT])


def natural_hands(seed: int = 0) -> AlignedHands:
    """Four hands with bent fingers, from all directions."""
    rng = np.random.default_rng(seed)
    angles = np.zeros((4, 16, 3))
    angles[:, 1:, 2] = rng.uniform(-0.05, 0.05, (4, 15))
    rotations = Rotation.from_rotvec(angles.reshape(-1, 3)).as_matrix().reshape(4, 16, 3, 3)
    rotations[:, 0] = Rotation.random(4, random_state=seed).as_matrix()
    return AlignedHands(torch.from_numpy(rotations).float(), torch.from_numpy(rng.normal(0, 0.5, (4, 10))).float(),
                        torch.tensor([900.0, 700.0, 1500.0, 300.0]),
                        torch.from_numpy(rng.uniform(0, 500, (4, 2))).float())


def bent(aligner: Aligner, hands: AlignedHands, flexion: float) -> AlignedHands:
    """The hands with every finger joint bent further towards the palm, radians."""
    turn = aligner.axes[SIDES][:, :, 0] * flexion
    turn[:, 0] = 0
    return moved(hands, torch.cat([turn.flatten(1), torch.zeros(4, 13)], dim=1))


def seen(aligner: Aligner, hands: AlignedHands, weight: float = 1.0) -> Evidence:
    """What an image of the hands would tell exactly."""
    joints = aligner.meshes(hands, SIDES)[1]
    sure = torch.full((4, 21), weight)
    return Evidence(hands.scale[:, None, None] * joints[..., :2] + hands.wrist[:, None], sure,
                    hands.scale[:, None] * joints[..., 2], sure)


def off_mm(aligner: Aligner, hands: AlignedHands, truth: AlignedHands) -> torch.Tensor:
    return 1000 * (aligner.meshes(hands, SIDES)[1] - aligner.meshes(truth, SIDES)[1]).norm(dim=-1).mean(dim=1)


@pytest.fixture(scope="module")
def aligner(hand_model) -> Aligner:
    return Aligner(hand_model)


def test_the_derivative_of_the_joints_is_that_of_finite_differences(aligner):
    """But for the skin: joints regressed from a posed mesh lie a little off those of the skeleton."""
    hands = bent(aligner, natural_hands(), 0.4)
    joints = aligner.meshes(hands, SIDES)[1]
    derivative = aligner._joint_derivative(hands, SIDES, joints)
    for unknown in range(58):
        step = torch.zeros(4, 61)
        step[:, unknown] = 1e-3
        ahead, behind = (aligner.meshes(moved(hands, sign * step), SIDES)[1] for sign in (1, -1))
        expected = (ahead - behind) / 2e-3
        assert (derivative[..., unknown] - expected).abs().max() < 0.004, unknown       # metres per radian or per unit


def test_hands_that_an_image_shows_exactly_are_found(aligner):
    truth = bent(aligner, natural_hands(), 0.6)
    start = bent(aligner, truth, -0.35)
    start = start._replace(scale=1.15 * start.scale, wrist=start.wrist + torch.tensor([9.0, -6.0]))
    found = aligner(start, SIDES, seen(aligner, truth))
    assert (off_mm(aligner, start, truth) > 12).all()
    assert (off_mm(aligner, found, truth) < 5).all()
    assert ((found.wrist - truth.wrist).norm(dim=-1) < 0.01 * truth.scale).all()        # a centimetre


def test_without_evidence_nothing_moves_but_towards_the_mean_shape(aligner):
    hands = bent(aligner, natural_hands(), 0.5)._replace(shape=torch.zeros(4, 10))
    found = aligner(hands, SIDES, seen(aligner, bent(aligner, hands, 0.5), weight=0.0))
    for name in AlignedHands._fields:
        torch.testing.assert_close(getattr(found, name), getattr(hands, name), atol=1e-4, rtol=1e-5)


def test_a_mirrored_image_gives_mirrored_hands(aligner):
    truth = bent(aligner, natural_hands(1), 0.5)
    start = bent(aligner, truth, -0.3)
    evidence = seen(aligner, truth)
    mirror = torch.tensor([-1.0, 1.0])
    found = aligner(start, SIDES, evidence)
    reflected = start._replace(rotations=mirror_rotations(start.rotations), wrist=start.wrist * mirror)
    mirrored = aligner(reflected, 1 - SIDES, evidence._replace(joints=evidence.joints * mirror))
    torch.testing.assert_close(mirrored.rotations, mirror_rotations(found.rotations), atol=2e-3, rtol=0)
    torch.testing.assert_close(mirrored.wrist, found.wrist * mirror, atol=0.05, rtol=1e-4)


def test_fingers_stay_within_their_limits_whatever_the_image_says(aligner):
    """Fingertips that would lie behind the hand."""
    hands = natural_hands()
    joints = seen(aligner, bent(aligner, hands, -1.2))
    found = aligner(hands, SIDES, joints)
    turns = Rotation.from_matrix(found.rotations.reshape(-1, 3, 3).numpy()).as_rotvec().reshape(4, 16, 3, 1)
    angles = (aligner.axes[SIDES] @ torch.from_numpy(turns).float())[..., 0]
    over = angles - angles.clamp(aligner.limits[..., 0], aligner.limits[..., 1])
    assert over[:, 1:].abs().max() < np.deg2rad(15)


def test_one_joint_far_off_does_not_drag_the_hand_along(aligner):
    truth = bent(aligner, natural_hands(2), 0.4)
    evidence = seen(aligner, truth)
    astray = evidence.joints.clone()
    astray[:, MANO21.index("ring4")] += 0.3 * truth.scale[:, None]      # 30 cm
    found = aligner(truth, SIDES, evidence._replace(joints=astray))
    other = [k for k, name in enumerate(MANO21.names) if not name.startswith("ring")]
    moved_mm = 1000 * (aligner.meshes(found, SIDES)[1] - aligner.meshes(truth, SIDES)[1])[:, other].norm(dim=-1)
    assert moved_mm.mean() < 8


def test_the_axes_are_those_that_the_built_in_hand_was_made_with(aligner):
    """Flexion towards the palm, spread towards the thumb, twist about the bone; the thumb's to some 20°."""
    arrays = np.load(BUILTIN_HAND)
    for k, name in enumerate(MODEL16.names[1:]):
        agreement = (aligner.axes[Hand.RIGHT, k + 1].numpy() * arrays["joint_axes"][k]).sum(axis=-1)
        assert (agreement > (0.93 if name.startswith("thumb") else 0.98)).all(), name


def test_the_axes_of_the_left_hand_are_those_of_the_right_one_in_a_mirror(hand_model):
    """Axes are about which one turns: in a mirror across x, (x, y, z) becomes (x, −y, −z)."""
    rest = joint_regressor(hand_model.regressor) @ hand_model.template
    right, left = (joint_axes(rest[hand], hand) for hand in Hand)
    torch.testing.assert_close(left[1:, :2], right[1:, :2] * torch.tensor([1.0, -1.0, -1.0]), atol=2e-3, rtol=0)
