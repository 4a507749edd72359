"""Scores of a whole set: the same however the samples come, exact sums, honest intervals, everything counted."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET
from toy_hands import ONE_HOT, assert_same, random_hands
from toy_scores import plain_protocol, plain_result, plain_scores

from common.errors import UserError
from common.hands import INTERWILD_TIP_VERTICES, MIDDLE_MCP, MODEL16, TIP_VERTICES, WRIST, Hand
from common.score.metrics import NUM_SUMS, PROTOCOLS, THRESHOLDS, PckOptions, PredictedHands, unpack
from common.score.scores import read_result
from common.score.tally import Scorer, Tally
from common.types import Targets

SIZE = 30
every_protocol = pytest.mark.parametrize("name", PROTOCOLS)


def sample_id(index: int) -> str:
    """Five recordings of two cameras each."""
    return f"Capture0/{index % 5:04d}_dh/cam{index % 2}/image{index}.jpg"


def hand_type(index: int) -> str:
    """Every fourth shows a single hand, whatever is annotated of the other."""
    return "right" if index % 4 == 0 else "interacting"


def take(tree, rows):
    """`rows` of the samples of targets or predictions."""
    if tree is None:
        return None
    return tree[rows] if isinstance(tree, torch.Tensor) else type(tree)(*(take(item, rows) for item in tree))


def scored(targets: Targets, hands: PredictedHands, *batches: list[int], size: int = SIZE, **options) -> Tally:
    scorer = Scorer(ONE_HOT, size, options.pop("sample_id", sample_id), options.pop("hand_type", hand_type), **options)
    for batch in batches:
        rows = torch.tensor(batch)
        scorer.add(take(hands, rows), take(targets, rows), rows)
    return scorer.tally


@pytest.fixture(scope="module")
def case() -> tuple[Targets, PredictedHands]:
    """Thirty samples with holes: hands without mesh, without wrist, single joints not annotated, one collapsed."""
    targets, hands = random_hands(SIZE, 0)
    rng = np.random.default_rng(1)
    targets.joints_annotated_valid[:] = torch.from_numpy((rng.random((SIZE, 2, 21)) < 0.9).astype(float))
    targets.vertices_valid[[3, 7], 0] = 0
    for valid in (targets.vertices_valid, targets.joints_valid, targets.joints_annotated_valid):
        valid[12, 1] = 0
    targets.relative_valid[12] = 0
    return targets, hands


@pytest.fixture(scope="module")
def whole(case) -> dict:
    return plain_scores(scored(*case, list(range(SIZE))))


# ---------------------------------------------------------------- against all rows at once, in numpy

def all_errors(name: str, targets: Targets, hands: PredictedHands) -> dict[str, np.ndarray]:
    """Joint (N, 2, 21) and vertex (N, 2) errors and the relative one (N,), NaN where not scored, written out anew."""
    tips = INTERWILD_TIP_VERTICES if name.startswith("interwild") else TIP_VERTICES
    fingers = ("thumb", "index", "middle", "ring", "pinky")
    rows = [MODEL16.index("wrist")]
    for finger, tip in zip(fingers, tips, strict=True):
        rows += [*(MODEL16.index(f"{finger}{k}") for k in (1, 2, 3)), tip]
    true_mesh, mesh = targets.vertices.numpy(), hands.vertices.numpy()
    mask = targets.joints_annotated_valid.numpy() * targets.joints_annotated_valid.numpy()[..., :1]
    has_mesh = targets.vertices_valid.numpy() > 0
    root = MIDDLE_MCP if name in ("intaghand", "eanet") else WRIST
    annotated = name in ("interwild", "internet")
    joints, vertices = np.full((SIZE, 2, 21), np.nan), np.full((SIZE, 2), np.nan)
    relative = np.full(SIZE, np.nan)
    for n in range(SIZE):
        for h in range(2):
            g = targets.joints_annotated.numpy()[n, h] if annotated else true_mesh[n, h, rows]
            p = mesh[n, h, rows]
            ratio = 1.0
            if name in ("lgnet", "intaghand", "eanet"):
                ratio = np.linalg.norm(g[9] - g[0]) / np.linalg.norm(p[9] - p[0])
            for j in range(21):
                if (mask[n, h, j] if annotated else has_mesh[n, h]) and (name != "eanet" or mask[n, h, j]):
                    joints[n, h, j] = 1000 * np.linalg.norm(ratio * (p[j] - p[root]) - (g[j] - g[root]))
            if has_mesh[n, h]:
                t = true_mesh[n, h]
                delta = ratio * (mesh[n, h] - p[root]) - (t - t[rows[root]])
                vertices[n, h] = 1000 * np.mean(np.sqrt((delta**2).sum(axis=1)))
        known = mask[n, :, 0].all() if annotated else has_mesh[n].all()
        if known:
            where = targets.joints_annotated.numpy()[n, :, 0]
            relative[n] = 1000 * np.linalg.norm(hands.relative.numpy()[n] - (where[1] - where[0]))
    return {"joints": joints, "vertices": vertices, "relative": relative}


def counted_meshes(name: str, errors: np.ndarray, targets: Targets) -> np.ndarray:
    """Of mesh errors (N, 2) those that the peer counts, NaN for the others: of single samples the right hand's."""
    wrist = targets.joints_annotated_valid.numpy()[..., 0] > 0
    counted = errors.copy()
    for n in range(SIZE):
        shown = (True, n % 4 != 0)
        if name == "interwild":
            counted[n] = [error if shown[h] and wrist[n, h] else np.nan for h, error in enumerate(errors[n])]
        elif name == "eanet":
            kept = [error if shown[h] else np.nan for h, error in enumerate(errors[n])]
            complete = all(not np.isnan(kept[h]) for h in (0, 1) if shown[h]) and wrist[n].any()
            counted[n] = kept if complete else np.nan
    return counted


