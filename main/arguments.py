"""The command lines of the entry points. Light to import: `--help` is answered before torch is loaded.

description: the docstring of the entry point.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from common.files import ROOT

GPU_FORMS = "Write --gpu as 0, 0,2, 0-3 or cpu; left out, it takes every GPU."


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that prints the description as it stands."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def typed_path(text: str) -> Path:
    """A path as it is typed: relative to the working directory, or in the home folder by `~`."""
    return Path(os.path.expanduser(text))


def add_gpu(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpu", help=GPU_FORMS)


def add_mano(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--mano", metavar="FOLDER", help=text)


def add_set(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=text)


def train_parser(description: str | None) -> argparse.ArgumentParser:
    parser = new_parser(description)
    add_gpu(parser)
    parser.add_argument("--config", default="lgnet", help="a YAML file, or the name of one in main/configs")
    parser.add_argument("--continue", dest="resume", action="store_true", help="resume from the last snapshot")
    add_mano(parser, "folder of the MANO files; short for --set hand_model.name=mano hand_model.path=FOLDER")
    add_set(parser, "change the configuration, for example train.lr=3e-4")
    return parser


def test_parser(description: str | None) -> argparse.ArgumentParser:
    parser = new_parser(description)
    add_gpu(parser)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--test_epoch", type=_epoch_or_best, metavar="N",
                       help="of snapshot_N.pth.tar, or best: the lowest score in the validation of training")
    which.add_argument("--checkpoint", type=typed_path, metavar="FILE",
                       help="a snapshot elsewhere, or a file of weights")
    parser.add_argument("--testset", help="short for --set data.testset=NAME")
    parser.add_argument("--split", help="short for --set data.test_split=NAME")
    parser.add_argument("--protocol", help="short for --set test.protocol=NAME: whose numbers are printed and drawn")
    parser.add_argument("--pck_exclude_root", action="store_const", const="true",
                        help="short for --set test.pck_exclude_root=true: PCK and AUC without the aligned joint")
    parser.add_argument("--pck_strict", action="store_const", const="true",
                        help="short for --set test.pck_strict=true: PCK counts errors below the threshold only")
    parser.add_argument("--bins", nargs="+", metavar="EDGE",
                        help="short for --set test.bins=[EDGE,…]: edges of the bins of the asymmetry curve")
    parser.add_argument("--dump", type=typed_path, metavar="FILE.npz", help="write the errors of each sample")
    parser.add_argument("--save_predictions", type=typed_path, metavar="FILE.npz",
                        help="write the predictions, which tool/evaluate.py can score again")
    add_mano(parser, "where the MANO files are, for a snapshot that was trained with them")
    parser.add_argument("--output", type=typed_path, default=ROOT / "output",
                        help="the run's output folder; left out: output in the repository")
    add_set(parser, "change data and test options, for example data.root=FOLDER")
    return parser


def demo_parser(description: str | None) -> argparse.ArgumentParser:
    parser = new_parser(description)
    add_gpu(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--test_epoch", type=_epoch_or_best, metavar="N",
                       help="of output/model_dump/snapshot_N.pth.tar in the repository, or best")
    which.add_argument("--checkpoint", type=typed_path, metavar="FILE",
                       help="a snapshot elsewhere, or a file of weights; left out: those that come with the repository")
    parser.add_argument("--input", "--img_path", type=typed_path, help="a folder of images, or one image; left out: "
                        "those that come with the repository")
    parser.add_argument("--output", type=typed_path, help="folder for the results (default: one in output/demo)")
    parser.add_argument("--boxes", type=typed_path, metavar="FILE",
                        help='JSON with tight boxes round both hands: {"file name": [x, y, width, height]} in pixels')
    parser.add_argument("--finder", choices=("auto", "none"), default="auto", help="auto: look for hands where there "
                        "is no box, and weigh what is seen of them; none: use images without a box whole")
    parser.add_argument("--save_boxes", type=typed_path, metavar="FILE",
                        help="write the boxes round the hands that were found, in the form that --boxes reads")
    parser.add_argument("--align", action="store_true", help="align hands to the joints that the finder is sure of")
    add_mano(parser, "where the MANO files are, for a snapshot that was trained with them")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace results that exist")
    existing.add_argument("--resume", action="store_true", help="go on after an interruption: only images without "
                          "results are reconstructed")
    add_set(parser, "change the configuration, for example data.box_ratio=0.7")
    return parser


PARSERS: dict[str, Callable[[str | None], argparse.ArgumentParser]] = {       # by the entry point's file
    "train.py": train_parser, "test.py": test_parser, "demo.py": demo_parser}


def _epoch_or_best(text: str) -> int | Literal["best"]:
    if text != "best" and not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"'{text}' is neither the number of an epoch nor best")
    return "best" if text == "best" else int(text)
