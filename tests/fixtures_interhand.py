"""A small set in InterHand2.6M's layout, with the irregularities of the real one, and the truth it was made from.

Meshes come from a numpy skinning of their own here, not from the code under test.
"""

import json
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from common.hands import INTERHAND21, MANO21, MODEL16, Hand, joint_regressor
from common.mano.model import HandModel

CAMERAS = {"400012": (334, 512), "400026": (334, 512), "410028": (512, 334)}
HAND_MODEL_FILE = "hand_model.json"

# (capture, frame): what is special about it. Captures and frame numbers have gaps.
STEPS = {
    (3, 100): "",
    (3, 105): "left mesh is null",
    (3, 110): "no key in the MANO file",
    (11, 7): "right pinky3 is not annotated",
    (11, 12): "right hand only",
    (11, 20): "hand type not valid",
    (11, 31): "no key in the joint file nor in the MANO file",
}
NUM_BOTH_MESHES = 2 * len(CAMERAS)      # (3, 100) and (11, 7)
MISSING_JOINT = MANO21.index("pinky3")      # a joint whose place differs between the two orders


class World(NamedTuple):
    """What a step shows, in metres and the world frame."""

    vertices: np.ndarray    # (2, 778, 3)
    joints: np.ndarray      # (2, 21, 3) MANO21


class Fixture(NamedTuple):
    root: Path
    steps: dict[tuple[int, int], World]
    cameras: dict[tuple[int, str], tuple[np.ndarray, np.ndarray, np.ndarray]]   # rotation, position (m), intrinsics

    def vertices_cam(self, step: tuple[int, int], camera: str) -> np.ndarray:
        rotation, position, _ = self.cameras[step[0], camera]
        return (self.steps[step].vertices - position) @ rotation.T


def skin(model: HandModel, hand: Hand, axis_angle: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Vertices (778, 3) of one hand by linear blend skinning in float64 numpy; axis_angle (16, 3), mean included."""
    template, shapedirs, posedirs, regressor, weights = (
        getattr(model, key)[hand].double().numpy()
        for key in ("template", "shapedirs", "posedirs", "regressor", "weights"))
    shaped = template + shapedirs @ shape
    rest = regressor @ shaped
    rotations = Rotation.from_rotvec(axis_angle).as_matrix()
    posed = shaped + ((rotations[1:] - np.eye(3)).reshape(-1) @ posedirs).reshape(-1, 3)
    world = []
    for joint, parent in enumerate(MODEL16.parents):
        local = np.eye(4)
        local[:3, :3] = rotations[joint]
        local[:3, 3] = rest[joint] - (rest[parent] if parent >= 0 else 0)
        world.append(local if parent < 0 else world[parent] @ local)
    moved = [(posed - rest[joint]) @ transform[:3, :3].T + transform[:3, 3] for joint, transform in enumerate(world)]
    return np.einsum("vj,jvk->vk", weights, np.stack(moved))


def write_interhand(root: Path, model: HandModel, split: str = "train", seed: int = 0) -> Fixture:
    """Write the set under `root` with a file that names `model`; every step is seen by every camera."""
    rng = np.random.default_rng(seed)
    cameras = {(capture, name): _camera(rng, size) for capture in (3, 11) for name, size in CAMERAS.items()}
    steps, joint_entries, mano_entries = {}, {"3": {}, "11": {}}, {"3": {}, "11": {}}
    for (capture, frame), trait in STEPS.items():
        world, fits = _hands(rng, model)
        steps[capture, frame] = world
        valid = np.ones((2, 21), dtype=bool)
        if trait == "right hand only":
            valid[Hand.LEFT], fits["left"] = False, None
        if trait == "right pinky3 is not annotated":
            valid[Hand.RIGHT, MISSING_JOINT] = False
        if trait == "left mesh is null":
            fits["left"] = None
        if "joint file" not in trait:
            joint_entries[str(capture)][str(frame)] = _joint_entry(world.joints, valid, trait)
        if "MANO file" not in trait:
            mano_entries[str(capture)][str(frame)] = fits
    fixture = Fixture(root, steps, cameras)
    _write_json(root, split, "data", _images_and_annotations(fixture, rng, split))
    _write_json(root, split, "camera", _camera_entries(cameras))
    _write_json(root, split, "joint_3d", joint_entries)
    _write_json(root, split, "MANO_NeuralAnnot", mano_entries)
    (root / HAND_MODEL_FILE).write_text(json.dumps(model.identity))
    return fixture


def _camera(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A camera 1.1 m from the hands, looking at them."""
    toward = rng.normal(size=3)
    toward /= np.linalg.norm(toward)
    right = np.cross(rng.normal(size=3), toward)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(toward, right), toward])
    focal, center = rng.uniform(1261, 1275, 2), np.array(size) / 2 + rng.uniform(-30, 30, 2)
    return rotation, _CENTER - 1.1 * toward, np.array([[focal[0], 0, center[0]], [0, focal[1], center[1]], [0, 0, 1]])


