"""Where the files of InterHand2.6M are, in the layouts in which it travels."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.schema import NoSuchSplit

_HINT = (
    "Render a set with `python tool/make_synthetic.py --out {root}`, or download InterHand2.6M (5 fps, v1.0) from "
    "https://mks0601.github.io/InterHand2.6M/ and point data.root at the folder that holds 'annotations' and 'images'."
)


class Layout(NamedTuple):
    """The files of one split."""

    annotations: Path   # folder
    stem: str           # what every annotation file name starts with
    data_kind: str      # "data", or "data_hm" after a rename that EANet users know
    images: Path        # folder that `file_name` is relative to

    def file(self, kind: str) -> Path:
        return self.annotations / f"{self.stem}_{kind}.json"

    @property
    def data(self) -> Path:
        return self.file(self.data_kind)


def find_layout(root: Path, split: str) -> Layout:
    """The first layout under `root` that has annotations of `split`; NoSuchSplit lists all that were tried."""
    layouts = list(_layouts(root, split))
    for layout in layouts:
        if layout.data.is_file():
            return layout
    tried = ", ".join(str(layout.data) for layout in layouts)
    raise NoSuchSplit(f"There are no InterHand2.6M annotations of split '{split}'. Tried: {tried}.",
                      _HINT.format(root=root))


def _layouts(root: Path, split: str) -> Iterator[Layout]:
    for base in (root, root / "InterHand2.6M_5fps_batch1"):
        # v1.0 has one folder for each split; earlier releases one for each kind of annotation.
        for folder in (split, "all", "human_annot", "machine_annot"):
            for kind in ("data", "data_hm"):
                annotations = base / "annotations" / folder
                yield Layout(annotations, f"InterHand2.6M_{split}", kind, base / "images" / split)
    # A few frames beside their annotations in one flat folder, as in mmpose's test data.
    yield Layout(root, f"{split}_interhand2.6m", "data", root)
