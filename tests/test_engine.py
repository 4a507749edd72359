"""Training and testing: the same bits after any interruption, only finite weights, the same scores however run."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from toy_hands import assert_same
from toy_training import CPU, ToyHands, toy_dataset, toy_trainer

import common.engine.checkpoint as checkpoint
import common.engine.trainer as trainer_module
from common.engine.checkpoint import interrupted_path, load_latest, load_weights, snapshot_path, snapshots_in
from common.engine.evaluator import Evaluator, report, write_samples
from common.engine.launch import Process
from common.engine.loading import batches, build_loader, map_tensors
from common.engine.log import start_log
from common.engine.signals import StopRequest
from common.engine.trainer import Trainer, learning_rate
from common.errors import UserError
from common.hands import joint_regressor
from common.metrics import PROTOCOLS
from common.scoring import Tally
from common.types import HandPrediction, JointPrediction, Stages, TwoHandBatch
from data.dataset import EpochSampler, mean_joints
from main.config import TestConfig as settings
from main.config import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
STEPS = 9       # of the toy run: 3 epochs of 3 steps


@pytest.fixture(scope="session")
def data_root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("interhand") / "data"


@pytest.fixture(scope="session")
def dataset(data_root, hand_model):
    return toy_dataset(data_root, hand_model)


@pytest.fixture(scope="session")
def test_dataset(data_root, hand_model, dataset):
    return toy_dataset(data_root, hand_model, augment=False)


@pytest.fixture(scope="session")
def reference(dataset, tmp_path_factory) -> checkpoint.Snapshot:
    """The end of a toy run that nothing disturbed."""
    output = tmp_path_factory.mktemp("reference")
    assert toy_trainer(dataset, output).fit() == 0
    return load_latest(output / "model_dump")[0]


def resumed(dataset, output: Path, **settings) -> Trainer:
    snapshot, path = load_latest(output / "model_dump")
    trainer = toy_trainer(dataset, output, **settings)
    torch.manual_seed(1234)     # whatever the new process drew before it went on
    load_weights(trainer.model, snapshot.model, str(path))
    trainer.restore(snapshot)
    return trainer


def assert_same_end(output: Path, reference: checkpoint.Snapshot) -> None:
    snapshot = load_latest(output / "model_dump")[0]
    assert (snapshot.step, snapshot.next_epoch, snapshot.next_batch) == (STEPS, 3, 0)
    torch.testing.assert_close(snapshot.model, reference.model, rtol=0, atol=0)
    torch.testing.assert_close(snapshot.optimizer, reference.optimizer, rtol=0, atol=0)
    assert torch.equal(snapshot.random_states[0]["torch"], reference.random_states[0]["torch"])


# ---------------------------------------------------------------- resuming

@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_continued_between_epochs_ends_with_the_same_bits(dataset, tmp_path, reference, epochs):
    toy_trainer(dataset, tmp_path, epochs=epochs).fit()
    assert resumed(dataset, tmp_path).fit() == 0
    assert_same_end(tmp_path, reference)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_after_the_step_and_the_run_continues_with_the_same_bits(
        dataset, tmp_path, reference, monkeypatch, number, code):
    def send_signal(trainer, *_, update=Trainer._update):
        update(trainer, *_)
        if trainer.step == 3:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Trainer, "_update", send_signal)
    assert toy_trainer(dataset, tmp_path).fit() == code
    monkeypatch.undo()
    assert snapshots_in(tmp_path / "model_dump")[-1] == interrupted_path(tmp_path / "model_dump", 1, 2)
    assert resumed(dataset, tmp_path).fit() == 0
    assert_same_end(tmp_path, reference)
    assert [path.name for path in snapshots_in(tmp_path / "model_dump")] == [f"snapshot_{n}.pth.tar" for n in range(3)]


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_processes_change_no_bit(dataset, tmp_path, reference, workers):
    toy_trainer(dataset, tmp_path, workers=workers).fit()
    assert_same_end(tmp_path, reference)


def run_in_fork(function) -> int:
    """The wait status of a child that runs `function` and leaves with its code."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(function() or 0)
        except BaseException:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_step(step: int) -> None:
    def update(trainer, *args, original=Trainer._update):
        if trainer.step == step:
            die()
        original(trainer, *args)

    Trainer._update = update


