"""The InterHand2.6M reader and the samples made from it, on a written set and on four real frames."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures_interhand import CAMERAS, HAND_MODEL_FILE, MISSING_JOINT, NUM_BOTH_MESHES, STEPS
from scipy.spatial.transform import Rotation
from torch.utils.data import DataLoader
from toy_scores import plain_scores

from common.errors import UserError
from common.geometry import crop_affine, joints_to_cells, project, square_box
from common.hands import INTERHAND21, MANO21, MIDDLE_MCP, WRIST, Hand
from common.mano.model import ManoLayer
from common.score.metrics import PROTOCOLS, PredictedHands
from common.score.tally import Scorer
from common.types import ManoParams
from data import build_reader
from data.augment import AugmentConfig
from data.dataset import EpochSampler, TwoHandDataset, mean_joints

RANGES = AugmentConfig(scale=0.25, rotation=30, rotation_probability=0.6, flip_probability=0.5, color=0.2)


def open_set(root: Path, hand_model, split: str = "train", filter="all", box_source="vertices"):
    return build_reader("InterHand26M", root=root, split=split, hand_model=hand_model, filter=filter,
                        box_source=box_source)


@pytest.fixture(scope="module")
def reader(written, hand_model):
    return open_set(written.root, hand_model)


def where(reader, capture: int, frame: int, camera: str) -> int:
    wanted = {"capture": capture, "frame": frame, "camera": camera}
    return next(i for i in range(len(reader)) if wanted.items() <= reader.describe(i).items())


def annotation_file(root: Path, kind: str) -> Path:
    return root / "annotations" / "train" / f"InterHand2.6M_train_{kind}.json"


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# ---------------------------------------------------------------- reading

def test_meshes_arrive_in_the_camera_frame_as_they_were_written(reader, written):
    for index in range(len(reader)):
        record, about = reader.read(index), reader.describe(index)
        expected = written.vertices_cam((about["capture"], about["frame"]), about["camera"])
        valid = record.vertices_valid
        np.testing.assert_allclose(record.vertices_cam[valid], expected[valid], atol=1e-6)
        assert np.abs(record.vertices_cam[~valid]).max(initial=0) == 0


def test_joints_arrive_where_the_meshes_have_them_whatever_annotates_them(reader, written):
    """Regressed from the mesh, or triangulated and reordered: the written set has both the same."""
    for index in range(len(reader)):
        record, about = reader.read(index), reader.describe(index)
        rotation, position, _ = written.cameras[about["capture"], about["camera"]]
        expected = (written.steps[about["capture"], about["frame"]].joints - position) @ rotation.T
        np.testing.assert_allclose(record.joints_cam[record.joints_valid], expected[record.joints_valid], atol=1e-6)


@pytest.mark.parametrize(("step", "meshes", "joints"), [
    ((3, 100), [1, 1], [21, 21]), ((3, 105), [1, 0], [21, 21]), ((3, 110), [0, 0], [21, 21]),
    ((11, 7), [1, 1], [21, 21]), ((11, 12), [1, 0], [21, 0]), ((11, 20), [1, 1], [21, 21]),
], ids=lambda value: STEPS.get(value, "") if isinstance(value, tuple) else "")
def test_each_irregularity_only_costs_what_is_missing(step, meshes, joints, reader):
    record = reader.read(where(reader, *step, "400026"))
    assert record.vertices_valid.tolist() == record.mano_valid.tolist() == meshes
    assert record.joints_valid.sum(axis=1).tolist() == joints


def test_a_joint_that_was_not_triangulated_is_masked_by_name(copy, hand_model):
    """Stored as (1, 1, 1); without meshes it stays missing."""
    annotation_file(copy, "MANO_NeuralAnnot").unlink()
    reader = open_set(copy, hand_model)
    record = reader.read(where(reader, 11, 7, "400012"))
    assert np.argwhere(~record.joints_valid).tolist() == [[Hand.RIGHT, MISSING_JOINT]]


def test_a_hand_without_its_wrist_is_not_annotated(copy, hand_model):
    annotation_file(copy, "MANO_NeuralAnnot").unlink()
    wrist = 21 + INTERHAND21.index("wrist")
    edit(annotation_file(copy, "joint_3d"), lambda c: c["3"]["110"]["joint_valid"].__setitem__(wrist, [False]))
    reader = open_set(copy, hand_model)
    assert reader.read(where(reader, 3, 110, "400012")).joints_valid.sum(axis=1).tolist() == [21, 0]


def test_frames_that_annotate_nothing_are_left_out_and_counted(reader):
    assert len(reader) == (len(STEPS) - 1) * len(CAMERAS)
    assert "3 without an annotated hand" in reader.summary


def test_interacting_keeps_frames_with_both_meshes_and_a_valid_type(written, hand_model):
    reader = open_set(written.root, hand_model, filter="ih_hm")
    steps = {(about["capture"], about["frame"]) for about in map(reader.describe, range(len(reader)))}
    assert steps == {(3, 100), (11, 7)} and len(reader) == NUM_BOTH_MESHES
    assert "6 not interacting" in reader.summary and "9 without both meshes" in reader.summary


def test_without_a_mesh_file_interacting_needs_both_wrists(copy, hand_model):
    annotation_file(copy, "MANO_NeuralAnnot").unlink()
    reader = open_set(copy, hand_model, filter="ih_hm")
    assert len(reader) == 4 * len(CAMERAS)      # (3, 100), (3, 105), (3, 110) and (11, 7)
    assert "there is no InterHand2.6M_train_MANO_NeuralAnnot.json" in reader.summary


def test_ids_join_images_and_annotations_as_pycocotools_does(reader, written):
    from pycocotools.coco import COCO

    coco = COCO(str(annotation_file(written.root, "data")))
    for index in range(len(reader)):
        about = reader.describe(index)
        annotation = coco.anns[about["annotation_id"]]
        image = coco.loadImgs(annotation["image_id"])[0]
        assert image["id"] == about["image_id"] and about["path"].endswith(image["file_name"])
        assert reader.read(index).image_size == (image["width"], image["height"])
        assert (image["camera"], image["frame_idx"]) == (about["camera"], about["frame"])


def test_parameters_converted_to_the_camera_give_the_camera_mesh(reader, written, hand_model):
    """The other route: turn the root about the shaped rest wrist J0 and move it, instead of moving vertices."""
    index = where(reader, 3, 100, "410028")
    record = reader.read(index)
    rotation, position, _ = written.cameras[3, "410028"]
    fits = json.loads(annotation_file(written.root, "MANO_NeuralAnnot").read_text())["3"]["100"]
    params = ManoParams(torch.from_numpy(record.rotations)[None], torch.from_numpy(record.shape)[None])
    vertices = ManoLayer(hand_model)(params)[0].double().numpy()
    for hand in Hand:
        shaped = hand_model.template[hand] + hand_model.shapedirs[hand] @ torch.tensor(fits[hand.label]["shape"])
        rest_wrist = (hand_model.regressor[hand] @ shaped)[0].double().numpy()
        moved = rotation @ (rest_wrist + fits[hand.label]["trans"] - position) - rest_wrist
        np.testing.assert_allclose(vertices[hand] + moved, record.vertices_cam[hand], atol=1e-6)
        np.testing.assert_allclose(
            record.rotations[hand, 0],
            rotation @ Rotation.from_rotvec(fits[hand.label]["pose"][:3]).as_matrix(), atol=1e-9)


def test_reading_twice_gives_the_same_and_shares_nothing(reader):
    first = reader.read(3)
    kept = [np.copy(value) for value in first[2:]]
    for value in first[2:]:
        value[...] = 0
    for before, again in zip(kept, reader.read(3)[2:], strict=True):
        assert np.array_equal(before, again)


# ---------------------------------------------------------------- boxes

def test_the_json_box_is_the_tight_joint_box_times_1_2(copy, hand_model):
    annotation_file(copy, "MANO_NeuralAnnot").unlink()      # so that only annotated joints are in the joint box
    joint_boxes, json_boxes = (open_set(copy, hand_model, box_source=source) for source in ("joints", "json"))
    for index in range(len(json_boxes)):
        low, high = joint_boxes.read(index).box_px
        center, half = (low + high) / 2, (high - low) / 2 * 1.2
        np.testing.assert_allclose(json_boxes.read(index).box_px, [center - half, center + half], atol=0.01)


def test_the_vertex_box_holds_every_vertex_of_both_hands_and_touches_them(reader):
    record = reader.read(where(reader, 11, 7, "410028"))
    pixels = project(torch.from_numpy(record.vertices_cam), torch.from_numpy(record.camera)).reshape(-1, 2).numpy()
    np.testing.assert_allclose(record.box_px, [pixels.min(axis=0), pixels.max(axis=0)], atol=1e-9)


def test_hands_without_a_mesh_are_boxed_by_their_joints_and_the_flesh_round_them(copy, hand_model):
    annotation_file(copy, "MANO_NeuralAnnot").unlink()
    bare, annotated = open_set(copy, hand_model), open_set(copy, hand_model, box_source="json")
    for index in range(len(bare)):
        np.testing.assert_allclose(bare.read(index).box_px, annotated.read(index).box_px, atol=0.01)


def test_one_box_goes_round_both_hands_when_the_left_one_is_further_left(copy, hand_model):
    """Right hand (100, 100)–(160, 180), left hand (40, 110)–(120, 200): the box is (40, 100), 120 × 100."""
    annotation_file(copy, "MANO_NeuralAnnot").unlink()
    corners = {Hand.RIGHT: [(100, 100), (160, 180)], Hand.LEFT: [(40, 110), (120, 200)]}
    pixels = np.concatenate([np.tile(corners[hand], (11, 1))[:21] for hand in Hand])

    def one_metre_away(content):
        world = np.concatenate([pixels, np.full((42, 1), 1000)], axis=1)
        content["3"]["100"]["world_coord"] = world.tolist()

    def plain_camera(content):
        plain = {"campos": [0.0] * 3, "camrot": np.eye(3).tolist(), "focal": [1000, 1000], "princpt": [0, 0]}
        for key, value in plain.items():
            content["3"][key]["400012"] = value

    edit(annotation_file(copy, "joint_3d"), one_metre_away)
    edit(annotation_file(copy, "camera"), plain_camera)
    reader = open_set(copy, hand_model, box_source="joints")
    low, high = reader.read(where(reader, 3, 100, "400012")).box_px
    np.testing.assert_allclose([*low, *(high - low)], [40, 100, 120, 100])


# ---------------------------------------------------------------- layouts and faults

def _rename_hm(root: Path) -> None:
    _rename_hm_in(root / "annotations" / "train")


def _rename_hm_in(folder: Path) -> None:
    (folder / "InterHand2.6M_train_data.json").rename(folder / "InterHand2.6M_train_data_hm.json")


def _one_folder_for_all(root: Path) -> None:
    (root / "annotations" / "train").rename(root / "annotations" / "all")


def _one_folder_for_people(root: Path) -> None:
    (root / "annotations" / "train").rename(root / "annotations" / "human_annot")
    _rename_hm_in(root / "annotations" / "human_annot")


def _one_folder_for_machines(root: Path) -> None:
    (root / "annotations" / "train").rename(root / "annotations" / "machine_annot")


def _inside_the_archive_folder(root: Path) -> None:
    (root / "InterHand2.6M_5fps_batch1").mkdir()
    for name in ("annotations", "images"):
        (root / name).rename(root / "InterHand2.6M_5fps_batch1" / name)


def _flat(root: Path) -> None:
    for file in (root / "annotations" / "train").iterdir():
        file.rename(root / file.name.replace("InterHand2.6M_train", "train_interhand2.6m"))
    (root / "images" / "train" / "Capture3").rename(root / "Capture3")
    (root / "images" / "train" / "Capture11").rename(root / "Capture11")


@pytest.mark.parametrize("rearrange", [
    _rename_hm, _one_folder_for_all, _one_folder_for_people, _one_folder_for_machines, _inside_the_archive_folder,
    _flat,
])
def test_every_layout_reads_the_same(rearrange, copy, hand_model, reader):
    rearrange(copy)
    moved = open_set(copy, hand_model)
    assert len(moved) == len(reader)
    assert Path(moved.describe(5)["path"]).is_file()
    np.testing.assert_array_equal(moved.read(5).vertices_cam, reader.read(5).vertices_cam)


def test_a_missing_set_lists_every_path_tried_and_what_to_do(tmp_path, hand_model):
    with pytest.raises(UserError) as caught:
        open_set(tmp_path / "nowhere", hand_model)
    text = str(caught.value)
    assert str(tmp_path / "nowhere" / "annotations" / "train" / "InterHand2.6M_train_data.json") in text
    assert str(tmp_path / "nowhere" / "train_interhand2.6m_data.json") in text
    assert "tool/make_synthetic.py --out" in text and "https://mks0601.github.io/InterHand2.6M/" in text


def _drop(kind: str):
    return lambda root: annotation_file(root, kind).unlink()


def _truncate(kind: str):
    def damage(root: Path) -> None:
        path = annotation_file(root, kind)
        path.write_bytes(path.read_bytes()[:-40])
    return damage


def _set(kind: str, *keys_and_value):
    *keys, last, value = keys_and_value

    def change(content):
        for key in keys:
            content = content[key]
        content[last] = value
    return lambda root: edit(annotation_file(root, kind), change)


@pytest.mark.parametrize(("damage", "named"), [
    (_drop("camera"), "camera.json is missing"),
    (_truncate("joint_3d"), "joint_3d.json is not a complete JSON file"),
    (lambda root: annotation_file(root, "data").write_text("[1, 2]"), "data.json, the top level"),
    (_set("data", "annotations", []), "has no annotations"),
    (_set("data", "annotations", 2, "joint_valid", [1, 2, 3]), "annotations[2]"),
    (_set("data", "annotations", 2, "image_id", 5), "annotations[2].image_id: there is no image with the id 5"),
    (_set("data", "annotations", 0, "bbox", [1, 2, None, 4]), "annotations[0].bbox[2]: expected `float`, got `null`"),
    (_set("data", "annotations", 0, "bbox", [1, 2, float("nan"), 4]), "after the key 'bbox', near"),
    (_set("data", "annotations", 1, "hand_type", "both"), "annotations[1].hand_type"),
    (_set("data", "images", 4, "width", 0), "images[4].width"),
    (_set("data", "images", 0, "file_name", "../../../etc/passwd"), "leaves the image folder"),
    (_set("camera", "3", "camrot", "400012", [[2, 0], [0, 1]]), "capture 3.camrot.400012"),
    (_set("camera", "3", "focal", "400012", [1200, "x"]), "capture 3.focal.400012[1]"),
    (_set("camera", "3", 7), "camera.json, capture 3"),
    (lambda root: edit(annotation_file(root, "camera"), lambda c: c["3"]["princpt"].pop("400012")),
     "capture 3.princpt: there is no camera '400012'"),
    (_set("joint_3d", "3", "100", "world_coord", [[0, 0]] * 42), "capture 3, frame 100.world_coord"),
    (_set("joint_3d", "3", "100", "joint_valid", [1] * 41), "capture 3, frame 100.joint_valid"),
    (_set("MANO_NeuralAnnot", "3", "100", "right", "pose", [0.0] * 45), "capture 3, frame 100.right.pose"),
    (lambda root: shutil.rmtree(root / "images"), "which does not exist"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_a_damaged_set_is_refused_by_file_and_entry(damage, named: str, copy, hand_model):
    damage(copy)
    with pytest.raises(UserError) as caught:
        open_set(copy, hand_model)
    assert named in str(caught.value) and str(copy) in str(caught.value)


def _places(content, place=()) -> list[tuple]:
    """Paths to the values of nested lists and dictionaries."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [place, *(deeper for key, value in items for deeper in _places(value, (*place, key)))]


