"""Where the hands of a photograph are."""

import json
import zipfile

import cv2
import numpy as np
import pytest

from common.errors import UserError
from common.files import ROOT
from common.geometry import apply_affine
from common.hands import MANO21
from common.images import read_rgb
from common.predict.finder import (
    ANCHORS,
    FILES,
    FOLDER,
    FinderMissing,
    FoundHand,
    HandFinder,
    add_hand,
    hand_crop,
    merged,
    read_checked,
    views,
)
from tool.fetch_finder import unpack

EXAMPLES = ROOT / "common" / "assets" / "examples"
needs_files = pytest.mark.skipif(not all((FOLDER / name).is_file() for name in FILES),
                                 reason="tool/fetch_finder.py has not fetched the networks")


@pytest.fixture(scope="module")
def finder() -> HandFinder:
    return HandFinder.from_files()


@pytest.fixture(scope="module")
def open_hand() -> np.ndarray:
    """An image of which the finder is sure."""
    return read_rgb(EXAMPLES / "hands_4.jpg", upright=True)


def hand_at(x: float, y: float, size: float = 100.0, presence: float = 0.9, right: float = 0.9) -> FoundHand:
    """A hand whose joints lie on a diagonal."""
    joints = np.linspace(-0.5, 0.5, 21)[:, None] * size + [x, y]
    return FoundHand(joints, np.zeros((21, 3)), presence, right)


# ---------------------------------------------------------------- on images

@needs_files
def test_most_hands_of_the_rendered_examples_are_found_and_nothing_else(finder):
    """Clasped hands are hard for it: it knows single ones."""
    boxes = json.loads((EXAMPLES / "boxes.json").read_text())
    shown = 0
    for name, (x, y, width, height) in boxes.items():
        found = finder(read_rgb(EXAMPLES / name, upright=True))
        shown += bool(found)
        for hand in found:
            inside = (hand.joints_px >= (x, y)) & (hand.joints_px <= (x + width, y + height))
            assert inside.all(axis=1).mean() > 0.6, name
            assert 0.5 <= hand.presence <= 1 and 0 <= hand.right <= 1
    assert shown >= 5


@needs_files
def test_no_hand_is_found_where_there_is_none(finder):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)
    ramp = np.linspace(0, 255, 400)[None, :, None].repeat(300, axis=0).repeat(3, axis=2).astype(np.uint8)
    for image in (noise, ramp, np.zeros((20, 30, 3), dtype=np.uint8), np.full((1, 1, 3), 200, dtype=np.uint8)):
        assert finder(image) == []


@needs_files
def test_a_mirrored_image_has_mirrored_hands_of_the_other_side(finder, open_hand):
    hands, reflected = finder(open_hand), finder(np.ascontiguousarray(open_hand[:, ::-1]))
    width = open_hand.shape[1]
    assert hands and reflected
    pairs = [(hand, other) for hand in hands for other in reflected
             if np.abs(hand.joints_px * [-1, 1] + [width - 1, 0] - other.joints_px).mean() < 0.12 * hand.size_px]
    assert pairs
    for hand, other in pairs:
        assert abs(hand.right + other.right - 1) < 0.5


@needs_files
def test_a_hand_lies_where_it_was_put_on_a_larger_canvas(finder, open_hand):
    height, width = open_hand.shape[:2]
    canvas = np.full((height + 160, width + 240, 3), 128, dtype=np.uint8)
    canvas[60:60 + height, 130:130 + width] = open_hand
    alone, put = finder(open_hand), finder(canvas)
    assert alone
    best = min(np.abs(hand.joints_px + [130, 60] - other.joints_px).mean() / hand.size_px
               for hand in alone for other in put)
    assert best < 0.06


@needs_files
def test_the_joints_in_metres_look_like_those_in_the_image(finder, open_hand):
    """Seen from far away both are the same points but for their scale."""
    for hand in finder(open_hand):
        flat = hand.joints_m[:, :2] - hand.joints_m[:, :2].mean(axis=0)
        seen = hand.joints_px - hand.joints_px.mean(axis=0)
        likeness = (flat * seen).sum() / np.linalg.norm(flat) / np.linalg.norm(seen)
        assert likeness > 0.9
        assert 0.05 < np.linalg.norm(hand.joints_m[MANO21.index("middle1")]) < 0.15


# ---------------------------------------------------------------- parts

