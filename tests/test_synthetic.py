"""The rendered set: its files say what its pictures show."""

import json
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial.transform import Rotation
from smplx.lbs import lbs

from common.errors import UserError, run_entry_point
from common.hands import INTERHAND21, MODEL16, TIP_VERTICES, Hand
from data.InterHand26M.reader import InterHand26M
from data.synthetic.on_disk import generate as generator
from data.synthetic.on_disk import plan
from data.synthetic.on_disk.plan import Purpose, Settings, plan_sequences, stream
from data.synthetic.picture.camera import sample_cameras
from data.synthetic.picture.render import hand_mask, sample_body, stack_views
from data.synthetic.pose.arm import forearm_direction
from data.synthetic.pose.articulation import FINGERS, PRESETS, finger_rotations, load_rig, sample_angles
from data.synthetic.pose.families import FAMILIES, FAMILY_SHARES
from data.synthetic.pose.interaction import closed_at_wrist, measure, surface_distance, winding_number
from data.synthetic.surface import boundary_loop
from tool import make_synthetic
from tool.dev import contact_sheet

SETTINGS = Settings(frames=8, seed=3, cameras=2, interacting=1.0)
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def pairs_root(tmp_path_factory):
    """Eight pictures, interacting hands."""
    root = tmp_path_factory.mktemp("pairs")
    generator.generate(root, SETTINGS, workers=1)
    return root


@pytest.fixture(scope="module")
def singles_root(tmp_path_factory):
    """Three pictures, one hand in each."""
    root = tmp_path_factory.mktemp("singles")
    generator.generate(root, Settings(frames=4, seed=0, cameras=1, interacting=0.0), workers=1)
    return root


def load(root, split, kind):
    return json.loads((root / "annotations" / split / f"InterHand2.6M_{split}_{kind}.json").read_text())


def files(root):
    """What was rendered: not the index that readers leave beside the annotations."""
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*"))
            if path.is_file() and "index" not in path.parts}


def joined(root, split):
    """(image, annotation, camera as (R, t metres, focal, center), 3D entry, parameters) of every picture."""
    data, cameras = load(root, split, "data"), load(root, split, "camera")
    joints, mano = load(root, split, "joint_3d"), load(root, split, "MANO_NeuralAnnot")
    by_image = {annotation["image_id"]: annotation for annotation in data["annotations"]}
    for image in data["images"]:
        capture, frame, name = str(image["capture"]), str(image["frame_idx"]), image["camera"]
        table = cameras[capture]
        rotation = np.array(table["camrot"][name])
        camera = (rotation, -rotation @ np.array(table["campos"][name]) / 1000, table["focal"][name],
                  table["princpt"][name])
        yield image, by_image[image["id"]], camera, joints[capture][frame], mano[capture][frame]


def project(points, camera):
    rotation, translation, focal, center = camera
    cam = points @ rotation.T + translation
    return cam[:, :2] / cam[:, 2:] * focal + center


def posed(fit, hand, model):
    """World vertices (778, 3) of stored parameters, straight from smplx."""
    pose = torch.tensor(fit["pose"])[None]
    pose[:, 3:] += model.mean_pose[hand]
    vertices, _ = lbs(
        torch.tensor(fit["shape"])[None], pose, model.template[hand][None], model.shapedirs[hand],
        model.posedirs[hand], model.regressor[hand], torch.tensor(MODEL16.parents), model.weights[hand],
    )
    return vertices[0].double().numpy() + fit["trans"]


# ---------------------------------------------------------------- the files

def test_files_have_the_keys_and_lengths_of_interhand(pairs_root):
    for split in SPLITS:
        for image, annotation, _, joints, mano in joined(pairs_root, split):
            assert set(image) == {"id", "file_name", "width", "height", "capture", "subject", "seq_name", "camera",
                                  "frame_idx"}
            assert set(annotation) == {"id", "image_id", "bbox", "joint_valid", "hand_type", "hand_type_valid"}
            assert set(joints) == {"world_coord", "joint_valid", "hand_type", "hand_type_valid"}
            assert set(mano) == {"right", "left"}
            assert isinstance(image["camera"], str) and image["camera"][:2] in ("40", "41")
            assert np.shape(annotation["joint_valid"]) == (42, 1) and np.shape(joints["world_coord"]) == (42, 3)
            assert [len(mano["right"][key]) for key in ("pose", "shape", "trans")] == [48, 10, 3]
            picture = cv2.imread(str(pairs_root / "images" / split / image["file_name"]))
            assert picture.shape == (image["height"], image["width"], 3)
            assert sorted(picture.shape[:2]) == [334, 512]
    assert len((pairs_root / "annotations" / "skeleton.txt").read_text().splitlines()) == 42


