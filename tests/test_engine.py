"""Training and testing: the same bits after any interruption, only finite weights, the same scores however run."""

import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from msgspec import structs
from toy_hands import assert_same
from toy_training import CPU, toy_dataset, toy_trainer

from common.errors import UserError
from common.hands import MIDDLE_MCP, joint_regressor
from common.score.metrics import PROTOCOLS
from common.score.scores import NetworkScores
from common.score.tally import Tally
from common.types import HandPrediction, Stages, TwoHandBatch
from data.dataset import EpochSampler, mean_joints
from main.config import TestConfig as settings
from main.engine.batches import build_loader
from main.engine.evaluator import Evaluator, report, write_samples
from main.engine.processes.launch import Process
from main.engine.run.log import start_log

ROOT = Path(__file__).resolve().parent.parent


# ---------------------------------------------------------------- training

def test_gradients_are_clipped_to_the_norm(dataset, tmp_path):
    trainer = toy_trainer(dataset, tmp_path, max_grad_norm=0.01)
    trainer.model.train()
    trainer.backward(next(iter(trainer.batches)).batch)
    norm = trainer.grad_norm()
    trainer.update(norm)
    assert norm > 0.01
    assert trainer.grad_norm() == pytest.approx(0.01, rel=1e-3)


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
    assert {"mm/coarse", "mm/final", "grad_norm"} <= set(tags)


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
        return Stages(hands, hands)

    return predict


def evaluator(dataset, predict, *, workers: int = 0, process: Process = CPU, save=None, **changes) -> Evaluator:
    return Evaluator(predict, dataset, mean_joints(dataset.reader), settings=settings(**{"batch_size": 4, **changes}),
                     workers=workers, process=process, save=save)


def scores_of(evaluator: Evaluator) -> NetworkScores:
    evaluator.run()
    return evaluator.scores()


def test_the_truth_as_prediction_scores_zero_under_every_protocol(test_dataset, hand_model):
    scores = scores_of(evaluator(test_dataset, perfect(hand_model)))
    for name, found in scores.protocols.items():
        # The set's annotated joints have another middle fingertip than InterWild's.
        assert found.mpjpe < (1.0 if name == "interwild" else 1e-3)
        assert max(found.mpvpe or 0, found.mrrpe or 0) < 1e-3
    assert max(scores.rough.mpjpe, scores.rough.mpvpe) < 1e-3
    assert scores.baseline.mean_pose.mpjpe > 10
    assert scores.counts.samples == 6


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
                       save=lambda index, *_: saved.extend(index.tolist())) for rank in range(world_size)]
    for part in parts:
        part.run()
    whole = parts[0]
    whole.tallies = {name: Tally.merged([part.tallies[name] for part in parts]) for name in whole.tallies}
    assert_same(whole.scores(), scores_of(evaluator(test_dataset, predict)))
    assert sorted(saved) == list(range(6))


def test_predictions_are_handed_on_with_their_indices(test_dataset, hand_model):
    saved = {}

    def save(index, hands, presence):
        assert presence is None         # this network does not say it
        saved.update(zip(index.tolist(), hands.vertices, strict=True))

    evaluator(test_dataset, perfect(hand_model), save=save).run()
    for index, vertices in saved.items():
        torch.testing.assert_close(vertices, test_dataset[0, index].targets.vertices)
    assert len(saved) == 6


def test_hands_that_are_missed_and_invented_are_counted_and_missed_ones_charged(test_dataset, hand_model):
    """A perfect network that takes the first image's hands for absent and draws both in every other image."""
    perfectly = perfect(hand_model)

    def predict(batch: TwoHandBatch) -> Stages:
        logits = torch.where(batch.index[:, None] == 0, -5.0, 5.0).expand(-1, 2)
        return perfectly(batch)._replace(presence=logits)

    shown = torch.stack([test_dataset[0, index].targets.present for index in range(len(test_dataset))])
    found = scores_of(evaluator(test_dataset, predict))
    presence, single = found.presence, shown.sum(dim=1) == 1
    assert presence.hands == shown.sum() and presence.missed == shown[0].sum()
    assert presence.absent == (1 - shown).sum() and presence.invented == (1 - shown[1:]).sum()
    assert presence.two_right == pytest.approx(float((~single[1:]).sum() / (~single).sum()))
    assert presence.one_right == (0 if single.any() else None)

    # Only the first image's hands have an error: that of a resting hand.
    truth = test_dataset[0, 0].targets
    rest = joint_regressor(hand_model.regressor) @ hand_model.template
    rest = rest - rest[:, :1]
    bone = truth.joints[:, MIDDLE_MCP].norm(dim=-1) / rest[:, MIDDLE_MCP].norm(dim=-1)
    error = (rest * bone[:, None, None] - truth.joints).norm(dim=-1)[shown[0].bool()].sum() * 1000
    assert presence.charged.mpjpe == pytest.approx(float(error) / found.counts.mpjpe, rel=1e-4)
    assert found.printed.mpjpe < 1e-3
    assert scores_of(evaluator(test_dataset, perfectly)).presence is msgspec.UNSET


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
    assert scores.protocol == name and scores.printed is scores.protocols[name]
    assert scores.counts == structs.replace(scores.printed.counts, unusable=0)
    assert scores.rough.mpjpe == pytest.approx(scores.printed.mpjpe, abs=1e-9)
    assert f"{scores.printed.mpjpe:.2f} mm" in caplog.text
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
    assert scores.counts.unusable == 1 and str(broken) in caplog.text
    assert scores.printed.counts.mpjpe == 5 * 42
    assert scores.printed.mpjpe < 1e-3


def test_the_dump_holds_a_row_for_each_sample(test_dataset, hand_model, tmp_path):
    tested = evaluator(test_dataset, perfect(hand_model, noise=0.01))
    write_samples(tmp_path / "per_sample.npz", tested.run(), tested.sample_id)
    with np.load(tmp_path / "per_sample.npz", allow_pickle=False) as file:
        dump = dict(file)
    assert dump["protocols"].tolist() == list(PROTOCOLS)
    assert dump["image"].tolist() == [test_dataset.reader.sample_id(index) for index in range(6)]
    assert all(image.startswith(recording) for image, recording in zip(dump["image"], dump["recording"], strict=True))
    means = tested.scores().printed
    assert dump["mpjpe"][:, 0].mean() == pytest.approx(means.mpjpe, rel=1e-6)
    assert dump["mpvpe"][:, 0].mean() == pytest.approx(means.mpvpe, rel=1e-6)
    assert dump["mrrpe"][:, 0].mean() == pytest.approx(means.mrrpe, rel=1e-6)


def test_an_unknown_protocol_names_those_that_exist(dataset, hand_model):
    with pytest.raises(UserError, match="one of: lgnet"):
        evaluator(dataset, perfect(hand_model), protocol="lgnett")