def test_there_is_an_anchor_for_each_output_of_the_network():
    assert ANCHORS.shape == (2016, 2)
    first, second = [0.5 / 24] * 2, [1.5 / 24, 0.5 / 24]
    np.testing.assert_allclose(ANCHORS[:4], [first, first, second, second])
    np.testing.assert_allclose(ANCHORS[-1], [11.5 / 12] * 2)
    np.testing.assert_allclose(ANCHORS[24 * 24 * 2], [0.5 / 12] * 2)


def test_detections_that_overlap_are_one_palm_in_the_mean_of_their_scores():
    places = np.zeros((3, 8, 2))
    places[0], places[1], places[2] = 100.0, 104.0, 300.0
    palms = list(merged(places, np.array([40.0, 44.0, 40.0]), np.array([0.6, 0.9, 0.5])))
    assert len(palms) == 2
    np.testing.assert_allclose(palms[0][0], (0.6 * 100 + 0.9 * 104) / 1.5)
    assert palms[0][1] == pytest.approx((0.6 * 40 + 0.9 * 44) / 1.5)
    np.testing.assert_allclose(palms[1][0], 300.0)


def test_the_surer_of_two_looks_at_one_hand_stands_for_both():
    hands = [hand_at(100, 100, presence=0.7)]
    add_hand(hands, hand_at(104, 98, presence=0.8))
    add_hand(hands, hand_at(103, 99, presence=0.6))
    add_hand(hands, hand_at(300, 100, presence=0.6))
    assert [hand.presence for hand in hands] == [0.8, 0.6]


@pytest.mark.parametrize("angle", [0.0, 1.0, -2.5])
def test_the_crop_of_a_hand_shows_it_upright_and_whole(angle):
    """A hand of five straight fingers, turned."""
    joints = np.array([(0.0, 0.0)] + [(30.0 * (finger - 2), -60.0 - 25 * k) for finger in range(5) for k in range(4)])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    crop = hand_crop(joints @ turn.T + [400, 300])
    inside = apply_affine(crop.affine(224), joints @ turn.T + [400, 300])
    assert ((inside > 0) & (inside < 223)).all()
    tips, wrist = inside[[4, 8, 12, 16, 20]], inside[0]
    assert (tips[:, 1] < wrist[1] - 60).all()                           # the fingers point up
    assert abs(inside[MANO21.index("middle1"), 0] - wrist[0]) < 3
    assert (np.diff(inside[[1, 5, 9, 13, 17], 0]) > 0).all()            # and are not mirrored


def test_a_crop_cuts_out_what_its_affine_says():
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (200, 300), dtype=np.uint8), (0, 0), 3)
    joints = np.array([(150.0, 150.0)] + [(150 + 12.0 * (finger - 2), 120.0 - 9 * k) for finger in range(5)
                                          for k in range(4)])
    affine = hand_crop(joints).affine(224)
    crop = cv2.warpAffine(image, affine[:2], (224, 224))
    for place in joints[[1, 9, 20]]:
        x, y = apply_affine(affine, place)
        assert abs(float(crop[round(y), round(x)]) - float(image[round(place[1]), round(place[0])])) < 12


@pytest.mark.parametrize(("height", "width"), [(480, 640), (640, 480), (200, 1500), (100, 90), (1, 1)])
def test_the_views_together_show_every_part_of_an_image(height, width):
    corners = np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1], [width / 2, height / 2]])
    seen = np.zeros(len(corners), dtype=bool)
    shown = list(views(height, width))
    for view in shown[2:] or shown[:1]:
        place = apply_affine(view, corners)
        seen |= ((place > -2) & (place < 194)).all(axis=1)
    assert seen.all()


# ---------------------------------------------------------------- files

def test_missing_and_exchanged_files_are_told_by_name(tmp_path):
    name = next(iter(FILES))
    with pytest.raises(FinderMissing, match=f"{name} is missing.*fetch_finder"):
        read_checked(tmp_path, name)
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(UserError, match=f"{name} is damaged or another file"):
        read_checked(tmp_path, name)


def test_a_package_with_other_files_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "mediapipe.whl", "w") as package:
        for name in FILES:
            package.writestr(f"mediapipe/modules/{name}", b"another network")
        package.writestr("mediapipe-0.10.21.dist-info/LICENSE", "Apache")
    with pytest.raises(UserError, match="another palm_detection_full.*, hand_landmark_full.* than was tested"):
        unpack(tmp_path / "mediapipe.whl", tmp_path / "finder")
    assert not (tmp_path / "finder").exists()
