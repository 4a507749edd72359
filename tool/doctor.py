"""What is installed, which hand models, data and snapshots are found, and which device will be used.

    python tool/doctor.py [--config lgnet] [--mano FOLDER]
    python tool/doctor.py --run DIR

The first ends with one line that says whether LGNet can run here: exit code 0 if so, else 5. It starts with any Python
and any set of packages: what is missing is reported. The second prints what a training run that wrote into DIR was
made with, how to repeat it, what has changed here since, and the state of its snapshots.
"""

import _bootstrap

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from common.errors import UserError, as_user_error, run_entry_point  # these need the standard library only
from common.files import ROOT, from_repository
from main.arguments import typed_path
from main.engine.run.provenance import pinned_versions

EXIT_NOT_READY = 5
OLDEST_PYTHON = (3, 11)
COUNTED_BYTES = 50_000_000      # larger annotation files are not opened to count what they hold

# Lines to print; a line that starts with `!` names something without which nothing runs.
Report = Iterator[str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="lgnet", help="whose data, hand model and output folder are looked for")
    parser.add_argument("--mano", metavar="FOLDER", help="check the MANO files in FOLDER, which train.py --mano uses")
    parser.add_argument("--run", type=typed_path, metavar="DIR",
                        help="report on the training run with the output folder DIR")
    args = parser.parse_args()
    return report_run(args.run) if args.run else report_machine(args.config, args.mano)


def report_run(folder: Path) -> int:
    """Print the record of a run; UserError if there is none."""
    try:
        from tool.run_report import sections
    except ImportError as error:
        raise UserError(f"The record cannot be read here: {error}.", "Run: bash tool/setup_env.sh") from None
    for title, lines in sections(folder).items():
        print(title)
        for line in _guarded(lines):
            print(f"  {line.lstrip('!')}")
    return 0


def report_machine(config: str, mano: str | None) -> int:
    """Print what is found on this machine; 0 if it is enough, else 5."""
    checks: dict[str, Callable[[], Report]] = {
        "Python": check_python,
        "Packages": check_packages,
        "Program": check_program,
        "Device": check_device,
        "Hand models": lambda: check_hand_models(config, mano),
        "Data": lambda: check_data(config),
        "Snapshots": lambda: check_snapshots(config),
    }
    problems = []
    for title, check in checks.items():
        print(title)
        for line in _guarded(check):
            if line.startswith("!"):
                problems.append(line[1:])
            print(f"  {line.lstrip('!')}")
    if problems:
        print(f"\nNot ready: {problems[0]}" + (f" (and {len(problems) - 1} more)" if problems[1:] else ""))
        return EXIT_NOT_READY
    print("\nReady: LGNet can train, test and run the demo here.")
    return 0


def _guarded(check: Callable[[], Report]) -> Report:
    """The lines of a check; a doctor that crashes helps nobody, so whatever goes wrong becomes a line."""
    try:
        yield from check()
    except ImportError as error:
        yield f"not checked: {error}"
    except Exception as error:
        told = as_user_error(error)
        yield f"!{told}" if told else f"not checked: {type(error).__name__}: {' '.join(str(error).split())}"


def check_python() -> Report:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST_PYTHON:
        yield f"!Python {version} is too old: 3.11 or newer is needed"
    else:
        yield f"{version} at {sys.executable}"


def check_packages() -> Report:
    for name, pinned in pinned_versions((ROOT / "requirements.txt").read_text(encoding="utf-8")).items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield f"{name} is missing (requirements.txt: {pinned}); install it with: bash tool/setup_env.sh"
            continue
        # A build such as 2.13.0+cpu is the pinned release.
        agrees = found.split("+")[0] == pinned
        yield f"{name} {found}" + ("" if agrees else f", but the tests ran with {pinned}")


def check_program() -> Report:
    """The real question behind the versions: does everything import?"""
    for module in ("main.engine.trainer", "main.engine.evaluator", "main.engine.results"):
        try:
            importlib.import_module(module)
            yield f"{module} imports"
        except Exception as error:
            yield f"!{module} does not import: {type(error).__name__}: {' '.join(str(error).split())}"


def check_device() -> Report:
    import torch

    devices = [f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]
    if devices:
        yield f"without --gpu every CUDA device is used: {', '.join(devices)}"
    else:
        yield f"no CUDA device: the CPU is used, with {torch.get_num_threads()} threads"


def check_hand_models(config_name: str, mano: str | None) -> Report:
    from main.config import load_config, mano_overrides

    config = load_config(config_name, mano_overrides(mano))
    for name, path in (("builtin", ""), ("mano", config.hand_model.path)):
        is_needed = name == config.hand_model.name
        try:
            yield _hand_model(name, path) + (" (in use)" if is_needed else "")
        except UserError as error:
            yield f"!{error}" if is_needed else f"{name}: {error.message}"
        except Exception as error:
            yield f"{'!' if is_needed else ''}{name} does not work: {type(error).__name__}: {error}"


def _hand_model(name: str, path: str) -> str:
    """A line about a hand model, after a pose was tried on it."""
    import torch

    from common.mano.files import find_mano, read_mano
    from common.mano.load import load_hand_model
    from common.mano.model import ManoLayer
    from common.types import ManoParams

    model = load_hand_model(name, path)
    ManoLayer(model)(ManoParams(torch.eye(3).expand(1, 2, 16, 3, 3), torch.zeros(1, 2, 10)))
    if name == "builtin":
        return f"{name}, sha256 {model.sha256[:12]}"
    files = read_mano(find_mano(path))
    corrected = "".join(f"; {file.path.name}: {', '.join(file.corrections)}" for file in files if file.corrections)
    return f"{name} in {files[0].path.parent}, sha256 {model.sha256[:12]}{corrected}"


def check_data(config_name: str) -> Report:
    from data.InterHand26M.layout import find_layout
    from main.config import load_config

    root = from_repository(load_config(config_name).data.root)
    if not root.is_dir():
        yield f"none at {root}: render a set with bash tool/quickstart.sh, or see the README for InterHand2.6M"
        return
    yield f"root {root}"
    for split in ("train", "val", "test"):
        try:
            layout = find_layout(root, split)
        except UserError:
            yield f"{split}: not found"
            continue
        kinds = (layout.data_kind, "camera", "joint_3d", "MANO_NeuralAnnot")
        missing = [layout.file(kind).name for kind in kinds if not layout.file(kind).is_file()]
        missing += [str(layout.images)] if not layout.images.is_dir() else []
        yield f"{split}: {_count(layout.data)}" + (f"; missing: {', '.join(missing)}" if missing else "")


def _count(file: Path) -> str:
    size = file.stat().st_size
    if size > COUNTED_BYTES:
        return f"annotations of {size / 1e6:.0f} MB"
    return f"{len(json.loads(file.read_bytes())['annotations'])} annotated images"


def check_snapshots(config_name: str) -> Report:
    from main.config import load_config
    from main.engine.run.snapshots import snapshots_in

    folder = from_repository(load_config(config_name).output) / "model_dump"
    names = [path.name for path in snapshots_in(folder)]
    yield f"{folder}: {', '.join(names) or 'none; train.py makes them'}"


if __name__ == "__main__":
    run_entry_point(main)
