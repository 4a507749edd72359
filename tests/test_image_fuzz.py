"""Two hundred files that somebody might call pictures: each gets one line, none stops the others."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from tiny_snapshot import save_tiny_snapshot

from common.errors import EXIT_SOME_FAILED

ROOT = Path(__file__).resolve().parents[1]
NUM_FILES = 200
MAX_GROWTH_MB = 500


# ---------------------------------------------------------------- the files

def picture(seed: int, width: int = 90, height: int = 60) -> Image.Image:
    """A smooth random picture."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(cv2.resize(small, (width, height)))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG file whose header claims any size; it holds no pixels."""
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(encoded(picture(0), "JPEG"))
    place = data.index(b"\xff\xc0")                     # start of frame: length, precision, height, width
    data[place + 5:place + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def whole_pictures() -> dict[str, bytes]:
    """Everything that a viewer shows: it must be read."""
    files = {}
    for number, (mode, kind) in enumerate([
            ("CMYK", "jpeg"), ("L", "jpeg"), ("RGB", "jpeg"), ("1", "png"), ("L", "png"), ("LA", "png"), ("P", "png"),
            ("RGB", "png"), ("RGBA", "png"), ("I;16", "png"), ("P", "gif"), ("L", "gif"), ("RGB", "webp"),
            ("RGBA", "webp"), ("1", "bmp"), ("L", "bmp"), ("P", "bmp"), ("RGB", "bmp"), ("1", "tiff"), ("CMYK", "tiff"),
            ("I;16", "tiff"), ("L", "tiff"), ("RGB", "tiff"), ("RGBA", "tiff")]):
        image = picture(number).convert("L" if mode in ("I;16", "LA") else "RGB").convert(mode)
        if mode == "I;16":                              # of a full range: 255 of 65535 would be black
            image = Image.fromarray(np.asarray(image) * np.uint16(257))
        files[f"{mode.replace(';', '-')} {number}.{kind}"] = encoded(image, kind)
    _, deep = cv2.imencode(".png", np.random.default_rng(0).integers(0, 2**16, (60, 90, 3), dtype=np.uint16))
    files["16-bit colour.png"] = deep.tobytes()
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        files[f"turned {orientation}.jpg"] = encoded(picture(orientation), "JPEG", exif=exif)
    frames = [picture(seed) for seed in range(4)]
    for kind in ("gif", "webp", "png", "tiff"):
        files[f"animated.{kind}"] = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    for width, height in ((1, 2), (1, 10_000), (10_000, 1), (2, 3), (6000, 4000)):
        files[f"{width}x{height}.png"] = encoded(picture(0, width, height), "PNG", compress_level=1)
    files["a png.jpg"], files["A JPEG.PNG"] = encoded(picture(1), "PNG"), encoded(picture(2), "JPEG")
    names = ["with space.jpg", " lead.jpg", "höhe.jpg", "手.jpg", "שלום.jpg", "🙂.jpg", "new\nline.jpg", "tab\t.jpg",
             "quote'\".jpg", "%s{0}.jpg", "-n.jpg", "semi;colon&.jpg", "back\\slash.jpg", "#.jpg", "..jpg",
             "e\u0301.jpg", f"{'long' * 62}.jpg", f"{'長' * 83}.jpg", os.fsdecode(b"not \xff\xfe utf8.jpg"),
             "same.jpg", "same.jpeg", "same.png", "SAME.jpg", "same_jpg.jpg", "same_jpg_2.jpg", ".hidden.jpg"]
    return files | {name: encoded(picture(len(name)), "JPEG") for name in names}


def no_pictures() -> dict[str, bytes]:
    """What must be refused with a reason."""
    return {
        "empty.jpg": b"", "empty.png": b"", "empty.gif": b"", "empty.webp": b"", "empty.tif": b"", "empty.bmp": b"",
        "text.jpg": b"not a picture", "page.jpg": b"<!DOCTYPE html><html></html>", "svg.png": b"<svg/>",
        "json.jpg": b'{"a": 1}', "zip.jpg": b"PK\x03\x04" + bytes(200), "elf.png": b"\x7fELF" + bytes(200),
        "pdf.jpg": b"%PDF-1.4\n%%EOF", "nul.jpg": bytes(1000), "spaces.bmp": b" " * 1000,
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "bomb.png": png_header(50_000, 50_000), "bomb2.png": png_header(100_001, 1000),
        "long bomb.png": png_header(40_000, 1), "zero.png": png_header(0, 5),
        "most bytes.png": png_header(2**31 - 1, 2**31 - 1), "bomb.jpg": jpeg_claiming(65_500, 65_500),
        "bomb.gif": b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + bytes(20),
        "bomb.bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 100, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "no pixels.png": png_header(500, 500), "one colour.png": encoded(Image.new("RGB", (9, 9), "red"), "PNG"),
    }


def damaged_pictures(count: int) -> dict[str, bytes]:
    """Files cut short or with wrong bytes: an image or a reason, both are right."""
    rng, files = np.random.default_rng(0), {}
    kinds = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")
    for number in range(count):
        kind = kinds[number % len(kinds)]
        data = bytearray(encoded(picture(number), kind))
        if number % 4 == 0:
            data = data[:rng.integers(1, len(data))]
        else:
            for place in rng.integers(0, len(data) if number % 4 == 1 else min(64, len(data)), 6):
                data[place] = rng.integers(256)
        files[f"damaged {number}.{kind.lower()}"] = bytes(data)
    return files


def odd_entries(folder: Path) -> dict[str, bool]:
    """Entries that are no plain files, and whether they show a picture."""
    (folder / "folder.jpg").mkdir()
    (folder / "folder.png").mkdir()
    (folder / "folder.png" / "inside.png").write_bytes(encoded(picture(0), "PNG"))
    os.mkfifo(folder / "pipe.jpg")
    links = {"loop.jpg": "loop.jpg", "ring1.jpg": "ring2.jpg", "ring2.jpg": "ring1.jpg", "gone.jpg": "nothing",
             "to folder.jpg": "folder.jpg", "endless.jpg": "/dev/zero", "to picture.jpg": "same.jpg"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    return {name: name == "to picture.jpg" for name in ("folder.jpg", "folder.png", "pipe.jpg", *links)}


def write_files(folder: Path) -> dict[str, bool | None]:
    """Write exactly 200 entries; whether each must be read, must be refused, or may be either (None)."""
    good, bad, odd = whole_pictures(), no_pictures(), odd_entries(folder)
    damaged = damaged_pictures(NUM_FILES - len(good) - len(bad) - len(odd))
    for name, data in (good | bad | damaged).items():
        (folder / name).write_bytes(data)
    return dict.fromkeys(good, True) | dict.fromkeys(bad, False) | odd | dict.fromkeys(damaged)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, dict[str, bool | None]]:
    folder = tmp_path_factory.mktemp("any files")
    expected = write_files(folder)
    assert len(expected) == len(os.listdir(folder)) == NUM_FILES
    return folder, expected


# ---------------------------------------------------------------- reading them

READ_ALL = """
import resource, sys
from pathlib import Path
from data.checks import BadSample
from data.frames.folder import ImageFolder
from common.images import crop_image
from common.geometry import SquareBox, crop_affine
import numpy as np

folder = ImageFolder(Path(sys.argv[1]), {})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for index, picture in enumerate(folder.images):
    try:
        photo = folder.read(index)
        assert photo.image.ndim == 3 and photo.image.dtype == "uint8"
        crop = crop_image(photo.image, crop_affine(SquareBox(np.array([3.0, 4.0]), 64.0), 64), 64)
        print(f"{picture.label}: read {crop.shape}")
    except BadSample as bad:
        print(f"{picture.label}: not used: {bad.detail}")
print("growth", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def label_of(name: str) -> str:
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)


@pytest.mark.scorecard("malformed images")
def test_two_hundred_files_give_two_hundred_lines_and_little_memory(files, record_property):
    folder, expected = files
    done = subprocess.run([sys.executable, "-c", READ_ALL, str(folder)], capture_output=True, text=True, cwd=ROOT,
                          timeout=120)
    assert done.returncode == 0, done.stderr
    *lines, growth = done.stdout.splitlines()
    results = dict(line.split(": ", maxsplit=1) for line in lines)
    assert len(lines) == len(results) == NUM_FILES
    wrong = {name: results[label_of(name)] for name, is_good in expected.items()
             if is_good is not None and results[label_of(name)].startswith("read") != is_good}
    assert not wrong
    assert results["postscript.jpg"] == "not used: it is not an image"      # not handed to Ghostscript
    assert all(len(result) > len("not used: ") for result in results.values())
    assert float(growth.split()[1]) < MAX_GROWTH_MB
    record_property("cases", len(results))


# ---------------------------------------------------------------- the whole demo

@pytest.mark.slow
def test_the_demo_reports_on_each_of_two_hundred_files(files, hand_model, tmp_path):
    folder, expected = files
    save_tiny_snapshot(tmp_path / "snapshot_0.pth.tar", hand_model)
    command = [sys.executable, str(ROOT / "main" / "demo.py"), "--gpu", "cpu", "--input", str(folder), "--checkpoint",
               str(tmp_path / "snapshot_0.pth.tar"), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == EXIT_SOME_FAILED and "Traceback" not in done.stderr

    labels = tuple(f"{label_of(name)}: " for name in expected)
    used = [line for line in done.stdout.splitlines() if line.startswith(labels)]
    refused = [line for line in done.stderr.splitlines() if ": not used: " in line]
    assert len(used) + len(refused) == NUM_FILES
    assert len(list((tmp_path / "out" / "panel").iterdir())) == len(used) >= sum(map(bool, expected.values()))
