"""Numbers that are not finite, signals, full disks, files that vanish: training stops in order, or goes on."""

import errno
import json
import logging
import math
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from forks import at_call, run_in_fork
from torch import nn
from toy_training import SHORT, ToyHands, assert_same_end, resumed, toy_trainer

import main.engine.run.folder as folder_module
import main.engine.run.snapshots as checkpoint
from common import files
from common.errors import UserError
from common.types import Stages, Targets, map_tensors
from main.engine.evaluator import Evaluator
from main.engine.processes.launch import Process
from main.engine.processes.signals import StopRequest
from main.engine.run.log import start_log
from main.engine.run.snapshots import load_latest, partial_path, snapshot_path, snapshots_in
from main.engine.trainer import Trainer

# ---------------------------------------------------------------- numbers that are not finite


class Poisoned(nn.Module):
    """A loss that goes wrong at one step."""

    def __init__(self, loss: nn.Module, step: int, kind: str):
        super().__init__()
        self.loss, self.step, self.kind, self.calls = loss, step, kind, 0

    def forward(self, stages: Stages, targets: Targets) -> dict[str, torch.Tensor]:
        is_bad = self.calls == self.step
        self.calls += 1
        if is_bad and self.kind == "target":
            targets = targets._replace(vertices=targets.vertices * math.nan)
        terms = self.loss(stages, targets)
        if is_bad and self.kind != "target":
            bad = stages.final.vertices.sum()
            # √|x| at 0 is finite and its gradient is not.
            poison = {"nan": bad * math.nan, "inf": bad * 0 + math.inf, "gradient": (bad * 0).abs().sqrt()}[self.kind]
            terms = terms | {"mesh": terms["mesh"] + poison, "total": terms["total"] + poison}
        return terms


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def parameters_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize(("kind", "log_every"), [
    ("nan", 1), ("nan", 100), ("inf", 100), ("gradient", 100), ("target", 100)])
def test_numbers_that_are_not_finite_stop_the_run_before_they_reach_the_weights(dataset, tmp_path, kind, log_every):
    """Whether the step is one that is logged or not."""
    trainer = toy_trainer(dataset, tmp_path, log_every=log_every)
    trainer.loss = Poisoned(trainer.loss, step=4, kind=kind)
    after_step, update = [], trainer.update
    trainer.update = lambda norm: (update(norm), after_step.append(parameters_of(trainer.model)))

    assert trainer.fit() == 3
    assert len(after_step) == 4
    torch.testing.assert_close(parameters_of(trainer.model), after_step[-1], rtol=0, atol=0)
    found = json.loads((tmp_path / "log" / "nonfinite_step_4.json").read_text())
    [process] = found["processes"]
    [batch] = process["batches"]
    assert (found["epoch"], found["step"]) == (1, 4)
    assert [Path(sample["path"]).is_file() for sample in batch["samples"]] == [True, True]
    assert batch["loss_terms"]["mesh"] in ("nan", "inf") or process["grad_norm"] in ("nan", "inf")
    assert [path.name for path in snapshots_in(tmp_path / "model_dump")] == ["snapshot_0.pth.tar"]


def test_a_number_that_is_not_finite_in_another_process_stops_this_one(dataset, tmp_path):
    class OneOfTwo(Process):
        """The other process has the same batch, and a loss that is not finite at its third step."""

        steps = 0

        def maximum(self, values):
            object.__setattr__(self, "steps", self.steps + 1)
            return [1.0, *values[1:]] if self.steps == 3 else values

    trainer = toy_trainer(dataset, tmp_path, process=OneOfTwo(torch.device("cpu")))
    updates, update = [], trainer.update
    trainer.update = lambda norm: (update(norm), updates.append(parameters_of(trainer.model)))
    assert trainer.fit() == 3
    assert len(updates) == 2
    torch.testing.assert_close(parameters_of(trainer.model), updates[-1], rtol=0, atol=0)


