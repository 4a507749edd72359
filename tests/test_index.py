"""The index of annotations: when it is built, when it is believed, and that many processes can share it."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from fixtures_interhand import CAMERAS, NUM_BOTH_MESHES, STEPS

from common.errors import UserError
from data.index import Index, open_index
from data.InterHand26M.annotations import open_annotations
from data.InterHand26M.layout import find_layout
from data.InterHand26M.reader import InterHand26M

ROOT = Path(__file__).resolve().parent.parent
DATA = "annotations/train/InterHand2.6M_train_data.json"


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "numbers.json"
    path.write_text("[1, 2, 3]")
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LGNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Builder:
    """Builds the column `number` and counts how often it was asked to."""

    def __init__(self, *sources: Path, version: int = 1):
        self.sources, self.version, self.count = list(sources), version, 0

    def __call__(self, read):
        self.count += 1
        return {"number": np.concatenate([json.loads(read(source)) for source in self.sources])}

    def open(self, **options) -> Index:
        return open_index("numbers", self.version, self.sources, self, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rewrite(path: Path, text: str, *, same_time: bool = False) -> None:
    time_before = path.stat().st_mtime_ns
    path.write_text(text)
    moment = time_before if same_time else time_before + 10**9
    os.utime(path, ns=(moment, moment))


# ---------------------------------------------------------------- built once

def test_it_is_built_once_and_opened_afterwards(source):
    builder = Builder(source)
    for _ in range(3):
        assert builder.open()["number"].tolist() == [1, 2, 3]
    assert builder.count == 1


def test_building_twice_gives_the_same_bytes(source):
    builder = Builder(source)
    folder = builder.open().folder
    before = contents(folder)
    assert builder.open(rebuild=True).folder == folder and contents(folder) == before and builder.count == 2


def test_columns_are_mapped_and_cannot_be_changed(source):
    column = Builder(source).open()["number"]
    assert isinstance(column.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        column[0] = 5


def test_a_file_with_a_new_time_and_the_old_content_is_believed_and_hashed_once_only(source):
    builder = Builder(source)
    builder.open()
    rewrite(source, "[1, 2, 3]")
    builder.open()
    pointer = source.parent / "index" / "numbers.json"
    assert builder.count == 1
    assert json.loads(pointer.read_text())["sources"]["numbers.json"]["mtime_ns"] == source.stat().st_mtime_ns


def test_neither_size_nor_time_changed_nothing_is_read(source):
    """The fast path, and what it cannot see: an opening does not read a gigabyte."""
    builder = Builder(source)
    builder.open()
    rewrite(source, "[4, 5, 6]", same_time=True)
    assert builder.open()["number"].tolist() == [1, 2, 3]
    assert builder.open(rebuild=True)["number"].tolist() == [4, 5, 6]


@pytest.mark.parametrize("text", ["[4, 5, 6]", "[1, 2, 3, 4]"], ids=["same size", "another size"])
def test_other_content_is_indexed_anew_and_the_old_index_is_removed(text: str, source):
    builder = Builder(source)
    old = builder.open()
    rewrite(source, text)
    new = builder.open()
    assert new["number"].tolist() == json.loads(text) and old["number"].tolist() == [1, 2, 3]
    assert not old.folder.exists() and new.folder.exists()


def test_another_version_and_other_sources_are_indexed_anew(source):
    Builder(source).open()
    more = source.with_name("more.json")
    more.write_text("[7]")
    assert Builder(source, version=2).open()["number"].tolist() == [1, 2, 3]
    assert Builder(source, more, version=2).open()["number"].tolist() == [1, 2, 3, 7]


def _truncate_column(home: Path) -> None:
    column = next(home.glob("numbers.*/number.npy"))
    column.write_bytes(column.read_bytes()[:-4])


def _empty_pointer(home: Path) -> None:
    (home / "numbers.json").write_text("")


@pytest.mark.parametrize("damage", [
    _truncate_column, _empty_pointer, lambda home: (home / "numbers.json").write_text("[3]"),
    lambda home: next(home.glob("numbers.*/number.npy")).unlink(), lambda home: (home / "numbers.json").unlink(),
    lambda home: shutil.rmtree(next(home.glob("numbers.*/"))),
    lambda home: next(home.glob("numbers.*/columns.json")).write_text('{"number"'),
])
def test_a_damaged_index_is_built_again(damage, source):
    builder = Builder(source)
    damage(builder.open().folder.parent)
    assert builder.open()["number"].tolist() == [1, 2, 3] and builder.count == 2


def test_a_source_that_vanishes_is_named(source):
    builder = Builder(source)
    builder.open()
    source.unlink()
    with pytest.raises(UserError, match=f"{source} cannot be read"):
        builder.open()


# ---------------------------------------------------------------- where it is put

def _forbid(folder: Path) -> None:
    """Nobody can make a folder there; permissions would not stop an administrator."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("")


