"""Which rows of the annotations are used, and how many are not for each reason.

Legend: N annotations · 2 the hand axis.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import UserError
from common.files import cannot_read
from data.InterHand26M.annotations import Annotations
from data.InterHand26M.entries import HAND_TYPES
from data.InterHand26M.indexing import FAULTS
from data.InterHand26M.layout import Layout
from data.schema import BoxSource, Filter

DARK = 10.0     # mean of an image below which IntagHand, and who compares with it, leaves it out

# Frames of the filter ih_hm, as recorded by earlier papers: their "366K" and "261K".
PUBLISHED_COUNTS = {"train": 366_358, "test": 261_494}


class Choice(NamedTuple):
    """What a filter leaves."""

    rows: np.ndarray            # (n,) int32        rows of Annotations.samples
    meshes: int                 # hands in these rows that have one
    left_out: dict[str, int]    # reason: number of annotations
    broken: dict[str, np.ndarray]   # reason: rows of Annotations.samples that cannot be right
    unmeasured: int             # rows that the filter would leave out if it knew their image to be dark


def choose(annotations: Annotations, layout: Layout, split: str, filter: Filter, box_source: BoxSource) -> Choice:
    """The rows that `filter` keeps (see `data.schema.Filter`) and that can be right.

    Without a file of meshes ih_hm asks for both wrists instead. A row that fails several rules is counted once.
    """
    samples = annotations.samples
    rules = {FAULTS[code]: samples.fault != code for code in np.unique(samples.fault).tolist() if code}
    if box_source == "json":
        rules |= _box_rules(annotations)
    broken = {reason: np.flatnonzero(~passes) for reason, passes in rules.items() if not passes.all()}
    if filter == "ih_hm":
        rules |= _ih_hm_rules(annotations, layout)
    else:
        rules["without an annotated hand"] = (samples.has_mesh | samples.has_wrist).any(axis=1)
    if filter == "human":
        rules["not annotated by people"] = np.isin(samples.annotation_id, _human_ids(layout, split))
    keep, left_out = _apply(rules, len(samples.fault))
    rows = np.arange(len(keep), dtype=np.int32)[keep]
    unmeasured = np.isnan(annotations.brightness())[samples.image_row[rows]].sum() if filter == "ih_hm" else 0
    return Choice(rows, int(samples.has_mesh[keep].sum()), left_out, broken, int(unmeasured))


def _ih_hm_rules(annotations: Annotations, layout: Layout) -> dict[str, np.ndarray]:
    samples = annotations.samples
    has_meshes = layout.file("MANO_NeuralAnnot").is_file()
    complete, needed = (samples.has_mesh, "meshes") if has_meshes else (samples.has_wrist, "wrists")
    return {
        "not interacting": (samples.hand_type == HAND_TYPES.index("interacting")) & samples.type_valid,
        f"without both {needed}": complete.all(axis=1),
        "dark": ~(annotations.brightness() < DARK)[samples.image_row],
    }


def _apply(rules: dict[str, np.ndarray], count: int) -> tuple[np.ndarray, dict[str, int]]:
    """Which rows pass every rule, and how many fail each as their first one."""
    keep = np.ones(count, dtype=bool)
    left_out = {}
    for reason, passes in rules.items():
        left_out[reason] = int((keep & ~passes).sum())
        keep &= passes
    return keep, left_out


def _box_rules(annotations: Annotations) -> dict[str, np.ndarray]:
    """Boxes matter only where they are used: `bbox` is not looked at otherwise."""
    low, extent = annotations.samples.bbox[:, :2], annotations.samples.bbox[:, 2:]
    size = annotations.images.size[annotations.samples.image_row]
    return {"whose bbox has no area": (np.isfinite(extent) & (extent > 0)).all(axis=1),
            "whose bbox is outside the image": ((low < size) & (low + extent > 0)).all(axis=1)}


def human_list(layout: Layout, split: str) -> Path | None:
    """The file with the ids of annotations made by people, if it is there."""
    return next((path for path in _human_lists(layout, split) if path.is_file()), None)


def _human_lists(layout: Layout, split: str) -> list[Path]:
    name = f"aid_human_annot_{split}.txt"
    return [folder / name for folder in (layout.annotations, layout.annotations.parent)]


def _human_ids(layout: Layout, split: str) -> np.ndarray:
    """The ids in the list, which has one on each line; UserError where it is missing or holds something else."""
    path = human_list(layout, split)
    if path is None:
        tried = ", ".join(map(str, _human_lists(layout, split)))
        raise UserError(f"The filter 'human' needs a list of annotation ids. Tried: {tried}.",
                        "It comes with the code of InterWild and of EANet, for the splits train and test.")
    try:
        return np.array(path.read_text(encoding="utf-8-sig").split(), dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path} is not a list of annotation ids: {error}.", "It must hold one number on each line.") \
            from None
    except OSError as error:
        raise cannot_read(path, error) from None
