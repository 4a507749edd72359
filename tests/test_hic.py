"""The HIC reader on a written set: what it reads, what it refuses, and test.py from end to end."""

import dataclasses
import hashlib
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures_hic import ANY_MESH, BOTH_MESHES, FITS, FRAMES, INTRINSICS, write_hic, write_ply
from fixtures_interhand import HAND_MODEL_FILE
from tiny_snapshot import save_tiny_snapshot

from common.errors import UserError
from common.hands import MANO21, WRIST, Hand
from common.score.metrics import PROTOCOLS, PredictedHands, SampleErrors, sample_errors
from data import build_reader
from data.checks import BadSample, Reason
from data.dataset import TwoHandDataset, read_frame, read_record

ROOT = Path(__file__).resolve().parent.parent
MODEL_ROWS = {"wrist": 0, "index1": 1, "middle1": 4, "pinky1": 7, "ring1": 10, "thumb1": 13}
TIPS = {"thumb4": 745, "index4": 317, "middle4": 444, "ring4": 556, "pinky4": 673}


@pytest.fixture(scope="module")
def written(tmp_path_factory, hand_model):
    return write_hic(tmp_path_factory.mktemp("hic"), hand_model)


@pytest.fixture
def copy(written, tmp_path) -> Path:
    """A root that a test may damage."""
    return Path(shutil.copytree(written.root, tmp_path / "HIC"))


def open_set(root: Path, hand_model, filter="ih_hm", box_source="vertices", split="test"):
    return build_reader("HIC", root=root, split=split, hand_model=hand_model, filter=filter,
                        box_source=box_source)


def frame_of(about: dict) -> tuple[str, int]:
    return about["sequence"], int(about["frame"])


def frames_of(reader) -> list[tuple[str, int]]:
    return [frame_of(reader.describe(index)) for index in range(len(reader))]


def where(reader, frame: tuple[str, int]) -> int:
    return frames_of(reader).index(frame)


def edit(root: Path, change) -> None:
    path = root / "HIC.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def ply(root: Path, sequence: str, frame: int, hand: str) -> Path:
    return root / FITS / f"IJCV16___fakeGT___IJCV___{sequence}___Model_Hand_{hand}___ncomps45" / f"{frame:03d}.ply"


# ---------------------------------------------------------------- what is read

def test_meshes_arrive_as_they_were_written(written, hand_model):
    reader = open_set(written.root, hand_model, "all")
    for index in range(len(reader)):
        record, frame = reader.read(index), frame_of(reader.describe(index))
        for hand in np.flatnonzero(record.vertices_valid):
            np.testing.assert_allclose(record.vertices_cam[hand], written.vertices[frame][hand], atol=1e-7)
        assert not record.vertices_cam[~record.vertices_valid].any()
        assert record.camera.tolist() == INTRINSICS.tolist() and record.image_size == (640, 480)
        assert record.image_path.name == f"{frame[1]:03d}.png"


def test_joints_are_regressed_from_the_mesh(written, hand_model):
    record = open_set(written.root, hand_model).read(0)
    mesh = record.vertices_cam
    for name, row in MODEL_ROWS.items():
        expected = np.einsum("hv,hvk->hk", hand_model.regressor[:, row].double().numpy(), mesh)
        np.testing.assert_allclose(record.joints_cam[:, MANO21.index(name)], expected, atol=1e-12)
    for name, vertex in TIPS.items():
        assert np.array_equal(record.joints_cam[:, MANO21.index(name)], mesh[:, vertex])
    assert record.joints_valid.all() and not record.joints_annotated_valid.any() and not record.mano_valid.any()


def test_interacting_keeps_the_frames_with_two_meshes_and_all_those_with_any(written, hand_model):
    assert sorted(frames_of(open_set(written.root, hand_model))) == BOTH_MESHES
    reader = open_set(written.root, hand_model, "all")
    assert sorted(frames_of(reader)) == sorted(ANY_MESH)
    hands = {frame: reader.read(where(reader, frame)).vertices_valid.tolist() for frame in ANY_MESH}
    assert all(hands[frame] == [True, True] for frame in BOTH_MESHES)
    assert hands["01", 6] == hands["16", 4] == hands["16", 10] == [True, False]
    assert hands["01", 13] == hands["16", 9] == [False, True]


