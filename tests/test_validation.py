"""Validation inside training: it scores, remembers the best, and moves nothing."""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from forks import run_in_fork
from process_group import run_group
from test_engine import perfect
from toy_scores import plain_result
from toy_training import SHORT, ToyHands, assert_same_end, resumed, toy_dataset, toy_evaluator, toy_trainer

from common.errors import UserError
from common.score.scores import NetworkScores
from data.dataset import EpochSampler
from data.subset import EvenSubset, spread_evenly
from main.config import TestConfig as settings
from main.engine.evaluator import Evaluator
from main.engine.processes.launch import Process
from main.engine.run.snapshots import best_epoch, load_latest, load_snapshot, remove_old_snapshots, snapshots_in
from main.engine.trainer import Trainer


def names(output: Path) -> list[str]:
    return [path.name.removesuffix(".pth.tar") for path in snapshots_in(output / "model_dump")]


class Canned:
    """An evaluator that finds what it is told to."""

    def __init__(self, score: float | None):
        self.score = score

    def run(self, stopped) -> "Canned | None":
        return None if stopped() else self

    def scores(self) -> NetworkScores:
        return msgspec.convert(plain_result(self.score), NetworkScores)


def scoring(trainer: Trainer, scores: Iterator[float | None]) -> Trainer:
    """The trainer, whose validations will have these scores."""
    trainer.validation = lambda model, mean_joints: Canned(next(scores))
    return trainer


# ---------------------------------------------------------------- moves nothing

@pytest.mark.parametrize("how", [{}, {"validate_every": 2, "save_every": 1}])
def test_validating_and_saving_change_no_bit_of_the_training(dataset, few, tmp_path, reference, how):
    """Neither weights, moments, statistics nor any random state."""
    assert toy_trainer(dataset, tmp_path, validated=few, **SHORT, **how).fit() == 0
    assert_same_end(tmp_path, reference)


@pytest.mark.parametrize("fault", ["a random number", "training mode"])
def test_the_comparison_notices_a_validation_that_moves_something(
        dataset, few, tmp_path, reference, monkeypatch, fault):
    def disturbed(evaluator, *args, original=Evaluator.run):
        if fault == "a random number":
            torch.rand(1)
        else:
            evaluator.predict.args[0].train()
        return original(evaluator, *args)

    monkeypatch.setattr(Evaluator, "run", disturbed)
    assert toy_trainer(dataset, tmp_path, validated=few, **SHORT).fit() == 0
    with pytest.raises(AssertionError):
        assert_same_end(tmp_path, reference)


def test_the_score_is_that_of_a_test_of_the_snapshot(dataset, few, tmp_path):
    assert toy_trainer(dataset, tmp_path, validated=few, epochs=1).fit() == 0
    snapshot, _ = load_latest(tmp_path / "model_dump")
    model = ToyHands()
    model.load_state_dict(snapshot.model)
    tested = toy_evaluator(few, Process(torch.device("cpu")), model.eval(), torch.zeros(2, 21, 3))
    tested.run()
    assert snapshot.score == tested.scores().printed.mpjpe


@pytest.mark.parametrize(("every", "epochs", "expected"), [(1, 3, [0, 1, 2]), (2, 3, [1, 2]), (5, 3, [2])])
def test_every_nth_epoch_and_the_last_are_validated(few, tmp_path, every, epochs, expected):
    trainer = toy_trainer(few, tmp_path, validate_every=every, epochs=epochs)
    assert scoring(trainer, iter([1.0] * 9)).fit() == 0
    found = [load_snapshot(path)[0].score for path in snapshots_in(tmp_path / "model_dump")]
    assert [epoch for epoch, score in enumerate(found) if score is not None] == expected


