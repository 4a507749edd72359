"""Every command in README.md and docs/ is one that the program takes, and every import in them works."""

import argparse
import ast
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from readme_commands import ROOT, Command, Program, all_commands, all_mentioned_commands, all_programs, unwrapped
from torch.distributed.run import determine_local_world_size, get_args_parser, parse_min_max_nnodes

from common.errors import UserError
from main.config import load_config
from main.engine.processes.launch import choose_devices
from main.engine.run.provenance import pinned_versions

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
        with pytest.raises(Parsed) as carrier:
            runpy.run_path(str(program), run_name="__main__")
        return carrier.value.args[0]

    return parsed


def program_of(command: Command, empty: Path) -> tuple[Path | None, list[str]]:
    """The Python program that a command starts, and the words that reach it; None where no parser of ours reads them.

    empty: a folder without a repository to clone.
    """
    starter, file, *words = unwrapped(command.words)
    if starter == "git":
        code = subprocess.run([starter, file, *words], cwd=empty, capture_output=True).returncode
        assert (file, code) == ("clone", 128), "128: no such repository. 129: no such option"
        return None, []
    if (starter, file, *words[:3]) == ("python", "-m", "pip", "install", "-r"):
        assert pinned_versions((ROOT / words[3]).read_text(encoding="utf-8"))
        return None, words[4:]
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


def check(command: Command, parsed, empty: Path) -> None:
    """Fail if the program that a command names does not exist or does not take its words."""
    program, words = program_of(command, empty)
    if program is None:     # git, pip, or the tests themselves
        assert words in ([], ["--slow"])
        return
    assert program.is_file(), f"there is no {program}"
    args = vars(parsed(program, words))
    if args.get("gpu"):
        choose_devices(args["gpu"], 8)
    names = args.get("config", "lgnet")
    for name in [names] if isinstance(names, str) else names:
        load_config(name, args.get("set") or [])


@pytest.mark.scorecard("README commands")
@pytest.mark.parametrize("command", [*all_commands(), *all_mentioned_commands()], ids=str)
def test_a_command_is_one_that_the_program_takes(command: Command, parsed, tmp_path):
    check(command, parsed, tmp_path)


def test_commands_are_found_in_every_page_that_has_some():
    pages = {Path(command.page).stem for command in all_commands()}
    assert {"README", "your_data", "training", "weights", "metrics", "predictions", "model", "rendering", "clusters",
            "benchmark"} <= pages
    assert {Path(command.page).stem for command in all_mentioned_commands()} >= {"speed", "hand", "results"}
    assert len(all_commands()) >= 48


@pytest.mark.parametrize("program", all_programs(), ids=lambda program: program.page)
def test_what_a_program_of_a_page_imports_exists(program: Program):
    imports = [node for node in ast.parse(program.text).body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, type_ignores=[]), program.page, "exec"), {})


def test_programs_are_found_in_the_readme_and_in_the_page_on_predictions():
    assert {program.page for program in all_programs()} >= {"README.md", "docs/predictions.md"}


@pytest.mark.parametrize("line", [
    "python train.py --gpus 0", "python train.py --gpu 3-1", "python train.py --set train.lrr=1", "python tran.py",
    "python train.py --config lgnett", "python test.py --gpu 0", "python tool/doctor.py", "bash quickstart.sh",
    "torchrun --nproc_per_node x train.py", "torchrun --nnodes 2 train.py --gpus 0", "make train",
    "srun --nodes 2 bash -c 'torchrun main/train.py --gpus 0'", "OUTPUT=x sbatch tool/slurm.batch",
    "git clone --deep 1 URL", "git push",
])
def test_a_command_that_would_be_refused_is_noticed(parsed, tmp_path, capsys, line):
    with pytest.raises((AssertionError, UserError, SystemExit, subprocess.CalledProcessError, ValueError, KeyError)):
        check(Command("page", "main", tuple(shlex.split(line))), parsed, tmp_path)