def kill_at_call(owner, name: str, call: int, *, after: bool) -> None:
    """Die at the `call`-th call of owner.name, before it does anything or when it has done everything."""
    calls, original = itertools.count(1), getattr(owner, name)

    def deadly(*args, **kwargs):
        is_last = next(calls) == call
        if is_last and not after:
            die()
        result = original(*args, **kwargs)
        if is_last:
            die()
        return result

    setattr(owner, name, deadly)


def kill_in_save(name: str, call: int, *, after: bool):
    return lambda: kill_at_call(checkpoint.os, name, call, after=after)


KILL_POINTS = {
    **{f"step {step}": lambda step=step: kill_at_step(step) for step in (3, 4, 5, 7)},
    # A snapshot replaces twice, itself and its digest, and syncs file and folder each time. The first is past.
    **{f"{'after' if after else 'before'} {name} {call}": kill_in_save(name, call, after=after)
       for name, calls in (("fsync", (5, 7)), ("replace", (3, 4, 5))) for call in calls for after in (False, True)},
    "half a snapshot": lambda: kill_at_call(checkpoint.torch, "save", 2, after=True),
    "before cleaning up": lambda: kill_at_call(trainer_module, "remove_old_snapshots", 2, after=False),
    "while cleaning up": lambda: kill_at_call(Path, "unlink", 1, after=True),
    "after cleaning up": lambda: kill_at_call(trainer_module, "remove_old_snapshots", 2, after=True),
}


@pytest.mark.parametrize("point", KILL_POINTS)
def test_a_killed_run_continues_to_the_same_bits(dataset, tmp_path, reference, point):
    def train_and_die() -> int:
        KILL_POINTS[point]()
        return toy_trainer(dataset, tmp_path, keep_snapshots=2).fit()

    status = run_in_fork(train_and_die)
    assert os.WIFSIGNALED(status), f"the kill at '{point}' never happened"
    if load_latest(tmp_path / "model_dump")[0].next_epoch < 3:
        assert resumed(dataset, tmp_path, keep_snapshots=2).fit() == 0
    assert_same_end(tmp_path, reference)


@pytest.mark.parametrize("forgotten", ["model", "optimizer", "random_states", "next_batch", "batch norm"])
def test_the_comparison_notices_whatever_is_not_restored(dataset, tmp_path, reference, monkeypatch, forgotten):
    monkeypatch.setattr(Trainer, "_agree", lambda self, *_: (False, signal.SIGTERM * (self.step == 4), False))
    assert toy_trainer(dataset, tmp_path).fit() == 143
    monkeypatch.undo()
    trainer = resumed(dataset, tmp_path)
    if forgotten == "model":
        nn.init.zeros_(trainer.model.heads["rough"].bias)
    elif forgotten == "optimizer":
        trainer.optimizer.state.clear()
    elif forgotten == "random_states":
        torch.manual_seed(1)
    elif forgotten == "next_batch":
        trainer.batch = 0
    else:
        trainer.model.norm.reset_running_stats()
    assert trainer.fit() == 0
    with pytest.raises(AssertionError):
        assert_same_end(tmp_path, reference)


def test_a_complete_run_has_nothing_left_to_do(dataset, tmp_path, reference):
    toy_trainer(dataset, tmp_path).fit()
    before = snapshot_path(tmp_path / "model_dump", 2).stat().st_mtime_ns
    assert resumed(dataset, tmp_path).fit() == 0
    assert snapshot_path(tmp_path / "model_dump", 2).stat().st_mtime_ns == before