@every_protocol
def test_streamed_sums_are_the_averages_over_all_rows(name: str, case, whole):
    errors, found = all_errors(name, *case), whole["protocols"][name]
    joints = errors["joints"]
    per_joint, single = np.nanmean(joints, axis=0), np.arange(SIZE) % 4 == 0
    weighed = {"internet": per_joint}.get(name, np.stack([np.nanmean(joints[single], axis=0),
                                                          np.nanmean(joints[~single], axis=0)]))
    flat = name in ("lgnet", "intaghand")
    assert found["mpjpe"] == pytest.approx(np.nanmean(joints) if flat else weighed.mean(), abs=1e-9)
    assert found.get("mpjpe_pooled", per_joint.mean()) == pytest.approx(per_joint.mean(), abs=1e-9)
    rest = [j for j in range(21) if j != (MIDDLE_MCP if name in ("intaghand", "eanet") else WRIST)]
    assert found["mpjpe_no_root"] == pytest.approx(
        np.nanmean(joints[..., rest]) if flat else weighed[..., rest].mean(), abs=1e-9)
    pairs = ~single if name in ("internet", "interwild_mesh") else np.ones(SIZE, dtype=bool)
    assert found["mrrpe"] == pytest.approx(np.nanmean(errors["relative"][pairs]), abs=1e-9)
    if name != "internet":
        meshes = counted_meshes(name, errors["vertices"], case[0])
        of_samples = np.nanmean([np.nanmean(hands) for hands in meshes if not np.isnan(hands).all()])
        assert found["mpvpe"] == pytest.approx(of_samples if name == "eanet" else np.nanmean(meshes), abs=1e-9)
        assert found.get("mpvpe_pooled", np.nanmean(meshes)) == pytest.approx(np.nanmean(meshes), abs=1e-9)
        assert found["counts"]["mpvpe"] == (~np.isnan(meshes)).sum()
    for hand in Hand:
        assert list(found["hands"][hand.label]["joints"].values()) == pytest.approx(per_joint[hand], abs=1e-9)
    assert found["counts"]["mpjpe"] == (~np.isnan(joints)).sum()


@every_protocol
@pytest.mark.parametrize("options", [PckOptions(), PckOptions(exclude_root=True), PckOptions(strict=True)], ids=str)
def test_the_curve_is_the_share_of_all_joints_within_each_threshold(name: str, options: PckOptions, case):
    tally = scored(*case, list(range(SIZE)), pck=options)
    joints = all_errors(name, *case)["joints"]
    if options.exclude_root:
        joints = np.delete(joints, MIDDLE_MCP if name in ("intaghand", "eanet") else WRIST, axis=2)
    pooled = joints[~np.isnan(joints)]
    inside = np.less if options.strict else np.less_equal
    curve = tally.pck_curve(PROTOCOLS[name])
    # an error of 0 is 1e-15 in one of the two computations
    expected = [inside(np.where(pooled < 1e-9, 0, pooled), t).mean() for t in THRESHOLDS]
    np.testing.assert_allclose(curve.share[1:], expected[1:], atol=1e-12)
    assert curve.auc == pytest.approx(100 * np.clip(1 - pooled / 50, 0, None).mean(), abs=1e-9)
    assert curve.count == pooled.size
    assert (curve.low <= curve.share).all() and (curve.share <= curve.high).all()


