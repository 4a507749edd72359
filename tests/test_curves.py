"""What errors are plotted against, bins, and the files that are drawn of them."""

import csv

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from toy_hands import ONE_HOT, SIDES, random_hands, toy_truth
from toy_scores import plain_scores

from common.errors import UserError
from common.hands import Hand, mirror_points, mirror_rotations
from common.score.curves import binned_curve, equal_count_edges, hand_distance, joint_asymmetry, rotation_asymmetry
from common.score.metrics import PROTOCOLS, THRESHOLDS
from common.score.plots import write_curves
from common.score.tally import Scorer, Tally
from main.config import config_from_dict

seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=40, deadline=None)


def mirrored_pair(seed: int) -> torch.Tensor:
    """Rotations (1, 2, 16, 3, 3) of a hand and of its mirror image."""
    right = torch.from_numpy(Rotation.random(16, rng=np.random.default_rng(seed)).as_matrix())
    return torch.stack([right, mirror_rotations(right)])[None]


# ---------------------------------------------------------------- asymmetry of rotations

@quick
@given(seed=seeds)
def test_mirrored_hands_are_symmetric(seed: int):
    assert rotation_asymmetry(mirrored_pair(seed)) == pytest.approx([0], abs=1e-5)


@quick
@given(seed=seeds, joint=st.integers(1, 15), angle=st.floats(-179, 179), hand=st.sampled_from(Hand))
def test_turning_one_joint_of_fifteen_is_a_fifteenth_of_the_angle(seed, joint, angle, hand):
    pair = mirrored_pair(seed)
    axis = np.random.default_rng(seed).normal(size=3)
    turn = Rotation.from_rotvec(np.deg2rad(angle) * axis / np.linalg.norm(axis)).as_matrix()
    pair[0, hand, joint] = torch.from_numpy(turn) @ pair[0, hand, joint]
    assert rotation_asymmetry(pair) == pytest.approx([abs(angle) / 15], abs=1e-4)


def test_thirty_degrees_in_one_joint_are_two_on_average():
    pair = mirrored_pair(0)
    pair[0, Hand.LEFT, 4] @= torch.from_numpy(Rotation.from_rotvec([0, np.deg2rad(30), 0]).as_matrix())
    assert rotation_asymmetry(pair).item() == pytest.approx(2.0, abs=1e-9)


def test_the_direction_of_a_hand_is_no_asymmetry():
    pair = mirrored_pair(1)
    pair[0, Hand.LEFT, 0] = torch.from_numpy(Rotation.random(rng=np.random.default_rng(2)).as_matrix())
    assert rotation_asymmetry(pair) == pytest.approx([0], abs=1e-5)


@quick
@given(first=seeds, second=seeds)
def test_the_angles_are_those_of_scipy(first: int, second: int):
    hands = [Rotation.random(16, rng=np.random.default_rng(seed)) for seed in (first, second)]
    rotations = torch.from_numpy(np.stack([hand.as_matrix() for hand in hands]))[None]
    mirrored = Rotation.from_rotvec(hands[1].as_rotvec() * [1, -1, -1])
    expected = np.rad2deg((hands[0].inv() * mirrored).magnitude()[1:].mean())
    assert rotation_asymmetry(rotations).item() == pytest.approx(expected, abs=1e-4)


# ---------------------------------------------------------------- asymmetry of joints

def turned(joints: torch.Tensor, seed: int) -> torch.Tensor:
    """Joints (21, 3) turned and moved."""
    rng = np.random.default_rng(seed)
    return joints @ torch.from_numpy(Rotation.random(rng=rng).as_matrix()) + torch.from_numpy(rng.normal(size=3))


@quick
@given(seed=seeds)
def test_mirrored_hands_that_turn_and_move_are_symmetric(seed: int):
    right = torch.from_numpy(toy_truth()[0] + np.random.default_rng(seed).normal(0, 0.01, (21, 3)))
    left = right * torch.from_numpy(np.array([-1.0, 1, 1]))
    pair = torch.stack([turned(right, seed), turned(left, seed + 1)])[None]
    assert joint_asymmetry(pair, torch.ones(1, 2, 21)).item() == pytest.approx(0, abs=1e-7)


def test_two_right_hands_are_not_symmetric():
    """A reflection may not stand in for a rotation. The toy hand is nearly flat: this one is bent."""
    right = torch.from_numpy(toy_truth()[0] + np.random.default_rng(0).normal(0, 0.02, (21, 3)))
    assert joint_asymmetry(torch.stack([right, right])[None], torch.ones(1, 2, 21)).item() > 10


@quick
@given(seed=seeds)
def test_the_asymmetry_of_joints_does_not_depend_on_the_side(seed: int):
    pair = torch.from_numpy(toy_truth() + np.random.default_rng(seed).normal(0, 0.01, (2, 21, 3)))[None]
    valid = torch.from_numpy(np.random.default_rng(seed).random((1, 2, 21)) < 0.8).float()
    valid[..., 0] = 1
    here, there = joint_asymmetry(pair, valid), joint_asymmetry(mirror_points(pair), valid.flip(1))
    torch.testing.assert_close(here, there, atol=1e-9, rtol=0, equal_nan=True)


