"""tool/dev/real_check.py: annotated joints without meshes are measured as the protocol says; nothing is left unsaid."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fixtures_interhand import CAMERAS, MISSING_JOINT, STEPS, Fixture, write_interhand
from tiny_snapshot import save_tiny_snapshot
from torch import nn

from common.hands import Hand
from common.types import HandPrediction, ManoParams, Stages
from main.build import build_dataset
from main.config import Config, DataConfig, ModelConfig
from tool.dev.real_check import describe, measure

CPU = torch.device("cpu")
FACTORS = (1.25, 0.8)       # of the right and of the left hand
NAMES = {f"Capture{capture}/0000_fixture/cam{camera}/image{frame}.jpg": ((capture, frame), camera)
         for capture, frame in STEPS for camera in CAMERAS}


@pytest.fixture(scope="module")
def joints_only(tmp_path_factory, hand_model) -> Fixture:
    """A set whose meshes are known here, but whose annotations are joints alone."""
    fixture = write_interhand(tmp_path_factory.mktemp("joints") / "set", hand_model, "test")
    (fixture.root / "annotations" / "test" / "InterHand2.6M_test_MANO_NeuralAnnot.json").unlink()
    (fixture.root / "hand_model.json").unlink()
    return fixture


def opened(fixture: Fixture, hand_model):
    config = Config(model=ModelConfig(input_size=32), data=DataConfig(root=str(fixture.root), filter="all"))
    return build_dataset(config, hand_model, "InterHand26M", "test")


class Told(nn.Module):
    """Predicts the given meshes (N, 2, 778, 3) in their order, whatever it sees."""

    def __init__(self, vertices: np.ndarray):
        super().__init__()
        self.vertices, self.given = torch.from_numpy(vertices).float(), 0

    def forward(self, image, camera=None) -> Stages:
        vertices = self.vertices[self.given:self.given + len(image)]
        self.given += len(image)
        zeros = torch.zeros(len(image), 2, 21, 3)
        hands = HandPrediction(vertices, zeros, zeros[:, 0, 0], ManoParams(zeros, zeros), zeros[:, :, 0])
        return Stages(hands, hands)


def scaled_truth(fixture: Fixture, dataset) -> np.ndarray:
    """The true meshes in their own cameras, moved and scaled by `FACTORS`."""
    meshes = []
    for index in range(len(dataset)):
        vertices = fixture.vertices_cam(*NAMES[dataset.reader.sample_id(index)])
        meshes.append([factor * (vertices[hand] + 0.3) for hand, factor in zip(Hand, FACTORS, strict=True)])
    return np.array(meshes)


def test_a_prediction_that_is_the_truth_up_to_scale_has_no_error_and_its_scale_is_the_other_one(joints_only,
                                                                                               hand_model):
    dataset = opened(joints_only, hand_model)
    measured = measure(Told(scaled_truth(joints_only, dataset)), dataset, torch.zeros(2, 21, 3), CPU)
    report = describe(measured, dataset)
    assert report["protocols"]["scaled"]["mpjpe"] == pytest.approx(0, abs=2e-3)
    for frame in report["frames"]:
        step, _ = NAMES[frame["image"]]
        world, counted, total = joints_only.steps[step].joints, 0, 0.0
        for hand, factor in zip(Hand, FACTORS, strict=True):
            if hand == Hand.LEFT and STEPS[step] == "right hand only":
                assert frame["left"] is None
                continue
            used = [joint for joint in range(21)
                    if not (hand == Hand.RIGHT and joint == MISSING_JOINT and "pinky3" in STEPS[step])]
            length = 1000 * np.linalg.norm(world[hand] - world[hand, 0], axis=1)[used]
            assert frame[hand.label]["scaled"] == pytest.approx(0, abs=2e-3)
            assert frame[hand.label]["unscaled"] == pytest.approx(abs(factor - 1) * length.mean(), rel=1e-4)
            counted, total = counted + len(used), total + abs(factor - 1) * length.sum()
        assert frame["both"]["unscaled"] == pytest.approx(total / counted, rel=1e-4)
    scales = [report["protocols"]["scaled"]["hands"][hand.label]["scale"] for hand in Hand]
    np.testing.assert_allclose(scales, [1 / factor for factor in FACTORS], rtol=1e-5)


def test_what_is_scored_and_what_is_left_out_is_counted(joints_only, hand_model):
    """Of 21 frames 3 have no joints; of the 36 hands of the others 3 are not annotated, and 3 lack a joint."""
    dataset = opened(joints_only, hand_model)
    report = describe(measure(Told(scaled_truth(joints_only, dataset)), dataset, torch.zeros(2, 21, 3), CPU), dataset)
    assert report["counts"] == {"frames": 18, "hands": 33, "joints": 33 * 21 - 3, "meshes": 0, "not_finite": 0}
    assert report["protocols"]["scaled"]["counts"]["mpjpe"] == 33 * 21 - 3
    assert report["left_out"] == {"annotations": {"without an annotated hand": 3}, "frames": {},
                                  "hands_without_wrist": 3, "joints_of_the_other_hands": 3}


def test_a_stretched_prediction_has_the_error_that_numpy_finds_and_its_mean_is_that_of_all_joints(joints_only,
                                                                                                  hand_model):
    dataset, stretch, errors = opened(joints_only, hand_model), np.array([1.4, 1.0, 0.9]), []
    frames = [NAMES[dataset.reader.sample_id(index)] for index in range(len(dataset))]
    for step, camera in frames:
        rotation, position, _ = joints_only.cameras[step[0], camera]
        joints = (joints_only.steps[step].joints - position) @ rotation.T
        true = joints - joints[:, :1]
        bone = np.linalg.norm(true[:, 9], axis=1) / np.linalg.norm(stretch * true[:, 9], axis=1)    # middle knuckle
        used = np.ones((2, 21), dtype=bool)
        used[Hand.LEFT] &= STEPS[step] != "right hand only"
        used[Hand.RIGHT, MISSING_JOINT] &= "pinky3" not in STEPS[step]
        errors.append(1000 * np.linalg.norm(bone[:, None, None] * stretch * true - true, axis=2)[used])

    told = Told(np.array([stretch * joints_only.vertices_cam(*frame) for frame in frames]))
    report = describe(measure(told, dataset, torch.zeros(2, 21, 3), CPU), dataset)
    assert report["protocols"]["scaled"]["mpjpe"] == pytest.approx(np.concatenate(errors).mean(), rel=1e-4)
    found = [frame["both"]["scaled"] for frame in report["frames"]]
    np.testing.assert_allclose(found, [error.mean() for error in errors], rtol=1e-4)


# ---------------------------------------------------------------- the tool

@pytest.fixture(scope="module")
def snapshot(tmp_path_factory, hand_model) -> Path:
    path = tmp_path_factory.mktemp("run") / "snapshot_0.pth.tar"
    save_tiny_snapshot(path, hand_model)
    return path


def cut(fixture: Fixture, folder: Path, frames: tuple[str, ...]) -> Path:
    """A copy of the set with the pictures of camera 400012 at these frames alone."""
    root = Path(shutil.copytree(fixture.root, folder))
    file = root / "annotations" / "test" / "InterHand2.6M_test_data.json"
    data = json.loads(file.read_text())
    data["images"] = [image for image in data["images"] if image["camera"] == "400012"
                      and str(image["frame_idx"]) in frames]
    kept = {image["id"] for image in data["images"]}
    data["annotations"] = [found for found in data["annotations"] if found["image_id"] in kept]
    file.write_text(json.dumps(data))
    return root


def test_a_set_without_meshes_gives_a_table_numbers_and_a_picture_of_each_frame(run, joints_only, snapshot, tmp_path):
    root = cut(joints_only, tmp_path / "set", ("100", "12"))
    code, text = run("tool/dev/real_check.py", root, "--checkpoint", snapshot, "--out", tmp_path / "out",
                     "--gpu", "cpu")
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert code == 0, text
    assert "0 hands with a mesh (there is no InterHand2.6M_test_MANO_NeuralAnnot.json)" in text
    assert "No hand has a mesh: these are errors of 63 annotated joints of 3 hands in 2 frames." in text
    assert "Left out: hands that are not annotated: 1; joints of the others: 0; frames that" in text
    scaled, unscaled = (found["protocols"][name] for name in ("scaled", "unscaled"))
    assert f"{scaled['mpjpe']:.2f} ({unscaled['mpjpe']:.2f})" in text
    assert f"{scaled['hands']['left']['mpjpe']:.2f} ({unscaled['hands']['left']['mpjpe']:.2f})" in text
    assert found["checkpoint"] == "snapshot_0.pth.tar" and found["hand_model"]["name"] == "builtin"
    pictures = sorted((tmp_path / "out" / "overlay").iterdir())
    assert [picture.name for picture in pictures] == ["Capture11_0000_fixture_cam400012_image12.png",
                                                      "Capture3_0000_fixture_cam400012_image100.png"]
    assert cv2.imread(str(pictures[0])).shape == (512, 4 * 512 + 3 * 12, 3)


def test_a_set_with_meshes_says_so_and_a_broken_picture_is_named(run, hand_model, snapshot, tmp_path):
    fixture = write_interhand(tmp_path / "whole", hand_model, "test")
    root = cut(fixture, tmp_path / "set", ("100", "7"))
    (root / "images" / "test" / "Capture11" / "0000_fixture" / "cam400012" / "image7.jpg").write_bytes(b"no picture")
    code, text = run("tool/dev/real_check.py", root, "--checkpoint", snapshot, "--out", tmp_path / "out",
                     "--gpu", "cpu")
    assert code == 4
    assert "2 hands have a mesh, which is not scored: these are errors of 42 annotated joints of 2 hands in 1 frames." \
        in text
    assert "frames that cannot be used: 1 image damaged" in text


def test_folders_of_another_layout_and_of_other_hands_are_refused_in_one_paragraph(run, joints_only, snapshot,
                                                                                  hand_model, tmp_path):
    (tmp_path / "HIC").mkdir()
    (tmp_path / "HIC" / "HIC.json").write_text("{}")
    mano = write_interhand(tmp_path / "mano", hand_model, "test").root
    (mano / "hand_model.json").unlink()
    for folder, reason in ((tmp_path / "HIC", "There are no InterHand2.6M annotations of split 'test'. Tried: "),
                           (tmp_path / "nowhere", "There are no InterHand2.6M annotations of split 'test'. Tried: "),
                           (mano, "holds MANO parameters")):
        code, text = run("tool/dev/real_check.py", folder, "--checkpoint", snapshot, "--out", tmp_path / "out", "--gpu",
                         "cpu")
        assert code == 2 and reason in text and text.startswith("error: ") and text.count("\n") == 1
    assert not (tmp_path / "out").exists()
