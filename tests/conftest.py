"""Fixtures shared by all tests."""

import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from fixtures_interhand import write_interhand
from scorecard_marker import pytest_collection_modifyitems  # noqa: F401   a hook that pytest finds here

from common.mano.load import load_hand_model
from common.mano.model import HandModel

ROOT = Path(__file__).resolve().parent.parent

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def hand_model() -> HandModel:
    """The built-in hand."""
    return load_hand_model("builtin")


@pytest.fixture(scope="session")
def data_root(tmp_path_factory) -> Path:
    """Where `dataset` lies."""
    return tmp_path_factory.mktemp("interhand") / "data"


@pytest.fixture(scope="session")
def dataset(data_root, hand_model):
    """The toy set of `toy_training`, augmented as for training."""
    from toy_training import toy_dataset

    return toy_dataset(data_root, hand_model)


@pytest.fixture(scope="session")
def test_dataset(data_root, hand_model, dataset):
    """The same samples as `dataset`, as for testing."""
    from toy_training import toy_dataset

    return toy_dataset(data_root, hand_model, augment=False)


@pytest.fixture(scope="session")
def few(data_root, hand_model, dataset):
    """Two of the samples of `test_dataset`."""
    from toy_training import toy_dataset

    from data.subset import EvenSubset

    samples = toy_dataset(data_root, hand_model, augment=False)
    samples.reader = EvenSubset(samples.reader, 2)
    return samples


@pytest.fixture(scope="session")
def reference(dataset, tmp_path_factory):
    """The end of a `SHORT` run that nothing disturbed, in which nothing was saved inside epochs or scored."""
    from toy_training import SHORT, toy_trainer

    from main.engine.run.snapshots import load_latest

    output = tmp_path_factory.mktemp("reference")
    assert toy_trainer(dataset, output, **SHORT).fit() == 0
    return load_latest(output / "model_dump")[0]


@pytest.fixture(scope="session")
def config_file(hand_model, tmp_path_factory) -> Path:
    """A configuration of a small LGNet on a small set; run folders are given by --set output."""
    import yaml

    folder = tmp_path_factory.mktemp("cli")
    write_interhand(folder / "data", hand_model, "train", seed=0)
    write_interhand(folder / "data", hand_model, "test", seed=1)
    write_interhand(folder / "data", hand_model, "val", seed=2)
    config = {
        "model": {"backbone": "resnet18", "input_size": 64, "channels": 32, "variants": ["lgfa_prenorm"]},
        "train": {"epochs": 2, "batch_size": 3, "lr": 5e-4, "log_every": 1},
        "data": {"root": str(folder / "data"), "workers": 0, "val_samples": 4},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def written(tmp_path_factory, hand_model):
    """A small set in InterHand2.6M's format, and what was written into it."""
    return write_interhand(tmp_path_factory.mktemp("interhand"), hand_model)


@pytest.fixture
def copy(written, tmp_path) -> Path:
    """A root of that set that a test may damage."""
    return Path(shutil.copytree(written.root, tmp_path / "set"))


@pytest.fixture
def run(monkeypatch, capsys):
    """Run an entry point of main/ or, with its folder, of tool/ as a script in this process: its exit code and what it
    printed."""
    def run(script: str, *arguments: object) -> tuple[int, str]:
        program = ROOT / script if "/" in script else ROOT / "main" / script
        monkeypatch.setattr(sys, "argv", [str(program), *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(program), run_name="__main__")
        printed = capsys.readouterr()
        return left.value.code, printed.out + printed.err

    return run