# ---------------------------------------------------------------- however the samples come

orders = st.permutations(range(SIZE))
cuts = st.lists(st.integers(1, SIZE - 1), max_size=4, unique=True).map(sorted)


@settings(max_examples=10, deadline=None)
@given(order=orders, cuts=cuts)
def test_order_and_batches_change_nothing(case, whole, order, cuts):
    batches = [part.tolist() for part in np.split(np.array(order), cuts)]
    assert_same(plain_scores(scored(*case, *batches)), whole)


@settings(max_examples=10, deadline=None)
@given(order=orders, ranks=st.integers(2, 4))
def test_processes_merge_to_the_scores_of_one(case, whole, order, ranks):
    parts = [scored(*case, *([index] for index in order[rank::ranks])) for rank in range(ranks)]
    assert_same(plain_scores(Tally.merged(parts)), whole)


def test_merging_keeps_the_rows_of_every_process(case):
    parts = [scored(*case, list(range(rank, SIZE, 3))) for rank in range(3)]
    alone, together = scored(*case, list(range(SIZE))), Tally.merged(parts)
    names = [list(tally.recordings) for tally in (alone, together)]
    for one, other in zip(alone.samples(), together.samples(), strict=True):
        assert names[0][one["recording"]] == names[1][other["recording"]]
        for column in one.dtype.names:
            if column != "recording":
                np.testing.assert_array_equal(one[column], other[column])
    for column in ("rotation_asymmetry", "joint_asymmetry", "hand_distance"):
        curves = [tally.binned(PROTOCOLS["lgnet"], column) for tally in (alone, together)]
        for one, other in zip(*curves, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-9)


def test_merging_adds_up_what_failed_and_what_is_missing(case):
    targets, hands = case
    broken, predicted = hands.vertices.clone(), torch.ones(SIZE, 2, dtype=torch.bool)
    broken[[1, 2, 4]] = torch.nan
    predicted[[3, 6, 8, 9], 0] = False
    hands = hands._replace(vertices=broken, predicted=predicted)
    tally = Tally.merged([scored(targets, hands, list(range(rank, 20, 2))) for rank in range(2)])
    counts = plain_scores(tally, allow_missing=True)["counts"]
    assert (counts["not_finite"], counts["missing_hands"], counts["missing"], counts["samples"]) == (3, 4, 10, 20)


def test_merging_leaves_the_parts_as_they_were(case):
    parts = [scored(*case, list(range(rank, SIZE, 2))) for rank in range(2)]
    before = copy.deepcopy(parts)
    Tally.merged(parts)
    for part, other in zip(parts, before, strict=True):
        assert part.sums.keys() == other.sums.keys()
        assert all(np.array_equal(part.sums[key], other.sums[key]) for key in part.sums)
        assert [rows.tobytes() for rows in part.parts] == [rows.tobytes() for rows in other.parts]


def test_a_sample_that_comes_twice_counts_once(case, whole):
    order = [*range(SIZE), 4, 0, 4]
    assert_same(plain_scores(scored(*case, order)), whole)
    assert_same(plain_scores(scored(*case, order[:10], order[5:])), whole)


def test_a_sample_that_two_processes_scored_is_our_mistake(case):
    with pytest.raises(RuntimeError, match="same sample"):
        Tally.merged([scored(*case, [0, 1]), scored(*case, [1, 2])])


def test_a_set_that_is_there_twice_has_the_same_means(case, whole):
    """Every sample under two indices, in the same recordings."""
    targets, hands = case
    double = [i % SIZE for i in range(2 * SIZE)]
    tally = scored(take(targets, double), take(hands, double), list(range(2 * SIZE)), size=2 * SIZE,
                   sample_id=lambda index: sample_id(index % SIZE), hand_type=lambda index: hand_type(index % SIZE))
    twice = plain_scores(tally)
    for name, scores in twice["protocols"].items():
        assert_same({key: value for key, value in scores.items() if key in ("mpjpe", "mpvpe", "mrrpe", "auc", "rrve",
                                                                            "interval_95", "mean_scale")},
                    {key: value for key, value in whole["protocols"][name].items()
                     if key in ("mpjpe", "mpvpe", "mrrpe", "auc", "rrve", "interval_95", "mean_scale")})
        assert scores["counts"]["mpjpe"] == 2 * whole["protocols"][name]["counts"]["mpjpe"]


