"""From a photograph to the hands of each person: groups, looks, presence and alignment."""

import numpy as np
import pytest
import torch

from common.hands import Hand
from common.mano.model import ManoLayer
from common.predict.align import Aligner
from common.predict.finder import FoundHand
from common.predict.photo import PhotoPredictor, first_look, grouped, matched, moved, predicted_box, with_presence
from common.types import ManoParams, TwoHands

IMAGE = np.zeros((400, 600, 3), dtype=np.uint8)
SHAPE = np.array([[x, y] for y in (-0.5, -0.2, 0.0) for x in np.linspace(-0.5, 0.5, 7)])     # 21 joints of some hand


def found(x: float, y: float, size: float = 100.0, right: float = 0.95, presence: float = 0.95) -> FoundHand:
    return FoundHand(SHAPE * size + [x, y], np.concatenate([SHAPE, np.zeros((21, 1))], 1) / 6, presence, right)


def hands_like(model, places: dict[Hand, FoundHand], presence=(1.0, 1.0), crop=(300.0, 200.0, 400.0)) -> TwoHands:
    """A prediction whose hands lie, upright and flat, where the given ones are."""
    layer = ManoLayer(model)
    eye = torch.eye(3).expand(1, 2, 16, 3, 3)
    vertices, joints = (part[0].numpy() for part in layer.about_wrist(ManoParams(eye, torch.zeros(1, 2, 10))))
    scale, wrist = np.full(2, 500.0), np.zeros((2, 2))
    for hand in Hand:
        middle = places[hand].joints_px.mean(axis=0) if hand in places else np.array([-900.0, -900.0])
        wrist[hand] = middle - 500 * joints[hand, :, :2].mean(axis=0)
    return TwoHands(vertices=vertices, joints=joints, rotations=eye[0].numpy().copy(), shape=np.zeros((2, 10)),
                    relative=np.zeros(3), scale_px_per_m=scale, wrist_px=wrist, crop_px=np.array(crop),
                    presence=np.array(presence), confidence=np.full((2, 21), 0.5))


class Looks:
    """A predictor that says what it is told to and keeps where it looked."""

    box_ratio = 0.8

    def __init__(self, *answers: TwoHands):
        self.answers, self.boxes = list(answers), []

    def batch(self, images, boxes):
        self.boxes.append(list(boxes))
        return [self.answers.pop(0) for _ in boxes]


# ---------------------------------------------------------------- groups

def test_a_left_and_a_right_hand_near_each_other_are_one_persons():
    groups = grouped([found(100, 100), found(260, 120, right=0.05), found(1500, 100)])
    assert [len(group.found) for group in groups] == [2, 1]
    assert groups[0].found[0].right > 0.5 > groups[0].found[1].right


@pytest.mark.parametrize("other", [
    found(160, 120, right=0.99, presence=0.9), found(900, 100, right=0.05), found(180, 100, size=30, right=0.05),
], ids=["same side", "far away", "much smaller"])
def test_hands_that_cannot_be_one_persons_are_two_people(other):
    assert [len(group.found) for group in grouped([found(100, 100, right=0.99), other])] == [1, 1]


def test_four_hands_of_two_people_are_paired_with_their_neighbours():
    hands = [found(x, 200, right=right) for x, right in ((100, 0.9), (620, 0.1), (210, 0.1), (510, 0.9))]
    assert [sorted(hand.joints_px[:, 0].mean() for hand in group.found) for group in grouped(hands)] == \
        [pytest.approx([100, 210]), pytest.approx([510, 620])]


def test_the_box_of_a_group_holds_its_joints_and_a_lone_hand_is_seen_with_room_for_its_partner():
    pair, = grouped([found(100, 100), found(220, 100, right=0.05)])
    x, y, width, height = first_look(pair)
    assert x < 50 and x + width > 270 and y < 50 and y + height > 100
    alone, = grouped([found(100, 100)])
    assert first_look(alone)[2] > 1.3 * alone.box[2]
    assert first_look(grouped([found(100, 100)])[0]._replace(box=None, found=())) is None


# ---------------------------------------------------------------- looks

def test_hands_that_lie_elsewhere_are_looked_at_again_and_others_are_not(hand_model):
    hand = found(300, 200)
    off = hands_like(hand_model, {Hand.RIGHT: hand, Hand.LEFT: hand}, crop=(250, 200, 500))
    box = predicted_box(off)
    well = off._replace(crop_px=np.array([box[0] + box[2] / 2, box[1] + box[3] / 2, max(box[2:]) / 0.8]))
    assert moved(off, box, 0.8) and not moved(well, box, 0.8)
    looks = Looks(off, well)
    assert PhotoPredictor(looks, finder=None)(IMAGE)[0] is not off and looks.boxes == [[None], [box]]
    once = Looks(well)
    PhotoPredictor(once, finder=None)(IMAGE)
    assert once.boxes == [[None]]
    single = Looks(off)
    PhotoPredictor(single, finder=None, looks=1)(IMAGE)
    assert single.boxes == [[None]]


def test_boxes_of_the_user_are_taken_as_they_are_and_in_their_order(hand_model):
    hand = found(300, 200)
    answers = [hands_like(hand_model, {Hand.RIGHT: hand}, presence=(0.9, 0.1), crop=(place, place, 9))
               for place in (1, 2)]
    boxes = [(10.0, 10.0, 50.0, 50.0), (100.0, 100.0, 60.0, 60.0)]
    looks = Looks(*answers)
    people = PhotoPredictor(looks, finder=lambda image: [])(IMAGE, boxes)
    assert looks.boxes == [boxes] and [hands.crop_px[0] for hands in people] == [1, 2]


