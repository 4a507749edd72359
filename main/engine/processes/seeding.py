"""Random state: set from (seed, rank), read into plain values for a snapshot, and put back."""

import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int, rank: int) -> None:
    """Seed Python, NumPy and torch on every device. Another rank gives another stream."""
    python_seed, numpy_seed, torch_seed = np.random.SeedSequence([seed, rank]).generate_state(3).tolist()
    random.seed(python_seed)
    np.random.seed(numpy_seed)
    torch.manual_seed(torch_seed)


def random_state() -> dict[str, Any]:
    """The state of all generators of this process, as tensors and plain values."""
    _, keys, *position = np.random.get_state(legacy=True)
    state = {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(np.asarray(keys, dtype=np.int64)), *position),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` gave. A CUDA state is left out where there is no CUDA."""
    random.setstate(state["python"])
    keys, *position = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *position))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
