"""The RGB2Hands benchmark (Wang et al., SIGGRAPH Asia 2020): four sequences with 2D joints of both hands.

    RGB2HANDS_Benchmark/[data/]seq01_crossed/color/17_color.png
                                            /annotation/annot2D_color/17_color2.5D.txt      rows "x y …", 0 0: missing
"""

from pathlib import Path

import numpy as np

from common.errors import UserError
from data.frames.listing import ImageFile, boxes_round, images_in, natural_order


def images(root: Path) -> list[ImageFile]:
    """The frames under `root`, the benchmark or one of its sequences; none if it is neither.

    A frame's box is the tight one round its own annotated joints, or round those of its whole sequence where the
    frame itself has none.
    """
    if _annotations(root).is_dir():
        return _sequence(root, prefix="")
    for base in (root, root / "data"):
        folders = [folder for folder in base.iterdir() if (folder / "color").is_dir()] if base.is_dir() else []
        if any(_annotations(folder).is_dir() for folder in folders):
            return [frame for folder in sorted(folders, key=natural_order)
                    for frame in _sequence(folder, prefix=f"{folder.name}/")]
    return []


def _annotations(sequence: Path) -> Path:
    return sequence / "annotation" / "annot2D_color"


def _sequence(folder: Path, prefix: str) -> list[ImageFile]:
    frames = {image.path.stem: image for image in images_in(folder / "color", prefix)}
    joints = {}
    for file in sorted(_annotations(folder).glob("[!.]*.txt")):
        frame = _frame_of(file.stem, frames)
        if frame is not None:
            joints[frame] = _read_joints(file)
    everything = boxes_round(np.concatenate([np.zeros((0, 2)), *joints.values()]))
    own = {frame: boxes_round(points) for frame, points in joints.items()}
    return [image._replace(boxes=own.get(frame) or everything) for frame, image in frames.items()]


def _frame_of(annotation: str, frames: dict[str, ImageFile]) -> str | None:
    """The frame whose name an annotation's name starts with: 1_color for 1_color2.5D, but not 1 for 10."""
    for end in range(len(annotation), 0, -1):
        cuts_a_number = annotation[end - 1:end + 1].isdigit() and end < len(annotation)
        if annotation[:end] in frames and not cuts_a_number:
            return annotation[:end]
    return None


def _read_joints(file: Path) -> np.ndarray:
    """The joints (N, 2) that are annotated, pixels."""
    joints = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            x, y = map(float, line.split()[:2])
        except ValueError:
            raise UserError(f"{file}, line {number}: '{line[:40]}' does not start with two numbers.",
                            "Unpack the benchmark again.") from None
        if x > 0 and y > 0:
            joints.append((x, y))
    return np.array(joints).reshape(-1, 2)