def test_an_image_without_hands_gives_one_prediction_that_says_so(hand_model):
    nobody = hands_like(hand_model, {}, presence=(0.1, 0.2))
    people = PhotoPredictor(Looks(nobody), finder=lambda image: [])(IMAGE)
    assert len(people) == 1 and not people[0].present.any() and predicted_box(people[0]) is None


def test_people_without_a_hand_are_left_out_where_others_have_one(hand_model):
    one, other = found(100, 200), found(500, 200)
    seen = hands_like(hand_model, {Hand.RIGHT: one}, presence=(0.9, 0.1))
    looks = Looks(hands_like(hand_model, {}, presence=(0.01, 0.01)), seen)
    people = PhotoPredictor(looks, finder=lambda image: [one, other], looks=1)(IMAGE)
    assert len(people) == 1 and people[0].present.tolist() == [True, False]


# ---------------------------------------------------------------- presence and alignment

def test_what_the_finder_sees_makes_a_hand_likelier_and_what_it_does_not_less(hand_model):
    right = found(300, 200)
    unsure = hands_like(hand_model, {Hand.RIGHT: right, Hand.LEFT: found(500, 200)}, presence=(0.5, 0.5))
    seen = with_presence(unsure, [right])
    assert seen.presence[Hand.RIGHT] > 0.6 > 0.5 > seen.presence[Hand.LEFT]
    nothing = with_presence(unsure, [])
    assert nothing.presence[Hand.RIGHT] == nothing.presence[Hand.LEFT]


def test_a_network_that_does_not_say_which_hands_there_are_keeps_both(hand_model):
    right = found(300, 200)
    assert with_presence(hands_like(hand_model, {Hand.RIGHT: right}), [right]).presence.tolist() == [1, 1]


def test_found_hands_are_matched_by_place_and_then_by_side(hand_model):
    right, left = found(250, 200, right=0.9), found(420, 200, right=0.1)
    hands = hands_like(hand_model, {Hand.RIGHT: right, Hand.LEFT: left})
    assert matched(hands, [left, right]) == {Hand.RIGHT: right, Hand.LEFT: left}
    assert matched(hands, [found(2000, 200)]) == {}
    clasped = hands_like(hand_model, {Hand.RIGHT: right, Hand.LEFT: right})
    assert list(matched(clasped, [right])) == [Hand.RIGHT]
    assert list(matched(clasped, [right._replace(right=0.02)])) == [Hand.LEFT]


def test_a_hand_is_aligned_to_joints_that_are_sure_and_the_other_hand_stays(hand_model):
    aligner = Aligner(hand_model)
    place = found(300, 200)
    hands = hands_like(hand_model, {Hand.RIGHT: place, Hand.LEFT: found(500, 200)})
    truth = hands.to_px(hands.joints)[Hand.RIGHT] + [12.0, -8.0]
    metres = hands.joints[Hand.RIGHT] - hands.joints[Hand.RIGHT, :1]
    sure = FoundHand(truth, metres, 0.99, 0.99)
    with_it = PhotoPredictor(Looks(hands), finder=lambda image: [sure], aligner=aligner, looks=1)(IMAGE)[0]
    off = np.linalg.norm(with_it.to_px(with_it.joints)[Hand.RIGHT] - truth, axis=1).mean()
    assert off < 2 < np.linalg.norm(hands.to_px(hands.joints)[Hand.RIGHT] - truth, axis=1).mean()
    np.testing.assert_array_equal(with_it.vertices[Hand.LEFT], hands.vertices[Hand.LEFT])
    unsure = sure._replace(right=0.6)
    without = PhotoPredictor(Looks(hands), finder=lambda image: [unsure], aligner=aligner, looks=1)(IMAGE)[0]
    np.testing.assert_array_equal(without.vertices, hands.vertices)


def test_what_the_refine_stage_added_turns_along_with_the_wrist(hand_model):
    """A hand is aligned to itself turned by 20° in the image: the offsets turn, too."""
    aligner = Aligner(hand_model)
    hands = hands_like(hand_model, {Hand.RIGHT: found(300, 200), Hand.LEFT: found(900, 200)})
    offset = np.random.default_rng(0).normal(0, 0.002, (778, 3))
    offset -= aligner.layer.regressor[Hand.RIGHT].numpy()[0] @ offset           # the wrist stays
    bumpy = hands._replace(vertices=hands.vertices + np.stack([offset, 0 * offset]))
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    metres = (hands.joints[Hand.RIGHT] - hands.joints[Hand.RIGHT, :1]) @ turn.T
    sure = FoundHand(500 * metres[:, :2] + hands.wrist_px[Hand.RIGHT], metres, 0.99, 0.99)
    result = PhotoPredictor(Looks(bumpy), finder=lambda image: [sure], aligner=aligner, looks=1)(IMAGE)[0]
    expected = bumpy.vertices[Hand.RIGHT] @ turn.T
    assert np.linalg.norm(result.vertices[Hand.RIGHT] - expected, axis=1).mean() < 0.004
    reached = result.rotations[Hand.RIGHT, 0]
    plain = PhotoPredictor(Looks(hands), finder=lambda image: [sure], aligner=aligner, looks=1)(IMAGE)[0]
    np.testing.assert_allclose(result.vertices[Hand.RIGHT] - plain.vertices[Hand.RIGHT], offset @ reached.T, atol=2e-4)
