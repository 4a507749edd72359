"""Files as MANO ships them, made from the built-in hand: Python 2 pickles with chumpy and old scipy inside."""

import pickle
import struct
from pathlib import Path

import numpy as np
import scipy.sparse

from common.hands import Hand
from common.mano.model import HandModel

OLD_MODULES = {"builtins": "__builtin__", "numpy._core.multiarray": "numpy.core.multiarray",
               "scipy.sparse._csc": "scipy.sparse.csc", "copyreg": "copy_reg"}


class Python2Pickler(pickle._Pickler):
    """Writes as Python 2 did: text and bytes alike as raw strings, and modules under their names of then."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, text: bytes | str) -> None:
        data = text.encode("latin1") if isinstance(text, str) else text
        if self.proto == 0:
            self.write(b"S" + repr(data)[1:].encode() + b"\n")
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(text)

    def save_global(self, obj, name=None) -> None:
        module = OLD_MODULES.get(obj.__module__, obj.__module__)
        self.write(pickle.GLOBAL + f"{module}\n{obj.__qualname__}\n".encode())
        self.memoize(obj)

    dispatch[bytes] = dispatch[str] = save_string


def chumpy_node(module: str, name: str, **state):
    """An object that pickles like one of chumpy's: its state is its __dict__."""
    node = type(name, (), {"__module__": module})()
    node.__dict__.update(state, _dirty_vars={"x"}, _itr=None, _depends_on_deps={})
    return node


def mano_values(hand_model: HandModel, hand: Hand) -> dict:
    """A MANO-like file's content: the built-in hand's arrays with random offsets, without the left hand's sign."""
    rng = np.random.default_rng(7)
    signs = np.array([1.0 if hand is Hand.RIGHT else -1.0, 1.0, 1.0])
    return {
        "v_template": hand_model.template[Hand.RIGHT].double().numpy() * signs,
        "shapedirs": rng.normal(size=(778, 3, 10)) * 0.01,      # the same in both files: the known error
        "posedirs": rng.normal(size=(778, 3, 135)) * 1e-3,
        "J_regressor": hand_model.regressor[hand].double().numpy(),
        "weights": hand_model.weights[hand].double().numpy(),
        "f": hand_model.faces[hand].numpy().astype(np.uint32),
        "hands_mean": rng.normal(size=45) * 0.1,
        "kintree_table": np.array([[2**32 - 1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14], range(16)], np.uint32),
        "hands_components": np.eye(45),
        "bs_type": "lrotmin",
    }


def write_official(path: Path, values: dict, protocol: int = 2) -> None:
    """A pickle as MANO ships it: shapedirs is chumpy's Select of 10 of 20 columns, J_regressor a csc_matrix."""
    values = dict(values)
    wide = np.concatenate([values["shapedirs"], np.ones((778, 3, 10))], axis=2)
    columns = np.arange(wide.size).reshape(wide.shape)[..., :10].ravel()
    values["shapedirs"] = chumpy_node("chumpy.reordering", "Select", a=chumpy_node("chumpy.ch", "Ch", x=wide),
                                      idxs=columns, preferred_shape=(778, 3, 10))
    values["J"] = chumpy_node("chumpy.ch_ops", "add", a=1, b=2)     # other keys may hold nodes that nobody reads
    values["J_regressor"] = scipy.sparse.csc_matrix(values["J_regressor"])
    with open(path, "wb") as file:
        Python2Pickler(file, protocol).dump(values)
    content = path.read_bytes()
    assert b"cchumpy.reordering\nSelect\n" in content and b"cscipy.sparse.csc\ncsc_matrix\n" in content
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in content and b"c__builtin__\nset\n" in content


def write_mano(folder: Path, hand_model: HandModel) -> Path:
    """A folder with both pickles."""
    folder.mkdir(parents=True, exist_ok=True)
    for hand in Hand:
        write_official(folder / f"MANO_{hand.name}.pkl", mano_values(hand_model, hand))
    return folder
