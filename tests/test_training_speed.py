"""Ways to train faster or in more memory than there is change what is computed no more than they say."""

import itertools
import json
import math
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from fixtures_interhand import write_interhand
from process_group import run_group
from tiny_lgnet import SIZE as LGNET_SIZE
from tiny_lgnet import tiny_lgnet
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils._python_dispatch import TorchDispatchMode
from toy_training import ToyHands, assert_same_end, resumed, stop_after, toy_trainer

import main.engine.run.log as log_module
import main.engine.trainer as trainer_module
from common.errors import UserError
from common.predict.fast import can_compile
from common.types import Stages
from main.engine.batches import TrainingBatch
from main.engine.processes.launch import Process
from main.engine.processes.signals import StopRequest
from main.engine.run.log import StepLog
from main.engine.run.snapshots import Snapshot, load_latest
from main.engine.trainer import Trainer
from tool.dev import bench
from tool.dev.benchmarks import train as train_benchmark


class PlainHands(ToyHands):
    """Without batch normalisation and dropout: a sample's gradient does not depend on what is beside it."""

    def __init__(self):
        super().__init__(dropout=0.0, normalized=False)


class DroppingHands(ToyHands):
    """With dropout, which draws anew for each batch, and for batches of one."""

    def __init__(self):
        super().__init__(normalized=False)