@pytest.mark.parametrize("kind", ["data", "camera", "joint_3d", "MANO_NeuralAnnot"])
def test_any_wrong_value_is_read_or_refused(kind: str, copy, hand_model):
    """Never an error of another kind, which would reach the user as a traceback."""
    rng = np.random.default_rng(0)
    path = annotation_file(copy, kind)
    original = path.read_text()
    places = {}
    for place in _places(json.loads(original))[1:]:
        places.setdefault(len(place), []).append(place)
    for trial in range(24):
        depth = sorted(places)[trial % len(places)]
        place = places[depth][rng.integers(len(places[depth]))]
        wrong = [None, "x", -1, float("inf"), [], {}, [[]], 10**25][rng.integers(8)]
        _set(kind, *place, wrong)(copy)
        try:
            open_set(copy, hand_model)
        except UserError as error:
            assert path.name in str(error) or "which does not exist" in str(error)
        path.write_text(original)


def test_fits_of_the_first_release_are_refused_with_an_explanation(copy, hand_model):
    fits = annotation_file(copy, "MANO_NeuralAnnot")
    fits.rename(annotation_file(copy, "MANO"))
    with pytest.raises(UserError, match="one for each camera.*MANO_NeuralAnnot.json from https://mks0601"):
        open_set(copy, hand_model)


