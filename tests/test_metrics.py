"""Errors and averages against numbers worked out by hand, and what may and may not change them."""

import json
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_hands import (
    ONE_HOT,
    RELATIVE,
    mesh_of,
    pseudo_vertices,
    random_hands,
    toy_hands,
    toy_prediction,
    toy_targets,
    toy_truth,
)
from toy_scores import plain_protocol

from common.errors import UserError
from common.hands import MANO21, MIDDLE_MCP, WRIST, Hand, joint_regressor, mirror_points, mirror_relative
from common.score.metrics import (
    PLAIN_PCK,
    PROTOCOLS,
    PckOptions,
    PredictedHands,
    Protocol,
    SampleErrors,
    aligned_distances,
    averages,
    pair_distances,
    protocol_named,
    report_lines,
    sample_errors,
    sample_sums,
    scale_to_truth,
    unpack,
)
from common.score.scores import ProtocolScores

LGNET, INTERWILD = PROTOCOLS["lgnet"], PROTOCOLS["interwild"]
MCP_UNSCALED = replace(PROTOCOLS["intaghand"], name="mcp", scaled=False)
every_protocol = pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)


def errors_of(protocol: Protocol, hands: PredictedHands | None = None, **changes) -> SampleErrors:
    """Of the toy prediction, or of other hands, against the toy truth with some of its fields changed."""
    return sample_errors(protocol, hands or toy_hands(), toy_targets(**changes), ONE_HOT)


def table_of(protocol: Protocol, *errors: SampleErrors, type_: int = 1, pck: PckOptions = PLAIN_PCK) -> np.ndarray:
    """Sums (1, 2, F) of samples of one recording and one of `TYPES`."""
    table = np.zeros((1, 2, sample_sums(protocol, errors[0], pck).shape[1]))
    table[0, type_] = sum(sample_sums(protocol, error, pck).sum(axis=0) for error in errors)
    return table


def summary_of(protocol: Protocol, *errors: SampleErrors) -> dict:
    return plain_protocol(protocol, table_of(protocol, *errors))


def lines_of(protocol: Protocol, summary: dict) -> list[str]:
    return report_lines(protocol, msgspec.convert(summary, ProtocolScores))


# ---------------------------------------------------------------- the toy pair

TOY = {     # scale, MPJPE and MPVPE of the right and the left hand, both hands; without the root joint
    "lgnet": (LGNET, (0.940090, 1.157711), (4.517635, 5.560309, 5.038972), (2.274450, 3.284713, 2.779581), 5.290921),
    "intaghand": (PROTOCOLS["intaghand"], (0.940090, 1.157711), (3.991915, 4.914782, 4.453348),
                  (2.229080, 3.150509, 2.689795), 4.676016),
    "eanet": (PROTOCOLS["eanet"], (0.940090, 1.157711), (3.991915, 4.914782, 4.453348),
              (2.229080, 3.150509, 2.689795), 4.676016),
    "interwild": (INTERWILD, (1, 1), (10.280264, 12.504137, 11.392201), (5.850231, 7.666276, 6.758254), 11.961811),
    "interwild_mesh": (PROTOCOLS["interwild_mesh"], (1, 1), (10.280264, 12.504137, 11.392201),
                       (5.850231, 7.666276, 6.758254), 11.961811),
    "internet": (PROTOCOLS["internet"], (1, 1), (10.280264, 12.504137, 11.392201), (5.850231, 7.666276, 6.758254),
                 11.961811),
    "mcp": (MCP_UNSCALED, (1, 1), (6.196984, 4.444934, 5.320959), (4.621526, 5.435049, 5.028288), 5.587007),
}


@pytest.mark.parametrize(("protocol", "scale", "mpjpe", "_", "no_root"), TOY.values(), ids=TOY)
def test_the_toy_pair_scores_what_was_worked_out(protocol, scale, mpjpe, _, no_root):
    summary = summary_of(protocol, errors_of(protocol))
    hands = summary["hands"]
    assert [hands[hand.label]["scale"] for hand in Hand] == pytest.approx(scale, abs=1e-5)
    assert summary["mean_scale"] == pytest.approx(np.mean(scale), abs=1e-5)
    assert [*(hands[hand.label]["mpjpe"] for hand in Hand), summary["mpjpe"]] == pytest.approx(mpjpe, abs=1e-5)
    assert summary["mpjpe_no_root"] == pytest.approx(no_root, abs=1e-5)
    assert summary["mrrpe"] == pytest.approx(15.0, abs=1e-9)


