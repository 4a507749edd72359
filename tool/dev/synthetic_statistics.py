"""Statistics of the poses in rendered sets, as numbers and as one figure.

python tool/dev/synthetic_statistics.py --frames 10000 --seed 0 --out FIGURE.png [--workers 2]

Samples frames as a training set has them, without images, and measures contact and penetration, occlusion, camera
directions, and wrist and finger angles. The numbers are printed and written to FIGURE.json. Ctrl-C ends the sampling
early; the frames so far are reported.
"""

import _bootstrap

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from common.errors import UserError, run_entry_point
from common.geometry import vertex_normals
from common.hands import MODEL16, Hand
from common.mano.load import load_hand_model
from common.view.rasterizer import rasterize
from common.workers import map_in_processes
from data.synthetic.picture.camera import STUDIO_SHARE, Camera, sample_cameras
from data.synthetic.pose.arm import wrist_angles
from data.synthetic.pose.families import sample_kind
from data.synthetic.pose.interaction import own_depth_mm
from data.synthetic.pose.posing import HandSet, Step, build_hand_set, pose_steps

_BLOCK = 64                     # frames that a process samples at once
_CLOSELY = 5                    # every fifth frame is also measured for self-penetration and occlusion, which take long
_INTERACTING = 0.8              # share of frames with both hands, as in `make_synthetic.py`
_SIDE = 160                     # pixels of the z-buffer that finds hidden vertices
_BEHIND = 0.004                 # metres behind the nearest surface beyond which a vertex is hidden
_DEEPEST_SHOWN = 5.0            # mm
_CELLS = (8, 12)                # equal areas of the sphere: bands of height, sectors of azimuth
_ANGLES = {"first joint, flexion": ("1", 0), "second joint, flexion": ("2", 0), "last joint, flexion": ("3", 0),
           "first joint, spread": ("1", 1)}


class Frame(NamedTuple):
    """Measurements of a frame."""

    kind: str
    is_contact: bool
    depth_mm: float             # of the deepest vertex in the other hand; nan for one hand
    gap_mm: float
    own_depth_mm: float         # self-penetration, the larger of the present hands; nan where not measured
    hidden: float               # share of the vertices of the present hands; nan where not measured
    hidden_by_other: float      # share hidden by the other hand alone; nan where not measured
    view: np.ndarray            # (2, 3) from each hand to the camera, in the rest frame of a right hand; nan if absent
    wrist_distance: float       # metres
    wrist_degrees: np.ndarray   # (2, 2) extension, deviation; nan if absent
    angles: np.ndarray          # (2, 15, 3) degrees; nan if absent


def main() -> None:
    args = _parse_args()
    if args.frames < 1 or args.workers < 1:
        raise UserError("--frames and --workers must be at least 1.")
    blocks = [(args.seed, range(start, min(start + _BLOCK, args.frames)))
              for start in range(0, args.frames, _BLOCK)]
    frames, seconds = [], 0.0
    with tqdm(total=args.frames, unit="frame") as bar, suppress(KeyboardInterrupt):
        for block, posing_seconds in _all_blocks(blocks, args.workers):
            frames += block
            seconds += posing_seconds
            bar.update(len(block))
    table = summary(frames)
    table["posing, ms of one core per frame"] = round(1000 * seconds / len(frames), 1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(table, indent=1), encoding="utf-8")
    draw(frames, args.out)
    for name, value in table.items():
        print(f"{name:58s} {value}")


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="PNG, JPEG or PDF to write")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one for each CPU)")
    return parser.parse_args()


# ---------------------------------------------------------------- measurement

def _all_blocks(blocks: list, workers: int) -> Iterator[tuple[list[Frame], float]]:
    if workers == 1:
        yield from map(_measure_block, blocks)
        return
    yield from map_in_processes(_measure_block, blocks, workers, prepare=partial(torch.set_num_threads, 1))


def _measure_block(block: tuple[int, range]) -> tuple[list[Frame], float]:
    """The frames of a block (seed, indices), and the processor time of posing them, seconds."""
    seed, indices = block
    hands = _hands()
    rngs = [np.random.default_rng([seed, index]) for index in indices]
    kinds = [sample_kind(_INTERACTING, rng) for rng in rngs]
    shapes = np.stack([np.clip(rng.normal(0, 0.9, 10), -2.2, 2.2) for rng in rngs])
    start = time.process_time()
    steps = pose_steps(kinds, shapes, rngs, hands.solver)
    seconds = time.process_time() - start
    return [_measure_frame(*row, hands, index % _CLOSELY == 0) for *row, index in zip(
        kinds, steps, rngs, indices, strict=True)], seconds


