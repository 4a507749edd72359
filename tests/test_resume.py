"""Kill it anywhere and go on: the same bits as a run that nothing disturbed, on the CPU."""

import os
import random
import signal
from pathlib import Path

import pytest
import torch
from forks import at_call, count_calls, die, run_in_fork
from torch import nn
from torch.utils._pytree import tree_leaves
from toy_training import CPU, SHORT, ToyHands, assert_same_end, resumed, stop_after, toy_trainer

import main.engine.run.folder as folder_module
import main.engine.run.snapshots as checkpoint
import main.engine.trainer as trainer_module
from common import files
from common.errors import UserError
from data.dataset import EpochSampler
from main.config import TrainConfig
from main.engine.batches import batches, build_loader
from main.engine.evaluator import Evaluator
from main.engine.run.snapshots import load_latest, partial_path, snapshot_path, snapshots_in
from main.engine.trainer import Trainer, learning_rate

# Saved inside their epochs after the steps 2 and 4, and whole after 3 and 6; the second whole one is validated.
SAVING = SHORT | {"keep_snapshots": 1, "save_every": 2, "validate_every": 2}


@pytest.fixture(scope="module")
def validated(dataset, few, tmp_path_factory) -> checkpoint.Snapshot:
    """The end of an undisturbed run that validates as in the sweeps."""
    output = tmp_path_factory.mktemp("validated")
    assert toy_trainer(dataset, output, validated=few, **SAVING).fit() == 0
    return load_latest(output / "model_dump")[0]


def train_or_go_on(dataset, output: Path, **settings) -> int:
    begin = resumed if snapshots_in(output / "model_dump") else toy_trainer
    return begin(dataset, output, **SAVING, **settings).fit()


def steps_saved(output: Path) -> int:
    return load_latest(output / "model_dump")[0].step if snapshots_in(output / "model_dump") else 0


def test_a_run_continued_between_epochs_ends_with_the_same_bits(dataset, tmp_path, reference):
    toy_trainer(dataset, tmp_path, epochs=1).fit()
    assert resumed(dataset, tmp_path, **SHORT).fit() == 0
    assert_same_end(tmp_path, reference)


def test_loader_processes_change_no_bit(dataset, tmp_path, reference):
    toy_trainer(dataset, tmp_path, workers=2, **SHORT).fit()
    assert_same_end(tmp_path, reference)


# ---------------------------------------------------------------- killed

# A save syncs its file and their folder, then its digest's file and the folder; it replaces the file, then the digest.
HALF = "half"       # inside a call of torch.save, besides False for before a call and True for after it
SAVES = {"a whole snapshot": 2, "a partial snapshot": 3}    # by number in the run
KILL_POINTS = {
    **{f"at step {step}": (Trainer, "update", step + 1, False) for step in (0, 2, 4)},
    **{f"half of {what}": (checkpoint.torch, "save", save, HALF) for what, save in SAVES.items()},
    **{f"{what} on the disk": (os, "fsync", 4 * save - 3, True) for what, save in SAVES.items()},
    **{f"{what} in its place": (os, "replace", 2 * save - 1, True) for what, save in SAVES.items()},
    **{f"the digest of {what} on the disk": (os, "fsync", 4 * save - 1, True)
       for what, save in SAVES.items()},
    **{f"the digest of {what} in its place": (os, "replace", 2 * save, True)
       for what, save in SAVES.items()},
    **{f"before cleaning up after {what}": (folder_module, "remove_old_snapshots", save, False)
       for what, save in SAVES.items()},
    **{f"while cleaning up, file {call}": (Path, "unlink", call, True) for call in (1, 4)},
    "after cleaning up": (folder_module, "remove_old_snapshots", 2, True),
}
VALIDATION_POINTS = {
    "before a validation": (Evaluator, "run", 1, False),
    "inside a validation": (Evaluator, "_score", 1, True),
    "after a validation": (Evaluator, "scores", 1, True),
    "half of a snapshot with a score": (checkpoint.torch, "save", 5, HALF),
}


