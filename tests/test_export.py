"""Files of a reconstruction: what is read back is what was predicted, and cameras put it on the right pixels."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial.transform import Rotation

from common.files import write_json
from common.geometry import SquareBox, apply_affine, crop_affine, grid_to_crop, project_weak, vertex_normals
from common.hands import NUM_FACES, NUM_VERTICES, WRIST, Hand
from common.mano.model import HandModel, ManoLayer
from common.predict.predictor import two_hands
from common.types import HandPrediction, ManoParams, Stages, TwoHands
from common.view.meshes import hand_params, write_obj
from common.view.overlay import HAND_COLORS, PAPER_COLOR, paint_hands, side_view


@pytest.fixture(scope="module")
def rough(hand_model: HandModel) -> HandPrediction:
    """A random prediction of both hands, wrist-relative, root turned by any angle."""
    rng = np.random.default_rng(0)
    poses = rng.normal(size=(32, 3)) * 0.4
    poses[[0, 16]] = [[3.1, 0.2, 0.1], [0.5, -2.0, 1.0]]        # one root close to half a turn
    rotations = torch.tensor(Rotation.from_rotvec(poses).as_matrix(), dtype=torch.float32).view(1, 2, 16, 3, 3)
    params = ManoParams(rotations, torch.tensor(rng.normal(size=(1, 2, 10)), dtype=torch.float32))
    layer = ManoLayer(hand_model)
    vertices = layer(params)
    vertices = vertices - layer.joints(vertices)[:, :, WRIST, None]
    return HandPrediction(vertices[0], layer.joints(vertices)[0], torch.tensor([0.086, -0.004, -0.012]),
                          ManoParams(params.rotations[0], params.shape[0]),
                          torch.tensor([[5.0, -0.3, 0.1], [4.0, 0.25, -0.2]]))


SQUARE, SIZE = SquareBox(np.array([210.0, 95.5]), side=180.0), 128


@pytest.fixture(scope="module")
def hands(rough: HandPrediction) -> TwoHands:
    return two_hands(Stages(rough, rough), SQUARE, SIZE)


# ---------------------------------------------------------------- meshes

@pytest.mark.parametrize("hand", Hand)
def test_an_obj_read_back_is_the_mesh(tmp_path: Path, hand_model: HandModel, hands: TwoHands, hand: Hand):
    vertices, faces = hands.vertices[hand], hand_model.faces[hand]
    write_obj(tmp_path / "a.obj", vertices, faces, ["a hand"])
    mesh = trimesh.load(tmp_path / "a.obj", process=False)
    assert mesh.vertices.shape == (NUM_VERTICES, 3) and mesh.faces.shape == (NUM_FACES, 3)
    np.testing.assert_allclose(mesh.vertices, vertices, atol=1e-6)
    np.testing.assert_array_equal(mesh.faces, faces)


def test_an_obj_names_its_content_unit_and_frame(tmp_path: Path, hand_model: HandModel, hands: TwoHands):
    write_obj(tmp_path / "a.obj", hands.vertices[0], hand_model.faces[0], ["the right hand in photo.jpg"])
    comments = [line for line in (tmp_path / "a.obj").read_text().splitlines() if line.startswith("#")]
    assert comments[0] == "# the right hand in photo.jpg"
    assert comments[1] == "# unit: metre" and comments[2].startswith("# frame: origin at the right wrist")


def test_both_hands_share_a_frame_at_the_right_wrist(hand_model: HandModel, hands: TwoHands):
    wrists = ManoLayer(hand_model).joints(torch.from_numpy(hands.vertices)[None])[0, :, WRIST].numpy()
    np.testing.assert_allclose(wrists, [[0, 0, 0], hands.relative], atol=1e-6)
    np.testing.assert_allclose(hands.joints[:, WRIST], wrists, atol=1e-6)
    np.testing.assert_array_equal(hands.wrists, [[0, 0, 0], hands.relative])


# ---------------------------------------------------------------- parameters

def test_posing_the_written_parameters_gives_the_coarse_mesh(tmp_path: Path, hand_model: HandModel, hands: TwoHands):
    """By the rule that the file itself states: add hands_mean, pose, subtract the wrist, add root_trans."""
    layer = ManoLayer(hand_model)
    poses, shapes, offsets = [], [], []
    for hand in Hand:
        write_json(tmp_path / "p.json", hand_params(hands, hand, hand_model))
        values = json.loads((tmp_path / "p.json").read_text())
        assert [len(values[key]) for key in ("root_pose", "hand_pose", "shape", "root_trans")] == [3, 45, 10, 3]
        poses.append(np.concatenate([values["root_pose"], values["hand_pose"] + hand_model.mean_pose[hand].numpy()]))
        shapes.append(values["shape"])
        offsets.append(values["root_trans"])
    rotations = Rotation.from_rotvec(np.reshape(poses, (32, 3))).as_matrix().reshape(1, 2, 16, 3, 3)
    posed = layer(ManoParams(torch.tensor(rotations).float(), torch.tensor([shapes])))
    posed = posed - layer.joints(posed)[:, :, WRIST, None] + torch.tensor(offsets)[:, None]
    np.testing.assert_allclose(posed[0], hands.vertices, atol=1e-6)


def test_parameters_name_unit_frame_convention_and_hand_model(hand_model: HandModel, hands: TwoHands):
    values = hand_params(hands, Hand.LEFT, hand_model)
    assert values["hand"] == "left" and values["hand_model"] == hand_model.identity
    assert values["units"]["root_trans"] == "metre" and "hands_mean" in values["convention"]
    assert hand_params(hands, Hand.RIGHT, hand_model)["root_trans"] == [0, 0, 0]


def test_numbers_that_are_not_finite_are_never_written(tmp_path: Path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "p.json", {"shape": [float("nan")]})
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- cameras and pictures

def test_a_camera_in_pixels_is_the_predicted_camera_through_the_crop(rough: HandPrediction, hands: TwoHands):
    in_crop = grid_to_crop(project_weak(rough.vertices, rough.camera), SIZE).double().numpy()
    expected = apply_affine(np.linalg.inv(crop_affine(SQUARE, SIZE)), in_crop)
    np.testing.assert_allclose(hands.to_px(hands.vertices), expected, atol=1e-3)


def flat_hands(hand_model: HandModel, right_at: tuple, left_at: tuple) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (2, 778, 3) of both resting hands on a canvas, seen flat, middle at the given (x, y, depth)."""
    flat = hand_model.template[:, :, [0, 2, 1]]
    flat = flat - (flat.amax(1, keepdim=True) + flat.amin(1, keepdim=True)) / 2
    points = flat * torch.tensor([400.0, 400.0, 1.0]) + torch.tensor([right_at, left_at])[:, None]
    return points, vertex_normals(flat, hand_model.faces)


