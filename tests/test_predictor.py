"""TwoHandPredictor: two hands from an image in a program of one's own."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_lgnet import tiny_lgnet

from common.errors import UserError
from common.geometry import project_weak
from common.hands import WRIST, Hand
from common.mano.model import ManoLayer
from common.predict.flip import FlipTest
from common.predict.predictor import TwoHandPredictor
from common.types import ManoParams, Stages
from common.weights import SHIPPED, read_weights


@pytest.fixture(scope="module")
def predictor() -> TwoHandPredictor:
    return TwoHandPredictor.from_weights(device="cpu")


def picture(seed: int = 0, width: int = 200, height: int = 150) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def test_the_shipped_weights_predict_with_the_documented_shapes_units_and_types(predictor):
    hands = predictor(picture())
    assert {name: value.shape for name, value in hands._asdict().items()} == {
        "vertices": (2, 778, 3), "joints": (2, 21, 3), "rotations": (2, 16, 3, 3), "shape": (2, 10), "relative": (3,),
        "scale_px_per_m": (2,), "wrist_px": (2, 2), "crop_px": (3,), "presence": (2,), "confidence": (2, 21)}
    assert all(np.isfinite(value).all() and isinstance(value, np.ndarray) for value in hands)
    for hand in Hand:                                           # metres: a hand is as long as a hand
        assert 0.08 < np.ptp(hands.vertices[hand], axis=0).max() < 0.3


def test_the_settings_that_belong_to_the_weights_come_with_them(predictor):
    config = read_weights(SHIPPED).config
    assert config["test"]["flip_test"] and isinstance(predictor.model, FlipTest)
    assert (predictor.input_size, predictor.box_ratio) == (config["model"]["input_size"], config["data"]["box_ratio"])


def test_an_image_and_its_file_and_a_list_of_them_give_the_same(predictor, tmp_path):
    images = [picture(seed, width=200 + 20 * seed) for seed in range(3)]
    boxes = [None, (30, 20, 80, 60), (5, 5, 90, 90)]
    Image.fromarray(images[1]).save(tmp_path / "a.png")
    alone = predictor(images[1], boxes[1])
    np.testing.assert_array_equal(predictor(tmp_path / "a.png", boxes[1]).vertices, alone.vertices)
    np.testing.assert_array_equal(predictor(str(tmp_path / "a.png"), boxes[1]).wrist_px, alone.wrist_px)
    together = predictor.batch(images, boxes)
    assert len(together) == 3
    for found, expected in zip(together[1], alone, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_box_fills_the_crop_and_no_box_takes_the_image_whole(predictor):
    boxed, whole = predictor(picture(), (10, 20, 40, 30)), predictor(picture(width=90, height=60))
    assert boxed.crop_px == pytest.approx([30, 35, 40 / predictor.box_ratio])
    assert whole.crop_px == pytest.approx([44.5, 29.5, 90])


def test_moving_image_and_box_moves_pixels_and_nothing_else(predictor):
    canvas = np.zeros((400, 500, 3), dtype=np.uint8)
    canvas[100:250, 120:320] = picture()
    shifted = np.roll(canvas, (-60, 35), axis=(0, 1))
    here, there = predictor(canvas, (150, 130, 120, 90)), predictor(shifted, (185, 70, 120, 90))
    np.testing.assert_allclose(there.vertices, here.vertices, atol=1e-6)
    np.testing.assert_allclose(there.to_px(there.joints), here.to_px(here.joints) + [35, -60], atol=1e-3)


def test_rotations_and_shape_pose_the_hands_model_to_the_mesh_where_nothing_refines_it(hand_model):
    model = tiny_lgnet(hand_model, "wo_refine_stage")
    hands = TwoHandPredictor(model, hand_model, input_size=64, box_ratio=0.8, device=torch.device("cpu"))(picture())
    params = ManoParams(torch.from_numpy(hands.rotations)[None], torch.from_numpy(hands.shape)[None])
    vertices, joints = ManoLayer(hand_model).about_wrist(params)
    np.testing.assert_allclose(vertices[0] + hands.wrists[:, None], hands.vertices, atol=1e-6)
    np.testing.assert_allclose(joints[0] + hands.wrists[:, None], hands.joints, atol=1e-6)
    assert np.abs(hands.wrists - hands.joints[:, WRIST]).max() < 1e-6


def test_the_camera_puts_points_where_the_network_saw_them(hand_model):
    """The crop of a whole square image of its size is that image, its middle (31.5, 31.5) put on (32, 32)."""
    model = tiny_lgnet(hand_model)
    seen: list[Stages] = []
    model.register_forward_hook(lambda _model, _inputs, stages: seen.append(stages))
    predictor = TwoHandPredictor(model, hand_model, input_size=64, box_ratio=0.8, device=torch.device("cpu"))
    hands = predictor(picture(width=64, height=64))
    grid = project_weak(seen[0].final.vertices, seen[0].final.camera)[0].detach().numpy()
    np.testing.assert_allclose(hands.to_px(hands.vertices), ((grid + 1) * 64 - 1) / 2 - 0.5, atol=1e-3)


@pytest.mark.parametrize(("image", "message"), [
    (np.zeros((4, 4), dtype=np.uint8), "shape"), (np.zeros((4, 4, 3)), "float64"), ("nowhere.jpg", "No such file"),
])
def test_what_is_no_image_is_refused_in_a_sentence(predictor, image, message):
    with pytest.raises(UserError, match=message):
        predictor(image)


@pytest.mark.parametrize(("box", "message"), [
    ((0.2, 0.3, 0.5, 0.4), "shares"), ((1, 2, 0, 4), "no area"), ((1, 2, 3), "four"), ((1, 2, np.nan, 4), "finite"),
])
def test_what_is_no_box_is_refused_in_a_sentence(predictor, box, message):
    with pytest.raises(UserError, match=message):
        predictor(picture(), box)


def test_weights_that_are_not_there_are_named():
    with pytest.raises(UserError, match="nowhere.safetensors"):
        TwoHandPredictor.from_weights("nowhere.safetensors")
