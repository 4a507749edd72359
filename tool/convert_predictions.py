"""Predictions of other programs into a prediction file, and back.

    python tool/convert_predictions.py import interwild FOLDER FILE.npz [--suffix .jpg]
    python tool/convert_predictions.py import matrices ARRAYS.npz FILE.npz [--unit mm] [--pivot mano]
    python tool/convert_predictions.py import points ARRAYS.npz FILE.npz [--unit mm] [--order interhand21]
    python tool/convert_predictions.py export interwild FILE.npz FOLDER

`export matrices` and `export points` take the same options as their imports. docs/predictions.md describes FILE.npz,
which tool/evaluate.py scores. In all forms: camera frame x right, y down, z forward; in arrays the right hand comes
first; `image` (N,) names the samples as the data set does (InterHand2.6M: the image's file_name); `predicted`
(N, 2) bool, true where left out, says which hands there are.

interwild  NAME_right.json and NAME_left.json with root_pose (3), hand_pose (45), shape (10) and root_trans (3).
           Axis-angles in radian, flat_hand_mean=False: the hand model adds its mean pose to hand_pose. The posed mesh
           is moved so that the wrist regressed from it is at root_trans, metres; between the two hands only the
           difference of root_trans is scored. The sample's name is the key `image`, else NAME with --suffix. A
           missing file is a hand that is not predicted.
matrices   rotations (N, 2, 16, 3, 3) in MANO's joint order, flat_hand_mean=True: the mean pose is inside them.
           shape (N, 2, 10). translation (N, 2, 3) in --unit; --pivot says what it is.
points     vertices (N, 2, 778, 3) and joints (N, 2, 21, 3), or one of them, in --unit and --frame, the joints in
           --order. With --frame wrist also relative (N, 3), left wrist minus right wrist, where it is known.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository, however Python was started
import main._bootstrap as _bootstrap

import argparse

import numpy as np

from common.errors import UserError, run_entry_point
from common.exchange.conversion import (
    Form,
    Matrices,
    Points,
    from_matrices,
    from_points,
    mirrored_left,
    to_matrices,
    to_points,
)
from common.exchange.interwild import read_interwild, write_interwild
from common.exchange.predictions import ROW_SHAPES, Origin, PredictionFile, Predictions, native, write_predictions
from common.files import write_atomically
from common.mano.model import HandModel
from main.build import build_hand_model
from main.config import load_config, mano_overrides
from tool.arguments import convert_predictions_parser


def main() -> None:
    args = convert_predictions_parser(__doc__).parse_args()
    if args.direction == "import":
        config = load_config("lgnet", [*args.set, *mano_overrides(args.mano)])
        model = build_hand_model(config.hand_model)
        predictions = _import(args, model)
        origin = Origin(config.data.testset, config.data.test_split, model.identity)
        write_predictions(args.target, origin, predictions)
        PredictionFile(args.target).take(slice(None))       # complains of what tool/evaluate.py would complain of
    else:
        file = PredictionFile(args.source)
        origin = file.origin
        named = f"hand_model.name={origin.hand_model['name']}"
        model = build_hand_model(load_config("lgnet", [named, *args.set, *mano_overrides(args.mano)]).hand_model)
        file.check_hand_model(model)
        predictions = file.take(slice(None))
        if args.form != "points" and predictions.vertices is not None:
            print("Only parameters are written; the meshes of the file can differ from what they pose.")
        _export(args, model, predictions)
    right, left = predictions.predicted.sum(axis=0)
    print(f"{args.target}: {len(predictions.image)} samples of {origin.dataset} {origin.split}, {right} right and "
          f"{left} left hands.")


def _import(args: argparse.Namespace, model: HandModel) -> Predictions:
    if args.form == "interwild":
        return read_interwild(args.source, model, args.suffix)
    if args.form == "matrices":
        form = _seen(args, _read_form(Matrices, args.source))
        return from_matrices(form, model, unit=args.unit, pivot=args.pivot)
    form = _seen(args, _read_form(Points, args.source))
    if args.frame == "camera" and form.relative is not None:
        raise UserError(f"{args.source} holds 'relative', which points in the camera frame say already.",
                        "Use --frame wrist if each hand is relative to its own wrist, or leave 'relative' out.")
    return from_points(form, model, unit=args.unit, order=args.order, frame=args.frame)


def _export(args: argparse.Namespace, model: HandModel, predictions: Predictions) -> None:
    if args.form == "interwild":
        write_interwild(args.target, predictions, model)
    elif args.form == "matrices":
        _write_form(args.target, _seen(args, to_matrices(predictions, model, unit=args.unit, pivot=args.pivot)))
    else:
        form = to_points(predictions, model, unit=args.unit, order=args.order, frame=args.frame)
        _write_form(args.target, _seen(args, form))


def _seen(args: argparse.Namespace, form: Form) -> Form:
    return mirrored_left(form) if args.left_hand == "mirrored" else form


def _read_form(kind: type[Form], path: Path) -> Form:
    """The arrays of a form; UserError for those that are missing, unknown or of another shape."""
    shapes = ROW_SHAPES | {"image": (), "predicted": (2,), "translation": (2, 3)}
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise UserError(f"{path} is not an .npz file of plain arrays: {' '.join(str(error).split())}.") from None
    unknown = set(arrays) - set(kind._fields)
    if unknown or "image" not in arrays or not arrays["image"].size:
        raise UserError(f"{path} holds {', '.join(arrays)}.", f"It must hold some of {', '.join(kind._fields)}.")
    count = arrays["image"].size
    arrays.setdefault("predicted", np.ones((count, 2), dtype=bool))
    for name, values in arrays.items():
        wanted = {"image": "US", "predicted": "b"}.get(name, "f")
        if values.shape != (count, *shapes[name]) or values.dtype.kind not in wanted:
            raise UserError(f"{path}: {name} has the type {values.dtype} and the shape {values.shape}.",
                            f"The shape must be {(count, *shapes[name])}, as 'image' has {count} names.")
        arrays[name] = native(values) if wanted == "f" else values
    missing = {"rotations", "shape", "translation"} - set(arrays) if kind is Matrices else ()
    if missing or (kind is Points and not {"vertices", "joints"} & set(arrays)):
        raise UserError(f"{path} lacks {' and '.join(missing) or 'vertices or joints'}.")
    return kind(**{name: arrays.get(name) for name in kind._fields})


def _write_form(path: Path, form: Form) -> None:
    arrays = {name: values for name, values in form._asdict().items() if values is not None}
    write_atomically(path, lambda file: np.savez(file, **arrays))


if __name__ == "__main__":
    run_entry_point(main)