@pytest.mark.parametrize("name", [
    "../../../etc/passwd", "/etc/passwd", "..", "a/../../b.jpg", "a/..", "", "..\\..\\b.jpg", "\\\\server\\b.jpg",
    "C:\\b.jpg", "C:/b.jpg", "b\0.jpg",
])
def test_a_file_name_outside_the_image_folder_is_refused(name: str, copy, hand_model):
    _set("data", "images", 3, "file_name", name)(copy)
    with pytest.raises(UserError, match=r"images\[3\].file_name: .* leaves the image folder \(id 1021\)"):
        open_set(copy, hand_model)


def test_file_names_written_on_windows_are_read_with_slashes(copy, hand_model, reader):
    def rewrite(content):
        for image in content["images"]:
            image["file_name"] = image["file_name"].replace("/", "\\")

    edit(annotation_file(copy, "data"), rewrite)
    moved = open_set(copy, hand_model)
    assert [moved.sample_id(i) for i in range(len(moved))] == [reader.sample_id(i) for i in range(len(reader))]
    assert moved.read(5).image_path.is_file()


@pytest.mark.parametrize(("kind", "place"), [
    ("data", ("images", 0, "id")), ("data", ("annotations", 0, "id")), ("data", ("annotations", 0, "image_id"))])
def test_an_id_of_another_type_is_no_reason_to_copy_the_file_again(kind, place, copy, hand_model):
    _set(kind, *place, "7")(copy)
    with pytest.raises(UserError, match="got `str`.*It must have the form of InterHand2.6M v1.0"):
        open_set(copy, hand_model)


