"""Every fault of a sample has a name, and what is merely unusual has none."""

import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from test_augment import HEIGHT, WIDTH, make_record

from common.errors import UserError
from common.hands import MIDDLE_MCP, WRIST, Hand
from common.images import BadImage, ImageFault, is_black, read_rgb
from data.checks import BadSample, Reason, check_record
from data.dataset import mean_joints, read_frame, read_record
from data.schema import Record


@pytest.fixture
def record(hand_model) -> Record:
    return make_record(hand_model)


def changed(record: Record, **changes) -> Record:
    """The record with arrays changed by functions that work on a copy in place."""
    arrays = {}
    for name, change in changes.items():
        arrays[name] = getattr(record, name).copy()
        change(arrays[name])
    return record._replace(**arrays)


def fill(value: object, *where: object) -> Callable[[np.ndarray], None]:
    return lambda array: array.__setitem__(where or ..., value)


def moved(record: Record, offset: tuple[float, ...]) -> Record:
    """Both hands elsewhere in the camera frame; the box stays."""
    names = ("vertices_cam", "joints_cam", "joints_annotated_cam")
    return record._replace(**{name: getattr(record, name) + offset for name in names})


def scaled(record: Record, factor: float, *names: str) -> Record:
    return record._replace(**{name: getattr(record, name) * factor for name in names})


ALL_POINTS = ("vertices_cam", "joints_cam", "joints_annotated_cam")
FAULTS: dict[str, tuple[Reason, Callable[[Record], Record]]] = {
    "a joint is NaN": (Reason.NOT_FINITE, lambda r: changed(r, joints_cam=fill(np.nan, 0, 5, 1))),
    "a vertex is infinite": (Reason.NOT_FINITE, lambda r: changed(r, vertices_cam=fill(np.inf, 1, 7))),
    "the shape is NaN": (Reason.NOT_FINITE, lambda r: changed(r, shape=fill(np.nan, 1))),
    "a NaN is masked out": (Reason.NOT_FINITE, lambda r: changed(
        r, joints_annotated_cam=fill(np.nan, 0, 3), joints_annotated_valid=fill(False, 0, 3))),
    "nothing is annotated": (Reason.NO_HAND, lambda r: changed(
        r, joints_valid=fill(False), vertices_valid=fill(False))),
    "the focal length is 0": (Reason.CAMERA, lambda r: changed(r, camera=fill(0.0, 0, 0))),
    "the focal length is negative": (Reason.CAMERA, lambda r: changed(r, camera=fill(-1260.0, 1, 1))),
    "the camera is NaN": (Reason.CAMERA, lambda r: changed(r, camera=fill(np.nan, 0, 2))),
    "the camera is transposed": (Reason.CAMERA, lambda r: r._replace(camera=r.camera.T.copy())),
    "a rotation is scaled": (Reason.ROTATION, lambda r: scaled(r, 1.01, "rotations")),
    "a rotation mirrors": (Reason.ROTATION, lambda r: scaled(r, -1.0, "rotations")),
    "millimetres": (Reason.UNIT, lambda r: scaled(r, 1000, *ALL_POINTS)),
    "metres taken for millimetres": (Reason.UNIT, lambda r: scaled(r, 0.001, *ALL_POINTS)),
    "annotated joints in millimetres": (Reason.UNIT, lambda r: scaled(r, 1000, "joints_annotated_cam")),
    "a hand shrunk to a point": (Reason.UNIT, lambda r: changed(
        r, joints_cam=lambda joints: fill(joints[0, WRIST], 0)(joints))),
    "hands behind the camera": (Reason.BEHIND_CAMERA, lambda r: moved(r, (0, 0, -2.2))),
    "a fingertip behind the camera": (Reason.BEHIND_CAMERA, lambda r: changed(
        r, vertices_cam=fill(-0.1, 0, 745, 2))),
    "the box is NaN": (Reason.BOX, lambda r: changed(r, box_px=fill(np.nan, 0, 0))),
    "the box has no area": (Reason.BOX, lambda r: changed(r, box_px=fill(100.0))),
    "the box is inside out": (Reason.BOX, lambda r: r._replace(box_px=r.box_px[::-1].copy())),
    "the box is upside down": (Reason.BOX, lambda r: changed(r, box_px=fill([[50.0, 400], [250, 100]]))),
    "the box is enormous": (Reason.BOX, lambda r: changed(r, box_px=fill((9000.0, 9000.0), 1))),
    "hands beside the picture": (Reason.OUT_OF_FRAME, lambda r: moved(r, (1.0, 0, 0))),
    "hands above the picture": (Reason.OUT_OF_FRAME, lambda r: moved(r, (0, -1.0, 0))),
    "the box lies beside the picture": (Reason.OUT_OF_FRAME, lambda r: changed(
        r, box_px=fill([[400.0, 100], [500, 200]]))),
    "the box lies beside the hands": (Reason.BOX_ELSEWHERE, lambda r: changed(
        r, box_px=fill([[0.0, 500], [9, 511]]))),
    "the mesh is of another frame": (Reason.MESH_ELSEWHERE, lambda r: changed(
        r, joints_annotated_cam=lambda joints: joints.__iadd__([0.0, 0.0, 0.15]))),
}