@pytest.mark.parametrize(("protocol", "_", "__", "mpvpe", "___"), TOY.values(), ids=TOY)
def test_the_toy_meshes_score_what_was_worked_out(protocol, _, __, mpvpe, ___):
    truth, guess = torch.from_numpy(toy_truth())[None], torch.from_numpy(toy_prediction())[None]
    points, true_points = (torch.from_numpy(pseudo_vertices(joints, lift))[None]
                           for joints, lift in ((toy_prediction(), 0.012), (toy_truth(), 0.010)))
    errors = aligned_distances(protocol, guess, truth, points, true_points).mean(dim=-1)[0]
    assert [*errors.tolist(), errors.mean().item()] == pytest.approx(mpvpe, abs=1e-5)


def test_both_toy_meshes_seen_from_the_right_wrist_score_what_was_worked_out():
    meshes = [pseudo_vertices(joints, lift) - joints[:, :1]
              for joints, lift in ((toy_prediction(), 0.012), (toy_truth(), 0.010))]
    guess, truth = (torch.from_numpy(mesh)[None] for mesh in meshes)
    errors = pair_distances(guess, RELATIVE, truth, torch.tensor([[0.100, -0.010, 0.030]]))
    assert errors.mean().item() == pytest.approx(11.227265, abs=1e-5)


# ---------------------------------------------------------------- what changes a score and what does not

seeds = st.integers(0, 2**32 - 1)
shifts = st.tuples(*[st.floats(-2, 2)] * 3).map(lambda values: torch.tensor(values, dtype=torch.float64))
factors = st.floats(0.2, 5)
quick = settings(max_examples=25, deadline=None)     # for each of six protocols


def figures(protocol: Protocol, errors: SampleErrors) -> dict[str, float]:
    values = averages(protocol, unpack(sample_sums(protocol, errors, PLAIN_PCK).sum(axis=0)[None]))
    return {name: float(value) for name, value in values.items() if name in protocol.metrics or "pj" in name}


def random_errors(protocol: Protocol, seed: int, change=lambda hands: hands) -> SampleErrors:
    targets, hands = random_hands(2, seed)
    return sample_errors(protocol, change(hands), targets, ONE_HOT)


def assert_same_errors(first: SampleErrors, second: SampleErrors) -> None:
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)


@every_protocol
@quick
@given(seed=seeds)
def test_a_perfect_prediction_scores_zero(protocol: Protocol, seed: int):
    targets, _ = random_hands(2, seed)
    errors = sample_errors(protocol, PredictedHands(targets.vertices, None, targets.relative), targets, ONE_HOT)
    assert max(figures(protocol, errors).values()) < 1e-9


@every_protocol
@quick
@given(seed=seeds, right=shifts, left=shifts)
def test_moving_predicted_hands_in_their_own_frames_changes_nothing(protocol: Protocol, seed: int, right, left):
    offsets = torch.stack([right, left])[None, :, None]
    moved = random_errors(protocol, seed, lambda hands: hands._replace(vertices=hands.vertices + offsets))
    assert_same_errors(moved, random_errors(protocol, seed))


@every_protocol
@quick
@given(seed=seeds, shift=shifts)
def test_moving_the_left_hand_alone_is_the_relative_error_and_nothing_else(protocol: Protocol, seed: int, shift):
    targets, _ = random_hands(2, seed)
    moved = sample_errors(protocol, PredictedHands(targets.vertices, None, targets.relative + shift), targets, ONE_HOT)
    still = sample_errors(protocol, PredictedHands(targets.vertices, None, targets.relative), targets, ONE_HOT)
    np.testing.assert_allclose(moved.relative, 1000 * shift.norm(), atol=1e-9)
    np.testing.assert_array_equal(moved.joints, still.joints)
    np.testing.assert_array_equal(moved.vertices, still.vertices)
    if "rrve" in protocol.metrics:      # half of the vertices are off by the shift
        np.testing.assert_allclose(moved.pair, 500 * shift.norm(), atol=1e-9)


