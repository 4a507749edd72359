"""The demo: any folder in, a report and files out."""

import importlib
import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from tiny_snapshot import save_tiny_snapshot

from common.errors import EXIT_SOME_FAILED, UserError
from common.geometry import SquareBox, crop_affine
from common.images import BadImage, crop_image, read_rgb
from common.mano.model import HandModel
from common.predict.photo import PhotoPredictor
from data.checks import BadSample
from data.frames.boxes import read_boxes
from data.frames.folder import ImageFolder, unique_names
from main.arguments import demo_parser
from main.engine.processes.launch import Process

ROOT = Path(__file__).resolve().parents[1]


def photo(seed: int = 0, width: int = 90, height: int = 60) -> Image.Image:
    """A smooth random picture."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(cv2.resize(small, (width, height)))


# ---------------------------------------------------------------- reading pictures

def save_bomb(path: Path) -> None:
    """A few bytes of PNG whose header claims 50,000 × 50,000 pixels."""
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""))


def save_truncated(path: Path) -> None:
    photo().save(path)
    path.write_bytes(path.read_bytes()[:-400])


BROKEN = {
    "empty.jpg": (lambda path: path.write_bytes(b""), "empty"),
    "text.jpg": (lambda path: path.write_text("not a picture"), "not an image"),
    "truncated.jpg": (save_truncated, "truncated"),
    "bomb.png": (save_bomb, "100 million"),
    "long.png": (lambda path: Image.new("L", (40_000, 1)).save(path), "40000×1"),
    "loop.jpg": (lambda path: path.symlink_to(path), "symbolic links"),
    "gone.jpg": (lambda path: path.symlink_to(path.parent / "nothing"), "No such file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_picture_is_refused_with_its_reason(tmp_path: Path, name: str):
    make, reason = BROKEN[name]
    make(tmp_path / name)
    folder = ImageFolder(tmp_path, {})
    with pytest.raises(BadSample, match=reason):
        folder.read(0)


@pytest.mark.parametrize(("mode", "suffix"), [
    ("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg"), ("RGB", "png"), ("RGBA", "png"), ("LA", "png"), ("P", "png"),
    ("1", "png"), ("P", "gif"), ("RGB", "webp"), ("RGB", "bmp"), ("RGB", "tif"),
])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, suffix: str):
    stored = photo().convert("L").convert(mode)
    stored.save(tmp_path / f"a.{suffix}")
    image = read_rgb(tmp_path / f"a.{suffix}", upright=True)
    assert image.shape == (60, 90, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - np.asarray(stored.convert("RGB"))).mean() < 6


def test_sixteen_bits_keep_their_brightness(tmp_path: Path):
    values = np.linspace(0, 65535, 90 * 60).reshape(60, 90).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), values)
    np.testing.assert_allclose(read_rgb(tmp_path / "a.png", upright=True)[..., 0], values / 257, atol=1)


LEVELS = np.linspace(0, 255, 90 * 60).round().astype(np.uint8).reshape(60, 90)


def tiff(pixels: bytes, bits: int, *tags: tuple[int, int], zero_is_black: int = 1) -> bytes:
    """A grey TIFF file of 90×60 pixels, of kinds that Pillow does not write."""
    values = {256: 90, 257: 60, 258: bits, 259: 1, 262: zero_is_black, 273: 0, 277: 1, 278: 60, 279: len(pixels),
              **dict(tags)}
    values[273] = 8 + 2 + 12 * len(values) + 4          # where the pixels begin
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(values.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + struct.pack("<I", 0) + pixels


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_a_grey_tiff_of_the_tests_is_a_tiff(tmp_path: Path):
    for name, content in {"8": tiff(LEVELS.tobytes(), 8), "16": tiff((LEVELS * np.uint16(257)).tobytes(), 16)}.items():
        (tmp_path / name).write_bytes(content)
        np.testing.assert_array_equal(read_rgb(tmp_path / name, upright=True)[..., 0], LEVELS)


@pytest.mark.parametrize(("kind", "suffix"), [
    ("JPEG", "jpe"), ("JPEG", "jfif"), ("AVIF", "avif"), ("PPM", "ppm"), ("MPO", "jpg"), ("AVIF", "jpg")])
def test_pictures_of_less_common_kinds_are_read(tmp_path: Path, kind: str, suffix: str):
    """MPO is what many cameras' .jpg files are: a second picture follows the first."""
    more = {"append_images": [photo(1)], "save_all": True} if kind == "MPO" else {}
    photo().save(tmp_path / f"a.{suffix}", kind, **more)
    image = ImageFolder(tmp_path, {}).read(0).image
    assert np.abs(image.astype(int) - np.asarray(photo())).mean() < 6