def test_a_network_that_is_not_finite_any_more_replaces_no_snapshot(dataset, tmp_path):
    """Statistics of batch normalisation can overflow in a step whose loss and gradients are finite."""
    trainer = toy_trainer(dataset, tmp_path, save_every=1, keep_snapshots=1)
    trainer.on_step = lambda trainer: trainer.progress.step == 2 and trainer.model.norm.running_var.fill_(math.inf)
    with pytest.raises(UserError, match=r"after step 2, 1 tensors .* the first is 'norm.running_var'") as caught:
        trainer.fit()
    assert caught.value.exit_code == 3
    assert load_latest(tmp_path / "model_dump")[0].step == 1 and resumed(dataset, tmp_path, epochs=1).fit() == 0


def test_a_report_that_cannot_be_written_does_not_hide_why_the_run_stopped(dataset, tmp_path, caplog):
    trainer = toy_trainer(dataset, tmp_path)
    trainer.loss = Poisoned(trainer.loss, step=0, kind="nan")
    (tmp_path / "log" / "nonfinite_step_0.json").mkdir(parents=True)
    assert trainer.fit() == 3
    assert "not finite at step 0" in caplog.text and "Cannot write" in caplog.text


# ---------------------------------------------------------------- nothing to learn from

def test_anything_may_stand_where_nothing_is_annotated(dataset, tmp_path):
    trainer = toy_trainer(dataset, tmp_path)
    batch = next(iter(trainer.batches)).batch
    figures = trainer.backward(batch._replace(targets=without(batch.targets, slice(None))))
    assert {figure.item() for name, figure in figures.items() if name.startswith("loss/")} == {0.0}
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in trainer.model.parameters())
    assert figures["mm/final"] == 0.0


@pytest.mark.parametrize("hand", [0, 1])
def test_a_hand_that_nothing_is_known_of_teaches_the_other_one_nothing(dataset, tmp_path, hand):
    """Whatever stands in its targets: the loss is finite, and no gradient reaches what predicts that hand alone."""
    trainer = toy_trainer(dataset, tmp_path, model=ToyHands(dropout=0.0))
    batch = next(iter(trainer.batches)).batch
    figures = trainer.backward(batch._replace(targets=without(batch.targets, hand)))
    assert all(figure.isfinite() for figure in figures.values()) and figures["loss/mesh"] > 0
    per_hand = trainer.model.heads["rough"].weight.grad.unflatten(0, (2, -1))
    assert not per_hand[hand].any() and per_hand[1 - hand].any() and per_hand.isfinite().all()


def without(targets: Targets, hand: int | slice) -> Targets:
    """Targets in which nothing of a hand is annotated, nor anything of both together, and NaN stands for it."""
    def blanked(value: torch.Tensor, filling: float) -> torch.Tensor:
        value, is_per_hand = value.clone(), value.dim() > 1 and value.shape[1] == 2
        value[(slice(None), hand) if is_per_hand else slice(None)] = filling
        return value

    masks = {name: blanked(value, 0) for name, value in targets._asdict().items() if name.endswith("_valid")}
    return map_tensors(lambda value: blanked(value, math.nan), targets)._replace(**masks)


def test_a_step_without_supervision_is_counted_and_changes_no_weight_by_itself(dataset, tmp_path, monkeypatch):
    """All samples of every batch are bad: Adam without a moment stays where it is."""
    trainer = toy_trainer(dataset, tmp_path, epochs=1, max_bad_fraction=1.0)
    before = state_of(trainer.model)
    monkeypatch.setattr(dataset.reader, "read", lambda index: (_ for _ in ()).throw(UserError("unreadable")))
    assert trainer.fit() == 0
    assert trainer.progress.step == 3
    torch.testing.assert_close(state_of(trainer.model), before, rtol=0, atol=0)


# ---------------------------------------------------------------- signals

def interrupt(number: int) -> None:
    os.kill(os.getpid(), number)


# What is going on when the signal comes: the end of a call, by owner, name and number.
MOMENTS = {
    "the first step": (Trainer, "update", 1),
    "a step inside an epoch": (Trainer, "update", 5),
    "the last step of an epoch": (Trainer, "backward", 3),
    "a save": (os, "fsync", 4),        # two are of the record of the start
    "a validation": (Evaluator, "_score", 1),
}


