"""Prediction files: what is written is read, however it was written, and what is wrong is said in one sentence."""

import io
import json
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures_interhand import write_interhand

from common.errors import UserError
from common.exchange.predictions import (
    ROW_SHAPES,
    Origin,
    PredictionFile,
    PredictionWriter,
    join_parts,
    write_predictions,
)
from common.mano.model import HandModel
from common.types import HandPrediction, ManoParams
from data import build_reader

NAMES = ["Capture0/a/cam1/image1.jpg", "Capture0/a/cam1/image2.jpg", "Capture0/ö/cam2/image1.jpg"]


@pytest.fixture
def origin(hand_model: HandModel) -> Origin:
    return Origin("InterHand26M", "test", hand_model.identity)


def random_hands(count: int, seed: int = 0) -> HandPrediction:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(count, *shape, generator=generator)

    rotations = torch.linalg.qr(draw(2, 16, 3, 3)).Q
    rotations = rotations * torch.linalg.det(rotations)[..., None, None]
    return HandPrediction(draw(2, 778, 3), draw(2, 21, 3), draw(3), ManoParams(rotations, draw(2, 10)), draw(2, 3))


def rows_of(hands: HandPrediction, rows: list[int]) -> HandPrediction:
    return HandPrediction(*(ManoParams(*(part[rows] for part in value)) if isinstance(value, ManoParams) else
                            value[rows] for value in hands))


def contents(**changes) -> dict:
    """The smallest useful file, as any program would write it."""
    values = {"version": 1, "dataset": "InterHand26M", "split": "test", "hand_model": "builtin", "image": NAMES,
              "joints": np.random.default_rng(0).normal(0, 0.05, (3, 2, 21, 3))} | changes
    return {name: value for name, value in values.items() if value is not None}


# ---------------------------------------------------------------- writing

