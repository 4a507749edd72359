"""MANO's files: found where people keep them, read exactly, checked, and never run."""

import hashlib
import io
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import smplx
import torch
from fixtures_mano import chumpy_node, mano_values, write_mano, write_official
from hostile_pickles import Call, extension, running_pickles, stack_call, text_operation  # noqa: F401
from scipy.spatial.transform import Rotation

from common.errors import UserError
from common.hands import Hand
from common.mano.files import find_mano, load_mano, read_mano
from common.mano.load import load_hand_model
from common.mano.model import HandModel, ManoLayer
from common.types import ManoParams

ROOT = Path(__file__).resolve().parent.parent
ARRAYS = ("template", "shapedirs", "posedirs", "regressor", "weights", "faces", "mean_pose")


@pytest.fixture
def mano_folder(tmp_path: Path, hand_model: HandModel) -> Path:
    return write_mano(tmp_path / "official", hand_model)


def write_npz(folder: Path, hand_model: HandModel, **changes: object) -> Path:
    """Both files as .npz with some arrays replaced; an Ellipsis leaves an array out."""
    folder.mkdir(exist_ok=True)
    for hand in Hand:
        values = {key: value for key, value in (mano_values(hand_model, hand) | changes).items() if value is not ...}
        np.savez(folder / f"MANO_{hand.name}.npz", **values)
    return folder


def assert_same_model(one: HandModel, other: HandModel) -> None:
    assert one.identity == other.identity
    for key in ARRAYS:
        assert torch.equal(getattr(one, key), getattr(other, key)), key


# ---------------------------------------------------------------- good files

def test_every_array_of_an_official_looking_pickle_arrives(mano_folder: Path, hand_model: HandModel):
    model = load_mano(str(mano_folder))
    for hand in Hand:
        values = mano_values(hand_model, hand)
        for ours, theirs in (("template", "v_template"), ("regressor", "J_regressor"), ("weights", "weights"),
                             ("faces", "f"), ("mean_pose", "hands_mean")):
            np.testing.assert_array_equal(getattr(model, ours)[hand], values[theirs].astype(np.float32))
    flat = values["posedirs"].reshape(-1, 135).T.astype(np.float32)
    np.testing.assert_array_equal(model.posedirs[Hand.LEFT], flat)
    np.testing.assert_array_equal(model.shapedirs[Hand.RIGHT], values["shapedirs"].astype(np.float32))