# ---------------------------------------------------------------- what is missing or broken

def test_missing_samples_fail_unless_they_are_allowed(case):
    tally = scored(*case, list(range(20)))
    with pytest.raises(UserError, match=r"10 of 30 samples have no prediction \(the first is number 20\)"):
        plain_scores(tally)
    allowed = plain_scores(tally, allow_missing=True)
    assert (allowed["counts"]["samples"], allowed["counts"]["missing"]) == (20, 10)


def test_hands_that_are_not_predicted_fail_unless_they_are_allowed(case):
    targets, hands = case
    predicted = torch.ones(SIZE, 2, dtype=torch.bool)
    predicted[[5, 12], 1] = False           # the left hand of 12 is not annotated: nobody misses it
    tally = scored(targets, hands._replace(predicted=predicted), list(range(SIZE)))
    with pytest.raises(UserError, match="1 annotated hands of the others have none"):
        plain_scores(tally)
    allowed, full = plain_scores(tally, allow_missing=True), plain_scores(scored(*case, list(range(SIZE))))
    assert allowed["counts"]["missing_hands"] == 1
    assert allowed["protocols"]["lgnet"]["counts"]["mpjpe"] == full["protocols"]["lgnet"]["counts"]["mpjpe"] - 21


@pytest.mark.parametrize("field", ["vertices", "relative"])
def test_samples_that_are_not_finite_are_counted_and_never_improve_a_mean(case, field: str):
    targets, hands = case
    broken = getattr(hands, field).clone()
    broken[9].view(-1)[0] = torch.nan
    summary = plain_scores(scored(targets, hands._replace(**{field: broken}), list(range(SIZE))))
    for name, scores in summary["protocols"].items():
        spoiled = {"vertices": "mpjpe", "relative": "mrrpe"}[field]
        assert scores["counts"]["not_finite"] == 1
        assert scores[spoiled] == math.inf and scores["interval_95"][spoiled] is None, name
        assert scores["auc"] is not None and scores["auc"] < 100


def test_what_a_model_says_of_hands_it_was_not_asked_about_is_no_failure(case):
    targets, hands = case
    broken = hands.vertices.clone()
    broken[9, 0] = torch.nan
    predicted = torch.ones(SIZE, 2, dtype=torch.bool)
    predicted[9, 0] = False
    hands = hands._replace(vertices=broken, predicted=predicted)
    summary = plain_scores(scored(targets, hands, list(range(SIZE))), allow_missing=True)
    assert summary["counts"]["not_finite"] == 0 and math.isfinite(summary["protocols"]["lgnet"]["mpjpe"])


def test_a_set_that_annotates_nothing_scores_nothing(case):
    targets, hands = case
    empty = targets._replace(**{name: torch.zeros_like(getattr(targets, name)) for name in Targets._fields
                                if name.endswith("_valid")})
    summary = plain_scores(scored(empty, hands, list(range(SIZE))))
    text = json.dumps(summary, allow_nan=False)
    for scores in summary["protocols"].values():
        assert scores["mpjpe"] is scores["mrrpe"] is scores["auc"] is scores["mean_scale"] is None
        assert scores["counts"]["mpjpe"] == scores["counts"]["mrrpe"] == 0
    assert "NaN" not in text
    assert scored(empty, hands, list(range(SIZE))).binned(PROTOCOLS["lgnet"], "hand_distance") is None


def test_scores_are_plain_json(whole):
    assert json.loads(json.dumps(whole, allow_nan=False)) == whole


def test_a_result_is_read_as_it_was_written(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(plain_result(12.5, config={"output": "here"}) | {"epoch": 3}))
    result = read_result(tmp_path / "metrics.json")
    assert (result.printed.mpjpe, result.config, result.counts.unusable) == (12.5, {"output": "here"}, 0)
    assert result.printed.rrve is UNSET and result.protocols["interwild"].rrve is None


@pytest.mark.parametrize(("text", "said"), [("{", "truncated"), ("{}", "missing required field `protocols`"),
                                            (None, "No such file")])
def test_what_is_no_result_is_refused_by_name(tmp_path, text: str | None, said: str):
    path = tmp_path / "metrics.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=f"(?s){path} is not what test.py writes: .*{said}"):
        read_result(path)


# ---------------------------------------------------------------- recordings and intervals

