"""Other programs' forms of two hands: every convention applied once, nothing lost on the way there and back."""

import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from fixtures_interhand import skin
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from common.errors import UserError
from common.exchange.conversion import (
    Matrices,
    Points,
    common_wrists,
    from_matrices,
    from_points,
    mirrored_left,
    to_matrices,
    to_points,
    wrist_relative_meshes,
)
from common.exchange.interwild import read_interwild, write_interwild
from common.exchange.predictions import Predictions
from common.hands import INTERHAND21, MANO21, WRIST, Hand, joint_regressor
from common.mano.load import load_hand_model
from common.mano.model import ManoLayer
from common.mano.pose import pose_from_rotations, rotations_from_pose

MODEL = load_hand_model("builtin")
LAYER = ManoLayer(MODEL)
MEAN = MODEL.mean_pose.double().numpy()                                     # (2, 45)
WRIST_ROW = joint_regressor(MODEL.regressor.double())[:, WRIST].numpy()     # (2, 778)
MIRROR = np.array([-1.0, 1.0, 1.0])
NAMES = np.array(["Capture0/a/cam1/image3.jpg", "Capture0/a/cam2/image3.jpg"])
BOTH = np.ones((2, 2), dtype=bool)
FAST = settings(max_examples=20, deadline=None)


def numbers(*shape: int, limit: float) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float64, shape, elements=st.floats(-limit, limit, width=32))


POSES = numbers(2, 2, 48, limit=1.0)        # with the mean pose below half a turn, so that axis-angles are unique
SHAPES = numbers(2, 2, 10, limit=2.0)
PLACES = numbers(2, 2, 3, limit=2.0)
PRESENT = arrays(np.bool_, (2, 2)).filter(lambda present: present.any(axis=1).all())


def random_matrices(seed: int = 0, predicted: np.ndarray = BOTH) -> Matrices:
    rng = np.random.default_rng(seed)
    poses, shapes, places = rng.normal(0, 0.4, (2, 2, 48)), rng.normal(size=(2, 2, 10)), rng.normal(0, 0.5, (2, 2, 3))
    return Matrices(NAMES, predicted, rotations_from_pose(poses, MEAN), shapes, places)


def assert_same(found: tuple, expected: tuple, where: np.ndarray = BOTH, atol: float = 1e-9) -> None:
    """Every field agrees; fields of single hands only `where` the hand is predicted."""
    for name, values in expected._asdict().items():
        other = getattr(found, name)
        if values is None or name in ("image", "predicted"):
            np.testing.assert_array_equal(other, values, err_msg=name)
            continue
        if name not in ("relative", "right_wrist"):
            values, other = values[where], other[where]
        np.testing.assert_allclose(other, values, atol=atol, rtol=0, err_msg=name)


def in_common_frame(predictions: Predictions) -> np.ndarray:
    """Meshes (N, 2, 778, 3) where the predictions say that they are."""
    return wrist_relative_meshes(predictions, LAYER) + common_wrists(predictions)[:, :, None]


