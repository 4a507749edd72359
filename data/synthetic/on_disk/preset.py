"""Frozen benchmarks: rendered sets under a name, on which results can be compared.

A preset is a file in `presets/`: the settings, renderer version and hand of a set, and what was recorded when it was
frozen. Processors with other instructions round differently, and the contact solver amplifies that, so three things
are recorded of each split:

- `plan`: a digest of who shows what in which time step. It comes from integers and numpy's seeded generators, and is
  the same on every machine.
- `annotations`: a digest of all annotations, rounded. With the pinned libraries it is the same on the AMD processors
  that were tried; others, an Intel Xeon among them, settle some hands in another pose, in images and annotations alike.
- `references`: some images, each with a digest of its pixels, its box and its mean colours. Where digests differ, most
  boxes and colours must still match within `_BOX_TOLERANCE` and `_COLOR_TOLERANCE`.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from common.errors import EXIT_OK, EXIT_SOME_FAILED, UserError
from common.files import read_json, write_atomically
from common.mano.load import load_hand_model
from data.hand_model_file import HAND_MODEL_FILE
from data.subset import spread_evenly
from data.synthetic import SETTINGS_FILE
from data.synthetic.on_disk.annotations import annotation_file
from data.synthetic.on_disk.generate import KINDS, VERSION, set_metadata
from data.synthetic.on_disk.plan import SPLITS, Settings

PRESETS = Path(__file__).parent / "presets"
_REFERENCES = 12                        # images of each split
_DECIMALS = 4                           # to which annotations are rounded, whatever their unit
_CELLS = 3                              # rows and columns of the grid of mean colours
_BOX_TOLERANCE = 1.0                    # pixels
_COLOR_TOLERANCE = 2.0                  # grey levels
_STRAY_SHARE = 0.5                      # of references that may not match; a sixth did not without vector instructions


@dataclass(frozen=True)
class Preset:
    """A frozen benchmark: how it is made, and what was recorded of it."""

    name: str
    settings: Settings
    version: int                        # of the renderer: data.synthetic.on_disk.generate.VERSION
    hand_model: dict[str, str]
    splits: dict[str, dict[str, Any]]   # {split: {plan, annotations, references}}; empty until it is frozen

    def check_code(self) -> None:
        """UserError unless this code has the renderer and the hand of the preset."""
        self.check_recorded()
        found = load_hand_model("builtin").identity
        if self.version != VERSION:
            raise UserError(f"This code renders version {VERSION}, {self.name} needs {self.version}.",
                            "Use the code that it was made with, or a preset of this code.")
        if self.hand_model != found:
            raise UserError(f"The hand of this code has sha256 {found['sha256'][:12]}, {self.name} needs "
                            f"{self.hand_model['sha256'][:12]}.",
                            "Use the code that it was made with, or a preset of this code.")

    def check_recorded(self) -> None:
        if not self.splits:
            raise UserError(f"{self.name} has not been recorded yet.", "tool/make_synthetic.py --record does that.")


class Differences(NamedTuple):
    """Differences between a set and a preset, as sentences."""

    other: list[str]                    # that make it another set
    rounding: list[str]                 # that another machine may cause


def load_preset(name: str, folder: Path = PRESETS) -> Preset:
    """The preset of that name; UserError with the known names if there is none."""
    file = folder / f"{name}.json"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.json")))
        raise UserError(f"There is no preset '{name}'.", f"There is: {known}.")
    values = read_json(file)
    return Preset(**{"name": name, **values, "settings": Settings(**values["settings"])})


def record_preset(root: Path, preset: Preset, folder: Path = PRESETS) -> None:
    """Freeze a preset from the set under `root`, which this code has rendered with the preset's settings."""
    splits = {split: _recorded(root, split) for split in SPLITS}
    frozen = asdict(replace(preset, version=VERSION, hand_model=load_hand_model("builtin").identity, splits=splits))
    del frozen["name"]
    lines = [f'"{key}": {json.dumps(value)}' for key, value in frozen.items()]
    text = "{" + ",\n ".join(lines) + "}\n"
    write_atomically(folder / f"{preset.name}.json", lambda file: file.write(text.encode()))


def compare(root: Path, preset: Preset) -> Differences:
    """Differences between the set under `root` and a preset; UserError if there is no set."""
    preset.check_recorded()
    if not (root / SETTINGS_FILE).is_file():
        raise UserError(f"{root} holds no {SETTINGS_FILE}, so it is no rendered set.")
    found, wanted = read_json(root / SETTINGS_FILE), set_metadata(preset.settings, preset.hand_model, preset.version)
    other = [f"{key} is {found.get(key)!r} instead of {wanted[key]!r}" for key in wanted
             if found.get(key) != wanted[key]]
    if other:                           # then every file differs
        return Differences(other, [])
    if read_json(root / HAND_MODEL_FILE) != preset.hand_model:
        other.append(f"{HAND_MODEL_FILE} names another hand")
    rounding: list[str] = []
    for split in SPLITS:
        of_split = _compare_split(root, split, preset.splits[split])
        other += of_split.other
        rounding += of_split.rounding
    return Differences(other, rounding)


