"""Several processes: the same result as one, and one end for all whatever happens to any of them."""

import json
import multiprocessing
import os
import re
import signal
import socket
import threading
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forks import run_in_fork
from process_group import Ended, free_port, run_group
from test_engine import evaluator, perfect, scores_of
from toy_hands import assert_same
from toy_training import CPU, ToyHands, plain_trainer, stop_after, toy_evaluator, toy_trainer

import main.engine.processes.launch as launch_module
import main.engine.processes.lifeline as lifeline_module
import main.engine.run.folder as folder_module
from common.errors import EXIT_ENVIRONMENT, UserError
from common.score.scores import plain
from data.dataset import EpochSampler
from main.engine.processes.launch import Process, check_devices, choose_devices, launch, own_device
from main.engine.processes.lifeline import Lifeline
from main.engine.run.snapshots import Snapshot, load_latest
from main.engine.trainer import Trainer


def last_snapshot(output: Path) -> Snapshot:
    return load_latest(output / "model_dump")[0]


# ---------------------------------------------------------------- the same result as one process

def test_two_processes_train_like_one_on_the_same_batches(dataset, tmp_path):
    """Three steps of two samples; and what the comparison is worth: gradients that are not shared are noticed."""
    def worker(process: Process) -> int:
        plain_trainer(dataset, tmp_path / "two", process).fit()
        apart = plain_trainer(dataset, tmp_path / "apart", process)
        apart.parallel = apart.model
        return apart.fit()

    assert run_group(worker, tmp_path) == [(0, ""), (0, "")]
    plain_trainer(dataset, tmp_path / "one").fit()
    together, apart, alone = (last_snapshot(tmp_path / name) for name in ("two", "apart", "one"))
    assert (together.world_size, together.step) == (2, alone.step) == (2, 3)
    torch.testing.assert_close(together.model, alone.model, rtol=0, atol=1e-5)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(apart.model, alone.model, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_score_an_odd_number_of_samples_like_one(test_dataset, hand_model, tmp_path, monkeypatch, size):
    monkeypatch.setattr(type(test_dataset.reader), "__len__", lambda self: 5)
    predict = perfect(hand_model, noise=0.01)

    def worker(process: Process) -> int:
        scores = scores_of(evaluator(test_dataset, predict, process=process, batch_size=2))
        (tmp_path / f"scores_{process.rank}.json").write_text(json.dumps(plain(scores)))
        return 0

    assert [end.code for end in run_group(worker, tmp_path, size=size)] == [0] * size
    expected = scores_of(evaluator(test_dataset, predict))
    assert expected.counts.samples == 5
    for rank in range(size):
        assert_same(json.loads((tmp_path / f"scores_{rank}.json").read_text()), plain(expected))


def test_processes_validate_the_model_that_is_saved(dataset, test_dataset, tmp_path):
    """Batch normalisation has seen other samples in each of them."""
    def worker(process: Process) -> int:
        return toy_trainer(dataset, tmp_path, process=process, epochs=1, validated=test_dataset).fit()

    assert [end.code for end in run_group(worker, tmp_path)] == [0, 0]
    snapshot, model = last_snapshot(tmp_path), ToyHands()
    model.load_state_dict(snapshot.model)
    scores = scores_of(toy_evaluator(test_dataset, CPU, model.eval(), torch.zeros(2, 21, 3)))
    assert snapshot.score == pytest.approx(scores.printed.mpjpe, abs=1e-4)


# ---------------------------------------------------------------- another number of processes

def resume(trainer: Trainer, output: Path) -> Trainer:
    trainer.restore(load_latest(output / "model_dump")[0])
    return trainer


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_run_continues_inside_an_epoch_with_another_number_of_processes(dataset, tmp_path, before, after):
    """A step has two samples either way: the whole run must come out as if nothing had changed."""
    def begin(process: Process) -> int:
        return plain_trainer(dataset, tmp_path / "run", process, epochs=2, on_step=stop_after(3)).fit()

    def go_on(process: Process) -> int:
        return resume(plain_trainer(dataset, tmp_path / "run", process, epochs=2), tmp_path / "run").fit()

    assert {end.code for end in run_group(begin, tmp_path, size=before)} == {143}
    assert last_snapshot(tmp_path / "run").next_sample == 2
    assert {end.code for end in run_group(go_on, tmp_path, size=after)} == {0}
    plain_trainer(dataset, tmp_path / "alone", epochs=2).fit()
    continued, alone = last_snapshot(tmp_path / "run"), last_snapshot(tmp_path / "alone")
    assert (continued.step, continued.world_size) == (alone.step, after) == (6, after)
    torch.testing.assert_close(continued.model, alone.model, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("before", "after", "batch_sizes"), [
    (1, 2, (4, 4)), (2, 1, (4, 4)), (4, 3, (2, 2)), (1, 2, (4, 3)), (3, 2, (1, 4))])
def test_what_is_left_of_an_epoch_is_what_the_other_processes_had_not_seen(before, after, batch_sizes):
    def order(world_size: int, rank: int, start: int) -> list[int]:
        sampler = EpochSampler(101, seed=3, rank=rank, world_size=world_size)
        sampler.set_epoch(5, start=start)
        assert len(list(sampler)) == len(sampler)
        return [index for _, index in sampler]

    seen = 3 * before * batch_sizes[0]
    first = [index for rank in range(before) for index in order(before, rank, 0)[:3 * batch_sizes[0]]]
    rest = [index for rank in range(after) for index in order(after, rank, seen)]
    assert len(set(first)) == len(first) == seen
    assert set(first) | set(rest) == set(range(101))
    assert len(first) + len(rest) - 101 < after     # as many are repeated as an even share takes


@pytest.mark.parametrize(("world_size", "batch_size", "next_sample"), [(1, 2, 2), (2, 1, 2), (1, 1, 5), (2, 2, 3)])
def test_the_place_in_an_epoch_is_kept_for_steps_of_any_size(dataset, tmp_path, caplog, world_size, batch_size,
                                                            next_sample):
    class Lonely(Process):
        def parallel(self, model):
            return model

    toy_trainer(dataset, tmp_path, epochs=1).fit()
    snapshot = last_snapshot(tmp_path)
    values = {field: getattr(snapshot, field) for field in snapshot.__dataclass_fields__}
    process = Lonely(torch.device("cpu"), 0, world_size)
    trainer = toy_trainer(dataset, tmp_path, process=process, batch_size=batch_size)
    trainer.restore(Snapshot(**values | {"next_sample": next_sample}))
    assert trainer.progress.sample == next_sample
    changed = f"had 1 processes and has {world_size} now: it goes on after the {next_sample} samples"
    assert (changed in caplog.text) == (world_size != 1)


# ---------------------------------------------------------------- a process that is lost

def die_at_step(trainer: Trainer, step: int, number: int) -> Trainer:
    """Let the trainer's process be hit by a signal between the gradients of a step and their use."""
    def update(norm, original=trainer.update):
        if trainer.progress.step == step:
            os.kill(os.getpid(), number)
        original(norm)

    trainer.update = update
    return trainer


def lose(dataset, folder: Path, *, victim: int, size: int = 2, number: int = signal.SIGKILL) -> float:
    """Train in several processes of which one is killed in the second epoch; all must end as they promise. Seconds."""
    def worker(process: Process) -> int:
        trainer = plain_trainer(dataset, folder, process, epochs=1000, batch_size=1)
        return (die_at_step(trainer, 6 // size + 1, number) if process.rank == victim else trainer).fit()

    start = time.monotonic()
    ended = run_group(worker, folder, size=size)
    assert ended[victim].code == -signal.SIGKILL, "the kill never happened"
    assert {end.code for rank, end in enumerate(ended) if rank != victim} == {EXIT_ENVIRONMENT}, ended
    told = "".join(end.errors for end in ended)
    assert told.count(f"error: Process {victim} on ") == 1 and told.count("error: ") == 1, told
    assert "--continue" in told and "Traceback" not in told
    assert last_snapshot(folder).next_epoch == 1
    return time.monotonic() - start


@pytest.mark.scorecard("fault runs")
@pytest.mark.parametrize(("victim", "size"), [(0, 2), (1, 2), (2, 3)])
def test_a_killed_process_ends_the_run_and_is_named(dataset, tmp_path, victim, size):
    assert lose(dataset, tmp_path, victim=victim, size=size) < 10


@pytest.mark.slow
@pytest.mark.scorecard("fault runs")
def test_no_run_of_twenty_hangs_after_one_of_its_processes_was_killed(dataset, tmp_path, record_property):
    seconds = [lose(dataset, tmp_path / str(run), victim=run % 3, size=3) for run in range(20)]
    assert max(seconds) < 10
    record_property("cases", len(seconds))


def test_a_process_waiting_outside_of_any_collective_ends_as_well(tmp_path):
    """As one whose GPU computes: nothing in it notices that another is gone."""
    def worker(process: Process) -> int:
        if process.rank:
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Event().wait(20)
        return 0

    start = time.monotonic()
    ended = run_group(worker, tmp_path)
    assert (ended[0].code, ended[1].code) == (EXIT_ENVIRONMENT, -signal.SIGKILL)
    assert time.monotonic() - start < 10


def test_a_snapshot_is_finished_although_another_process_is_gone(dataset, tmp_path, monkeypatch):
    def save_slowly(snapshot, path, save=folder_module.save_snapshot):
        (tmp_path / "saving").touch()
        threading.Event().wait(0.5)
        save(snapshot, path)

    def worker(process: Process) -> int:
        trainer = plain_trainer(dataset, tmp_path / "run", process)
        if process.rank:
            trainer.save = lambda path, score=None, save=trainer.save: (save(path, score), die_when_saving())
        return trainer.fit()

    def die_when_saving() -> None:
        while not (tmp_path / "saving").exists():
            threading.Event().wait(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(folder_module, "save_snapshot", save_slowly)
    ended = run_group(worker, tmp_path)
    assert [end.code for end in ended] == [EXIT_ENVIRONMENT, -signal.SIGKILL]
    assert last_snapshot(tmp_path / "run").next_epoch == 1


@pytest.mark.scorecard("fault runs")
@pytest.mark.parametrize(("victim", "number"), [
    (1, signal.SIGSTOP), pytest.param(0, signal.SIGSTOP, marks=pytest.mark.slow),
    pytest.param(1, None, marks=pytest.mark.slow)])
def test_a_process_that_hangs_ends_the_run_and_is_named(dataset, tmp_path, monkeypatch, victim, number):
    """Stopped, or waiting for something else, until the others' time for a step has run out."""
    monkeypatch.setattr(launch_module, "COLLECTIVE_TIMEOUT", timedelta(seconds=1))
    monkeypatch.setattr(lifeline_module, "_GRACE", 0.5)
    monkeypatch.setattr(lifeline_module, "_ANSWER_TIMEOUT", 1.0)

    def worker(process: Process) -> int:
        trainer = plain_trainer(dataset, tmp_path, process, epochs=1000)
        if process.rank == victim and number:
            die_at_step(trainer, 4, number)
        elif process.rank == victim:
            trainer.grad_norm = lambda: threading.Event().wait(60)
        return trainer.fit()

    ended = run_group(worker, tmp_path)
    assert ended[1 - victim].code == EXIT_ENVIRONMENT
    told = "".join(end.errors for end in ended)
    assert told.count("error: ") == 1 and f"error: Process {victim} on " in told and "does it hang?" in told, told


# ---------------------------------------------------------------- an error in one process

def fail_at_step(dataset, folder: Path, error: BaseException, ranks: set[int]) -> list:
    def worker(process: Process) -> int:
        trainer = plain_trainer(dataset, folder, process)
        if process.rank in ranks:
            def update(norm):
                raise error
            trainer.update = update
        return trainer.fit()

    return run_group(worker, folder)


@pytest.mark.parametrize("ranks", [{0}, {1}, {0, 1}])
def test_an_error_in_any_process_ends_all_and_is_told_once(dataset, tmp_path, ranks):
    ended = fail_at_step(dataset, tmp_path, UserError("The set is broken.", "Repair it.", exit_code=4), ranks)
    assert [end.code for end in ended] == [4, 4]
    assert "".join(end.errors for end in ended) == "error: The set is broken. Repair it.\n"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_mistake_of_ours_in_one_process_shows_its_traceback_once(dataset, tmp_path, rank):
    ended = fail_at_step(dataset, tmp_path, ZeroDivisionError("of ours"), {rank})
    told = "".join(end.errors for end in ended)
    assert [end.code for end in ended] == [1, 1]
    assert told.count("Traceback") == 1 and told.endswith("ZeroDivisionError: of ours\n")


def test_a_number_that_is_not_finite_in_one_process_stops_all(dataset, tmp_path):
    def worker(process: Process) -> int:
        trainer = plain_trainer(dataset, tmp_path, process)
        if process.rank == 1:
            trainer.loss.weights["mesh"] = float("nan")
        return trainer.fit()

    assert [end.code for end in run_group(worker, tmp_path)] == [3, 3]
    found = json.loads((tmp_path / "log" / "nonfinite_step_0.json").read_text())
    assert [process["batches"][0]["loss_terms"]["total"] == "nan" for process in found["processes"]] == [False, True]


@pytest.mark.slow
def test_processes_that_have_finished_leave_without_a_word(dataset, tmp_path, record_property):
    for run in range(20):
        ended = run_group(partial(train_plain, dataset, tmp_path / str(run)), tmp_path / str(run))
        assert ended == [(0, ""), (0, "")]
    record_property("cases", 20)


def train_plain(dataset, output: Path, process: Process) -> int:
    return plain_trainer(dataset, output, process).fit()


# ---------------------------------------------------------------- a loader process that is lost

def lose_a_loader(dataset, folder: Path, monkeypatch, fault: str, size: int = 1) -> list[Ended]:
    """Train in `size` processes; in the last of them one of its two loader processes meets a fault."""
    def read(index, original=dataset.reader.read):
        worker = torch.utils.data.get_worker_info()
        if index == 3 and worker and os.environ["RANK"] == str(size - 1):
            if fault == "killed while it reads":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "out of memory":
                raise MemoryError
            if fault == "our mistake":
                raise ZeroDivisionError("of ours")
        return original(index)

    def worker(process: Process) -> int:
        trainer = plain_trainer(dataset, folder, process, workers=2, batch_size=1, epochs=1000)

        def kill_and_update(norm, original=trainer.update):
            if trainer.progress.step == 2:
                os.kill(multiprocessing.active_children()[-1].pid, signal.SIGKILL)
            original(norm)

        if fault == "killed while it waits" and process.rank == size - 1:
            trainer.update = kill_and_update
        return trainer.fit()

    monkeypatch.setattr(dataset.reader, "read", read)
    start = time.monotonic()
    ended = run_group(worker, folder, size=size)
    assert time.monotonic() - start < 10
    return ended


def assert_lost_loader_is_told(ended: list[Ended], names_it: bool) -> None:
    told = "".join(end.errors for end in ended)
    assert {end.code for end in ended} == {EXIT_ENVIRONMENT}, ended
    assert told.count("error: ") == 1 and "Traceback" not in told and "--set data.workers=1" in told, told
    assert bool(re.search(r"DataLoader worker \(pid(\(s\))? \d+\)", told)) == names_it, told


@pytest.mark.scorecard("fault runs")
@pytest.mark.parametrize(("fault", "size"), [
    ("killed while it reads", 1), ("killed while it waits", 2), ("out of memory", 1)])
def test_a_loader_process_that_is_lost_ends_the_run_with_a_remedy(dataset, tmp_path, monkeypatch, fault, size):
    ended = lose_a_loader(dataset, tmp_path, monkeypatch, fault, size)
    assert_lost_loader_is_told(ended, names_it=fault != "out of memory")


@pytest.mark.slow
@pytest.mark.scorecard("fault runs")
def test_no_run_of_ten_hangs_after_one_of_its_loader_processes_was_killed(dataset, tmp_path, monkeypatch,
                                                                         record_property):
    for run in range(10):
        fault = ("killed while it reads", "killed while it waits")[run % 2]
        with monkeypatch.context() as patch:
            ended = lose_a_loader(dataset, tmp_path / str(run), patch, fault, size=1 + run // 5)
        assert_lost_loader_is_told(ended, names_it=True)
    record_property("cases", 10)


def test_a_mistake_of_ours_in_a_loader_process_keeps_its_traceback(dataset, tmp_path, monkeypatch):
    [ended] = lose_a_loader(dataset, tmp_path, monkeypatch, "our mistake")
    assert ended.code == 1 and "Traceback" in ended.errors and "ZeroDivisionError: of ours" in ended.errors


# ---------------------------------------------------------------- where a process finds itself

def in_environment(monkeypatch, **environment: object) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(("environment", "expected"), [
    ({"RANK": 1, "WORLD_SIZE": 2}, r"\(RANK=1, WORLD_SIZE=2\), but not LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
    ({"LOCAL_RANK": 0}, "but not RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
    ({"RANK": 2, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "a", "MASTER_PORT": 1}, "RANK=2, WORLD_SIZE=2"),
    ({"RANK": "x", "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "a", "MASTER_PORT": 1}, "RANK=x"),
])
def test_an_environment_that_does_not_say_enough_is_refused(monkeypatch, environment, expected):
    in_environment(monkeypatch, **environment)
    with pytest.raises(UserError, match=expected):
        launch(lambda process: 0, "cpu")


def test_a_main_process_that_cannot_be_reached_is_told(monkeypatch):
    in_environment(monkeypatch, RANK=1, WORLD_SIZE=2, LOCAL_RANK=1, MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
    monkeypatch.setattr(launch_module, "_MEETING_TIMEOUT", timedelta(seconds=1))
    with pytest.raises(UserError, match="Process 1 of 2 has not met the others at 127.0.0.1") as refused:
        launch(lambda process: 0, "cpu")
    assert refused.value.exit_code == EXIT_ENVIRONMENT


def test_processes_that_do_not_come_are_named():
    with pytest.raises(UserError, match="Processes 1, 2 of 3 have not come within 0.1 s") as refused:
        Lifeline(dist.HashStore(), "127.0.0.1", 0, 3, timeout=0.1, names_the_lost=True)
    assert refused.value.exit_code == EXIT_ENVIRONMENT


def test_a_connection_that_does_not_know_the_secret_is_no_process():
    """Somebody scans ports, and connects before the process that is waited for does."""
    store, others = dist.HashStore(), []

    def join() -> None:
        port = json.loads(store.get("lifeline"))["port"]
        for greeting in (b"", b"GET / HTTP/1.1\r\n", b'{"secret": "x", "rank": 1, "host": "y"}\n'):
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(greeting)
        others.append(Lifeline(store, "127.0.0.1", 1, 2, timeout=10, names_the_lost=True))

    def meet() -> None:
        thread = threading.Thread(target=join)
        thread.start()
        main = Lifeline(store, "127.0.0.1", 0, 2, timeout=10, names_the_lost=True)
        thread.join()
        for lifeline in (main, *others):
            lifeline.leave()

    assert run_in_fork(meet) == 0


@pytest.mark.parametrize(("gpu", "visible", "local_rank", "expected"), [
    (None, 4, 3, "cuda:3"), ("0-3", 4, 2, "cuda:2"), ("4,6", 8, 1, "cuda:6"),
    (None, 1, 3, "cuda:0"),         # a batch system shows each process its own GPU only
    (None, 0, 1, "cpu"), ("cpu", 4, 1, "cpu"),
])
def test_a_process_takes_the_device_of_its_place(gpu, visible, local_rank, expected):
    assert own_device(choose_devices(gpu, visible), local_rank) == torch.device(expected)


def test_more_processes_than_gpus_are_refused():
    with pytest.raises(UserError, match="Process 2 of this machine has no GPU: there are 2"):
        own_device(choose_devices(None, 2), 2)


@pytest.mark.parametrize(("devices", "expected"), [
    (["GPU a on x", "cpu on y"], "Process 1 is to compute on the cpu on y, but others on GPUs"),
    (["GPU a on x", "GPU b on x", "GPU a on x"], "Processes 0 and 2 were given the same GPU a on x"),
])
def test_processes_whose_devices_do_not_go_together_are_refused(devices, expected):
    with pytest.raises(UserError, match=expected):
        check_devices(devices)


def test_processes_on_cpus_or_on_a_gpu_each_go_together():
    check_devices(["cpu on x", "cpu on x", "cpu on y"])
    check_devices(["GPU a on x", "GPU b on x", "GPU a on y"])
