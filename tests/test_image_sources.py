"""Which pictures a folder gives, in which order and with which boxes: any folder, RGB2Hands, EgoHands."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.lib.recfunctions import repack_fields
from scipy.io import savemat

from common.errors import UserError
from data.frames.boxes import read_boxes
from data.frames.folder import ImageFolder, unique_names
from data.frames.sources import find_images


def write_picture(path: Path, width: int = 64, height: int = 48) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def names_of(root: Path) -> list[str]:
    return [picture.name for picture in find_images(root)]


def boxes_of(root: Path) -> dict[str, tuple | None]:
    return {picture.name: picture.boxes[0] if picture.boxes else None for picture in find_images(root)}


# ---------------------------------------------------------------- any folder

def test_every_suffix_of_a_picture_is_taken(tmp_path):
    """Those that are not read get a line that says so."""
    suffixes = ("jpg JPEG jpe jfif png bmp webp avif heic HEIF hif tif tiff gif ppm pgm pbm pnm "
                "jp2 jxl psd dng cr2 CR3 nef arw raf orf rw2").split()
    for number, suffix in enumerate(suffixes):
        (tmp_path / f"{number}.{suffix}").touch()
    for name in ("video.mp4", "notes.txt", "boxes.json", "jpg", "x.jpg.part"):
        (tmp_path / name).touch()
    assert names_of(tmp_path) == [f"{number}.{suffix}" for number, suffix in enumerate(suffixes)]


def test_what_macos_leaves_beside_pictures_is_none(tmp_path):
    write_picture(tmp_path / "a.jpg")
    (tmp_path / "._a.jpg").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    assert names_of(tmp_path) == ["a.jpg"]


def test_what_macos_leaves_in_a_data_set_counts_neither_as_a_frame_nor_as_an_annotation(tmp_path):
    write_rgb2hands(tmp_path / "rgb2hands")
    write_egohands(tmp_path / "egohands")
    (tmp_path / "egohands" / "metadata.mat").unlink()
    expected = [boxes_of(tmp_path / name) for name in ("rgb2hands", "egohands")]
    for file in [file for file in tmp_path.rglob("*") if file.is_file()]:
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    assert [boxes_of(tmp_path / name) for name in ("rgb2hands", "egohands")] == expected

def test_pictures_come_in_the_order_of_their_numbers(tmp_path):
    for name in ("frame_10.png", "frame_2.png", "Frame_1.png", "a9b10.png", "a9b9.png", "7.png", "01.png", "1.png"):
        write_picture(tmp_path / name)
    assert names_of(tmp_path) == ["01.png", "1.png", "7.png", "a9b9.png", "a9b10.png", "Frame_1.png", "frame_2.png",
                                  "frame_10.png"]


def test_what_is_named_like_a_picture_is_taken_and_subfolders_are_not_searched(tmp_path):
    for name in ("b.JPG", "a.png", "deep/c.png"):
        write_picture(tmp_path / name)
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    assert names_of(tmp_path) == ["a.png", "b.JPG", "folder.jpg"]
    assert set(boxes_of(tmp_path).values()) == {None}


def test_one_file_is_a_source_whatever_its_name_ends_in(tmp_path):
    (tmp_path / "photo").write_bytes(b"x")
    assert names_of(tmp_path / "photo") == ["photo"]


@pytest.mark.parametrize("name", ["", "missing", "loop"])
def test_a_source_without_pictures_is_an_error(tmp_path, name):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="--input"):
        find_images(tmp_path / name)


def test_ten_thousand_pictures_are_listed_without_opening_one(tmp_path):
    for number in range(10_000):
        os.mknod(tmp_path / f"{number}.jpg")
    folder = ImageFolder(tmp_path, {})
    assert [picture.name for picture in folder.images[:3]] == ["0.jpg", "1.jpg", "2.jpg"]
    assert folder.names[-1] == "9999" and len(set(folder.names)) == 10_000


def test_results_of_long_and_foreign_names_fit_a_disk():
    names = unique_names([f"{'x' * 250}.jpg", f"{'x' * 249}y.jpg", f"{'長' * 80}.png", "a\udcff.jpg", "\udcff.jpg",
                          "A.jpg"])
    assert len({name.casefold() for name in names}) == 6
    assert all(0 < len(f"{name}_right.obj.tmp-1234567".encode()) <= 255 for name in names)


# ---------------------------------------------------------------- RGB2Hands

def write_rgb2hands(root: Path) -> None:
    """Two sequences; frames are numbered without leading zeros, some have no annotation, some of it is missing."""
    (root.parent if root.name == "data" else root).mkdir(parents=True, exist_ok=True)
    ((root.parent if root.name == "data" else root) / "color_intrinsics.txt").write_text("617.3 617.3 312.4 241.4\n")
    joints = {
        ("seq01_crossed", 2): [(10, 20), (30, 25), (0, 0), (22, 44)],
        ("seq01_crossed", 10): [(12, 18), (40, 30)],
        ("seq04_scratch", 0): [(0, 0), (0, 0)],
        ("seq04_scratch", 1): [(5, 6), (25, 16.5)],
    }
    for sequence, frames in (("seq01_crossed", (2, 10, 11)), ("seq04_scratch", (0, 1, 100))):
        for frame in frames:
            write_picture(root / sequence / "color" / f"{frame}_color.png")
            write_picture(root / sequence / "depth" / f"{frame}_depth.png")
    for (sequence, frame), points in joints.items():
        file = root / sequence / "annotation" / "annot2D_color" / f"{frame}_color2.5D.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{x} {y} 0 1\n" for x, y in points))


RGB2HANDS = {
    "seq01_crossed/2_color.png": (10, 20, 20, 24), "seq01_crossed/10_color.png": (12, 18, 28, 12),
    "seq01_crossed/11_color.png": (10, 18, 30, 26),     # of the whole sequence
    "seq04_scratch/0_color.png": (5, 6, 20, 10.5), "seq04_scratch/1_color.png": (5, 6, 20, 10.5),
    "seq04_scratch/100_color.png": (5, 6, 20, 10.5),
}


@pytest.mark.parametrize("place", ["RGB2HANDS_Benchmark", "RGB2HANDS_Benchmark/data"])
def test_rgb2hands_gives_the_colour_frames_with_boxes_round_their_joints(tmp_path, place):
    write_rgb2hands(tmp_path / place)
    found = boxes_of(tmp_path / "RGB2HANDS_Benchmark")
    assert list(found) == list(RGB2HANDS) and found == RGB2HANDS
    assert ImageFolder(tmp_path / "RGB2HANDS_Benchmark", {}).names[:2] == [
        "seq01_crossed_2_color", "seq01_crossed_10_color"]


def test_one_sequence_of_rgb2hands_is_a_source_too(tmp_path):
    write_rgb2hands(tmp_path)
    assert boxes_of(tmp_path / "seq04_scratch") == {
        name.split("/")[1]: box for name, box in RGB2HANDS.items() if name.startswith("seq04")}


def test_annotations_with_the_names_of_their_frames_find_them(tmp_path):
    for frame in (1, 10, 100):
        write_picture(tmp_path / "color" / f"{frame}.png")
    folder = tmp_path / "annotation" / "annot2D_color"
    folder.mkdir(parents=True)
    (folder / "10.txt").write_text("1 1\n3 4\n")
    (folder / "1000.txt").write_text("1 1\n60 40\n")    # of no frame
    assert set(boxes_of(tmp_path).values()) == {(1, 1, 2, 3)}


def test_a_sequence_without_annotations_is_used_whole(tmp_path):
    write_rgb2hands(tmp_path)
    write_picture(tmp_path / "seq05_other" / "color" / "3.png")
    assert boxes_of(tmp_path)["seq05_other/3.png"] is None


@pytest.mark.parametrize("text", ["1 2\nx y\n", "\n7\n", "1 2\nnan\n"])
def test_a_damaged_annotation_is_named_with_its_line(tmp_path, text):
    write_rgb2hands(tmp_path)
    file = tmp_path / "seq01_crossed" / "annotation" / "annot2D_color" / "2_color2.5D.txt"
    file.write_text(text)
    with pytest.raises(UserError, match="line 2") as caught:
        find_images(tmp_path)
    assert str(file) in caught.value.message


# ---------------------------------------------------------------- EgoHands

def _polygon(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, dtype=float).reshape(-1, 2) if points else np.zeros((0, 0))


def _frames(*rows: tuple) -> np.ndarray:
    names = ("frame_num", "myleft", "myright", "yourleft", "yourright")
    frames = np.zeros((1, len(rows)), dtype=[(name, object) for name in names])
    for number, row in enumerate(rows):
        frames[0, number] = row
    return frames


YOURS = _polygon((50, 1), (60, 2), (55, 9))
VIDEOS = {
    "CARDS_COURTYARD_B_T": _frames(
        (11, _polygon((3, 4), (13, 9), (5, 14.5)), _polygon((20, 6), (33, 30)), YOURS, _polygon()),
        (9, _polygon(), _polygon((1, 2), (3, 8), (2, 2)), YOURS, YOURS),
        (1002, _polygon(), _polygon(), YOURS, YOURS)),
    "PUZZLE_OFFICE_T_S": _frames((7, _polygon((2, 2), (8, 8)), _polygon(), _polygon(), _polygon())),
}
EGOHANDS = {
    "CARDS_COURTYARD_B_T/frame_0009.jpg": (1, 2, 2, 6), "CARDS_COURTYARD_B_T/frame_0011.jpg": (3, 4, 30, 26),
    "CARDS_COURTYARD_B_T/frame_1002.jpg": None, "PUZZLE_OFFICE_T_S/frame_0007.jpg": (2, 2, 6, 6),
}


def write_egohands(root: Path) -> None:
    """metadata.mat in the shape of EgoHands', its videos in another order than their names; polygons.mat in each."""
    fields = ("video_id", "partner_video_id", "ego_viewer_id", "partner_id", "location_id", "activity_id",
              "labelled_frames")
    videos = np.zeros((1, 2), dtype=[(field, object) for field in fields])
    for number, (name, frames) in enumerate(reversed(VIDEOS.items())):
        videos[0, number] = (name, "X", "B", "T", "COURTYARD", "CARDS", frames)
        folder = root / "_LABELLED_SAMPLES" / name
        ordered = frames[:, np.argsort([frame["frame_num"] for frame in frames[0]])]
        for frame in ordered[0]:
            write_picture(folder / f"frame_{frame['frame_num']:04d}.jpg")
        polygons = repack_fields(ordered[["myleft", "myright", "yourleft", "yourright"]])
        savemat(folder / "polygons.mat", {"polygons": polygons})
    savemat(root / "metadata.mat", {"video": videos})


