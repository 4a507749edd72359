"""Training: epochs of steps, a snapshot after each epoch, and stops that lose nothing."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.engine.bad_samples import BadSamples
from common.engine.build import (
    ROOT,
    changes,
    configured_dataset,
    configured_hand_model,
    configured_loss,
    configured_model,
    refuse_changes,
    trained_model,
)
from common.engine.checkpoint import (
    Snapshot,
    interrupted_path,
    load_latest,
    remove_old_snapshots,
    save_snapshot,
    snapshot_path,
    snapshots_in,
    write_atomically,
)
from common.engine.launch import Process
from common.engine.loading import build_loader, predict, training_batches
from common.engine.log import Recorder, start_log
from common.engine.seeding import random_state, seed_everything, set_random_state
from common.engine.signals import StopRequest
from common.errors import EXIT_DIVERGED, EXIT_OK, UserError
from common.mano import HandModel, check_same_model
from common.types import HandPrediction, Targets, TwoHandBatch
from data.dataset import EpochSampler, TwoHandDataset, mean_joints
from main.config import Config, TrainConfig, config_from_dict, config_to_dict

log = logging.getLogger(__name__)


class Trainer:
    """Trains a model on a dataset, alone or as one of several processes. Start at `fit`; `build` makes the parts.

    loss: from (Stages, Targets) to scalar terms by name, `total` among them.
    max_bad_fraction: of the dataset's samples; when more have proved unusable, training stops.
    facts: what a snapshot tells about the run besides its state: config, hand_model, mean_joints.
    """

    def __init__(self, model: nn.Module, loss: nn.Module, dataset: TwoHandDataset, *, settings: TrainConfig,
                 workers: int, max_bad_fraction: float, process: Process, output: Path, facts: dict[str, Any]):
        self.model, self.loss = model.to(process.device), loss.to(process.device)
        self.parallel = process.parallel(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=settings.lr, fused=True)

        self.sampler = EpochSampler(len(dataset), seed=settings.seed, rank=process.rank, world_size=process.world_size)
        # A small last batch would upset batch normalisation; a set smaller than one batch is used whole.
        self.loader = build_loader(dataset, self.sampler, batch_size=settings.batch_size, workers=workers,
                                   device=process.device, drop_last=len(self.sampler) >= settings.batch_size)
        self.batches_per_epoch = len(self.loader)

        self.dataset, self.settings, self.process, self.facts = dataset, settings, process, facts
        self.snapshots, self.log_folder = output / "model_dump", output / "log"
        self.step, self.epoch, self.batch = 0, 0, 0     # steps done; where training goes on
        self.bad, self.max_bad_fraction = BadSamples(dataset.reader, process), max_bad_fraction

    @classmethod
    def build(cls, config: Config, process: Process, *, resume: bool) -> "Trainer":
        """The trainer that a configuration describes; `resume` continues its last snapshot, bit for bit on a CPU."""
        output = ROOT / config.output
        start_log(output / "log" / "train.log", is_main=process.is_main)
        seed_everything(config.train.seed, process.rank)
        hand_model = configured_hand_model(config)
        snapshot = _snapshot_to_continue(config, hand_model, output / "model_dump") if resume else None
        if not resume:
            _refuse_used_folder(output / "model_dump")

        dataset = configured_dataset(config, hand_model, config.data.trainset, config.data.train_split, augmented=True)
        if snapshot:
            model = trained_model(config, hand_model, snapshot.model, where="the snapshot")
            baseline = snapshot.mean_joints
        else:
            model = configured_model(config, hand_model)
            baseline = mean_joints(dataset.reader)
        facts = {"config": config_to_dict(config), "hand_model": hand_model.identity, "mean_joints": baseline}
        trainer = cls(model, configured_loss(config, hand_model), dataset, settings=config.train,
                      workers=config.data.workers, max_bad_fraction=config.data.max_bad_fraction, process=process,
                      output=output, facts=facts)
        if snapshot:
            trainer.restore(snapshot)
        return trainer

    def fit(self) -> int:
        """Train to the last epoch. Exit code: 0, 3 if the loss or a gradient stopped being finite, 130 or 143 after
        SIGINT or SIGTERM, when the run can be continued. UserError if too many samples cannot be used."""
        if self.epoch >= self.settings.epochs:
            log.info("This run is complete: %d of %d epochs.", self.epoch, self.settings.epochs)
            return EXIT_OK
        self._log_size()
        self.recorder = Recorder(self.log_folder, is_main=self.process.is_main, first_step=self.step)
        try:
            with StopRequest() as stop:
                while self.epoch < self.settings.epochs:
                    code = self._train_epoch(stop)
                    if code != EXIT_OK:
                        log.info("Stopped after step %d; --continue goes on from the last snapshot.", self.step)
                        return code
        finally:
            self.recorder.close()
        log.info("Training is complete: %d epochs, %d steps. Last snapshot: %s", self.epoch, self.step,
                 snapshot_path(self.snapshots, self.epoch - 1))
        return EXIT_OK

    def _train_epoch(self, stop: StopRequest) -> int:
        stopped = 0
        self.sampler.set_epoch(self.epoch, start=self.batch * self.settings.batch_size)
        with self._progress_bar() as bar:
            for batch, faults, is_blank in training_batches(self.loader, self.process.device):
                # A blank batch leaves the statistics of batch normalisation alone. Its gradient of 0 enters the mean
                # over the processes, which wait for its step.
                self.model.train(not is_blank)
                terms, figures = self._backward(batch)
                grad_norm = self._grad_norm()
                diverged, stopped, met_bad = self._agree(terms["total"], grad_norm, stop, faults)
                if diverged:
                    return self._report_divergence(batch, terms, grad_norm)
                if met_bad:
                    self.bad.add(faults)
                    self.bad.refuse_more_than(self.max_bad_fraction, len(self.dataset))

                self._update(grad_norm)
                self.step, self.batch = self.step + 1, self.batch + 1
                self.recorder.add(figures | {"grad_norm": grad_norm})
                self._report(bar)
                if stopped and self.batch < self.batches_per_epoch:
                    self._save(interrupted_path(self.snapshots, self.epoch, self.batch))
                    return 128 + stopped

        self.epoch, self.batch = self.epoch + 1, 0
        self._save(snapshot_path(self.snapshots, self.epoch - 1))
        return 128 + stopped if stopped else EXIT_OK

    # ------------------------------------------------------------ one step

    def _backward(self, batch: TwoHandBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Gradients of the batch's loss; its terms, and the figures to report."""
        use_bfloat16 = self.settings.precision == "bfloat16"
        with torch.autocast(self.process.device.type, dtype=torch.bfloat16, enabled=use_bfloat16):
            stages = predict(self.parallel, batch)
        terms = self.loss(stages, batch.targets)
        self.optimizer.zero_grad(set_to_none=True)
        terms["total"].backward()

        figures = {f"loss/{name}": term for name, term in terms.items()}
        figures["mm/rough"] = joint_error_mm(stages.mesh, batch.targets)
        figures["mm/final"] = joint_error_mm(stages.final, batch.targets)
        return terms, figures

    def _grad_norm(self) -> Tensor:
        return nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])

    def _agree(self, loss: Tensor, grad_norm: Tensor, stop: StopRequest, faults: dict[int, int]
               ) -> tuple[bool, int, bool]:
        """Whether any process met a number that is not finite, the signal that any was asked to stop by, and whether
        any met an unusable sample for the first time."""
        is_finite = bool(torch.isfinite(loss) & torch.isfinite(grad_norm))
        mine = (not is_finite, stop.signal, self.bad.has_new(faults))
        diverged, stopped, met_bad = self.process.maximum([float(value) for value in mine])
        return bool(diverged), int(stopped), bool(met_bad)

    def _update(self, grad_norm: Tensor) -> None:
        if self.settings.max_grad_norm > 0:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.settings.max_grad_norm, grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, self.step, self.epoch)
        self.optimizer.step()

    # ------------------------------------------------------------ reports

    def _log_size(self) -> None:
        parameters = sum(p.numel() for p in self.model.parameters()) / 1e6
        log.info("%.1f M parameters; %d samples, %d epochs of %d steps, %d × %d samples in each; %s on %s",
                 parameters, len(self.dataset), self.settings.epochs, self.batches_per_epoch, self.process.world_size,
                 min(self.settings.batch_size, len(self.sampler)), self.settings.precision, self.process.device)

    def _progress_bar(self) -> tqdm:
        # disable=None: none where the output is no terminal; the log's lines tell the progress there.
        self.window_start, self.window_step = time.perf_counter(), self.step
        return tqdm(total=self.batches_per_epoch, initial=self.batch, desc=f"epoch {self.epoch}", leave=False,
                    disable=None if self.process.is_main else True)

    def _report(self, bar: tqdm) -> None:
        bar.update()
        if self.step % self.settings.log_every and self.batch < self.batches_per_epoch:
            return
        seconds = (time.perf_counter() - self.window_start) / (self.step - self.window_step)
        self.window_start, self.window_step = time.perf_counter(), self.step
        means = self.recorder.read(self.step)
        shown = {"loss": f"{means['loss/total']:.4f}", "final": f"{means['mm/final']:.1f} mm",
                 "rough": f"{means['mm/rough']:.1f} mm"}
        bar.set_postfix(shown)
        log.info("epoch %d  step %d  %s  lr %.1e  %.2f s/step", self.epoch, self.step,
                 "  ".join(f"{name} {value}" for name, value in shown.items()),
                 self.optimizer.param_groups[0]["lr"], seconds)
        log.debug("step %d  %s", self.step, "  ".join(f"{name} {value:.5g}" for name, value in means.items()))

    def _report_divergence(self, batch: TwoHandBatch, terms: dict[str, Tensor], grad_norm: Tensor) -> int:
        """Name the samples and terms of every process in a file; the weights are those before this step."""
        samples = [{"index": index, **self.dataset.reader.describe(index)} for index in batch.index.tolist()]
        found = self.process.gather({
            "loss_terms": {name: str(term.item()) for name, term in terms.items()},
            "grad_norm": str(grad_norm.item()), "samples": samples,
        })
        report = {"epoch": self.epoch, "step": self.step, "processes": found}
        path = self.log_folder / f"nonfinite_step_{self.step}.json"
        if self.process.is_main:
            write_atomically(path, lambda file: file.write(json.dumps(report, indent=2).encode()))
            log.error("The loss or its gradient is not finite at step %d. The weights were not changed; samples and "
                      "terms are in %s. A lower train.lr or train.max_grad_norm=1 may help.", self.step, path)
        return EXIT_DIVERGED

    # ------------------------------------------------------------ snapshots

    def _save(self, path: Path) -> None:
        states = self.process.gather(random_state())
        if not self.process.is_main:
            return
        save_snapshot(Snapshot(
            model=self.model.state_dict(), optimizer=self.optimizer.state_dict(), random_states=states,
            step=self.step, next_epoch=self.epoch, next_batch=self.batch, torch_version=str(torch.__version__),
            world_size=self.process.world_size, **self.facts,
        ), path)
        remove_old_snapshots(self.snapshots, self.settings.keep_snapshots)
        log.info("saved %s", path)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on where the snapshot stopped. The model holds its weights already."""
        self.optimizer.load_state_dict(snapshot.optimizer)
        self.step, self.epoch, self.batch = snapshot.step, snapshot.next_epoch, snapshot.next_batch
        if snapshot.world_size == self.process.world_size:
            set_random_state(snapshot.random_states[self.process.rank])
        else:
            log.warning("The run had %d processes and has %d now: it goes on, but not with the same numbers.",
                        snapshot.world_size, self.process.world_size)


def learning_rate(settings: TrainConfig, step: int, epoch: int) -> float:
    """The rate of a step: a linear rise over `warmup_steps`, then divided by 10 at each of `lr_drops`."""
    rise = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    return settings.lr * rise * 0.1 ** sum(epoch >= drop for drop in settings.lr_drops)


def joint_error_mm(prediction: HandPrediction, targets: Targets) -> Tensor:
    """Mean distance of the annotated wrist-relative joints in mm, unscaled: a figure to watch, no protocol."""
    with torch.no_grad():
        valid = targets.joints_valid > 0
        distance = (prediction.joints - targets.joints).norm(dim=-1)
        return 1000 * torch.where(valid, distance, 0.0).sum() / valid.sum().clamp(min=1)


def _refuse_used_folder(folder: Path) -> None:
    if snapshots_in(folder):
        raise UserError(f"{folder} already holds snapshots, the last of them {snapshots_in(folder)[-1].name}.",
                        "Use --continue to go on with that run, or --set output=FOLDER for a new one.")


def _snapshot_to_continue(config: Config, hand_model: HandModel, folder: Path) -> Snapshot:
    """The last snapshot, if it is of the same model; what else has changed is named."""
    snapshot, path = load_latest(folder)
    before = config_from_dict(snapshot.config)
    refuse_changes(before, config, str(path))
    check_same_model(hand_model.identity, snapshot.hand_model, str(path))
    for key, change in changes(before, config).items():
        log.warning("Changed since the snapshot: %s %s.", key, change)
    log.info("Continuing %s at epoch %d, step %d.", path, snapshot.next_epoch, snapshot.step)
    return snapshot
