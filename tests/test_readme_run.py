"""Every command and Python program in a block of README.md and docs/ runs, in a copy of the repository with tiny data.

The words are those of the page but for four: a page's GPUs become the CPU, a rendered set is small, the test command
runs one file of tests, and the table of ablations has two rows. The configurations of the copy describe tiny networks,
which are trained for 2 epochs; the last snapshot then gets the number that pages speak of, and the weights that come
with the copy are those of such a network. Its rendered-v1 is as small as other rendered sets. What a page calls
INTERHAND, MANO, FOLDER or PHOTOS lies in the copy under that very name. Commands that need several processes or
machines are not run here, and neither is the clone.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
import yaml
from fixtures_hic import write_hic
from fixtures_interhand import write_interhand
from fixtures_mano import write_mano
from readme_commands import ROOT, Command, Program, all_commands, all_programs
from test_image_sources import write_egohands, write_rgb2hands

from common.mano.files import load_mano
from common.mano.model import HandModel
from common.nets.torchvision_import import import_torchvision
from common.weights import SHIPPED

pytestmark = pytest.mark.slow

TINY = {"model": {"backbone": "resnet18", "input_size": 64, "channels": 16, "variants": ["lgfa_prenorm"]},
        "train": {"epochs": 2, "batch_size": 3, "lr_drops": [1], "log_every": 1}, "data": {"workers": 0}}
FEW_FRAMES = 24
TWO_ROWS = ("--rows", "full", "wo_lgblock")
SMALL_SET = "output/small"      # which docs/predictions.md renders


def not_copied(folder: str, names: list[str]) -> set[str]:
    """What is no part of the repository: results, caches, and a user's data sets."""
    hidden = {name for name in names if name.startswith(".") and name != ".ci"}
    data = {"data"} if Path(folder).name in ("InterHand26M", "HIC") else set()
    return hidden | data | {"output", "__pycache__"}


def runs_here(command: Command) -> bool:
    return command.words[0] in ("python", "bash")


class Copy:
    """A copy of the repository beside what its pages speak of."""

    def __init__(self, folder: Path, hand_model: HandModel):
        self.folder, self.root = folder, folder / "repository"
        shutil.copytree(ROOT, self.root, ignore=not_copied)
        self.environment = os.environ | {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": "", "HOME": str(folder),
            "TORCH_HOME": str(folder / "torch"), "OMP_NUM_THREADS": "1"}
        self._write_interpreter(folder / "bin" / "python")
        self._write_interpreter(self.root / ".venv" / "bin" / "python")     # as tool/setup_env.sh leaves it
        digest = hashlib.sha256((ROOT / "requirements.txt").read_bytes()).hexdigest()
        (self.root / ".venv" / "requirements.sha256").write_text(f"{digest} {sys.version}\n")
        self._shrink_configurations()
        self._write_imagenet_weights()
        self._write_sources(hand_model)
        self._render_preset()
        self._train()

    def run(self, *words: str, folder: str = ".", allowed: tuple[int, ...] = (0,)) -> None:
        done = subprocess.run(words, cwd=self.root / folder, env=self.environment, capture_output=True, text=True,
                              timeout=600)
        assert done.returncode in allowed, f"{done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"

    def clear(self) -> None:
        """Remove what another command left."""
        for name in ("output", "DIR", "main/DIR", "FILE_scores", "resting_scores"):
            shutil.rmtree(self.root / name, ignore_errors=True)

    def add_rendered_set(self, place: str) -> None:
        shutil.copytree(self.folder / "rendered-v1", self.root / place, copy_function=os.link)

    def prepare(self, command: Command) -> None:
        """What a reader has before this command, and nothing that another one left."""
        self.clear()
        program, words = command.words[1], command.words
        self.preset_file.write_text(self.preset_before if "--record" in words else self.preset)
        for place in rendered_sets(words):
            self.add_rendered_set(place)
        if "quickstart" in program or "train.py" in program and "--continue" not in words:
            return
        hands = "mano" if "--mano" in words else "builtin"
        shutil.copytree(self.folder / hands, self.root / "output", copy_function=os.link, dirs_exist_ok=True)
        for file in sorted((self.root / "output" / "model_dump").glob("snapshot_1.*")):
            if "--continue" in words:
                file.unlink()
            elif "best" not in words:
                file.rename(file.with_name(file.name.replace("_1.", "_29.")))
        if "evaluate.py" in program or "convert_predictions.py" in program:
            known = ("--mano", "FOLDER") if hands == "mano" else ()
            self.run("python", "main/test.py", "--test_epoch", "29", "--save_predictions", "FILE.npz", *known)
        if "import" in words:
            _, _, _, form, source, target, *options = words
            self.run("python", program, "export", form, target, source, *options)
        if "resting.npz" in words:
            self.run("python", "-c", program_that_writes("resting.npz"))

    def _write_interpreter(self, path: Path) -> None:
        path.parent.mkdir(parents=True)
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        path.chmod(0o755)

    def _shrink_configurations(self) -> None:
        for file in (self.root / "main" / "configs").glob("*.yaml"):
            values = yaml.safe_load(file.read_text())
            values |= {section: values.get(section, {}) | tiny for section, tiny in TINY.items()}
            file.write_text(yaml.safe_dump(values))

    def _write_imagenet_weights(self) -> None:
        """Where torchvision puts what it downloads, so that it downloads nothing."""
        models = import_torchvision().models
        file = self.folder / "torch/hub/checkpoints" / models.ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
        file.parent.mkdir(parents=True)
        torch.save(models.resnet18().state_dict(), file)

    def _write_sources(self, hand_model: HandModel) -> None:
        given = self.folder / "given"
        mano = load_mano(str(write_mano(given / "MANO", hand_model)))
        for split, seed in (("train", 0), ("val", 1), ("test", 2)):
            write_interhand(given / "INTERHAND", mano, split, seed)
            write_interhand(given / "FOLDER", hand_model, split, seed)
        (given / "INTERHAND" / "hand_model.json").unlink()      # as the real set, which is MANO's
        shutil.copytree(given / "FOLDER", self.root / "data/InterHand26M/data")
        write_mano(given / "FOLDER", hand_model)
        (given / "ROOT").symlink_to("INTERHAND")
        write_hic(given / "HIC", mano)
        write_rgb2hands(given / "RGB2HANDS_Benchmark")
        write_egohands(given)
        pictures = sorted((given / "FOLDER" / "images" / "test").rglob("*.jpg"))[:2]
        (given / "PHOTOS").mkdir()
        for number, picture in enumerate(pictures):
            shutil.copy(picture, given / "PHOTOS" / f"{number}.jpg")
        shutil.copy(pictures[0], given / "photo.jpg")
        (given / "FOLDER_OR_IMAGE").symlink_to("PHOTOS")
        height, width = cv2.imread(str(pictures[0])).shape[:2]
        (given / "boxes.json").write_text(json.dumps({"0.jpg": [5, 5, width - 10, height - 10]}))
        for source in given.iterdir():
            for folder in (self.root, self.root / "main"):
                (folder / source.name).symlink_to(source)

    def _render_preset(self) -> None:
        """rendered-v1, made small before it is recorded."""
        self.preset_file = self.root / "data/synthetic/on_disk/presets/rendered-v1.json"
        content = json.loads(self.preset_file.read_text())
        content["settings"]["frames"], content["splits"] = FEW_FRAMES, {}
        self.preset_before = json.dumps(content)
        self.preset_file.write_text(self.preset_before)
        self.run("python", "tool/make_synthetic.py", "--preset", "rendered-v1", "--record", "--out",
                 str(self.folder / "rendered-v1"))
        self.preset = self.preset_file.read_text()

    def _train(self) -> None:
        """A run with each hand, and the first one's weights as those that come with the repository."""
        self.run("python", "main/train.py")
        self.run("python", "main/test.py", "--test_epoch", "1")
        self.run("python", "tool/export_weights.py", "output/model_dump/snapshot_1.pth.tar",
                 str(SHIPPED.relative_to(ROOT)), "--metrics", "output/result/metrics.json")
        (self.root / "output").rename(self.folder / "builtin")
        self.run("python", "main/train.py", "--mano", "MANO", "--set", "data.root=INTERHAND")
        (self.root / "output").rename(self.folder / "mano")


