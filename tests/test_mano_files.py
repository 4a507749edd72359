"""MANO's files: read exactly, checked, and never run."""

import hashlib
import os
import pickle
import re
import struct
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

from common.errors import UserError
from common.hands import Hand
from common.mano import HandModel, ManoLayer, load_hand_model
from common.mano_files import load_mano
from common.types import ManoParams


class Python2Pickler(pickle._Pickler):
    """Writes byte strings as Python 2 did: raw, with the opcode that Python 3 decodes by `encoding`."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_bytes(self, data: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(data)

    dispatch[bytes] = save_bytes


@pytest.fixture
def chumpy(monkeypatch) -> types.SimpleNamespace:
    """Modules that pickle like chumpy's: objects whose whole state is their __dict__."""
    classes = {}
    for module, name in (("chumpy.ch", "Ch"), ("chumpy.reordering", "Select"), ("chumpy.ch_ops", "add")):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        kind = type(name, (), {"__module__": module})
        setattr(sys.modules[module], name, kind)
        classes[name] = kind
    monkeypatch.setitem(sys.modules, "chumpy", types.ModuleType("chumpy"))

    def build(name: str, **state):
        node = classes[name]()
        node.__dict__.update(state, _dirty_vars=set(), _itr=None, _depends_on_deps={})
        return node
    return types.SimpleNamespace(build=build)


def mano_values(hand_model: HandModel, hand: Hand) -> dict:
    """A MANO-like file's content: the built-in hand's arrays with random offsets, without the left hand's sign."""
    rng = np.random.default_rng(7)
    signs = np.array([1.0 if hand is Hand.RIGHT else -1.0, 1.0, 1.0])
    return {
        "v_template": hand_model.template[0].double().numpy() * signs,
        "shapedirs": rng.normal(size=(778, 3, 10)) * 0.01,      # the same in both files: the known error
        "posedirs": rng.normal(size=(778, 3, 135)) * 1e-3,
        "J_regressor": hand_model.regressor[0].double().numpy(),
        "weights": hand_model.weights[0].double().numpy(),
        "f": hand_model.faces[hand].numpy().astype(np.uint32),
        "hands_mean": rng.normal(size=45) * 0.1,
        "kintree_table": np.array([[2**32 - 1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14], range(16)], np.uint32),
        "hands_components": np.eye(45),
        "bs_type": "lrotmin",
    }


def official_pickle(values: dict, chumpy, path: Path) -> None:
    """A pickle as MANO ships it: Python 2, chumpy's Select of 10 of 20 shape columns, scipy's old module names."""
    values = dict(values)
    wide = np.concatenate([values["shapedirs"], np.ones((778, 3, 10))], axis=2)
    columns = np.arange(wide.size).reshape(wide.shape)[..., :10].ravel()
    values["shapedirs"] = chumpy.build("Select", a=chumpy.build("Ch", x=wide), idxs=columns,
                                       preferred_shape=(778, 3, 10))
    values["J"] = chumpy.build("add", a=1, b=2)         # other keys may hold nodes that nobody reads
    values["J_regressor"] = scipy.sparse.csc_matrix(values["J_regressor"])
    with open(path, "wb") as file:
        Python2Pickler(file, protocol=2).dump(values)
    text = path.read_bytes().replace(b"numpy._core", b"numpy.core").replace(b"scipy.sparse._csc", b"scipy.sparse.csc")
    assert b"chumpy.reordering" in text and b"__builtin__\nset" in text and b"cnumpy.core.multiarray\n" in text
    path.write_bytes(text)


@pytest.fixture
def mano_folder(tmp_path: Path, hand_model: HandModel, chumpy) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    for hand in Hand:
        official_pickle(mano_values(hand_model, hand), chumpy, folder / f"MANO_{hand.name}.pkl")
    return folder


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
        f"from common.mano_files import load_mano; print(load_mano({str(mano_folder)!r}).identity['name'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == "mano", done.stderr


@pytest.mark.parametrize("protocol", range(5))
def test_a_pickle_rewritten_by_python_3_is_read(tmp_path: Path, hand_model: HandModel, protocol: int):
    for hand in Hand:
        with open(tmp_path / f"MANO_{hand.name}.pkl", "wb") as file:
            values = mano_values(hand_model, hand)
            values["J_regressor"] = scipy.sparse.csc_matrix(values["J_regressor"])
            values["posedirs"] = np.asfortranarray(values["posedirs"])
            pickle.dump(values, file, protocol=protocol)
    expected = torch.from_numpy(values["posedirs"].reshape(-1, 135).T.astype(np.float32))
    assert torch.equal(load_mano(str(tmp_path)).posedirs[Hand.LEFT], expected)


