"""Flip testing: a mean of two opinions that keeps what they agree on, and knows no right from left."""

import json

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from tiny_lgnet import SIZE, random_images, tiny_lgnet
from tiny_snapshot import save_tiny_snapshot
from torch import Tensor, nn

from common.geometry import grid_to_crop, project_weak, rotation_about_z
from common.hands import Hand
from common.mano.model import ManoLayer
from common.predict.fast import for_inference
from common.predict.flip import FlipTest, halfway, mirrored, mirrored_crop
from common.predict.predictor import TwoHandPredictor
from common.types import HandPrediction, ManoParams, Stages, map_tensors
from main.network import load_network


@pytest.fixture(scope="module")
def model(hand_model):
    return tiny_lgnet(hand_model)


@pytest.fixture(scope="module")
def seen(model) -> Stages:
    with torch.no_grad():
        return model(random_images(2))


class Opinions(nn.Module):
    """Says `first` of the first half of what it is shown and `second` of the rest."""

    def __init__(self, first: Stages, second: Stages):
        super().__init__()
        self.stages = map_tensors(lambda a, b: torch.cat([a, b]), first, second)

    def forward(self, image: Tensor) -> Stages:
        assert len(image) == len(self.stages.final.vertices)
        return self.stages


def of_both(hands: Stages, function) -> Stages:
    return Stages(function(hands.mesh), function(hands.final), hands.joint)


def reflected(hands: HandPrediction) -> HandPrediction:
    return mirrored(hands, SIZE)


def turned(hands: HandPrediction, degrees: float) -> HandPrediction:
    """Each hand turned about its own wrist."""
    turn = torch.from_numpy(rotation_about_z(degrees)).float()
    rotations = hands.mano.rotations.clone()
    rotations[:, :, 0] = turn @ rotations[:, :, 0]
    return hands._replace(vertices=hands.vertices @ turn.T, joints=hands.joints @ turn.T,
                          mano=hands.mano._replace(rotations=rotations))


# ---------------------------------------------------------------- the mirror image of a prediction

def in_crop(hands: HandPrediction, hand: Hand) -> Tensor:
    """Where the vertices of a hand (B, 778, 2) lie in the crop, pixels."""
    return grid_to_crop(project_weak(hands.vertices[:, hand], hands.camera[:, hand]), SIZE)


def test_a_mirrored_prediction_lies_on_the_mirrored_picture_with_its_hands_swapped(seen):
    other = mirrored(seen.final, SIZE)
    for hand in Hand:
        expected = in_crop(seen.final, hand.other)
        expected[..., 0] = SIZE - expected[..., 0]
        torch.testing.assert_close(in_crop(other, hand), expected)


@pytest.mark.parametrize(("side", "box"), [(SIZE, None), (SIZE + 26, (40 - 0.4 * SIZE, 14.0, 0.8 * SIZE, 30.0))])
def test_a_mirrored_photograph_gives_the_mirrored_hands(hand_model, side, box):
    """The crop's edges are black, as is what lies beyond them. No pixel of it lies between two pixels, or each does."""
    model = FlipTest(tiny_lgnet(hand_model), ManoLayer(hand_model))
    predictor = TwoHandPredictor(model, hand_model, input_size=SIZE, box_ratio=0.8, device=torch.device("cpu"))
    image = np.zeros((side, side, 3), dtype=np.uint8)
    image[16:48, 18:56] = np.random.default_rng(0).integers(0, 256, (32, 38, 3), dtype=np.uint8)
    mirrored_box = box and (side - 1 - box[0] - box[2], *box[1:])
    hands, other = predictor(image, box), predictor(image[:, ::-1].copy(), mirrored_box)
    expected = hands.to_px(hands.vertices)[::-1] * [-1, 1] + [side - 1, 0]
    np.testing.assert_allclose(other.to_px(other.vertices), expected, atol=1e-3)


def test_the_parameters_of_a_mirrored_prediction_give_its_mesh(seen, hand_model):
    other = mirrored(seen.mesh, SIZE)
    vertices, joints = ManoLayer(hand_model).about_wrist(other.mano)
    torch.testing.assert_close(vertices, other.vertices, rtol=0, atol=1e-6)
    torch.testing.assert_close(joints, other.joints, rtol=0, atol=1e-6)


def test_a_mirrored_left_wrist_lies_where_the_mirrored_right_one_did():
    """Left wrist at (0.3, 0.1, 0.9), right at (0.1, 0.0, 1.0): mirrored, the left one is at (−0.1, 0.0, 1.0)."""
    zeros = torch.zeros(1, 2, 1, 3)
    hands = HandPrediction(zeros, zeros, torch.tensor([[0.2, 0.1, -0.1]]),
                           ManoParams(torch.eye(3).expand(1, 2, 16, 3, 3), torch.zeros(1, 2, 10)), zeros[:, :, 0])
    torch.testing.assert_close(mirrored(hands, SIZE).relative, torch.tensor([[0.2, -0.1, 0.1]]))