@cache
def _hands() -> HandSet:
    return build_hand_set(load_hand_model("builtin"))


def _measure_frame(kind: str, step: Step, rng: np.random.Generator, hands: HandSet, closely: bool) -> Frame:
    camera, = sample_cameras(1, bool(rng.random() < STUDIO_SHARE), rng)
    meeting = step.interaction(hands.model)
    absent = [hand for hand in Hand if hand not in step.present]
    to_camera = camera.position - step.vertices.mean(axis=1)                        # (2, 3)
    to_camera[Hand.LEFT, 0] *= -1
    view = np.einsum("hji,hj->hi", step.rotation_own, to_camera / np.linalg.norm(to_camera, axis=1, keepdims=True))
    wrist_degrees = np.degrees(np.stack(wrist_angles(step.rotation_own, step.forearm_own), axis=-1))
    angles = np.degrees(step.angles.astype(float))
    for table in (view, wrist_degrees, angles):
        table[absent] = np.nan
    own = hidden = by_other = np.nan
    if closely:
        bones = hands.solver.dominant.numpy()
        own = max(own_depth_mm(step.vertices[hand].astype(float), hands.model.faces[hand].numpy(), bones)
                  for hand in step.present)
        hidden, by_other = _hidden_shares(step, camera, hands)
    return Frame(kind, bool(meeting and meeting.is_contact), meeting.max_depth_mm if meeting else np.nan,
                 meeting.gap_mm if meeting else np.nan, own, hidden, by_other, view,
                 float(np.linalg.norm(step.wrist[Hand.LEFT] - step.wrist[Hand.RIGHT])), wrist_degrees, angles)


def _hidden_shares(step: Step, camera: Camera, hands: HandSet) -> tuple[float, float]:
    """Shares of the present hands' vertices that the camera cannot see, and that only the other hand hides."""
    present = list(step.present)
    projected = np.stack([camera.to_px(step.vertices[hand]) for hand in present])
    low, high = projected[..., :2].min(axis=(0, 1)), projected[..., :2].max(axis=(0, 1))
    projected[..., :2] = (projected[..., :2] - low) * ((_SIDE - 1) / (high - low).max())
    pixels = torch.from_numpy(projected).float()
    fragments = rasterize(pixels, hands.model.faces[present], _SIDE, _SIDE)
    column, row = pixels[..., :2].round().long().clamp(0, _SIDE - 1).unbind(-1)
    surface = torch.stack([depth[row, column] for depth in fragments.depth], dim=1)  # (hands, surfaces, 778)
    behind = (pixels[..., 2][:, None] > surface + _BEHIND).numpy()
    normals = vertex_normals(torch.from_numpy(step.vertices), hands.model.faces).numpy()
    facing = ((camera.position - step.vertices) * normals).sum(axis=-1)[present] > 0
    own = np.array([behind[k, k] for k in range(len(present))]) | ~facing
    other = np.array([behind[k, 1 - k] for k in range(len(present))]) if len(present) == 2 else np.zeros_like(own)
    return float((own | other).mean()), float((other & ~own).mean())


# ---------------------------------------------------------------- numbers