@pytest.mark.parametrize(("filter", "hint"), [("ih_hm", "Try --set data.filter=all"), ("all", "No other filter")])
def test_an_empty_choice_names_a_filter_only_if_another_may_keep_more(filter, hint, copy, hand_model):
    def strip(content):
        for annotation in content["annotations"]:
            annotation["joint_valid"] = [0] * 42

    edit(annotation_file(copy, "data"), strip)
    annotation_file(copy, "MANO_NeuralAnnot").unlink()
    with pytest.raises(UserError, match=f"No annotation can be used.*{hint}"):
        open_set(copy, hand_model, filter=filter)


@pytest.mark.parametrize("name", ["a..b/c...jpg", "...", "a b/ü.jpg", "./c.jpg", "~/c.jpg"])
def test_a_file_name_that_only_looks_strange_is_not(name: str, copy, hand_model):
    _set("data", "images", 3, "file_name", name)(copy)
    reader = open_set(copy, hand_model)
    assert name in [reader.sample_id(index) for index in range(len(reader))]


@pytest.mark.parametrize("entries", ["images", "annotations"])
def test_an_id_that_occurs_twice_is_refused(entries: str, copy, hand_model):
    edit(annotation_file(copy, "data"), lambda content: content[entries][5].update(id=content[entries][2]["id"]))
    with pytest.raises(UserError, match=rf"{entries}\[5\].id: \d+ is the id of {entries}\[2\] already"):
        open_set(copy, hand_model)


def test_several_annotations_of_one_image_are_several_samples(copy, hand_model, reader):
    def point_to_one(content):
        content["annotations"][1]["image_id"] = content["annotations"][0]["image_id"]

    edit(annotation_file(copy, "data"), point_to_one)
    again = open_set(copy, hand_model)
    ids = [again.describe(index)["image_id"] for index in range(len(again))]
    assert len(again) == len(reader) and len(set(ids)) == len(ids) - 1


def test_of_a_key_that_occurs_twice_the_last_value_counts(copy, hand_model):
    path = annotation_file(copy, "data")
    path.write_text(path.read_text().replace('"width"', '"width": 7, "width"'))
    reader = open_set(copy, hand_model)
    assert {reader.read(index).image_size for index in range(len(reader))} == {(334, 512), (512, 334)}


# ---------------------------------------------------------------- filters and records that cannot be right

def _scaled_joints(factor: float):
    def change(content):
        entry = content["3"]["100"]
        entry["world_coord"] = (np.array(entry["world_coord"]) * factor).tolist()
    return lambda root: edit(annotation_file(root, "joint_3d"), change)


def _walk_through_the_hands(root: Path) -> None:
    """The camera moves on for three metres without turning round."""
    def change(content):
        forward = np.array(content["3"]["camrot"]["400012"])[2]
        content["3"]["campos"]["400012"] = (content["3"]["campos"]["400012"] + 3000 * forward).tolist()
    edit(annotation_file(root, "camera"), change)


def _swap_sides(root: Path) -> None:
    def change(content):
        next(entry for entry in content["annotations"] if entry["hand_type"] == "right")["hand_type"] = "left"
    edit(annotation_file(root, "data"), change)


