"""Metrics against numbers worked out by hand on a toy pair of hands."""

import json

import numpy as np
import pytest
import torch

from common.hands import MANO21, MIDDLE_MCP, WRIST, Hand, joint_regressor, mirror_points, mirror_relative
from common.metrics import (
    PROTOCOLS,
    Protocol,
    SampleErrors,
    hand_errors,
    merge_errors,
    mesh_errors,
    report_lines,
    summarise,
)
from common.types import ManoParams, Targets

LGNET = PROTOCOLS["lgnet"]
MCP_UNSCALED = Protocol("mcp", MIDDLE_MCP, False, LGNET.tip_vertices, "flat")
RELATIVE = torch.tensor([[0.090, -0.005, 0.040]])


# ---------------------------------------------------------------- the toy pair, in metres

def _toy_hand() -> np.ndarray:
    """Right hand: finger f, joint k at (15(f − 2), 60 + 20k, 4k) mm."""
    joints = np.zeros((21, 3))
    for finger in range(5):
        for k in range(1, 5):
            joints[4 * finger + k] = 15 * (finger - 2), 60 + 20 * k, 4 * k
    return joints


_SIDES = np.array([[1, 1, 1], [-1, 1, 1]])[:, None]     # the left hand is the right one with x negated


def toy_truth() -> np.ndarray:
    return (_toy_hand() * _SIDES + [[[0, 0, 800]], [[100, -10, 830]]]) / 1000


def toy_prediction() -> np.ndarray:
    j = np.arange(21)
    noise = np.stack([2.0 * (j % 3), -3.0 * (j % 2), 1.5 * (j % 4)], axis=1) * _SIDES
    return (_toy_hand() * _SIDES * [[[1.1]], [[0.9]]] + noise + [[[5, 5, 700]], [[0, 0, 0]]]) / 1000


def _pseudo_vertices(joints: np.ndarray, lift: float) -> np.ndarray:
    middle, center = joints[:, 9:13].mean(axis=1), joints.mean(axis=1) + [0, 0, lift]
    return np.stack([joints[:, 0], (joints[:, 0] + joints[:, 9]) / 2, middle, center], axis=1)


def make_targets(joints: np.ndarray, vertices: np.ndarray) -> Targets:
    """One sample of two fully annotated hands (2, n, 3), in any frame."""
    wrist = joints[:, WRIST]
    tensors = [torch.from_numpy(value)[None] for value in (vertices - wrist[:, None], joints - wrist[:, None], wrist)]
    return Targets(
        *tensors, relative=torch.from_numpy(wrist[Hand.LEFT] - wrist[Hand.RIGHT])[None],
        joints_crop=torch.zeros(1, 2, 21, 2), mano=ManoParams(torch.zeros(1, 2, 16, 3, 3), torch.zeros(1, 2, 10)),
        vertices_valid=torch.ones(1, 2), joints_valid=torch.ones(1, 2, 21), relative_valid=torch.ones(1),
        mano_valid=torch.ones(1, 2))


def toy_errors(protocol: Protocol, prediction: np.ndarray | None = None, **changes) -> SampleErrors:
    truth = toy_truth()
    targets = make_targets(truth, _pseudo_vertices(truth, 0.010))._replace(**changes)
    prediction = toy_prediction() if prediction is None else prediction
    return hand_errors(protocol, torch.from_numpy(prediction)[None], targets, torch.tensor([0]),
                       torch.from_numpy(_pseudo_vertices(prediction, 0.012))[None], RELATIVE)


TOY = {     # scale, MPJPE and MPVPE of the right and the left hand, both hands; without the root joint
    "lgnet": (LGNET, (0.940090, 1.157711), (4.517635, 5.560309, 5.038972), (2.274450, 3.284713, 2.779581), 5.290921),
    "intaghand": (PROTOCOLS["intaghand"], (0.940090, 1.157711), (3.991915, 4.914782, 4.453348),
                  (2.229080, 3.150509, 2.689795), 4.676016),
    "interwild": (PROTOCOLS["interwild"], (1, 1), (10.280264, 12.504137, 11.392201), (5.850231, 7.666276, 6.758254),
                  11.961811),
    "mcp": (MCP_UNSCALED, (1, 1), (6.196984, 4.444934, 5.320959), (4.621526, 5.435049, 5.028288), 5.587007),
}