def test_the_nearer_hand_hides_the_other(hand_model: HandModel):
    """Hands in the same place: the middle shows the colour of the one with less depth."""
    paper = np.full((120, 120, 3), 255, dtype=np.uint8)
    for near in Hand:
        depths = [0.5 if hand is near else 0.9 for hand in Hand]
        points, normals = flat_hands(hand_model, (60, 60, depths[0]), (60, 60, depths[1]))
        painted = paint_hands(paper, points, normals, hand_model.faces, torch.tensor(HAND_COLORS), opacity=1.0)
        red, _, blue = painted[60, 60].astype(int)
        assert (red > blue) == (HAND_COLORS[near][0] > HAND_COLORS[near][2])


def test_paint_stays_where_the_hand_is_and_the_background_is_untouched(hand_model: HandModel):
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (100, 160, 3), dtype=np.uint8)
    before = photo.copy()
    points, normals = flat_hands(hand_model, (40, 50, 0.5), (120, 50, 0.5))
    painted = paint_hands(photo, points, normals, hand_model.faces, torch.tensor(HAND_COLORS), opacity=0.8)

    np.testing.assert_array_equal(photo, before)
    covered = np.zeros((100, 160), np.uint8)            # OpenCV's own polygon filling as the other route
    for hand in Hand:
        for triangle in points[hand, :, :2].numpy()[hand_model.faces[hand].numpy()]:
            cv2.fillConvexPoly(covered, triangle.round().astype(np.int32), 1)
    changed = (painted != photo).any(axis=2)
    outside = cv2.dilate(covered, np.ones((3, 3), np.uint8)) == 0
    inside = cv2.erode(covered, np.ones((5, 5), np.uint8)) == 1
    assert not changed[outside].any() and changed[inside].mean() > 0.99 and inside.sum() > 500


@pytest.mark.parametrize(("place", "is_seen"), [
    ((-500.0, 50.0), False), ((50.0, 900.0), False), ((-10.0, 50.0), True), ((99.0, 50.0), True), ((50.0, -5.0), True),
])
def test_hands_partly_or_fully_outside_the_canvas_are_cut(hand_model: HandModel, place: tuple, is_seen: bool):
    paper = np.zeros((100, 100, 3), dtype=np.uint8)
    points, normals = flat_hands(hand_model, (*place, 0.5), (*place, 0.6))
    painted = paint_hands(paper, points, normals, hand_model.faces, torch.tensor(HAND_COLORS), opacity=1.0)
    assert painted.shape == paper.shape and painted.any() == is_seen


def test_normals_agree_with_trimesh(hand_model: HandModel):
    """trimesh weighs faces by angle instead of area, so the two differ a little."""
    for hand in Hand:
        normals = vertex_normals(hand_model.template, hand_model.faces)[hand].numpy()
        np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
        mesh = trimesh.Trimesh(hand_model.template[hand].numpy(), hand_model.faces[hand].numpy(), process=False)
        cosine = (normals * mesh.vertex_normals).sum(axis=1)
        assert cosine.min() > 0 and np.median(cosine) > 0.99


def test_the_side_view_holds_both_hands_whole(hand_model: HandModel, hands: TwoHands):
    view = side_view(hands, hand_model.faces, 200)
    assert view.shape == (200, 200, 3)
    border = np.concatenate([view[:5].reshape(-1, 3), view[-5:].reshape(-1, 3), view[:, :5].reshape(-1, 3)])
    assert (border == PAPER_COLOR).all()
    for first, second in ((0, 2), (2, 0)):
        assert (view[..., first].astype(int) - view[..., second] > 40).mean() > 0.02     # both colours are there


def test_a_hand_that_is_not_present_is_neither_painted_nor_has_parameters(hand_model: HandModel, hands: TwoHands):
    one = hands._replace(presence=np.array([0.2, 0.9]))
    view = side_view(one, hand_model.faces, 200)
    assert (view[..., 2].astype(int) - view[..., 0] > 40).mean() > 0.02             # the left hand's blue
    assert not (view[..., 0].astype(int) - view[..., 2] > 40).any()                 # and no orange
    assert (side_view(hands._replace(presence=np.zeros(2)), hand_model.faces, 50) == PAPER_COLOR).all()
    both, absent = (hand_params(one, hand, hand_model) for hand in (Hand.LEFT, Hand.RIGHT))
    assert both.keys() == absent.keys()
    empty = {name for name, value in absent.items() if value is None}
    assert empty == {"root_pose", "hand_pose", "shape", "root_trans"} and None not in both.values()
