"""Curves of a test as CSV files and as figures that fit a column of a paper."""

import csv
import io
import itertools
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.files import write_atomically
from common.score.curves import BinnedCurve
from common.score.metrics import AUC_END, THRESHOLDS, PckOptions, Protocol
from common.score.tally import PckCurve, Tally

_SIZE = (3.4, 2.5)          # inches
_STYLE: dict[Any, Any] = {
    "font.size": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.fontsize": 7,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "pdf.fonttype": 42,
    "savefig.dpi": 300}
_COLOR = "#1f5fa8"


class _Axis(NamedTuple):
    """What is on the x axis of a binned curve."""

    column: str             # of Tally.samples
    label: str
    unit: str
    definition: str
    edges: tuple[float, ...] = ()   # bins that are always the same, drawn side by side; left out: along a scale


_ROTATIONS = _Axis(
    "rotation_asymmetry", "Asymmetry: mean angle between finger rotations\nof the right and the mirrored left hand",
    "degrees", "mean angle over the 15 finger rotations, the left hand's mirrored")
_JOINTS = _Axis(
    "joint_asymmetry", "Asymmetry: mean distance between joints of\nthe right and the mirrored, turned left hand", "mm",
    "mean distance of the joints, the left hand mirrored and turned about the wrist to fit")
# A hand mesh has edges of some 8 mm, so the closest vertices of hands that touch lie up to about 5 mm apart.
_DISTANCE = _Axis(
    "hand_distance", "Distance of the hands: closest mesh vertices", "mm",
    "smallest distance between a vertex of one true mesh and a vertex of the other", (0, 5, 20, 50, 100, np.inf))


def write_curves(tally: Tally, protocol: Protocol, folder: Path, bins: tuple[float, ...] = ()) -> dict[str, Any]:
    """Write the curves `pck`, `asymmetry` and `distance` as .csv, .pdf and .png into a folder. Plain JSON values of the
    last two come back, None for a curve that has no sample.

    bins: edges for the asymmetry, in its unit; left out, six bins hold equally many samples. The bins of the distance
    are always the same, the last one without an upper edge.

    The asymmetry is that of the finger rotations where any sample has model parameters, else that of the joints.
    """
    pck = tally.pck_curve(protocol)
    _write_csv(folder / "pck.csv", {"threshold_mm": THRESHOLDS, "share": pck.share, "low_95": pck.low,
                                    "high_95": pck.high})
    _write_figure(folder / "pck", _draw_pck, pck, protocol, tally.pck)

    has_parameters = not np.isnan(tally.samples()["rotation_asymmetry"]).all()
    axes = {"asymmetry": (_ROTATIONS if has_parameters else _JOINTS, bins), "distance": (_DISTANCE, _DISTANCE.edges)}
    return {name: _write_binned(tally, protocol, folder / name, *axis) for name, axis in axes.items()}


def _write_binned(tally: Tally, protocol: Protocol, path: Path, axis: _Axis,
                  edges: tuple[float, ...]) -> dict[str, Any] | None:
    curve = tally.binned(protocol, axis.column, edges)
    if curve is None:
        for kind in ("csv", "pdf", "png"):      # of an earlier test
            path.with_suffix(f".{kind}").unlink(missing_ok=True)
        return None
    _write_csv(path.with_suffix(".csv"), {
        f"from_{axis.unit}": curve.edges[:-1], f"to_{axis.unit}": curve.edges[1:], f"mean_{axis.unit}": curve.center,
        "mpjpe_mm": curve.error, "low_95": curve.low, "high_95": curve.high, "samples": curve.count})
    _write_figure(path, _draw_binned, curve, protocol, axis)
    columns = {name: [None if np.isnan(value) else value for value in values.tolist()]
               for name, values in curve._asdict().items()}
    return {"x": axis.definition, "unit": axis.unit, "protocol": protocol.name, **columns}


def _draw_pck(axes: Axes, curve: PckCurve, protocol: Protocol, options: PckOptions) -> None:
    axes.fill_between(THRESHOLDS, 100 * curve.low, 100 * curve.high, color=_COLOR, alpha=0.2, linewidth=0)
    axes.plot(THRESHOLDS, 100 * curve.share, color=_COLOR, linewidth=1.2)
    root = ", without the root" if options.exclude_root else ""
    legend = f"protocol {protocol.name}{root}\nAUC {curve.auc:.2f} %, {curve.count:,} joints\nband: 95 % interval"
    axes.text(0.97, 0.05, legend, transform=axes.transAxes, ha="right", va="bottom", fontsize=7)
    axes.set(xlim=(0, AUC_END), ylim=(0, 100), xlabel="Error threshold (mm)",
             ylabel=f"Joints {'below' if options.strict else 'within'} the threshold (%)")
    axes.grid(linewidth=0.3, alpha=0.5)


def _draw_binned(axes: Axes, curve: BinnedCurve, protocol: Protocol, axis: _Axis) -> None:
    full = np.flatnonzero(curve.count)
    x = full if axis.edges else curve.center[full]
    error = curve.error[full]
    bars = np.nan_to_num(np.abs(np.stack([curve.low, curve.high])[:, full] - error))
    axes.errorbar(x, error, yerr=bars, color=_COLOR, linewidth=1.2, elinewidth=0.8, capsize=2, marker="o", markersize=3)
    axes.set(xlabel=f"{axis.label} ({axis.unit})", ylabel=f"MPJPE (mm), protocol {protocol.name}")
    axes.margins(x=0.08)
    if axis.edges:
        axes.set_xticks(range(len(curve.count)), _bin_labels(curve.edges))
        axes.set_xlim(-0.5, len(curve.count) - 0.5)
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.12 * (high - low), high + 0.25 * (high - low))
    axes.grid(linewidth=0.3, alpha=0.5)
    axes.text(0.98, 0.03, "bars: 95 % interval", transform=axes.transAxes, ha="right", fontsize=6, color="0.35")
    for place, count in zip(_apart(x, axes.get_xlim()), curve.count[full], strict=True):
        axes.text(place, 0.98, f"n = {count:,}", transform=axes.get_xaxis_transform(), rotation=90, ha="center",
                  va="top", fontsize=6, color="0.35")


def _bin_labels(edges: np.ndarray) -> list[str]:
    """`5–20`; an edge at infinity leaves `> 100`."""
    return [f"> {low:g}" if np.isinf(high) else f"{low:g}–{high:g}" for low, high in itertools.pairwise(edges)]


def _apart(positions: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Positions in rising order, moved right as far as labels need to stand side by side."""
    step, moved = 0.045 * (limits[1] - limits[0]), positions.astype(float)
    for place in range(1, len(moved)):
        moved[place] = max(moved[place], moved[place - 1] + step)
    return moved


def _write_figure(path: Path, draw: Any, *arguments: Any) -> None:
    """A .pdf and a .png of what `draw` puts on the axes. Figure draws without a display."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        draw(figure.add_subplot(), *arguments)
        for kind in ("pdf", "png"):
            write_atomically(path.with_suffix(f".{kind}"), partial(figure.savefig, format=kind))


def _write_csv(path: Path, columns: dict[str, np.ndarray]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))