@pytest.mark.scorecard("fault runs")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_moment_saves_and_the_run_continues_with_the_same_bits(
        dataset, few, tmp_path, reference, moment, number):
    def train() -> int:
        at_call(*MOMENTS[moment], lambda: interrupt(number), after=True)
        return toy_trainer(dataset, tmp_path, validated=few, **SHORT).fit()

    assert os.waitstatus_to_exitcode(run_in_fork(train)) == 128 + number
    assert not list((tmp_path / "model_dump").glob("*.tmp-*"))
    assert resumed(dataset, tmp_path, validated=few, **SHORT).fit() == 0
    assert_same_end(tmp_path, reference)


def test_a_signal_costs_no_step(dataset, tmp_path):
    def train() -> int:
        at_call(Trainer, "backward", 5, lambda: interrupt(signal.SIGTERM), after=True)
        return toy_trainer(dataset, tmp_path, **SHORT).fit()

    assert os.waitstatus_to_exitcode(run_in_fork(train)) == 143
    assert snapshots_in(tmp_path / "model_dump")[-1] == partial_path(tmp_path / "model_dump", 1, 4)
    assert load_latest(tmp_path / "model_dump")[0].step == 5


def test_a_signal_during_validation_loses_nothing_of_the_epoch(dataset, few, test_dataset, tmp_path):
    def train() -> int:
        at_call(Evaluator, "_score", 1, lambda: interrupt(signal.SIGTERM), after=True)
        return toy_trainer(dataset, tmp_path, validated=test_dataset, **SHORT).fit()

    assert os.waitstatus_to_exitcode(run_in_fork(train)) == 143
    snapshot, path = load_latest(tmp_path / "model_dump")
    assert (path.name, snapshot.step, snapshot.score) == ("partial_0_6.pth.tar", 3, None)
    assert resumed(dataset, tmp_path, validated=few, epochs=1).fit() == 0
    snapshot, path = load_latest(tmp_path / "model_dump")
    assert (path.name, snapshot.step) == ("snapshot_0.pth.tar", 3) and snapshot.score > 0


@pytest.mark.scorecard("fault runs")
@pytest.mark.parametrize("moment", ["a step inside an epoch", "a save", "a validation"])
def test_a_second_interrupt_ends_at_once_and_the_run_continues_with_the_same_bits(
        dataset, few, tmp_path, reference, moment):
    times = tmp_path / "interrupted_at"

    def interrupt_twice() -> None:
        interrupt(signal.SIGINT)
        times.write_text(repr(time.monotonic()))
        interrupt(signal.SIGINT)

    def train() -> int:
        at_call(*MOMENTS[moment], interrupt_twice, after=True)
        return toy_trainer(dataset, tmp_path, validated=few, **SHORT).fit()

    assert os.waitstatus_to_exitcode(run_in_fork(train)) == 130
    assert time.monotonic() - float(times.read_text()) < 1
    begin = resumed if snapshots_in(tmp_path / "model_dump") else toy_trainer
    assert begin(dataset, tmp_path, validated=few, **SHORT).fit() == 0
    assert_same_end(tmp_path, reference)


def test_an_interrupt_followed_by_the_launchers_sigterm_is_one_request():
    with StopRequest() as stop:
        interrupt(signal.SIGINT)
        interrupt(signal.SIGTERM)
    assert stop.signal == signal.SIGINT


# ---------------------------------------------------------------- disks

def full_from(step: int, _folder: Path) -> None:
    """No file may grow beyond 10 kB once this step is done."""
    at_call(Trainer, "update", step, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)), after=True)