@pytest.mark.parametrize(("damage", "reason", "count"), [
    (lambda root: edit(annotation_file(root, "camera"), lambda content: content.pop("3")), "without a camera", 9),
    (_set("camera", "3", "focal", "400012", [0, 1200]), "with a focal length that is not positive", 3),
    (_set("camera", "3", "focal", "400012", [1200, -1]), "with a focal length that is not positive", 3),
    (_set("camera", "3", "camrot", "400012", [[2, 0, 0], [0, 1, 0], [0, 0, 1]]), "whose camrot is not a rotation", 3),
    (_set("camera", "3", "camrot", "400012", [[-1, 0, 0], [0, 1, 0], [0, 0, 1]]), "whose camrot is not a rotation", 3),
    (_scaled_joints(0.001), "whose hands are not of a hand's size (in millimetres?)", 3),
    (_scaled_joints(1000), "whose hands are not of a hand's size (in millimetres?)", 3),
    (_walk_through_the_hands, "with joints behind the camera", 3),
    (_swap_sides, "whose hand_type contradicts joint_valid", 1),
])
def test_records_that_cannot_be_right_are_left_out_and_counted(damage, reason: str, count: int, copy, hand_model,
                                                               reader):
    damage(copy)
    rest = open_set(copy, hand_model)
    assert rest.left_out[reason] == count and f"{count} {reason}" in rest.summary
    assert len(rest) == len(reader) - count


@pytest.mark.parametrize(("box", "reason"), [
    ([10, 10, 0, 5], "whose bbox has no area"), ([10, 10, 5, -5], "whose bbox has no area"),
    ([10, 10, 5, 1e39], "whose bbox has no area"), ([-90, 10, 80, 80], "whose bbox is outside the image"),
    ([10, 600, 80, 80], "whose bbox is outside the image"),
])
def test_boxes_that_cannot_be_right_matter_where_they_are_used(box: list, reason: str, copy, hand_model, reader):
    def change(content):
        first = reader.describe(0)["annotation_id"]
        next(entry for entry in content["annotations"] if entry["id"] == first)["bbox"] = box

    edit(annotation_file(copy, "data"), change)
    rest = open_set(copy, hand_model, box_source="json")
    assert rest.left_out[reason] == 1 and len(rest) == len(reader) - 1
    assert len(open_set(copy, hand_model)) == len(reader)


def test_human_keeps_the_annotations_on_the_list(copy, hand_model, reader):
    ids = [reader.describe(index)["annotation_id"] for index in (1, 4, 5)]
    (copy / "annotations" / "aid_human_annot_train.txt").write_text("\n".join(map(str, [*ids, 7])) + "\n")
    chosen = open_set(copy, hand_model, filter="human")
    assert [chosen.describe(index)["annotation_id"] for index in range(len(chosen))] == ids
    assert chosen.left_out["not annotated by people"] == len(reader) - 3


def test_human_without_its_list_or_with_another_file_says_so(copy, hand_model):
    with pytest.raises(UserError, match="Tried: .*aid_human_annot_train.txt"):
        open_set(copy, hand_model, filter="human")
    (copy / "annotations" / "aid_human_annot_train.txt").write_text("12\nabc\n")
    with pytest.raises(UserError, match="aid_human_annot_train.txt is not a list of annotation ids"):
        open_set(copy, hand_model, filter="human")


def test_annotation_files_may_have_a_byte_order_mark(copy, hand_model, reader):
    ids = [reader.describe(index)["annotation_id"] for index in range(len(reader))]
    (copy / "annotations" / "aid_human_annot_train.txt").write_text("\n".join(map(str, ids)))
    for file in (file for file in (copy / "annotations").rglob("*") if file.suffix in (".json", ".txt")):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    marked = open_set(copy, hand_model, filter="human")
    assert len(marked) == len(reader)
    np.testing.assert_equal(marked.read(1)._replace(image_path=None)._asdict(),
                            reader.read(1)._replace(image_path=None)._asdict())


def test_counts_unlike_those_of_papers_are_a_warning(copy, hand_model, caplog):
    (copy / HAND_MODEL_FILE).unlink()
    reader = open_set(copy, replace(hand_model, name="mano"), filter="ih_hm")
    assert "papers count 366358 frames after the same filter, here are 6" in caplog.text
    assert f"the brightness of {NUM_BOTH_MESHES} images is not known" in reader.summary


def test_rendered_sets_are_not_compared_with_papers(written, hand_model, caplog):
    reader = open_set(written.root, hand_model, filter="ih_hm")
    assert not caplog.text and "brightness" not in reader.summary


def test_annotated_joints_stay_what_was_triangulated_when_there_is_a_mesh(copy, hand_model):
    place = INTERHAND21.index("ring2")
    edit(annotation_file(copy, "joint_3d"), lambda c: c["3"]["100"]["world_coord"][place].__setitem__(0, 0.0))
    reader = open_set(copy, hand_model)
    record = reader.read(where(reader, 3, 100, "400012"))
    off = np.linalg.norm(record.joints_annotated_cam - record.joints_cam, axis=-1)
    moved = np.zeros((2, 21), dtype=bool)
    moved[Hand.RIGHT, MANO21.index("ring2")] = True
    assert (off[moved] > 1e-2).all() and (off[~moved] < 1e-6).all() and record.joints_annotated_valid.all()


def test_annotated_joints_follow_every_augmentation(reader):
    dataset = TwoHandDataset(reader, size=64, box_ratio=0.8, augment=RANGES, seed=1)
    for index in range(len(reader)):
        sample = dataset[0, index]
        seen = project(sample.targets.joints_annotated, sample.camera_crop.expand(2, 3, 3))
        valid = sample.targets.joints_annotated_valid.bool()
        torch.testing.assert_close(seen[valid], sample.targets.joints_crop[valid], atol=1e-2, rtol=0)


def test_a_set_of_another_hand_model_is_refused(copy, hand_model):
    with pytest.raises(UserError, match="made with the hand model 'builtin'"):
        open_set(copy, replace(hand_model, name="mano", sha256="0" * 64))