def test_npz_files_give_the_same_model(mano_folder: Path, tmp_path: Path, hand_model: HandModel):
    for hand in Hand:
        np.savez(tmp_path / f"MANO_{hand.name}.npz", **mano_values(hand_model, hand))
    from_npz, from_pickle = load_mano(str(tmp_path)), load_mano(str(mano_folder))
    for key in ("template", "shapedirs", "posedirs", "regressor", "weights", "faces", "mean_pose"):
        assert torch.equal(getattr(from_npz, key), getattr(from_pickle, key)), key


def test_the_left_shape_directions_are_mirrored_once(tmp_path: Path, hand_model: HandModel):
    """A file that has the known error and one that was mended already give the same left hand."""
    models = []
    for sign in (1.0, -1.0):
        for hand in Hand:
            values = mano_values(hand_model, hand)
            if hand is Hand.LEFT:
                values["shapedirs"][:, 0] *= sign
            np.savez(tmp_path / f"MANO_{hand.name}.npz", **values)
        models.append(load_mano(str(tmp_path)))
    assert torch.equal(models[0].shapedirs, models[1].shapedirs)

    shape = torch.randn(3, 2, 10, generator=torch.Generator().manual_seed(0))
    shape[:, Hand.LEFT] = shape[:, Hand.RIGHT]
    right, left = ManoLayer(models[0])(ManoParams(torch.eye(3).expand(3, 2, 16, 3, 3), shape)).unbind(1)
    torch.testing.assert_close(left, right * torch.tensor([-1.0, 1.0, 1.0]), atol=1e-6, rtol=0)


def test_the_identity_is_the_sha256_of_both_files(mano_folder: Path):
    content = b"".join((mano_folder / f"MANO_{name}.pkl").read_bytes() for name in ("RIGHT", "LEFT"))
    assert load_mano(str(mano_folder)).identity == {"name": "mano", "sha256": hashlib.sha256(content).hexdigest()}


def test_the_folder_is_found_from_its_parent_and_from_the_environment(mano_folder: Path, monkeypatch):
    monkeypatch.setenv("MANO_DIR", str(mano_folder.parent))
    assert load_hand_model("mano").identity == load_hand_model("mano", str(mano_folder)).identity


# ---------------------------------------------------------------- missing and wrong files

def test_missing_files_name_the_download_page_and_every_path(tmp_path: Path):
    with pytest.raises(UserError) as error:
        load_mano(str(tmp_path))
    text = str(error.value)
    assert error.value.exit_code == 2
    assert "https://mano.is.tue.mpg.de" in text
    for name in ("MANO_RIGHT.pkl", "MANO_LEFT.npz", "models/MANO_RIGHT.pkl"):
        assert str(tmp_path / name) in text