def die_at(owner: object, name: str, call: int, after: bool | str) -> None:
    if after == HALF:
        at_call(owner, name, call, lambda: at_call(files.HashedFile, "write", 100, die, after=True), after=False)
    else:
        at_call(owner, name, call, die, after=after)


def assert_killed(status: int) -> None:
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, "the kill never happened"


@pytest.mark.scorecard("kill points")
@pytest.mark.parametrize("point", KILL_POINTS)
def test_a_killed_run_loses_no_save_and_continues_to_the_same_bits(dataset, tmp_path, reference, point):
    steps = tmp_path / "steps"

    def train_and_die() -> int:
        watch_steps(steps)
        die_at(*KILL_POINTS[point])
        return train_or_go_on(dataset, tmp_path)

    assert_killed(run_in_fork(train_and_die))
    assert len(steps.read_text() if steps.exists() else "") - steps_saved(tmp_path) <= SAVING["save_every"]
    assert train_or_go_on(dataset, tmp_path) == 0
    assert_same_end(tmp_path, reference)


def watch_steps(file: Path) -> None:
    """Note each step that was done."""
    def update(trainer, *args, original=Trainer.update):
        original(trainer, *args)
        with open(file, "a") as out:
            out.write("x")

    Trainer.update = update


@pytest.mark.scorecard("kill points")
@pytest.mark.parametrize("point", VALIDATION_POINTS)
def test_a_run_killed_in_its_validation_continues_to_the_same_bits(
        dataset, few, tmp_path, reference, validated, point):
    def train_and_die() -> int:
        die_at(*VALIDATION_POINTS[point])
        return train_or_go_on(dataset, tmp_path, validated=few)

    assert_killed(run_in_fork(train_and_die))
    assert steps_saved(tmp_path) == 6
    assert train_or_go_on(dataset, tmp_path, validated=few) == 0
    assert_same_end(tmp_path, reference)
    last = load_latest(tmp_path / "model_dump")[0]
    assert (last.score, last.best) == (validated.score, validated.best)


@pytest.mark.slow
@pytest.mark.scorecard("kill points")
def test_runs_killed_at_two_hundred_random_points_continue_to_the_same_bits(
        dataset, few, tmp_path, reference, record_property):
    """Half of the runs may be killed a second time while they go on."""
    events = [(os, "fsync"), (os, "replace"), (checkpoint.torch, "save"), (Path, "unlink"),
              (files.HashedFile, "write"), (folder_module, "remove_old_snapshots"), (Trainer, "update"),
              (Evaluator, "_score"), (Evaluator, "scores")]

    def count() -> int:
        counted = [count_calls(*event) for event in events]
        code = train_or_go_on(dataset, tmp_path / "counted", validated=few)
        (tmp_path / "calls").write_text(" ".join(str(len(calls)) for calls in counted))
        return code

    assert run_in_fork(count) == 0
    calls, rng = [int(word) for word in (tmp_path / "calls").read_text().split()], random.Random(0)
    for run in range(200):
        for death in range(1 + run % 2):
            number = rng.randrange(len(events))
            call, after = rng.randint(1, calls[number]), rng.random() < 0.5

            def train_and_die(number=number, call=call, after=after, output=tmp_path / str(run)) -> int:
                at_call(*events[number], call, die, after=after)
                return train_or_go_on(dataset, output, validated=few)

            status = run_in_fork(train_and_die)
            if death == 0:
                assert_killed(status)
        assert train_or_go_on(dataset, tmp_path / str(run), validated=few) == 0
        assert_same_end(tmp_path / str(run), reference)
    record_property("cases", 200)


@pytest.mark.scorecard("mutants")
@pytest.mark.parametrize("forgotten",
                         ["model", "optimizer", "random_states", "schedule", "next_sample", "batch norm"])