@pytest.mark.parametrize("has_metadata", [True, False])
@pytest.mark.parametrize("place", ["", "_LABELLED_SAMPLES"])
def test_egohands_gives_its_frames_with_boxes_round_the_wearer_s_hands(tmp_path, place, has_metadata):
    write_egohands(tmp_path)
    if not has_metadata:
        (tmp_path / "metadata.mat").unlink()
    found = boxes_of(tmp_path / place)
    assert list(found) == list(EGOHANDS) and found == EGOHANDS


def test_one_video_of_egohands_is_a_source_too(tmp_path):
    write_egohands(tmp_path)
    video = tmp_path / "_LABELLED_SAMPLES" / "PUZZLE_OFFICE_T_S"
    assert boxes_of(video) == {"frame_0007.jpg": (2, 2, 6, 6)}


def test_a_video_that_was_not_unpacked_is_no_error(tmp_path):
    write_egohands(tmp_path)
    (tmp_path / "_LABELLED_SAMPLES" / "CARDS_COURTYARD_B_T").rename(tmp_path / "elsewhere")
    assert names_of(tmp_path) == ["PUZZLE_OFFICE_T_S/frame_0007.jpg"]


def test_polygons_of_another_number_of_frames_are_refused(tmp_path):
    write_egohands(tmp_path)
    (tmp_path / "metadata.mat").unlink()
    video = tmp_path / "_LABELLED_SAMPLES" / "CARDS_COURTYARD_B_T"
    (video / "frame_0009.jpg").unlink()
    with pytest.raises(UserError, match="polygons of 3 frames, its folder 2"):
        find_images(tmp_path)


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def _other_variable(path: Path) -> None:
    savemat(path, {"other": 1})