@every_protocol
@quick
@given(seed=seeds, factor=factors)
def test_scaling_a_prediction_changes_only_the_protocols_without_scale(protocol: Protocol, seed: int, factor: float):
    plain = random_errors(protocol, seed)
    scaled = random_errors(protocol, seed, lambda hands: hands._replace(vertices=hands.vertices * factor))
    np.testing.assert_array_equal(scaled.relative, plain.relative)
    if protocol.scaled:
        assert_same_errors(scaled._replace(scale=plain.scale), plain)
        np.testing.assert_allclose(scaled.scale * factor, plain.scale, rtol=1e-9)
    elif abs(factor - 1) > 1e-3:
        assert not np.allclose(scaled.joints, plain.joints, atol=1e-6)


@every_protocol
@quick
@given(seed=seeds)
def test_mirroring_truth_and_prediction_swaps_the_hands_and_changes_nothing_else(protocol: Protocol, seed: int):
    targets, hands = random_hands(2, seed)
    mirrored = targets._replace(**{name: mirror_points(getattr(targets, name))
                                   for name in ("vertices", "joints", "joints_annotated")},
                                relative=mirror_relative(targets.relative))
    guess = PredictedHands(mirror_points(hands.vertices), None, mirror_relative(hands.relative))
    plain, swapped = (sample_errors(protocol, *pair, ONE_HOT) for pair in ((hands, targets), (guess, mirrored)))
    assert_same_errors(SampleErrors(swapped.joints[:, ::-1], swapped.vertices[:, ::-1], swapped.relative,
                                    plain.pair, swapped.scale[:, ::-1]), plain)
    means = [{**figures(protocol, errors), "rrve": 0} for errors in (plain, swapped)]
    assert means[0] == pytest.approx(means[1], abs=1e-9)


def test_mirrored_hands_are_not_seen_from_the_same_wrist():
    """RRVE is the one figure that a mirror changes: it puts both hands at the right wrist, which was the left one."""
    targets, hands = random_hands(2, 0)
    mirrored = targets._replace(vertices=mirror_points(targets.vertices), relative=mirror_relative(targets.relative))
    guess = PredictedHands(mirror_points(hands.vertices), None, mirror_relative(hands.relative))
    plain, swapped = (sample_errors(INTERWILD, *pair, ONE_HOT) for pair in ((hands, targets), (guess, mirrored)))
    assert not np.allclose(plain.pair, swapped.pair, atol=1e-6)


def test_leaving_out_the_root_is_a_factor_of_21_over_20_for_lgnet():
    summary = summary_of(LGNET, errors_of(LGNET))
    assert summary["mpjpe_no_root"] / summary["mpjpe"] == pytest.approx(1.05, abs=1e-12)


# ---------------------------------------------------------------- which joints are compared

def test_the_protocols_compare_with_the_mesh_or_with_the_annotated_joints():
    """Annotated joints 7 mm off the mesh's in every joint but the wrist."""
    annotated = torch.from_numpy(toy_truth())[None].clone()
    annotated[..., 1:, 2] += 0.007
    hands = toy_hands(toy_truth())
    for protocol in PROTOCOLS.values():
        joints = errors_of(protocol, hands, joints_annotated=annotated).joints
        expected = 7.0 if protocol.truth == "annotated" else 0.0
        np.testing.assert_allclose(joints[..., 1:], expected, atol=1e-9)


def test_a_protocol_that_takes_given_joints_prefers_them_to_the_mesh():
    hands = toy_hands()._replace(joints=torch.from_numpy(toy_truth())[None])
    assert errors_of(PROTOCOLS["internet"], hands).joints == pytest.approx(0, abs=1e-9)
    assert errors_of(INTERWILD, hands).joints.mean() == pytest.approx(11.392201, abs=1e-5)


@every_protocol
def test_joints_without_a_mesh_are_scored_on_their_own(protocol: Protocol):
    alone = errors_of(protocol, PredictedHands(joints=torch.from_numpy(toy_prediction())[None]))
    np.testing.assert_allclose(alone.joints, errors_of(protocol).joints, atol=1e-9)
    assert np.isnan(alone.vertices).all() and np.isnan(alone.relative).all() and np.isnan(alone.pair).all()