def test_every_frame_asked_for_is_there(pairs_root):
    assert [len(load(pairs_root, split, "data")["images"]) for split in SPLITS] == [6, 1, 1]
    assert len(list(pairs_root.rglob("*.jpg"))) == 8


def test_shares_of_splits_and_kinds_follow_the_settings():
    sequences = plan_sequences(Settings(frames=3000, seed=0, cameras=2, interacting=0.8))
    images, steps = Counter(), Counter()
    for sequence in sequences:
        images[sequence.split] += sum(sequence.images)
        steps[sequence.kind] += len(sequence.images)
    assert images == {"train": 2550, "val": 150, "test": 300}
    single = (steps["right"] + steps["left"]) / steps.total()
    assert single == pytest.approx(0.2, abs=0.02) and min(steps.values()) > 40


def test_joints_and_cameras_give_the_boxes_and_the_valid_joints(pairs_root):
    for split in SPLITS:
        for image, annotation, camera, joints, _ in joined(pairs_root, split):
            pixels = project(np.array(joints["world_coord"]) / 1000, camera)
            inside = ((pixels >= 0) & (pixels <= (image["width"] - 1, image["height"] - 1))).all(axis=1)
            np.testing.assert_array_equal(np.ravel(annotation["joint_valid"]), inside)
            low, high = pixels[inside].min(axis=0), pixels[inside].max(axis=0)
            middle, size = (low + high) / 2, 1.2 * (high - low)
            np.testing.assert_allclose(annotation["bbox"], [*(middle - size / 2), *size], atol=1e-6)


def test_stored_joints_are_the_joints_of_the_stored_mesh(pairs_root, hand_model):
    for _, _, _, joints, mano in joined(pairs_root, "train"):
        for hand in Hand:
            vertices = posed(mano[hand.label], hand, hand_model)
            of_file = np.array(joints["world_coord"]).reshape(2, 21, 3)[hand] / 1000
            tips = [of_file[INTERHAND21.index(f"{finger}4")] for finger in FINGERS]
            np.testing.assert_allclose(tips, vertices[list(TIP_VERTICES)], atol=2e-5)
            knuckles = hand_model.regressor[hand].double().numpy() @ vertices
            np.testing.assert_allclose(of_file[INTERHAND21.index("middle1")], knuckles[MODEL16.index("middle1")],
                                       atol=2e-5)


def test_stored_parameters_land_on_the_rendered_hands(pairs_root, hand_model):
    """Meshes posed by smplx, projected and filled by OpenCV, against what the renderer drew."""
    overlaps, strays = [], []
    for sequence in (s for s in plan_sequences(SETTINGS) if s.split == "train"):
        hands, assets = generator.hand_set()
        capture = plan.capture_of(SETTINGS, sequence.split, sequence.capture)
        cameras = {camera.name: camera for camera in capture.cameras}
        steps = dict(zip(sequence.frames, generator.pose_sequence(SETTINGS, sequence, capture, hands), strict=True))
        for image, _, camera, _, mano in joined(pairs_root, "train"):
            if image["seq_name"] != sequence.name:
                continue
            mask = np.zeros((image["height"], image["width"]), np.uint8)
            for hand in Hand:
                pixels = project(posed(mano[hand.label], hand, hand_model), camera)
                for triangle in pixels[hand_model.faces[hand].numpy()]:
                    cv2.fillConvexPoly(mask, np.round(triangle * 16).astype(np.int32), 1, shift=4)
            step, camera = steps[image["frame_idx"]], cameras[image["camera"]]
            keys = generator.image_keys(SETTINGS, sequence, [generator.Shot("", image["frame_idx"], step, camera)])
            body = sample_body(generator.stack_hands([step]), keys, assets)
            drawn = hand_mask(body, stack_views([camera], capture.is_studio), assets, *mask.shape)[0].numpy()
            overlaps.append((drawn & (mask > 0)).sum() / (drawn | (mask > 0)).sum())
            strays.append((drawn & (mask == 0)).sum() / drawn.sum())
    # A forearm may cover a part of the other hand, so a picture can show less than the mesh, but never more.
    assert len(overlaps) == 6 and max(overlaps) > 0.95 and min(overlaps) > 0.6 and max(strays) < 0.06


