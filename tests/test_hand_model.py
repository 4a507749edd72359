"""The hand model and its layer, against smplx's own class and against a skinning written from the equations."""

import dataclasses

import numpy as np
import pytest
import smplx
import torch
from scipy.spatial.transform import Rotation

from common.errors import UserError
from common.hands import MODEL16, NUM_FACES, NUM_VERTICES, TIP_VERTICES, Hand, mirror_rotations, mirror_vectors
from common.mano.load import load_hand_model
from common.mano.model import HandModel, ManoLayer, check_same_model
from common.types import ManoParams


def random_poses(count: int, seed: int) -> np.ndarray:
    """Axis-angle poses (count, 2, 48), up to about a right angle at every joint and any angle at the root."""
    rng = np.random.default_rng(seed)
    poses = rng.normal(size=(count, 2, 48)) * 0.5
    poses[..., :3] = rng.normal(size=(count, 2, 3)) * 2
    return poses


def random_shapes(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed + 1000).normal(size=(count, 2, 10)) * 1.5


def to_params(poses: np.ndarray, shapes: np.ndarray) -> ManoParams:
    rotations = Rotation.from_rotvec(poses.reshape(-1, 3)).as_matrix().reshape(*poses.shape[:2], 16, 3, 3)
    return ManoParams(torch.tensor(rotations, dtype=torch.float32), torch.tensor(shapes, dtype=torch.float32))


def smplx_layer(model: HandModel, hand: Hand) -> smplx.MANO:
    data = smplx.utils.Struct(
        v_template=model.template[hand].numpy(), shapedirs=model.shapedirs[hand].numpy(),
        posedirs=model.posedirs[hand].T.reshape(NUM_VERTICES, 3, 135).numpy(),
        J_regressor=model.regressor[hand].numpy(), weights=model.weights[hand].numpy(),
        kintree_table=np.stack([MODEL16.parents, np.arange(16)]), f=model.faces[hand].numpy(),
        hands_mean=model.mean_pose[hand].numpy(), hands_components=np.eye(45),
    )
    return smplx.MANO("", data_struct=data, is_rhand=hand is Hand.RIGHT, use_pca=False, flat_hand_mean=False)