@pytest.mark.parametrize("parts", [1, 2, 3])
def test_what_processes_add_in_any_order_is_one_file_in_the_reader_s_order(tmp_path, origin, parts):
    """Seven samples for two or three processes: the sampler repeats some, and the file holds them once."""
    hands, path = random_hands(7), tmp_path / "p.npz"
    padded = np.resize(np.arange(7), -(-7 // parts) * parts)
    for part in range(parts):
        writer = PredictionWriter(path, part)
        mine = padded[part::parts][::-1].tolist()
        for rows in (mine[:1], mine[1:]):
            writer.add(torch.tensor(rows), rows_of(hands, rows))
        writer.close()
    assert join_parts(path, parts, origin, "image{}.jpg".format) == 7

    file = PredictionFile(path)
    found = file.take(slice(None))
    assert file.origin == origin and file.image.tolist() == [f"image{index}.jpg" for index in range(7)]
    assert found.predicted.all() and found.right_wrist is None
    np.testing.assert_array_equal(found.vertices, hands.vertices)
    np.testing.assert_array_equal(found.joints, hands.joints)
    np.testing.assert_array_equal(found.relative, hands.relative)
    np.testing.assert_array_equal(found.rotations, hands.mano.rotations)
    np.testing.assert_array_equal(found.shape, hands.mano.shape)
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz"]


def test_a_written_file_is_plain_numpy(tmp_path, origin):
    writer = PredictionWriter(tmp_path / "p.npz")
    writer.add(torch.tensor([4, 2]), random_hands(2))
    writer.close()
    join_parts(tmp_path / "p.npz", 1, origin, str)
    with np.load(tmp_path / "p.npz", allow_pickle=False) as file:
        assert file["version"] == 1 and file["image"].tolist() == ["2", "4"] and file["index"].tolist() == [2, 4]
        assert file["dataset"] == "InterHand26M" and file["hand_model"] == "builtin"
        assert file["vertices"].shape == (2, 2, 778, 3) and file["vertices"].dtype == np.float32


def test_a_hand_that_is_not_present_is_not_predicted(tmp_path, origin):
    writer = PredictionWriter(tmp_path / "p.npz")
    writer.add(torch.tensor([4, 2]), random_hands(2), torch.tensor([[0.9, 0.2], [0.4, 0.5]]))
    writer.add(torch.tensor([3]), random_hands(1))
    writer.close()
    join_parts(tmp_path / "p.npz", 1, origin, str)
    assert PredictionFile(tmp_path / "p.npz").take(slice(None)).predicted.tolist() == [
        [False, True], [True, True], [True, False]]


def test_a_killed_run_leaves_the_old_file_and_the_next_run_its_own(tmp_path, origin):
    path = tmp_path / "p.npz"
    path.write_bytes(b"old")
    for part in range(3):       # never closed, never joined
        PredictionWriter(path, part).add(torch.arange(5), random_hands(5))
    assert path.read_bytes() == b"old"

    writer = PredictionWriter(path)
    writer.add(torch.arange(2), random_hands(2, seed=1))
    writer.close()
    join_parts(path, 1, origin, str)
    found = PredictionFile(path).take(slice(None))
    np.testing.assert_array_equal(found.joints, random_hands(2, seed=1).joints)
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz"]


def test_writing_where_nothing_can_be_written_is_told_before_the_model_runs(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "p.npz", tmp_path):
        with pytest.raises(UserError, match=str(path)):
            PredictionWriter(path)


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path, origin):
    """2000 samples have 37 MB of meshes; writing, joining and reading them row by row needs a fraction of it."""
    hands = random_hands(50)
    tracemalloc.start()
    writer = PredictionWriter(tmp_path / "p.npz")
    for start in range(0, 2000, 50):
        writer.add(torch.arange(start, start + 50), hands)
    writer.close()
    join_parts(tmp_path / "p.npz", 1, origin, str)
    file = PredictionFile(tmp_path / "p.npz")
    for start in range(0, 2000, 50):
        np.testing.assert_array_equal(file.take(np.arange(start, start + 50)).vertices, hands.vertices)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 15e6


# ---------------------------------------------------------------- reading what others wrote

@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_way_in_which_numpy_stores_an_array_is_read(tmp_path, save, kind, order):
    joints = contents()["joints"].astype(kind)
    save(tmp_path / "p.npz", **contents(joints=np.asarray(joints, order=order)))
    file = PredictionFile(tmp_path / "p.npz")
    np.testing.assert_array_equal(file.take(slice(None)).joints, joints)
    np.testing.assert_array_equal(file.take(np.array([2, 0])).joints, joints[[2, 0]])
    assert file.take(np.array([2, 0])).image.tolist() == [NAMES[2], NAMES[0]]


def test_names_may_be_bytes_and_what_is_left_out_has_a_meaning(tmp_path):
    np.savez(tmp_path / "p.npz", **contents(image=np.array([name.encode() for name in NAMES])))
    file = PredictionFile(tmp_path / "p.npz")
    assert file.image.tolist() == NAMES and file.predicted.all() and file.origin.hand_model["sha256"] == ""
    assert file.take(slice(None)).vertices is None


def test_a_row_that_is_not_finite_is_a_failure_and_not_an_error(tmp_path):
    joints = contents()["joints"]
    joints[1] = np.nan
    np.savez(tmp_path / "p.npz", **contents(joints=joints))
    assert np.isnan(PredictionFile(tmp_path / "p.npz").take(slice(None)).joints[1]).all()
    np.savez(tmp_path / "p.npz", **contents(joints=np.full((3, 2, 21, 3), np.nan)))
    assert len(PredictionFile(tmp_path / "p.npz").take(slice(None)).joints) == 3
    rotations = np.tile(np.eye(3), (3, 2, 16, 1, 1))
    rotations[1, 0, 7] = np.nan
    np.savez(tmp_path / "p.npz", **contents(rotations=rotations, shape=np.zeros((3, 2, 10))))
    assert np.isnan(PredictionFile(tmp_path / "p.npz").take(slice(None)).rotations).sum() == 9


def test_anything_may_stand_where_a_hand_is_not_predicted(tmp_path):
    predicted = np.array([[True, False], [False, True], [False, False]])
    rotations, joints = np.tile(np.eye(3), (3, 2, 16, 1, 1)), contents()["joints"]
    rotations[~predicted], joints[~predicted] = 7, 7
    values = contents(rotations=rotations, shape=np.zeros((3, 2, 10)), joints=None)
    np.savez(tmp_path / "p.npz", **values)
    with pytest.raises(UserError, match="rotations of .*image1.jpg' are not rotation matrices"):
        PredictionFile(tmp_path / "p.npz").take(slice(None))
    values["joints"] = joints
    np.savez(tmp_path / "p.npz", **values, predicted=predicted)
    assert PredictionFile(tmp_path / "p.npz").take(slice(None)).predicted.tolist() == predicted.tolist()


@pytest.mark.parametrize(("changes", "message"), [
    ({"version": 2}, "version is 2. This program reads version 1"),
    ({"version": "one"}, "version has the type"),
    ({"version": None}, "version missing"),
    ({"image": None}, "image missing"),
    ({"image": [*NAMES[:2], NAMES[0]]}, "1 samples occur more than once, the first is 'Capture0/a/cam1/image1.jpg'"),
    ({"image": [1, 2, 3]}, "image has the type int64"),
    ({"image": np.zeros((0,), dtype=str)}, "at least one"),
    ({"dataset": ["a", "b"]}, "dataset has the type"),
    ({"joints": None}, "holds no hands"),
    ({"joints": None, "shape": np.zeros((3, 2, 10))}, "holds no hands"),
    ({"joints": np.zeros((3, 2, 21))}, "joints has the type float64 and the shape (3, 2, 21); the shape must be (3, 2"),
    ({"joints": np.zeros((4, 2, 21, 3))}, "the shape must be (3, 2, 21, 3)"),
    ({"joints": np.zeros((3, 2, 21, 3), dtype=int)}, "joints has the type int64"),
    ({"predicted": np.ones((3, 2))}, "predicted has the type float64"),
    ({"vertice": np.zeros((3, 2, 778, 3))}, "there is nothing called 'vertice'. Did you mean 'vertices'?"),
    ({"relative": np.zeros((3, 2))}, "the shape must be (3, 3)"),
])
def test_a_wrong_file_is_refused_with_the_member_and_the_reason(tmp_path, changes, message):
    np.savez(tmp_path / "p.npz", **contents(**changes))
    with pytest.raises(UserError) as caught:
        PredictionFile(tmp_path / "p.npz")
    assert str(tmp_path / "p.npz") in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize("mistake", ["millimetres", "camera frame"])
def test_another_unit_or_frame_is_noticed(tmp_path, mistake):
    joints = contents()["joints"]
    np.savez(tmp_path / "p.npz", **contents(joints=joints * 1000 if mistake == "millimetres" else joints + [0, 0, 1]))
    with pytest.raises(UserError, match="joints lie .* from the wrist. They must be metres relative to the own wrist"):
        PredictionFile(tmp_path / "p.npz").take(slice(None))


def test_predictions_of_another_hand_model_are_refused(tmp_path, hand_model):
    for changes, message in (({"hand_model": "mano"}, "hand_model is 'mano'"),
                             ({"hand_model_sha256": "0" * 64}, "sha256 000000000000")):
        np.savez(tmp_path / "p.npz", **contents(**changes))
        with pytest.raises(UserError, match=message):
            PredictionFile(tmp_path / "p.npz").check_hand_model(hand_model)
    np.savez(tmp_path / "p.npz", **contents())
    PredictionFile(tmp_path / "p.npz").check_hand_model(hand_model)


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("bomb_went_off"),)