@every_protocol
def test_joints_of_meshes_end_in_the_protocols_tip_vertices(protocol: Protocol, hand_model):
    """Moving one tip vertex by 7 mm is 7 mm at that joint and at no other."""
    vertices = hand_model.template.double()[None]
    truth = joint_regressor(hand_model.regressor.double(), protocol.tip_vertices) @ vertices
    targets = toy_targets(vertices=vertices, joints_annotated=truth)
    moved = vertices.clone()
    moved[:, :, protocol.tip_vertices[2], 1] += 0.007
    errors = sample_errors(protocol, PredictedHands(moved, None, targets.relative), targets, hand_model.regressor)
    at_tip = np.array(MANO21.names) == "middle4"
    np.testing.assert_allclose(errors.joints[0, :, at_tip], 7, atol=1e-6)
    np.testing.assert_allclose(errors.joints[0][:, ~at_tip], 0, atol=1e-6)
    if "mpvpe" in protocol.metrics:
        np.testing.assert_allclose(errors.vertices, 7 / 778, atol=1e-9)


# ---------------------------------------------------------------- what cannot be scored

@every_protocol
def test_a_hand_without_truth_is_left_out_instead_of_scoring_zero(protocol: Protocol):
    """A mesh of zeros would be matched perfectly by scaling the prediction to nothing."""
    truth = toy_truth()
    truth[Hand.LEFT] = 0
    mesh, joints = (torch.from_numpy(values)[None] for values in (mesh_of(truth), truth))
    targets = toy_targets(vertices=mesh, joints_annotated=joints)
    errors = sample_errors(protocol, toy_hands(), targets, ONE_HOT)
    assert np.isnan(errors.joints[0, Hand.LEFT]).all() and np.isnan(errors.vertices[0, Hand.LEFT])
    assert np.isnan(errors.relative[0]) and np.isnan(errors.pair[0])
    assert summary_of(protocol, errors)["mpjpe"] == pytest.approx(TOY[protocol.name][2][Hand.RIGHT], abs=1e-5)


@every_protocol
def test_a_hand_without_a_mesh_scores_only_where_annotated_joints_are_the_truth(protocol: Protocol):
    errors = errors_of(protocol, vertices_valid=torch.tensor([[1.0, 0.0]]))
    assert np.isnan(errors.vertices[0, Hand.LEFT]) and np.isnan(errors.pair[0])
    assert np.isnan(errors.joints[0, Hand.LEFT]).all() == (protocol.truth == "mesh")
    assert np.isnan(errors.relative[0]) == (protocol.truth == "mesh")
    assert not np.isnan(errors.joints[0, Hand.RIGHT]).any()


@every_protocol
def test_a_set_without_annotated_joints_leaves_their_protocols_empty(protocol: Protocol):
    summary = summary_of(protocol, errors_of(protocol, joints_annotated_valid=torch.zeros(1, 2, 21)))
    if protocol.masked:
        assert summary["mpjpe"] is None and summary["counts"]["mpjpe"] == 0 and summary["auc"] is None
    else:
        assert summary["mpjpe"] == pytest.approx(TOY[protocol.name][2][2], abs=1e-5)
    assert (summary["mrrpe"] is None) == (protocol.truth == "annotated")


@every_protocol
def test_the_mask_is_read_in_the_order_of_the_errors(protocol: Protocol):
    """Only wrist and middle knuckle are annotated: index 20 is the pinky's tip here, not a wrist."""
    mask = torch.zeros(1, 2, 21)
    mask[..., [WRIST, MIDDLE_MCP]] = 1
    scored = ~np.isnan(errors_of(protocol, joints_annotated_valid=mask).joints[0, Hand.RIGHT])
    expected = {"wrist", "middle1"} if protocol.masked else set(MANO21.names)
    assert {MANO21.names[joint] for joint in np.flatnonzero(scored)} == expected


@every_protocol
def test_a_hand_whose_wrist_is_not_annotated_has_no_annotated_joints(protocol: Protocol):
    mask = torch.ones(1, 2, 21)
    mask[:, Hand.RIGHT, WRIST] = 0
    errors = errors_of(protocol, joints_annotated_valid=mask)
    assert np.isnan(errors.joints[0, Hand.RIGHT]).all() == protocol.masked
    assert not np.isnan(errors.joints[0, Hand.LEFT]).any()