@pytest.mark.parametrize("name", FAULTS)
def test_labels_that_cannot_be_right_are_named(record, name: str):
    reason, spoil = FAULTS[name]
    spoiled = spoil(record)
    with np.errstate(all="raise"), pytest.raises(BadSample) as caught:
        check_record(spoiled)
    assert caught.value.reason is reason and caught.value.detail


USUAL: dict[str, Callable[[Record], Record]] = {
    "as it is": lambda r: r,
    "half outside the picture": lambda r: moved(r, (0.09, 0, 0)),
    "one hand outside the picture": lambda r: changed(r, joints_cam=fill(r.joints_cam[0] + [0.5, 0, 0], 0),
                                                      joints_annotated_valid=fill(False, 0)),
    "the right hand only": lambda r: changed(
        r, joints_valid=fill(False, 1), vertices_valid=fill(False, 1), mano_valid=fill(False, 1),
        joints_annotated_valid=fill(False, 1), joints_cam=fill(0.0, 1), vertices_cam=fill(0.0, 1),
        rotations=fill(0.0, 1)),
    "joints without meshes": lambda r: changed(r, vertices_valid=fill(False), mano_valid=fill(False),
                                               vertices_cam=fill(0.0)),
    "meshes without joints": lambda r: changed(r, joints_valid=fill(False), joints_annotated_valid=fill(False)),
    "the poorest published fit": lambda r: changed(
        r, joints_annotated_cam=lambda joints: joints.__iadd__([0.0, 0.042, 0.0])),
    "a child's hand": lambda r: changed(scaled(r, 0.6, *ALL_POINTS)),
    "float32 rotations": lambda r: r._replace(rotations=r.rotations.astype(np.float32).astype(np.float64)),
    "the knuckle is not annotated": lambda r: changed(
        r, joints_valid=fill(False, 0, MIDDLE_MCP), joints_annotated_valid=fill(False, 0, MIDDLE_MCP),
        joints_cam=fill(0.0, 0, MIDDLE_MCP), joints_annotated_cam=fill(0.0, 0, MIDDLE_MCP)),
}


@pytest.mark.parametrize("name", USUAL)
@pytest.mark.parametrize("seed", range(3))
def test_labels_that_are_merely_unusual_are_no_fault(hand_model, name: str, seed: int):
    check_record(USUAL[name](make_record(hand_model, seed)))


def test_checking_changes_no_record(record):
    before = [np.copy(value) for value in record[2:]]
    check_record(record)
    for value, copy in zip(record[2:], before, strict=True):
        assert np.array_equal(value, copy)


def test_a_batch_carries_every_reason_and_none():
    codes = [reason.code for reason in Reason]
    assert 0 not in codes and len(set(codes)) == len(codes)
    assert [Reason.from_code(code) for code in codes] == list(Reason)


# ---------------------------------------------------------------- pictures

def picture(seed: int = 0, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (16, 12, 3), dtype=np.uint8)
    return Image.fromarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))


def save_bomb(path: Path) -> None:
    """A PNG of a few bytes whose header claims 50,000 × 50,000 pixels."""
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""))


