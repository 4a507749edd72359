"""One view of a frame is one picture: crop, camera, points, parameters and masks move together."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fixtures_interhand import skin
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from common.geometry import crop_affine, project, square_box
from common.hands import WRIST, Hand, joint_regressor
from common.mano.model import HandModel, ManoLayer
from common.predict.flip import mirrored_crop
from data.augment import (
    AugmentConfig,
    View,
    draw_view,
    float_image,
    make_sample,
    mirror_record,
    rotate_record,
    square_beside,
)
from data.damage import Damage
from data.schema import Record

RANGES = AugmentConfig(scale=0.25, rotation=30, rotation_probability=0.6, flip_probability=0.5, color=0.2)
WIDTH, HEIGHT = 334, 512
CAMERA = np.array([[1267.0, 0, 139.4], [0, 1263, 262.9], [0, 0, 1]])    # principal point far from the centre
GREY = np.full((HEIGHT, WIDTH, 3), 128, dtype=np.uint8)

views = st.builds(View, flip=st.booleans(), rotation_deg=st.floats(-180, 180), scale=st.floats(0.5, 2),
                  color=st.just((1.0, 1.0, 1.0)), shift=st.tuples(*[st.floats(-0.5, 0.5)] * 2), empty=st.none(),
                  damage=st.just(Damage()))


def make_record(model: HandModel, seed: int = 0) -> Record:
    """Two posed hands about a metre away, all annotated."""
    rng = np.random.default_rng(seed)
    pose, shape = Rotation.from_quat(rng.normal(size=(32, 4))).as_rotvec().reshape(2, 16, 3), rng.normal(size=(2, 10))
    pose[:, 1:] *= 0.2
    places = np.array([[-0.05, 0.02, 1.0], [0.06, -0.01, 1.1]])
    vertices = np.stack([skin(model, hand, pose[hand], shape[hand]) + places[hand] for hand in Hand])
    joints = joint_regressor(model.regressor.double()).numpy() @ vertices
    pixels = project_by_hand(joints).reshape(-1, 2)
    return Record(
        Path("frame.jpg"), (WIDTH, HEIGHT), CAMERA, vertices, joints, joints.copy(),
        Rotation.from_rotvec(pose.reshape(-1, 3)).as_matrix().reshape(2, 16, 3, 3), shape,
        np.stack([pixels.min(0), pixels.max(0)]), np.ones(2, bool), np.ones((2, 21), bool), np.ones((2, 21), bool),
        np.ones(2, bool), np.ones(2, bool))


def project_by_hand(points: np.ndarray) -> np.ndarray:
    x, y, z = np.moveaxis(points, -1, 0)
    return np.stack([CAMERA[0, 0] * x / z + CAMERA[0, 2], CAMERA[1, 1] * y / z + CAMERA[1, 2]], axis=-1)


def crop_by_three_points(record: Record, view: View, size: int) -> np.ndarray:
    """The crop's affine (2, 3) as InterHand2.6M's own code makes it: three points and OpenCV."""
    low, high = record.box_px
    half, angle = (high - low).max() / 0.8 * view.scale / 2, np.deg2rad(view.rotation_deg)
    center = (low + high) / 2
    if view.flip:
        center[0] = WIDTH - 1 - center[0]
    center = center + (high - low).max() / 0.8 * np.array(view.shift)
    ends = np.array([[0, 0], [-np.sin(angle), np.cos(angle)], [np.cos(angle), np.sin(angle)]])
    target = np.array([[size / 2, size / 2], [size / 2, size], [size, size / 2]])
    return np.linalg.solve(np.concatenate([center + half * ends, np.ones((3, 1))], axis=1), target).T


@pytest.fixture(scope="module")
def record(hand_model) -> Record:
    return make_record(hand_model)


def sample_of(record: Record, view: View, image: np.ndarray = GREY, size: int = 256):
    return make_sample(record, image, 7, size=size, box_ratio=0.8, view=view)


def picture_of(record: Record, view: View, image: np.ndarray = GREY) -> torch.Tensor:
    sample = sample_of(record, view, image)
    return float_image(sample.pixels, sample.gain)


# ---------------------------------------------------------------- picture and labels

@settings(max_examples=60, deadline=None)
@given(view=views, seed=st.integers(0, 5))
def test_joints_land_where_the_moved_pixels_are(view: View, seed: int, hand_model):
    record = make_record(hand_model, seed)
    pixels = project_by_hand(record.joints_cam)
    if view.flip:
        pixels = (pixels * [-1, 1] + [WIDTH - 1, 0])[::-1]
    affine = crop_by_three_points(record, view, 256)
    expected = pixels @ affine[:, :2].T + affine[:, 2]
    np.testing.assert_allclose(sample_of(record, view).targets.joints_crop, expected, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(view=views)
def test_the_crop_camera_projects_the_targets_onto_the_crop(view: View, record):
    sample = sample_of(record, view)
    joints_cam = (sample.targets.joints + sample.targets.wrist[:, None]).double()
    projected = project(joints_cam, sample.camera_crop.double())
    torch.testing.assert_close(projected, sample.targets.joints_crop.double(), atol=1e-3, rtol=0)    # float32 targets


@pytest.mark.parametrize("view", [View(), View(flip=True), View(rotation_deg=35), View(True, -70, 1.2)])
@pytest.mark.parametrize("hand", Hand)
def test_a_spot_painted_on_a_wrist_is_found_at_its_label(view: View, hand: Hand, record):
    u, v = project_by_hand(record.joints_cam)[hand, WRIST]
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    spot = np.exp(-((x - u) ** 2 + (y - v) ** 2) / 18)
    sample = sample_of(record, view, np.repeat((255 * spot).astype(np.uint8)[..., None], 3, axis=2))
    weight = sample.pixels[0].float()
    rows, columns = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    found = torch.stack([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
    labelled = hand.other if view.flip else hand
    torch.testing.assert_close(found, sample.targets.joints_crop[labelled, WRIST], atol=0.1, rtol=0)


@settings(max_examples=30, deadline=None)
@given(view=views)
def test_parameters_and_mesh_stay_one_hand(view: View, record, hand_model):
    targets = sample_of(record, view).targets
    layer = ManoLayer(hand_model)
    vertices = layer(targets.mano._replace(rotations=targets.mano.rotations[None], shape=targets.mano.shape[None]))
    relative = (vertices - layer.joints(vertices)[:, :, WRIST, None])[0]
    torch.testing.assert_close(relative, targets.vertices, atol=2e-6, rtol=0)


@given(view=views)
@settings(max_examples=20, deadline=None)
def test_views_are_rigid(view: View, record):
    """No view changes a distance between two joints, of one hand or of both."""
    targets = sample_of(record, view).targets
    joints = targets.joints + targets.wrist[:, None]
    before = torch.from_numpy(mirror_record(record).joints_cam if view.flip else record.joints_cam)
    torch.testing.assert_close(torch.cdist(joints[0].double(), joints[1].double()), torch.cdist(before[0], before[1]),
                               atol=1e-6, rtol=0)
    relative = targets.wrist[Hand.LEFT] - targets.wrist[Hand.RIGHT]
    torch.testing.assert_close(targets.relative, relative, atol=1e-6, rtol=0)


# ---------------------------------------------------------------- mirroring

def test_mirroring_a_frame_twice_gives_it_back(record):
    for name, before, after in zip(Record._fields, record, mirror_record(mirror_record(record)), strict=True):
        if isinstance(before, np.ndarray):
            np.testing.assert_allclose(after, before, atol=1e-12, err_msg=name)


def test_mirroring_commutes_with_projection(record):
    mirrored = mirror_record(record)
    homogeneous = mirrored.vertices_cam @ mirrored.camera.T
    expected = (project_by_hand(record.vertices_cam) * [-1, 1] + [WIDTH - 1, 0])[::-1]
    np.testing.assert_allclose(homogeneous[..., :2] / homogeneous[..., 2:], expected, atol=1e-9)


def test_the_mirrored_box_is_the_box_of_the_mirrored_joints(record):
    pixels = (project_by_hand(record.joints_cam) * [-1, 1] + [WIDTH - 1, 0]).reshape(-1, 2)
    np.testing.assert_allclose(mirror_record(record).box_px, [pixels.min(axis=0), pixels.max(axis=0)], atol=1e-9)


def test_the_relative_wrist_of_two_real_hands_mirrors_as_published(record):
    """(128.80, 16.51, 57.79) mm becomes (128.80, −16.51, −57.79): swapping negates all, mirroring negates x."""
    joints = record.joints_cam.copy()
    joints[Hand.LEFT, WRIST] = joints[Hand.RIGHT, WRIST] + [0.12880, 0.01651, 0.05779]
    mirrored = mirror_record(record._replace(joints_cam=joints)).joints_cam[:, WRIST]
    np.testing.assert_allclose(mirrored[Hand.LEFT] - mirrored[Hand.RIGHT], [0.12880, -0.01651, -0.05779], atol=1e-9)


def test_masks_change_hands_with_the_hands(record):
    joints_valid = record.joints_valid.copy()
    joints_valid[Hand.LEFT, 4:] = False
    single = record._replace(vertices_valid=np.array([True, False]), mano_valid=np.array([True, False]),
                             joints_valid=joints_valid)
    targets = sample_of(single, View(flip=True)).targets
    assert targets.vertices_valid.tolist() == targets.mano_valid.tolist() == [0, 1]
    assert targets.joints_valid.sum(dim=1).tolist() == [4, 21]


def test_the_mirrored_crop_is_the_mirror_image_of_the_crop(record):
    """Crop x ↔ 256 − x, as the centre of the box goes to S/2; flip testing makes the same of the crop alone, but for
    the column that it does not show."""
    image = cv2.resize(np.random.default_rng(0).integers(0, 256, (32, 21, 3), dtype=np.uint8), (WIDTH, HEIGHT))
    plain, mirrored = (picture_of(record, View(flip=flip), image) for flip in (False, True))
    torch.testing.assert_close(mirrored[..., 1:], plain[..., 1:].flip(-1), atol=0.02, rtol=0)
    torch.testing.assert_close(mirrored_crop(plain), mirrored, atol=0.02, rtol=0)


def test_turning_a_frame_there_and_back_gives_it_back(record):
    turn = Rotation.from_euler("z", 40, degrees=True).as_matrix()
    back = rotate_record(rotate_record(record, turn), turn.T)
    for name in ("vertices_cam", "joints_cam", "rotations"):
        np.testing.assert_allclose(getattr(back, name), getattr(record, name), atol=1e-12)


# ---------------------------------------------------------------- what is missing

def test_a_hand_that_is_not_annotated_is_zero_and_finite(record):
    joints_valid = record.joints_valid.copy()
    joints_valid[Hand.LEFT] = False
    absent = record._replace(
        joints_valid=joints_valid, vertices_valid=np.array([True, False]), mano_valid=np.array([True, False]),
        joints_cam=record.joints_cam * joints_valid[..., None],
        vertices_cam=record.vertices_cam * np.array([1, 0])[:, None, None])
    targets = sample_of(absent, View(rotation_deg=20)).targets
    for values in (targets.vertices, targets.joints, targets.joints_crop, targets.wrist):
        assert torch.equal(values[Hand.LEFT], torch.zeros_like(values[Hand.LEFT])) and values.isfinite().all()
    assert targets.relative_valid == 0 and torch.equal(targets.relative, torch.zeros(3))


# ---------------------------------------------------------------- picture

def test_the_hands_fill_the_asked_share_of_the_crop(record):
    crop = sample_of(record, View(scale=1.25)).targets.joints_crop.reshape(-1, 2)
    extent = (crop.max(dim=0).values - crop.min(dim=0).values).max().item()
    assert extent == pytest.approx(0.8 / 1.25 * 256, abs=0.01)


def test_colour_gains_are_red_green_blue_and_stop_at_white(record):
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[...] = (240, 100, 40)     # red, green, blue
    u, v = sample_of(record, View()).targets.joints_crop[0, WRIST].round().int().tolist()
    pixel = picture_of(record, View(color=(1.2, 0.5, 1.0)), image)[:, v, u]
    np.testing.assert_allclose(pixel, [1.0, 50 / 255, 40 / 255], atol=1e-6)


def test_outside_the_picture_is_black(record):
    corner = record._replace(box_px=np.array([[-200.0, -200], [-100, -100]]))
    assert picture_of(corner, View()).max() == 0


def test_making_a_sample_changes_neither_the_frame_nor_the_picture(hand_model):
    record, image = make_record(hand_model), GREY.copy()
    for view in (View(True, 30, 1.1, (1.2, 1.2, 1.2)), View()):
        sample_of(record, view, image)
    assert np.array_equal(image, GREY)
    for before, after in zip(make_record(hand_model), record, strict=True):
        assert np.array_equal(before, after)


@pytest.mark.parametrize("view", [View(), View(flip=True, rotation_deg=25, scale=0.8, color=(1.2, 0.83, 1.01))])
def test_a_picture_is_its_crop_in_floats_times_its_gains_to_the_bit(record, view):
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    mirrored = np.ascontiguousarray(image[:, ::-1]) if view.flip else image
    seen = mirror_record(record) if view.flip else record
    crop_from_image = crop_affine(square_box(seen.box_px, 0.8), 256, view.scale, view.rotation_deg)
    crop = cv2.warpAffine(mirrored, crop_from_image[:2], (256, 256)).transpose(2, 0, 1)
    expected = np.minimum(crop * (np.float32(view.color)[:, None, None] / 255), 1.0)
    assert np.array_equal(picture_of(record, view, image), expected) and expected.dtype == np.float32


def test_a_sample_is_contiguous_bytes_and_float32_and_knows_its_index(record):
    sample = sample_of(record, View(flip=True), size=128)
    assert sample.pixels.shape == (3, 128, 128) and sample.pixels.is_contiguous()
    floats = (sample.gain, sample.camera_crop, *sample.targets[:5], *sample.targets.mano)
    assert sample.pixels.dtype == torch.uint8 and {value.dtype for value in floats} == {torch.float32}
    assert sample.index == 7


# ---------------------------------------------------------------- draws

def test_draws_stay_in_their_ranges_and_use_them():
    draws = [draw_view(RANGES, np.random.default_rng(seed)) for seed in range(2000)]
    scales, rotations = np.array([d.scale for d in draws]), np.array([d.rotation_deg for d in draws])
    colors = np.array([d.color for d in draws])
    assert scales.min() == 0.75 and scales.max() == 1.25       # clipped at one standard deviation
    assert -60 <= rotations.min() < -50 and 50 < rotations.max() <= 60
    assert 0.8 <= colors.min() < 0.81 and 1.19 < colors.max() <= 1.2
    assert np.mean(rotations != 0) == pytest.approx(0.6, abs=0.04)
    assert np.mean([d.flip for d in draws]) == pytest.approx(0.5, abs=0.04)


def test_switching_one_range_off_leaves_the_other_draws_alone():
    still = AugmentConfig(scale=0.25, rotation=0, rotation_probability=0, flip_probability=0.5, color=0.2)
    for seed in range(20):
        view, turned = (draw_view(ranges, np.random.default_rng(seed)) for ranges in (still, RANGES))
        assert view == turned._replace(rotation_deg=0.0)


def test_no_ranges_draw_the_plain_view():
    off = AugmentConfig(scale=0, rotation=0, rotation_probability=0, flip_probability=0, color=0)
    assert draw_view(off, np.random.default_rng(0)) == View()


# ---------------------------------------------------------------- crops without hands

@settings(max_examples=60, deadline=None)
@given(choice=st.integers(0, 2**31), low=st.tuples(st.floats(0, WIDTH - 60), st.floats(0, HEIGHT - 60)),
       size=st.tuples(st.floats(40, 300), st.floats(40, 300)), angle=st.floats(-180, 180))
def test_a_square_beside_the_hands_touches_neither_them_nor_the_border_however_it_is_turned(record, choice, low, size,
                                                                                           angle):
    low = np.array(low)
    high = np.minimum(low + size, (WIDTH, HEIGHT))
    square = square_beside(record._replace(box_px=np.stack([low, high])), choice)
    if square is None:
        room = max(low[0], WIDTH - high[0], low[1], HEIGHT - high[1])
        assert room / np.sqrt(2) < max(24, 0.4 * (high - low).max())
        return
    turned = np.deg2rad(angle) + np.array([1, 3, 5, 7]) * np.pi / 4
    corners = square.center + square.side / np.sqrt(2) * np.stack([np.cos(turned), np.sin(turned)], axis=-1)
    assert (corners >= -1e-6).all() and (corners <= np.array([WIDTH, HEIGHT]) + 1e-6).all()
    beside = [(corners[:, axis] <= low[axis] + 1e-6).all() or (corners[:, axis] >= high[axis] - 1e-6).all()
              for axis in (0, 1)]
    assert any(beside)


def test_a_crop_beside_the_hands_annotates_nothing_and_says_that_no_hand_is_there(record):
    corner = record._replace(box_px=np.array([[0.0, 0.0], [60.0, 60.0]]))
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[:70, :70] = 255                                       # what the hands would be
    sample = make_sample(corner, image, 0, size=64, box_ratio=0.8, view=View(empty=5, rotation_deg=30.0))
    assert sample.pixels.max() == 0
    assert sample.targets.present.tolist() == [0, 0] and sample.targets.present_valid.tolist() == [1, 1]
    for name in ("vertices_valid", "joints_valid", "joints_annotated_valid", "mano_valid", "relative_valid"):
        assert getattr(sample.targets, name).sum() == 0, name


def test_shifted_and_far_crops_are_drawn_as_far_as_asked():
    ranges = AugmentConfig(shift=0.3, far_probability=0.5, scale=0.0)
    drawn = [draw_view(ranges, np.random.default_rng(seed)) for seed in range(400)]
    length = np.array([np.hypot(*view.shift) for view in drawn])
    assert 0.28 < length.max() <= 0.3 and abs(length.mean() - 0.15) < 0.01
    scales = np.array([view.scale for view in drawn])
    assert 2.9 < scales.max() <= 3 and abs((scales > 1).mean() - 0.5) < 0.08
