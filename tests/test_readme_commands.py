"""Every command in README.md and docs/ is one that the program takes."""

import argparse
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from readme_commands import ROOT, Command, all_commands, unwrapped
from torch.distributed.run import determine_local_world_size, get_args_parser, parse_min_max_nnodes

from common.errors import UserError
from main.config import Config, changed_config, load_config
from main.engine.processes.launch import choose_devices

# The Python program that a shell script hands its words on to.
STARTED_BY_SCRIPTS = {"tool/quickstart.sh": ROOT / "tool" / "quickstart.py", "tool/test.sh": None,
                      "tool/slurm.sbatch": ROOT / "main" / "train.py"}


class Parsed(Exception):
    """Carries what a parser made of a command line out of the program that was about to start."""


@pytest.fixture
def parsed(monkeypatch):
    """The arguments that a Python program of this repository reads from the words of a command line."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(parser, args=None, namespace=None):
        raise Parsed(original(parser, args, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)

    def parsed(program: Path, words: list[str]) -> argparse.Namespace:
        monkeypatch.setattr(sys, "argv", [str(program), *words])
        monkeypatch.syspath_prepend(program.parent)
        with pytest.raises(Parsed) as carrier:
            runpy.run_path(str(program), run_name="__main__")
        return carrier.value.args[0]

    return parsed


def program_of(command: Command) -> tuple[Path | None, list[str]]:
    """The Python program that a command starts, and the words that reach it."""
    starter, file, *words = unwrapped(command.words)
    if starter in ("bash", "sbatch"):
        script = ROOT / command.folder / file
        subprocess.run(["bash", "-n", script], check=True)
        return STARTED_BY_SCRIPTS[file], words
    if starter == "torchrun":
        launched, _ = get_args_parser().parse_known_args([file, *words])
        parse_min_max_nnodes(launched.nnodes)
        determine_local_world_size(launched.nproc_per_node)
        return ROOT / command.folder / launched.training_script, launched.training_script_args
    assert starter == "python", f"not a command that this test knows: {command}"
    return ROOT / command.folder / file, words


def check(command: Command, parsed) -> None:
    """Fail if the program that a command names does not exist or does not take its words."""
    program, words = program_of(command)
    if program is None:     # the tests themselves
        assert words in ([], ["--slow"])
        return
    assert program.is_file(), f"there is no {program}"
    args = vars(parsed(program, words))
    if args.get("gpu"):
        choose_devices(args["gpu"], 8)
    config = load_config(args["config"]) if "config" in args else Config()
    changed_config(config, args.get("set") or [])


@pytest.mark.scorecard("README commands")
@pytest.mark.parametrize("command", all_commands(), ids=str)
def test_a_command_is_one_that_the_program_takes(command: Command, parsed):
    check(command, parsed)


def test_commands_are_found_in_every_page_that_has_some():
    pages = {command.page for command in all_commands()}
    assert {"README.md", "your_data.md", "metrics.md", "predictions.md", "clusters.md", "benchmark.md"} <= pages
    assert len(all_commands()) >= 32


@pytest.mark.parametrize("line", [
    "python train.py --gpus 0", "python train.py --gpu 3-1", "python train.py --set train.lrr=1", "python tran.py",
    "python train.py --config lgnett", "python test.py --gpu 0", "python tool/doctor.py", "bash quickstart.sh",
    "torchrun --nproc_per_node x train.py", "torchrun --nnodes 2 train.py --gpus 0", "make train",
    "srun --nodes 2 bash -c 'torchrun main/train.py --gpus 0'", "OUTPUT=x sbatch tool/slurm.batch",
])
def test_a_command_that_would_be_refused_is_noticed(parsed, capsys, line):
    with pytest.raises((AssertionError, UserError, SystemExit, subprocess.CalledProcessError, ValueError, KeyError)):
        check(Command("page", "main", tuple(shlex.split(line))), parsed)