def test_a_file_that_names_no_hand_model_is_refused(copy, hand_model):
    (copy / HAND_MODEL_FILE).write_text("{}")
    with pytest.raises(UserError, match="does not name a hand model"):
        open_set(copy, hand_model)


def test_mano_parameters_are_not_read_with_the_built_in_hand(copy, hand_model):
    (copy / HAND_MODEL_FILE).unlink()
    with pytest.raises(UserError, match="hand_model.name=mano"):
        open_set(copy, hand_model)
    assert len(open_set(copy, replace(hand_model, name="mano"))) == 18


def test_an_unknown_dataset_lists_the_known_ones(tmp_path, hand_model):
    with pytest.raises(UserError, match="InterHand26M"):
        build_reader("interhand", root=tmp_path, split="train", hand_model=hand_model, filter="all",
                     box_source="json")


# ---------------------------------------------------------------- dataset

def stream(reader, workers: int, epoch: int = 1, seed: int = 3):
    dataset = TwoHandDataset(reader, size=64, box_ratio=0.8, augment=RANGES, seed=seed)
    sampler = EpochSampler(len(dataset), seed=seed)
    sampler.set_epoch(epoch)
    return list(DataLoader(dataset, batch_size=5, sampler=sampler, num_workers=workers))


def _leaves(batches) -> list[torch.Tensor]:
    return [tensor for batch in batches for tensor in torch.utils._pytree.tree_leaves(batch)]


def test_any_number_of_workers_gives_the_same_stream(reader):
    alone = _leaves(stream(reader, 0))
    for workers in (1, 2):
        for expected, tensor in zip(alone, _leaves(stream(reader, workers)), strict=True):
            assert torch.equal(expected, tensor)


def test_epochs_and_seeds_differ_and_repeat(reader):
    dataset = TwoHandDataset(reader, size=64, box_ratio=0.8, augment=RANGES, seed=3)
    other = TwoHandDataset(reader, size=64, box_ratio=0.8, augment=RANGES, seed=4)
    assert torch.equal(dataset[2, 5].pixels, dataset[2, 5].pixels)
    assert not torch.equal(dataset[2, 5].camera_crop, dataset[3, 5].camera_crop)
    assert not torch.equal(dataset[2, 5].camera_crop, other[2, 5].camera_crop)


def test_samples_of_one_epoch_are_turned_differently(written, hand_model):
    reader = open_set(written.root, hand_model, filter="ih_hm")
    turning = replace(RANGES, rotation_probability=1, flip_probability=0)
    plain, turned = (TwoHandDataset(reader, size=64, box_ratio=0.8, augment=ranges) for ranges in (None, turning))
    angles = []
    for index in range(len(reader)):
        before, after = (dataset[0, index].targets.relative.tolist() for dataset in (plain, turned))
        angles.append(round(np.arctan2(after[1], after[0]) - np.arctan2(before[1], before[0]), 3))
    assert len(set(angles)) == len(reader)


def test_evaluation_draws_nothing(reader):
    one, two = (TwoHandDataset(reader, size=64, box_ratio=0.8, seed=seed)[epoch, 5] for seed, epoch in ((0, 0), (9, 4)))
    assert torch.equal(one.pixels, two.pixels) and torch.equal(one.targets.vertices, two.targets.vertices)


def test_batches_have_the_shapes_of_the_contract(reader):
    batch = stream(reader, 0)[0]
    shapes = [tuple(value.shape) for value in (batch.pixels, batch.camera_crop, batch.index, *batch.targets[:5])]
    assert shapes == [(5, 3, 64, 64), (5, 3, 3), (5,), (5, 2, 778, 3), (5, 2, 21, 3), (5, 2, 3), (5, 3), (5, 2, 21, 2)]
    assert batch.targets.joints_annotated.shape == (5, 2, 21, 3)
    assert [tuple(value.shape) for value in (*batch.targets.mano, *batch.targets[7:])] == [
        (5, 2, 16, 3, 3), (5, 2, 10), (5, 2), (5, 2), (5, 2, 21), (5, 2, 21), (5,), (5, 2), (5, 2)]
    assert all(leaf.isfinite().all() for leaf in _leaves([batch]))


@pytest.mark.parametrize("augment", [None, RANGES], ids=["plain", "augmented"])
def test_the_truth_as_prediction_scores_zero(augment, written, hand_model):
    """Exactly where joints come from the mesh; triangulated ones are written with the mesh's, to a rounding."""
    reader = open_set(written.root, hand_model, filter="ih_hm")
    dataset = TwoHandDataset(reader, size=64, box_ratio=0.8, augment=augment)
    scorer = Scorer(hand_model.regressor, len(reader), reader.sample_id, reader.hand_type)
    for batch in DataLoader(dataset, batch_size=4, sampler=EpochSampler(len(dataset))):
        truth = PredictedHands(vertices=batch.targets.vertices, relative=batch.targets.relative)
        scorer.add(truth, batch.targets, batch.index)
    for name, scores in plain_scores(scorer.tally)["protocols"].items():
        exact = PROTOCOLS[name].truth == "mesh"
        assert scores["counts"]["samples"] == NUM_BOTH_MESHES
        # The middle fingertip of one protocol is another vertex than that of the written joints.
        limit = 0 if exact else 1.0 if name == "interwild" else 1e-3
        assert max(scores[metric] or 0 for metric in ("mpjpe", "mrrpe")) <= limit and (scores["mpvpe"] or 0) == 0