def save_cut(path: Path, kind: str, keep: float, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    picture(0, *size).save(path, kind)
    data = path.read_bytes()
    path.write_bytes(data[:int(keep * len(data))])


def save_flat(path: Path, mean: float, noise: float, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    values = np.random.default_rng(0).normal(mean, noise, (*size[::-1], 3)).clip(0, 255).astype(np.uint8)
    Image.fromarray(values).save(path, "PNG")


BROKEN: dict[str, tuple[Reason, Callable[[Path], object]]] = {
    "nothing": (Reason.IMAGE_MISSING, lambda path: None),
    "folder": (Reason.IMAGE_MISSING, Path.mkdir),
    "pipe": (Reason.IMAGE_MISSING, os.mkfifo),
    "link to nothing": (Reason.IMAGE_MISSING, lambda path: path.symlink_to("nothing")),
    "link to itself": (Reason.IMAGE_MISSING, lambda path: path.symlink_to(path)),
    "empty": (Reason.IMAGE_DAMAGED, lambda path: path.write_bytes(b"")),
    "text": (Reason.IMAGE_DAMAGED, lambda path: path.write_text("not a picture")),
    "first bytes": (Reason.IMAGE_DAMAGED, lambda path: save_cut(path, "JPEG", 0.001)),
    "half a JPEG": (Reason.IMAGE_DAMAGED, lambda path: save_cut(path, "JPEG", 0.5)),
    "nearly a JPEG": (Reason.IMAGE_DAMAGED, lambda path: save_cut(path, "JPEG", 0.97)),
    "half a PNG": (Reason.IMAGE_DAMAGED, lambda path: save_cut(path, "PNG", 0.5)),
    "PostScript": (Reason.IMAGE_DAMAGED, lambda path: picture().save(path, "EPS")),
    "turned": (Reason.IMAGE_SIZE, lambda path: picture(width=HEIGHT, height=WIDTH).save(path, "JPEG")),
    "one pixel": (Reason.IMAGE_SIZE, lambda path: picture(width=1, height=1).save(path, "PNG")),
    "a bomb": (Reason.IMAGE_TOO_LARGE, save_bomb),
    "all black": (Reason.IMAGE_BLACK, lambda path: save_flat(path, 0, 0)),
    "black with noise": (Reason.IMAGE_BLACK, lambda path: save_flat(path, 3, 2)),
}


class OneFrame:
    """A reader of one record."""

    def __init__(self, record: Record):
        self.record = record

    def __len__(self) -> int:
        return 1

    def read(self, index: int) -> Record:
        return self.record


@pytest.mark.parametrize("name", BROKEN)
def test_a_picture_that_cannot_be_used_is_named(record, tmp_path, name: str):
    reason, save = BROKEN[name]
    save(tmp_path / "a.jpg")
    with pytest.raises(BadSample) as caught:
        read_frame(OneFrame(record._replace(image_path=tmp_path / "a.jpg")), 0)
    assert caught.value.reason is reason and caught.value.detail


def test_the_limit_on_pixels_does_not_depend_on_what_the_annotation_says(tmp_path):
    save_bomb(tmp_path / "a.png")
    Image.new("L", (40_000, 1)).save(tmp_path / "b.png")
    for name, size in (("a.png", (50_000, 50_000)), ("b.png", (40_000, 1))):
        with pytest.raises(BadImage) as caught:
            read_rgb(tmp_path / name, upright=False, size=size)
        assert caught.value.fault is ImageFault.TOO_LARGE


@pytest.mark.parametrize(("mode", "kind"), [
    ("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("I;16", "PNG"),
    ("P", "GIF"), ("RGB", "WEBP"), ("RGB", "BMP"), ("RGB", "TIFF"),
])
def test_pictures_of_every_mode_become_8_bit_rgb(record, tmp_path, mode: str, kind: str):
    colored = picture()
    grey = colored.convert("L")
    if mode == "I;16":
        stored, expected = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), grey.convert("RGB")
    else:
        stored = (colored if mode in ("RGB", "CMYK", "RGBA") else grey).convert(mode)
        expected = stored.convert("RGB")
    stored.save(tmp_path / "a", kind)
    _, image = read_frame(OneFrame(record._replace(image_path=tmp_path / "a")), 0)
    assert image.shape == (HEIGHT, WIDTH, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - np.asarray(expected)).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_tag_moves_no_pixel_of_a_dataset(record, tmp_path, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture().save(tmp_path / "a.png", exif=exif)
    _, image = read_frame(OneFrame(record._replace(image_path=tmp_path / "a.png")), 0)
    np.testing.assert_array_equal(image, np.asarray(picture()))


def test_pixels_are_those_that_opencv_decodes(record, tmp_path):
    picture(seed=4).save(tmp_path / "a.jpg", quality=90)
    _, image = read_frame(OneFrame(record._replace(image_path=tmp_path / "a.jpg")), 0)
    np.testing.assert_array_equal(image, cv2.imread(str(tmp_path / "a.jpg"))[..., ::-1])


def test_a_hand_lit_before_a_dark_wall_is_not_black():
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[200:280, 100:180] = 150
    assert image.mean() < 10 and not is_black(image)
    assert is_black(image // 30)


# ---------------------------------------------------------------- readers

class ManyFrames:
    """A reader of records, UserErrors among them."""

    def __init__(self, items: list[Record | UserError]):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index: int) -> Record:
        if isinstance(self.items[index], UserError):
            raise self.items[index]
        return self.items[index]


def test_labels_that_a_reader_refuses_are_a_fault_of_their_sample():
    with pytest.raises(BadSample, match="a.ply is damaged") as caught:
        read_record(ManyFrames([UserError("a.ply is damaged.")]), 0)
    assert caught.value.reason is Reason.LABELS_UNREADABLE


def test_mean_joints_leave_out_what_cannot_be_right(hand_model):
    good = [make_record(hand_model, seed) for seed in range(3)]
    bad = [changed(good[0], joints_cam=fill(np.nan, 0, 1)), scaled(good[1], 1000, *ALL_POINTS), UserError("damaged")]
    mixed = [*good, *bad]
    random.Random(0).shuffle(mixed)
    np.testing.assert_allclose(mean_joints(ManyFrames(mixed)), mean_joints(ManyFrames(good)), atol=1e-12)
    assert np.abs(mean_joints(ManyFrames(mixed))[Hand.LEFT, MIDDLE_MCP]).max() > 0.01


def test_every_fault_of_an_image_is_a_reason_to_reject_a_sample():
    assert {Reason(fault) for fault in ImageFault} == {reason for reason in Reason if reason.name.startswith("IMAGE_")
                                                       } - {Reason.IMAGE_BLACK}