def _numbers(path: Path) -> None:
    savemat(path, {"video": np.ones((2, 2)), "polygons": np.ones((2, 2))})


@pytest.mark.parametrize("name", ["metadata.mat", "_LABELLED_SAMPLES/PUZZLE_OFFICE_T_S/polygons.mat"])
@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"x" * 999),
                                    _half, _other_variable, _numbers])
def test_a_damaged_mat_file_is_named(tmp_path, damage, name):
    write_egohands(tmp_path)
    damage(tmp_path / name)
    source = tmp_path if name == "metadata.mat" else (tmp_path / name).parent
    with pytest.raises(UserError, match="is not the file of EgoHands") as caught:
        find_images(source)
    assert str(tmp_path / name) in caught.value.message


# ---------------------------------------------------------------- boxes of a user

def test_boxes_of_a_user_win_and_the_others_stay(tmp_path):
    write_egohands(tmp_path)
    (tmp_path / "boxes.json").write_text(json.dumps({"PUZZLE_OFFICE_T_S/frame_0007.jpg": [1, 1, 9, 9]}))
    folder = ImageFolder(tmp_path, read_boxes(tmp_path / "boxes.json"))
    boxes = {picture.name: picture.boxes[0] if picture.boxes else None for picture in folder.images}
    assert boxes == EGOHANDS | {"PUZZLE_OFFICE_T_S/frame_0007.jpg": (1, 1, 9, 9)}
    assert [picture.name for picture in folder.without_box] == ["CARDS_COURTYARD_B_T/frame_1002.jpg"]


def test_a_picture_of_a_data_set_is_read_with_its_box(tmp_path):
    write_rgb2hands(tmp_path)
    photo = ImageFolder(tmp_path, {}).read(0)
    assert photo.boxes_px == (RGB2HANDS["seq01_crossed/2_color.png"],)


def test_a_name_is_one_line_of_text_whatever_it_is_made_of(tmp_path):
    write_picture(tmp_path / "höhe 手.png")
    (tmp_path / "new\nline\udcff.png").write_bytes(b"")
    assert [picture.label for picture in find_images(tmp_path)] == ["höhe 手.png", r"new\nline\udcff.png"]
