"""Measure how fast the parts are.   python tool/dev/bench.py {model,train,loader,synth,raster,data} [options]

Each has its own --help.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))     # the repository, however Python was started
import main._bootstrap as _bootstrap

import argparse

from common.errors import run_entry_point
from tool.dev.benchmarks import data, loader, model, raster, synth, train

BENCHMARKS = {"model": model, "train": train, "loader": loader, "synth": synth, "raster": raster, "data": data}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, benchmark in BENCHMARKS.items():
        command = commands.add_parser(name, help=benchmark.HELP, description=benchmark.__doc__,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
        benchmark.add_arguments(command)
        command.set_defaults(run=benchmark.run)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    run_entry_point(main)
