"""The measuring of hands is right on bodies whose answers are known, and the built-in hand passes it."""

import numpy as np
import pytest
import torch
import trimesh

from common.hands import Hand
from data.synthetic.pose.articulation import finger_rotations, load_rig
from data.synthetic.pose.interaction import winding_number
from tool.dev.measure_hand import (
    PUBLISHED,
    Ruler,
    finger_volumes,
    meeting,
    natural_angles,
    pose,
    self_intersection,
    tape,
    volume,
    without_correctives,
)


def two_balls(overlap: float) -> tuple[np.ndarray, np.ndarray]:
    """Two balls of 1 cm radius as one mesh that overlap by `overlap` metres."""
    ball = trimesh.creation.icosphere(subdivisions=2, radius=0.01)
    other = ball.vertices + [0.02 - overlap, 0.0, 0.0]
    return np.concatenate([ball.vertices, other]), np.concatenate([ball.faces, ball.faces + len(ball.vertices)])


@pytest.mark.parametrize("overlap", (0.001, 0.003))
def test_balls_pass_through_each_other_as_deep_as_they_overlap(overlap):
    vertices, faces = two_balls(overlap)
    assert self_intersection(vertices, faces).max() == pytest.approx(overlap, abs=6e-4)


def test_balls_that_do_not_touch_are_free():
    assert self_intersection(*two_balls(-0.0005)).max() == 0


def test_winding_number_is_one_inside_two_in_an_overlap_and_zero_outside():
    vertices, faces = two_balls(0.004)
    points = np.array([[0.0, 0, 0], [0.008, 0, 0], [0.0, 0.02, 0]])
    np.testing.assert_allclose(winding_number(points, vertices[faces]), [1, 2, 0], atol=1e-3)


def test_volume_closes_the_open_end_of_a_tube():
    tube = trimesh.creation.cylinder(radius=0.01, height=0.03, sections=64)
    sides = tube.face_normals[:, 2] < 0.5
    assert volume(tube.vertices, tube.faces[sides]) == pytest.approx(tube.volume, rel=1e-6)


def test_a_tape_spans_hollows():
    plus = np.array([[1.0, 0, 0], [0.1, 0.1, 0], [0, 1, 0], [-0.1, 0.1, 0], [-1, 0, 0], [0, -1, 0]])
    assert tape(plus, np.array([1.0, 0, 0]), np.array([0.0, 1, 0])) == pytest.approx(4 * np.sqrt(2))


def test_sizes_have_published_means_and_spreads(hand_model):
    found = Ruler(hand_model).statistics()
    for name, (mean, spread) in PUBLISHED.items():
        assert 1000 * found[name][0] == pytest.approx(mean, rel=0.05), name
        if spread is not None:
            assert 1000 * found[name][1] == pytest.approx(spread, rel=0.05), name


def test_every_joint_at_its_limit_keeps_nine_tenths_of_the_finger(hand_model):
    rig = load_rig()
    plain = finger_volumes(without_correctives(hand_model), rig)
    for finger, (one, every) in finger_volumes(hand_model, rig).items():
        assert 0.9 < one < 1.05 and 0.9 < every < 1.1
        assert plain[finger][1] < every


def test_no_joint_folds_its_skin_through_itself_in_natural_poses(hand_model):
    """Fingers that run into each other are the pose's fault; skin that passes through itself at a joint is not."""
    rig = load_rig()
    _, angles = natural_angles(rig, 26, seed=1)
    faces = hand_model.faces[Hand.RIGHT].numpy()
    for vertices in pose(hand_model, finger_rotations(rig, torch.from_numpy(angles).float())):
        depth = self_intersection(vertices, faces)
        for vertex in np.nonzero(depth > 0.002)[0]:
            bones = meeting(hand_model, vertices, vertex)
            assert bones[0][:-1] != bones[1][:-1] or {bones[0][-1], bones[1][-1]} == {"1", "3"}, bones