@every_protocol
def test_meaningless_values_behind_a_mask_do_not_reach_the_errors(protocol: Protocol):
    targets = toy_targets(vertices_valid=torch.tensor([[1.0, 0.0]]), joints_annotated_valid=torch.ones(1, 2, 21),
                          relative_valid=torch.zeros(1))
    targets.joints_annotated_valid[:, Hand.LEFT] = 0
    for values in (targets.vertices, targets.joints, targets.joints_annotated, targets.wrist):
        values[:, Hand.LEFT] = torch.nan
    targets.relative[:] = torch.nan
    summary = summary_of(protocol, sample_errors(protocol, toy_hands(), targets, ONE_HOT))
    assert summary["mpjpe"] == pytest.approx(TOY[protocol.name][2][Hand.RIGHT], abs=1e-5)
    assert summary["mrrpe"] is None


@every_protocol
def test_a_hand_that_is_not_predicted_is_left_out(protocol: Protocol):
    errors = errors_of(protocol, toy_hands(predicted=torch.tensor([[True, False]])))
    assert np.isnan(errors.joints[0, Hand.LEFT]).all() and np.isnan(errors.relative[0]) and np.isnan(errors.pair[0])
    assert summary_of(protocol, errors)["mpjpe"] == pytest.approx(TOY[protocol.name][2][Hand.RIGHT], abs=1e-5)


@every_protocol
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_prediction_that_is_not_finite_never_improves_the_mean(protocol: Protocol, value: float):
    prediction = toy_prediction()
    prediction[Hand.RIGHT, 5] = value
    summary = summary_of(protocol, errors_of(protocol, toy_hands(prediction)))
    assert summary["mpjpe"] == np.inf and summary["auc"] < 100
    assert summary["hands"]["left"]["mpjpe"] == pytest.approx(TOY[protocol.name][2][Hand.LEFT], abs=1e-5)


# ---------------------------------------------------------------- averages

def joint_errors(values: list[list[float]]) -> SampleErrors:
    """Errors of the first right joints of some samples, nothing else scored."""
    count = len(values)
    joints = np.full((count, 2, 21), np.nan)
    joints[:, Hand.RIGHT, :len(values[0])] = values
    nothing = np.full((count, 2), np.nan)
    return SampleErrors(joints, nothing, nothing[:, 0], nothing[:, 0], nothing)


@every_protocol
def test_the_order_of_averaging_is_the_protocols(protocol: Protocol):
    found = summary_of(protocol, joint_errors([[1, 2, 3], [5, np.nan, np.nan]]))["mpjpe"]
    expected = {"flat": 11 / 4}.get(protocol.averaging, 8 / 3)                  # (1+2+3+5)/4, (3+2+3)/3
    assert found == pytest.approx(expected, abs=1e-12)
    assert (protocol.averaging == "flat") == (protocol.name in ("lgnet", "intaghand"))


@every_protocol
def test_single_and_interacting_hands_weigh_as_the_protocol_says(protocol: Protocol):
    """Joints 1, 2 of three single samples, 5, 9 of one that interacts."""
    single, both = joint_errors([[1, 2]] * 3), joint_errors([[5, 9]])
    found = plain_protocol(protocol, table_of(protocol, single, type_=0) + table_of(protocol, both, type_=1))
    pooled, halves = (3 * 1 + 5) / 4 / 2 + (3 * 2 + 9) / 4 / 2, (1 + 2 + 5 + 9) / 4
    weighs_types = protocol.name in ("interwild", "interwild_mesh", "eanet")
    assert found["mpjpe"] == pytest.approx(halves if weighs_types else pooled, abs=1e-12)
    assert found.get("mpjpe_pooled") == (pytest.approx(pooled, abs=1e-12) if weighs_types else None)
    assert [found["groups"][name]["mpjpe"] for name in ("single", "interacting")] == [1.5, 7.0]


# Joints 1, 2, … of a protocol whose root is the wrist, so that leaving out the root leaves these five.
FIVE = joint_errors([[np.nan, 0, 10, 20, 30, 60]])


def test_the_exact_area_under_the_curve_takes_no_thresholds():
    assert summary_of(LGNET, FIVE)["auc"] == pytest.approx(56.0, abs=1e-12)


@pytest.mark.parametrize(("strict", "area"), [(False, 56.0302), (True, 55.9799)])
def test_the_area_by_trapezoids_follows_the_comparison(strict: bool, area: float):
    summary = plain_protocol(LGNET, table_of(LGNET, FIVE, pck=PckOptions(strict=strict)))
    assert summary["auc_200"] == pytest.approx(area, abs=5e-5)
    assert summary["auc"] == pytest.approx(56.0, abs=1e-12)


