"""Every pair of hands of a photograph: find them, predict in at most two looks, align to what is sure.

    photo = PhotoPredictor(TwoHandPredictor.from_weights(), finder=HandFinder.from_files())
    for hands in photo(image):
        hands.present                   # which of the two hands the photograph shows

Legend: 2 the hand axis · 21 joints in MANO21 order.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from common.geometry import Box
from common.hands import WRIST, Hand
from common.predict.align import AlignedHands, Aligner, Evidence
from common.predict.finder import FoundHand, HandFinder
from common.predict.predictor import TwoHandPredictor
from common.types import TwoHands

_FLESH = 0.12               # beyond the joints, share of the longer side of their box
_WIDER = 1.5                # the first look round a hand whose partner may be beside it, in sides of its box
_NEAR = 3.0                 # largest distance of the two hands of a pair, in sizes of a hand
_ALIKE = 2.0                # largest ratio of their sizes
_MOVED = 0.1                # of its side: by how much a box moves or changes before it is looked at again
_SURE = 0.9                 # presence, and probability of the side, of joints that hands are aligned to
# Logit of a hand's presence: constant, share of the network's own, plus where the finder saw the hand, minus where it
# saw only the other one. Not calibrated: no shipped weights say which hands there are yet.
PRESENCE = (0.0, 1.0, 2.0, 1.0)
DEPTH_WEIGHT = 0.25         # of the depth that the landmark network gives, beside its joints in the image
_SAME = 1.0                 # distance of the found from the predicted joints, in sizes, up to which they are one hand
_SIDE = 0.2                 # what a nat of doubt about the side counts beside that distance


class Group(NamedTuple):
    """What belongs to one person."""

    box: Box | None                 # None: the whole photograph
    found: tuple[FoundHand, ...]


class PhotoPredictor:
    """Predicts all hands of photographs. See `__call__`.

    finder: None: the hands fill the photograph.  aligner: None: predictions stay as they are.  looks: 1 or 2.
    """

    def __init__(self, predictor: TwoHandPredictor, *, finder: HandFinder | None = None, aligner: Aligner | None = None,
                 looks: int = 2):
        self.predictor, self.finder, self.aligner, self.looks = predictor, finder, aligner, looks

    def __call__(self, image: np.ndarray, boxes: Sequence[Box] = ()) -> list[TwoHands]:
        """The hands of each person. If the photograph shows none, one prediction, of which neither hand is present.

        image: (H, W, 3) uint8 RGB.  boxes: tight round both hands of each person, who come in this order; none: the
        hands are looked for.
        """
        found = [] if self.finder is None else self.finder(image)
        if boxes:
            groups = [Group(box, tuple(hand for hand in found if _is_in(hand, box))) for box in boxes]
            people = self.predictor.batch([image] * len(groups), boxes)
        else:
            groups = grouped(found) or [Group(None, ())]
            people = self.predictor.batch([image] * len(groups), [first_look(group) for group in groups])
            if self.looks > 1:
                people = self._look_again(image, people)
        people = [with_presence(hands, group.found) for hands, group in zip(people, groups, strict=True)]
        if self.aligner is not None:
            people = aligned(people, groups, self.aligner)
        if boxes:
            return people
        return [hands for hands in people if hands.present.any()] or people[:1]

    def _look_again(self, image: np.ndarray, people: list[TwoHands]) -> list[TwoHands]:
        """Predictions for crops round the hands that the first ones show, where these lie elsewhere."""
        boxes = [predicted_box(hands) for hands in people]
        again = [index for index, (hands, box) in enumerate(zip(people, boxes, strict=True))
                 if box is not None and moved(hands, box, self.predictor.box_ratio)]
        if again:
            seen = self.predictor.batch([image] * len(again), [boxes[index] for index in again])
            for index, hands in zip(again, seen, strict=True):
                people[index] = hands
        return people


# ---------------------------------------------------------------- who has which hands, and where to look

def grouped(found: Sequence[FoundHand]) -> list[Group]:
    """One group for each person: hands that lie near each other, are of similar size and can be a left and a right one
    make a pair, the likeliest first."""
    pairs = sorted((cost, first, second) for first in range(len(found)) for second in range(first)
                   if (cost := _pair_cost(found[first], found[second])) is not None)
    taken: dict[int, tuple[int, ...]] = {}
    for _, *pair in pairs:
        if not taken.keys() & set(pair):
            taken |= dict.fromkeys(pair, tuple(sorted(pair)))
    members = dict.fromkeys(taken.get(index, (index,)) for index in range(len(found)))
    return [Group(_joined_box([found[index] for index in indices]), tuple(found[index] for index in indices))
            for indices in members]


def _pair_cost(one: FoundHand, other: FoundHand) -> float | None:
    """The lower, the likelier two hands are those of one person; None if they are not."""
    sizes = np.array([one.size_px, other.size_px])
    between = float(np.linalg.norm(one.joints_px.mean(axis=0) - other.joints_px.mean(axis=0)) / sizes.mean())
    is_pair = one.right * (1 - other.right) + other.right * (1 - one.right)      # probability of two different sides
    if between > _NEAR or sizes.max() > _ALIKE * sizes.min() or is_pair < 0.1:
        return None
    return between - float(np.log(is_pair))


def _joined_box(hands: Sequence[FoundHand]) -> Box:
    points = np.concatenate([hand.joints_px for hand in hands])
    return _box(points, _FLESH)


def _box(points: np.ndarray, spare: float) -> Box:
    """The box round points (N, 2), larger on every side by `spare` of its longer side."""
    low, high = points.min(axis=0), points.max(axis=0)
    spare_px = spare * float((high - low).max())
    x, y = low - spare_px
    width, height = high - low + 2 * spare_px
    return float(x), float(y), float(width), float(height)


def _is_in(hand: FoundHand, box: Box) -> bool:
    """Whether most of a hand lies in a box."""
    low = np.array(box[:2])
    return bool(((hand.joints_px >= low) & (hand.joints_px <= low + box[2:])).all(axis=1).mean() > 0.5)


def first_look(group: Group) -> Box | None:
    """The box of a group's first look; None: the whole photograph."""
    if group.box is None or len(group.found) == 2:
        return group.box
    x, y, width, height = group.box                 # its partner may lie beside it and not have been found
    wider = (_WIDER - 1) * max(width, height) / 2
    return x - wider, y - wider, width + 2 * wider, height + 2 * wider