def test_the_rotation_is_the_one_that_scipy_finds():
    pair = toy_truth() + np.random.default_rng(5).normal(0, 0.01, (2, 21, 3))
    right, left = (hand - hand[0] for hand in pair * SIDES)
    rotation, _ = Rotation.align_vectors(right[1:], left[1:])
    expected = 1000 * np.linalg.norm(rotation.apply(left) - right, axis=1).mean()
    found = joint_asymmetry(torch.from_numpy(pair)[None], torch.ones(1, 2, 21))
    assert found.item() == pytest.approx(expected, abs=1e-9)


def test_too_few_joints_leave_the_asymmetry_open():
    pair, valid = torch.from_numpy(toy_truth())[None].repeat(3, 1, 1, 1), torch.ones(3, 2, 21)
    valid[0, 0, 0] = 0              # no wrist
    valid[1, 1, 3:] = 0             # the wrist and two more
    pair[0, 0] = torch.nan
    assert torch.isnan(joint_asymmetry(pair, valid)).tolist() == [True, True, False]


# ---------------------------------------------------------------- distance

def test_the_distance_is_that_of_the_closest_vertices():
    targets, _ = random_hands(3, 0)
    right, left = targets.vertices[:, 0].numpy(), (targets.vertices[:, 1] + targets.relative[:, None]).numpy()
    expected = [1000 * np.linalg.norm(a[:, None] - b[None], axis=-1).min() for a, b in zip(right, left, strict=True)]
    np.testing.assert_allclose(hand_distance(targets.vertices, targets.relative), expected, atol=1e-9)


def test_a_distance_of_a_tenth_of_a_millimetre_survives_float32():
    vertices = torch.zeros(1, 2, 778, 3) + 0.3
    vertices[0, 1, :, 0] += 0.0001
    assert hand_distance(vertices, torch.zeros(1, 3)).item() == pytest.approx(0.1, abs=1e-4)


# ---------------------------------------------------------------- bins

def test_six_bins_hold_equally_many_samples():
    x = np.random.default_rng(0).exponential(10, 601)
    curve = binned_curve(x, x, np.ones(601), np.zeros(601, int), None, equal_count_edges(x))
    assert curve.count.sum() == 601 and curve.count.max() - curve.count.min() <= 1
    assert len(curve.count) == 6 and (np.diff(curve.center) > 0).all()


@quick
@given(seed=seeds, bins=st.integers(1, 8))
def test_the_bins_mean_is_the_mean(seed: int, bins: int):
    """Errors weighted by their counts: the bins together give the error of everything."""
    rng = np.random.default_rng(seed)
    x, count = rng.normal(size=50), rng.integers(1, 42, 50).astype(float)
    error = rng.uniform(0, 60, 50) * count
    curve = binned_curve(x, error, count, np.zeros(50, int), None, equal_count_edges(x, bins))
    assert curve.count.sum() == 50
    inside = np.digitize(x, curve.edges[1:-1])
    for number in range(bins):
        chosen = inside == number
        assert curve.error[number] == pytest.approx(error[chosen].sum() / count[chosen].sum())
        assert curve.center[number] == pytest.approx(x[chosen].mean())


def test_edges_that_are_given_leave_out_what_lies_beyond_and_keep_empty_bins():
    x = np.array([-1.0, 0, 1, 5, 10, 11])
    curve = binned_curve(x, x, np.ones(6), np.zeros(6, int), None, np.array([0.0, 2, 4, 10]))
    assert curve.count.tolist() == [2, 0, 2]
    assert curve.error[[0, 2]].tolist() == [0.5, 7.5] and np.isnan(curve.error[1])


def test_values_that_coincide_share_a_bin():
    x = np.full(20, 3.0)
    curve = binned_curve(x, x, np.ones(20), np.zeros(20, int), None, equal_count_edges(x))
    assert (curve.count.tolist(), curve.error.tolist()) == ([20], [3.0])


def test_the_interval_of_a_bin_draws_recordings():
    rng = np.random.default_rng(0)
    recording = np.repeat(np.arange(50), 10)
    error = np.repeat(rng.normal(20, 5, 50), 10)
    resamples = rng.multinomial(50, np.full(50, 0.02), 2000).astype(float)
    x = rng.uniform(0, 1, 500)
    curve = binned_curve(x, error, np.ones(500), recording, resamples, np.array([0.0, 1.0]))
    assert (curve.high - curve.low)[0] == pytest.approx(2 * 1.96 * error.std() / 50**0.5, rel=0.1)


def test_a_bin_of_a_single_recording_has_no_interval():
    resamples = np.random.default_rng(0).multinomial(2, [0.5, 0.5], 100).astype(float)
    curve = binned_curve(np.array([0.0, 0, 1, 1]), np.arange(4.0), np.ones(4), np.array([0, 1, 1, 1]), resamples,
                         np.array([0.0, 0.5, 1.0]))
    assert np.isnan(curve.low).tolist() == [False, True]