def test_a_hand_without_a_mesh_is_masked_everywhere(written, hand_model):
    reader = open_set(written.root, hand_model, "all")
    targets = TwoHandDataset(reader, size=32, box_ratio=0.8)[0, where(reader, ("01", 6))].targets
    assert targets.vertices_valid.tolist() == [1, 0] and targets.joints_valid.sum(dim=1).tolist() == [21, 0]
    assert targets.relative_valid == 0 and targets.mano_valid.tolist() == [0, 0]
    assert all(torch.isfinite(leaf).all() for leaf in torch.utils._pytree.tree_leaves(targets))


def test_the_summary_counts_what_was_left_out(written, hand_model):
    lost = ply(written.root, "01", 13, "R")
    summary = open_set(written.root, hand_model).summary
    assert "HIC hic_ih: 3 frames" in summary and "6 hands with a mesh" in summary
    assert "3 not interacting, 3 without both meshes" in summary
    assert f"1 meshes are named but missing, the first is {lost}" in summary
    assert "1 without a mesh" in open_set(written.root, hand_model, "all").summary


def test_the_box_is_round_the_projected_vertices(written, hand_model):
    for source, points in (("vertices", "vertices_cam"), ("joints", "joints_cam")):
        record = open_set(written.root, hand_model, box_source=source).read(1)
        x, y, z = getattr(record, points).reshape(-1, 3).T
        pixels = np.stack([525 * x / z + 319.5, 525 * y / z + 239.5], axis=1)
        np.testing.assert_allclose(record.box_px, [pixels.min(0), pixels.max(0)])
    assert open_set(written.root, hand_model, box_source="json").read(1).box_px.tolist() == [[100, 90], [310, 240]]


def test_the_annotations_are_known_by_their_content(written, hand_model):
    content = (written.root / "HIC.json").read_bytes()
    assert open_set(written.root, hand_model).sources() == {"HIC.json": hashlib.sha256(content).hexdigest()}


def test_reading_twice_gives_the_same_record(written, hand_model):
    reader = open_set(written.root, hand_model, "all")
    first = reader.read(2)
    expected = first._replace(vertices_cam=first.vertices_cam.copy())
    first.vertices_cam[:] = 7
    for value, again in zip(expected, reader.read(2), strict=True):
        assert np.array_equal(value, again)


def test_the_order_in_the_file_changes_nothing(written, copy, hand_model):
    def shuffle(content: dict) -> None:
        content["images"].reverse()
        content["annotations"].reverse()
    edit(copy, shuffle)
    assert frames_of(open_set(copy, hand_model, "all")) == frames_of(open_set(written.root, hand_model, "all"))


@pytest.mark.parametrize("place", [".", "HIC", "data"])
def test_the_set_is_found_in_each_place_that_it_is_unpacked_to(place, copy, hand_model, tmp_path):
    """HIC.json beside the sequences, in HIC/data, or in a folder of its own beside them."""
    root = copy
    if place == "HIC":
        root = tmp_path / "other"
        shutil.copytree(copy, root / "HIC" / "data")
    if place == "data":
        (copy / "data").mkdir()
        for name in ("HIC.json", HAND_MODEL_FILE):
            (copy / name).rename(copy / "data" / name)
    assert len(open_set(root, hand_model)) == len(BOTH_MESHES)


# ---------------------------------------------------------------- what is refused

@pytest.mark.parametrize(("key", "list_name"), [("file_name", "images"), ("right_mano_path", "annotations")])
@pytest.mark.parametrize("name", [
    "/etc/passwd", "../secret.png", "01/../../secret.png", "..", "a/b/../../../x", "//x", "", "a\0b", 7, ["x"]])
def test_a_file_outside_the_set_is_refused(key, list_name, name, copy, hand_model):
    edit(copy, lambda content: content[list_name][1].update({key: name}))
    with pytest.raises(UserError, match=rf"HIC\.json, {list_name}\[1\]: {key}"):
        open_set(copy, hand_model)


def test_file_names_written_on_windows_are_read_with_slashes(copy, hand_model):
    expected = [open_set(copy, hand_model).describe(0)["path"]]

    def rewrite(content):
        for image in content["images"]:
            image["file_name"] = image["file_name"].replace("/", "\\")
        for annotation in content["annotations"]:
            for key in ("right_mano_path", "left_mano_path"):
                annotation[key] = annotation[key] and annotation[key].replace("/", "\\")

    edit(copy, rewrite)
    moved = open_set(copy, hand_model)
    assert [moved.describe(0)["path"]] == expected and moved.read(0).vertices_valid.all()


