"""Rotations, projection, crops. Golden numbers were computed from four public InterHand2.6M frames (mmpose's tests)."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from common.geometry import (
    SquareBox,
    apply_affine,
    cells_to_crop,
    crop_affine,
    crop_to_grid,
    grid_to_crop,
    inside_cells,
    joints_to_cells,
    matrix_to_rot6d,
    project,
    project_weak,
    rot6d_to_matrix,
    rotation_about_z,
    square_box,
)

# image69148: JSON box, right and left wrist, right middle knuckle, image pixels; depth of the last under the wrist.
JSON_BOX = np.array([[33.56839, 164.92374], [33.56839 + 185.05786, 164.92374 + 142.72566]])
RIGHT_WRIST, LEFT_WRIST, RIGHT_MIDDLE = (48.9899, 241.66972), (193.28756, 260.33851), (137.6142, 223.36518)
MIDDLE_DEPTH = (1073.47987 - 1111.0215) / 1000


# ---------------------------------------------------------------- boxes and crops

def test_the_json_box_becomes_the_published_square():
    box = square_box(JSON_BOX)
    low = box.center - box.side / 2
    np.testing.assert_allclose([*low, box.side], [10.436161, 120.625404, 231.322327], atol=1e-4)


def test_the_plain_crop_matches_the_published_affine():
    affine = crop_affine(square_box(JSON_BOX), 256)
    np.testing.assert_allclose(affine[:2], [[1.1066809, 0, -11.5495001], [0, 1.1066809, -133.4938307]], atol=2e-5)
    np.testing.assert_allclose(apply_affine(affine, np.array(RIGHT_WRIST)), (42.66669, 133.95743), atol=5e-5)
    np.testing.assert_allclose(apply_affine(affine, np.array(LEFT_WRIST)), (202.35815, 154.61782), atol=5e-5)


def test_the_turned_and_scaled_crop_matches_the_published_affine():
    affine = crop_affine(square_box(JSON_BOX), 256, scale=1.1, rotation_deg=20)
    expected = [[0.94539988, 0.34409742, -72.51799355], [-0.34409742, 0.94539988, -51.99553008]]
    np.testing.assert_allclose(affine[:2], expected, atol=2e-5)
    np.testing.assert_allclose(apply_affine(affine, np.array(RIGHT_WRIST)), (56.95498, 159.62170), atol=5e-5)


def test_a_tight_box_fills_the_ratio_of_the_crop():
    """image69148, box of the 42 joints."""
    box = square_box(np.array([[48.9899, 176.81754], [203.2048, 295.75559]]), ratio=0.8)
    affine = crop_affine(box, 256)
    np.testing.assert_allclose([*box.center, box.side / 2], [126.09735, 236.28657, 96.384311], atol=2e-5)
    np.testing.assert_allclose(affine[0, [0, 2]], [1.32801696, -39.459424], atol=2e-5)
    np.testing.assert_allclose(affine[1, 2], -185.792567, atol=2e-5)


def test_turning_the_crop_and_turning_the_camera_frame_are_one_rotation():
    linear = crop_affine(SquareBox(np.zeros(2), 256.0), 256, rotation_deg=30)[:2, :2]
    np.testing.assert_allclose(linear, [[0.8660254, 0.5], [-0.5, 0.8660254]], atol=1e-7)
    np.testing.assert_allclose(rotation_about_z(30)[:2, :2], linear, atol=1e-12)


@given(st.floats(-180, 180), st.floats(0.5, 2), st.floats(20, 900), st.floats(-300, 700), st.floats(-300, 700))
def test_the_crop_is_the_three_point_construction_of_earlier_code(rotation, scale, side, x, y):
    angle, half = np.deg2rad(rotation), side * scale / 2
    center = np.array([x, y])
    down = center + half * np.array([-np.sin(angle), np.cos(angle)])
    right = center + half * np.array([np.cos(angle), np.sin(angle)])
    target = np.float32([[128, 128], [128, 256], [256, 128]])
    expected = cv2.getAffineTransform(np.float32([center, down, right]), target)
    affine = crop_affine(SquareBox(center, side), 256, scale, rotation)
    corners = np.array([[x, y], [x + side, y - side]])
    expected_corners = corners @ expected[:, :2].T + expected[:, 2]
    np.testing.assert_allclose(apply_affine(affine, corners), expected_corners, atol=0.05)    # float32 inside OpenCV


# ---------------------------------------------------------------- 2.5D joints

@pytest.mark.parametrize(("depth_range", "z"), [(0.3, 2.998890), (0.4, 3.249167)])
def test_a_real_joint_lands_in_the_published_cell(depth_range: float, z: float):
    crop = apply_affine(crop_affine(square_box(JSON_BOX), 256), np.array(RIGHT_MIDDLE))
    cells = joints_to_cells(torch.tensor(crop), torch.tensor(MIDDLE_DEPTH), 256, depth_range)
    np.testing.assert_allclose(cells.numpy(), [4.398297, 3.553130, z], atol=5e-6)


def test_a_fingertip_leaves_the_narrow_volume_but_not_the_default_one():
    """image44669, right middle tip: 160.1 mm nearer to the camera than the wrist."""
    crop, depth = torch.tensor([128.0, 128.0]), torch.tensor(-0.1601)
    narrow, default = (joints_to_cells(crop, depth, 256, depth_range) for depth_range in (0.3, 0.4))
    assert narrow[2].item() == pytest.approx(-0.268, abs=2e-3)
    assert not inside_cells(narrow) and inside_cells(default)


def test_cells_lead_back_to_crop_pixels():
    crop = torch.rand(5, 2) * 128
    torch.testing.assert_close(cells_to_crop(joints_to_cells(crop, torch.zeros(5), 128, 0.4), 128), crop)


# ---------------------------------------------------------------- projection and grids

def test_projection_divides_by_depth():
    camera = torch.tensor([[1000.0, 0, 160], [0, 900, 250], [0, 0, 1]])
    torch.testing.assert_close(project(torch.tensor([[0.1, -0.2, 2.0]]), camera), torch.tensor([[210.0, 160.0]]))


def test_weak_projection_scales_then_shifts():
    torch.testing.assert_close(project_weak(torch.tensor([[0.1, -0.2, 9.0]]), torch.tensor([5.0, 0.25, -0.5])),
                               torch.tensor([[0.75, -1.5]]))


def test_the_grid_reads_the_pixel_that_it_names():
    image = torch.arange(30.0).reshape(1, 1, 5, 6)[..., :5]
    pixel = torch.tensor([[3.0, 1.0]])
    sampled = F.grid_sample(image, crop_to_grid(pixel, 5)[None, None], align_corners=False)
    assert sampled.item() == pytest.approx(image[0, 0, 1, 3].item(), abs=1e-5)
    torch.testing.assert_close(grid_to_crop(crop_to_grid(pixel, 5), 5), pixel)


# ---------------------------------------------------------------- rotations

def test_a_rotation_survives_its_six_numbers():
    matrix = torch.linalg.qr(torch.randn(20, 3, 3, dtype=torch.float64)).Q
    matrix = matrix * torch.linalg.det(matrix)[:, None, None]
    torch.testing.assert_close(rot6d_to_matrix(matrix_to_rot6d(matrix)), matrix)


@pytest.mark.parametrize(
    "rot6d", [[0.0] * 6, [1, 0, 0, 2, 0, 0], [0, 0, 0, 1, 1, 0], [1e-9, 0, 0, 0, 0, 1e-9], [3.0] * 6])
def test_any_six_numbers_give_a_rotation(rot6d):
    matrix = rot6d_to_matrix(torch.tensor(rot6d, dtype=torch.float32))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(3), atol=1e-5, rtol=0)
    assert torch.linalg.det(matrix).item() == pytest.approx(1, abs=1e-5)


def test_the_six_numbers_have_a_true_gradient():
    rot6d = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rot6d_to_matrix, rot6d)