def test_the_rate_rises_linearly_and_drops_by_ten():
    settings = TrainConfig(lr=1e-3, warmup_steps=4, lr_drops=(2, 3), epochs=4)
    rates = [learning_rate(settings, step, epoch=step // 4) for step in range(16)]
    expected = [2.5e-4, 5e-4, 7.5e-4, 1e-3, *[1e-3] * 4, *[1e-4] * 4, *[1e-5] * 4]
    assert rates == pytest.approx(expected)


def test_gradients_are_clipped_to_the_norm(dataset, tmp_path):
    trainer = toy_trainer(dataset, tmp_path, max_grad_norm=0.01)
    trainer.model.train()
    trainer._backward(next(batches(trainer.loader, CPU.device)))
    norm = trainer._grad_norm()
    trainer._update(norm)
    assert norm > 0.01
    assert trainer._grad_norm() == pytest.approx(0.01, rel=1e-3)


def test_a_second_interrupt_ends_at_once():
    def impatient() -> int:
        with StopRequest():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return 0

    assert os.waitstatus_to_exitcode(run_in_fork(impatient)) == 130


def test_an_interrupt_followed_by_the_launchers_sigterm_is_one_request():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.signal == signal.SIGINT


# ---------------------------------------------------------------- numbers that are not finite

class Poisoned(nn.Module):
    """A loss that goes wrong at one step."""

    def __init__(self, loss: nn.Module, step: int, kind: str):
        super().__init__()
        self.loss, self.step, self.kind, self.calls = loss, step, kind, 0

    def forward(self, stages: Stages, targets) -> dict[str, torch.Tensor]:
        terms = self.loss(stages, targets)
        if self.calls == self.step:
            bad = stages.final.vertices.sum()
            # √|x| at 0 is finite and its gradient is not.
            poison = {"nan": bad * math.nan, "inf": bad * 0 + math.inf, "gradient": (bad * 0).abs().sqrt()}[self.kind]
            terms = terms | {"mesh": terms["mesh"] + poison, "total": terms["total"] + poison}
        self.calls += 1
        return terms


@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
def test_numbers_that_are_not_finite_stop_the_run_before_they_reach_the_weights(dataset, tmp_path, kind):
    trainer = toy_trainer(dataset, tmp_path, log_every=100)
    trainer.loss = Poisoned(trainer.loss, step=4, kind=kind)
    states = []
    trainer._update = lambda norm, update=trainer._update: (update(norm), states.append(map_state(trainer.model)))

    assert trainer.fit() == 3
    torch.testing.assert_close(map_state(trainer.model)["heads.rough.weight"], states[-1]["heads.rough.weight"],
                               rtol=0, atol=0)
    found = json.loads((tmp_path / "log" / "nonfinite_step_4.json").read_text())
    process = found["processes"][0]
    assert (found["epoch"], found["step"], len(states)) == (1, 4, 4)
    assert [Path(sample["path"]).is_file() for sample in process["samples"]] == [True, True]
    assert process["loss_terms"]["mesh"] in ("nan", "inf") or process["grad_norm"] in ("nan", "inf")
    assert [path.name for path in snapshots_in(tmp_path / "model_dump")] == ["snapshot_0.pth.tar"]


def map_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_anything_may_stand_where_nothing_is_annotated(dataset, tmp_path):
    trainer = toy_trainer(dataset, tmp_path)
    batch = next(batches(trainer.loader, CPU.device))
    masks = {name: value for name, value in batch.targets._asdict().items() if name.endswith("_valid")}
    nothing = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    unknown = map_tensors(lambda value: torch.full_like(value, math.nan), batch.targets)._replace(**nothing)
    terms, figures = trainer._backward(batch._replace(targets=unknown))
    assert {term.item() for term in terms.values()} == {0.0}
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in trainer.model.parameters())
    assert figures["mm/final"] == 0.0


# ---------------------------------------------------------------- files and errors

def test_every_loss_term_is_in_the_text_log_and_in_tensorboard(dataset, tmp_path):
    start_log(tmp_path / "log" / "train.log", is_main=True)
    toy_trainer(dataset, tmp_path, epochs=1).fit()
    text = (tmp_path / "log" / "train.log").read_text()
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(tmp_path / "log"))
    events.Reload()
    tags = events.Tags()["scalars"]
    for name in ("total", "mesh", "laplacian", "joint_25d", "shape"):
        assert f"loss/{name} " in text and f"loss/{name}" in tags
    assert {"mm/rough", "mm/final", "grad_norm"} <= set(tags)


@pytest.mark.slow
def test_a_loader_process_that_is_killed_is_told_in_one_paragraph(dataset, tmp_path, monkeypatch):
    def read(index, original=dataset.reader.read):
        if index == 3 and torch.utils.data.get_worker_info():
            die()
        return original(index)

    monkeypatch.setattr(dataset.reader, "read", read)
    with pytest.raises(UserError, match="A loader process died"):
        toy_trainer(dataset, tmp_path, workers=2).fit()


@pytest.mark.slow
def test_an_error_of_ours_in_a_loader_process_is_not_taken_for_the_users(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset.reader, "read", lambda index: torch.zeros(1) @ torch.zeros(2))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        toy_trainer(dataset, tmp_path, workers=1).fit()


