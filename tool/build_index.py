"""Index InterHand2.6M's annotations, and say what they hold.   python tool/build_index.py DATA_ROOT [--dark]

Training and testing build a missing index themselves; this does it beforehand, for all splits. `--dark` also reads the
images of interacting frames and notes how bright they are, so that the filter ih_hm can leave out the black ones, as
papers do. Both are done once: what is up to date is left as it is, and an interrupted --dark goes on where it stopped.
The index lies beside the annotations, or in $LGNET_CACHE (~/.cache/lgnet) where that folder cannot be written.

Exit code 4 if images could not be read.
"""

import _bootstrap

import logging
import time
from pathlib import Path

from common.errors import EXIT_OK, EXIT_SOME_FAILED, UserError, printable, run_entry_point
from data.InterHand26M.annotations import Annotations, open_annotations
from data.InterHand26M.brightness import measure_brightness
from data.InterHand26M.filters import PUBLISHED_COUNTS, choose, human_list
from data.InterHand26M.layout import Layout, find_layout
from tool.arguments import SPLITS, build_index_parser

NAMED_FAILURES = 10


def main() -> int:
    args = build_index_parser(__doc__).parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.workers < 1:
        raise UserError(f"--workers is {args.workers}.", "It must be at least 1.")
    failures = {}
    for split, layout in _layouts(args.root, args.split):
        start = time.perf_counter()
        annotations = open_annotations(layout, rebuild=args.force)
        print(f"{split}: {_size(annotations)}; {time.perf_counter() - start:.1f} s")
        if args.dark:
            failures |= measure_brightness(annotations, layout, split, args.workers)
        _print_filters(annotations, layout, split)
    for path, reason in list(failures.items())[:NAMED_FAILURES]:
        print(printable(f"{path}: {reason}"))
    if len(failures) > NAMED_FAILURES:
        print(f"and {len(failures) - NAMED_FAILURES} more")
    return EXIT_SOME_FAILED if failures else EXIT_OK


def _layouts(root: Path, splits: list[str]) -> list[tuple[str, Layout]]:
    """The splits asked for, or all that are there; UserError where there are none."""
    found = []
    for split in splits or SPLITS:
        try:
            found.append((split, find_layout(root, split)))
        except UserError:
            if splits or (split == SPLITS[-1] and not found):
                raise
    return found


def _size(annotations: Annotations) -> str:
    folder = annotations.index.folder
    size = sum(file.stat().st_size for file in folder.iterdir())
    return (f"{len(annotations.samples.annotation_id)} annotations of {len(annotations.images.image_id)} images, "
            f"{len(annotations.frames.frame)} time steps, {len(annotations.cameras.name)} cameras; "
            f"index of {size / 1e6:.1f} MB in {folder}")


def _print_filters(annotations: Annotations, layout: Layout, split: str) -> None:
    """What each filter of `data.filter` keeps."""
    for name in ("ih_hm", "human", "all") if human_list(layout, split) else ("ih_hm", "all"):
        choice = choose(annotations, layout, split, name, "vertices")
        left_out = ", ".join(f"{count} {reason}" for reason, count in choice.left_out.items() if count)
        published = f" (papers: {PUBLISHED_COUNTS[split]})" if name == "ih_hm" and split in PUBLISHED_COUNTS else ""
        print(f"  {name}: {len(choice.rows)} frames{published}; left out: {left_out or 'none'}")
        if choice.unmeasured:
            print(f"  the brightness of {choice.unmeasured} of them is not known: --dark measures it")


if __name__ == "__main__":
    run_entry_point(main)
