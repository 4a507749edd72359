"""Datasets: a reader for each, and one path from a reader to batches."""

from collections.abc import Callable
from pathlib import Path

from common.errors import UserError
from common.mano.model import HandModel
from data.HIC.reader import HIC
from data.InterHand26M.reader import InterHand26M
from data.schema import BoxSource, Filter, Reader

READERS: dict[str, Callable[[str | Path, str, HandModel, Filter, BoxSource], Reader]] = {
    "InterHand26M": InterHand26M, "HIC": HIC,
}


def build_reader(name: str, *, root: str | Path, split: str, hand_model: HandModel, filter: Filter,
                 box_source: BoxSource) -> Reader:
    """The reader called `name`; UserError for a name that is not in `READERS`."""
    if name not in READERS:
        raise UserError(f"There is no dataset '{name}'.", f"It must be one of: {', '.join(READERS)}.")
    return READERS[name](root, split, hand_model, filter, box_source)