def test_the_written_meshes_as_prediction_score_zero_on_every_hand_that_has_one(reader, written, hand_model):
    scorer = Scorer(hand_model.regressor, len(reader), reader.sample_id, reader.hand_type)
    for index in range(len(reader)):
        about, sample = reader.describe(index), TwoHandDataset(reader, size=64, box_ratio=0.8)[0, index]
        vertices = torch.from_numpy(written.vertices_cam((about["capture"], about["frame"]), about["camera"]))
        wrists = ManoLayer(hand_model).joints(vertices[None].float())[0, :, WRIST].double()
        batch = torch.utils.data.default_collate([sample])
        scorer.add(PredictedHands(vertices=(vertices - wrists[:, None])[None],
                                  relative=(wrists[Hand.LEFT] - wrists[Hand.RIGHT])[None]),
                   batch.targets, batch.index)
    scores = plain_scores(scorer.tally)["protocols"]
    assert max(scores["lgnet"][name] for name in ("mpjpe", "mpvpe", "mrrpe")) < 1e-3
    assert scores["internet"]["mpjpe"] < 1e-3 and scores["lgnet"]["groups"]["single"]["samples"] == 3
    meshes = 3 * (2 + 1 + 0 + 2 + 1 + 2)         # of the steps in their order, by three cameras
    assert scores["lgnet"]["counts"]["mpjpe"] == 21 * meshes


def test_mean_joints_average_what_is_annotated(reader, written):
    totals, counts = np.zeros((2, 21, 3)), np.zeros((2, 1, 1))
    for index in range(len(reader)):
        about = reader.describe(index)
        step = about["capture"], about["frame"]
        joints = written.steps[step].joints @ written.cameras[about["capture"], about["camera"]][0].T
        annotated = np.array([1, step != (11, 12)])[:, None, None]
        totals += (joints - joints[:, WRIST, None]) * annotated
        counts += annotated
    np.testing.assert_allclose(mean_joints(reader), totals / counts, atol=1e-6)


def test_mean_joints_of_a_few_records_include_the_first_and_the_last(written, hand_model):
    reader = open_set(written.root, hand_model, filter="ih_hm")
    ends = [reader.read(index).joints_cam for index in (0, len(reader) - 1)]
    relative = [joints - joints[:, WRIST, None] for joints in ends]
    np.testing.assert_allclose(mean_joints(reader, limit=2), np.mean(relative, axis=0), atol=1e-12)


# ---------------------------------------------------------------- sampler