def test_the_comparison_notices_whatever_is_not_restored(dataset, tmp_path, reference, monkeypatch, forgotten):
    assert toy_trainer(dataset, tmp_path, on_step=stop_after(4), **SHORT).fit() == 143
    trainer = resumed(dataset, tmp_path, **SHORT)
    if forgotten == "model":
        nn.init.zeros_(trainer.model.heads["rough"].bias)
    elif forgotten == "optimizer":
        trainer.optimizer.state.clear()
    elif forgotten == "random_states":
        torch.manual_seed(1)
    elif forgotten == "schedule":
        monkeypatch.setattr(trainer_module, "learning_rate",
                            lambda settings, step, epoch: learning_rate(settings, step - 5, epoch - 1))
    elif forgotten == "next_sample":
        trainer.progress.batch = 0
    else:
        trainer.model.norm.reset_running_stats()
    assert trainer.fit() == 0
    with pytest.raises(AssertionError):
        assert_same_end(tmp_path, reference)


# ---------------------------------------------------------------- what TensorBoard shows

def rows_shown(output: Path) -> list[int]:
    """The steps of the loss's curve, as TensorBoard reads them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(output / "log"))
    events.Reload()
    return [row.step for row in events.Scalars("loss/total")]


def test_going_on_keeps_the_rows_before_and_replaces_those_of_steps_taken_again(dataset, tmp_path):
    toy_trainer(dataset, tmp_path, epochs=1, lr_drops=()).fit()
    for epochs in (2, 3):
        resumed(dataset, tmp_path, epochs=epochs, lr_drops=()).fit()
    assert rows_shown(tmp_path) == [3, 6, 9]

    for file in (tmp_path / "model_dump").glob("snapshot_2.*"):     # as if it had died before it saved
        file.unlink()
    resumed(dataset, tmp_path, epochs=3, lr_drops=()).fit()
    assert rows_shown(tmp_path) == [3, 6, 9]


# ---------------------------------------------------------------- where it goes on

@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0)])
def test_a_run_goes_on_inside_an_epoch_with_another_number_of_loader_processes(
        dataset, tmp_path, reference, before, after):
    def train_and_die() -> int:
        at_call(Trainer, "update", 5, die, after=False)
        return toy_trainer(dataset, tmp_path, workers=before, save_every=4, **SHORT).fit()

    assert_killed(run_in_fork(train_and_die))
    assert steps_saved(tmp_path) == 4
    assert resumed(dataset, tmp_path, workers=after, **SHORT).fit() == 0
    assert_same_end(tmp_path, reference)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_batches_after_an_interruption_are_those_that_would_have_come(dataset, workers):
    def loader(workers: int):
        sampler = EpochSampler(len(dataset), seed=5)
        return build_loader(dataset, sampler, batch_size=1, workers=workers, device=CPU.device, drop_last=False)

    whole, rest = loader(0), loader(workers)
    expected = []
    for epoch in (1, 2):
        whole.sampler.set_epoch(epoch)
        expected += batches(whole, CPU.device)
    rest.sampler.set_epoch(1, start=4)
    found = list(batches(rest, CPU.device))
    rest.sampler.set_epoch(2)
    found += batches(rest, CPU.device)
    assert len(found) == 8
    for one, other in zip(found, expected[4:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True))


def test_an_epoch_whose_last_step_is_left_out_stays_so_when_it_is_continued(dataset, few, tmp_path):
    """Six batches are one step of four; the two that are left are no step after the snapshot behind it either."""
    def run(begin, name: str) -> int:
        torch.manual_seed(0)
        model = ToyHands(normalized=False)      # batches of one have no statistics
        return begin(dataset, tmp_path / name, model=model, batch_size=1, accumulate=4, validated=few, epochs=2).fit()

    def train_and_die() -> int:
        at_call(Evaluator, "run", 1, die, after=False)
        return run(toy_trainer, "cut")

    assert run(toy_trainer, "whole") == 0
    assert_killed(run_in_fork(train_and_die))
    assert run(resumed, "cut") == 0
    whole, cut = (load_latest(tmp_path / name / "model_dump")[0] for name in ("whole", "cut"))
    assert cut.step == whole.step == 2
    torch.testing.assert_close(cut.model, whole.model, rtol=0, atol=0)


def test_snapshots_inside_an_epoch_replace_one_another(dataset, tmp_path):
    seen = []

    def look(trainer, *args, original=Trainer.update):
        seen.append([path.name for path in snapshots_in(tmp_path / "model_dump")])
        original(trainer, *args)

    trainer = toy_trainer(dataset, tmp_path, save_every=1, epochs=2)
    trainer.update = look.__get__(trainer)
    assert trainer.fit() == 0
    names = [[], *(f"partial_0_{n}.pth.tar".split() for n in (2, 4)), ["snapshot_0.pth.tar"],
             *(["snapshot_0.pth.tar", f"partial_1_{n}.pth.tar"] for n in (2, 4))]
    assert seen == names
    assert sorted(path.name for path in (tmp_path / "model_dump").glob("*.tar")) == [
        "snapshot_0.pth.tar", "snapshot_1.pth.tar"]


def test_a_complete_run_has_nothing_left_to_do(dataset, tmp_path, caplog):
    toy_trainer(dataset, tmp_path, epochs=1).fit()
    before = snapshot_path(tmp_path / "model_dump", 0).stat().st_mtime_ns
    with caplog.at_level("INFO"):
        assert resumed(dataset, tmp_path, epochs=1).fit() == 0
    assert "This run is complete: 1 of 1 epochs." in caplog.text
    assert snapshot_path(tmp_path / "model_dump", 0).stat().st_mtime_ns == before


def test_the_rate_rises_linearly_and_drops_by_ten():
    settings = TrainConfig(lr=1e-3, warmup_steps=4, lr_drops=(2, 3), epochs=4)
    rates = [learning_rate(settings, step, epoch=step // 4) for step in range(16)]
    expected = [2.5e-4, 5e-4, 7.5e-4, 1e-3, *[1e-3] * 4, *[1e-4] * 4, *[1e-5] * 4]
    assert rates == pytest.approx(expected)


def test_a_cosine_decay_is_torchs():
    settings = TrainConfig(lr=1e-3, lr_decay="cosine", epochs=4)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4 * 5)
    expected = []
    for _ in range(20):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert [learning_rate(settings, step, step / 5) for step in range(20)] == pytest.approx(expected)


@pytest.mark.parametrize("decay", ["drops", "cosine"])
@pytest.mark.parametrize("stop_at", [2, 4])
def test_the_rate_of_every_step_is_the_same_after_an_interruption(dataset, tmp_path, stop_at, decay):
    """In the warm-up before the drop and after it."""
    settings, rates = {"warmup_steps": 4, "lr_decay": decay, **SHORT}, []

    def note(trainer: Trainer) -> None:
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        stop_after(stop_at)(trainer)

    assert toy_trainer(dataset, tmp_path, on_step=note, **settings).fit() == 143
    assert resumed(dataset, tmp_path, on_step=note, **settings).fit() == 0
    steps = [learning_rate(TrainConfig(lr=1e-2, **settings), step, step / 3) for step in range(6)]
    assert rates == pytest.approx(steps, rel=1e-12) and len(set(steps)) >= 4


def test_an_optimiser_that_does_not_fit_is_refused_in_one_paragraph(dataset, tmp_path):
    toy_trainer(dataset, tmp_path, epochs=1).fit()
    trainer = toy_trainer(dataset, tmp_path)
    trainer.optimizer.param_groups[0]["params"].pop()
    with pytest.raises(UserError, match="optimiser of the snapshot"):
        trainer.restore(load_latest(tmp_path / "model_dump")[0])


def test_a_partial_snapshot_is_named_by_its_epoch_and_samples(tmp_path):
    assert partial_path(tmp_path, 3, 64).name == "partial_3_64.pth.tar"