DAMAGES = {
    "image twice": (lambda c: c["images"].append(c["images"][0]), "images.9.: the id 500 occurs twice"),
    "annotation twice": (lambda c: c["annotations"].append(c["annotations"][0]), "occurs twice"),
    "no image": (lambda c: c["annotations"][2].update(image_id=1), r"annotations\[2\]: there is no image"),
    "other size": (lambda c: c["images"][0].update(width=320), "320×480; HIC's camera has 640×480"),
    "hand type": (lambda c: c["annotations"][3].update(hand_type="both"), r"annotations\[3\]: hand_type is 'both'"),
    "no hand type": (lambda c: c["annotations"][3].pop("hand_type"), r"annotations\[3\]: there is no 'hand_type'"),
    "no path": (lambda c: c["annotations"][3].pop("left_mano_path"), "there is no 'left_mano_path'"),
    "id text": (lambda c: c["annotations"][0].update(id="7"), "id is '7', not a whole number"),
    "id huge": (lambda c: c["annotations"][0].update(id=10**30), "not a whole number"),
    "box NaN": (lambda c: c["annotations"][0].update(bbox=[0, 0, float("nan"), 3]), "not a box with an area"),
    "box short": (lambda c: c["annotations"][0].update(bbox=[0, 0, 3]), "not 4 numbers"),
    "no annotations": (lambda c: c.update(annotations=[]), "has no annotations"),
    "null images": (lambda c: c.update(images=None), "'images' is not a list"),
    "no images": (lambda c: c.pop("images"), "there is no 'images'"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_annotation_is_named(name, copy, hand_model):
    damage, message = DAMAGES[name]
    edit(copy, damage)
    with pytest.raises(UserError, match=message):
        open_set(copy, hand_model)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"images": [1], "annotations": []}'])
def test_a_file_that_is_no_annotation_file_is_refused(text, copy, hand_model):
    (copy / "HIC.json").write_text(text)
    with pytest.raises(UserError, match=r"HIC\.json"):
        open_set(copy, hand_model)


def test_a_hundred_random_changes_of_the_annotations_load_or_give_one_error(copy, hand_model):
    content = json.loads((copy / "HIC.json").read_text())
    rng, values, loaded = np.random.default_rng(0), [None, -1, 0.5, "x", [], {}, True, float("inf"), 1e300, "01"], 0
    for _ in range(100):
        changed = json.loads(json.dumps(content))
        entries = changed[rng.choice(["images", "annotations"])]
        entry = entries[rng.integers(len(entries))]
        key = str(rng.choice(list(entry)))
        entry[key] = values[rng.integers(len(values))]
        if rng.random() < 0.3:
            del entry[key]
        (copy / "HIC.json").write_text(json.dumps(changed))
        try:
            loaded += len(open_set(copy, hand_model, "all")) > 0
        except UserError as error:
            assert "HIC" in error.message
    assert 0 < loaded < 100


FACE = np.zeros((1, 3), dtype=int)
MESH_DAMAGES = {
    "empty": (lambda path, mesh: path.write_bytes(b""), Reason.LABELS_UNREADABLE),
    "half": (lambda path, mesh: path.write_bytes(path.read_bytes()[:5000]), Reason.LABELS_UNREADABLE),
    "text": (lambda path, mesh: path.write_text("hello"), Reason.LABELS_UNREADABLE),
    "big": (lambda path, mesh: path.write_bytes(b" " * 10_000_001), Reason.LABELS_UNREADABLE),
    "777": (lambda path, mesh: write_ply(path, mesh[1:], FACE, binary=True), Reason.LABELS_UNREADABLE),
    "none": (lambda path, mesh: write_ply(path, mesh[:0], FACE[:0], binary=False), Reason.LABELS_UNREADABLE),
    "NaN": (lambda path, mesh: write_ply(path, mesh * np.nan, FACE, binary=False), Reason.NOT_FINITE),
    "millimetres": (lambda path, mesh: write_ply(path, mesh * 1000, FACE, binary=True), Reason.UNIT),
    "a point": (lambda path, mesh: write_ply(path, mesh * 0 + 1, FACE, binary=True), Reason.UNIT),
    "behind": (lambda path, mesh: write_ply(path, mesh - [0, 0, 2], FACE, binary=True), Reason.BEHIND_CAMERA),
}


@pytest.mark.parametrize("name", MESH_DAMAGES)
def test_a_wrong_mesh_is_named_with_what_is_wrong(name, written, copy, hand_model):
    damage, reason = MESH_DAMAGES[name]
    path = ply(copy, "01", 12, "L")
    damage(path, written.vertices["01", 12][Hand.LEFT])
    reader = open_set(copy, hand_model)
    with pytest.raises(BadSample) as caught:
        read_record(reader, where(reader, ("01", 12)))
    assert caught.value.reason == reason
    assert reason != Reason.LABELS_UNREADABLE or str(path) in caught.value.detail
    assert read_record(reader, where(reader, ("01", 5))).vertices_valid.all()


def test_a_sequence_that_was_not_unpacked_is_named(copy, hand_model):
    (copy / "16/1/rgb/000.png").unlink()        # the only frame of this sequence that is used
    with pytest.raises(UserError, match=r"the sequences 16, of which none exists.*000\.png") as caught:
        open_set(copy, hand_model)
    assert "Hand-Object-Capture" in caught.value.hint


def test_a_single_missing_image_is_a_bad_sample(copy, hand_model):
    (copy / "01/1/rgb/012.png").unlink()
    reader = open_set(copy, hand_model)
    for index in range(len(reader)):
        if frame_of(reader.describe(index)) != ("01", 12):
            assert read_frame(reader, index)[1].shape == (480, 640, 3)
    with pytest.raises(BadSample) as caught:
        read_frame(reader, where(reader, ("01", 12)))
    assert caught.value.reason == Reason.IMAGE_MISSING


def test_images_of_frames_that_are_not_used_need_not_exist(copy, hand_model):
    for frame in (4, 9, 10):
        (copy / f"16/1/rgb/{frame:03d}.png").unlink()
    assert len(open_set(copy, hand_model)) == len(BOTH_MESHES)


def test_a_set_without_its_meshes_says_where_they_come_from(copy, hand_model):
    shutil.rmtree(copy / FITS)
    with pytest.raises(UserError, match="12 meshes are named but missing") as caught:
        open_set(copy, hand_model)
    assert "https://files.is.tue.mpg.de/dtzionas/Hand-Object-Capture/" in caught.value.hint


def test_a_folder_without_the_set_lists_what_was_tried(tmp_path, hand_model):
    with pytest.raises(UserError, match="Tried") as caught:
        open_set(tmp_path, hand_model)
    assert f"{tmp_path}/HIC.json" in caught.value.message and f"{tmp_path}/HIC/data/HIC.json" in caught.value.message
    assert "https://files.is.tue.mpg.de" in caught.value.hint


def test_the_training_split_is_refused(written, hand_model):
    with pytest.raises(UserError, match="no split 'train'"):
        open_set(written.root, hand_model, split="train")


def test_real_data_is_refused_to_the_built_in_hand(copy, hand_model):
    (copy / HAND_MODEL_FILE).unlink()
    with pytest.raises(UserError, match="are MANO's"):
        open_set(copy, hand_model)
    assert len(open_set(copy, dataclasses.replace(hand_model, name="mano"))) == len(BOTH_MESHES)


def test_a_set_of_another_hand_model_is_refused(copy, hand_model):
    (copy / HAND_MODEL_FILE).write_text(json.dumps({"name": "mano", "sha256": "0" * 64}))
    with pytest.raises(UserError, match="made with the hand model 'mano'"):
        open_set(copy, hand_model)


# ---------------------------------------------------------------- scoring

def _errors(written, hand_model, protocol: str, change=lambda vertices: vertices) -> SampleErrors:
    """The written meshes, changed, as a prediction for every frame with a mesh, in the order of `ANY_MESH`."""
    reader, parts = open_set(written.root, hand_model, "all"), []
    dataset = TwoHandDataset(reader, size=32, box_ratio=0.8)
    for frame in ANY_MESH:
        vertices = change(torch.from_numpy(written.vertices[frame]))
        wrists = torch.einsum("hv,hvk->hk", hand_model.regressor[:, 0].double(), vertices)
        targets = torch.utils.data.default_collate([dataset[0, where(reader, frame)]]).targets
        hands = PredictedHands((vertices - wrists[:, None])[None], relative=(wrists[Hand.LEFT] - wrists[0])[None])
        parts.append(sample_errors(PROTOCOLS[protocol], hands, targets, hand_model.regressor))
    return SampleErrors(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_perfect_prediction_scores_zero(protocol, written, hand_model):
    """HIC annotates no joints: protocols that count annotated ones, or meshes by them, have nothing to say."""
    errors = _errors(written, hand_model, protocol)
    has_truth = PROTOCOLS[protocol].truth == "mesh"
    assert (~np.isnan(errors.relative)).tolist() == [has_truth] * 3 + [False] * 5
    assert np.nan_to_num(errors.relative).max() < 1e-3
    assert (~np.isnan(errors.joints)).sum() == (0 if PROTOCOLS[protocol].masked else 21 * (2 * 3 + 5))
    assert np.nan_to_num(errors.joints).max() < 1e-3
    if "mpvpe" in PROTOCOLS[protocol].metrics:
        counts_all = PROTOCOLS[protocol].meshes == "all"
        assert (~np.isnan(errors.vertices)).sum() == (2 * 3 + 5 if counts_all else 0)
        assert np.nan_to_num(errors.vertices).max() < 1e-3


def test_moving_one_hand_changes_only_the_distance_between_them(written, hand_model):
    def moved(vertices: torch.Tensor) -> torch.Tensor:
        return vertices + torch.tensor([[0.0, 0, 0], [0.003, 0.004, 0.012]])[:, None]
    errors = _errors(written, hand_model, "interwild_mesh", moved)
    np.testing.assert_allclose(errors.relative[:3], 13, atol=1e-3)
    assert np.nanmax(errors.vertices) < 1e-3


def test_a_scaled_prediction_is_forgiven_only_where_the_protocol_says_so(written, hand_model):
    """Unscaled, every vertex is wrong by a tenth of its distance from the wrist."""
    def larger(vertices: torch.Tensor) -> torch.Tensor:
        return 1.1 * vertices
    mesh = torch.from_numpy(np.stack([written.vertices[frame] for frame in BOTH_MESHES]))
    wrist = torch.einsum("hv,bhvk->bhk", hand_model.regressor[:, WRIST].double(), mesh)
    expected = 100 * (mesh - wrist[:, :, None]).norm(dim=-1).mean(dim=-1)
    np.testing.assert_allclose(_errors(written, hand_model, "interwild_mesh", larger).vertices[:3], expected, atol=1e-3)
    assert np.nanmax(_errors(written, hand_model, "lgnet", larger).vertices) < 1e-3


# ---------------------------------------------------------------- test.py

@pytest.fixture(scope="module")
def output(tmp_path_factory, hand_model) -> Path:
    """The output folder of a run with an untrained tiny LGNet."""
    folder = tmp_path_factory.mktemp("run")
    save_tiny_snapshot(folder / "model_dump" / "snapshot_0.pth.tar", hand_model)
    return folder


@pytest.fixture
def run_test(run, output):
    return partial(run, "test.py", "--gpu", "cpu", "--test_epoch", 0, "--output", output, "--testset", "HIC")


def test_test_py_scores_the_set_and_writes_the_numbers(run_test, output, written):
    code, text = run_test("--set", f"data.root={written.root}", "data.workers=0", "test.protocol=interwild_mesh")
    stored = json.loads((output / "result" / "metrics.json").read_text())
    assert code == 0 and "HIC hic_ih: 3 frames" in text
    assert stored["data"]["name"] == "HIC" and stored["protocol"] == "interwild_mesh"
    assert stored["counts"]["samples"] == stored["counts"]["mrrpe"] == 3 and stored["counts"]["mpvpe"] == 6
    assert stored["protocols"]["interwild_mesh"]["mpvpe"] > 1
    assert stored["protocols"]["interwild"]["mrrpe"] is None
    assert f"MRRPE: {stored['protocols']['interwild_mesh']['mrrpe']:.2f} mm" in text


def test_test_py_without_the_set_says_what_to_download(run_test, tmp_path):
    code, text = run_test("--set", f"data.root={tmp_path}")
    assert code == 2 and "Hand-Object-Capture" in text and "Traceback" not in text


def test_the_fixture_has_the_irregularities_that_it_promises(written):
    content = json.loads((written.root / "HIC.json").read_text())
    order = [annotation["image_id"] for annotation in content["annotations"]]
    assert order != sorted(order) and len(content["images"]) == len(FRAMES)
    starts = {path.read_bytes()[:24] for path in (written.root / FITS).rglob("*.ply")}
    assert len(starts) == 2
