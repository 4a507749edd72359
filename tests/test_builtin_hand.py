"""The built-in hand: a right hand of adult size that bends, varies and subdivides as promised."""

import numpy as np
import pytest
import torch
from scipy import sparse
from smplx.lbs import lbs

from common.hands import MODEL16, TIP_VERTICES
from common.mano.load import BUILTIN_HAND
from data.synthetic.subdivision import edge_table, subdivide

FINGERS = ("index", "middle", "pinky", "ring", "thumb")   # MANO's joint order
TIPS = dict(zip(("thumb", "index", "middle", "ring", "pinky"), TIP_VERTICES, strict=True))
BONE_LENGTHS_MM = {   # wrist → 1 → 2 → 3 → tip
    "thumb": (38.2, 37.0, 31.2, 27.7),
    "index": (85.9, 41.2, 24.7, 21.9),
    "middle": (84.4, 42.7, 29.0, 22.3),
    "ring": (80.4, 39.0, 26.9, 21.5),
    "pinky": (77.3, 29.9, 19.5, 18.8),
}
# Degrees per finger: flexion of its three joints, then spread and twist of the first.
POSES = {
    "flat": {},
    "fist": {
        "index": (80, 100, 60, 0, 0), "middle": (85, 100, 60, 0, 0), "ring": (85, 100, 60, 0, 0),
        "pinky": (82, 100, 60, 0, 0), "thumb": (25, 35, 45, -10, 25),
    },
    "pinch": {
        "index": (45, 45, 25, -4, 0), "middle": (30, 30, 15, 0, 0), "ring": (25, 25, 15, 0, 0),
        "pinky": (20, 20, 10, 0, 0), "thumb": (22, 14, 25, 12, 25),
    },
}