# ---------------------------------------------------------------- testing

def perfect(hand_model, noise: float = 0.0):
    """Predictions that are the truth, or off by a fixed noise for each sample."""
    regressor = joint_regressor(hand_model.regressor)

    def predict(batch: TwoHandBatch) -> Stages:
        truth = batch.targets
        offsets = torch.stack([torch.randn(truth.vertices.shape[1:], generator=torch.Generator().manual_seed(int(i)))
                               for i in batch.index])
        vertices = truth.vertices + noise * offsets
        hands = HandPrediction(vertices, regressor @ vertices, truth.relative + noise, truth.mano,
                               torch.zeros(len(vertices), 2, 3))
        return Stages(JointPrediction(truth.joints, truth.joints), hands, hands)

    return predict


def evaluator(dataset, predict, *, workers: int = 0, process: Process = CPU, save=None, **changes) -> Evaluator:
    return Evaluator(predict, dataset, mean_joints(dataset.reader), settings=settings(**{"batch_size": 4, **changes}),
                     workers=workers, process=process, save=save)


def scores_of(evaluator: Evaluator) -> dict:
    evaluator.run()
    return evaluator.scores()


def test_the_truth_as_prediction_scores_zero_under_every_protocol(test_dataset, hand_model):
    scores = scores_of(evaluator(test_dataset, perfect(hand_model)))
    for name, summary in scores["protocols"].items():
        # The set's annotated joints have another middle fingertip than InterWild's.
        assert summary["mpjpe"] < (1.0 if name == "interwild" else 1e-3)
        assert max(summary[metric] or 0 for metric in ("mpvpe", "mrrpe")) < 1e-3
    assert max(scores["rough"].values()) < 1e-3
    assert scores["baseline"]["mean_pose"]["mpjpe"] > 10
    assert scores["counts"]["samples"] == 6


def test_scores_do_not_depend_on_batch_size_loader_or_order(test_dataset, hand_model):
    predict = perfect(hand_model, noise=0.01)
    expected = scores_of(evaluator(test_dataset, predict))
    shuffled = evaluator(test_dataset, predict)
    sampler = EpochSampler(len(test_dataset), seed=3, shuffle=True)
    shuffled.loader = build_loader(test_dataset, sampler, batch_size=5, workers=0, device=CPU.device, drop_last=False)
    for other in (shuffled, *(evaluator(test_dataset, predict, **how) for how in ({"batch_size": 1}, {"workers": 2}))):
        assert_same(scores_of(other), expected)


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_processes_together_score_each_sample_once(test_dataset, hand_model, world_size):
    """Four processes share six samples, so two are loaded twice; of eight, two have nothing of their own."""
    class Lonely(Process):
        def gather(self, item):
            return [item]

    predict, saved = perfect(hand_model, noise=0.01), []
    parts = [evaluator(test_dataset, predict, process=Lonely(torch.device("cpu"), rank, world_size),
                       save=lambda index, _: saved.extend(index.tolist())) for rank in range(world_size)]
    for part in parts:
        part.run()
    whole = parts[0]
    whole.tallies = {name: Tally.merged([part.tallies[name] for part in parts]) for name in whole.tallies}
    assert_same(whole.scores(), scores_of(evaluator(test_dataset, predict)))
    assert sorted(saved) == list(range(6))


def test_predictions_are_handed_on_with_their_indices(test_dataset, hand_model):
    saved = {}

    def save(index, hands):
        saved.update(zip(index.tolist(), hands.vertices, strict=True))

    evaluator(test_dataset, perfect(hand_model), save=save).run()
    for index, vertices in saved.items():
        torch.testing.assert_close(vertices, test_dataset[0, index].targets.vertices)
    assert len(saved) == 6


