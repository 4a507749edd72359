"""Write MANO's pickles as .npz files beside them: plain arrays, which any program reads without running anything.

    python tool/convert_mano.py [--mano FOLDER] [--force]

Without --mano the files are looked for as everywhere: in $MANO_DIR, else in the usual folders of this repository. The
.npz files hold the arrays under MANO's own names and in its precision, J_regressor and shapedirs dense, with the
corrections that are printed; smplx reads them with ext='npz'. They are the same hand model as the pickles: data and
snapshots made with one accept the other.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository, however Python was started
import main._bootstrap as _bootstrap

import os

import numpy as np

from common.errors import UserError, run_entry_point
from common.files import sha256_of, write_atomically
from common.mano.files import ManoFile, find_mano, hand_model_of, read_mano
from tool.arguments import convert_mano_parser


def main() -> None:
    args = convert_mano_parser(__doc__).parse_args()
    files = read_mano(find_mano(os.path.abspath(os.path.expanduser(args.mano)) if args.mano else ""))
    pickles = {file.path.with_suffix(".npz"): file for file in files if file.path.suffix == ".pkl"}
    refuse_useless(files, list(pickles), args.force)

    for target, file in pickles.items():
        write_atomically(target, lambda stream, arrays=file.arrays: np.savez(stream, **arrays))
        print(f"{file.path}: {'' if file.is_official else 'not '}the official file of MANO 1.2")
        print(f"  sha256 {file.sha256}\n  corrected: {', '.join(file.corrections) or 'nothing'}")
        print(f"{target}\n  sha256 {sha256_of(target)}")
    print(f"hand model\n  sha256 {checked_identity(files)}")


def refuse_useless(files: list[ManoFile], targets: list[Path], force: bool) -> None:
    """Raise UserError if there is nothing to convert, or if a result exists that may not be replaced."""
    if not targets:
        raise UserError(f"{files[0].path.parent} holds MANO_RIGHT.npz and MANO_LEFT.npz, no pickles.",
                        "There is nothing to convert: the .npz files are used as they are.")
    existing = [str(target) for target in targets if target.exists()]
    if existing and not force:
        raise UserError(f"{' and '.join(existing)} exist already." if len(existing) > 1 else
                        f"{existing[0]} exists already.", "Use --force to replace what is there.")


def checked_identity(files: list[ManoFile]) -> str:
    """The hand model's hash, after reading what was written: it must be the same model."""
    written = hand_model_of(read_mano([file.path.with_suffix(".npz") for file in files]))
    if written.identity != hand_model_of(files).identity:
        raise UserError(f"The .npz files in {files[0].path.parent} do not hold what was written to them.",
                        "Is the disk damaged? Delete them and try again.")
    return written.sha256


if __name__ == "__main__":
    run_entry_point(main)
