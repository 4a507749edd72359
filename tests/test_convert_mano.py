"""tool/convert_mano.py: the same hand model without a pickle, written whole or not at all."""

import hashlib
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import smplx
import torch
from fixtures_mano import mano_values, write_mano

from common.errors import UserError
from common.hands import Hand
from common.mano.files import load_mano
from common.mano.model import HandModel
from tool import convert_mano

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("MANO_RIGHT", "MANO_LEFT")


@pytest.fixture
def folder(tmp_path: Path, hand_model: HandModel) -> Path:
    return write_mano(tmp_path / "mano", hand_model)


@pytest.fixture
def convert(monkeypatch, capsys):
    """Run the tool's main function: what it printed."""
    def convert(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["convert_mano.py", *map(str, arguments)])
        convert_mano.main()
        return capsys.readouterr().out
    return convert


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_converted_files_are_the_same_hand_model(folder: Path, tmp_path: Path, convert):
    """Also without the pickles: data and snapshots made with one accept the other."""
    from_pickles = load_mano(str(folder))
    text = convert("--mano", folder)
    assert from_pickles.sha256 in text
    for name in NAMES:
        (folder / f"{name}.pkl").unlink()
    from_npz = load_mano(str(folder))
    assert from_npz.identity == from_pickles.identity
    for key in ("template", "shapedirs", "posedirs", "regressor", "weights", "faces", "mean_pose"):
        assert torch.equal(getattr(from_npz, key), getattr(from_pickles, key)), key


def test_the_report_names_the_digests_and_what_was_corrected(folder: Path, convert):
    text = convert("--mano", folder)
    for name in NAMES:
        assert sha256(folder / f"{name}.pkl") in text and sha256(folder / f"{name}.npz") in text
    assert text.count("not the official file of MANO 1.2") == 2 and text.count("corrected: nothing") == 1
    assert text.count("corrected: shapedirs mirrored in x (smplx issue 48)") == 1


def test_every_number_keeps_the_pickle_s_precision(folder: Path, convert, hand_model: HandModel):
    convert("--mano", folder)
    for hand, name in zip(Hand, NAMES, strict=True):
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            arrays = dict(file)
        expected = mano_values(hand_model, hand)
        expected.pop("bs_type")
        if hand is Hand.LEFT:
            expected["shapedirs"] = expected["shapedirs"] * np.array([-1, 1, 1])[:, None]
        assert set(arrays) == set(expected)
        for key, value in expected.items():
            np.testing.assert_array_equal(arrays[key], value)
            assert arrays[key].dtype == value.dtype


@pytest.mark.parametrize("hand", Hand)
def test_smplx_reads_the_converted_files(folder: Path, convert, hand: Hand):
    convert("--mano", folder)
    layer = smplx.MANO(str(folder), is_rhand=hand is Hand.RIGHT, use_pca=False, flat_hand_mean=False, ext="npz")
    model = load_mano(str(folder))
    torch.testing.assert_close(layer.v_template, model.template[hand])
    torch.testing.assert_close(layer.shapedirs, model.shapedirs[hand])
    torch.testing.assert_close(layer.pose_mean[3:], model.mean_pose[hand])


def test_nothing_is_replaced_without_force(folder: Path, convert):
    (folder / "MANO_LEFT.npz").write_bytes(b"precious")
    with pytest.raises(UserError, match=f"{folder / 'MANO_LEFT.npz'} exists already. Use --force"):
        convert("--mano", folder)
    assert (folder / "MANO_LEFT.npz").read_bytes() == b"precious" and not (folder / "MANO_RIGHT.npz").exists()
    convert("--mano", folder, "--force")
    before = {name: sha256(folder / f"{name}.npz") for name in NAMES}
    convert("--mano", folder, "--force")
    assert {name: sha256(folder / f"{name}.npz") for name in NAMES} == before       # the same bytes every time


def test_a_failed_write_leaves_what_was_there(folder: Path, convert, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")
    (folder / "MANO_RIGHT.npz").write_bytes(b"precious")
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match="No space left on device"):
        convert("--mano", folder, "--force")
    assert (folder / "MANO_RIGHT.npz").read_bytes() == b"precious"
    assert sorted(os.listdir(folder)) == ["MANO_LEFT.pkl", "MANO_RIGHT.npz", "MANO_RIGHT.pkl"]


def test_what_is_no_pickle_is_not_converted_again(folder: Path, convert):
    convert("--mano", folder)
    for name in NAMES:
        (folder / f"{name}.pkl").unlink()
    with pytest.raises(UserError, match="no pickles. There is nothing to convert"):
        convert("--mano", folder, "--force")


def test_the_folder_is_searched_and_relative_to_the_working_directory(folder: Path, convert, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert str(folder / "MANO_LEFT.npz") in convert("--mano", "mano")
    monkeypatch.setenv("MANO_DIR", str(folder))
    assert str(folder / "MANO_LEFT.npz") in convert("--force")


@pytest.mark.parametrize("content", [None, b"cos\nsystem\n(S'touch ran'\ntR."])
def test_a_mistake_is_one_paragraph_and_exit_code_2(folder: Path, monkeypatch, capsys, content: bytes | None):
    (folder / "MANO_LEFT.pkl").unlink() if content is None else (folder / "MANO_LEFT.pkl").write_bytes(content)
    before = sorted(os.listdir(folder))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["convert_mano.py", "--mano", "."])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "tool" / "convert_mano.py"), run_name="__main__")
    printed = capsys.readouterr()
    assert left.value.code == 2 and printed.out == "" and sorted(os.listdir(folder)) == before
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and "mano.is.tue.mpg.de" in printed.err