@pytest.mark.parametrize(("mode", "kind"), [("LAB", "TIFF"), ("YCbCr", "TIFF"), ("CMYK", "TIFF"), ("PA", "TIFF")])
def test_other_colour_spaces_become_rgb(tmp_path: Path, mode: str, kind: str):
    lab = ImageCms.profileToProfile(photo(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"),
                                    outputMode="LAB")
    stored = lab if mode == "LAB" else photo().convert("L").convert("LA").convert("PA") if mode == "PA" else \
        photo().convert(mode)
    stored.save(tmp_path / "a", kind)
    expected = photo().convert("L").convert("RGB") if mode == "PA" else photo()
    assert np.abs(read_rgb(tmp_path / "a", upright=True).astype(int) - np.asarray(expected)).mean() < 6


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_keep_their_brightness_in_every_kind_of_file(tmp_path: Path, kind: str):
    Image.fromarray(LEVELS * np.uint16(257)).save(tmp_path / "a", kind)
    np.testing.assert_array_equal(read_rgb(tmp_path / "a", upright=True)[..., 0], LEVELS)


UNREAD = {
    "float.tif": (saved(Image.fromarray(LEVELS / np.float32(255)), "TIFF"), "floats"),
    "float 255.tif": (saved(Image.fromarray(LEVELS.astype(np.float32)), "TIFF"), "floats"),
    "32 bits.tif": (saved(Image.fromarray(LEVELS.astype(np.int32)), "TIFF"), "32 bits"),
    "float.ppm": (saved(Image.fromarray(LEVELS / np.float32(255)), "PPM"), "floats"),
    "12 bits.tif": (tiff(bytes(90 * 60 * 12 // 8), 12), "12 bits"),
    "inverted.tif": (tiff((LEVELS * np.uint16(257)).tobytes(), 16, zero_is_black=0), "0 for white"),
    "signed.tif": (tiff((LEVELS * np.int16(127)).tobytes(), 16, (339, 2)), "signed integers"),
    "thumbnail.tif": (tiff(LEVELS.tobytes(), 8, (254, 1)), "thumbnail"),
    "camera.dng": (tiff(LEVELS.tobytes(), 8), "a camera's raw file"),
    "a.jp2": (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 file"),
    "xl.jpg": (b"\xff\x0a\x20\x0a", "a JPEG XL file"),
    "black.png": (saved(Image.new("RGB", (90, 60)), "PNG"), "shows nothing: it is black"),
    "lens cap.png": (saved(photo().point(lambda value: value // 30), "PNG"), "shows nothing: it is black"),
    "white.jpg": (saved(Image.new("RGB", (90, 60), "white"), "JPEG"), "shows nothing: .* of one colour"),
    "transparent.png": (saved(Image.new("RGBA", (90, 60), (9, 80, 7, 0)), "PNG"), "shows nothing: .* of one colour"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_a_picture_whose_pixels_are_not_known_or_show_nothing_is_refused_with_its_reason(tmp_path: Path, name: str):
    content, reason = UNREAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadSample, match=reason):
        ImageFolder(tmp_path, {}).read(0)


def test_a_box_on_the_empty_part_of_a_picture_is_refused(tmp_path: Path):
    image = np.zeros((60, 90, 3), dtype=np.uint8)
    image[:, 45:] = np.asarray(photo())[:, 45:]
    Image.fromarray(image).save(tmp_path / "a.png")
    assert ImageFolder(tmp_path, {"a.png": ((30.5, 10, 40, 40),)}).read(0).boxes_px
    with pytest.raises(BadSample, match="shows nothing in its box"):
        ImageFolder(tmp_path, {"a.png": ((0, 10, 40.5, 40),)}).read(0)


@pytest.mark.parametrize("brands", [b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0mif1heic", b"hevc\0\0\0\0msf1hevc"])
def test_a_photograph_of_an_iphone_is_refused_with_what_reads_it(tmp_path: Path, monkeypatch, brands: bytes):
    """Also under another name."""
    monkeypatch.setattr("common.images.find_spec", lambda name: None)
    (tmp_path / "IMG_0001.jpg").write_bytes(struct.pack(">I4s", 8 + len(brands), b"ftyp") + brands + bytes(99))
    with pytest.raises(BadSample, match="a HEIC image, which needs pillow-heif.*requirements-extra.txt"):
        ImageFolder(tmp_path, {}).read(0)
    assert "pillow-heif==" in (ROOT / "requirements-extra.txt").read_text()


def test_a_photograph_of_an_iphone_is_read_where_pillow_heif_is_installed(tmp_path: Path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(photo()).save(tmp_path / "IMG_0001.HEIC", quality=95)
    image = ImageFolder(tmp_path, {}).read(0).image
    assert image.shape == (60, 90, 3) and np.abs(image.astype(int) - np.asarray(photo())).mean() < 6


def test_transparent_pixels_are_white(tmp_path: Path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert (read_rgb(tmp_path / "a.png", upright=True) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_camera_s_orientation_tag_is_followed(tmp_path: Path, orientation: int):
    """Stored as the tag says, every picture comes back upright."""
    upright = photo()
    store = {1: [], 2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}[orientation]    # PIL's transposes
    stored = upright
    for operation in store:
        stored = stored.transpose(operation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("PNG", "TIFF", "WEBP"):
        stored.save(tmp_path / kind, kind, exif=exif, lossless=True)
        np.testing.assert_array_equal(read_rgb(tmp_path / kind, upright=True), np.asarray(upright))


def test_fifty_randomly_damaged_jpegs_give_an_image_or_a_reason(tmp_path: Path):
    rng = np.random.default_rng(0)
    photo().save(tmp_path / "good.jpg")
    good = (tmp_path / "good.jpg").read_bytes()
    for _ in range(50):
        damaged = bytearray(good)
        for place in rng.integers(2, len(good), 5):
            damaged[place] = rng.integers(256)
        (tmp_path / "bad.jpg").write_bytes(bytes(damaged))
        try:
            assert read_rgb(tmp_path / "bad.jpg", upright=True).dtype == np.uint8
        except BadImage as reason:
            assert str(reason)


# ---------------------------------------------------------------- folders and boxes

def test_repeated_stems_get_names_of_their_own():
    pictures = ["a.jpg", "a.png", "A.bmp", "b.jpg", "a_jpg.png", "seq/7.png", "seq_7.jpg"]
    names = unique_names(pictures)
    assert len({name.casefold() for name in names}) == len(pictures)
    assert names[3] == "b" and names[4] == "a_jpg"


@pytest.mark.parametrize("name", ["", "missing"])
def test_an_empty_or_missing_folder_is_an_error(tmp_path: Path, name: str):
    with pytest.raises(UserError, match="--input"):
        ImageFolder(tmp_path / name, {})


def test_pictures_come_with_their_boxes_and_those_without_are_listed(tmp_path: Path):
    for name in ("a.png", "b.png"):
        photo().save(tmp_path / name)
    folder = ImageFolder(tmp_path, {"a.png": ((10, 20, 40, 30),)})
    assert folder.read(0).boxes_px == ((10, 20, 40, 30),) and folder.read(1).boxes_px == ()
    assert [picture.name for picture in folder.without_box] == ["b.png"]


def test_boxes_that_fit_no_picture_are_an_error(tmp_path: Path):
    photo().save(tmp_path / "a.png")
    with pytest.raises(UserError, match="None of the 1 names.*'a.jpg'.*'a.png'"):
        ImageFolder(tmp_path, {"a.jpg": ((0, 0, 5, 5),)})


def test_a_name_with_another_form_of_accents_is_the_same_name(tmp_path: Path):
    """macOS names files with accents of their own, most programs write them composed. Names that are there win."""
    composed, apart = "h\u00f6he.png", "ho\u0308he.png"
    photo().save(tmp_path / apart)
    assert ImageFolder(tmp_path, {composed: ((1, 2, 30, 40),)}).images[0].boxes == ((1, 2, 30, 40),)
    photo().save(tmp_path / composed)
    boxes = {image.name: image.boxes for image in ImageFolder(tmp_path, {composed: ((1, 2, 30, 40),)}).images}
    assert boxes == {composed: ((1, 2, 30, 40),), apart: ()}


def test_names_of_boxes_that_are_no_pictures_are_listed(tmp_path: Path):
    for name in ("a.png", "b.png"):
        photo().save(tmp_path / name)
    boxes = {"a.png": ((0, 0, 5, 5),), "A.png": ((0, 0, 5, 5),), "sub/b.png": ((0, 0, 5, 5),)}
    assert ImageFolder(tmp_path, boxes).unknown == ["A.png", "sub/b.png"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_boxes_file_may_have_a_byte_order_mark(tmp_path: Path, encoding: str):
    """Editors and shells of Windows write one."""
    (tmp_path / "boxes.json").write_text('{"höhe.jpg": [1, 2, 3, 4.5]}', encoding=encoding)
    assert read_boxes(tmp_path / "boxes.json") == {"höhe.jpg": ((1, 2, 3, 4.5),)}


def test_shares_of_the_picture_are_no_box(tmp_path: Path):
    (tmp_path / "boxes.json").write_text('{"a.jpg": [0.25, 0.35, 0.25, 0.6]}')
    with pytest.raises(UserError, match=r"'a.jpg' the box \[0.25, 0.35, 0.25, 0.6\], which .* shares .* are no pixels"):
        read_boxes(tmp_path / "boxes.json")


def test_two_boxes_under_one_name_are_refused(tmp_path: Path):
    (tmp_path / "boxes.json").write_text('{"a.jpg": [1, 2, 3, 4], "b.jpg": [1, 2, 3, 4], "a.jpg": [5, 6, 7, 8]}')
    with pytest.raises(UserError, match="boxes.json has the key 'a.jpg' twice"):
        read_boxes(tmp_path / "boxes.json")


def test_a_box_outside_the_picture_fails_that_picture_only(tmp_path: Path):
    photo().save(tmp_path / "a.png")
    with pytest.raises(BadSample, match="outside"):
        ImageFolder(tmp_path, {"a.png": ((90, 0, 5, 5),)}).read(0)


@pytest.mark.parametrize("text", [
    "", "[1]", '{"a.jpg": 1}', '{"a.jpg": [1, 2, 3]}', '{"a.jpg": [1, 2, 0, 4]}', '{"a.jpg": [1, 2, NaN, 4]}',
    '{"a.jpg": [1, 2, "3", 4]}', '{"a.jpg": [1, 2, true, 4]}', '{"a.jpg": [1, 2, Infinity, 4]}', "[" * 100_000,
])
def test_a_wrong_boxes_file_is_explained(tmp_path: Path, text: str):
    (tmp_path / "boxes.json").write_text(text)
    with pytest.raises(UserError, match="--boxes"):
        read_boxes(tmp_path / "boxes.json")


@pytest.mark.parametrize("side", [30.0, 64.0, 200.0, 1500.0])
def test_a_crop_shows_the_box_at_any_size(side: float):
    """A ramp in x and y: the crop is the ramp sampled where the transform says, whatever the reduction."""
    size = 32
    rows, columns = np.mgrid[:1600, :1600] * (255 / 1599)
    image = np.stack([columns, rows, rows * 0], axis=2).astype(np.uint8)
    crop_from_image = crop_affine(SquareBox(np.array([800.0, 760.0]), side), size)
    crop = crop_image(image, crop_from_image, size)
    for pixel in ((3, 5), (28, 16), (16, 30)):
        x, y = np.linalg.inv(crop_from_image)[:2] @ (*pixel, 1)
        np.testing.assert_allclose(crop[pixel[1], pixel[0], :2], np.array([x, y]) * 255 / 1599, atol=1.5)


# ---------------------------------------------------------------- the whole demo

@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, hand_model: HandModel) -> Path:
    path = tmp_path_factory.mktemp("run") / "snapshot_0.pth.tar"
    save_tiny_snapshot(path, hand_model)
    return path


@pytest.fixture
def run_demo(monkeypatch, checkpoint: Path):
    demo = importlib.import_module("main.demo")

    def run(*arguments: object) -> int:
        words = ["--gpu", "cpu", "--checkpoint", checkpoint, *arguments]
        monkeypatch.setattr(sys, "argv", ["demo.py", *map(str, words)])
        return demo.main()
    return run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "photos with spaces"
    folder.mkdir()
    photo(0).save(folder / "wide.jpg")
    photo(1, width=50, height=80).save(folder / "höhe.png")
    return folder


def test_every_picture_gets_all_its_files(run_demo, pictures: Path, tmp_path: Path):
    output = tmp_path / "out"
    (pictures / "boxes.json").write_text(json.dumps({"wide.jpg": [10, 10, 50, 40]}))
    assert run_demo("--input", pictures, "--output", output, "--boxes", pictures / "boxes.json") == 0
    found = sorted(str(file.relative_to(output)) for file in output.rglob("*") if file.is_file())
    expected = [f"{kind}/{name}.png" for kind in ("overlay", "panel", "side") for name in ("höhe", "wide")]
    expected += [f"{kind}/{name}_{hand}.{suffix}" for kind, suffix in (("meshes", "obj"), ("params", "json"))
                 for name in ("höhe", "wide") for hand in ("left", "right")]
    assert found == sorted(expected)

    params = json.loads((output / "params" / "wide_left.json").read_text())
    assert params["box"] == [10, 10, 50, 40] and params["image"] == "wide.jpg"
    assert read_rgb(output / "overlay" / "wide.png", upright=True).shape == (60, 90, 3)


def test_one_picture_may_be_given_instead_of_a_folder(run_demo, pictures: Path, tmp_path: Path):
    assert run_demo("--input", pictures / "wide.jpg", "--output", tmp_path / "out") == 0
    assert (tmp_path / "out" / "panel" / "wide.png").is_file()


@pytest.fixture
def seen_hands(monkeypatch):
    """Makes the demo see hands of the given presence (2,) for each person of an image, by the image's width."""
    def see(**presences: list[tuple[float, float]]) -> None:
        real = PhotoPredictor.__call__

        def call(self, image, boxes=()):
            hands, = real(self, image, boxes)
            return [hands._replace(presence=np.array(own)) for own in presences[f"width_{image.shape[1]}"]]
        monkeypatch.setattr(PhotoPredictor, "__call__", call)
    return see


def test_an_image_without_hands_gets_a_line_and_empty_results_and_the_rest_goes_on(run_demo, pictures: Path,
                                                                                   tmp_path: Path, capsys, seen_hands):
    seen_hands(width_90=[(0.1, 0.3)], width_50=[(0.2, 0.9)])
    words = ("--input", pictures, "--output", tmp_path, "--finder", "none", "--save_boxes", tmp_path / "boxes.json")
    assert run_demo(*words) == EXIT_SOME_FAILED
    assert "wide.jpg: no hand found" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "meshes").iterdir()] == ["höhe_left.obj"]
    for name, shown in (("wide_right", False), ("wide_left", False), ("höhe_right", False), ("höhe_left", True)):
        params = json.loads((tmp_path / "params" / f"{name}.json").read_text())
        assert (params["root_pose"] is not None) == (params["joint_confidence"] is not None) == shown
        assert (params["camera"]["scale_px_per_m"] is not None) == shown and params["hand"] == name.split("_")[1]
    assert params["presence"] == 0.9
    assert list(read_boxes(tmp_path / "boxes.json")) == ["höhe.png"]
    (tmp_path / "meshes" / "höhe_right.obj").write_text("of an earlier run")
    assert run_demo(*words, "--overwrite") == EXIT_SOME_FAILED
    assert not (tmp_path / "meshes" / "höhe_right.obj").exists()
    assert run_demo(*words, "--resume") == 0            # every image has its results


def test_everybody_in_an_image_has_results_and_one_overlay_shows_all(run_demo, pictures: Path, tmp_path: Path,
                                                                     seen_hands):
    photo(2).save(pictures / "wide_1.png")              # a name that the second person of wide.jpg would have
    seen_hands(width_90=[(0.9, 0.9), (0.9, 0.1), (0.6, 0.7)], width_50=[(0.9, 0.9)])
    words = ("--input", pictures, "--output", tmp_path, "--finder", "none", "--save_boxes", tmp_path / "boxes.json")
    assert run_demo(*words) == 0
    assert sorted(file.stem for file in (tmp_path / "overlay").iterdir()) == ["höhe", "wide", "wide_1"]
    names = ["höhe", "wide", "wide_1", "wide_1_1", "wide_1_2", "wide_2", "wide_3"]
    assert sorted(file.stem for file in (tmp_path / "panel").iterdir()) == names
    params = json.loads((tmp_path / "params" / "wide_2_right.json").read_text())
    assert params["image"] == "wide.jpg" and params["people"] == ["wide", "wide_2", "wide_3"]
    assert not (tmp_path / "meshes" / "wide_2_left.obj").exists()
    assert [len(boxes) for boxes in read_boxes(tmp_path / "boxes.json").values()] == [1, 3, 3]


@pytest.mark.parametrize(("chosen", "file"), [(7, "snapshot_7.pth.tar"), ("best", "snapshot_2.pth.tar")])
def test_an_epoch_of_the_repositorys_run_or_its_best_one_can_be_shown(chosen, file, monkeypatch, tmp_path: Path):
    monkeypatch.syspath_prepend(str(ROOT / "main"))
    demo = importlib.import_module("main.demo")
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    monkeypatch.setattr(demo, "best_epoch", {tmp_path / "output" / "model_dump": 2}.__getitem__)
    args = demo_parser("").parse_args(["--test_epoch", str(chosen)])
    assert demo.chosen_file(args, Process(torch.device("cpu"))) == tmp_path / "output" / "model_dump" / file


def test_without_input_the_images_of_the_repository_are_used_and_nothing_is_replaced(run_demo, tmp_path: Path, capsys):
    assert run_demo("--output", tmp_path / "out") == 0
    examples = sorted(file.stem for file in (ROOT / "common" / "assets" / "examples").glob("*.jpg"))
    assert sorted(file.stem for file in (tmp_path / "out" / "panel").iterdir()) == examples and len(examples) == 8
    assert "whole" not in capsys.readouterr().out       # all have boxes
    with pytest.raises(UserError, match="results exist already"):
        run_demo("--output", tmp_path / "out")


@pytest.mark.parametrize(("flag", "source", "folder"), [
    ("--input", "wide.jpg", "wide"), ("--img_path", "wide.jpg", "wide"), ("--input", ".", ""),
    ("--input", "../{}/höhe.png", "höhe")])
def test_results_without_a_named_place_go_into_a_folder_of_the_inputs_name(run_demo, pictures: Path, tmp_path,
                                                                           monkeypatch, flag, source, folder):
    """What exists there is not replaced."""
    monkeypatch.setattr("main.demo.OUTPUT", tmp_path / "out")
    monkeypatch.chdir(pictures)
    source = source.format(pictures.name)
    assert run_demo(flag, source) == 0
    assert list((tmp_path / "out" / (folder or pictures.name) / "panel").iterdir())
    with pytest.raises(UserError, match="results exist already.*--resume"):
        run_demo(flag, source)


def test_a_clone_has_the_folder_for_results_and_ignores_what_lies_in_it():
    listed = subprocess.run(["git", "ls-files", "output"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git checkout")
    assert listed.stdout.split() == ["output/README.md"]
    for name in ("output/demo/panel/hands_1.png", "output/model_dump/snapshot_0.pth.tar", "output/x/README.md"):
        assert subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT).returncode == 0


def test_boxes_without_the_images_they_are_of_are_refused(run_demo, pictures: Path, capsys):
    (pictures / "boxes.json").write_text("{}")
    with pytest.raises(SystemExit) as stopped:
        run_demo("--boxes", pictures / "boxes.json")
    assert stopped.value.code == 2 and "--boxes needs --input" in capsys.readouterr().err


def test_unreadable_pictures_are_named_and_the_others_done(run_demo, pictures: Path, tmp_path: Path, capsys):
    (pictures / "broken.jpg").write_text("not a picture")
    assert run_demo("--input", pictures, "--output", tmp_path / "out") == EXIT_SOME_FAILED
    text = capsys.readouterr()
    assert "broken.jpg: not used: it is not an image" in text.err and "2 of 3 images" in text.out
    assert (tmp_path / "out" / "panel" / "wide.png").is_file()


def test_every_picture_of_a_data_set_gets_a_line_and_its_own_box(run_demo, tmp_path: Path, capsys):
    source = tmp_path / "RGB2HANDS_Benchmark" / "seq01_crossed"
    for folder in ("color", "annotation/annot2D_color"):
        (source / folder).mkdir(parents=True)
    for frame in (9, 10):
        photo(frame).save(source / "color" / f"{frame}_color.png")
    (source / "color" / "11_color.png").write_bytes(b"")
    (source / "annotation" / "annot2D_color" / "9_color2.5D.txt").write_text("20 10\n60 50\n0 0\n")

    code = run_demo("--input", source.parent, "--output", tmp_path / "out")
    text = capsys.readouterr()
    assert code == EXIT_SOME_FAILED
    assert text.out.splitlines() == [
        "seq01_crossed/9_color.png: seq01_crossed_9_color", "seq01_crossed/10_color.png: seq01_crossed_10_color",
        f"2 of 3 images reconstructed in {tmp_path / 'out'}: see panel/ there."]
    assert "seq01_crossed/11_color.png: not used: it is empty" in text.err
    params = json.loads((tmp_path / "out" / "params" / "seq01_crossed_9_color_right.json").read_text())
    assert params["box"] == [20, 10, 40, 40] and params["image"] == "seq01_crossed/9_color.png"


def test_results_are_replaced_only_on_request(run_demo, pictures: Path, tmp_path: Path):
    words = ("--input", pictures / "wide.jpg", "--output", tmp_path / "out")
    assert run_demo(*words) == 0
    written = tmp_path / "out" / "side" / "wide.png"
    written.write_text("mine")
    with pytest.raises(UserError, match="--overwrite"):
        run_demo(*words)
    assert written.read_text() == "mine"
    assert run_demo(*words, "--overwrite") == 0
    assert read_rgb(written, upright=True).shape[2] == 3


def test_an_interrupted_demo_goes_on_with_what_is_missing(run_demo, pictures: Path, tmp_path: Path, capsys):
    words = ("--input", pictures, "--output", tmp_path / "out")
    assert run_demo(*words) == 0
    everything = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    (tmp_path / "out" / "panel" / "wide.png").unlink()                  # written last
    (tmp_path / "out" / "meshes" / "wide_left.obj").write_text("half")
    complete = [file for file in everything if file.name.startswith("höhe")]
    times = [file.stat().st_mtime_ns for file in complete]
    capsys.readouterr()
    assert run_demo(*words, "--resume") == 0
    text = capsys.readouterr().out
    assert "1 of 2 images have their results already." in text and "2 of 2 images reconstructed" in text
    assert "wide.jpg: wide" in text and "höhe.png: höhe" not in text
    assert {file: file.read_bytes() for file in everything} == everything
    assert [file.stat().st_mtime_ns for file in complete] == times


def test_a_demo_goes_on_with_no_results_of_other_boxes_or_images(run_demo, pictures: Path, tmp_path: Path):
    words = ("--input", pictures / "wide.jpg", "--output", tmp_path / "out", "--resume")
    assert run_demo(*words) == 0
    (tmp_path / "boxes.json").write_text('{"wide.jpg": [10, 10, 50, 40]}')
    with pytest.raises(UserError, match="wide_right.json was made with another 'box'.*--overwrite"):
        run_demo(*words, "--boxes", tmp_path / "boxes.json")
    (pictures / "wide.jpg").rename(pictures / "wide.png")
    with pytest.raises(UserError, match="wide_right.json was made with another 'image'"):
        run_demo("--input", pictures / "wide.png", "--output", tmp_path / "out", "--resume")


def test_names_that_would_change_a_terminal_are_printed_as_letters(run_demo, tmp_path: Path, capsys):
    """In lines about images, in the last one and in errors."""
    folder = tmp_path / "\x1b[31mred\nline"
    folder.mkdir()
    photo().save(folder / "\x1b]0;title\x07.png")
    assert run_demo("--input", folder, "--output", folder / "out") == 0
    printed = capsys.readouterr()
    assert r"\x1b]0;title\x07.png: \x1b]0;title\x07" in printed.out and r"\x1b[31mred\nline/out: see" in printed.out
    assert not {"\x1b", "\x07"} & set(printed.out)
    with pytest.raises(UserError) as error:
        run_demo("--input", folder, "--output", folder / "out")
    assert str(error.value).isprintable() and r"\x1b[31mred\nline" in str(error.value)


def test_the_warning_about_missing_boxes_is_given_once(run_demo, pictures: Path, tmp_path: Path, capsys):
    run_demo("--input", pictures, "--output", tmp_path / "out", "--finder", "none")
    assert capsys.readouterr().out.count("have no box") == 1


def test_without_the_finders_files_images_are_used_whole_and_one_line_says_so(run_demo, pictures: Path, tmp_path: Path,
                                                                              capsys, monkeypatch):
    monkeypatch.setattr("common.predict.finder.HandFinder.from_files.__func__.__defaults__", (tmp_path / "none", 1))
    assert run_demo("--input", pictures, "--output", tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert out.count("There is no hand finder") == 1 and "python tool/fetch_finder.py" in out
    assert out.count("have no box") == 1


def test_an_exchanged_finder_file_is_refused_by_name(run_demo, pictures: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "palm_detection_full.tflite").write_bytes(b"another network")
    monkeypatch.setattr("common.predict.finder.HandFinder.from_files.__func__.__defaults__", (tmp_path, 1))
    with pytest.raises(UserError, match="palm_detection_full.tflite is damaged or another file.*fetch_finder"):
        run_demo("--input", pictures, "--output", tmp_path / "out")


def test_names_of_boxes_without_a_picture_are_told(run_demo, pictures: Path, tmp_path: Path, capsys):
    names = ["wide.jpg", *(f"{number}.jpg" for number in range(7))]
    (tmp_path / "boxes.json").write_text(json.dumps(dict.fromkeys(names, [10, 10, 50, 40])))
    assert run_demo("--input", pictures, "--output", tmp_path / "out", "--boxes", tmp_path / "boxes.json") == 0
    assert f"7 names in {tmp_path / 'boxes.json'} are no images in {pictures}: 0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg, …." \
        in capsys.readouterr().out


def test_an_output_that_is_a_file_is_an_error(run_demo, pictures: Path, tmp_path: Path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(UserError, match="cannot be made a folder"):
        run_demo("--input", pictures, "--output", tmp_path / "out")


def test_a_model_of_another_shape_is_refused(run_demo, pictures: Path, tmp_path: Path):
    with pytest.raises(UserError, match="model.channels 16 → 32"):
        run_demo("--input", pictures, "--output", tmp_path / "out", "--set", "model.channels=32")