def test_leaving_out_the_root_takes_its_zeros_from_the_curve():
    with_root, without = (plain_protocol(LGNET, table_of(LGNET, errors_of(LGNET), pck=PckOptions(exclude_root=leave)))
                          for leave in (False, True))
    assert 100 - without["auc"] == pytest.approx(1.05 * (100 - with_root["auc"]), abs=1e-9)
    assert without["mpjpe"] == with_root["mpjpe"]


def test_a_perfect_prediction_has_the_whole_area_unless_zero_counts_as_outside():
    perfect = errors_of(LGNET, toy_hands(toy_truth()))
    loose, strict = (plain_protocol(LGNET, table_of(LGNET, perfect._replace(joints=np.zeros((1, 2, 21))),
                                               pck=PckOptions(strict=strict))) for strict in (False, True))
    assert loose["auc"] == loose["auc_200"] == 100
    assert strict["auc"] == 100 and strict["auc_200"] == pytest.approx(100 - 50 / 199, abs=1e-9)


def test_groups_follow_the_annotated_hands():
    single = errors_of(LGNET)
    for column in (single.joints, single.vertices, single.scale):
        column[:, Hand.LEFT] = np.nan
    single.relative[:] = np.nan
    summary = plain_protocol(LGNET, table_of(LGNET, errors_of(LGNET)) + table_of(LGNET, single, type_=0))
    groups = summary["groups"]
    assert [groups[name]["samples"] for name in ("all", "single", "interacting")] == [2, 1, 1]
    assert groups["single"]["mpjpe"] == pytest.approx(4.517635, abs=1e-5)
    assert groups["interacting"]["mpjpe"] == pytest.approx(5.038972, abs=1e-5)
    assert groups["single"]["mrrpe"] is None
    assert {"samples": 2, "mpjpe": 63, "mpvpe": 3, "mrrpe": 1}.items() <= summary["counts"].items()


def test_an_empty_set_scores_nothing_and_says_so():
    summary = plain_protocol(LGNET, np.zeros_like(table_of(LGNET, errors_of(LGNET))))
    assert summary["mpjpe"] is None and summary["mrrpe"] is None and summary["counts"]["samples"] == 0
    assert "MPJPE for all hand sequences: nothing to score" in lines_of(LGNET, summary)


def test_the_lines_are_the_usual_ones():
    mesh_error = errors_of(LGNET)._replace(vertices=np.array([[2.274450, 3.284713]]))
    assert lines_of(LGNET, summary_of(LGNET, mesh_error)) == [
        "MPJPE for all hand sequences: 5.04 mm", "MPJPE for single hand sequences: nothing to score",
        "MPJPE for interacting hand sequences: 5.04 mm", "MPVPE for all hand sequences: 2.78 mm",
        "MPVPE for single hand sequences: nothing to score", "MPVPE for interacting hand sequences: 2.78 mm",
        "MRRPE: 15.00 mm"]
    assert lines_of(INTERWILD, summary_of(INTERWILD, errors_of(INTERWILD)))[-1].startswith("RRVE: ")
    assert not any("MPVPE" in line for line in lines_of(PROTOCOLS["internet"], summary_of(PROTOCOLS["internet"], FIVE)))


@every_protocol
def test_a_summary_is_plain_json_and_carries_its_definition(protocol: Protocol):
    summary = summary_of(protocol, errors_of(protocol))
    assert json.loads(json.dumps(summary)) == summary
    assert summary["protocol"]["root"] == ("middle1" if protocol.root == MIDDLE_MCP else "wrist")
    assert {"scaled", "truth", "averaging", "set", "tip_vertices", "source"} <= set(summary["protocol"])
    assert ("rrve" in summary) == protocol.name.startswith("interwild")


def test_protocols_are_found_by_every_name_they_have():
    assert protocol_named("dir") is protocol_named("lgnet") is LGNET
    with pytest.raises(UserError, match="one of: lgnet, dir, intaghand"):
        protocol_named("lgnett")


def test_unscaled_protocols_have_a_scale_of_one():
    joints = torch.rand(2, 2, 21, 3)
    assert torch.equal(scale_to_truth(INTERWILD, joints, joints * 3), torch.ones(2, 2))
    torch.testing.assert_close(scale_to_truth(LGNET, joints, joints * 3), torch.full((2, 2), 3.0))