def test_the_log_and_tensorboard_tell_the_score(dataset, few, tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert toy_trainer(dataset, tmp_path, validated=few, epochs=2).fit() == 0
    scores = [load_snapshot(path)[0].score for path in snapshots_in(tmp_path / "model_dump")]
    assert f"epoch 0  validation MPJPE {scores[0]:.2f} mm (protocol 'lgnet', 2 samples; the first)" in caplog.text
    assert f"epoch 1  validation MPJPE {scores[1]:.2f} mm" in caplog.text
    assert f"lowest so far {scores[0]:.2f} mm, epoch 0" in caplog.text
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(tmp_path / "log"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("validation/mpjpe")] == [
        (3, pytest.approx(scores[0])), (6, pytest.approx(scores[1]))]


# ---------------------------------------------------------------- the best

@pytest.mark.parametrize(("scores", "kept", "best"), [
    ([30.0, 20.0, 25.0, 26.0, 27.0], [1, 4], 1), ([10.0, 20.0, 30.0, 40.0, 50.0], [0, 4], 0),
    ([50.0, 40.0, 30.0, 20.0, 10.0], [4], 4), ([20.0, 20.0, 20.0, 20.0, 20.0], [0, 4], 0),
    ([None, 20.0, None, None, 30.0], [1, 4], 1), ([None] * 5, [4], None),
])
def test_the_best_stays_beside_the_last(few, tmp_path, scores, kept, best):
    trainer = toy_trainer(few, tmp_path, epochs=5, keep_snapshots=1)
    assert scoring(trainer, iter(scores)).fit() == 0
    assert names(tmp_path) == [f"snapshot_{epoch}" for epoch in kept]
    last = load_latest(tmp_path / "model_dump")[0]
    assert last.best == (None if best is None else (best, scores[best])) and last.score == scores[4]
    if best is None:
        with pytest.raises(UserError, match="No epoch of the run .* has been validated"):
            best_epoch(tmp_path / "model_dump")
    else:
        assert best_epoch(tmp_path / "model_dump") == best


def test_the_best_is_remembered_over_an_interruption(dataset, tmp_path):
    scores, how = iter([20.0, 10.0, 30.0, 40.0, 50.0]), {"keep_snapshots": 1, "save_every": 1, "batch_size": 3}
    scoring(toy_trainer(dataset, tmp_path, epochs=3, **how), scores).fit()
    scoring(resumed(dataset, tmp_path, epochs=5, **how), scores).fit()
    assert names(tmp_path) == ["snapshot_1", "snapshot_4"]


def test_the_best_of_a_folder_without_snapshots_says_so(tmp_path):
    with pytest.raises(UserError, match="train first"):
        best_epoch(tmp_path / "model_dump")


def test_a_last_snapshot_that_is_damaged_is_no_ground_to_guess_the_best(few, tmp_path):
    scoring(toy_trainer(few, tmp_path, epochs=3), iter([1.0, 2.0, 3.0])).fit()
    snapshots_in(tmp_path / "model_dump")[-1].write_bytes(b"x")
    with pytest.raises(UserError, match="snapshot_2.pth.tar is damaged"):
        best_epoch(tmp_path / "model_dump")


def test_old_snapshots_are_removed_without_any_validation_too(few, tmp_path):
    toy_trainer(few, tmp_path, epochs=4, keep_snapshots=2).fit()
    assert names(tmp_path) == ["snapshot_2", "snapshot_3"]
    remove_old_snapshots(tmp_path / "model_dump", keep=1, best=2)
    assert names(tmp_path) == ["snapshot_2", "snapshot_3"]


# ---------------------------------------------------------------- a part of a set

@pytest.mark.parametrize(("length", "count"), [(6, 6), (6, 3), (6, 100), (1000, 7), (30_000, 1000), (5, 1)])
def test_indices_are_spread_evenly_and_differ(length, count):
    indices = spread_evenly(length, count)
    assert len(indices) == len(set(indices)) == min(length, count)
    assert indices == sorted(indices) and 0 <= indices[0] and indices[-1] < length
    steps = [b - a for a, b in zip(indices, indices[1:], strict=False)]
    assert not steps or max(steps) - min(steps) <= 1


def test_a_subset_has_the_records_and_names_of_the_whole(dataset):
    subset = EvenSubset(dataset.reader, 3)
    assert len(subset) == 3
    for index, whole in enumerate((0, 2, 5)):
        assert subset.sample_id(index) == dataset.reader.sample_id(whole)
        assert subset.describe(index) == dataset.reader.describe(whole)
        assert (subset.read(index).joints_cam == dataset.reader.read(whole).joints_cam).all()
    assert (subset.name, subset.hand_model.name) == ("InterHand26M", "builtin")


def test_a_part_of_the_set_is_scored(data_root, hand_model, tmp_path):
    part = toy_dataset(data_root, hand_model, augment=False)
    part.reader = EvenSubset(part.reader, 4)
    tested = Evaluator(perfect(hand_model), part, torch.zeros(2, 21, 3), settings=settings(batch_size=4), workers=0,
                       process=Process(torch.device("cpu")))
    tested.run()
    assert tested.scores().counts.samples == 4


# ---------------------------------------------------------------- several processes

def test_several_processes_agree_on_the_best(dataset, test_dataset, tmp_path):
    """Six samples, of which each of the two scores three."""
    def train(process: Process) -> int:
        torch.set_num_threads(1)
        trainer = toy_trainer(dataset, tmp_path / "run", process=process, batch_size=1, validated=test_dataset,
                              model=ToyHands(normalized=False), keep_snapshots=1, **SHORT)
        code = trainer.fit()
        (tmp_path / f"rank{process.rank}").write_text(repr((trainer.progress.best, trainer.progress.step)))
        return code

    assert [ended.code for ended in run_group(train, tmp_path / "group")] == [0, 0]
    snapshot, _ = load_latest(tmp_path / "run" / "model_dump")
    assert [(tmp_path / f"rank{rank}").read_text() for rank in range(2)] == [repr((snapshot.best, 6))] * 2
    model = ToyHands(normalized=False)
    model.load_state_dict(snapshot.model)
    alone = toy_evaluator(test_dataset, Process(torch.device("cpu")), model.eval(), torch.zeros(2, 21, 3))
    alone.run()
    # Batches of other sizes round otherwise.
    assert alone.scores().printed.mpjpe == pytest.approx(snapshot.score, abs=1e-4)


def test_a_stop_in_one_process_stops_the_validation_of_all(dataset, tmp_path):
    class OneOfTwo(Process):
        """The other process is told to stop in the second validation."""

        def maximum(self, values):
            return [15.0] if len(values) == 1 and trainer.progress.epoch == 1 else values

    trainer = toy_trainer(dataset, tmp_path, process=OneOfTwo(torch.device("cpu")))
    assert scoring(trainer, iter([1.0, 2.0, 3.0])).fit() == 143
    assert names(tmp_path) == ["snapshot_0", "partial_1_6"]
    assert load_latest(tmp_path / "model_dump")[0].best == (0, 1.0)


def test_an_epoch_that_only_waits_for_its_validation_reads_no_training_data(
        dataset, few, tmp_path, monkeypatch):
    def train() -> int:
        Evaluator.run = lambda *_: os._exit(7)
        return toy_trainer(dataset, tmp_path, validated=few, epochs=1).fit()

    assert os.waitstatus_to_exitcode(run_in_fork(train)) == 7
    trainer = resumed(dataset, tmp_path, validated=few, epochs=1)
    read = []
    monkeypatch.setattr(EpochSampler, "__iter__", lambda self, original=EpochSampler.__iter__: (
        read.append(self.shuffle), original(self))[1])
    assert trainer.fit() == 0
    assert read == [False] and names(tmp_path) == ["snapshot_0"]