@pytest.mark.parametrize(("length", "world_size"), [(10, 1), (10, 3), (9, 3), (2, 5)])
def test_processes_share_an_epoch_evenly_and_miss_nothing(length: int, world_size: int):
    shares = [list(EpochSampler(length, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert {index for share in shares for _, index in share} == set(range(length))
    assert {len(share) for share in shares} == {len(EpochSampler(length, world_size=world_size))}
    assert sum(len(share) for share in shares) - length < world_size


def test_an_epoch_resumes_where_it_stopped():
    sampler = EpochSampler(20, seed=5, rank=1, world_size=2)
    sampler.set_epoch(4)
    whole = list(sampler)
    sampler.set_epoch(4, start=12)
    assert list(sampler) == whole[6:] and len(sampler) == len(whole) - 6
    assert {epoch for epoch, _ in whole} == {4}


def test_epochs_have_different_orders_and_evaluation_keeps_the_readers():
    sampler = EpochSampler(50, seed=5)
    first = list(sampler)
    sampler.set_epoch(1)
    assert [index for _, index in first] != [index for _, index in sampler]
    assert [index for _, index in EpochSampler(50, shuffle=False)] == list(range(50))


# ---------------------------------------------------------------- four real frames

REAL_FRAMES = os.environ.get("LGNET_REAL_FRAMES", "")
needs_real_frames = pytest.mark.skipif(not REAL_FRAMES, reason="LGNET_REAL_FRAMES does not name the folder")


def real(hand_model, image: str, box_source: str = "json"):
    """The reader's record of a real frame, and its index."""
    reader = open_set(Path(REAL_FRAMES), hand_model, split="test", box_source=box_source)
    index = next(i for i in range(len(reader)) if Path(reader.describe(i)["path"]).stem == image)
    return reader, index, reader.read(index)


@needs_real_frames
@pytest.mark.parametrize(("image", "hand", "joint", "xyz", "uv"), [
    ("image69148", Hand.RIGHT, "wrist", (-94.08145, -15.11162, 1111.0215), (48.9899, 241.66972)),
    ("image69148", Hand.RIGHT, "middle1", (-15.48887, -30.17506, 1073.47987), (137.6142, 223.36518)),
    ("image69148", Hand.LEFT, "wrist", (34.71729, 1.39692, 1168.81422), (193.28756, 260.33851)),
    ("image44669", Hand.RIGHT, "wrist", (-9.57848, -10.89164, 1119.19478), (185.47223, 228.06088)),
    ("image44669", Hand.RIGHT, "middle4", (-50.05537, -83.96285, 959.12967), (130.03135, 129.20304)),
    ("image44669", Hand.LEFT, "wrist", (59.18611, -3.95294, 1079.65454), (266.00692, 235.77341)),
    ("image29590", Hand.LEFT, "wrist", (11.02144, -36.20642, 1071.47795), (200.33723, 200.63487)),
    ("image2017", Hand.RIGHT, "wrist", (-86.73108, 4.95832, 1159.82934), (175.52759, 180.94567)),
])
def test_real_joints_are_where_they_were_computed(image, hand, joint, xyz, uv, hand_model):
    _, _, record = real(hand_model, image)
    point = record.joints_cam[hand, MANO21.index(joint)]
    projected = project(torch.from_numpy(point)[None], torch.from_numpy(record.camera))[0]
    np.testing.assert_allclose(point * 1000, xyz, atol=2e-5)
    np.testing.assert_allclose(projected, uv, atol=2e-5)


@needs_real_frames
@pytest.mark.parametrize(("image", "translation"), [
    ("image69148", (406.97034, -112.38386, 123.16257)), ("image44669", (-581.62634, 164.98674, 243.27196)),
    ("image29590", (-925.15119, 123.66438, 658.12072)), ("image2017", (-221.82911, -131.36567, 70.67858)),
])
def test_real_cameras_stand_where_they_were_computed(image, translation, hand_model):
    reader, index, _ = real(hand_model, image)
    annotations = reader.annotations
    camera = annotations.images.camera_row[annotations.samples.image_row[reader.rows[index]]]
    np.testing.assert_allclose(annotations.cameras.translation[camera] * 1000, translation, atol=2e-5)


@needs_real_frames
def test_real_frames_have_joints_and_no_meshes(hand_model):
    reader = open_set(Path(REAL_FRAMES), hand_model, split="test")
    records = {Path(reader.describe(i)["path"]).stem: reader.read(i) for i in range(len(reader))}
    counts = {name: record.joints_valid.sum(axis=1).tolist() for name, record in records.items()}
    assert counts == {"image69148": [21, 21], "image44669": [21, 21], "image29590": [0, 21], "image2017": [21, 0]}
    assert not any(record.vertices_valid.any() or record.mano_valid.any() for record in records.values())
    assert records["image2017"].image_size == (512, 334)
    for index in range(4):
        sample = TwoHandDataset(reader, size=256, box_ratio=0.8, augment=RANGES)[0, index]
        assert all(leaf.isfinite().all() for leaf in _leaves([sample])) and sample.pixels.float().mean() > 13


@needs_real_frames
@pytest.mark.parametrize(("image", "relative", "bones"), [
    ("image69148", (128.79873, 16.50854, 57.79271), (88.3916, 82.0635)),
    ("image44669", (68.7646, 6.9387, -39.54024), (83.1361, 84.3127)),
])
def test_real_hands_are_as_far_apart_and_as_long_as_computed(image, relative, bones, hand_model):
    joints = real(hand_model, image)[2].joints_cam * 1000
    np.testing.assert_allclose(joints[Hand.LEFT, WRIST] - joints[Hand.RIGHT, WRIST], relative, atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(joints[:, MIDDLE_MCP] - joints[:, WRIST], axis=1), bones, atol=1e-4)


@needs_real_frames
@pytest.mark.parametrize("image", ["image69148", "image44669", "image29590", "image2017"])
def test_real_json_boxes_are_the_tight_joint_boxes_times_1_2(image, hand_model):
    low, high = real(hand_model, image, "joints")[2].box_px
    center, half = (low + high) / 2, (high - low) / 2 * 1.2
    np.testing.assert_allclose(real(hand_model, image, "json")[2].box_px, [center - half, center + half], atol=0.01)


@needs_real_frames
@pytest.mark.parametrize(("image", "scale", "offsets", "camera"), [
    ("image69148", 1.32801696, (-39.459424, -185.792567), (1675.33214, 1675.53851, 167.46735, 157.93886)),
    ("image44669", 1.40429588, (-150.077452, -106.757018), (1784.44847, 1784.18517, 125.65241, 230.87104)),
    ("image2017", 1.33177623, (-138.060357, -32.096275), None),
])
def test_real_joint_crops_match_the_published_affine_and_camera(image, scale, offsets, camera, hand_model):
    reader, index, record = real(hand_model, image, "joints")
    affine = crop_affine(square_box(record.box_px), 256)
    np.testing.assert_allclose([affine[0, 0], affine[0, 2], affine[1, 2]], [scale, *offsets], atol=2e-5)
    crop = TwoHandDataset(reader, size=256, box_ratio=0.8)[0, index].camera_crop
    if camera:
        np.testing.assert_allclose([crop[0, 0], crop[1, 1], crop[0, 2], crop[1, 2]], camera, rtol=1e-6)


@needs_real_frames
@pytest.mark.parametrize(("image", "xy", "narrow", "default"), [
    ("image69148", (4.398297, 3.553130), 2.998890, 3.249167), ("image44669", (2.731223, 4.715989), 2.022997, 2.517248),
])
def test_real_knuckles_land_in_the_published_cells(image, xy, narrow, default, hand_model):
    reader, index, _ = real(hand_model, image)
    targets = TwoHandDataset(reader, size=256, box_ratio=0.8)[0, index].targets
    joints_crop, depth = targets.joints_crop[0, MIDDLE_MCP], targets.joints[0, MIDDLE_MCP, 2]
    for depth_range, z in ((0.3, narrow), (0.4, default)):
        np.testing.assert_allclose(joints_to_cells(joints_crop, depth, 256, depth_range), [*xy, z], atol=5e-6)


@needs_real_frames
def test_real_fingertips_need_the_default_depth_range(hand_model):
    reader, index, _ = real(hand_model, "image44669")
    joints = TwoHandDataset(reader, size=256, box_ratio=0.8)[0, index].targets.joints[0]
    tips = joints[[MANO21.index("middle4"), MANO21.index("ring4")], 2]
    for depth_range, inside in ((0.3, False), (0.4, True)):
        z = joints_to_cells(torch.zeros(2, 2), tips, 256, depth_range)[:, 2]
        assert ((z >= 0) & (z < 8)).tolist() == [inside, inside]
    z = joints_to_cells(torch.zeros(2, 2), tips, 256, 0.3)[:, 2]
    np.testing.assert_allclose(z, [-0.268, -0.185], atol=1e-3)