def summary(frames: list[Frame]) -> dict[str, Any]:
    """The numbers of the report."""
    pairs = [frame for frame in frames if not np.isnan(frame.depth_mm)]
    closely = [frame for frame in frames if not np.isnan(frame.hidden)]
    depth, own = np.array([f.depth_mm for f in pairs]), np.array([f.own_depth_mm for f in closely])
    hidden = np.array([f.hidden for f in closely])
    views = _present(frames, "view")
    table: dict[str, Any] = {
        "frames": len(frames), "of them with two hands": len(pairs),
        "in contact (nearer than 2 mm), share": _share([f.is_contact for f in pairs]),
        "depth in the other hand, 50th, 95th, 100th percentile, mm": _percentiles(depth, 50, 95, 100),
        "the same over frames in contact": _percentiles(depth[[f.is_contact for f in pairs]], 50, 95, 100),
        "deeper than 3 mm, share": _share(depth > 3),
        "frames measured for what follows": len(closely),
        "depth in the own hand, 50th, 95th, 100th percentile, mm": _percentiles(own, 50, 95, 100),
        "hidden share of vertices, mean": _share(hidden),
        "hidden share of vertices, 5th, 95th percentile": _percentiles(hidden, 5, 95),
        "hidden by the other hand alone, mean, two hands": _share(
            [f.hidden_by_other for f in closely if not np.isnan(f.depth_mm)]),
        "distance of the wrists, 5th, 50th, 95th percentile, mm": _percentiles(
            1000 * np.array([f.wrist_distance for f in pairs]), 5, 50, 95),
        "camera directions: cells of 96 that hold any": int((_cell_counts(views) > 0).sum()),
        "camera directions: fullest and emptiest cell over the mean": _percentiles(
            _cell_counts(views).ravel() * 96 / len(views), 100, 0),
        "camera directions: length of the mean direction": round(float(np.linalg.norm(views.mean(axis=0))), 3),
        "wrists within 2 degrees of a limit, share": _share(_at_limit(_present(frames, "wrist_degrees"))),
    }
    kinds = sorted({frame.kind for frame in frames})
    return table | {f"  {kind}": _line([f for f in frames if f.kind == kind]) for kind in kinds}


def _line(frames: list[Frame]) -> str:
    """A line of the report about one family."""
    own = np.array([f.own_depth_mm for f in frames if not np.isnan(f.own_depth_mm)])
    line = f"{len(frames)} frames, own depth 95 % {_percentiles(own, 95)} mm"
    if np.isnan(frames[0].depth_mm):
        return line
    depth = np.array([f.depth_mm for f in frames])
    return f"{line}, contact {np.mean([f.is_contact for f in frames]):.2f}, depth {_percentiles(depth, 50, 95)} mm"


def _present(frames: list[Frame], name: str) -> np.ndarray:
    """Rows of the tables (2, ...) named `name`, of all present hands."""
    rows = np.concatenate([getattr(frame, name) for frame in frames])
    return rows[~np.isnan(rows).reshape(len(rows), -1).any(axis=1)]


def _share(flags) -> float:
    return round(float(np.mean(flags)), 4)


def _percentiles(values: np.ndarray, *percents: float) -> list[float]:
    return [round(float(v), 3) for v in np.percentile(values, percents)] if len(values) else []


def _at_limit(degrees: np.ndarray) -> np.ndarray:
    return (np.abs(degrees) > np.array([60, 22])).any(axis=1)


def _cell_counts(directions: np.ndarray) -> np.ndarray:
    """Number of directions (N, 3) in each cell of equal area: height along y by azimuth around it, from x."""
    height, azimuth = directions[:, 1], np.arctan2(directions[:, 2], directions[:, 0])
    return np.histogram2d(height, azimuth, bins=_CELLS, range=((-1, 1), (-np.pi, np.pi)))[0]


# ---------------------------------------------------------------- the figure