@pytest.fixture(scope="module")
def copy(tmp_path_factory, hand_model) -> Copy:
    return Copy(tmp_path_factory.mktemp("copy"), hand_model)


def rendered_sets(words: tuple[str, ...]) -> list[str]:
    """Where a command expects a finished rendered set."""
    if "--data" in words or "data.root=DIR" in words:
        return ["DIR"]
    if f"data.root={SMALL_SET}" in words:
        return [SMALL_SET]
    return ["output/rendered-v1"] if "release" in words else []


def program_that_writes(file: str) -> str:
    return next(program.text for program in all_programs() if file in program.text)


def adapted(words: tuple[str, ...]) -> list[str]:
    """The words with the four changes that the module's docstring names."""
    words = list(words)
    for option, value in (("--gpu", "cpu"), ("--frames", str(FEW_FRAMES))):
        if option in words:
            words[words.index(option) + 1] = value
    if words[1] == "tool/quickstart.sh":
        words += ["--frames", str(FEW_FRAMES)]
    elif words[1] == "tool/test.sh":
        words += ["tests/test_hands.py"]
    elif words[1] == "tool/dev/ablation_table.py":
        words += TWO_ROWS
    return words


@pytest.mark.scorecard("README commands run")
@pytest.mark.parametrize("command", filter(runs_here, all_commands()), ids=str)
def test_a_command_of_a_page_runs(command: Command, copy: Copy):
    copy.prepare(command)
    finds_faults = "verify_data" in command.words[1] and "--preset" not in command.words     # the tests' sets have some
    copy.run(*adapted(command.words), folder=command.folder, allowed=(0, 4) if finds_faults else (0,))


@pytest.mark.scorecard("README commands run")
@pytest.mark.parametrize("program", all_programs(), ids=lambda program: program.page)
def test_a_python_program_of_a_page_runs(program: Program, copy: Copy):
    copy.clear()
    copy.add_rendered_set(SMALL_SET)
    copy.run("python", "-c", program.text)