_CENTER = np.array([0.05, -0.1, 1.05])


def _hands(rng: np.random.Generator, model: HandModel) -> tuple[World, dict]:
    fits, vertices = {}, []
    for hand in Hand:
        pose = np.concatenate([Rotation.from_quat(rng.normal(size=4)).as_rotvec(), rng.normal(0, 0.25, 45)])
        shape = rng.normal(0, 1, 10)
        with_mean = pose.reshape(16, 3) + np.concatenate([np.zeros(3), model.mean_pose[hand].numpy()]).reshape(16, 3)
        mesh = skin(model, hand, with_mean, shape)
        translation = _CENTER + [-0.06 if hand == Hand.RIGHT else 0.06, 0, 0] + rng.normal(0, 0.01, 3) - mesh.mean(0)
        vertices.append(mesh + translation)
        fits[hand.label] = {"pose": pose.tolist(), "shape": shape.tolist(), "trans": translation.tolist()}
    regressor = joint_regressor(model.regressor.double()).numpy()
    return World(np.stack(vertices), regressor @ np.stack(vertices)), fits


def _joint_entry(joints: np.ndarray, valid: np.ndarray, trait: str) -> dict:
    stored = np.where(valid[..., None], joints * 1000, 1.0)[:, INTERHAND21.gather_from(MANO21)]
    mask = valid[:, INTERHAND21.gather_from(MANO21)]
    return {"world_coord": stored.reshape(42, 3).tolist(), "joint_valid": [[bool(v)] for v in mask.reshape(42)],
            "hand_type": "right" if trait == "right hand only" else "interacting",
            "hand_type_valid": trait != "hand type not valid"}


def _images_and_annotations(fixture: Fixture, rng: np.random.Generator, split: str) -> dict:
    """Image ids and annotation ids differ and have gaps; the two lists are in different orders."""
    images, annotations = [], []
    for (capture, frame), trait in STEPS.items():
        for camera, size in CAMERAS.items():
            name = f"Capture{capture}/0000_fixture/cam{camera}/image{frame}.jpg"
            path = fixture.root / "images" / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
            cv2.imwrite(str(path), cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC))
            image_id = 1000 + 7 * len(images)
            images.append({"id": image_id, "file_name": name, "width": size[0], "height": size[1], "capture": capture,
                           "subject": 0, "seq_name": "0000_fixture", "camera": camera, "frame_idx": frame})
            annotations.append(_annotation(fixture, (capture, frame), camera, trait, image_id))
    rng.shuffle(annotations)
    return {"images": images, "annotations": annotations}


def _annotation(fixture: Fixture, step: tuple[int, int], camera: str, trait: str, image_id: int) -> dict:
    rotation, position, intrinsics = fixture.cameras[step[0], camera]
    points = (fixture.steps[step].joints - position) @ rotation.T @ intrinsics.T
    pixels = points[..., :2] / points[..., 2:]
    valid = np.ones((2, 21), dtype=int)
    if trait == "right hand only":
        valid[Hand.LEFT] = 0
    if trait == "right pinky3 is not annotated":
        valid[Hand.RIGHT, MISSING_JOINT] = 0
    low, high = pixels[valid > 0].min(0), pixels[valid > 0].max(0)
    center, extent = (low + high) / 2, (high - low) * 1.2
    mask = valid[:, INTERHAND21.gather_from(MANO21)].reshape(42, 1)
    return {"id": 90_000 - 3 * image_id, "image_id": image_id, "bbox": [*(center - extent / 2), *extent],
            "joint_valid": mask.tolist(), "hand_type": "right" if trait == "right hand only" else "interacting",
            "hand_type_valid": int(trait != "hand type not valid")}


def _camera_entries(cameras: dict) -> dict:
    entries = {}
    for (capture, name), (rotation, position, intrinsics) in cameras.items():
        entry = entries.setdefault(str(capture), {"campos": {}, "camrot": {}, "focal": {}, "princpt": {}})
        entry["campos"][name] = (position * 1000).tolist()
        entry["camrot"][name] = rotation.tolist()
        entry["focal"][name] = [intrinsics[0, 0], intrinsics[1, 1]]
        entry["princpt"][name] = intrinsics[:2, 2].tolist()
    return entries


def _write_json(root: Path, split: str, kind: str, content: dict) -> None:
    path = root / "annotations" / split / f"InterHand2.6M_{split}_{kind}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