def test_files_are_the_rendered_pictures_up_to_jpeg(pairs_root):
    """Each picture is rendered again, alone, and compared with its file; JPEG keeps the means of small patches."""
    sequence = next(s for s in plan_sequences(SETTINGS) if s.split == "train")
    hands, _ = generator.hand_set()
    capture = plan.capture_of(SETTINGS, sequence.split, sequence.capture)
    cameras = {camera.name: camera for camera in capture.cameras}
    steps = dict(zip(sequence.frames, generator.pose_sequence(SETTINGS, sequence, capture, hands), strict=True))
    images = [image for image, *_ in joined(pairs_root, "train") if image["seq_name"] == sequence.name]
    assert images
    for image in images:
        file = pairs_root / "images" / "train" / image["file_name"]
        shot = generator.Shot(str(file), image["frame_idx"], steps[image["frame_idx"]], cameras[image["camera"]])
        drawn = generator.render_shots(SETTINGS, sequence, capture, [shot])[0]
        means = [cv2.blur(picture.astype(np.float32), (8, 8)) for picture in (drawn, cv2.imread(str(file))[..., ::-1])]
        assert np.abs(means[0] - means[1]).mean() < 1.5


def test_the_reader_reads_the_set(pairs_root, hand_model):
    reader = InterHand26M(pairs_root, "train", hand_model)
    assert len(reader) == 6 and "left out: none" in reader.summary
    assert reader.read(0).vertices_valid.all()


def test_a_hand_that_is_not_there_is_null_and_invalid(singles_root):
    for split in SPLITS:
        for _, annotation, _, joints, mano in joined(singles_root, split):
            seen = Hand[annotation["hand_type"].upper()]
            valid = np.array(joints["joint_valid"]).reshape(2, 21)
            assert mano[seen.other.label] is None and mano[seen.label] is not None
            assert valid[seen].all() and not valid[seen.other].any()
            assert (np.array(joints["world_coord"]).reshape(2, 21, 3)[seen.other] == 1).all()
            assert not np.array(annotation["joint_valid"]).reshape(2, 21)[seen.other].any()


def test_the_contact_sheet_shows_pictures_and_meshes(pairs_root, tmp_path, monkeypatch):
    out = tmp_path / "sheet.png"
    monkeypatch.setattr("sys.argv", ["contact_sheet", "--root", str(pairs_root), "--out", str(out), "--rows", "2",
                                     "--columns", "2", "--size", "64"])
    contact_sheet.main()
    cells = cv2.imread(str(out)).reshape(2, 64, 2, 130, 3).swapaxes(1, 2).astype(int)       # each 64 × 2·64 + 2
    crops, overlays = cells[..., :64, :], cells[..., 64:128, :]
    changed = (np.abs(crops - overlays).max(axis=-1) > 3).mean(axis=(2, 3))
    assert (changed > 0.05).all() and (changed < 0.8).all()


@pytest.mark.parametrize(("flag", "value"), [("--frames", "1"), ("--workers", "0")])
def test_bad_flags_leave_with_code_2_and_one_paragraph(flag, value, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["make_synthetic", "--out", str(tmp_path / "set"), "--frames", "8", flag, value])
    with pytest.raises(SystemExit, match="2"):
        run_entry_point(make_synthetic.main)
    assert flag in capsys.readouterr().err and not (tmp_path / "set").exists()


# ---------------------------------------------------------------- sameness and difference

def test_the_set_does_not_depend_on_the_number_of_workers(pairs_root, tmp_path):
    generator.generate(tmp_path, SETTINGS, workers=2)
    assert files(tmp_path) == files(pairs_root)


def test_another_seed_gives_another_set(singles_root, tmp_path):
    generator.generate(tmp_path, Settings(frames=4, seed=1, cameras=1, interacting=0.0), workers=1)
    assert not set(files(tmp_path).values()) & {data for path, data in files(singles_root).items()
                                                if path.suffix == ".jpg"}


def test_splits_show_different_people_and_cameras(pairs_root):
    shapes, positions = set(), set()
    for split in SPLITS:
        _, _, camera, _, mano = next(joined(pairs_root, split))
        shapes.add(tuple(mano["right"]["shape"]))
        positions.add(tuple(camera[1]))
    assert len(shapes) == 3 and len(positions) == 3


