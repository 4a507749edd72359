"""Left, right and joint orders."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from common.hands import (
    INTERHAND21,
    MANO21,
    MODEL16,
    TIP_VERTICES,
    Hand,
    JointSet,
    joint_regressor,
    mirror_points,
    mirror_relative,
    mirror_rotations,
)

JOINT_SETS = {"MANO21": MANO21, "INTERHAND21": INTERHAND21, "MODEL16": MODEL16}


@pytest.mark.parametrize("joints", JOINT_SETS.values(), ids=JOINT_SETS)
def test_names_are_unique_and_every_joint_leads_to_the_wrist(joints: JointSet):
    assert len(set(joints.names)) == len(joints.names)
    for joint in range(len(joints.names)):
        steps = 0
        while joints.parents[joint] >= 0:
            joint, steps = joints.parents[joint], steps + 1
            assert steps < 5
        assert joints.names[joint] == "wrist"


def test_the_joint_orders_agree_on_who_is_whose_parent():
    parents = {name: MANO21.names[p] for name, p in zip(MANO21.names, MANO21.parents, strict=True) if p >= 0}
    for other in (INTERHAND21, MODEL16):
        for name, parent in zip(other.names, other.parents, strict=True):
            assert parent < 0 or parents[name] == other.names[parent]


def test_interhand_order_is_gathered_as_its_peers_list_it():
    """Indices published with InterHand2.6M evaluation code."""
    expected = [20, 3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12, 19, 18, 17, 16]
    assert MANO21.gather_from(INTERHAND21) == expected


def test_converting_an_order_there_and_back_changes_nothing():
    values = np.arange(21)
    there = values[INTERHAND21.gather_from(MANO21)]
    assert np.array_equal(there[MANO21.gather_from(INTERHAND21)], values)


def test_the_regressor_ends_each_finger_at_its_tip_vertex():
    regressor = joint_regressor(torch.rand(16, 778))
    for finger, vertex in enumerate(TIP_VERTICES):
        row = regressor[4 * finger + 4]
        assert row[vertex] == 1 and row.sum() == 1


def test_the_regressor_keeps_the_model_rows_by_name():
    model_regressor = torch.rand(16, 778)
    regressor = joint_regressor(model_regressor)
    for row, name in enumerate(MODEL16.names):
        assert torch.equal(regressor[MANO21.index(name)], model_regressor[row])


def test_mirroring_twice_changes_nothing():
    points, rotations, relative = torch.randn(3, 2, 7, 3), torch.randn(3, 3, 3), torch.randn(5, 3)
    assert torch.equal(mirror_points(mirror_points(points)), points)
    assert torch.equal(mirror_rotations(mirror_rotations(rotations)), rotations)
    assert torch.equal(mirror_relative(mirror_relative(relative)), relative)


def test_a_mirrored_rotation_is_the_axis_angle_with_y_and_z_negated():
    vectors = np.random.default_rng(0).normal(size=(20, 3))
    mirrored = mirror_rotations(torch.from_numpy(Rotation.from_rotvec(vectors).as_matrix()))
    expected = Rotation.from_rotvec(vectors * [1, -1, -1]).as_matrix()
    np.testing.assert_allclose(mirrored.numpy(), expected, atol=1e-12)


def test_rotating_then_mirroring_is_mirroring_then_rotating_the_mirrored_way():
    rotation = torch.from_numpy(Rotation.random(random_state=0).as_matrix())
    points = torch.randn(1, 2, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(mirror_points(points @ rotation.T), mirror_points(points) @ mirror_rotations(rotation).T)


def test_the_relative_wrist_follows_the_mirrored_hands():
    wrists = torch.randn(4, 2, 1, 3)
    relative = (wrists[:, Hand.LEFT] - wrists[:, Hand.RIGHT])[:, 0]
    mirrored = mirror_points(wrists)
    torch.testing.assert_close((mirrored[:, Hand.LEFT] - mirrored[:, Hand.RIGHT])[:, 0], mirror_relative(relative))
