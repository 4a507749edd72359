"""Posed hands: natural angles, fingers that touch and do not pass through each other, the same in every batch."""

import json

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from common.hands import MANO21, MODEL16, TIP_VERTICES, Hand
from common.mano.load import load_hand_model
from common.types import ManoParams
from data.synthetic.picture.camera import sample_cameras
from data.synthetic.pose import contact
from data.synthetic.pose.arm import wrist_angles
from data.synthetic.pose.articulation import PRESETS, Rig, finger_rotations, load_rig, rest_joints, sample_angles
from data.synthetic.pose.families import FAMILIES, FAMILY_SHARES, sample_kind, sample_single
from data.synthetic.pose.interaction import own_depth_mm
from data.synthetic.pose.kinematics import HandPoses, bone_frames, posed_points, wrench
from data.synthetic.pose.posing import build_hand_set, pose_steps
from data.synthetic.pose.proxies import shaped
from tool.dev import synthetic_statistics

KINDS = (*FAMILIES, "right", "left")
FINGERS = ("index", "middle", "ring", "pinky")
APART = ("apart", "near", "side_by_side")      # families that need not touch


@pytest.fixture(scope="module")
def hands():
    return build_hand_set(load_hand_model("builtin"))


def pose(kinds, hands, seed=0):
    shapes = np.stack([np.random.default_rng([seed, k, 1]).normal(0, 0.9, 10) for k in range(len(kinds))])
    return pose_steps(list(kinds), shapes, [np.random.default_rng([seed, k]) for k in range(len(kinds))], hands.solver)


@pytest.fixture(scope="module")
def steps(hands):
    """Three time steps of each kind."""
    kinds = [kind for kind in KINDS for _ in range(3)]
    return list(zip(kinds, pose(kinds, hands), strict=True))


def rows(finger):
    return [MANO21.index(f"{finger}{k}") for k in (1, 2, 3, 4)]


# ---------------------------------------------------------------- single hands

@pytest.mark.parametrize("preset", PRESETS)
def test_a_bent_finger_is_hardly_spread_and_its_last_joint_follows_the_second(preset):
    rig, rng = load_rig(), np.random.default_rng(0)
    angles = np.degrees([sample_angles(rig, preset, 1.0, rng) for _ in range(100)])
    for finger in FINGERS:
        first, second, last = (angles[:, MODEL16.index(f"{finger}{k}") - 1] for k in (1, 2, 3))
        assert (np.abs(first[first[:, 0] > 80, 1]) < 9).all()
        assert (np.abs(last[:, 0] - second[:, 0].clip(0) * 2 / 3) < 18).all()


def test_the_ring_finger_takes_its_neighbours_along_more_than_the_index():
    rig, rng = load_rig(), np.random.default_rng(0)
    first = np.array([sample_angles(rig, "cup", 1.0, rng)[[MODEL16.index(f"{f}1") - 1 for f in FINGERS], 0]
                      for _ in range(600)])
    company = np.corrcoef((first - first.mean(axis=1, keepdims=True)).T)
    assert company[2, 3] > company[0, 3]


def test_no_preset_passes_through_itself(hands):
    bones = hands.model.weights[Hand.RIGHT].argmax(dim=1).numpy()
    for preset in PRESETS:
        angles = torch.from_numpy(sample_angles(hands.solver.rig, preset, 0.0, np.random.default_rng(0))).float()
        rotations = torch.eye(3).repeat(1, 2, 16, 1, 1)
        rotations[0, Hand.RIGHT, 1:] = finger_rotations(hands.solver.rig, angles)
        with torch.no_grad():
            vertices = hands.solver.layer(ManoParams(rotations, torch.zeros(1, 2, 10)))[0, Hand.RIGHT].double().numpy()
        assert own_depth_mm(vertices, hands.model.faces[Hand.RIGHT].numpy(), bones) < 2, preset


def test_pinching_fingers_meet_the_thumb(hands):
    """The pads of single hands whose start wants thumb and finger to meet."""
    rngs = [np.random.default_rng(k) for k in range(40)]
    wished = [sample_single(Hand.RIGHT, hands.solver.rig, rng).attractions for rng in rngs]
    chosen = [k for k, wish in enumerate(wished) if wish]
    done = pose_steps(["right"] * len(chosen), np.zeros((len(chosen), 10)),
                      [np.random.default_rng(k) for k in chosen], hands.solver)
    tips = dict(zip(("thumb", *FINGERS), TIP_VERTICES, strict=True))
    gaps = []
    for k, step in zip(chosen, done, strict=True):
        finger = wished[k][0].names[1].removesuffix("_pad")
        tip = [step.vertices[Hand.RIGHT][tips[name]] for name in ("thumb", finger)]
        gaps.append(np.linalg.norm(tip[0] - tip[1]))
    assert len(gaps) > 2 and np.median(gaps) < 0.022        # fingertips whose pads touch stand side by side