def test_where_the_folder_cannot_be_written_it_goes_to_the_named_cache(source, cache):
    _forbid(source.parent / "index")
    builder = Builder(source)
    assert builder.open().folder.is_relative_to(cache)
    builder.open()
    assert builder.count == 1


def test_two_sets_of_the_same_name_do_not_meet_in_the_cache(tmp_path):
    builders = []
    for value in (1, 2):
        path = tmp_path / str(value) / "numbers.json"
        _forbid(path.parent / "index")
        path.write_text(f"[{value}]")
        builders.append(Builder(path))
    assert [builders[number].open()["number"].tolist() for number in (0, 1, 0, 1)] == [[1], [2], [1], [2]]
    assert [builder.count for builder in builders] == [1, 1]


def test_no_place_at_all_lists_what_was_tried_and_the_variable(source, cache):
    _forbid(source.parent / "index")
    _forbid(cache)
    with pytest.raises(UserError, match="LGNET_CACHE=FOLDER") as caught:
        Builder(source).open()
    assert str(source.parent / "index") in str(caught.value) and str(cache) in str(caught.value)


# ---------------------------------------------------------------- several processes

def start(folder: Path, seconds: float) -> int:
    """A process that opens the index of numbers.json and, if it has to build it, takes its time: its number."""
    def build(read):
        read(folder / "numbers.json")
        (folder / f"building-{os.getpid()}").touch()
        time.sleep(seconds)
        return {"number": np.arange(10_000)}

    child = os.fork()
    if child == 0:
        try:
            index = open_index("numbers", 1, [folder / "numbers.json"], build)
            os._exit(0 if int(index["number"].sum()) == 10_000 * 9_999 // 2 else 1)
        except BaseException:
            os._exit(2)
    return child


def test_of_processes_that_start_together_one_builds_and_all_read(source):
    processes = [start(source.parent, 0.2) for _ in range(3)]
    assert [os.waitpid(process, 0)[1] for process in processes] == [0] * 3
    assert len(list(source.parent.glob("building-*"))) == 1


def test_a_process_killed_while_building_leaves_nothing_that_is_believed(source):
    process = start(source.parent, 60)
    deadline = time.monotonic() + 30
    while not list(source.parent.glob("building-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(process, 0)[1])
    assert Builder(source).open()["number"].tolist() == [1, 2, 3]
    assert not list((source.parent / "index").glob("*unfinished*"))


def test_a_process_killed_while_writing_leaves_nothing_that_is_believed(source):
    (source.parent / "index" / "numbers.unfinished").mkdir(parents=True)
    (source.parent / "index" / "numbers.unfinished" / "number.npy").write_bytes(b"half")
    assert Builder(source).open()["number"].tolist() == [1, 2, 3]
    assert not list((source.parent / "index").glob("*unfinished*"))


# ---------------------------------------------------------------- InterHand2.6M

def test_an_opened_index_is_not_read_from_the_annotations(copy, hand_model):
    """The file is overwritten without a trace: the records come from the index, all the same."""
    before = InterHand26M(copy, "train", hand_model, "all")
    size = (copy / DATA).stat().st_size
    rewrite(copy / DATA, " " * size, same_time=True)
    after = InterHand26M(copy, "train", hand_model, "all")
    assert len(after) == len(before) > 0
    for index in range(len(before)):
        assert before.describe(index) == after.describe(index)
        np.testing.assert_array_equal(before.read(index).vertices_cam, after.read(index).vertices_cam)


def test_meshes_that_are_added_later_are_seen(copy, hand_model):
    fits = copy / DATA.replace("_data", "_MANO_NeuralAnnot")
    fits.rename(copy / "aside.json")
    assert not InterHand26M(copy, "train", hand_model, "all").read(0).mano_valid.any()
    (copy / "aside.json").rename(fits)
    assert len(InterHand26M(copy, "train", hand_model, "ih_hm")) == NUM_BOTH_MESHES


def test_an_open_reader_is_not_disturbed_when_the_set_changes(copy, hand_model):
    reader = InterHand26M(copy, "train", hand_model, "all")
    before = reader.read(2)
    content = json.loads((copy / DATA).read_text())
    content["annotations"] = content["annotations"][3:]
    rewrite(copy / DATA, json.dumps(content))
    assert len(InterHand26M(copy, "train", hand_model, "all")) < len(reader)
    np.testing.assert_array_equal(reader.read(2).vertices_cam, before.vertices_cam)


def test_the_annotations_travel_to_loader_processes_as_a_path(copy, hand_model):
    annotations = open_annotations(find_layout(copy, "train"))
    data = pickle.dumps(annotations)
    again = pickle.loads(data)
    assert len(data) < 1000
    for ours, theirs in zip((*annotations.samples, *annotations.frames), (*again.samples, *again.frames), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_reader_that_was_sent_to_another_process_reads_the_same(copy, hand_model):
    reader = InterHand26M(copy, "train", hand_model, "all")
    again = pickle.loads(pickle.dumps(reader))
    assert [again.describe(index) for index in range(len(again))] == \
        [reader.describe(index) for index in range(len(reader))]
    np.testing.assert_array_equal(again.read(4).vertices_cam, reader.read(4).vertices_cam)


# ---------------------------------------------------------------- tool/build_index.py

@pytest.fixture
def build(run):
    return partial(run, "tool/build_index.py")


def _blacken(root: Path, camera: str) -> int:
    pictures = list((root / "images").rglob(f"cam{camera}/*.jpg"))
    for path in pictures:
        cv2.imwrite(str(path), np.full_like(cv2.imread(str(path)), 4))
    return len(pictures)


def test_the_tool_builds_counts_and_measures_dark_pictures(copy, hand_model, build):
    _blacken(copy, "400012")
    code, text = build(copy, "--split", "train")
    assert code == 0 and f"{len(STEPS) * len(CAMERAS)} annotations" in text
    assert f"ih_hm: {NUM_BOTH_MESHES} frames (papers: 366358)" in text
    assert f"the brightness of {NUM_BOTH_MESHES} of them is not known" in text

    code, text = build(copy, "--dark", "--workers", 1)
    kept = NUM_BOTH_MESHES * 2 // 3
    assert code == 0 and f"ih_hm: {kept} frames" in text and f"{NUM_BOTH_MESHES - kept} dark" in text
    reader = InterHand26M(copy, "train", hand_model)
    assert {reader.describe(index)["camera"] for index in range(kept)} == {"400026", "410028"}
    assert len(reader) == kept and "brightness" not in reader.summary


def test_pictures_that_cannot_be_read_are_named_and_measured_when_they_can(copy, build):
    picture = next((copy / "images").rglob("Capture3/0000_fixture/cam400012/image100.jpg"))
    content = picture.read_bytes()
    picture.unlink()
    code, text = build(copy, "--dark", "--workers", 1)
    assert code == 4 and str(picture) in text and "the brightness of 1 of them is not known" in text
    picture.write_bytes(content)
    code, text = build(copy, "--dark", "--workers", 1)
    assert code == 0 and "not known" not in text and "1/1" in text


def test_the_tool_says_what_it_looked_for(tmp_path, build):
    code, text = build(tmp_path / "nowhere")
    assert code == 2 and "Tried:" in text and "Traceback" not in text


# ---------------------------------------------------------------- size

@pytest.mark.slow
def test_the_benchmark_writes_its_figures_and_they_hold_for_a_small_set(tmp_path):
    figures = tmp_path / "figures.json"
    done = subprocess.run([sys.executable, "tool/dev/bench.py", "data", "--size", "20000", "--plain_size", "5000",
                           "--folder", str(tmp_path), "--json", str(figures)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text())
    assert list(found) == ["build_s", "build_peak_gb", "open_s", "private_mb", "worker_growth_mb", "per_sample_ms",
                           "plain_s", "plain_peak_gb"]
    assert found["open_s"] < 1 and found["private_mb"] < 50 and found["worker_growth_mb"] < 50
    assert found["per_sample_ms"]["20000"] < 2 * found["per_sample_ms"]["1000"]
    assert "times faster" in done.stdout and not list(tmp_path.glob("tmp*"))