def skinned(model: HandModel, hand: Hand, pose: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Vertices (778, 3) of one hand by the equations of the SMPL paper (Loper et al., 2015), in float64."""
    arrays = {key: getattr(model, key)[hand].double().numpy()
              for key in ("template", "shapedirs", "posedirs", "regressor", "weights")}
    rotations = [Rotation.from_rotvec(vector).as_matrix() for vector in pose.reshape(16, 3)]

    shaped = arrays["template"] + np.einsum("vdk,k->vd", arrays["shapedirs"], shape)
    joints = arrays["regressor"] @ shaped
    features = np.concatenate([(rotation - np.eye(3)).ravel() for rotation in rotations[1:]])
    rest = shaped + np.einsum("p,pn->n", features, arrays["posedirs"]).reshape(-1, 3)

    world = []                                                   # (R, position) of each joint
    for joint, parent in enumerate(MODEL16.parents):
        if parent < 0:
            world.append((rotations[joint], joints[joint]))
            continue
        parent_rotation, parent_position = world[parent]
        position = parent_rotation @ (joints[joint] - joints[parent]) + parent_position
        world.append((parent_rotation @ rotations[joint], position))

    vertices = np.zeros_like(rest)
    for vertex in range(NUM_VERTICES):
        for joint, (rotation, position) in enumerate(world):
            weight = arrays["weights"][vertex, joint]
            if weight:
                vertices[vertex] += weight * (rotation @ (rest[vertex] - joints[joint]) + position)
    return vertices


@pytest.fixture(scope="module")
def layer(hand_model: HandModel) -> ManoLayer:
    return ManoLayer(hand_model)


@pytest.mark.parametrize("hand", Hand)
def test_the_layer_agrees_with_smplx(hand_model: HandModel, layer: ManoLayer, hand: Hand):
    """smplx adds the mean pose to what it is given; the layer takes full rotations."""
    poses, shapes = random_poses(16, seed=hand), random_shapes(16, seed=hand)
    stored = torch.tensor(poses[:, hand, 3:], dtype=torch.float32)
    theirs = smplx_layer(hand_model, hand)(
        betas=torch.tensor(shapes[:, hand], dtype=torch.float32), hand_pose=stored,
        global_orient=torch.tensor(poses[:, hand, :3], dtype=torch.float32),
    ).vertices

    poses[..., 3:] += hand_model.mean_pose.numpy()
    ours = layer(to_params(poses, shapes))[:, hand]
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("hand", Hand)
def test_the_layer_agrees_with_skinning_written_from_the_equations(hand_model: HandModel, layer: ManoLayer, hand: Hand):
    poses, shapes = random_poses(5, seed=5), random_shapes(5, seed=5)
    ours = layer(to_params(poses, shapes))[:, hand].numpy()
    theirs = np.stack([skinned(hand_model, hand, poses[i, hand], shapes[i, hand]) for i in range(5)])
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_the_left_hand_is_the_mirror_image_of_the_right(layer: ManoLayer):
    params = to_params(random_poses(8, seed=2), random_shapes(8, seed=2))
    mirrored = ManoParams(mirror_rotations(params.rotations).flip(1), params.shape.flip(1))
    torch.testing.assert_close(layer(mirrored), mirror_vectors(layer(params)).flip(1), atol=1e-6, rtol=0)


def test_no_rotation_and_no_shape_give_the_template(hand_model: HandModel, layer: ManoLayer):
    vertices = layer(to_params(np.zeros((1, 2, 48)), np.zeros((1, 2, 10))))[0]
    torch.testing.assert_close(vertices, hand_model.template, atol=1e-7, rtol=0)


def test_a_root_rotation_turns_the_hand_about_its_resting_wrist(hand_model: HandModel, layer: ManoLayer):
    poses, shapes = random_poses(4, seed=3), random_shapes(4, seed=3)
    turned = layer(to_params(poses, shapes))
    root = to_params(poses, shapes).rotations[:, :, 0]
    poses[..., :3] = 0
    still = layer(to_params(poses, shapes))

    shaped = hand_model.template + torch.einsum("hvdk,bhk->bhvd", hand_model.shapedirs, to_params(poses, shapes).shape)
    wrist = (hand_model.regressor @ shaped)[:, :, :1]
    torch.testing.assert_close(turned, (still - wrist) @ root.transpose(-1, -2) + wrist, atol=1e-6, rtol=0)


def test_a_row_of_a_batch_is_the_batch_of_one(layer: ManoLayer):
    params = to_params(random_poses(3, seed=4), random_shapes(3, seed=4))
    alone = layer(ManoParams(params.rotations[1:2], params.shape[1:2]))
    torch.testing.assert_close(layer(params)[1:2], alone, atol=1e-7, rtol=0)


def test_the_layer_computes_in_float32_under_autocast(layer: ManoLayer):
    params = to_params(random_poses(2, seed=6), random_shapes(2, seed=6))
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(params)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, layer(params), atol=0, rtol=0)


def test_gradients_at_rest_agree_with_finite_differences(layer: ManoLayer):
    """At the rest pose the axis-angle form has its singularity; rotation matrices have none."""
    params = to_params(np.zeros((1, 2, 48)), np.zeros((1, 2, 10)))
    shape = params.shape.requires_grad_()
    probe = torch.randn(2, NUM_VERTICES, 3, generator=torch.Generator().manual_seed(0))
    (layer(ManoParams(params.rotations, shape))[0] * probe).sum().backward()

    step = torch.zeros(1, 2, 10)
    step[0, Hand.LEFT, 3] = 0.1
    with torch.no_grad():
        high, low = (layer(ManoParams(params.rotations, shape + sign * step))[0] for sign in (1, -1))
    slope = ((high - low).double() * probe).sum() / 0.2
    torch.testing.assert_close(shape.grad[0, Hand.LEFT, 3].double(), slope, atol=1e-4, rtol=1e-3)


def test_joints_are_model_rows_and_tip_vertices(layer: ManoLayer):
    vertices = layer(to_params(random_poses(2, seed=8), random_shapes(2, seed=8)))
    joints = layer.joints(vertices)
    assert joints.shape == (2, 2, 21, 3)
    torch.testing.assert_close(joints[:, :, [4, 8, 12, 16, 20]], vertices[:, :, list(TIP_VERTICES)])


# ---------------------------------------------------------------- the built-in hand's arrays

def test_the_built_in_hand_has_the_topology_of_mano(hand_model: HandModel):
    """An open surface: V − E + F = 1 and one border loop of 16 edges at the wrist."""
    for faces in hand_model.faces.numpy():
        assert faces.shape == (NUM_FACES, 3) and set(faces.ravel()) == set(range(NUM_VERTICES))
        directed = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
        assert len(np.unique(directed, axis=0)) == len(directed), "two faces run along an edge in the same direction"
        _, uses = np.unique(np.sort(directed, axis=1), axis=0, return_counts=True)
        assert NUM_VERTICES - len(uses) + NUM_FACES == 1
        assert (uses == 1).sum() == 16 and uses.max() == 2


def test_faces_look_outward(hand_model: HandModel):
    """Signed volume is positive. The wrist hole lies near the plane through its own centre, taken as the origin."""
    for template, faces in zip(hand_model.template, hand_model.faces, strict=True):
        triangles = (template - template[_border(faces)].mean(0))[faces]
        volume = (triangles[:, 0] * torch.linalg.cross(triangles[:, 1], triangles[:, 2])).sum() / 6
        assert 5e-5 < volume < 1e-3     # m³


def _border(faces: torch.Tensor) -> torch.Tensor:
    sides = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).sort(dim=1).values
    edges, uses = sides.unique(dim=0, return_counts=True)
    return edges[uses == 1].unique()


def test_weights_and_regressor_rows_sum_to_one(hand_model: HandModel):
    torch.testing.assert_close(hand_model.weights.sum(-1), torch.ones(2, NUM_VERTICES), atol=1e-5, rtol=0)
    torch.testing.assert_close(hand_model.regressor.sum(-1), torch.ones(2, 16), atol=1e-5, rtol=0)


# ---------------------------------------------------------------- choosing

def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match="'mno'.*must be 'builtin' or 'mano'"):
        load_hand_model("mno")


def test_a_mismatch_says_which_is_which(hand_model: HandModel):
    check_same_model(hand_model.identity, dict(hand_model.identity), where="the data")
    other = dataclasses.replace(hand_model, name="mano", sha256="f" * 64)
    with pytest.raises(UserError) as error:
        check_same_model(hand_model.identity, other.identity, where="snapshot_3.pth.tar")
    for words in ("snapshot_3.pth.tar", "'mano'", "'builtin'", "ffffffffffff", hand_model.sha256[:12]):
        assert words in str(error.value)