class ConvHands(PlainHands):
    """With a convolution, whose weights have another layout as channels_last."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Stages:
        return super().forward(self.stem(image))


def trainer_of(model: Callable[[], nn.Module], dataset, output: Path, **settings) -> Trainer:
    torch.manual_seed(0)
    return toy_trainer(dataset, output, model=model(), **{"lr": 1e-4, **settings})


def end_of(trainer: Trainer) -> Snapshot:
    assert trainer.fit() == 0
    return load_latest(trainer.run.snapshots)[0]


# ---------------------------------------------------------------- several batches for each step

def first_gradients(trainer: Trainer) -> dict[str, Tensor]:
    trainer.gradients(iter(trainer.batches))
    return {name: parameter.grad for name, parameter in trainer.model.named_parameters()}


def assert_like_one_large_batch(dataset, tmp_path: Path) -> None:
    small, large = {"batch_size": 2, "accumulate": 3}, {"batch_size": 6}
    found, expected = (first_gradients(trainer_of(PlainHands, dataset, tmp_path, **how)) for how in (small, large))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    # Adam blows up the rounding of a gradient that should be 0; a small rate keeps that below the tolerance.
    found, expected = (end_of(trainer_of(PlainHands, dataset, tmp_path / str(len(how)), lr=1e-5, **how))
                       for how in (small, large))
    assert found.step == expected.step == 3
    torch.testing.assert_close(found.model, expected.model, rtol=0, atol=1e-6)


def test_three_batches_of_two_train_like_one_of_six(dataset, tmp_path):
    assert_like_one_large_batch(dataset, tmp_path)


@pytest.mark.parametrize("mistake", ["the sum instead of the mean", "the last batch alone"])
def test_the_comparison_notices_a_wrong_mean(dataset, tmp_path, monkeypatch, mistake):
    def backward(trainer, batch, share, original=Trainer.backward):
        if mistake == "the last batch alone":
            trainer.optimizer.zero_grad()
        return original(trainer, batch, share if "last" in mistake else 1.0)

    monkeypatch.setattr(Trainer, "backward", backward)
    with pytest.raises(AssertionError):
        assert_like_one_large_batch(dataset, tmp_path)


@pytest.mark.parametrize(("batch_size", "accumulate", "batches", "steps"), [
    (1, 4, [4], 3),             # two of six batches are left out in each epoch
    (2, 2, [2], 3),             # one of three
    (1, 2, [2, 2, 2], 9),
    (2, 9, [3], 3),             # fewer than one step are used as they are
    (4, 1, [1], 3),             # an incomplete batch, as before
])
def test_an_incomplete_last_step_is_left_out(dataset, tmp_path, monkeypatch, batch_size, accumulate, batches, steps):
    taken = []

    def gradients(trainer, batches, original=Trainer.gradients):
        learned = original(trainer, batches)
        taken.append([len(indices) for indices in learned.indices])
        return learned

    monkeypatch.setattr(Trainer, "gradients", gradients)
    snapshot = end_of(trainer_of(PlainHands, dataset, tmp_path, batch_size=batch_size, accumulate=accumulate))
    assert taken == [[batch_size] * count for count in batches] * 3
    assert (snapshot.step, snapshot.next_epoch) == (steps, 3)


def test_the_rate_follows_the_steps_and_not_their_batches(dataset, tmp_path):
    rates = []
    end_of(trainer_of(PlainHands, dataset, tmp_path, batch_size=1, accumulate=3, warmup_steps=4, lr=1.0, lr_drops=(2,),
                      on_step=lambda trainer: rates.append(trainer.optimizer.param_groups[0]["lr"])))
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.1, 0.1])


def test_processes_share_the_gradients_of_a_step_once(dataset, tmp_path, monkeypatch):
    """Three batches of one in each of two processes, and three of two in one; 77 tells of another number."""
    settings = {"accumulate": 3, "lr": 1e-5}

    def worker(process: Process) -> int:
        shared = []
        trainer = trainer_of(PlainHands, dataset, tmp_path / "two", process=process, batch_size=1, **settings)
        trainer.parallel.register_comm_hook(None, lambda _, bucket: (
            shared.append(bucket.index()), allreduce_hook(None, bucket))[1])
        code = trainer.fit()
        return code if shared == [0] * trainer.progress.step else 77

    assert run_group(worker, tmp_path) == [(0, ""), (0, "")]
    together = load_latest(tmp_path / "two" / "model_dump")[0]
    alone = end_of(trainer_of(PlainHands, dataset, tmp_path / "one", batch_size=2, **settings))
    assert (together.world_size, together.step) == (2, alone.step) == (2, 3)
    torch.testing.assert_close(together.model, alone.model, rtol=0, atol=1e-6)

    monkeypatch.setattr(Trainer, "unshared_gradients", lambda trainer: nullcontext())
    assert [ended.code for ended in run_group(worker, tmp_path)] == [77, 77]


@pytest.mark.parametrize("stop_at", [1, 4])
def test_a_stop_between_the_steps_of_several_batches_continues_to_the_same_bits(
        dataset, tmp_path, stop_at):
    """Nine steps of two batches, each with dropout of its own."""
    settings = {"batch_size": 1, "accumulate": 2, "lr": 1e-3}
    whole = end_of(trainer_of(DroppingHands, dataset, tmp_path / "whole", **settings))

    cut = trainer_of(DroppingHands, dataset, tmp_path / "cut", on_step=stop_after(stop_at), **settings)
    assert cut.fit() == 143
    assert resumed(dataset, tmp_path / "cut", model=DroppingHands(), **settings).fit() == 0
    assert whole.step == 9
    assert_same_end(tmp_path / "cut", whole)


def test_a_number_that_is_not_finite_in_any_batch_of_a_step_stops_before_the_update(dataset, tmp_path):
    trainer = toy_trainer(dataset, tmp_path, batch_size=2, accumulate=3)
    calls, loss = itertools.count(), trainer.loss

    def poisoned(stages, targets):
        terms = loss(stages, targets)
        poison = math.nan if next(calls) == 4 else 0.0      # the second batch of the second step
        return terms | {"total": terms["total"] + poison * terms["mesh"]}

    trainer.loss = poisoned
    weights = []
    trainer.on_step = lambda trainer: weights.append(trainer.model.heads["rough"].weight.detach().clone())
    assert trainer.fit() == 3
    assert len(weights) == 1 and torch.equal(trainer.model.heads["rough"].weight, weights[0])
    [process] = json.loads((tmp_path / "log" / "nonfinite_step_1.json").read_text())["processes"]
    assert [batch["loss_terms"]["total"] == "nan" for batch in process["batches"]] == [False, True, False]
    assert sorted(sample["index"] for batch in process["batches"] for sample in batch["samples"]) == list(range(6))


def test_scalars_are_means_over_the_batches_since_they_were_last_read(tmp_path):
    with StepLog(tmp_path, every=1, is_main=False, first_step=0) as log:
        log.add([{"a": torch.tensor(value), "b": torch.tensor(-value)} for value in (1.0, 2.0)], torch.tensor(4.0))
        log.add([{"a": torch.tensor(6.0), "b": torch.tensor(-6.0)}], torch.tensor(6.0))
        assert log.means() == {"a": 3.0, "b": -3.0, "grad_norm": 5.0}
        log.add([{"a": torch.tensor(7.0)}], torch.tensor(1.0))
        assert log.means() == {"a": 7.0, "grad_norm": 1.0}


# ---------------------------------------------------------------- waiting

class Clock:
    """Time that passes only where a test says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize(("loading", "computing", "share"), [(1, 3, 25), (3, 1, 75), (0, 1, 0)])