@pytest.mark.parametrize(("protocol", "scale", "mpjpe", "mpvpe", "no_root"), TOY.values(), ids=TOY)
def test_the_toy_pair_scores_what_was_worked_out(protocol, scale, mpjpe, mpvpe, no_root):
    summary = summarise(protocol, toy_errors(protocol))
    hands = summary["hands"]
    assert [hands[hand.label]["scale"] for hand in Hand] == pytest.approx(scale, abs=1e-5)
    assert [*(hands[hand.label]["mpjpe"] for hand in Hand), summary["mpjpe"]] == pytest.approx(mpjpe, abs=1e-5)
    assert [*(hands[hand.label]["mpvpe"] for hand in Hand), summary["mpvpe"]] == pytest.approx(mpvpe, abs=1e-5)
    assert summary["mpjpe_no_root"] == pytest.approx(no_root, abs=1e-5)
    assert summary["mrrpe"] == pytest.approx(15.0, abs=1e-5)


# ---------------------------------------------------------------- properties

@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_a_perfect_prediction_scores_zero(protocol: Protocol):
    truth = toy_truth()
    targets = make_targets(truth, truth)
    errors = hand_errors(protocol, targets.joints, targets, torch.tensor([0]), targets.vertices, targets.relative)
    summary = summarise(protocol, errors)
    assert (summary["mpjpe"], summary["mpvpe"], summary["mrrpe"]) == pytest.approx((0, 0, 0), abs=1e-9)
    assert summary["auc"] == pytest.approx(100)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_moving_a_predicted_hand_changes_nothing(protocol: Protocol):
    moved = toy_errors(protocol, toy_prediction() + [[[0.3, -0.1, 2.0]], [[-1.0, 0.2, 0.1]]])
    np.testing.assert_allclose(moved.joints, toy_errors(protocol).joints, atol=1e-9)
    np.testing.assert_allclose(moved.vertices, toy_errors(protocol).vertices, atol=1e-9)


def test_scaling_a_predicted_hand_changes_only_the_unscaled_protocol():
    """Joints only: the toy's lifted vertex is not a multiple of its joints."""
    grown = toy_prediction() * [[[1.7]], [[0.4]]]
    for protocol in PROTOCOLS.values():
        same = np.allclose(toy_errors(protocol, grown).joints, toy_errors(protocol).joints, atol=1e-9)
        assert same == protocol.scaled


def test_leaving_out_the_root_is_a_factor_of_21_over_20_for_lgnet():
    summary = summarise(LGNET, toy_errors(LGNET))
    assert summary["mpjpe_no_root"] / summary["mpjpe"] == pytest.approx(1.05, abs=1e-12)


def test_a_translation_of_the_relative_wrist_is_the_relative_error():
    targets = make_targets(toy_truth(), toy_truth())
    off = targets.relative + torch.tensor([0.003, -0.004, 0.012], dtype=torch.float64)
    errors = hand_errors(LGNET, targets.joints, targets, torch.tensor([0]), relative=off)
    assert errors.relative == pytest.approx([13.0], abs=1e-9)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_mirrored_hands_swap_their_numbers(protocol: Protocol):
    errors = toy_errors(protocol)
    truth, prediction = (mirror_points(torch.from_numpy(hands)[None]) for hands in (toy_truth(), toy_prediction()))
    targets = make_targets(truth[0].numpy(), truth[0].numpy())
    mirrored = hand_errors(protocol, prediction, targets, torch.tensor([0]), relative=mirror_relative(RELATIVE))
    np.testing.assert_allclose(mirrored.joints, errors.joints[:, ::-1], atol=1e-9)
    np.testing.assert_allclose(mirrored.scale, errors.scale[:, ::-1], atol=1e-12)
    assert mirrored.relative == pytest.approx(errors.relative, abs=1e-5)


# ---------------------------------------------------------------- what cannot be scored

def test_a_hand_without_truth_is_left_out_instead_of_scoring_zero():
    """A mesh of zeros would be matched perfectly by scaling the prediction to nothing."""
    truth = toy_truth()
    truth[Hand.LEFT] = 0
    targets = make_targets(truth, _pseudo_vertices(truth, 0.0))
    prediction = torch.from_numpy(toy_prediction())[None]
    for protocol in PROTOCOLS.values():
        vertices = torch.from_numpy(_pseudo_vertices(toy_prediction(), 0.0))[None]
        errors = hand_errors(protocol, prediction, targets, torch.tensor([0]), vertices, RELATIVE)
        assert np.isnan(errors.joints[0, Hand.LEFT]).all() and np.isnan(errors.vertices[0, Hand.LEFT])
        assert np.isnan(errors.relative[0])
        assert summarise(protocol, errors)["mpjpe"] == pytest.approx(TOY[protocol.name][2][Hand.RIGHT], abs=1e-5)