def test_a_second_run_renders_only_what_is_missing(singles_root, monkeypatch):
    before = files(singles_root)
    lost = next(singles_root.rglob("*.jpg"))
    lost.unlink()
    rendered = []
    original = generator.render_sequence
    monkeypatch.setattr(generator, "render_sequence", lambda job: (rendered.append(job), original(job))[1])
    generator.generate(singles_root, Settings(frames=4, seed=0, cameras=1, interacting=0.0), workers=1)
    assert len(rendered) == 1 and files(singles_root) == before


def test_a_folder_of_another_set_is_refused(pairs_root, tmp_path):
    with pytest.raises(UserError, match="seed 3 instead of 4"):
        generator.generate(pairs_root, Settings(frames=8, seed=4, interacting=1.0), workers=1)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds files"):
        generator.generate(tmp_path, SETTINGS, workers=1)


@pytest.mark.parametrize("values", [{"frames": 2}, {"cameras": 0}, {"cameras": 99}, {"interacting": 1.5}, {"seed": -1}])
def test_settings_that_make_no_set_are_refused(values):
    with pytest.raises(UserError, match=f"--{next(iter(values))}"):
        Settings(**{"frames": 8, "seed": 0, **values})


def test_streams_of_different_purposes_differ():
    keys = [("train", 0, Purpose.POSE, 0), ("train", 0, Purpose.POSE), ("val", 0, Purpose.POSE, 0),
            ("train", 1, Purpose.POSE, 0), ("train", 0, Purpose.CAMERAS, 0)]
    assert len({stream(SETTINGS, *key).random() for key in keys}) == len(keys)


# ---------------------------------------------------------------- poses

def test_stored_poses_are_within_the_joint_limits(pairs_root, singles_root, hand_model):
    """Angles by Euler decomposition in each joint's own frame, from the stored axis-angles."""
    rig = load_rig()
    for root in (pairs_root, singles_root):
        for *_, mano in joined(root, "train"):
            for hand in (hand for hand in Hand if mano[hand.label]):
                pose = np.array(mano[hand.label]["pose"])[3:] + hand_model.mean_pose[hand].double().numpy()
                matrices = Rotation.from_rotvec(pose.reshape(15, 3)).as_matrix()
                if hand == Hand.LEFT:
                    mirror = np.diag([-1.0, 1.0, 1.0])
                    matrices = mirror @ matrices @ mirror
                axes = rig.axes.double().numpy()
                local = axes @ matrices @ axes.transpose(0, 2, 1)
                angles = Rotation.from_matrix(local).as_euler("XYZ")
                limits = rig.limits.double().numpy()
                assert (angles > limits[..., 0] - 1e-3).all() and (angles < limits[..., 1] + 1e-3).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_bends_inside_the_limits_and_fingers_move_together(preset):
    rig, rng = load_rig(), np.random.default_rng(0)
    angles = np.stack([sample_angles(rig, preset, 1.0, rng) for _ in range(200)])
    limits = rig.limits.double().numpy()
    assert (angles >= limits[..., 0] - 1e-6).all() and (angles <= limits[..., 1] + 1e-6).all()
    middle, ring = (angles[:, MODEL16.index(f"{name}2") - 1, 0] for name in ("middle", "ring"))
    assert np.corrcoef(middle, ring)[0, 1] > 0.3


def test_flexion_curls_the_fingers_towards_the_palm(hand_model):
    rig = load_rig()
    angles = torch.zeros(15, 3)
    index = MODEL16.index("index1") - 1
    angles[index, 0] = np.pi / 2
    turned = finger_rotations(rig, angles)[index] @ torch.tensor([-1.0, 0.0, 0.0])
    assert turned[1] < -0.95                                # fingers along −x, palm towards −y


def test_overlap_is_recorded_and_small(pairs_root):
    records = [record for split in SPLITS for capture in json.loads(
        (pairs_root / "annotations" / split / "interaction.json").read_text()).values() for record in capture.values()]
    assert len(records) == 5
    for record in records:
        assert set(record) == {"family", "is_contact", "max_depth_mm", "mean_depth_mm", "inside", "gap_mm"}
        assert 0 <= record["mean_depth_mm"] <= record["max_depth_mm"] < 6
        assert (record["gap_mm"] == 0) == (record["inside"] > 0)
        assert record["is_contact"] or record["family"] in ("apart", "near", "side_by_side")


