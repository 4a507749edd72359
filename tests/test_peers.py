"""What the evaluation code of each peer gives for one file of predictions, worked out by loops of their own.

Forty samples of distorted hands, single and interacting, with the holes of real annotations: joints that are not
annotated, 7 % of the wrists among them, and hands without a fit.
"""

import math
from itertools import product

import numpy as np
import pytest
import torch
from toy_hands import ONE_HOT, random_hands

from common.hands import INTERWILD_TIP_VERTICES, MODEL16, TIP_VERTICES
from common.score.metrics import PROTOCOLS
from common.score.tally import Scorer

COUNT, SINGLE, INTERACTING = 40, "single", "interacting"
FINGERS = ("thumb", "index", "middle", "ring", "pinky")
# As each peer's own definition gives them, mm; AUC in percent.
GOLDEN = {
    "lgnet": {"mrrpe": 27.767083, "mpjpe": 19.487560, "single": 20.914226,
              "interacting": 18.354620, "mpvpe": 17.726569, "auc_200": 61.310122},
    "intaghand": {"mrrpe": 27.767083, "mpjpe": 18.857875, "single": 19.102843,
                  "interacting": 18.663341, "mpvpe": 17.199787, "auc_200": 62.534922},
    "interwild": {"mrrpe": 28.022114, "mpjpe": 21.011060, "mpjpe_pooled": 21.174436, "single": 20.252222,
                  "interacting": 21.769897, "mpvpe": 17.912449, "auc_200": 57.661929},
    "interwild_mesh": {"mrrpe": 25.161133, "mpjpe": 22.095284, "mpjpe_pooled": 22.104644, "single": 21.703608,
                       "interacting": 22.486959, "mpvpe": 18.125223, "auc_200": 55.840904},
    "internet": {"mrrpe": 26.179092, "mpjpe": 21.134003, "single": 20.200819,
                 "interacting": 21.734803, "auc_200": 57.743019},
    "eanet": {"mrrpe": 27.767083, "mpjpe": 18.622441, "mpjpe_pooled": 18.620724, "single": 18.617306,
              "interacting": 18.627575, "mpvpe": 17.084912, "mpvpe_pooled": 17.260348, "auc_200": 62.839081},
}


def hand_type(index: int) -> str:
    return ("right", "left", "interacting", "interacting")[index % 4]


@pytest.fixture(scope="module")
def case():
    """Targets and predictions. Of every third single sample the hand that is not shown is annotated and fitted too, and
    three samples have no wrist at all."""
    targets, hands = random_hands(COUNT, 5)
    rng = np.random.default_rng(6)
    seen = rng.random((COUNT, 2, 21)) < 0.95
    seen[..., 0] = rng.random((COUNT, 2)) < 0.93
    fitted = rng.random((COUNT, 2)) < 0.9
    for index in range(COUNT):
        if hand_type(index) != "interacting" and index % 3:
            other = int(hand_type(index) == "right")
            seen[index, other] = fitted[index, other] = False
    seen[[2, 7, 13], :, 0] = False
    targets.joints_annotated_valid[:] = torch.from_numpy(seen.astype(float))
    targets.joints_valid[:] = torch.from_numpy((seen & seen[..., :1]).astype(float))
    targets.vertices_valid[:] = torch.from_numpy(fitted.astype(float))
    targets.relative_valid[:] = torch.from_numpy(seen[..., 0].all(axis=1).astype(float))
    return targets, hands


def joints_of(mesh: np.ndarray, tips: tuple[int, ...]) -> list[np.ndarray]:
    rows = [MODEL16.index("wrist")]
    for finger, tip in zip(FINGERS, tips, strict=True):
        rows += [*(MODEL16.index(f"{finger}{k}") for k in (1, 2, 3)), tip]
    return [mesh[row] for row in rows]


def distance(a, b) -> float:
    return 1000 * math.sqrt(sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True)))