def test_the_mask_is_read_in_the_order_of_the_errors():
    """Only wrist and middle knuckle are annotated: index 20 is the pinky's tip here, not a wrist."""
    mask = torch.zeros(1, 2, 21)
    mask[..., [WRIST, MIDDLE_MCP]] = 1
    errors = toy_errors(LGNET, joints_valid=mask)
    scored = ~np.isnan(errors.joints[0, Hand.RIGHT])
    assert {MANO21.names[joint] for joint in np.flatnonzero(scored)} == {"wrist", "middle1"}


def test_scaling_needs_an_annotated_bone_and_the_plain_protocol_does_not():
    mask = torch.ones(1, 2, 21)
    mask[:, Hand.RIGHT, MIDDLE_MCP] = 0
    assert np.isnan(toy_errors(LGNET, joints_valid=mask).joints[0, Hand.RIGHT]).all()
    unscaled = toy_errors(PROTOCOLS["interwild"], joints_valid=mask).joints[0, Hand.RIGHT]
    assert np.isnan(unscaled).sum() == 1 and np.isnan(unscaled[MIDDLE_MCP])


def test_meaningless_values_behind_a_mask_do_not_reach_the_errors():
    truth = toy_truth()
    truth[Hand.LEFT] = np.nan
    targets = make_targets(truth, truth)._replace(
        joints_valid=torch.tensor([[[1.0] * 21, [0.0] * 21]]), vertices_valid=torch.tensor([[1.0, 0.0]]),
        relative_valid=torch.zeros(1))
    prediction = torch.from_numpy(toy_prediction())[None]
    summary = summarise(LGNET, hand_errors(LGNET, prediction, targets, torch.tensor([0]), prediction, RELATIVE))
    assert summary["mpjpe"] == pytest.approx(4.517635, abs=1e-5)
    assert summary["mrrpe"] is None and summary["counts"]["not_finite"] == 0


def test_a_prediction_that_is_not_finite_never_improves_the_mean():
    prediction = toy_prediction()
    prediction[Hand.RIGHT, 5] = np.nan
    summary = summarise(LGNET, toy_errors(LGNET, prediction))
    assert summary["mpjpe"] == np.inf and summary["counts"]["not_finite"] == 1


def _table(joints: list[list[float]], index: list[int] | None = None) -> SampleErrors:
    """A table whose first three right joints have the given errors, everything else not annotated."""
    count = len(joints)
    table = SampleErrors(
        np.arange(count) if index is None else np.array(index), np.tile([True, False], (count, 1)),
        np.full((count, 2, 21), np.nan), np.full((count, 2), np.nan), np.full(count, np.nan), np.ones((count, 2)))
    table.joints[:, Hand.RIGHT, :3] = joints
    return table


def test_the_order_of_averaging_is_the_protocols():
    table = _table([[1, 2, 3], [5, np.nan, np.nan]])
    assert summarise(LGNET, table)["mpjpe"] == pytest.approx(2.75)                              # (1+2+3+5)/4
    assert summarise(PROTOCOLS["interwild"], table)["mpjpe"] == pytest.approx(8 / 3)            # (3, 2, 3)/3


def test_the_area_under_the_curve_is_exact():
    table = merge_errors([_table([[0, 10, 20], [30, 60, np.nan]])])
    assert summarise(LGNET, table)["auc"] == pytest.approx(56.0)


def test_an_empty_set_scores_nothing_and_says_so():
    summary = summarise(LGNET, _table([[1, 2, 3]]).take(np.zeros(0, dtype=int)))
    assert summary["mpjpe"] is None and summary["mrrpe"] is None and summary["counts"]["samples"] == 0
    assert "MPJPE for all hand sequences: nothing to score" in report_lines(summary)