def print_verdict(root: Path, preset: Preset) -> int:
    """Print whether the set under `root` is the preset, and return the exit code."""
    differences = compare(root, preset)
    print(verdict(root, preset, differences))
    return EXIT_SOME_FAILED if differences.other else EXIT_OK


def verdict(root: Path, preset: Preset, differences: Differences) -> str:
    """The result of `compare` as a sentence."""
    if differences.other:
        return f"{root} is not {preset.name}: {'; '.join(differences.other)}."
    if differences.rounding:
        return (f"{root} is {preset.name} as another machine computes it: {'; '.join(differences.rounding)}. Scores on "
                "it may differ a little from those on the set as it was recorded.")
    return f"{root} is {preset.name}, number for number."


# ---------------------------------------------------------------- recording

def _recorded(root: Path, split: str) -> dict[str, Any]:
    tables = _read_tables(root, split)
    images, annotations = tables["data"]["images"], tables["data"]["annotations"]
    references = [describe_image(root, split, images[k], annotations[k])
                  for k in spread_evenly(len(images), _REFERENCES)]
    return {"plan": _digest(_plan(tables)), "annotations": _digest(tables), "references": references}


def _read_tables(root: Path, split: str) -> dict[str, Any]:
    """The annotation files of a split, rounded."""
    return {kind: _rounded(read_json(annotation_file(root, split, kind))) for kind in KINDS}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DECIMALS) + 0.0            # turns −0.0 into 0.0
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return {key: _rounded(item) for key, item in value.items()} if isinstance(value, dict) else value


def _plan(tables: dict[str, Any]) -> list[Any]:
    """What is sampled before anything is computed: the time steps, and the hand shapes of the people."""
    steps = [[image["capture"], image["seq_name"], image["frame_idx"]] for image in tables["data"]["images"]]
    shapes = [[capture, hand["shape"]] for capture, fits in tables["MANO_NeuralAnnot"].items()
              for hand in next(iter(fits.values())).values() if hand]
    return [steps, shapes]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def describe_image(root: Path, split: str, image: dict[str, Any], annotation: dict[str, Any]) -> dict[str, Any]:
    """The reference of an image, given its entries in `images` and `annotations`."""
    pixels = cv2.imread(str(_image_file(root, split, image)), cv2.IMREAD_COLOR)
    if pixels is None:
        raise UserError(f"{_image_file(root, split, image)} is not an image.")
    means = cv2.resize(pixels.astype(np.float32), (_CELLS, _CELLS), interpolation=cv2.INTER_AREA)
    return {"file_name": image["file_name"], "sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
            "bbox": [round(number, 2) for number in annotation["bbox"]],
            "colors": means.astype(np.float64).round(1).ravel().tolist()}


def _image_file(root: Path, split: str, image: dict[str, Any]) -> Path:
    return root / "images" / split / image["file_name"]


# ---------------------------------------------------------------- comparing

def _compare_split(root: Path, split: str, recorded: dict[str, Any]) -> Differences:
    tables = _read_tables(root, split)
    images = tables["data"]["images"]
    missing = sum(not _image_file(root, split, image).is_file() for image in images)
    if missing:
        return Differences([f"{missing} of {len(images)} images of {split} are missing"], [])
    if _digest(_plan(tables)) != recorded["plan"]:
        return Differences([f"{split} shows other people or time steps"], [])
    rounding = [] if _digest(tables) == recorded["annotations"] else [f"numbers in the annotations of {split} differ"]

    rows = {image["file_name"]: (image, annotation) for image, annotation in
            zip(images, tables["data"]["annotations"], strict=True)}
    strays, inexact, references = [], 0, recorded["references"]
    for reference in references:
        row = rows.get(reference["file_name"])
        found = row and describe_image(root, split, *row)
        if not (found and resembles(found, reference)):
            strays.append(reference["file_name"])
        elif found["sha256"] != reference["sha256"]:
            inexact += 1
    if len(strays) > _STRAY_SHARE * len(references):
        return Differences([f"{split} has other images, such as {strays[0]}"], [])
    if strays or inexact:
        rounding.append(f"of {len(references)} images of {split} {inexact} differ by rounding and {len(strays)} "
                        "by more")
    return Differences([], rounding)


def resembles(found: dict[str, Any], reference: dict[str, Any]) -> bool:
    """Whether an image matches a reference up to what another machine may round differently."""
    return (np.allclose(found["bbox"], reference["bbox"], rtol=0, atol=_BOX_TOLERANCE)
            and np.allclose(found["colors"], reference["colors"], rtol=0, atol=_COLOR_TOLERANCE))
