"""How bright images are, measured once and kept in the index: some of InterHand2.6M are black."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.images import BadImage, read_rgb
from common.workers import map_in_processes
from data.InterHand26M.annotations import BRIGHTNESS, Annotations
from data.InterHand26M.filters import choose
from data.InterHand26M.layout import Layout

_SAVE_EVERY = 20_000    # images: what an interruption can lose


def measure_brightness(annotations: Annotations, layout: Layout, split: str, workers: int) -> dict[Path, str]:
    """Measure the images that the filter ih_hm asks about and that were not measured before.

    Returns the images that could not be read, each with the reason; they stay unmeasured. An interrupted run goes
    on where it stopped, give or take some thousand images. Raises UserError where the index cannot be written.
    """
    brightness = annotations.brightness().copy()
    rows = annotations.samples.image_row[choose(annotations, layout, split, "ih_hm", "vertices").rows]
    rows = np.unique(rows[np.isnan(brightness[rows])])
    paths = [layout.images / annotations.file_name(row) for row in rows.tolist()]
    failures: dict[Path, str] = {}
    if not paths:
        return failures
    try:
        results = tqdm(_means(paths, workers), total=len(paths), unit="image", desc="measuring brightness")
        for count, (row, path, mean) in enumerate(zip(rows.tolist(), paths, results, strict=True), 1):
            if isinstance(mean, str):
                failures[path] = mean
            else:
                brightness[row] = mean
            if count % _SAVE_EVERY == 0:
                annotations.index.add_column(BRIGHTNESS, brightness)
    finally:
        annotations.index.add_column(BRIGHTNESS, brightness)
    return failures


def _means(paths: list[Path], workers: int) -> Iterator[float | str]:
    if workers == 1:
        yield from map(_mean, paths)
        return
    yield from map_in_processes(_mean, paths, workers, chunk=64)


def _mean(path: Path) -> float | str:
    """Mean over all pixels and channels, 0 to 255, or why there is none."""
    try:
        return float(read_rgb(path, upright=False).mean())
    except BadImage as bad:
        return str(bad)