def test_a_named_folder_is_never_replaced_by_another(mano_folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MANO_DIR", str(mano_folder))
    with pytest.raises(UserError, match="were not found"):
        load_mano(str(tmp_path / "elsewhere"))


def test_swapped_files_are_recognised(tmp_path: Path, hand_model: HandModel):
    for hand in Hand:
        np.savez(tmp_path / f"MANO_{hand.other.name}.npz", **mano_values(hand_model, hand))
    with pytest.raises(UserError, match="MANO_RIGHT.npz holds the left hand"):
        load_mano(str(tmp_path))


@pytest.mark.parametrize(("key", "value", "reason"), [
    ("v_template", np.zeros((6890, 3)), "v_template of shape"),
    ("v_template", np.full((778, 3), np.nan), "not finite"),
    ("weights", np.full((778, 16), 0.5), "do not sum to 1"),
    ("f", np.full((1538, 3), 778), "faces that refer"),
    ("kintree_table", np.zeros((2, 16), int), "another tree"),
    ("kintree_table", np.zeros(3, int), "another tree"),
    ("shapedirs", np.float64(0), "shapedirs of shape"),
    ("hands_mean", np.full(45, "a"), "stores hands_mean as"),
])
def test_a_file_that_is_no_hand_is_refused_with_the_reason(tmp_path: Path, hand_model: HandModel, key, value, reason):
    for hand in Hand:
        np.savez(tmp_path / f"MANO_{hand.name}.npz", **{**mano_values(hand_model, hand), key: value})
    with pytest.raises(UserError, match=reason):
        load_mano(str(tmp_path))


def test_a_missing_array_is_named(tmp_path: Path, hand_model: HandModel):
    for hand in Hand:
        values = mano_values(hand_model, hand)
        del values["posedirs"]
        np.savez(tmp_path / f"MANO_{hand.name}.npz", **values)
    with pytest.raises(UserError, match="lacks posedirs"):
        load_mano(str(tmp_path))


def test_an_unknown_chumpy_node_is_named_where_it_is_needed(tmp_path: Path, hand_model: HandModel, chumpy):
    for hand in Hand:
        values = {**mano_values(hand_model, hand), "v_template": chumpy.build("add", a=1, b=2)}
        (tmp_path / f"MANO_{hand.name}.pkl").write_bytes(pickle.dumps(values, protocol=2))
    with pytest.raises(UserError, match="v_template.*chumpy.ch_ops.add"):
        load_mano(str(tmp_path))


def test_truncated_files_are_refused(mano_folder: Path):
    file = mano_folder / "MANO_RIGHT.pkl"
    content = file.read_bytes()
    for length in np.random.default_rng(0).integers(0, len(content), 50):
        file.write_bytes(content[:length])
        with pytest.raises(UserError, match="MANO_RIGHT.pkl"):
            load_mano(str(mano_folder))


def test_a_flipped_bit_never_ends_in_a_traceback(mano_folder: Path):
    """Near the names and opcodes, where it hurts; a flipped bit in a number is read as another number."""
    rng = np.random.default_rng(0)
    file = mano_folder / "MANO_RIGHT.pkl"
    content, refused = file.read_bytes(), 0
    names = [match.start() for match in re.finditer(rb"numpy|chumpy|scipy|kintree|shapedirs", content)]
    for place in rng.choice(names, 100) + rng.integers(-20, 40, 100):
        file.write_bytes(content[:place] + bytes([content[place] ^ (1 << rng.integers(8))]) + content[place + 1:])
        try:
            load_mano(str(mano_folder))
        except UserError as error:
            assert str(file) in str(error)
            refused += 1
    assert refused > 30


# ---------------------------------------------------------------- hostile files

class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def _stack_global(module: str, name: str, argument: str) -> bytes:
    def text(value):
        return b"\x8c" + bytes([len(value)]) + value.encode()
    return b"\x80\x04" + text(module) + text(name) + b"\x93" + text(argument) + b"\x85R."


def hostile_pickles(sentinel: Path) -> dict[str, bytes]:
    touch = f"touch {sentinel}"
    opening = f"open({str(sentinel)!r}, 'w')"
    return {
        "os.system": pickle.dumps(Call(os.system, touch)),
        "eval": pickle.dumps(Call(eval, opening), protocol=2),
        "exec in a dict": pickle.dumps({"v_template": Call(exec, opening)}, protocol=4),
        "subprocess": pickle.dumps(Call(subprocess.check_call, ["touch", str(sentinel)])),
        "nested in an array": pickle.dumps(np.array([Call(os.system, touch)], dtype=object), protocol=2),
        "open": pickle.dumps(Call(open, str(sentinel), "w")),
        "stack_global": _stack_global("posix", "system", touch),
        "dotted name": _stack_global("numpy", "os.system", touch),
        "module below an allowed one": _stack_global("scipy.sparse.csc", "os.system", touch),
        "inst": b"(S'" + touch.encode() + b"'\nios\nsystem\n.",
        "getattr": pickle.dumps(Call(getattr, sentinel, "touch"), protocol=2),
        "import": pickle.dumps(Call(__import__, "antigravity")),
        "numpy.load": pickle.dumps(Call(np.load, str(sentinel), None, True)),
        "chumpy below": _stack_global("chumpy.ch", "os.system", touch),
    }


@pytest.mark.parametrize("kind", hostile_pickles(Path("x")))
def test_a_hostile_pickle_runs_nothing(mano_folder: Path, tmp_path: Path, kind: str):
    sentinel = tmp_path / "executed"
    content = hostile_pickles(sentinel)[kind]
    (mano_folder / "MANO_RIGHT.pkl").write_bytes(content)
    with pytest.raises(UserError, match="MANO_RIGHT.pkl"):
        load_mano(str(mano_folder))
    assert not sentinel.exists()


def test_the_sentinel_would_have_been_written(tmp_path: Path):
    """The hostile pickles are real: Python's own unpickler runs them."""
    sentinel = tmp_path / "executed"
    pickle.loads(hostile_pickles(sentinel)["stack_global"])
    assert sentinel.exists()


BOMBS = {
    "memo index of a billion": b"\x80\x02Nr\xff\xff\xff\x3f.",
    "bytearray of 20 GB": b"\x80\x05\x96" + struct.pack("<Q", 20_000_000_000) + b".",
    "array of 20 GB": b"\x80\x02cnumpy\nndarray\n(I20000000000\ntR.",
    "objects of 160 GB": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I20000000000\ntU\x01OtR.",
    "frame longer than the file": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b".",
}


def test_a_small_file_cannot_take_much_memory(mano_folder: Path):
    code = (
        "import resource, sys; from common.errors import UserError; from common.mano_files import load_mano\n"
        "from pathlib import Path\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"before, folder = peak(), {str(mano_folder)!r}\n"
        f"for name, content in {BOMBS!r}.items():\n"
        "    Path(folder, 'MANO_RIGHT.pkl').write_bytes(content)\n"
        "    try: load_mano(folder)\n"
        "    except UserError as error: print(error)\n"
        "    if peak() - before > 100_000: sys.exit(name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is not a hand model of MANO") == len(BOMBS)