def test_the_report_holds_what_it_promises(test_dataset, hand_model, tmp_path, caplog):
    scores = scores_of(evaluator(test_dataset, perfect(hand_model, noise=0.01)))
    facts = {"data": {"name": "x"}, "hand_model": hand_model.identity, "checkpoint_sha256": "0" * 64, "config": {}}
    with caplog.at_level("INFO"):
        assert report(scores, facts, tmp_path) == 0
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert set(facts) | {"protocols", "rough", "baseline", "counts", "intervals", "pck"} <= set(stored)
    assert list(stored["protocols"]) == list(PROTOCOLS)
    assert {"mpjpe", "mpvpe", "mrrpe", "hands", "groups", "interval_95"} <= set(stored["protocols"]["lgnet"])
    assert set(stored["rough"]) == {"mpjpe", "mpvpe"}
    mpjpe, mean_pose = stored["protocols"]["lgnet"]["mpjpe"], stored["baseline"]["mean_pose"]["mpjpe"]
    assert f"MPJPE for all hand sequences: {mpjpe:.2f} mm" in caplog.text
    assert f"MPJPE {mean_pose:.2f} mm; the model's is {mpjpe / mean_pose:.3f} of it" in caplog.text


@pytest.mark.parametrize(("protocol", "printed"), [("intaghand", True), ("dir", False), ("interwild", True)])
def test_the_chosen_protocol_is_printed_and_followed(test_dataset, hand_model, tmp_path, caplog, protocol, printed):
    scores = scores_of(evaluator(test_dataset, perfect(hand_model, noise=0.01), protocol=protocol))
    with caplog.at_level("INFO"):
        report(scores, {"data": {"filter": "all"}}, tmp_path)
    name = "lgnet" if protocol == "dir" else protocol
    assert scores["protocol"] == name and scores["counts"] == scores["protocols"][name]["counts"] | {"unusable": 0}
    assert scores["rough"]["mpjpe"] == pytest.approx(scores["protocols"][name]["mpjpe"], abs=1e-9)
    assert f"{scores['protocols'][name]['mpjpe']:.2f} mm" in caplog.text
    assert ("RRVE" in caplog.text) == (name == "interwild")
    assert f"The authors of '{name}' score the set" in caplog.text


def test_predictions_that_are_not_finite_are_counted_and_fail_the_test(test_dataset, hand_model, tmp_path):
    def predict(batch: TwoHandBatch) -> Stages:
        stages = perfect(hand_model)(batch)
        stages.final.vertices[batch.index == 2] = math.nan
        return stages

    scores = scores_of(evaluator(test_dataset, predict))
    assert report(scores, {}, tmp_path) == 4
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert stored["counts"]["not_finite"] == 1
    assert stored["protocols"]["lgnet"]["mpjpe"] is None


def test_samples_that_cannot_be_used_are_named_counted_and_fail_the_test(hand_model, tmp_path, caplog):
    dataset = toy_dataset(tmp_path / "data", hand_model, augment=False)
    broken = dataset.reader.read(3).image_path
    broken.write_bytes(b"no picture")
    with caplog.at_level("INFO"):
        scores = scores_of(evaluator(dataset, perfect(hand_model)))
        assert report(scores, {}, tmp_path) == 4
    assert scores["counts"]["unusable"] == 1 and str(broken) in caplog.text
    assert scores["protocols"]["lgnet"]["counts"]["mpjpe"] == 5 * 42
    assert scores["protocols"]["lgnet"]["mpjpe"] < 1e-3


def test_the_dump_holds_a_row_for_each_sample(test_dataset, hand_model, tmp_path):
    tested = evaluator(test_dataset, perfect(hand_model, noise=0.01))
    write_samples(tmp_path / "per_sample.npz", tested.run(), tested.sample_id)
    with np.load(tmp_path / "per_sample.npz", allow_pickle=False) as file:
        dump = dict(file)
    assert dump["protocols"].tolist() == list(PROTOCOLS)
    assert dump["image"].tolist() == [test_dataset.reader.sample_id(index) for index in range(6)]
    assert all(image.startswith(recording) for image, recording in zip(dump["image"], dump["recording"], strict=True))
    means = tested.scores()["protocols"]["lgnet"]
    assert dump["mpjpe"][:, 0].mean() == pytest.approx(means["mpjpe"], rel=1e-6)
    assert dump["mpvpe"][:, 0].mean() == pytest.approx(means["mpvpe"], rel=1e-6)
    assert dump["mrrpe"][:, 0].mean() == pytest.approx(means["mrrpe"], rel=1e-6)


def test_an_unknown_protocol_names_those_that_exist(dataset, hand_model):
    with pytest.raises(UserError, match="one of: lgnet"):
        evaluator(dataset, perfect(hand_model), protocol="lgnett")


# ---------------------------------------------------------------- several processes

SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
import torch
import common.engine.launch as launch
from common.errors import UserError, run_entry_point
from common.mano import load_hand_model
from toy_hands import assert_same
from toy_training import ToyHands, toy_dataset, toy_trainer

def worker(process):
    torch.set_num_threads(1)
    if {fault!r} == "everywhere" or {fault!r} == "once" and process.rank == 1:
        raise UserError("The disk is full.")
    dataset = toy_dataset(Path({data!r}), load_hand_model("builtin"))
    torch.manual_seed(0)
    model = ToyHands(dropout=0.0, normalized=False)
    trainer = toy_trainer(dataset, Path({output!r}), model=model, process=process, batch_size=1, epochs=1, lr=1e-4)
    if {fault!r} == "nan" and process.rank == 1:
        trainer.loss.weights["mesh"] = float("nan")
    return trainer.fit()

launch.choose_devices = lambda gpu, available: [torch.device("cpu")] * 2
if __name__ == "__main__":
    run_entry_point(lambda: launch.launch(worker, "two"))
"""


def run_two_processes(data_root: Path, output: Path, fault: str = "") -> subprocess.CompletedProcess:
    """Train the toy in two CPU processes, started as `--gpu 0-1` starts two GPUs."""
    output.mkdir(parents=True)
    script = output / "train.py"
    script.write_text(SCRIPT.format(root=str(ROOT), tests=str(ROOT / "tests"), data=str(data_root), output=str(output),
                                    fault=fault))
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_two_processes_train_like_one_on_the_same_batches(dataset, data_root, tmp_path):
    """Three steps of two samples; the toy has no batch normalisation, which sees its own process only."""
    done = run_two_processes(data_root, tmp_path / "two")
    assert (done.returncode, done.stderr) == (0, "")
    together = load_latest(tmp_path / "two" / "model_dump")[0]
    torch.manual_seed(0)
    model = ToyHands(dropout=0.0, normalized=False)
    toy_trainer(dataset, tmp_path / "one", model=model, batch_size=2, epochs=1, lr=1e-4).fit()
    alone = load_latest(tmp_path / "one" / "model_dump")[0]
    assert (together.world_size, together.step) == (2, alone.step) == (2, 3)
    torch.testing.assert_close(together.model, alone.model, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["everywhere", "once"])
def test_an_error_in_any_process_ends_all_and_is_told_once(data_root, dataset, tmp_path, fault):
    done = run_two_processes(data_root, tmp_path / "run", fault)
    assert (done.returncode, done.stderr) == (2, "error: The disk is full.\n")


@pytest.mark.slow
def test_a_number_that_is_not_finite_in_one_process_stops_all(data_root, dataset, tmp_path):
    assert run_two_processes(data_root, tmp_path / "run", "nan").returncode == 3
    found = json.loads((tmp_path / "run" / "log" / "nonfinite_step_0.json").read_text())
    assert [process["loss_terms"]["total"] == "nan" for process in found["processes"]] == [False, True]


SCORE_SCRIPT = """
import json, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
import torch
import common.engine.launch as launch
from common.errors import run_entry_point
from common.mano import load_hand_model
from test_engine import evaluator, perfect, scores_of
from toy_hands import assert_same
from toy_training import toy_dataset

def worker(process):
    torch.set_num_threads(1)
    dataset = toy_dataset(Path({data!r}), load_hand_model("builtin"), augment=False)
    tested = evaluator(dataset, perfect(dataset.reader.hand_model, noise=0.01), process=process, batch_size=2)
    scores = scores_of(tested)
    Path({output!r}, f"scores_{{process.rank}}.json").write_text(json.dumps(scores))
    return 0

launch.choose_devices = lambda gpu, available: [torch.device("cpu")] * {processes}
if __name__ == "__main__":
    run_entry_point(lambda: launch.launch(worker, "several"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_of_their_own_score_like_one(test_dataset, data_root, hand_model, tmp_path, processes):
    script = tmp_path / "score.py"
    script.write_text(SCORE_SCRIPT.format(root=str(ROOT), tests=str(ROOT / "tests"), data=str(data_root),
                                          output=str(tmp_path), processes=processes))
    subprocess.run([sys.executable, str(script)], check=True, timeout=300)
    expected = scores_of(evaluator(test_dataset, perfect(hand_model, noise=0.01)))
    for rank in range(processes):
        assert_same(json.loads((tmp_path / f"scores_{rank}.json").read_text()), expected)