def test_the_folder_above_the_cameras_names_the_recording(case):
    names = {"Capture3/0390_dh_touchROM/cam400026/image69148.jpg": "Capture3/0390_dh_touchROM",
             "01/1/rgb/000.png": "01/1"}
    for name, recording in names.items():
        assert list(scored(*case, [0], sample_id=lambda index, name=name: name).recordings) == [recording]


def test_names_without_folders_leave_blocks_of_neighbours(case):
    tally = scored(*case, [0, 1, 2, 27], size=3000, sample_id=lambda index: f"image{index}.jpg")
    codes = tally.samples()["recording"].tolist()
    assert codes[0] == codes[1] == codes[2] != codes[3]


def vertex_table(errors: np.ndarray) -> np.ndarray:
    """Sums (G, 3, F) of recordings (G, n) whose samples have one vertex error each."""
    rows = np.zeros((len(errors), 3, NUM_SUMS))
    named = unpack(rows)
    named.samples[:, 2] = errors.shape[1]
    named.vertices[:, 2, 0] = errors.sum(axis=1)
    named.vertices_n[:, 2, 0] = errors.shape[1]
    return rows


def interval(errors: np.ndarray, seed: int = 0) -> list[float]:
    groups = len(errors)
    resamples = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), 1000).astype(float)
    return plain_protocol(PROTOCOLS["lgnet"], vertex_table(errors), resamples)["interval_95"]["mpvpe"]


def test_the_interval_of_a_mean_has_the_width_of_the_normal_one():
    errors = np.random.default_rng(0).normal(20, 5, (400, 1))
    low, high = interval(errors)
    assert high - low == pytest.approx(2 * 1.96 * errors.std() / 20, rel=0.1)
    assert low < errors.mean() < high


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    intervals = [interval(rng.normal(20, 5, (60, 1)), seed) for seed in range(150)]
    assert 0.90 <= np.mean([low <= 20 <= high for low, high in intervals]) <= 0.98


def test_frames_of_a_recording_are_not_taken_for_independent_ones():
    """Ten equal frames in each of 40 recordings say as much as one."""
    single = np.random.default_rng(2).normal(20, 5, (40, 1))
    assert interval(np.repeat(single, 10, axis=1)) == pytest.approx(interval(single), abs=1e-9)
    low, high = interval(np.repeat(single, 10, axis=1))
    assert high - low > 2.5 * 2 * 1.96 * single.std() / 20      # what 400 independent frames would seem to say


def test_one_recording_has_no_interval(case):
    summary = plain_scores(scored(*case, list(range(SIZE)), sample_id=lambda index: "a/b/c/d.jpg"))
    assert summary["protocols"]["lgnet"]["interval_95"] is None and summary["counts"]["recordings"] == 1


def test_intervals_are_the_same_each_time_and_hold_the_mean(case, whole):
    assert plain_scores(scored(*case, list(range(SIZE)))) == whole
    for scores in whole["protocols"].values():
        for figure, (low, high) in ((key, pair) for key, pair in scores["interval_95"].items() if pair):
            assert low <= scores[figure] <= high
    assert whole["intervals"]["resampled"] == "recordings"


# ---------------------------------------------------------------- rows of samples

def test_rows_hold_each_samples_own_means(case):
    samples = scored(*case, list(range(SIZE))).samples()
    for number, name in enumerate(PROTOCOLS):
        errors = all_errors(name, *case)
        with np.errstate(invalid="ignore"):
            count = (~np.isnan(errors["joints"])).sum(axis=-1)
            np.testing.assert_allclose(samples["mpjpe"][:, number], np.nansum(errors["joints"], axis=-1) / count,
                                       rtol=1e-6)
        np.testing.assert_array_equal(samples["joints_n"][:, number], count)
        relative = errors["relative"].copy()
        if name in ("internet", "interwild_mesh"):
            relative[::4] = np.nan
        np.testing.assert_allclose(samples["mrrpe"][:, number], relative, rtol=1e-6)
        if name != "internet":
            np.testing.assert_allclose(samples["mpvpe"][:, number],
                                       counted_meshes(name, errors["vertices"], case[0]), rtol=1e-6)


def test_a_row_takes_as_few_bytes_as_promised(case):
    import common.score.tally
    tally = scored(*case, list(range(SIZE)))
    per_sample = tally.samples().itemsize + tally.scored.itemsize
    assert f"Memory: {per_sample} bytes for each sample" in common.score.tally.__doc__
    assert len(tally.sums) == 2 * 5 and next(iter(tally.sums.values())).nbytes < 19_000