def test_groups_follow_the_annotated_hands():
    both, single = toy_errors(LGNET), toy_errors(LGNET)
    single.annotated[:, Hand.LEFT] = False
    single.joints[:, Hand.LEFT] = single.vertices[:, Hand.LEFT] = single.relative[:] = np.nan
    groups = summarise(LGNET, merge_errors([both, single._replace(index=np.array([1]))]))["groups"]
    assert [groups[name]["samples"] for name in ("all", "single", "interacting")] == [2, 1, 1]
    assert groups["single"]["mpjpe"] == pytest.approx(4.517635, abs=1e-5)
    assert groups["interacting"]["mpjpe"] == pytest.approx(5.038972, abs=1e-5)
    assert groups["single"]["mrrpe"] is None


def test_the_lines_are_the_usual_ones():
    lines = report_lines(summarise(LGNET, toy_errors(LGNET)))
    assert lines == [
        "MPJPE for all hand sequences: 5.04 mm", "MPJPE for single hand sequences: nothing to score",
        "MPJPE for interacting hand sequences: 5.04 mm", "MPVPE for all hand sequences: 2.78 mm",
        "MPVPE for single hand sequences: nothing to score", "MPVPE for interacting hand sequences: 2.78 mm",
        "MRRPE: 15.00 mm"]


def test_a_summary_is_plain_json():
    summary = summarise(LGNET, toy_errors(LGNET))
    assert json.loads(json.dumps(summary)) == summary


# ---------------------------------------------------------------- merging

def test_processes_merge_to_the_table_of_one_and_repeats_count_once():
    values = np.random.default_rng(0).uniform(0, 60, (5, 3)).tolist()
    whole = _table(values)
    first, second = _table(values[::2], [0, 2, 4]), _table([values[1], values[3], values[0]], [1, 3, 0])
    for merged, expected in zip(merge_errors([second, first]), whole, strict=True):
        np.testing.assert_array_equal(merged, expected)


def test_the_order_and_size_of_batches_change_nothing():
    targets = make_targets(toy_truth(), toy_truth())
    predictions = torch.from_numpy(np.stack([toy_prediction() * s for s in (1.0, 1.3, 0.8)]))
    tripled = Targets(*(ManoParams(*(v.repeat(3, *[1] * (v.ndim - 1)) for v in field)) if isinstance(field, ManoParams)
                        else field.repeat(3, *[1] * (field.ndim - 1)) for field in targets))
    batched = hand_errors(PROTOCOLS["interwild"], predictions, tripled, torch.arange(3))
    alone = [hand_errors(PROTOCOLS["interwild"], predictions[i:i + 1], targets, torch.tensor([i])) for i in (2, 0, 1)]
    np.testing.assert_allclose(merge_errors(alone).joints, batched.joints, atol=1e-9)


# ---------------------------------------------------------------- meshes

@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_joints_of_meshes_end_in_the_protocols_tip_vertices(protocol: Protocol, hand_model):
    """Moving one tip vertex by 7 mm is 7 mm at that joint and at no other."""
    truth = hand_model.template.double()[None]
    regressor = joint_regressor(hand_model.regressor.double())
    joints = regressor @ truth
    targets = make_targets(joints[0].numpy(), truth[0].numpy())
    moved = targets.vertices.clone()
    moved[:, :, protocol.tip_vertices[2], 1] += 0.007
    errors = mesh_errors(protocol, moved, targets.relative, targets, torch.tensor([0]), hand_model.regressor)
    at_tip = np.zeros(21, dtype=bool)
    at_tip[MANO21.index("middle4")] = True
    np.testing.assert_allclose(errors.joints[0, :, at_tip], 7, atol=1e-6)
    np.testing.assert_allclose(errors.joints[0][:, ~at_tip], 0, atol=1e-3 if protocol.tip_vertices[2] == 445 else 1e-6)
    np.testing.assert_allclose(errors.vertices, 7 / 778, atol=1e-3)


def test_a_hand_without_a_mesh_is_scored_on_its_annotated_joints(hand_model):
    truth = hand_model.template.double()[None]
    joints = (joint_regressor(hand_model.regressor.double()) @ truth)[0].numpy()
    targets = make_targets(joints, np.zeros((2, 778, 3)))._replace(vertices_valid=torch.zeros(1, 2))
    targets.joints_valid[:, Hand.LEFT, 3] = 0
    errors = mesh_errors(LGNET, truth, targets.relative, targets, torch.tensor([0]), hand_model.regressor)
    assert np.isnan(errors.vertices).all() and np.isnan(errors.joints[0, Hand.LEFT, 3])
    assert np.nanmax(errors.joints) == pytest.approx(0, abs=1e-6)