def test_the_pickle_is_read_where_chumpy_and_scipy_are_missing(mano_folder: Path):
    code = (
        "import sys; sys.modules['chumpy'] = sys.modules['scipy'] = None;"
        f"from common.mano.files import load_mano; print(load_mano({str(mano_folder)!r}).identity['name'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "mano", done.stderr


@pytest.mark.parametrize("protocol", [0, 1])
def test_the_older_protocols_of_python_2_are_read(mano_folder: Path, tmp_path: Path, hand_model: HandModel, protocol):
    for hand in Hand:
        write_official(tmp_path / f"MANO_{hand.name}.pkl", mano_values(hand_model, hand), protocol)
    assert_same_model(load_mano(str(tmp_path)), load_mano(str(mano_folder)))


@pytest.mark.parametrize("old_names", [False, True])
@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_rewritten_by_python_3_is_read(mano_folder: Path, tmp_path: Path, hand_model: HandModel, protocol: int,
                                                old_names: bool):
    """Without chumpy, by any protocol, with a Fortran array, by numpy and scipy of today or before they moved."""
    for hand in Hand:
        values = mano_values(hand_model, hand)
        values["J_regressor"] = scipy.sparse.csc_matrix(values["J_regressor"])
        values["posedirs"] = np.asfortranarray(values["posedirs"])
        content = pickle.dumps(values, protocol)
        if old_names and protocol < 4:      # later protocols name a module's length too
            content = content.replace(b"numpy._core", b"numpy.core").replace(b"scipy.sparse._csc", b"scipy.sparse.csc")
        (tmp_path / f"MANO_{hand.name}.pkl").write_bytes(content)
    assert_same_model(load_mano(str(tmp_path)), load_mano(str(mano_folder)))


def test_a_select_without_a_shape_and_one_of_another_are_read(mano_folder: Path, tmp_path: Path,
                                                              hand_model: HandModel):
    """chumpy leaves the shape of a flat selection out, and selects from selections."""
    for hand in Hand:
        values = mano_values(hand_model, hand)
        mean = np.concatenate([np.zeros(5), values["hands_mean"]])
        node = chumpy_node("chumpy.reordering", "Select", a=chumpy_node("chumpy.ch", "Ch", x=mean), idxs=np.arange(50))
        values["hands_mean"] = chumpy_node("chumpy.reordering", "Select", a=node, idxs=np.arange(5, 50))
        write_official(tmp_path / f"MANO_{hand.name}.pkl", values)
    assert_same_model(load_mano(str(tmp_path)), load_mano(str(mano_folder)))


@pytest.mark.parametrize("precision", [np.float64, np.float32])
def test_npz_files_are_the_same_model_as_the_pickles(mano_folder: Path, tmp_path: Path, hand_model: HandModel,
                                                      precision):
    for hand in Hand:
        values = mano_values(hand_model, hand)
        numbers = {key: value.astype(precision) for key, value in values.items() if key not in ("bs_type", "f")}
        np.savez(tmp_path / f"MANO_{hand.name}.npz", **(values | numbers | {"kintree_table": values["kintree_table"]}))
    assert_same_model(load_mano(str(tmp_path)), load_mano(str(mano_folder)))


@pytest.mark.parametrize("key", ["v_template", "shapedirs", "posedirs", "J_regressor", "weights", "hands_mean"])
@pytest.mark.parametrize("hand", Hand)
def test_another_number_is_another_model(tmp_path: Path, hand_model: HandModel, key: str, hand: Hand):
    write_npz(tmp_path, hand_model)
    before = load_mano(str(tmp_path)).sha256
    values = mano_values(hand_model, hand)
    values[key].flat[np.abs(values[key]).argmax()] *= 1 - 1e-5
    np.savez(tmp_path / f"MANO_{hand.name}.npz", **values)
    assert load_mano(str(tmp_path)).sha256 != before


def test_the_sign_of_a_zero_is_no_difference(tmp_path: Path, hand_model: HandModel):
    """Mirroring a file here or in another program may leave −0 or 0."""
    folders = [write_npz(tmp_path / str(sign), hand_model, posedirs=sign * np.zeros((778, 3, 135))) for sign in (1, -1)]
    assert load_mano(str(folders[0])).identity == load_mano(str(folders[1])).identity


@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_the_left_shape_directions_are_mirrored_once(tmp_path: Path, hand_model: HandModel, size: float):
    """A file that has the known error and one that was mended already give the same left hand, and say so."""
    models, corrections = [], []
    for sign in (1.0, -1.0):
        for hand in Hand:
            values = mano_values(hand_model, hand)
            values["shapedirs"] *= size
            if hand is Hand.LEFT:
                values["shapedirs"][:, 0] *= sign
            np.savez(tmp_path / f"MANO_{hand.name}.npz", **values)
        models.append(load_mano(str(tmp_path)))
        corrections.append([file.corrections for file in read_mano(find_mano(str(tmp_path)))])
    assert_same_model(*models)
    assert corrections == [[(), ("shapedirs mirrored in x (smplx issue 48)",)], [(), ()]]


def test_with_mirrored_shape_directions_the_left_hand_is_the_mirror_image_of_the_right(tmp_path: Path,
                                                                                      hand_model: HandModel):
    """left(β, mirrored pose) = mirror of right(β, pose); the files' pose correctives are taken away, being random."""
    layer = ManoLayer(load_mano(str(write_npz(tmp_path, hand_model, posedirs=np.zeros((778, 3, 135))))))
    generator = torch.Generator().manual_seed(0)
    shape = torch.randn(4, 1, 10, generator=generator).expand(4, 2, 10)
    vectors = torch.randn(4, 16, 3, generator=generator).numpy()
    rotations = [torch.from_numpy(Rotation.from_rotvec((vectors * signs).reshape(-1, 3)).as_matrix()).float()
                 .reshape(4, 16, 3, 3) for signs in ([1, 1, 1], [1, -1, -1])]
    right, left = layer(ManoParams(torch.stack(rotations, dim=1), shape)).unbind(1)
    torch.testing.assert_close(left, right * torch.tensor([-1.0, 1.0, 1.0]), atol=1e-6, rtol=0)


def test_faces_are_turned_outward(mano_folder: Path, tmp_path: Path, hand_model: HandModel):
    values = mano_values(hand_model, Hand.LEFT)
    values["f"] = values["f"][:, ::-1]
    write_npz(tmp_path, hand_model)
    np.savez(tmp_path / "MANO_LEFT.npz", **values)
    assert_same_model(load_mano(str(tmp_path)), load_mano(str(mano_folder)))


@pytest.mark.parametrize("hand", Hand)
def test_meshes_agree_with_smplx_on_the_same_file(tmp_path: Path, hand_model: HandModel, hand: Hand):
    """smplx opens the very file, by Python's unpickler; the mean pose is on in both."""
    for side in Hand:
        values = mano_values(hand_model, side)
        values["J_regressor"] = scipy.sparse.csc_matrix(values["J_regressor"])
        (tmp_path / f"MANO_{side.name}.pkl").write_bytes(pickle.dumps(values, 2))
    settings = {"is_rhand": hand is Hand.RIGHT, "use_pca": False, "flat_hand_mean": False}
    by_vectors, by_matrices = smplx.MANO(str(tmp_path), **settings), smplx.MANOLayer(str(tmp_path), **settings)
    if hand is Hand.LEFT:
        by_vectors.shapedirs[:, 0] *= -1        # as everyone who uses smplx for two hands does
        by_matrices.shapedirs[:, 0] *= -1

    generator = torch.Generator().manual_seed(0)
    shape, pose = torch.randn(8, 10, generator=generator), 0.5 * torch.randn(8, 48, generator=generator)
    full = np.concatenate([pose[:, :3].numpy(), pose[:, 3:].numpy() + values["hands_mean"]], axis=1)
    matrices = torch.from_numpy(Rotation.from_rotvec(full.reshape(-1, 3)).as_matrix()).float().reshape(8, 16, 3, 3)
    params = ManoParams(matrices[:, None].expand(8, 2, 16, 3, 3), shape[:, None].expand(8, 2, 10))
    ours = ManoLayer(load_mano(str(tmp_path)))(params)[:, hand]

    first = by_vectors(betas=shape, global_orient=pose[:, :3], hand_pose=pose[:, 3:]).vertices
    second = by_matrices(betas=shape, global_orient=matrices[:, :1], hand_pose=matrices[:, 1:]).vertices
    torch.testing.assert_close(ours, first, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours, second, atol=1e-6, rtol=0)


# ---------------------------------------------------------------- where the files are

@pytest.mark.parametrize("place", [
    "", "models", "mano_v1_2/models", "models/mano", "smplx/models/mano", "common/utils/human_model_files/mano",
    "common/utils/smplx/models/mano", "misc/mano", "mano/models", "data/mano", "mano", "_DATA/data/mano",
])
def test_the_folders_of_the_archive_and_of_other_projects_are_searched(tmp_path: Path, monkeypatch, place: str):
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    expected = [tmp_path / place / "MANO_RIGHT.pkl", tmp_path / place / "MANO_LEFT.pkl"]
    for file in expected:
        file.touch()
    monkeypatch.delenv("MANO_DIR", raising=False)
    assert find_mano(str(tmp_path)) == expected         # what the flag and the configuration name
    assert find_mano(str(expected[0])) == expected
    monkeypatch.setenv("MANO_DIR", str(tmp_path))
    assert find_mano() == expected
    monkeypatch.delenv("MANO_DIR")
    monkeypatch.setattr("common.mano.files.ROOT", tmp_path)
    assert find_mano() == expected


def test_a_relative_mano_dir_is_below_the_working_directory(mano_folder: Path, monkeypatch):
    monkeypatch.chdir(mano_folder.parent)
    monkeypatch.setenv("MANO_DIR", mano_folder.name)
    assert load_hand_model("mano").identity == load_hand_model("mano", str(mano_folder)).identity


def test_missing_files_name_the_download_page_and_every_path(tmp_path: Path):
    with pytest.raises(UserError) as error:
        load_mano(str(tmp_path))
    text = str(error.value)
    assert error.value.exit_code == 2
    assert "https://mano.is.tue.mpg.de" in text and "--mano" in text and "MANO_DIR" in text
    for place in (".", "models", "models/mano", "common/utils/human_model_files/mano", "misc/mano"):
        assert f"{tmp_path / place}/MANO_{{RIGHT,LEFT}}.{{pkl,npz}}" in text


def test_one_hand_alone_is_named(mano_folder: Path):
    (mano_folder / "MANO_LEFT.pkl").unlink()
    with pytest.raises(UserError, match=f"not found together: there is only {mano_folder / 'MANO_RIGHT.pkl'}"):
        load_mano(str(mano_folder))


@pytest.mark.parametrize("named", ["elsewhere", "~nobody/mano", "nul\0byte", "x" * 5000])
def test_a_named_folder_is_never_replaced_by_another(mano_folder: Path, tmp_path: Path, monkeypatch, named: str):
    monkeypatch.setenv("MANO_DIR", str(mano_folder))
    with pytest.raises(UserError, match="were not found"):
        load_mano(str(tmp_path / named) if named == "elsewhere" else named)


# ---------------------------------------------------------------- wrong files

def test_swapped_files_are_recognised(mano_folder: Path):
    (mano_folder / "MANO_RIGHT.pkl").rename(mano_folder / "spare")
    (mano_folder / "MANO_LEFT.pkl").rename(mano_folder / "MANO_RIGHT.pkl")
    (mano_folder / "spare").rename(mano_folder / "MANO_LEFT.pkl")
    with pytest.raises(UserError, match="MANO_RIGHT.pkl holds the left hand.*swapped"):
        load_mano(str(mano_folder))


def test_a_right_hand_copied_over_the_left_is_recognised(mano_folder: Path):
    (mano_folder / "MANO_LEFT.pkl").write_bytes((mano_folder / "MANO_RIGHT.pkl").read_bytes())
    with pytest.raises(UserError, match="MANO_LEFT.pkl holds the right hand"):
        load_mano(str(mano_folder))


@pytest.mark.parametrize(("vertices", "joints", "name"), [(6890, 52, "SMPL-H"), (10475, 55, "SMPL-X")])
def test_a_body_model_under_a_hand_s_name_is_named(mano_folder: Path, vertices: int, joints: int, name: str):
    body = {
        "v_template": np.zeros((vertices, 3)), "weights": np.zeros((vertices, joints)),
        "J_regressor": scipy.sparse.csc_matrix(np.eye(joints, vertices)), "hands_meanl": np.zeros(45),
        "kintree_table": np.zeros((2, joints), np.uint32), "f": np.zeros((13776, 3), np.uint32),
    }
    (mano_folder / "MANO_RIGHT.pkl").write_bytes(pickle.dumps(body, 2))
    with pytest.raises(UserError, match=f"MANO_RIGHT.pkl holds the .*{name}.* with its {vertices} vertices"):
        load_mano(str(mano_folder))


def _with(key: str, *first: float):
    """Replace an array's first entries."""
    def change(values: dict) -> dict:
        array = values[key].copy()
        array.flat[:len(first)] = first
        return {key: array}
    return change


@pytest.mark.parametrize(("change", "reason"), [
    (lambda _: {"v_template": np.zeros((779, 3))}, r"v_template of shape \(779, 3\)"),
    (_with("v_template", np.nan), "v_template with values that are not finite"),
    (_with("posedirs", np.inf), "posedirs with values that are not finite"),
    (_with("shapedirs", 0.2), "shapedirs with values that .* beyond 0.1"),
    (lambda values: {"v_template": values["v_template"] * 2}, "m from the wrist to the middle knuckle"),
    (lambda values: {"v_template": values["v_template"] * 1000}, "v_template with values"),
    (lambda _: {"weights": np.full((778, 16), 0.5)}, "do not sum to 1"),
    (_with("weights", -0.5, 1.5), "weights with values"),
    (lambda values: {"weights": values["weights"] / 2 + np.r_[0.4, 0.2, -0.1, np.zeros(13)]}, "negative"),
    (lambda values: {"J_regressor": values["J_regressor"] * 0.9}, "rows do not sum to 1"),
    (lambda _: {"f": np.full((1538, 3), 778)}, "faces that refer"),
    (lambda values: {"f": values["f"].astype(np.int64) - 1}, "faces that refer"),
    (_with("f", 0, 0), "faces without area"),
    (lambda values: {"f": np.repeat(values["f"][:1], 1538, axis=0)}, "vertices without a face"),
    (lambda values: {"f": values["f"].astype(float)}, "stores f as float64"),
    (lambda _: {"kintree_table": np.zeros((2, 16), int)}, "another tree"),
    (lambda values: {"kintree_table": values["kintree_table"][:, ::-1]}, "another tree"),
    (lambda _: {"kintree_table": np.zeros(3, int)}, "kintree_table of shape"),
    (lambda _: {"shapedirs": np.float64(0)}, "shapedirs of shape"),
    (lambda _: {"hands_mean": np.full(45, "a")}, "stores hands_mean as"),
    (lambda _: {"hands_mean": np.full(45, 7.0)}, "hands_mean with values"),
    (lambda _: {"posedirs": ..., "weights": ...}, "lacks posedirs, weights"),
])
def test_a_file_that_is_no_hand_is_refused_with_the_reason(tmp_path: Path, hand_model: HandModel, change, reason: str):
    values = mano_values(hand_model, Hand.RIGHT)
    write_npz(tmp_path, hand_model, **change(values))
    with pytest.raises(UserError, match=f"MANO_RIGHT.npz .*{reason}.*https://mano.is.tue.mpg.de"):
        load_mano(str(tmp_path))


@pytest.mark.parametrize(("content", "reason"), [
    (b"", "is damaged"), (b"\n", "is damaged"), (b"hello", "is damaged"), (bytes(100), "is damaged"),
    (b"PK\x03\x04" + bytes(50), "is damaged"), (pickle.dumps([1]), "holds a list"), (pickle.dumps({}), "lacks"),
    (b"\n<!DOCTYPE html><html>Please sign in</html>", "is a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "is a pointer of Git LFS"),
    (pickle.dumps({"v_template": [[1.0, 2.0, 3.0]]}), "stores v_template in an unknown way"),
    (bytes(20_000_001), "20 MB, more than any hand"),
])
def test_what_else_people_download_is_refused(mano_folder: Path, content: bytes, reason: str):
    (mano_folder / "MANO_LEFT.pkl").write_bytes(content)
    with pytest.raises(UserError, match=f"MANO_LEFT.pkl .*{reason}.*https://mano.is.tue.mpg.de"):
        load_mano(str(mano_folder))


def test_an_unreadable_file_is_a_user_error(mano_folder: Path, monkeypatch):
    def denied(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(Path, "read_bytes", denied)     # root may read everything, so this is not done by chmod
    with pytest.raises(UserError, match="MANO_RIGHT.pkl cannot be read: Permission denied"):
        load_mano(str(mano_folder))


def test_an_unknown_chumpy_node_is_named_where_it_is_needed(mano_folder: Path, hand_model: HandModel):
    values = {**mano_values(hand_model, Hand.RIGHT), "v_template": chumpy_node("chumpy.ch_ops", "add", a=1, b=2)}
    write_official(mano_folder / "MANO_RIGHT.pkl", values)
    with pytest.raises(UserError, match="v_template.*chumpy.ch_ops.add"):
        load_mano(str(mano_folder))


# ---------------------------------------------------------------- damaged files

@pytest.mark.parametrize("suffix", ["pkl", "npz"])
def test_no_truncated_file_is_read(mano_folder: Path, tmp_path: Path, hand_model: HandModel, suffix: str):
    folder = mano_folder if suffix == "pkl" else write_npz(tmp_path / "npz", hand_model)
    file = folder / f"MANO_RIGHT.{suffix}"
    content = file.read_bytes()
    for length in (0, 1, len(content) - 1, *np.random.default_rng(0).integers(0, len(content), 50)):
        file.write_bytes(content[:length])
        with pytest.raises(UserError, match=f"MANO_RIGHT.{suffix} is damaged"):
            load_mano(str(folder))


def _flipped(content: bytes, places, rng: np.random.Generator):
    for place in places:
        yield content[:place] + bytes([content[place] ^ rng.integers(1, 256)]) + content[place + 1:]


def test_a_changed_byte_is_refused_or_gives_another_valid_hand_under_another_hash(mano_folder: Path):
    """Anywhere in a file whose digest is not known. Most bytes belong to numbers, so what still passes every check is
    read, and data and weights made with the intact file then refuse it."""
    file, intact = mano_folder / "MANO_RIGHT.pkl", load_mano(str(mano_folder))
    rng, content = np.random.default_rng(0), file.read_bytes()
    for damaged in _flipped(content, rng.integers(0, len(content), 50), rng):
        file.write_bytes(damaged)
        try:
            model = load_mano(str(mano_folder))
        except UserError as error:
            assert str(file) in str(error)
            continue
        assert all(torch.isfinite(getattr(model, key)).all() for key in ARRAYS)
        is_unchanged = all(torch.equal(getattr(model, key), getattr(intact, key)) for key in ARRAYS)
        assert (model.sha256 == intact.sha256) == is_unchanged


def test_every_changed_byte_of_an_official_file_is_noticed(mano_folder: Path, hand_model: HandModel, monkeypatch):
    """Their digests are known: a file of such a size with other bytes is damaged."""
    file = mano_folder / "MANO_RIGHT.pkl"
    write_official(file, mano_values(hand_model, Hand.RIGHT) | {"bs_style": "lbs"})     # the two sizes differ
    rng, content = np.random.default_rng(0), file.read_bytes()
    monkeypatch.setattr("common.mano.files.OFFICIAL_SHA256", {len(content): hashlib.sha256(content).hexdigest()})
    assert [file.is_official for file in read_mano(find_mano(str(mano_folder)))] == [True, False]
    for damaged in _flipped(content, rng.integers(0, len(content), 50), rng):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="MANO_RIGHT.pkl is damaged.*https://mano.is.tue.mpg.de"):
            load_mano(str(mano_folder))


def test_a_changed_byte_near_the_names_never_ends_in_a_traceback(mano_folder: Path):
    rng = np.random.default_rng(0)
    file = mano_folder / "MANO_RIGHT.pkl"
    content, refused = file.read_bytes(), 0
    names = [match.start() for match in re.finditer(rb"numpy|chumpy|scipy|kintree|shapedirs", content)]
    for damaged in _flipped(content, rng.choice(names, 100) + rng.integers(-20, 40, 100), rng):
        file.write_bytes(damaged)
        try:
            load_mano(str(mano_folder))
        except UserError as error:
            assert str(file) in str(error)
            refused += 1
    assert refused > 30


def test_a_changed_byte_of_an_npz_is_noticed(tmp_path: Path, hand_model: HandModel):
    """Its checksums cover every array: what is read is the intact model."""
    write_npz(tmp_path, hand_model)
    intact, file = load_mano(str(tmp_path)), tmp_path / "MANO_RIGHT.npz"
    rng, content, refused = np.random.default_rng(0), file.read_bytes(), 0
    for damaged in _flipped(content, rng.integers(0, len(content), 50), rng):
        file.write_bytes(damaged)
        try:
            assert_same_model(load_mano(str(tmp_path)), intact)
        except UserError as error:
            assert str(file) in str(error)
            refused += 1
    assert refused > 40


# ---------------------------------------------------------------- hostile files

def refused_pickles() -> dict[str, bytes]:
    """Pickles that reach for what no hand model needs."""
    return {
        "chumpy's name": stack_call("chumpy.ch", "os.system", "true"),
        "module below an allowed one": stack_call("scipy.sparse.csc", "os.system", "true"),
        "import": pickle.dumps(Call(__import__, "antigravity")),
        "another codec": b"\x80\x02c_codecs\nencode\n" + text_operation("x") + text_operation("bz2") + b"\x86R.",
        "persistent id": b"Pfile:///etc/passwd\n.",
        "persistent object": b"\x80\x02" + text_operation("id") + b"Q.",
        "state of an allowed function": b"c_codecs\nencode\n(N}Vmark\nI1\nstb.",
        "state of a stand-in's class": b"cnumpy\nndarray\n(N}Varray\nI1\nstb.",
        "out-of-band buffer": b"\x80\x05\x97.",
        "terminal codes": stack_call("os\x1b[2J", "sys\ntem", "true"),
        "a name of a megabyte": stack_call("o" * 1_000_000, "system", "true"),
    }


@pytest.mark.scorecard("malicious files")
@pytest.mark.parametrize("hand", Hand)
@pytest.mark.parametrize("kind", running_pickles(Path("x")))
@pytest.mark.usefixtures("extension")
def test_a_hostile_pickle_runs_nothing(mano_folder: Path, tmp_path: Path, kind: str, hand: Hand):
    file = mano_folder / f"MANO_{hand.name}.pkl"
    file.write_bytes(running_pickles(tmp_path / "executed")[kind])
    with pytest.raises(UserError, match="nothing of the file was used or run") as error:
        load_mano(str(mano_folder))
    assert not (tmp_path / "executed").exists()
    assert str(file) in str(error.value) and "https://mano.is.tue.mpg.de" in str(error.value)


@pytest.mark.parametrize("kind", refused_pickles())
def test_what_no_hand_model_needs_is_refused_in_one_clean_line(mano_folder: Path, kind: str):
    (mano_folder / "MANO_RIGHT.pkl").write_bytes(refused_pickles()[kind])
    with pytest.raises(UserError, match="MANO_RIGHT.pkl (refers to|holds a chumpy)") as error:
        load_mano(str(mano_folder))
    assert str(error.value).isprintable() and len(error.value.message) < 500


def test_the_refused_name_is_told(mano_folder: Path):
    (mano_folder / "MANO_RIGHT.pkl").write_bytes(pickle.dumps(Call(os.system, "true")))
    with pytest.raises(UserError, match="refers to 'posix.system'"):
        load_mano(str(mano_folder))


def _npz_bomb(shape: tuple[int, ...]) -> bytes:
    header = repr({"descr": "<f8", "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("v_template.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    return stream.getvalue()


def _zeros(size: int) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, v_template=np.zeros(size))
    return stream.getvalue()


_ARRAY = b"cnumpy\nndarray\n((I0\nttR"
BOMBS = {
    "memo index of a billion": b"\x80\x02Nr\xff\xff\xff\x3f.",
    "bytearray of 20 GB": b"\x80\x05\x96" + struct.pack("<Q", 20_000_000_000) + b".",
    "bytes of 20 GB": b"\x80\x05\x8e" + struct.pack("<Q", 20_000_000_000) + b".",
    "array of 20 GB": b"\x80\x02cnumpy\nndarray\n(I20000000000\ntR.",
    "objects of 160 GB": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I20000000000\ntU\x01OtR.",
    "frame longer than the file": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b".",
    "integer of a megabyte": b"I" + b"9" * 1_000_000 + b"\n.",
    "fifteen million lists": b"]" * 15_000_000 + b".",
    "fifteen million marks": b"(" * 15_000_000 + b".",
    "key of 2^60 tuples": b"}(I0\n" + b"2\x86" * 60 + b"Nu.",
    "set of 2^60 tuples": b"\x80\x04\x8f(I0\n" + b"2\x86" * 60 + b"\x90.",
    "nested 2^60 lists": b"}Vv_template\nI0\n" + b"2\x86" * 60 + b"s.",
    "shape of 2^60 tuples": b"}Vv_template\n" + _ARRAY + b"(I1\nI0\n" + b"2\x86" * 60
    + b"cnumpy\ndtype\n(Vf8\ntR(I3\nV<\ntbNU\x00tbs.",
    "type of 2^60 tuples": b"}Vv_template\n" + _ARRAY + b"(I1\n(I0\ntcnumpy\ndtype\n(I0\n" + b"2\x86" * 60
    + b"tR(I3\nV<\ntbNU\x00tbs.",
    "tower of selections": b"}Vv_template\n" + b"cchumpy.reordering\nSelect\n)\x81}(Va\n" * 2000 + b"N"
    + b"ub" * 2000 + b"s.",
    "node that holds itself": b"}Vv_template\ncchumpy.ch\nCh\n)\x81p1\n}Vx\ng1\nsbs.",
    "npz with an array of 20 GB": _npz_bomb((2_500_000_000,)),
    "npz that unpacks to 80 MB": _zeros(10_000_000),
}


def test_a_small_file_cannot_take_much_memory_or_time(mano_folder: Path, tmp_path: Path):
    """Nor can it end the program in another way than with its message."""
    for name, content in BOMBS.items():
        (tmp_path / f"{name}.bomb").write_bytes(content)
    code = (
        "import resource, sys, time; from common.errors import UserError; from common.mano.files import load_mano\n"
        "from pathlib import Path\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (60, 60))\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"before, folder = peak(), {str(mano_folder)!r}\n"
        f"for file in sorted(Path({str(tmp_path)!r}).glob('*.bomb')):\n"
        "    Path(folder, 'MANO_RIGHT.pkl').write_bytes(file.read_bytes())\n"
        "    start = time.process_time()\n"
        "    try: load_mano(folder)\n"
        "    except UserError as error: print(error)\n"
        "    if peak() - before > 100_000 or time.process_time() - start > 2: sys.exit(file.name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is not a hand model of MANO") == len(BOMBS), done.stdout