def over_quota_from(step: int, _folder: Path) -> None:
    def refuse(handle: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    at_call(Trainer, "update", step, lambda: setattr(os, "fsync", refuse), after=True)


def read_only_from(step: int, folder: Path) -> None:
    """What lies in the folder stays, and it takes nothing new: it belongs to the read-only part of a file system."""
    def refuse(path, mode="r", *args, original=open, **kwargs):
        if Path(path).parent == folder and "w" in mode:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return original(path, mode, *args, **kwargs)

    at_call(Trainer, "update", step, lambda: setattr(files, "open", refuse), after=True)
    files.open = open


@pytest.mark.parametrize(("fault", "save_every"), [
    (full_from, 0), (full_from, 5), (over_quota_from, 5), (read_only_from, 5)])
def test_a_disk_that_takes_no_snapshot_ends_the_run_with_exit_code_5_and_the_last_one_is_whole(
        dataset, tmp_path, reference, fault, save_every):
    """During a save inside an epoch and at its end; with room again, the run goes on to the same bits."""
    folder, message = tmp_path / "model_dump", tmp_path / "message"

    def train() -> int:
        fault(4, folder)
        try:
            return toy_trainer(dataset, tmp_path, save_every=save_every, **SHORT).fit()
        except UserError as error:
            message.write_text(str(error))
            return error.exit_code

    assert os.waitstatus_to_exitcode(run_in_fork(train)) == 5
    assert f"Cannot write {folder}/" in message.read_text()
    assert "MB are free)" in message.read_text() and "--continue" in message.read_text()
    assert sorted(path.name for path in folder.iterdir()) == ["snapshot_0.pth.tar", "snapshot_0.pth.tar.sha256"]
    assert load_latest(folder)[0].step == 3
    assert resumed(dataset, tmp_path, **SHORT).fit() == 0
    assert_same_end(tmp_path, reference)


def test_a_disk_without_room_for_a_snapshot_is_refused_before_anything_is_trained(dataset, tmp_path, monkeypatch):
    trainer = toy_trainer(dataset, tmp_path)
    monkeypatch.setattr(checkpoint, "free_bytes", lambda _: 50_000)
    with pytest.raises(UserError, match=r"A snapshot needs about \d+\.?\d* MB, and 0.05 MB are free") as caught:
        trainer.fit()
    assert caught.value.exit_code == 5 and trainer.progress.step == 0


def test_the_room_that_a_snapshot_is_said_to_need_is_what_it_takes(dataset, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(folder_module, "check_space", lambda folder, size, most: asked.append(size))
    toy_trainer(dataset, tmp_path, epochs=1).fit()
    taken = snapshot_path(tmp_path / "model_dump", 0).stat().st_size
    assert asked[0] == pytest.approx(taken, rel=0.1)


def test_a_disk_that_will_be_full_before_the_end_is_warned_of(dataset, tmp_path, monkeypatch, caplog):
    needed = 3 * sum(p.nbytes for p in ToyHands().parameters())
    monkeypatch.setattr(checkpoint, "free_bytes", lambda _: 3 * needed)
    assert toy_trainer(dataset, tmp_path, epochs=1).fit() == 0
    assert "Up to 6 snapshots of about" in caplog.text


# ---------------------------------------------------------------- what vanishes, and clocks

@pytest.fixture
def run_log(tmp_path):
    """The log of a run in this process, taken down again."""
    start_log(tmp_path / "log" / "train.log", is_main=True)
    yield tmp_path / "log" / "train.log"
    for package in map(logging.getLogger, ("common", "data", "main")):
        for handler in list(package.handlers):
            package.removeHandler(handler)
            handler.close()


def test_a_log_folder_that_is_removed_begins_anew(dataset, tmp_path, reference, monkeypatch, run_log):
    def remove(trainer, *args, original=Trainer.update):
        original(trainer, *args)
        if trainer.progress.step == 3:
            shutil.rmtree(run_log.parent)

    monkeypatch.setattr(Trainer, "update", remove)
    assert toy_trainer(dataset, tmp_path, log_every=1, **SHORT).fit() == 0
    assert_same_end(tmp_path, reference)
    text = run_log.read_text()
    assert "Training is complete" in text and "step 3  loss" not in text and "step 6  loss" in text


def test_a_log_that_cannot_be_written_is_told_of_once(dataset, tmp_path, reference, monkeypatch, run_log, capsys):
    """A file stands where its folder was."""
    def remove(trainer, *args, original=Trainer.update):
        original(trainer, *args)
        if trainer.progress.step == 3:
            shutil.rmtree(run_log.parent)
            run_log.parent.write_text("")

    monkeypatch.setattr(Trainer, "update", remove)
    assert toy_trainer(dataset, tmp_path, log_every=1, **SHORT).fit() == 0
    assert_same_end(tmp_path, reference)
    printed = capsys.readouterr()
    assert printed.out.count(f"The log {run_log} misses lines from here on") == 1
    assert "step 6" in printed.out and "Traceback" not in printed.out + printed.err


@pytest.mark.parametrize("jump", [-10**9, 10**9])
def test_a_clock_that_jumps_changes_nothing(dataset, tmp_path, reference, monkeypatch, run_log, jump):
    real, jumped = time.time, []

    def clock() -> float:
        jumped.append(len(jumped) % 2 * jump)
        return real() + jumped[-1]

    monkeypatch.setattr(time, "time", clock)
    assert toy_trainer(dataset, tmp_path, log_every=1, **SHORT).fit() == 0
    monkeypatch.undo()
    assert len(set(jumped)) == 2
    assert_same_end(tmp_path, reference)
    assert all(" s/step" not in line or "-" not in line.split("s/step")[0].split()[-1]
               for line in run_log.read_text().splitlines())


def test_curves_that_cannot_be_written_end_with_one_line_and_the_training_goes_on(
        dataset, tmp_path, reference, caplog, capsys):
    """TensorBoard's file is a device that is always full from the third step on."""
    def fill(trainer, *args, update=Trainer.update):
        update(trainer, *args)
        if trainer.progress.step == 2:
            [events] = (tmp_path / "log").glob("events*")
            events.unlink()
            events.symlink_to("/dev/full")

    trainer = toy_trainer(dataset, tmp_path, log_every=1, **SHORT)
    trainer.update = fill.__get__(trainer)
    assert trainer.fit() == 0
    assert caplog.text.count("The curves for TensorBoard end at step") == 1 and "No space left" in caplog.text
    assert "Traceback" not in capsys.readouterr().err
    assert_same_end(tmp_path, reference)


def test_a_full_disk_where_the_curves_begin_is_exit_code_5(dataset, tmp_path):
    def train() -> int:
        trainer = toy_trainer(dataset, tmp_path, epochs=1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        return trainer.fit()

    assert os.waitstatus_to_exitcode(run_in_fork(train)) == 5


def test_old_snapshots_that_cannot_be_deleted_do_not_stop_the_run(dataset, tmp_path, reference, monkeypatch, caplog):
    def refuse(self, missing_ok=False):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert toy_trainer(dataset, tmp_path, keep_snapshots=1, save_every=2, **SHORT).fit() == 0
    assert "cannot be deleted: Permission denied" in caplog.text
    assert_same_end(tmp_path, reference)
    assert len(snapshots_in(tmp_path / "model_dump")) == 4


# ---------------------------------------------------------------- names of weights

class Wrapped(nn.Module):
    """What DistributedDataParallel and torch.compile make of a model: the same under a longer name."""

    def __init__(self, model: nn.Module, attribute: str):
        super().__init__()
        setattr(self, attribute, model)
        self.attribute = attribute

    def forward(self, *inputs):
        return getattr(self, self.attribute)(*inputs)


@pytest.mark.parametrize("attribute", ["module", "_orig_mod"])
def test_weights_are_saved_under_the_models_own_names(dataset, tmp_path, attribute):
    class Wrapping(Process):
        def parallel(self, model):
            return Wrapped(model, attribute)

    trainer = toy_trainer(dataset, tmp_path, process=Wrapping(torch.device("cpu")), epochs=1)
    assert any(name.startswith(attribute) for name in trainer.parallel.state_dict())
    assert trainer.fit() == 0
    assert load_latest(tmp_path / "model_dump")[0].model.keys() == ToyHands().state_dict().keys()
