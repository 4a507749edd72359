"""Fixtures shared by all tests."""

import pytest
import torch

from common.mano import HandModel, load_hand_model

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def hand_model() -> HandModel:
    """The built-in hand."""
    return load_hand_model("builtin")