def test_an_object_array_is_refused_and_nothing_in_it_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("p.npz", **contents(joints=np.array([Bomb()] * 3)))
    with pytest.raises(UserError, match="joints.npy is not a plain array"):
        PredictionFile(Path("p.npz"))
    assert not Path("bomb_went_off").exists()

    header = io.BytesIO()       # addresses of objects, with the size that the header states
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": (3, 2, 21, 3)})
    np.savez("p.npz", **contents(joints=None))
    with zipfile.ZipFile("p.npz", "a") as archive:
        archive.writestr("joints.npy", header.getvalue() + bytes(8 * 3 * 2 * 21 * 3))
    with pytest.raises(UserError, match="joints.npy is not a plain array"):
        PredictionFile(Path("p.npz"))


def test_a_header_that_promises_more_than_there_is_is_refused_before_memory_is_taken(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False,
                                                  "shape": (3_000_000_000, 2, 21, 3)})
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        np.savez(tmp_path / "p.npz", **contents(joints=None))
        with zipfile.ZipFile(tmp_path / "p.npz", "a", method) as archive:
            archive.writestr("joints.npy", header.getvalue() + bytes(1000))
        with pytest.raises(UserError, match="joints.npy is not a plain array of the size that it states"):
            PredictionFile(tmp_path / "p.npz")