def test_the_wrist_bends_no_farther_than_a_wrist_does():
    rng = np.random.default_rng(0)
    rotations = Rotation.random(500, rng=rng).as_matrix()
    directions = forearm_direction(rotations, *rng.normal(0, 0.1, (2, 500, 3)))
    along = np.einsum("nij,ni->nj", rotations, directions)
    np.testing.assert_allclose(np.linalg.norm(along, axis=1), 1)
    assert np.degrees(np.arccos(along[:, 0])).max() < 68


def test_family_shares_name_every_family_and_add_up():
    assert set(FAMILY_SHARES) == set(FAMILIES) and sum(FAMILY_SHARES.values()) == pytest.approx(1)


# ---------------------------------------------------------------- scenes

def test_a_camera_sees_the_same_after_the_world_is_moved():
    rng = np.random.default_rng(0)
    rotation, shift, points = Rotation.random(rng=rng).as_matrix(), rng.normal(0, 1, 3), rng.normal(0, 0.1, (20, 3))
    for camera in (*sample_cameras(12, True, rng), *sample_cameras(12, False, rng)):
        assert np.abs(camera.to_px(np.zeros(3))[:2] - np.array(camera.size) / 2).max() < 90
        moved = camera.moved(rotation, shift)
        np.testing.assert_allclose(moved.to_px(points @ rotation.T + shift), camera.to_px(points), atol=1e-8)


def test_studio_cameras_are_like_those_of_the_studio_and_others_like_photographs():
    rng = np.random.default_rng(0)
    studio, others = sample_cameras(40, True, rng), sample_cameras(200, False, rng)
    for camera in studio:
        assert 0.9 < camera.to_px(np.zeros(3))[2] < 1.3 and 1240 < camera.focal.min() < camera.focal.max() < 1300
    focals = np.array([camera.focal[0] for camera in others])
    assert focals.min() < 350 and focals.max() > 1150
    for camera in others:                                   # 20 cm of hands fill a sixth to all of the picture's width
        share = 0.2 * camera.focal[0] / camera.to_px(np.zeros(3))[2] / min(camera.size)
        assert 0.15 < share < 1.0


# ---------------------------------------------------------------- measuring overlap

def test_points_in_a_sphere_are_inside_and_their_distance_is_right():
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.05)
    points = np.random.default_rng(0).uniform(-0.08, 0.08, (300, 3))
    radius = np.linalg.norm(points, axis=1)
    clear = np.abs(radius - 0.05) > 0.0005
    inside = winding_number(points, ball.vertices[ball.faces]) > 0.5
    np.testing.assert_array_equal(inside[clear], radius[clear] < 0.05)
    np.testing.assert_allclose(surface_distance(points, ball.vertices, ball.faces), np.abs(radius - 0.05), atol=2e-4)


def test_hands_closed_at_the_wrist_are_closed(hand_model):
    triangles = closed_at_wrist(hand_model.template[0].double().numpy(), hand_model.faces[0].numpy())
    assert trimesh.Trimesh(triangles.reshape(-1, 3), np.arange(3 * len(triangles)).reshape(-1, 3)).is_watertight
    assert len(boundary_loop(hand_model.faces[0].numpy())) == 16


def test_hands_pushed_into_each_other_overlap_by_as_much(hand_model):
    """Two resting hands, one turned over, with the palms pushed 5 mm further than where they meet."""
    faces, right = hand_model.faces.numpy(), hand_model.template[0].double().numpy()
    left = hand_model.template[1].double().numpy() * (-1, -1, 1)        # palm to palm; y points from the palm
    left_faces = faces[1]
    def at(distance):
        return measure(np.stack([right, left - (0, distance, 0)]), np.stack([faces[0], left_faces]))
    low, high = 0.0, 0.2
    for _ in range(25):
        low, high = ((low + high) / 2, high) if at((low + high) / 2).inside else (low, (low + high) / 2)
    touching, pushed, apart = at(high + 1e-4), at(high - 0.005), at(high + 0.01)
    assert touching.is_contact and touching.inside == 0 and touching.gap_mm < 0.5
    assert 2.5 < pushed.max_depth_mm < 5.1 and 0 < pushed.mean_depth_mm < pushed.max_depth_mm
    assert not apart.is_contact and 5 < apart.gap_mm < 10.5


