"""The command lines of the tools, as in main.arguments."""

import argparse
import os
from collections.abc import Callable

from main.arguments import add_mano, add_set, new_parser, typed_path

UNITS = ("m", "mm")                         # of common.exchange.conversion.METRES
JOINT_ORDERS = ("mano21", "interhand21")    # of common.exchange.conversion.JOINT_SETS
SPLITS = ("train", "val", "test")


def evaluate_parser(description: str | None) -> argparse.ArgumentParser:
    parser = new_parser(description)
    parser.add_argument("file", type=typed_path, metavar="FILE.npz")
    parser.add_argument("--protocol", help="short for --set test.protocol=NAME: whose numbers are printed and drawn")
    add_mano(parser, "where the MANO files are, for predictions made with them")
    parser.add_argument("--allow_missing", action="store_true",
                        help="score what was predicted, although samples or hands are missing; they are counted")
    parser.add_argument("--output", type=typed_path, metavar="FOLDER", help="for the results (default: FILE_scores)")
    add_set(parser, "change data and test options, for example data.root=FOLDER")
    return parser


def export_weights_parser(description: str | None) -> argparse.ArgumentParser:
    parser = new_parser(description)
    parser.add_argument("snapshot", type=typed_path, help="written by train.py")
    parser.add_argument("out", type=typed_path, metavar="OUT.safetensors", help="the file to write")
    parser.add_argument("--metrics", type=typed_path, metavar="FILE", help="metrics.json of a test of this snapshot")
    add_set(parser, "change the configuration in the file, for example test.flip_test=true")
    return parser


def make_synthetic_parser(description: str | None) -> argparse.ArgumentParser:
    parser = new_parser(description)
    parser.add_argument("--out", type=typed_path, required=True, help="folder of the set")
    parser.add_argument("--frames", type=int, help="images over all splits: 85 %% train, 5 %% val, 10 %% test")
    parser.add_argument("--seed", type=int, help="default: 0")
    parser.add_argument("--cameras", type=int, help="that see each time step (default: 2)")
    parser.add_argument("--interacting", type=float,
                        help="share of time steps with both hands; the rest shows one hand (default: 0.8)")
    parser.add_argument("--preset", metavar="NAME", help="a frozen benchmark: rendered-v1")
    parser.add_argument("--record", action="store_true",
                        help="for maintainers: freeze a preset that has not been recorded from what this code renders")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one for each CPU)")
    parser.add_argument("--hand_model", choices=["builtin"], default="builtin",
                        help="MANO has no skin of its own: only the built-in hand can be rendered")
    return parser


def quickstart_parser(description: str | None) -> argparse.ArgumentParser:
    parser = new_parser(description)
    parser.add_argument("--gpu", help="as for train.py")
    parser.add_argument("--config", default="quickstart", help="as for train.py")
    parser.add_argument("--frames", type=int, default=1000, help="how many frames are rendered")
    return parser


def verify_data_parser(description: str | None) -> argparse.ArgumentParser:
    parser = new_parser(description)
    parser.add_argument("--config", default="lgnet", help="a YAML file, or the name of one in main/configs")
    parser.add_argument("--testset", metavar="NAME", help="the data set (default: the configuration's data.trainset)")
    parser.add_argument("--preset", metavar="NAME", help="is the set under data.root this one? For example rendered-v1")
    parser.add_argument("--split", nargs="+", help=f"default: those that exist of {', '.join(SPLITS)}")
    add_mano(parser, "use the MANO files in FOLDER")
    add_set(parser, "change the configuration, for example data.root=FOLDER data.filter=all")
    parser.add_argument("--workers", type=int, default=os.cpu_count(),
                        help="processes (default: one for each CPU; 0: this one)")
    parser.add_argument("--limit", type=int, default=0,
                        help="look at so many samples of each split, evenly spread (default: all)")
    parser.add_argument("--json", type=typed_path, metavar="FILE", help="write all findings")
    return parser


def build_index_parser(description: str | None) -> argparse.ArgumentParser:
    parser = new_parser(description)
    parser.add_argument("root", type=typed_path, help="the folder that holds 'annotations' and 'images'")
    parser.add_argument("--split", nargs="+", choices=SPLITS, default=[], help="left out: all that are there")
    parser.add_argument("--force", action="store_true", help="build again even if nothing has changed")
    parser.add_argument("--dark", action="store_true", help="measure how bright the images are")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that read images")
    return parser


def convert_predictions_parser(description: str | None) -> argparse.ArgumentParser:
    parser = new_parser(description)
    directions = parser.add_subparsers(dest="direction", required=True)
    for direction in ("import", "export"):
        forms = directions.add_parser(direction).add_subparsers(dest="form", required=True)
        for form in ("interwild", "matrices", "points"):
            _add_form(forms.add_parser(form), direction, form)
    return parser


def _add_form(parser: argparse.ArgumentParser, direction: str, form: str) -> None:
    parser.add_argument("source", type=typed_path)
    parser.add_argument("target", type=typed_path)
    add_mano(parser, "where the MANO files are, for predictions made with them")
    add_set(parser, "what the predictions are for: data.testset=HIC data.test_split=test")
    if form == "interwild":
        if direction == "import":
            parser.add_argument("--suffix", default=".jpg", help="of images that a file does not name")
        return
    parser.add_argument("--unit", choices=UNITS, default="m", help="of lengths")
    parser.add_argument("--left_hand", choices=["own", "mirrored"], default="own",
                        help="mirrored: left hands are right hands seen in a mirror across x = 0, with their "
                             "translation, as models for right hands alone give them")
    if form == "matrices":
        parser.add_argument("--pivot", choices=["wrist", "mano"], default="wrist",
                            help="wrist: the translation is where the wrist regressed from the posed mesh ends up; "
                                 "mano: it is added to the vertices as MANO poses them, turned about the resting "
                                 "hand's wrist joint ('transl' of smplx, 'trans' of InterHand2.6M)")
    else:
        parser.add_argument("--order", choices=JOINT_ORDERS, default="mano21", help="of the joints")
        parser.add_argument("--frame", choices=["wrist", "camera"], default="wrist",
                            help="wrist: each hand is relative to its own wrist; camera: both are in one frame with "
                                 "the camera's axes")


def convert_mano_parser(description: str | None) -> argparse.ArgumentParser:
    parser = new_parser(description)
    parser.add_argument("--mano", metavar="FOLDER", default="", help="folder of MANO_RIGHT.pkl and MANO_LEFT.pkl")
    parser.add_argument("--force", action="store_true", help="replace .npz files that exist")
    return parser


PARSERS: dict[str, Callable[[str | None], argparse.ArgumentParser]] = {
    "evaluate.py": evaluate_parser,
    "export_weights.py": export_weights_parser,
    "make_synthetic.py": make_synthetic_parser,
    "quickstart.py": quickstart_parser,
    "verify_data.py": verify_data_parser,
    "build_index.py": build_index_parser,
    "convert_predictions.py": convert_predictions_parser,
    "convert_mano.py": convert_mano_parser,
}