# ---------------------------------------------------------------- two hands

def test_families_touch_unless_they_are_meant_to_be_apart(steps, hands):
    for kind, step in steps:
        meeting = step.interaction(hands.model)
        if kind in ("right", "left"):
            assert meeting is None and step.present == (Hand[kind.upper()],)
        elif kind not in APART:
            assert meeting.gap_mm < 5, kind
        elif kind == "apart":
            assert meeting.max_depth_mm < 3


def test_hands_hardly_pass_through_each_other_or_themselves(steps, hands):
    bones = hands.model.weights[Hand.RIGHT].argmax(dim=1).numpy()
    depth = [step.interaction(hands.model).max_depth_mm for kind, step in steps if kind in FAMILIES]
    own = [own_depth_mm(step.vertices[hand].astype(float), hands.model.faces[hand].numpy(), bones)
           for _, step in steps[::3] for hand in step.present]
    assert np.percentile(depth, 95) < 3 and np.percentile(own, 95) < 2


def test_settled_angles_are_within_the_joint_limits(steps, hands):
    limits = hands.solver.rig.limits.numpy()
    for _, step in steps:
        for hand in step.present:
            assert (step.angles[hand] >= limits[..., 0] - 1e-5).all()
            assert (step.angles[hand] <= limits[..., 1] + 1e-5).all()


def filled_gaps(joints):
    """How many of the six gaps between neighbouring fingers are passed by a finger of the other hand.

    joints: (2, 21, 3). A gap is a strip of triangles between two fingers; a finger that passes it pierces the strip.
    """
    filled = 0
    for hand in Hand:
        for one, other in zip(FINGERS, FINGERS[1:], strict=False):
            a, b = joints[hand, rows(one)], joints[hand, rows(other)]
            strip = [corner for k in range(3) for corner in ((a[k], a[k + 1], b[k]), (b[k], a[k + 1], b[k + 1]))]
            lines = [joints[hand.other, rows(finger)] for finger in FINGERS]
            filled += any(sum(pierces(line[k], line[k + 1], corners) for k in range(3) for corners in strip) % 2
                          for line in lines)
    return filled


def pierces(start, end, corners):
    """Whether a segment goes through a triangle, by signs of volumes."""
    a, b, c = corners

    def side(p, q, r, s):
        return np.sign(np.linalg.det(np.stack([q - p, r - p, s - p])))
    if side(a, b, c, start) == side(a, b, c, end):
        return False
    return len({side(start, end, a, b), side(start, end, b, c), side(start, end, c, a)}) == 1


def test_interlaced_fingers_pass_between_fingers(hands):
    laced = [filled_gaps(hands.joints(step.vertices)) for step in pose(["interlaced"] * 24, hands, seed=2)]
    flat = [filled_gaps(hands.joints(step.vertices)) for step in pose(["side_by_side"] * 8, hands, seed=2)]
    assert np.median(laced) == 6 and np.mean(np.array(laced) >= 5) > 0.7 and np.median(flat) == 0


def test_a_pose_does_not_depend_on_the_batch_it_is_in(hands):
    """To the last bit: alone, among others, in another order."""
    kinds = [*KINDS, *KINDS[:3]]
    shapes = np.random.default_rng(0).normal(0, 0.9, (len(kinds), 10))

    def posed(order):
        rngs = [np.random.default_rng([3, k]) for k in order]
        return pose_steps([kinds[k] for k in order], shapes[order], rngs, hands.solver)
    together = posed(list(range(len(kinds))))
    for order in ([11], [4, 10, 2], list(range(len(kinds)))[::-1]):
        for k, step in zip(order, posed(order), strict=True):
            np.testing.assert_array_equal(step.vertices, together[k].vertices)
            np.testing.assert_array_equal(step.rotations, together[k].rotations)


def test_kinds_follow_their_shares():
    rng = np.random.default_rng(0)
    kinds = [sample_kind(0.8, rng) for _ in range(4000)]
    assert np.mean([kind in FAMILIES for kind in kinds]) == pytest.approx(0.8, abs=0.03)
    for kind, share in FAMILY_SHARES.items():
        assert kinds.count(kind) / len(kinds) == pytest.approx(0.8 * share, abs=0.015)


# ---------------------------------------------------------------- wrists and cameras

def test_few_wrists_stand_at_their_limit(steps):
    degrees = np.array([np.degrees(wrist_angles(step.rotation_own, step.forearm_own)) for _, step in steps])
    extension, deviation = np.abs(degrees).swapaxes(0, 1)
    assert extension.max() < 63 and deviation.max() < 25
    assert np.mean((extension > 60) | (deviation > 22)) < 0.2