# ---------------------------------------------------------------- the mean

@pytest.mark.parametrize("variants", [(), ("wo_refine_stage",), ("refine_unshared",)], ids=str)
@torch.no_grad()
def test_a_mirrored_picture_gives_the_mirrored_prediction(hand_model, variants):
    """Which the network alone does not."""
    model, image = tiny_lgnet(hand_model, *variants), random_images(2)
    image[..., 0] = image[..., 1]       # what a mirror image repeats
    found, other = (FlipTest(model, ManoLayer(hand_model))(view) for view in (image, mirrored_crop(image)))
    for stage in ("mesh", "final"):
        torch.testing.assert_close(getattr(other, stage), reflected(getattr(found, stage)), rtol=1e-4, atol=1e-5)
    alone, other_alone = (model(view).final for view in (image, mirrored_crop(image)))
    assert (other_alone.vertices - reflected(alone).vertices).norm(dim=-1).max() > 1e-3


@torch.no_grad()
def test_opinions_that_agree_are_what_is_said(seen, hand_model):
    agreed = Opinions(seen, of_both(seen, reflected))
    found = FlipTest(agreed, ManoLayer(hand_model))(random_images(2))
    torch.testing.assert_close(found, seen, rtol=1e-5, atol=1e-6)
    assert (seen.final.vertices - seen.mesh.vertices).norm(dim=-1).max() > 1e-4     # there is an offset to be lost


@pytest.mark.parametrize("degrees", [10.0, 80.0])
@torch.no_grad()
def test_opinions_that_differ_by_a_turn_meet_half_way_and_no_hand_shrinks(seen, hand_model, degrees):
    first, second = (of_both(seen, lambda hands, by=by: turned(hands, by)) for by in (-degrees, degrees))
    differing = Opinions(first, of_both(second, reflected))
    found = FlipTest(differing, ManoLayer(hand_model))(random_images(2))
    torch.testing.assert_close(found, first._replace(mesh=seen.mesh, refined=seen.refined), rtol=1e-4, atol=5e-6)


def test_the_rotation_half_way_is_half_the_turn():
    rng = torch.Generator().manual_seed(0)
    axes = nn.functional.normalize(torch.randn(60, 3, generator=rng, dtype=torch.float64), dim=-1)
    angles = torch.linspace(0, torch.pi - 0.01, 60, dtype=torch.float64)[:, None]
    first = torch.from_numpy(Rotation.random(60, random_state=1).as_matrix())
    turn, half = (torch.from_numpy(Rotation.from_rotvec(axes * angles * share).as_matrix()) for share in (1.0, 0.5))
    torch.testing.assert_close(halfway(first, first @ turn), first @ half)
    torch.testing.assert_close(halfway(first @ turn, first), first @ half)


def test_opposite_rotations_have_a_finite_mean_and_what_is_no_number_stays_none():
    opposite = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    assert halfway(torch.eye(3), opposite).isfinite().all()
    assert halfway(torch.eye(3), torch.full((3, 3), torch.nan)).isnan().all()


# ---------------------------------------------------------------- where it is used

@torch.no_grad()
def test_the_prepared_model_predicts_the_same_in_either_precision(model, hand_model):
    image = random_images(2)
    expected = FlipTest(model, ManoLayer(hand_model))(image)
    torch.testing.assert_close(for_inference(model, hand_model, flip_test=True)(image), expected, rtol=1e-5, atol=1e-5)
    halved = for_inference(model, hand_model, flip_test=True, precision="bfloat16")(image).final.vertices
    assert halved.dtype == torch.float32
    torch.testing.assert_close(halved, expected.final.vertices, rtol=0, atol=5e-3)


def test_test_py_and_a_loaded_network_do_it_where_the_configuration_says_so(run, config_file, hand_model, tmp_path):
    snapshot = tmp_path / "model_dump" / "snapshot_0.pth.tar"
    save_tiny_snapshot(snapshot, hand_model)
    options = [f"data.root={config_file.parent / 'data'}", "data.workers=0"]
    found = []
    for flip_test in ("false", "true"):
        code, text = run("test.py", "--gpu", "cpu", "--checkpoint", snapshot, "--output", tmp_path / flip_test, "--set",
                         f"test.flip_test={flip_test}", *options)
        assert code == 0 and ("test.flip_test" in text) == (flip_test == "true")
        found.append(json.loads((tmp_path / flip_test / "result" / "metrics.json").read_text()))
    assert found[0]["protocols"]["lgnet"]["mpjpe"] != found[1]["protocols"]["lgnet"]["mpjpe"]
    assert isinstance(load_network(snapshot, ["test.flip_test=true"], torch.device("cpu")).predictor.model, FlipTest)
    assert not isinstance(load_network(snapshot, [], torch.device("cpu")).predictor.model, FlipTest)
