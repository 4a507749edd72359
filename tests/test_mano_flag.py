"""`--mano FOLDER` of the entry points: which hand model is trained, and where a snapshot's hand model lies."""

import json
import socket
import sys
from pathlib import Path

import pytest
import torch
import yaml
from fixtures_interhand import write_interhand
from fixtures_mano import write_mano

from common.mano.files import load_mano
from main.config import config_to_dict, load_config, mano_overrides
from main.engine.run.snapshots import Snapshot, load_snapshot, save_snapshot, snapshot_path
from tool import convert_mano
from tool.doctor import check_hand_models

pytestmark = pytest.mark.usefixtures("connections")


@pytest.fixture
def connections(monkeypatch):
    """Hosts that something tried to reach; there must be none."""
    tried = []

    def refuse(*words: object, **_: object) -> None:
        tried.append(words)
        raise OSError("no network")
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert tried == []


@pytest.mark.parametrize("name", ["mano", "1e3", "yes", "~", "a: b", "[x", "0x1f", "my files", "null", 'quote"d'])
def test_any_folder_name_can_be_given(tmp_path: Path, monkeypatch, name: str):
    monkeypatch.chdir(tmp_path)
    config = load_config("lgnet", mano_overrides(f"./{name}"))
    assert (config.hand_model.name, config.hand_model.path) == ("mano", str(tmp_path / name))


def test_without_the_flag_nothing_changes():
    assert mano_overrides(None) == []


def test_files_that_are_not_there_are_one_paragraph_and_exit_code_2(run, tmp_path: Path):
    code, text = run("train.py", "--gpu", "cpu", "--mano", tmp_path / "nowhere", "--set", f"output={tmp_path / 'run'}")
    assert code == 2 and "Traceback" not in text
    assert "https://mano.is.tue.mpg.de" in text and str(tmp_path / "nowhere" / "models") in text


@pytest.mark.slow
def test_training_testing_and_demo_use_the_files_wherever_they_lie(run, hand_model, tmp_path: Path, monkeypatch):
    """Trained with the pickles, tested with their .npz from another folder, used with neither when they are gone."""
    mano = write_mano(tmp_path / "MANO files", hand_model)
    for split in ("train", "test"):
        root = write_interhand(tmp_path / "data", load_mano(str(mano)), split).root
    config = {"model": {"backbone": "resnet18", "input_size": 64, "channels": 32, "variants": ["lgfa_prenorm"]},
              "train": {"epochs": 1, "batch_size": 3, "validate_every": 0}, "data": {"root": str(root), "workers": 0}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    output = tmp_path / "run"

    code, text = run("train.py", "--gpu", "cpu", "--config", tmp_path / "tiny.yaml", "--mano", mano, "--set",
                     f"output={output}")
    assert code == 0, text
    snapshot, _ = load_snapshot(output / "model_dump" / "snapshot_0.pth.tar")
    assert snapshot.hand_model == load_mano(str(mano)).identity

    monkeypatch.setattr(sys, "argv", ["convert_mano.py", "--mano", str(mano)])
    convert_mano.main()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for hand in ("RIGHT", "LEFT"):
        (mano / f"MANO_{hand}.npz").rename(elsewhere / f"MANO_{hand}.npz")
        (mano / f"MANO_{hand}.pkl").unlink()
    arguments = ["--gpu", "cpu", "--test_epoch", 0, "--output", output]
    code, text = run("test.py", *arguments)
    assert code == 2 and "--mano FOLDER" in text and str(mano / "models") in text
    code, text = run("test.py", *arguments, "--mano", elsewhere)
    assert code == 0, text
    assert json.loads((output / "result" / "metrics.json").read_text())["hand_model"] == snapshot.hand_model

    picture = next((root / "images" / "test").rglob("*.jpg"))
    code, text = run("demo.py", "--gpu", "cpu", "--checkpoint", output / "model_dump" / "snapshot_0.pth.tar", "--input",
                     picture, "--output", tmp_path / "demo", "--mano", elsewhere)
    assert code == 0, text


def write_snapshot(output: Path, overrides: list[str], hand_model: dict[str, str]) -> None:
    config = config_to_dict(load_config("lgnet", overrides))
    snapshot = Snapshot(model={}, optimizer={}, random_states=[], step=1, next_epoch=1, next_sample=0, config=config,
                        hand_model=hand_model, mean_joints=torch.zeros(2, 21, 3), torch_version="", world_size=1)
    save_snapshot(snapshot, snapshot_path(output / "model_dump", 0))


def test_a_snapshot_of_the_built_in_hand_refuses_the_flag(run, hand_model, tmp_path: Path):
    write_snapshot(tmp_path, [], hand_model.identity)
    mano = write_mano(tmp_path / "mano", hand_model)
    code, text = run("test.py", "--gpu", "cpu", "--test_epoch", 0, "--output", tmp_path, "--mano", mano)
    assert code == 2 and "hand_model.name builtin → mano" in text and "Traceback" not in text


def test_a_snapshot_of_other_mano_files_refuses_these(run, hand_model, tmp_path: Path):
    mano = write_mano(tmp_path / "mano", hand_model)
    write_snapshot(tmp_path, mano_overrides("gone"), {"name": "mano", "sha256": "0" * 64})
    code, text = run("test.py", "--gpu", "cpu", "--test_epoch", 0, "--output", tmp_path, "--mano", mano)
    assert code == 2 and "made with the hand model 'mano' (sha256 000000000000)" in text and "Traceback" not in text


def test_the_doctor_looks_at_the_files_that_the_flag_names(hand_model, tmp_path: Path):
    mano = write_mano(tmp_path / "mano", hand_model)
    builtin, found = check_hand_models("lgnet", str(mano))
    assert builtin.startswith("builtin, sha256") and "(in use)" not in builtin
    assert found.startswith(f"mano in {mano}, sha256 {load_mano(str(mano)).sha256[:12]}")
    assert "MANO_LEFT.pkl: shapedirs mirrored in x" in found and found.endswith("(in use)")
    (mano / "MANO_RIGHT.pkl").write_bytes(b"cos\nsystem\n.")
    _, found = check_hand_models("lgnet", str(mano))
    assert found.startswith("!") and "refers to 'os.system'" in found