def hand_errors(name: str, case, index: int, side: int) -> tuple[list[float | None], float | None]:
    """Errors of the 21 joints and of the mesh of one hand; None for what the peer's code leaves out."""
    targets, hands = case
    tips = INTERWILD_TIP_VERTICES if name.startswith("interwild") else TIP_VERTICES
    mesh, true_mesh = hands.vertices[index, side].numpy(), targets.vertices[index, side].numpy()
    guess, truth = joints_of(mesh, tips), joints_of(true_mesh, tips)
    seen = [bool(value) for value in targets.joints_annotated_valid[index, side]]
    seen = [value and seen[0] for value in seen]
    fitted = bool(targets.vertices_valid[index, side])
    root = 9 if name in ("intaghand", "eanet") else 0
    true_joints, counted = truth, [fitted] * 21
    if name in ("interwild", "internet"):
        true_joints, counted = list(targets.joints_annotated[index, side].numpy()), seen
    if name == "eanet":
        counted = [fitted and value for value in seen]
    scale = 1.0
    if name in ("lgnet", "intaghand", "eanet"):
        scale = distance(truth[9], truth[0]) / distance(guess[9], guess[0])
    joints = [distance(scale * (guess[j] - guess[root]), true_joints[j] - true_joints[root]) if counted[j] else None
              for j in range(21)]
    if name == "internet" or not fitted:
        return joints, None
    points = [distance(scale * (p - guess[root]), t - truth[root]) for p, t in zip(mesh, true_mesh, strict=True)]
    return joints, sum(points) / len(points)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def peers_numbers(name: str, case) -> dict[str, float]:
    """As the peer's code averages."""
    targets, hands = case
    joints: dict[tuple[str, int, int], list[float]] = {}
    meshes: dict[str, list[list[float]]] = {SINGLE: [], INTERACTING: []}
    relative = []
    for index in range(COUNT):
        kind = INTERACTING if hand_type(index) == "interacting" else SINGLE
        of_sample = []
        shown = [kind == INTERACTING or label == hand_type(index) for label in ("right", "left")]
        wrists_seen = [bool(value) for value in targets.joints_annotated_valid[index, :, 0]]
        for side in (0, 1):
            errors, mesh = hand_errors(name, case, index, side)
            for j, error in enumerate(errors):
                if error is not None:
                    joints.setdefault((kind, side, j), []).append(error)
            if mesh is not None and not (name == "interwild" and not (shown[side] and wrists_seen[side])
                                         or name == "eanet" and not shown[side]):
                of_sample.append(mesh)
        if name == "eanet" and (len(of_sample) < sum(shown) or not any(wrists_seen)):
            of_sample = []
        meshes[kind] += [of_sample] if of_sample else []
        if name in ("interwild", "internet"):
            known = all(bool(value) for value in targets.joints_annotated_valid[index, :, 0])
            wrists = targets.joints_annotated[index, :, 0].numpy()
            true = wrists[1] - wrists[0]
        else:
            known = bool(targets.relative_valid[index]) and bool(targets.vertices_valid[index].all())
            true = targets.relative[index].numpy()
        if name in ("internet", "interwild_mesh"):
            known = known and kind == INTERACTING
        relative += [distance(hands.relative[index].numpy(), true)] if known else []

    def of_joint(side: int, j: int) -> list[float]:
        return [error for kind in (SINGLE, INTERACTING) for error in joints.get((kind, side, j), [])]

    every = [of_joint(side, j) for side, j in product((0, 1), range(21))]
    by_kind = {kind: [joints[kind, side, j] for side, j in product((0, 1), range(21))]
               for kind in (SINGLE, INTERACTING)}
    found = {"mrrpe": mean(relative)}
    if name in ("lgnet", "intaghand"):
        found["mpjpe"] = mean([error for errors in every for error in errors])
        groups = {kind: mean([error for errors in lists for error in errors]) for kind, lists in by_kind.items()}
    else:
        groups = {kind: mean([mean(errors) for errors in lists]) for kind, lists in by_kind.items()}
        pooled = mean([mean(errors) for errors in every])
        found["mpjpe"] = pooled
        if name != "internet":
            found |= {"mpjpe_pooled": pooled,
                      "mpjpe": mean([mean(errors) for lists in by_kind.values() for errors in lists])}
    found |= groups
    all_meshes = [hands_ for lists in meshes.values() for hands_ in lists]
    if name != "internet":
        over_hands = mean([error for of_sample in all_meshes for error in of_sample])
        found["mpvpe"] = over_hands
        if name == "eanet":
            found |= {"mpvpe": mean([mean(of_sample) for of_sample in all_meshes]), "mpvpe_pooled": over_hands}
    areas = []
    for errors in every:
        curve = [mean([float(error <= 50 * step / 199) for error in errors]) for step in range(200)]
        areas.append(sum((low + high) / 2 for low, high in zip(curve, curve[1:], strict=False)) / 199)
    return found | {"auc_200": 100 * mean(areas)}


@pytest.fixture(scope="module")
def product_scores(case):
    scorer = Scorer(ONE_HOT, COUNT, lambda index: f"Capture0/{index % 5}/cam0/{index}.jpg", hand_type)
    for rows in torch.arange(COUNT).split(7):
        targets = type(case[0])(*(value[rows] if isinstance(value, torch.Tensor) else
                                  type(value)(*(part[rows] for part in value)) for value in case[0]))
        scorer.add(case[1]._replace(vertices=case[1].vertices[rows], relative=case[1].relative[rows]), targets, rows)
    return scorer.tally


@pytest.mark.parametrize("name", PROTOCOLS)
def test_each_protocol_gives_what_its_peers_code_gives(name: str, case, product_scores):
    expected, scores = peers_numbers(name, case), product_scores.protocol_scores(PROTOCOLS[name])
    found = {key: getattr(scores, key) for key in expected if key not in (SINGLE, INTERACTING)}
    found |= {kind: scores.groups[kind].mpjpe for kind in (SINGLE, INTERACTING)}
    assert found == pytest.approx(expected, abs=1e-6)
    assert found == pytest.approx(GOLDEN[name], abs=2e-6)
