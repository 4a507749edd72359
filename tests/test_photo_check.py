"""What the measure of photographs counts."""

import numpy as np
import pytest

from common.hands import MANO21, Hand
from common.types import TwoHands
from tool.dev.photo_check import Label, judge, summary, true_box

JOINTS = np.array([[3.0 * k, 40.0 - 2 * k] for k in range(21)])             # pixels; the diagonal is √(60² + 40²)


def people(offset_px: float = 0.0, presence=(1.0, 0.0), stretch: float = 1.0) -> TwoHands:
    """A right hand whose joints lie `offset_px` to the right of JOINTS, one pixel being a millimetre."""
    joints = np.zeros((2, 21, 3))
    joints[:, :, :2] = (JOINTS - JOINTS[0]) / 1000
    joints[Hand.RIGHT] *= stretch
    return TwoHands(vertices=np.zeros((2, 778, 3)), joints=joints, rotations=np.tile(np.eye(3), (2, 16, 1, 1)),
                    shape=np.zeros((2, 10)), relative=np.zeros(3), scale_px_per_m=np.array([1000.0 / stretch, 1000.0]),
                    wrist_px=np.tile(JOINTS[0] + [offset_px, 0], (2, 1)), crop_px=np.zeros(3),
                    presence=np.array(presence), confidence=np.ones((2, 21)))


def label(hand: Hand | None = Hand.RIGHT) -> Label:
    metric = np.concatenate([JOINTS - JOINTS[0], np.zeros((21, 1))], axis=1)
    return Label(hand, JOINTS, np.ones(21, dtype=bool), metric)


def test_the_errors_are_those_worked_out_by_hand():
    (outcome,), invented = judge(0, "set", [label()], [people(offset_px=7.0)])
    assert outcome.is_found and invented == 0
    assert outcome.error_2d == pytest.approx(100 * 7 / np.hypot(60, 40))
    assert outcome.error_3d == pytest.approx(0, abs=1e-9)                   # the wrist is aligned
    (scaled,), _ = judge(0, "set", [label()], [people(stretch=1.3)])
    assert scaled.error_3d == pytest.approx(0, abs=1e-9)                    # and so is the bone
    bent = label().joints_mm.copy()
    bent[MANO21.index("pinky4")] += [0, 0, 21.0]
    (off,), _ = judge(0, "set", [label()._replace(joints_mm=bent)], [people()])
    assert off.error_3d == pytest.approx(1.0)


def test_a_hand_may_be_missed_found_as_the_other_one_or_invented():
    nobody = people(presence=(0.0, 0.0))
    (missed,), invented = judge(0, "set", [label()], [nobody])
    assert (missed.is_found, missed.is_other_side, invented) == (False, False, 0)
    (other,), invented = judge(0, "set", [label()], [people(presence=(0.0, 1.0))])
    assert (other.is_found, other.is_other_side, invented) == (False, True, 0)
    (found,), invented = judge(0, "set", [label()], [people(), people(offset_px=500.0)])
    assert found.is_found and invented == 1
    assert judge(0, "set", [label(hand=None)], [people(presence=(0.0, 1.0))]) == ([], 0)


def test_only_visible_joints_count():
    visible = np.ones(21, dtype=bool)
    visible[10:] = False
    seen = label()._replace(visible=visible)
    joints = JOINTS.copy()
    joints[10:] += 1000
    (outcome,), _ = judge(0, "set", [seen._replace(joints_px=joints)], [people()])
    assert outcome.error_2d == pytest.approx(0, abs=1e-9)


def test_the_summary_counts_each_kind_and_means_over_what_was_found():
    outcomes, invented = [], {}
    for index, drawn in enumerate(([people(offset_px=3.0)], [people(offset_px=9.0)], [people(presence=(0.0, 0.0))],
                                   [people(presence=(0.0, 1.0))], [people(), people(offset_px=900.0)])):
        own, invented[index] = judge(index, "set", [label()], drawn)
        outcomes += own
    row = summary(outcomes, invented)
    assert (row["hands"], row["found"], row["missed"], row["other_side"], row["invented"]) == (5, 3, 1, 1, 1)
    mean, low, high = row["error_2d_percent"]
    assert mean == pytest.approx(100 * 4 / np.hypot(60, 40)) and low <= mean <= high
    assert row["found_share"][0] == pytest.approx(0.6)


def test_the_true_box_is_a_tenth_larger_than_the_visible_joints_on_every_side():
    assert true_box([label()]) == pytest.approx((-6, -6, 72, 52))
