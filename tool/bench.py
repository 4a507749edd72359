"""Measure how fast the parts are.   python tool/bench.py {raster,data,synth} [options]; each has its own --help"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.errors import run_entry_point  # noqa: E402
from tool.benchmarks import data, raster, synth  # noqa: E402

BENCHMARKS = {"raster": raster, "data": data, "synth": synth}


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
