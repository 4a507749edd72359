"""Compare the power spectra of rendered images with those of real frames.

python tool/dev/picture_spectrum.py --real FOLDER --rendered ROOT [ROOT ...] --out FILE.png [--json FILE]

Folders are searched for InterHand2.6M annotation files ("*_data.json") and their images, which are cropped around the
hands at their own resolution. A spectrum is the power of one crop's brightness, averaged over all directions, in bands
of equal width, relative to the lowest frequencies, so that overall contrast does not count. The plot shows each real
crop, and median and 10th to 90th percentile of the rendered ones. Printed is the share of the bands in which the
rendered median lies within the range of the real crops, and its largest distance outside.
"""

import _bootstrap

import argparse
import json
from pathlib import Path

import cv2
import numpy as np

from common.errors import UserError, run_entry_point

_SIDE = 128                 # of a crop, pixels: the size of hands in the real frames
_BANDS = 24


def main() -> None:
    args = _parse_args()
    real = spectra(args.real, args.limit)
    report = {"frequency": band_centers().tolist(), "real": real.tolist(), "rendered": {}}
    for root in args.rendered:
        rendered = spectra(root, args.limit)
        median = np.median(rendered, axis=0)
        inside, beyond = agreement(median, real)
        low, high = np.percentile(rendered, [10, 90], axis=0)
        report["rendered"][str(root)] = {"median": median.tolist(), "low": low.tolist(), "high": high.tolist(),
                                         "bands_inside": inside, "decades_beyond": beyond}
        print(f"{root}: {len(rendered)} crops, median inside the spread of {len(real)} real ones in {inside:.0%} of "
              f"the bands, at most {beyond:.2f} decades beyond it")
    if args.json:
        args.json.write_text(json.dumps(report), encoding="utf-8")
    _plot(report, args.out)


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, required=True, help="folder with real frames and their annotations")
    parser.add_argument("--rendered", type=Path, nargs="+", required=True, help="roots of rendered sets")
    parser.add_argument("--out", type=Path, required=True, help="plot to write")
    parser.add_argument("--json", type=Path, help="write the curves here")
    parser.add_argument("--limit", type=int, default=400, help="most images of an annotation file (default: 400)")
    return parser.parse_args()


def spectra(folder: Path, limit: int) -> np.ndarray:
    """Power spectra (N, bands) of the crops of a folder."""
    found = [power_spectrum(crop) for crop in _crops(folder, limit)]
    if not found:
        raise UserError(f"{folder} holds no annotated image.", "It needs '*_data.json' and the images it names.")
    return np.stack(found)


def power_spectrum(crop: np.ndarray) -> np.ndarray:
    """log10 of the power (bands,) of a grey crop (S, S), averaged over directions, relative to the lowest two bands."""
    side = len(crop)
    window = np.hanning(side)[:, None] * np.hanning(side)
    centered = (crop - np.average(crop, weights=window)) * window
    power = np.abs(np.fft.fft2(centered)) ** 2
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    band = np.floor(frequency / 0.5 * _BANDS).astype(int)
    inside = band < _BANDS
    total = np.bincount(band[inside], power[inside], minlength=_BANDS)
    mean = total / np.bincount(band[inside], minlength=_BANDS)
    return np.log10(mean + 1e-9) - np.log10(mean[:2].mean() + 1e-9)


def band_centers() -> np.ndarray:
    """Centres (bands,) of the bands, cycles per pixel."""
    return (np.arange(_BANDS) + 0.5) * 0.5 / _BANDS


def agreement(median: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """Share of bands in which a curve is inside the range of real ones (N, bands), and its largest distance outside."""
    beyond = np.maximum(np.maximum(real.min(axis=0) - median, median - real.max(axis=0)), 0)
    return float((beyond == 0).mean()), float(beyond.max())


def _crops(folder: Path, limit: int):
    files = {path.name: path for path in sorted(folder.rglob("*.jpg"))}
    by_tail = {path.relative_to(folder).as_posix(): path for path in files.values()}
    for annotations in sorted(folder.rglob("*_data.json")):
        if annotations.parent.name == "index":          # the reader's index of the annotations beside it
            continue
        content = json.loads(annotations.read_text(encoding="utf-8"))
        images = {image["id"]: image["file_name"] for image in content["images"]}
        for annotation in content["annotations"][:limit]:
            name = images[annotation["image_id"]]
            path = by_tail.get(name) or next((p for p in sorted(folder.rglob(Path(name).name)) if
                                              p.as_posix().endswith(name)), None)
            if path is None or (image := cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)) is None:
                raise UserError(f"{folder / name} cannot be read.")
            yield _cut(image, annotation["bbox"])


def _cut(image: np.ndarray, box: list[float]) -> np.ndarray:
    """_SIDE² pixels around the centre of a box (x, y, width, height), not resized, shifted to stay inside the image."""
    middle = np.array([box[0] + box[2] / 2, box[1] + box[3] / 2])
    limit = np.array(image.shape[::-1]) - _SIDE
    x, y = np.clip(np.round(middle - _SIDE / 2), 0, limit).astype(int)
    return image[y: y + _SIDE, x: x + _SIDE].astype(np.float64)


def _plot(report: dict, out: Path) -> None:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 5))
    for curve in report["real"]:
        axes.plot(report["frequency"], curve, color="black", linewidth=1.2)
    axes.plot([], [], color="black", label=f"real frames ({len(report['real'])})")
    for name, curves in report["rendered"].items():
        line, = axes.plot(report["frequency"], curves["median"], linewidth=2, label=Path(name).name)
        axes.fill_between(report["frequency"], curves["low"], curves["high"], color=line.get_color(), alpha=0.15)
    axes.set(xscale="log", xlabel="cycles per pixel", ylabel="log10 of power, relative to the lowest frequencies")
    axes.legend()
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    run_entry_point(main)