@pytest.fixture(scope="module")
def hand() -> dict[str, np.ndarray]:
    with np.load(BUILTIN_HAND, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def joints_of(finger: str) -> list[int]:
    """The three model joints of a finger."""
    return [3 * FINGERS.index(finger) + k for k in (1, 2, 3)]


def rotations(axis_angle: np.ndarray) -> np.ndarray:
    """(..., 3) → (..., 3, 3), by the matrix exponential: another route than Rodrigues' formula."""
    x, y, z = np.moveaxis(np.asarray(axis_angle, dtype=np.float64), -1, 0)
    o = np.zeros_like(x)
    skew = np.stack([o, -z, y, z, o, -x, -y, x, o], -1).reshape(*x.shape, 3, 3)
    return torch.matrix_exp(torch.from_numpy(skew)).numpy()


def local_rotations(hand, angles: np.ndarray) -> np.ndarray:
    """(16, 3, 3) from radians (15, 3) of flexion, spread and twist about the hand's own axes."""
    flexion, spread, twist = (rotations(angles[:, k, None] * hand["joint_axes"][:, k]) for k in range(3))
    return np.concatenate([np.eye(3)[None], flexion @ spread @ twist])


def named_pose(fingers: dict[str, tuple]) -> np.ndarray:
    """Radians (15, 3) of a row of POSES."""
    angles = np.zeros((5, 3, 3))
    for finger, (a, b, c, spread, twist) in fingers.items():
        angles[FINGERS.index(finger), :, 0] = a, b, c
        angles[FINGERS.index(finger), 0, 1:] = spread, twist
    return np.radians(angles.reshape(15, 3))


def bend(hand, angles: np.ndarray, shape=None, correctives: bool = True) -> np.ndarray:
    """Vertices (778, 3) of the bent hand, by smplx."""
    def tensor(array) -> torch.Tensor:
        return torch.from_numpy(np.asarray(array, dtype=np.float64))

    posedirs = hand["posedirs"].reshape(-1, 135).T * float(correctives)
    vertices, _ = lbs(
        tensor(np.zeros(10) if shape is None else shape)[None], tensor(local_rotations(hand, angles))[None],
        tensor(hand["v_template"])[None], tensor(hand["shapedirs"]), tensor(posedirs), tensor(hand["J_regressor"]),
        torch.from_numpy(hand["parents"].astype(np.int64)), tensor(hand["weights"]), pose2rot=False,
    )
    return vertices[0].numpy()


def bone_lengths(hand, finger: str, vertices: np.ndarray) -> np.ndarray:
    """wrist → 1 → 2 → 3 → tip of a finger, metres (4,)."""
    joints = hand["J_regressor"] @ vertices
    chain = np.stack([joints[0], *joints[joints_of(finger)], vertices[TIPS[finger]]])
    return np.linalg.norm(np.diff(chain, axis=0), axis=1)


def enclosed_volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Volume inside the faces, holes closed by fans to the middle of the open edges; positive if they face out."""
    sides = np.stack([faces, np.roll(faces, -1, 1)], -1).reshape(-1, 2).tolist()
    twins = {(b, a) for a, b in sides}
    rim = sorted({corner for a, b in sides if (a, b) not in twins for corner in (a, b)})
    a, b, c = (vertices[faces[:, k]] - vertices[rim].mean(0) for k in range(3))
    return float(np.einsum("fi,fi->", a, np.cross(b, c)) / 6)


def finger_faces(hand, finger: str) -> np.ndarray:
    """Faces whose three corners mostly follow the finger."""
    follows = hand["weights"][:, joints_of(finger)].sum(1) > 0.5
    return hand["faces"][follows[hand["faces"]].all(1)]


# --- the mesh ----------------------------------------------------------------------------------------------------


def test_mesh_is_a_disk_with_manos_counts_and_a_wrist_loop_of_16(hand):
    faces = hand["faces"]
    edges, _, uses = edge_table(faces)

    assert hand["v_template"].shape == (778, 3) and faces.shape == (1538, 3)
    assert 778 - len(edges) + len(faces) == 1
    assert uses.max() == 2

    rim = edges[uses == 1]
    assert len(rim) == 16 and len(np.unique(rim)) == 16
    assert hand["v_template"][rim.ravel(), 0].min() > hand["v_template"][:, 0].max() - 1e-4   # all at the wrist's end
    components, _ = sparse.csgraph.connected_components(
        sparse.coo_matrix((np.ones(len(edges)), edges.T), shape=(778, 778)), directed=False
    )
    assert components == 1


def test_no_face_is_duplicated_or_degenerate(hand):
    a, b, c = (hand["v_template"][hand["faces"][:, k]] for k in range(3))
    assert len(np.unique(np.sort(hand["faces"], axis=1), axis=0)) == 1538
    assert (np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2).min() > 1e-6   # 1 mm²


def test_faces_look_outwards_and_enclose_an_adult_hand(hand):
    litres = 1e3 * enclosed_volume(hand["v_template"], hand["faces"])
    assert 0.25 < litres < 0.5


@pytest.mark.parametrize("finger", FINGERS)
def test_fingertip_vertex_is_the_far_end_of_its_finger(hand, finger):
    joints, vertices = hand["J_regressor"] @ hand["v_template"], hand["v_template"]
    last = joints_of(finger)[2]
    direction = vertices[TIPS[finger]] - joints[last]
    reach = (vertices - joints[last]) @ direction / np.linalg.norm(direction)

    own = hand["weights"][:, last] > 0.5
    assert own[TIPS[finger]]
    assert reach[TIPS[finger]] > reach[own].max() - 1e-3


def test_vertex_445_is_a_neighbour_of_444_on_the_same_fingertip(hand):
    edges = edge_table(hand["faces"])[0].tolist()
    assert [444, 445] in edges
    assert hand["weights"][445, joints_of("middle")[2]] > 0.9


def test_it_is_a_right_hand(hand):
    """Fingers along −x, back of the hand +y, thumb on the +z side."""
    joints = hand["J_regressor"] @ hand["v_template"]
    index, middle, pinky, ring, thumb = (joints[joints_of(finger)[0]] for finger in FINGERS)
    assert thumb[2] > index[2] > middle[2] > ring[2] > pinky[2]
    assert (joints[0, 0] > np.stack([index, middle, ring, pinky])[:, 0]).all()

    nail = hand["skin"][:778, list(hand["skin_channels"]).index("nail")] > 200
    at_middle = hand["weights"][:, joints_of("middle")[2]] > 0.9
    assert hand["v_template"][nail & at_middle, 1].mean() > hand["v_template"][~nail & at_middle, 1].mean()


@pytest.mark.parametrize("finger", FINGERS)
def test_bones_have_adult_lengths(hand, finger):
    found = 1e3 * bone_lengths(hand, finger, hand["v_template"])
    np.testing.assert_allclose(found, BONE_LENGTHS_MM[finger], rtol=0.03)


# --- the rig -----------------------------------------------------------------------------------------------------


def test_tree_is_manos(hand):
    assert tuple(hand["parents"]) == MODEL16.parents


def test_weights_are_a_sparse_partition_of_one(hand):
    weights = hand["weights"]
    assert (weights >= 0).all()
    assert (weights > 0).sum(1).max() <= 4
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)


def test_no_fingers_skin_follows_another_finger_beyond_the_web(hand):
    for finger in FINGERS:
        own = joints_of(finger)
        free = hand["weights"][:, own[1:]].sum(1) > 0.5
        others = [j for j in range(1, 16) if j not in own]
        assert hand["weights"][free][:, others].max() < 0.04


def test_regressor_rows_are_local_averages(hand):
    regressor, vertices = hand["J_regressor"], hand["v_template"]
    assert (regressor >= 0).all()
    np.testing.assert_allclose(regressor.sum(1), 1, atol=1e-6)
    for row, joint in zip(regressor, regressor @ vertices, strict=True):
        assert 3 < (row > 0).sum() < 120
        assert np.linalg.norm(vertices[row > 0] - joint, axis=1).max() < 0.045


def test_joints_lie_inside_the_flesh(hand):
    """By the winding number: the solid angle of the surface as seen from each joint, wrist hole aside."""
    joints = hand["J_regressor"] @ hand["v_template"]
    corners = hand["v_template"][hand["faces"]][None] - joints[:, None, None]   # (16, F, 3, 3)
    length = np.linalg.norm(corners, axis=-1)
    a, b, c = np.moveaxis(corners, 2, 0)
    la, lb, lc = np.moveaxis(length, 2, 0)
    triple = np.einsum("jfi,jfi->jf", a, np.cross(b, c))
    dot = [np.einsum("jfi,jfi->jf", p, q) for p, q in ((a, b), (b, c), (c, a))]
    angle = 2 * np.arctan2(triple, la * lb * lc + dot[0] * lc + dot[1] * la + dot[2] * lb)
    winding = angle.sum(1) / (4 * np.pi)
    assert (winding[1:] > 0.94).all()   # the thumb's first joint sees some of the open end
    assert winding[0] > 0.5   # the wrist joint sees the open end


def test_axes_are_right_handed_frames_along_the_bones(hand):
    axes = hand["joint_axes"]
    np.testing.assert_allclose(axes @ axes.transpose(0, 2, 1), np.tile(np.eye(3), (15, 1, 1)), atol=1e-6)
    np.testing.assert_allclose(np.cross(axes[:, 0], axes[:, 1]), axes[:, 2], atol=1e-6)
    joints = hand["J_regressor"] @ hand["v_template"]
    bones = joints[[2, 5, 8, 11, 14]] - joints[[1, 4, 7, 10, 13]]
    along = np.einsum("ki,ki->k", bones / np.linalg.norm(bones, axis=1)[:, None], axes[::3, 2])
    assert (along > 0.999).all()


@pytest.mark.parametrize("finger", FINGERS)
@pytest.mark.parametrize("joint", (0, 1, 2))
def test_positive_flexion_curls_towards_the_palm(hand, finger, joint):
    angles = np.zeros((15, 3))
    angles[joints_of(finger)[joint] - 1, 0] = np.radians(30)
    tip = TIPS[finger]
    moved = bend(hand, angles)[tip] - hand["v_template"][tip]
    palmar = np.array([0, -1.0, 0]) if finger != "thumb" else np.array([0, -1.0, -1.0])
    assert moved @ palmar > 0.005


@pytest.mark.parametrize("finger", FINGERS)
def test_positive_spread_moves_towards_the_thumb_side(hand, finger):
    angles = np.zeros((15, 3))
    angles[joints_of(finger)[0] - 1, 1] = np.radians(15)
    tip = TIPS[finger]
    assert (bend(hand, angles) - hand["v_template"])[tip, 2] > 0.005


def test_relaxed_mean_pose_curls_every_joint_within_its_limits(hand):
    relaxed = rotations(hand["hands_mean"].reshape(15, 3))
    in_frame = hand["joint_axes"] @ relaxed @ hand["joint_axes"].transpose(0, 2, 1)   # flexion is about the first axis
    flexion = np.arctan2(in_frame[:, 2, 1], in_frame[:, 2, 2])
    limits = hand["joint_limits"]
    assert (flexion > np.radians(3)).all()
    assert (flexion < limits[:, 0, 1]).all()
    assert (limits[:, :, 0] <= 0).all() and (limits[:, :, 1] >= 0).all()


# --- bending -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pose", POSES)
def test_bent_skin_does_not_turn_inside_out(hand, pose):
    """Faces may vanish in a fold, but those that point against their bones are few and small."""
    angles = named_pose(POSES[pose])
    turned = local_rotations(hand, angles)
    for joint, parent in enumerate(hand["parents"][1:], start=1):
        turned[joint] = turned[parent] @ turned[joint]

    def areas(vertices: np.ndarray) -> np.ndarray:
        a, b, c = (1e3 * vertices[hand["faces"][:, k]] for k in range(3))
        return np.cross(b - a, c - a) / 2   # mm²

    expected = np.einsum(
        "fj,jab,fb->fa", hand["weights"][hand["faces"]].mean(1), turned, areas(hand["v_template"])
    )
    found = areas(bend(hand, angles))
    inside_out = np.linalg.norm(found, axis=1) * ((expected * found).sum(1) < 0)
    assert inside_out.max() < 50   # the largest resting face has about 90
    assert inside_out.sum() < 0.01 * np.linalg.norm(found, axis=1).sum()


@pytest.mark.parametrize("pose", POSES)
def test_bending_keeps_the_volume(hand, pose):
    rest = enclosed_volume(hand["v_template"], hand["faces"])
    assert 0.93 < enclosed_volume(bend(hand, named_pose(POSES[pose])), hand["faces"]) / rest < 1.05


@pytest.mark.parametrize("finger", FINGERS)
def test_correctives_keep_a_fully_flexed_finger_from_collapsing(hand, finger):
    angles = np.zeros((15, 3))
    own = np.array(joints_of(finger)) - 1
    angles[own, 0] = hand["joint_limits"][own, 0, 1]
    faces = finger_faces(hand, finger)
    rest = enclosed_volume(hand["v_template"], faces)
    with_, without = (enclosed_volume(bend(hand, angles, correctives=on), faces) / rest for on in (True, False))
    assert 0.9 < with_ < 1.1
    assert without < with_


def test_correctives_of_a_finger_leave_the_other_fingers_alone(hand):
    per_joint = np.abs(hand["posedirs"]).reshape(778, 3, 15, 9).max((1, 3))   # (778, 15) metres
    for finger in FINGERS:
        own = joints_of(finger)
        free = hand["weights"][:, own[1:]].sum(1) > 0.9
        others = [j - 1 for j in range(1, 16) if j not in own]
        assert per_joint[free][:, others].max() < 4e-4


# --- shapes ------------------------------------------------------------------------------------------------------


def stretch(hand, name: str, finger: str) -> np.ndarray:
    """Relative change of a finger's four bone lengths at +1 of a shape parameter."""
    k = list(hand["shape_names"]).index(name)
    before = bone_lengths(hand, finger, hand["v_template"])
    return bone_lengths(hand, finger, hand["v_template"] + hand["shapedirs"][..., k]) / before - 1


def test_shapes_do_what_their_names_say(hand):
    assert (stretch(hand, "size", "middle") > 0.03).all()

    palm, *finger = stretch(hand, "finger length", "middle")
    assert abs(palm) < 0.005 and min(finger) > 0.03

    assert min(stretch(hand, "thumb length", "thumb")[1:]) > 0.03
    assert np.abs(stretch(hand, "thumb length", "index")).max() < 0.005
    assert stretch(hand, "index over ring", "index")[1] > 0.01 > -0.01 > stretch(hand, "index over ring", "ring")[1]
    assert stretch(hand, "palm length", "middle")[0] > 0.02
    assert min(stretch(hand, "pinky length", "pinky")[1:]) > 0.03


@pytest.mark.parametrize("name, grows", [("palm girth", (1, 2)), ("thickness", (1,))])
def test_palm_girth_and_thickness_grow_the_palm_in_their_own_directions(hand, name, grows):
    palm = hand["weights"][:, 0] > 0.9
    before = np.ptp(hand["v_template"][palm], axis=0)
    direction = hand["shapedirs"][..., list(hand["shape_names"]).index(name)]
    growth = np.ptp((hand["v_template"] + direction)[palm], axis=0) / before - 1
    assert growth[list(grows)].min() > 0.02
    assert np.abs(np.delete(growth, grows)).max() < 0.02


def test_regressed_joints_follow_the_designed_joints_through_every_shape(hand):
    from tool.dev.hand_builder.shapes import displacements
    from tool.dev.hand_builder.skeleton import rest_joints

    designed, _ = rest_joints()
    _, shifts = displacements(designed, 1e3 * hand["v_template"], hand["weights"])
    for shape in 2.0 * np.concatenate([np.eye(10), -np.eye(10)]):
        found = 1e3 * hand["J_regressor"] @ (hand["v_template"] + hand["shapedirs"] @ shape)
        assert np.linalg.norm(found - designed - shifts @ shape, axis=1).max() < 1.5


# --- skin and subdivision ----------------------------------------------------------------------------------------


def fine_surface(hand) -> tuple[np.ndarray, np.ndarray]:
    matrix, faces = subdivide(hand["faces"], 778, levels=2)
    return matrix @ hand["v_template"], faces


def test_skin_has_one_row_per_vertex_after_two_rounds(hand):
    vertices, faces = fine_surface(hand)
    assert faces.shape == (16 * 1538, 3)
    assert hand["skin"].shape == (len(vertices), len(hand["skin_channels"])) and hand["skin"].dtype == np.uint8
    assert hand["bump"].shape == (len(vertices),) and hand["bump"].dtype == np.int8


def test_every_finger_has_one_nail_and_the_palm_side_has_none(hand):
    vertices, _ = fine_surface(hand)
    channel = {name: hand["skin"][:, k] for k, name in enumerate(hand["skin_channels"])}
    nail = channel["nail"] > 128
    assert (channel["palm"][nail] < 64).all()
    nearest = np.linalg.norm(vertices[nail][:, None] - hand["v_template"][list(TIPS.values())], axis=-1)
    assert nearest.min(1).max() < 0.022
    assert (np.bincount(nearest.argmin(1), minlength=5) >= 20).all()


def test_creases_are_grooves(hand):
    crease = hand["skin"][:, list(hand["skin_channels"]).index("crease")]
    assert hand["bump"][crease > 200].max() < 0
    assert -61 < hand["bump"].min() < -30   # in 10 micrometres


def test_subdivision_is_an_average_that_keeps_a_plane_and_its_size():
    grid = np.arange(16).reshape(4, 4)
    a, b, c, d = (part.ravel() for part in (grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]))
    matrix, faces = subdivide(np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)]), 16, levels=1)
    dense = matrix.toarray()
    points = np.stack([*np.unravel_index(np.arange(16), (4, 4)), np.zeros(16)], -1).astype(float)

    np.testing.assert_allclose(dense.sum(1), 1)
    assert (dense >= 0).all() and len(faces) == 72
    np.testing.assert_allclose((dense @ points)[[5, 6, 9, 10]], points[[5, 6, 9, 10]])   # symmetric neighbourhoods stay
    np.testing.assert_allclose((dense @ points)[:, 2], 0)