@pytest.mark.parametrize("bins", [[1], [3, 2], [1, 1]])
def test_bins_that_are_no_bins_are_refused(bins):
    with pytest.raises(UserError, match="test.bins"):
        config_from_dict({"test": {"bins": bins}})
    assert config_from_dict({"test": {"bins": [1, 2]}}).test.bins == (1, 2)


# ---------------------------------------------------------------- files

def tally_of(count: int = 40, broken: int = -1, **changes) -> Tally:
    targets, hands = random_hands(count, 0)
    if broken >= 0:
        hands.vertices[broken] = torch.nan
    targets.mano.rotations[:] = torch.from_numpy(
        Rotation.random(count * 32, rng=np.random.default_rng(0)).as_matrix().reshape(count, 2, 16, 3, 3))
    scorer = Scorer(ONE_HOT, count, lambda index: f"Capture0/{index % 8}/cam0/{index}.jpg",
                    lambda index: "interacting")
    scorer.add(hands, targets._replace(**changes), torch.arange(count))
    return scorer.tally


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple:
    tally, folder = tally_of(), tmp_path_factory.mktemp("curves")
    return tally, folder, write_curves(tally, PROTOCOLS["lgnet"], folder)


def read(path) -> dict[str, list[float]]:
    with open(path) as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


def test_the_table_of_the_curve_holds_what_is_drawn(written):
    tally, folder, _ = written
    table, curve = read(folder / "pck.csv"), tally.pck_curve(PROTOCOLS["lgnet"])
    np.testing.assert_allclose(table["threshold_mm"], THRESHOLDS)
    np.testing.assert_allclose(table["share"], curve.share)
    assert 100 / 50 * np.trapezoid(table["share"], table["threshold_mm"]) == pytest.approx(
        plain_scores(tally)["protocols"]["lgnet"]["auc_200"])


def test_the_tables_of_bins_hold_what_metrics_json_says(written):
    _, folder, values = written
    for name, unit in (("asymmetry", "degrees"), ("distance", "mm")):
        table, found = read(folder / f"{name}.csv"), values[name]
        assert list(table) == [f"from_{unit}", f"to_{unit}", f"mean_{unit}", "mpjpe_mm", "low_95", "high_95", "samples"]
        assert table["samples"] == found["count"] and found["protocol"] == "lgnet"
        np.testing.assert_allclose(table["mpjpe_mm"], np.array(found["error"], dtype=float))
    assert sorted(values["asymmetry"]["count"]) == [6, 6, 7, 7, 7, 7] and values["asymmetry"]["unit"] == "degrees"
    assert sum(values["distance"]["count"]) == 40


def test_every_curve_is_drawn_for_screen_and_for_print(written):
    _, folder, _ = written
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{name}.{kind}" for name in ("asymmetry", "distance", "pck") for kind in ("csv", "pdf", "png")]
    for name in ("asymmetry", "distance", "pck"):
        picture = cv2.imread(str(folder / f"{name}.png"))
        assert picture.shape[1] == pytest.approx(3.4 * 300, abs=2)
        assert (picture != picture[0, 0]).any(axis=-1).mean() > 0.01
        pdf = (folder / f"{name}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF") and b"/Type3" not in pdf     # type 3 fonts are what publishers send back


def test_without_model_parameters_the_asymmetry_is_that_of_the_joints(tmp_path):
    values = write_curves(tally_of(mano_valid=torch.zeros(40, 2)), PROTOCOLS["lgnet"], tmp_path)
    assert values["asymmetry"]["unit"] == "mm" and "joints" in values["asymmetry"]["x"]


def test_the_asymmetry_takes_edges(tmp_path):
    values = write_curves(tally_of(), PROTOCOLS["lgnet"], tmp_path, (0.0, 120.0, 130.0, 500.0))
    assert len(values["asymmetry"]["count"]) == 3 and sum(values["asymmetry"]["count"]) == 40


def test_a_prediction_that_is_not_finite_spoils_its_bin_and_is_drawn_all_the_same(tmp_path):
    values = write_curves(tally_of(broken=3), PROTOCOLS["lgnet"], tmp_path)
    errors = values["asymmetry"]["error"]
    assert sum(np.isinf(errors)) == 1 and np.isfinite(errors).sum() == 5
    assert [values["asymmetry"]["low"][bin] for bin in np.flatnonzero(np.isinf(errors))] == [None]
    assert (tmp_path / "asymmetry.pdf").exists()


def test_hands_without_meshes_have_no_distance_and_no_file_of_it(tmp_path):
    (tmp_path / "distance.csv").write_text("of an earlier test")
    values = write_curves(tally_of(vertices_valid=torch.zeros(40, 2)), PROTOCOLS["internet"], tmp_path)
    assert values["distance"] is None and values["asymmetry"] is not None
    assert not (tmp_path / "distance.csv").exists()