def test_damaged_files_are_read_right_or_refused(tmp_path):
    """100 truncations and 300 files with a changed byte: one paragraph each, or the very numbers."""
    vertices = np.random.default_rng(0).normal(0, 0.05, (3, 2, 778, 3)).astype(np.float32)
    np.savez(tmp_path / "good.npz", **contents(joints=None, vertices=vertices))
    good = (tmp_path / "good.npz").read_bytes()
    rng = np.random.default_rng(0)
    damaged = [good[:size] for size in rng.integers(0, len(good), 100)]
    for place in rng.integers(0, len(good), 300):
        damaged.append(good[:place] + bytes([good[place] ^ (1 << int(rng.integers(8)))]) + good[place + 1:])
    refused = 0
    for content in damaged:
        (tmp_path / "p.npz").write_bytes(content)
        try:
            np.testing.assert_array_equal(PredictionFile(tmp_path / "p.npz").take(slice(None)).vertices, vertices)
        except UserError as error:
            assert "p.npz" in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 300


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "p.npz").write_bytes(content)
    with pytest.raises(UserError, match="p.npz"):
        PredictionFile(tmp_path / "p.npz")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        PredictionFile(tmp_path / "none.npz")


def test_every_member_that_is_written_is_one_that_is_read(tmp_path, origin):
    """A file that holds everything comes back from memory and from disk alike."""
    rng = np.random.default_rng(0)
    columns = {name: rng.normal(0, 0.05, (3, *shape)) for name, shape in ROW_SHAPES.items()}
    columns["rotations"] = np.tile(np.eye(3), (3, 2, 16, 1, 1))
    np.savez(tmp_path / "first.npz", **contents(**columns, predicted=np.eye(3, 2, dtype=bool)))
    first = PredictionFile(tmp_path / "first.npz").take(slice(None))
    write_predictions(tmp_path / "second.npz", origin, first)
    second = PredictionFile(tmp_path / "second.npz")
    for name, values in first._asdict().items():
        np.testing.assert_array_equal(getattr(second.take(slice(None)), name), values, err_msg=name)
    assert second.origin == origin


# ---------------------------------------------------------------- names of samples

def test_a_sample_keeps_its_name_in_another_folder_with_another_filter(tmp_path, hand_model):
    fixture = write_interhand(tmp_path / "here", hand_model, split="test")

    def names(root: Path, chosen: str) -> dict[str, tuple]:
        reader = build_reader("InterHand26M", root=root, split="test", hand_model=hand_model, filter=chosen,
                              box_source="vertices")
        facts = [reader.describe(index) for index in range(len(reader))]
        return {reader.sample_id(index): (fact["capture"], fact["camera"], fact["frame"])
                for index, fact in enumerate(facts)}

    few, all_of_them = names(fixture.root, "ih_hm"), names(fixture.root, "all")
    fixture.root.rename(tmp_path / "there")
    assert 0 < len(few) < len(all_of_them) and few.items() < all_of_them.items()
    assert names(tmp_path / "there", "ih_hm") == few
    content = json.loads(next((tmp_path / "there").rglob("*_test_data.json")).read_text())
    assert set(all_of_them) <= {image["file_name"] for image in content["images"]}