def test_the_log_says_what_share_of_a_step_waited_for_data(
        dataset, tmp_path, monkeypatch, caplog, loading, computing, share):
    clock = Clock()
    for module in (log_module, trainer_module):
        monkeypatch.setattr(module, "time", clock)

    def read(index, original=dataset.reader.read):
        clock.now += loading
        return original(index)

    def update(trainer, grad_norm, original=Trainer.update):
        clock.now += 2 * computing      # a step has two samples
        original(trainer, grad_norm)

    monkeypatch.setattr(dataset.reader, "read", read)
    monkeypatch.setattr(Trainer, "update", update)
    with caplog.at_level("INFO"):
        end_of(toy_trainer(dataset, tmp_path, log_every=2))
    lines = [record.getMessage() for record in caplog.records if " s/step" in record.getMessage()]
    assert len(lines) == 6 and all(line.endswith(f"{2 * (loading + computing):.2f} s/step  data {share} %")
                                   for line in lines)
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(tmp_path / "log"))
    events.Reload()
    assert {event.value for event in events.Scalars("time/data_share")} == {share / 100}
    assert {event.value for event in events.Scalars("time/step_s")} == {2.0 * (loading + computing)}


class Answers(TorchDispatchMode):
    """Counts the operations whose result the host has to wait for."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")

    def __init__(self):
        super().__init__()
        self.met: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.split(".")[0]
        is_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        self.met += [name] if name in self.WAITING or is_mask else []
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("kind", ["toy", "LGNet"])
def test_a_step_asks_the_device_for_one_answer(dataset, hand_model, tmp_path, kind):
    """Whether everything is finite. Each more would be a moment in which a GPU has nothing to do."""
    model = ToyHands() if kind == "toy" else tiny_lgnet(hand_model).train()
    trainer = toy_trainer(dataset, tmp_path, model=model, max_grad_norm=1.0)
    trainer.loss.input_size = LGNET_SIZE
    batch = next(iter(trainer.batches))
    if kind == "LGNet":
        image = torch.rand(2, 3, LGNET_SIZE, LGNET_SIZE)
        batch = batch._replace(batch=batch.batch._replace(image=image))
    with Answers() as answers:
        step(trainer, batch)
    assert answers.met == ["_local_scalar_dense"]


def step(trainer: Trainer, batch: TrainingBatch) -> None:
    learned = trainer.gradients(iter([batch]))
    assert trainer.agree(learned, StopRequest()) == (False, 0)
    trainer.update(learned.grad_norm)


def test_the_count_of_answers_notices_one_more(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "grad_norm", lambda self, original=Trainer.grad_norm: torch.tensor(
        original(self).item()))
    trainer = toy_trainer(dataset, tmp_path)
    batch = next(iter(trainer.batches))
    with Answers() as answers:
        step(trainer, batch)
    assert len(answers.met) == 2


# ---------------------------------------------------------------- torch.compile and channels_last

@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="torch.compile needs a C++ compiler, and there is none")
def test_a_compiled_run_trains_like_an_eager_one_and_keeps_the_names(dataset, tmp_path):
    eager = end_of(trainer_of(ConvHands, dataset, tmp_path / "eager"))
    compiled = end_of(trainer_of(ConvHands, dataset, tmp_path / "compiled", compile="default"))
    assert list(compiled.model) == list(eager.model)
    torch.testing.assert_close(compiled.model, eager.model, rtol=0, atol=1e-5)
    beginning = trainer_of(ConvHands, dataset, tmp_path).model.state_dict()
    assert (eager.model["stem.weight"] - beginning["stem.weight"]).abs().max() > 1e-4


def test_compiling_without_a_compiler_is_refused_at_the_start(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"C\+\+ compiler"):
        toy_trainer(dataset, tmp_path, compile="default")


def test_channels_last_trains_like_the_usual_layout(dataset, tmp_path):
    usual, last = (end_of(trainer_of(ConvHands, dataset, tmp_path / str(on), channels_last=on))
                   for on in (False, True))
    assert last.model["stem.weight"].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last.model, usual.model, rtol=0, atol=1e-5, check_stride=False)


def weights_after_continuing(dataset, output: Path, *, channels_last: bool) -> Tensor:
    """Of the convolution, one step after the last snapshot, whose gradient is given."""
    trainer = resumed(dataset, output, model=ConvHands(), channels_last=channels_last)
    weight = trainer.model.stem.weight
    weight.grad = torch.empty_like(weight).copy_(torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)))
    trainer.update(torch.tensor(1.0))
    return weight.detach()


@pytest.mark.parametrize("before", [False, True])
def test_a_run_continues_in_another_layout_as_in_its_own(dataset, tmp_path, before):
    end_of(trainer_of(ConvHands, dataset, tmp_path, channels_last=before, epochs=1))
    own, other = (weights_after_continuing(dataset, tmp_path, channels_last=on) for on in (before, not before))
    torch.testing.assert_close(other, own, rtol=0, atol=1e-7, check_stride=False)


def test_moments_in_the_layout_of_another_run_would_meet_the_wrong_weights(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "lay_out_moments", lambda optimizer: None)
    end_of(trainer_of(ConvHands, dataset, tmp_path, epochs=1))
    own, other = (weights_after_continuing(dataset, tmp_path, channels_last=on) for on in (False, True))
    assert (other - own).abs().max() > 1e-4


# ---------------------------------------------------------------- the benchmarks

@pytest.fixture
def benchmark(hand_model, tmp_path, monkeypatch, capsys):
    """Run a benchmark on a small set: its figures and what it printed."""
    write_interhand(tmp_path / "data", hand_model)

    def run(*arguments: str) -> tuple[dict, str]:
        monkeypatch.setattr(sys, "argv", ["bench.py", *arguments, "--root", str(tmp_path / "data"), "--json",
                                          str(tmp_path / "figures.json")])
        bench.main()
        return json.loads((tmp_path / "figures.json").read_text()), capsys.readouterr().out

    return run


def test_the_loader_benchmark_tells_rates_and_where_the_time_goes(benchmark):
    figures, text = benchmark("loader", "--workers", "0", "--batches", "2", "--rounds", "1", "--batch_size", "4")
    assert figures["samples_per_s"]["0"] > 0 and figures["imread_per_s"] > 0
    stages = figures["sample_ms"]
    assert stages["total"] == pytest.approx(sum(ms for stage, ms in stages.items() if stage != "total"))
    assert all(stages[stage] > 0 for stage in ("labels", "decode", "checks", "crop", "targets", "collate"))
    assert f"{figures['samples_per_s']['0']:.1f} samples/s" in text and "page cache is warm" in text


def test_the_training_benchmark_times_the_trainers_steps(benchmark, monkeypatch):
    steps = []
    monkeypatch.setattr(train_benchmark, "WARM_UP", 1)
    monkeypatch.setattr(Trainer, "gradients", lambda trainer, batches, original=Trainer.gradients: (
        steps.append(trainer), original(trainer, batches))[1])
    tiny = ("model.backbone=resnet18", "model.input_size=64", "model.channels=32")
    row, text = benchmark("train", "--gpu", "cpu", "--steps", "1", "--batch_size", "2", "--accumulate", "2",
                          "--workers", "0", "--set", *tiny)
    assert len(steps) == 2 * (1 + 1)        # alone and in turns, each after warming up
    assert (row["batch_size"], row["accumulate"], row["workers"], row["resnet"]) == (2, 2, 0, "resnet18")
    assert 0 < row["data_share"] < 1 and row["peak_gb"] > 0.05 and row["ratio_resnet"] > 0
    assert row["images_per_s"] == pytest.approx(4 / (row["step_ms"] / 1000))
    assert f"{row['images_per_s']:.1f} images/s" in text and f"{row['ratio_resnet']:.2f} times" in text
