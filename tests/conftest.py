"""Fixtures shared by all tests."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from common.mano import HandModel, load_hand_model

MAIN = Path(__file__).resolve().parent.parent / "main"

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def hand_model() -> HandModel:
    """The built-in hand."""
    return load_hand_model("builtin")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run an entry point of main/ as a script in this process: its exit code and what it printed."""
    def run(script: str, *arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [str(MAIN / script), *map(str, arguments)])
        monkeypatch.syspath_prepend(MAIN)
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(MAIN / script), run_name="__main__")
        printed = capsys.readouterr()
        return left.value.code, printed.out + printed.err

    return run