def draw(frames: list[Frame], path: Path) -> None:
    """Write all statistics as one figure."""
    import matplotlib  # imported here so that processes that only pose hands start sooner

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(3, 4, figsize=(16, 11.5), layout="constrained", gridspec_kw={"hspace": 0.08})
        _draw_meeting(axes[0], frames)
        _draw_views(axes[0, 3], frames, plt)
        _draw_wrists(axes[1], frames)
        for axis, (name, (joint, angle)) in zip(axes[2], _ANGLES.items(), strict=True):
            _draw_angles(axis, name, joint, angle, frames)
        pairs = np.mean([not np.isnan(frame.depth_mm) for frame in frames])
        figure.suptitle(f"{len(frames)} frames, {pairs:.0%} of them with two hands", fontsize=12)
        figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_meeting(axes, frames: list[Frame]) -> None:
    """Contact, penetration, self-penetration and occlusion."""
    pairs = [frame for frame in frames if not np.isnan(frame.depth_mm)]
    kinds = sorted({frame.kind for frame in pairs})
    shares = np.array([np.mean([f.is_contact for f in pairs if f.kind == kind]) for kind in kinds])
    order = np.argsort(shares, kind="stable")
    axes[0].barh([kinds[k].replace("_", " ") for k in order], 100 * shares[order], color="#7a9cc6")
    axes[0].set(title=f"hands in contact: {np.mean([f.is_contact for f in pairs]):.0%} of the pairs", xlim=(0, 100),
                xlabel="% of the family's pairs")

    closely = [frame for frame in frames if not np.isnan(frame.hidden)]
    bins = np.linspace(0, _DEEPEST_SHOWN, 41)
    for name, depth, colour, filled in (
            ("other hand", np.array([f.depth_mm for f in pairs]), "#c0504d", True),
            ("own hand", np.array([f.own_depth_mm for f in closely]), "#333333", False)):
        middle, high = np.percentile(depth, (50, 95))
        axes[1].hist(np.minimum(depth, _DEEPEST_SHOWN), bins, weights=np.full(len(depth), 100 / len(depth)),
                     color=colour, histtype="bar" if filled else "step", alpha=0.55 if filled else 1,
                     label=f"in the {name}: median {middle:.2f} mm,\n95th percentile {high:.2f} mm, "
                           f"{np.mean(depth > 3):.1%} over 3 mm")
        axes[1].vlines([middle, high], 0, 100, color=colour, linestyles=[":", "--"])
    axes[1].set(title="penetration: depth of the deepest vertex", yscale="log", ylim=(0.008, 4000),
                xlabel="mm; dotted: median, dashed: 95th percentile", ylabel="% of pairs, of frames",
                yticks=[0.01, 0.1, 1, 10, 100], yticklabels=["0.01", "0.1", "1", "10", "100"])
    axes[1].legend(frameon=False, loc="upper left", handlelength=1)

    for name, shares, colour, filled in (
            ("all", np.array([f.hidden for f in closely]), "#7ab08a", True),
            ("by the other hand alone", np.array([f.hidden_by_other for f in closely if not np.isnan(f.depth_mm)]),
             "#333333", False)):
        axes[2].hist(100 * shares, 40, color=colour, histtype="bar" if filled else "step",
                     label=f"{name}: mean {shares.mean():.0%}")
    axes[2].set(title="vertices that the camera does not see", xlabel="% of the vertices", ylabel="frames")
    axes[2].legend(frameon=False)


def _draw_views(axis, frames: list[Frame], plt) -> None:
    counts = _cell_counts(_present(frames, "view"))
    image = axis.imshow(counts * counts.size / counts.sum(), origin="lower", extent=(-180, 180, -1, 1),
                        aspect="auto", cmap="viridis", vmin=0)
    axis.set(title=f"camera directions from the hand:\n{(counts > 0).sum()} of {counts.size} equal areas hold some",
             xlabel="degrees around the axis through palm and back", yticks=[-1, 0, 1],
             yticklabels=["palm", "edge", "back"])
    plt.colorbar(image, ax=axis, label="density; 1 is even")


def _draw_wrists(axes, frames: list[Frame]) -> None:
    """Distance of the wrists; angles of wrists, thumb and last finger joints."""
    axes[0].hist([1000 * f.wrist_distance for f in frames if not np.isnan(f.depth_mm)], 50, color="#a58ac0")
    axes[0].set(title="distance of the wrists", xlabel="mm", ylabel="pairs")
    wrists = _present(frames, "wrist_degrees")
    axes[1].hexbin(wrists[:, 1], wrists[:, 0], gridsize=30, cmap="viridis", mincnt=1)
    axes[1].set(title="wrists", xlabel="deviation towards the thumb, degrees", ylabel="extension, degrees")
    bent = _present(frames, "angles")
    thumb = bent[:, MODEL16.index("thumb1") - 1]
    axes[2].hexbin(thumb[:, 0], thumb[:, 1], gridsize=30, cmap="viridis", mincnt=1)
    axes[2].set(title="thumb's carpal joint", xlabel="flexion, degrees", ylabel="abduction, degrees")
    middle, last = (bent[:, [MODEL16.index(f"{f}{k}") - 1 for f in ("index", "middle", "ring", "pinky")], 0].ravel()
                    for k in (2, 3))
    axes[3].hexbin(middle, last, gridsize=30, cmap="viridis", bins="log", mincnt=1)
    axes[3].set(title="fingers: the last joint follows the second", xlabel="second joint, degrees",
                ylabel="last joint, degrees")


def _draw_angles(axis, name: str, joint: str, angle: int, frames: list[Frame]) -> None:
    angles = _present(frames, "angles")
    for finger in ("index", "middle", "ring", "pinky"):
        axis.hist(angles[:, MODEL16.index(f"{finger}{joint}") - 1, angle], 60, histtype="step", label=finger)
    axis.set(title=name, xlabel="degrees", ylabel="hands")
    axis.legend(frameon=False)


if __name__ == "__main__":
    run_entry_point(main)