def predicted_box(hands: TwoHands) -> Box | None:
    """The box round the hands that a prediction shows; None if it shows none."""
    if not hands.present.any():
        return None
    return _box(hands.to_px(hands.vertices)[hands.present].reshape(-1, 2), 0.0)


def moved(hands: TwoHands, box: Box, box_ratio: float) -> bool:
    """Whether a crop round the box would be clearly another one than that of the prediction."""
    side = max(box[2:]) / box_ratio
    center = np.array(box[:2]) + np.array(box[2:]) / 2
    seen_side = float(hands.crop_px[2])
    return bool(np.abs(center - hands.crop_px[:2]).max() > _MOVED * seen_side
                or abs(np.log(side / seen_side)) > np.log(1 + _MOVED))


# ---------------------------------------------------------------- presence and alignment

def with_presence(hands: TwoHands, found: Sequence[FoundHand]) -> TwoHands:
    """The hands with the finder's opinion on which there are."""
    matches = matched(hands, found)
    known = hands.presence.clip(1e-6, 1 - 1e-6)
    logits = PRESENCE[0] + PRESENCE[1] * np.log(known / (1 - known))
    for hand in Hand:
        if hand in matches:
            logits[hand] += PRESENCE[2]
        elif found:
            logits[hand] -= PRESENCE[3]
    presence = np.where(hands.presence == 1, 1.0, 1 / (1 + np.exp(-logits)))    # 1: the network does not say
    return hands._replace(presence=presence)