def test_subdividing_twice_equals_one_step_after_another(hand):
    twice, faces_twice = subdivide(hand["faces"], 778, levels=2)
    once, faces_once = subdivide(hand["faces"], 778, levels=1)
    again, faces_again = subdivide(faces_once, once.shape[0], levels=1)
    np.testing.assert_array_equal(faces_twice, faces_again)
    assert np.abs((again @ once - twice).tocoo().data).max() < 1e-12


def single_bends(hand):
    """Pose features (135,) of hands with one joint at the end of its range."""
    for joint in range(15):
        for end in (0, 1):
            angles = np.zeros((15, 3))
            angles[joint, 0] = hand["joint_limits"][joint, 0, end]
            yield (local_rotations(hand, angles)[1:] - np.eye(3)).ravel()


@pytest.mark.slow
def test_building_again_on_its_vertices_gives_the_shipped_hand(hand):
    from tool.dev.build_hand import build, build_flesh, shipped_mesh

    rebuilt = build(build_flesh(), *shipped_mesh())
    assert rebuilt.keys() == hand.keys()
    correctives = rebuilt.pop("posedirs")
    for key, array in rebuilt.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, hand[key], atol=1e-6, err_msg=key)
        elif key in ("skin", "bump"):       # a step of their rounding
            np.testing.assert_allclose(array.astype(int), hand[key].astype(int), atol=1, err_msg=key)
        else:
            np.testing.assert_array_equal(array, hand[key], err_msg=key)
    # Where the flesh bends, roundings decided parts of the shipped correctives: offsets differ in a tenth of the hand.
    offsets = [(correctives - hand["posedirs"]) @ features for features in single_bends(hand)]
    largest = np.linalg.norm(np.reshape(offsets, (-1, 778, 3)), axis=-1).max(axis=0)
    assert (largest > 1e-4).mean() < 0.1 and largest.max() < 5e-3


@pytest.mark.slow
def test_no_rounding_decides_where_vertices_are_placed():
    """Roundings of another processor, as noise in the flesh itself: the same triangles, the same places."""
    from tool.dev.build_hand import build_flesh, build_mesh

    def noisy(tube):
        return tube._replace(spine=tube.spine + 1e-12 * rng.standard_normal(tube.spine.shape))

    flesh, rng = build_flesh(), np.random.default_rng(0)
    other = flesh._replace(palm=[noisy(tube) for tube in flesh.palm], hollows=[noisy(tube) for tube in flesh.hollows],
                           fingers={name: noisy(tube) for name, tube in flesh.fingers.items()})
    (vertices, faces), (moved, same) = build_mesh(flesh), build_mesh(other)
    np.testing.assert_array_equal(same, faces)
    np.testing.assert_allclose(moved, vertices, atol=1e-9)      # millimetres
