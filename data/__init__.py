"""Datasets: a reader for each, and one path from a reader to batches."""

from pathlib import Path

from common.errors import UserError
from common.mano import HandModel
from data.InterHand26M.annotations import HandTypes
from data.InterHand26M.reader import BoxSource, InterHand26M
from data.schema import Reader

READERS: dict[str, type[Reader]] = {"InterHand26M": InterHand26M}


def build_reader(name: str, *, root: str | Path, split: str, hand_model: HandModel, hand_types: HandTypes,
                 box_source: BoxSource) -> Reader:
    """The reader called `name`; UserError for a name that is not in `READERS`."""
    if name not in READERS:
        raise UserError(f"There is no dataset '{name}'.", f"It must be one of: {', '.join(READERS)}.")
    return READERS[name](root, split, hand_model, hand_types, box_source)