def matched(hands: TwoHands, found: Sequence[FoundHand]) -> dict[Hand, FoundHand]:
    """Which hand of the prediction each found one is; one that lies elsewhere is none of them."""
    predicted = hands.to_px(hands.joints)                                       # (2, 21, 2)
    sizes = np.linalg.norm(np.ptp(predicted, axis=1), axis=-1)
    costs = []
    for hand in Hand:
        for index, one in enumerate(found):
            distance = float(np.linalg.norm(one.joints_px - predicted[hand], axis=1).mean() / max(sizes[hand], 1.0))
            side = one.right if hand is Hand.RIGHT else 1 - one.right
            if distance < _SAME:
                costs.append((distance - _SIDE * np.log(max(side, 1e-3)), hand, index))
    matches: dict[Hand, FoundHand] = {}
    taken: set[int] = set()
    for _, hand, index in sorted(costs):
        if hand not in matches and index not in taken:
            matches[hand] = found[index]
            taken.add(index)
    return matches


def aligned(people: list[TwoHands], groups: Sequence[Group], aligner: Aligner) -> list[TwoHands]:
    """The predictions, those hands aligned whose joints the finder is sure of."""
    places = [(index, hand, one) for index, (hands, group) in enumerate(zip(people, groups, strict=True))
              for hand, one in matched(hands, group.found).items() if hands.present[hand] and _is_sure(one, hand)]
    if not places:
        return people
    start = AlignedHands(*(torch.from_numpy(np.stack([getattr(people[index], name)[hand] for index, hand, _ in places])
                                            ).float() for name in ("rotations", "shape", "scale_px_per_m", "wrist_px")))
    side = torch.tensor([int(hand) for _, hand, _ in places])
    found = aligner(start, side, evidence([one for *_, one in places]))
    for row, (index, hand, _) in enumerate(places):
        people[index] = replaced(people[index], hand, _row(start, row), _row(found, row), aligner)
    return people


def _is_sure(found: FoundHand, hand: Hand) -> bool:
    side = found.right if hand is Hand.RIGHT else 1 - found.right
    return min(found.presence, side) >= _SURE


def evidence(found: Sequence[FoundHand]) -> Evidence:
    """The joints of found hands. Their depth is that of the landmark network's metres in the scale of the image."""
    joints = np.stack([one.joints_px for one in found])
    metres = np.stack([one.joints_m for one in found])
    reach = np.linalg.norm(joints - joints[:, WRIST, None], axis=-1).sum(axis=1)
    scale = reach / np.linalg.norm(metres[..., :2], axis=-1).sum(axis=1).clip(min=1e-6)
    sure = torch.ones(joints.shape[:2])
    return Evidence(torch.from_numpy(joints).float(), sure,
                    torch.from_numpy(metres[..., 2] * scale[:, None]).float(), DEPTH_WEIGHT * sure)


def replaced(hands: TwoHands, hand: Hand, before: AlignedHands, after: AlignedHands, aligner: Aligner) -> TwoHands:
    """The prediction with one hand aligned. What the refine stage added turns along with the wrist."""
    side = torch.tensor([int(hand)])
    coarse, mesh = (aligner.meshes(one, side)[0][0].numpy() for one in (before, after))
    turn = (after.rotations[0, 0] @ before.rotations[0, 0].T).numpy()
    own = hands.vertices[hand] - hands.wrists[hand]
    vertices = mesh + (own - coarse) @ turn.T
    changes = {
        "vertices": vertices + hands.wrists[hand],
        "joints": aligner.layer.regressor[hand].numpy() @ vertices + hands.wrists[hand],
        "rotations": after.rotations[0].numpy(), "shape": after.shape[0].numpy(),
        "scale_px_per_m": float(after.scale[0]), "wrist_px": after.wrist[0].numpy(),
    }
    copies = {name: getattr(hands, name).copy() for name in changes}
    for name, value in changes.items():
        copies[name][hand] = value
    return hands._replace(**copies)


def _row(hands: AlignedHands, row: int) -> AlignedHands:
    return AlignedHands(*(field[row:row + 1] for field in hands))