def test_cameras_see_hands_from_all_round(steps):
    """Directions from the right hand to cameras, in the hand's frame: all eight octants, no side preferred much."""
    views = []
    for number, (_, step) in enumerate(steps):
        for camera in sample_cameras(12, True, np.random.default_rng(number)):
            way = camera.position - step.vertices[Hand.RIGHT].mean(axis=0)
            views.append(step.rotation_own[Hand.RIGHT].T @ way / np.linalg.norm(way))
    views = np.array(views)
    shares = np.bincount((views > 0) @ [1, 2, 4], minlength=8) / len(views)
    assert shares.min() > 0.03 and np.linalg.norm(views.mean(axis=0)) < 0.45


# ---------------------------------------------------------------- the solver's parts

def test_forces_turn_joints_as_automatic_differentiation_says():
    rig, generator = load_rig(), torch.Generator().manual_seed(0)
    rig = Rig(rig.axes.double(), rig.limits.double(), rig.is_knuckle)
    joints = rest_joints(load_hand_model("builtin"), np.zeros(10)).expand(3, -1, -1)
    rotation = torch.from_numpy(Rotation.random(6, rng=np.random.default_rng(0)).as_matrix()).view(3, 2, 3, 3)
    angles, wrist, offset, force = (torch.randn(3, *size, 3, generator=generator, dtype=torch.float64)
                                    for size in ((2, 15), (2,), (64,), (64,)))
    bone = torch.arange(32).repeat(2)
    poses = HandPoses(angles.requires_grad_(True), rotation, wrist.requires_grad_(True))
    frames = bone_frames(rig, joints, poses)
    points = posed_points(frames, bone, offset)
    found = wrench(frames, bone, points, force)
    bend, shift = torch.autograd.grad((points * force).sum(), [angles, wrist])
    torch.testing.assert_close(found.joint_torque, bend, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.force, shift)


def test_bones_carry_their_joints_and_the_skin_follows(steps, hands):
    """Joints regressed from the mesh lie where the bones say."""
    kind, step = steps[0]
    poses = HandPoses(*(torch.from_numpy(np.asarray(part))[None].float() for part in (
        step.angles, step.rotation_own, step.wrist * [[1, 1, 1], [-1, 1, 1]])))
    shape = torch.from_numpy(np.random.default_rng([0, 0, 1]).normal(0, 0.9, (1, 10))).float()
    joints = bone_frames(hands.solver.rig, shaped(hands.solver.proxies, shape).joints, poses).joint[0].numpy()
    joints[Hand.LEFT] *= (-1, 1, 1)
    regressed = hands.joints(step.vertices)
    for name in ("wrist", "index1", "middle2", "pinky2", "thumb2"):
        np.testing.assert_allclose(joints[:, MODEL16.index(name)], regressed[:, MANO21.index(name)], atol=0.006)


def test_nearest_vertices_are_the_nearest(steps):
    for _, step in steps[:6]:
        near, surface = contact._nearest(torch.from_numpy(step.vertices)[None])
        distance = cdist(step.vertices[0], step.vertices[1])
        for hand, of_hand in ((Hand.RIGHT, distance), (Hand.LEFT, distance.T)):
            found = np.linalg.norm(step.vertices[hand] - surface[0, hand].numpy(), axis=1)
            np.testing.assert_allclose(found, of_hand.min(axis=1), rtol=2e-4, atol=1e-5)
            np.testing.assert_array_equal(step.vertices[hand.other][near[0, hand]], surface[0, hand].numpy())


def test_a_finger_pushed_into_the_palm_is_found(hand_model):
    bones = hand_model.weights[Hand.RIGHT].argmax(dim=1).numpy()
    vertices, faces = hand_model.template[Hand.RIGHT].double().numpy(), hand_model.faces[Hand.RIGHT].numpy()
    assert own_depth_mm(vertices, faces, bones) < 0.3
    end = np.isin(bones, [MODEL16.index("index3")])
    folded = vertices.copy()
    folded[end] = vertices[end] - vertices[end].mean(axis=0) + vertices[bones == 0].mean(axis=0)
    assert own_depth_mm(folded, faces, bones) > 3


# ---------------------------------------------------------------- the report

def test_the_report_counts_what_it_draws(tmp_path, monkeypatch, capsys):
    out = tmp_path / "poses.png"
    monkeypatch.setattr("sys.argv", ["synthetic_statistics", "--frames", "16", "--workers", "1", "--out", str(out)])
    synthetic_statistics.main()
    table = json.loads(out.with_suffix(".json").read_text())
    assert out.stat().st_size > 20000 and table["frames"] == 16 and table["frames measured for what follows"] == 4
    assert 0 < table["hidden share of vertices, mean"] < 1
    assert "in contact" in capsys.readouterr().out