def skinned(hand: Hand, rotations: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """The mesh (778, 3) of rotations (16, 3, 3) by the numpy skinning of the fixtures."""
    return skin(MODEL, hand, Rotation.from_matrix(rotations).as_rotvec(), shape)


# ---------------------------------------------------------------- poses

@FAST
@given(POSES)
def test_a_pose_survives_the_way_to_rotations_and_back(poses):
    np.testing.assert_allclose(pose_from_rotations(rotations_from_pose(poses, MEAN), MEAN), poses, atol=1e-9)


def test_the_mean_pose_goes_to_the_fingers_once_and_never_to_the_root():
    rotations = rotations_from_pose(np.zeros((1, 2, 48)), MEAN)
    found = Rotation.from_matrix(rotations.reshape(-1, 3, 3)).as_rotvec().reshape(2, 48)
    np.testing.assert_array_equal(found[:, :3], 0)
    np.testing.assert_allclose(found[:, 3:], MEAN, atol=1e-12)
    assert np.abs(MEAN).max() > 0.1     # a mean pose of nothing would hide a mistake


# ---------------------------------------------------------------- rotation matrices and their translation

@FAST
@given(POSES, SHAPES, PLACES, PRESENT, st.sampled_from(["m", "mm"]), st.sampled_from(["wrist", "mano"]))
def test_matrices_come_back_as_they_were(poses, shapes, places, predicted, unit, pivot):
    places = np.where(predicted[..., None], places, np.nan)     # anything may stand where there is no hand
    form = Matrices(NAMES, predicted, rotations_from_pose(poses, MEAN), shapes, places)
    predictions = from_matrices(form, MODEL, unit=unit, pivot=pivot)
    assert_same(to_matrices(predictions, MODEL, unit=unit, pivot=pivot), form, where=predicted)


def test_the_translation_of_the_wrist_is_where_the_regressed_wrist_ends_up():
    form = random_matrices()
    predictions = from_matrices(form, MODEL, unit="m", pivot="wrist")
    for row, hand in np.ndindex(2, 2):
        posed = skinned(Hand(hand), form.rotations[row, hand], form.shape[row, hand])
        expected = posed - WRIST_ROW[hand] @ posed + form.translation[row, hand]
        np.testing.assert_allclose(in_common_frame(predictions)[row, hand], expected, atol=1e-6)


def test_the_translation_of_mano_is_added_to_the_mesh_as_it_is_posed():
    form = random_matrices()
    predictions = from_matrices(form, MODEL, unit="m", pivot="mano")
    for row, hand in np.ndindex(2, 2):
        posed = skinned(Hand(hand), form.rotations[row, hand], form.shape[row, hand])
        np.testing.assert_allclose(in_common_frame(predictions)[row, hand], posed + form.translation[row, hand],
                                   atol=1e-6)


def test_parameters_moved_to_another_camera_give_the_moved_hands():
    """MANO turns about the resting wrist joint J0: root' = R·root and trans' = R·(J0 + trans) + t − J0."""
    form = random_matrices()
    turn, shift = Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix(), np.array([0.1, -0.2, 1.0])
    moved = form._replace(rotations=form.rotations.copy(), translation=form.translation.copy())
    for row, hand in np.ndindex(2, 2):
        shaped = MODEL.template[hand].double().numpy() + MODEL.shapedirs[hand].double().numpy() @ form.shape[row, hand]
        pivot = MODEL.regressor[hand, 0].double().numpy() @ shaped
        moved.rotations[row, hand, 0] = turn @ form.rotations[row, hand, 0]
        moved.translation[row, hand] = turn @ (pivot + form.translation[row, hand]) + shift - pivot
    before, after = (in_common_frame(from_matrices(each, MODEL, unit="m", pivot="mano")) for each in (form, moved))
    np.testing.assert_allclose(after, before @ turn.T + shift, atol=2e-6)


def test_millimetres_are_a_thousandth_of_metres():
    form = random_matrices()
    in_mm = form._replace(translation=form.translation * 1000)
    expected = from_matrices(form, MODEL, unit="m", pivot="mano")
    assert_same(from_matrices(in_mm, MODEL, unit="mm", pivot="mano"), expected)


# ---------------------------------------------------------------- meshes and joints

@FAST
@given(arrays(np.float64, (2, 2, 30), elements=st.floats(-0.25, 0.25, width=32)), PLACES, PRESENT,
       st.sampled_from(["m", "mm"]), st.sampled_from(["mano21", "interhand21"]), st.sampled_from(["wrist", "camera"]),
       st.sampled_from([("vertices",), ("joints",), ("vertices", "joints")]))
def test_points_come_back_as_they_were(noise, places, predicted, unit, order, frame, kinds):
    meshes = MODEL.template.double().numpy() + np.resize(noise, (2, 2, 778, 3)) + places[:, :, None]
    joints = np.resize(noise, (2, 2, 21, 3)) + places[:, :, None]
    meshes[~predicted] = joints[~predicted] = np.nan
    form = Points(NAMES, predicted, meshes if "vertices" in kinds else None, joints if "joints" in kinds else None,
                  places[:, 0] if frame == "wrist" else None)
    predictions = from_points(form, MODEL, unit=unit, order=order, frame=frame)
    assert_same(to_points(predictions, MODEL, unit=unit, order=order, frame=frame), form, where=predicted)


def test_joints_are_reordered_by_name():
    numbered = np.tile(np.arange(21.0)[:, None], (2, 2, 1, 3))
    form = Points(NAMES, BOTH, None, numbered, None)
    joints = from_points(form, MODEL, unit="m", order="interhand21", frame="wrist").joints
    for name in MANO21.names:
        assert (joints[:, :, MANO21.index(name)] == INTERHAND21.index(name)).all(), name
    assert (joints[:, :, WRIST] == 20).all() and (joints[:, :, 4] == 0).all()     # thumb tip first in the files


def test_points_in_the_camera_frame_are_moved_to_the_wrists_and_say_how_these_lie():
    meshes = np.stack([MODEL.template.double().numpy()] * 2) + np.array([0.1, 0.2, 1.0])
    meshes[:, Hand.LEFT] += [0.3, 0.0, -0.1]
    wrists = np.einsum("hv,nhvc->nhc", WRIST_ROW, meshes)
    found = from_points(Points(NAMES, BOTH, meshes * 1000, None, None), MODEL, unit="mm", order="mano21",
                        frame="camera")
    np.testing.assert_allclose(np.einsum("hv,nhvc->nhc", WRIST_ROW, found.vertices), 0, atol=1e-8)
    np.testing.assert_allclose(found.vertices, meshes - wrists[:, :, None], atol=1e-9)
    np.testing.assert_allclose(found.relative, wrists[:, Hand.LEFT] - wrists[:, Hand.RIGHT], atol=1e-9)
    np.testing.assert_allclose(found.right_wrist, wrists[:, Hand.RIGHT], atol=1e-9)


def test_each_hand_has_a_wrist_of_its_own():
    """MANO's two regressors differ; here the left wrist is the left hand's first vertex."""
    regressor = MODEL.regressor.clone()
    regressor[Hand.LEFT, 0] = 0
    regressor[Hand.LEFT, 0, 0] = 1
    model = dataclasses.replace(MODEL, regressor=regressor)
    meshes = np.stack([MODEL.template.double().numpy()] * 2)
    found = from_points(Points(NAMES, BOTH, meshes, None, None), model, unit="m", order="mano21", frame="camera")
    wrists = np.stack([WRIST_ROW[Hand.RIGHT] @ meshes[0, Hand.RIGHT], meshes[0, Hand.LEFT, 0]])
    np.testing.assert_allclose(common_wrists(found), np.stack([wrists, wrists]), atol=1e-9)
    form = random_matrices()
    predictions = from_matrices(form, model, unit="m", pivot="mano")
    posed = wrist_relative_meshes(predictions, ManoLayer(model))
    np.testing.assert_allclose(posed[:, Hand.LEFT, 0], 0, atol=1e-7)


def test_the_type_of_the_numbers_is_kept():
    meshes = np.stack([MODEL.template.numpy()] * 2)
    assert meshes.dtype == np.float32
    found = from_points(Points(NAMES, BOTH, meshes, None, None), MODEL, unit="m", order="mano21", frame="camera")
    back = to_points(found, MODEL, unit="m", order="mano21", frame="camera")
    assert (found.vertices.dtype, back.vertices.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(back.vertices, meshes, atol=1e-7)


def test_parameters_alone_are_posed_when_points_are_written():
    predictions = from_matrices(random_matrices(), MODEL, unit="m", pivot="wrist")
    points = to_points(predictions, MODEL, unit="m", order="mano21", frame="camera")
    np.testing.assert_allclose(points.vertices, in_common_frame(predictions), atol=1e-9)


def test_what_is_not_known_is_not_made_up():
    joints = Predictions(NAMES, BOTH, joints=np.zeros((2, 2, 21, 3)))
    with pytest.raises(UserError, match="hold no 'relative'"):
        to_points(joints, MODEL, unit="m", order="mano21", frame="camera")
    with pytest.raises(UserError, match="hold no 'rotations' and 'shape'"):
        to_matrices(joints, MODEL, unit="m", pivot="wrist")


# ---------------------------------------------------------------- mirrors

def test_a_left_hand_seen_in_a_mirror_is_posed_as_the_mirrored_right_hand():
    """What a model for right hands gives for a mirrored left hand: the right hand's parameters and place."""
    form = random_matrices()
    as_right = form._replace(**{name: getattr(form, name)[:, [0, 0]] for name in ("rotations", "shape", "translation")})
    for pivot in ("wrist", "mano"):
        meshes = in_common_frame(from_matrices(mirrored_left(as_right), MODEL, unit="m", pivot=pivot))
        np.testing.assert_allclose(meshes[:, Hand.LEFT], meshes[:, Hand.RIGHT] * MIRROR, atol=1e-6)


def test_two_mirrors_are_none():
    form = random_matrices()
    assert_same(mirrored_left(mirrored_left(form)), form)
    points = Points(NAMES, BOTH, np.random.default_rng(0).normal(size=(2, 2, 778, 3)), None, np.ones((2, 3)))
    once = mirrored_left(points)
    np.testing.assert_array_equal(once.vertices[:, Hand.RIGHT], points.vertices[:, Hand.RIGHT])
    np.testing.assert_array_equal(once.vertices[:, Hand.LEFT], points.vertices[:, Hand.LEFT] * MIRROR)
    assert_same(mirrored_left(once), points)


# ---------------------------------------------------------------- InterWild's files

def interwild_file(pose: np.ndarray, shape: np.ndarray, place: np.ndarray) -> dict:
    """The keys that InterWild's demo writes, and no others."""
    return {"root_pose": pose[:3].tolist(), "hand_pose": pose[3:].tolist(), "shape": shape.tolist(),
            "root_trans": place.tolist()}


def write_files(folder: Path, poses: np.ndarray, shapes: np.ndarray, places: np.ndarray) -> None:
    for hand in Hand:
        content = interwild_file(poses[hand], shapes[hand], places[hand])
        (folder / f"image_{hand.label}.json").write_text(json.dumps(content))


@FAST
@given(POSES, SHAPES, PLACES, PRESENT)
def test_interwild_files_come_back_as_they_were(poses, shapes, places, predicted):
    form = Matrices(NAMES, predicted, rotations_from_pose(poses, MEAN), shapes, places)
    predictions = from_matrices(form, MODEL, unit="m", pivot="wrist")
    with tempfile.TemporaryDirectory() as folder:
        assert write_interwild(Path(folder), predictions, MODEL) == predicted.sum()
        for row, hand in np.argwhere(predicted).tolist():
            path = Path(folder) / f"{NAMES[row].removesuffix('.jpg')}_{Hand(hand).label}.json"
            expected = interwild_file(poses[row, hand], shapes[row, hand], places[row, hand])
            content = json.loads(path.read_text())
            for key, values in expected.items():
                np.testing.assert_allclose(content[key], values, atol=1e-9, rtol=0, err_msg=key)
        back = read_interwild(Path(folder), MODEL)
    order = np.argsort(back.image)
    back = Predictions(*(None if column is None else column[order] for column in back))
    assert_same(to_matrices(back, MODEL, unit="m", pivot="wrist"), form, where=predicted)


def test_an_interwild_pair_is_posed_as_its_convention_says(tmp_path):
    """Mean pose added, hand posed, its regressed wrist moved to root_trans: by the skinning of the fixtures."""
    rng = np.random.default_rng(0)
    poses, shapes = rng.normal(0, 0.4, (2, 48)), rng.normal(size=(2, 10))
    places = np.array([[0, 0, 0], [0.08587, -0.00389, -0.01150]])
    write_files(tmp_path, poses, shapes, places)
    predictions = read_interwild(tmp_path, MODEL)
    assert predictions.image.tolist() == ["image.jpg"]
    np.testing.assert_allclose(predictions.relative, [places[1]], atol=1e-12)
    for hand in Hand:
        posed = skin(MODEL, hand, (poses[hand] + np.r_[0, 0, 0, MEAN[hand]]).reshape(16, 3), shapes[hand])
        expected = posed - WRIST_ROW[hand] @ posed + places[hand]
        np.testing.assert_allclose(in_common_frame(predictions)[0, hand], expected, atol=1e-6)


@FAST
@given(POSES, SHAPES, PLACES)
def test_mirrored_files_are_mirrored_hands(poses, shapes, places):
    """Right and left swapped, axis-angles (x, −y, −z), places (−x, y, z): the meshes are the mirror image."""
    signs = np.tile([1.0, -1.0, -1.0], 16)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        write_files(Path(first), poses[0], shapes[0], places[0])
        write_files(Path(second), poses[0, ::-1] * signs, shapes[0, ::-1], places[0, ::-1] * MIRROR)
        meshes, mirrored = (in_common_frame(read_interwild(Path(folder), MODEL)) for folder in (first, second))
    np.testing.assert_allclose(mirrored, meshes[:, ::-1] * MIRROR, atol=1e-6)


def test_a_missing_file_is_a_hand_that_is_not_predicted_and_a_failed_hand_has_no_file(tmp_path):
    form = random_matrices(predicted=np.array([[True, False], [True, True]]))
    form.shape[1, Hand.LEFT] = np.nan
    predictions = from_matrices(form, MODEL, unit="m", pivot="wrist")
    assert write_interwild(tmp_path, predictions, MODEL) == 2
    assert read_interwild(tmp_path, MODEL).predicted.tolist() == [[True, False], [True, False]]


@pytest.mark.parametrize(("change", "message"), [
    ({"hand_pose": [0.0] * 44}, "'hand_pose' is"), ({"shape": None}, "'shape' is None"),
    ({"root_pose": [0, 0, float("nan")]}, "'root_pose' is"), ({"root_trans": [0, 0, 10**400]}, "'root_trans' is"),
    ({"root_trans": ["0", 0, 0]}, "'root_trans' is"), ({"root_trans": [True, 0, 0]}, "'root_trans' is"),
    ({"hand": "left"}, "'hand' is 'left'"), ({"image": 3}, "'image' is 3"),
    ({"hand_model": {"name": "mano", "sha256": "0" * 64}}, "made with the hand model 'mano'"),
])
def test_a_wrong_file_is_named_with_its_key(tmp_path, change, message):
    write_files(tmp_path, np.zeros((2, 48)), np.zeros((2, 10)), np.zeros((2, 3)))
    path = tmp_path / "image_right.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError) as caught:
        read_interwild(tmp_path, MODEL)
    assert str(path) in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", "[" * 100_000, "\udcff"])
def test_what_is_not_a_parameter_file_is_refused(tmp_path, text):
    (tmp_path / "image_right.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match="image_right.json"):
        read_interwild(tmp_path, MODEL)


def test_samples_cannot_be_written_outside_of_the_folder(tmp_path):
    for name in ("../image.jpg", "/tmp/image.jpg"):
        form = random_matrices()._replace(image=np.array([name, "b.jpg"]))
        with pytest.raises(UserError, match="outside"):
            write_interwild(tmp_path / "out", from_matrices(form, MODEL, unit="m", pivot="wrist"), MODEL)
