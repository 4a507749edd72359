"""Training: epochs of steps, a snapshot after each epoch, and stops that lose nothing."""

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.errors import EXIT_DIVERGED, EXIT_OK, UserError
from common.files import ROOT, stored_sha256, write_atomically
from common.mano.model import HandModel, check_same_model
from common.predict.fast import accelerated
from common.score.metrics import protocol_named
from common.types import HandPrediction, Targets, TwoHandBatch
from data.dataset import EpochSampler, TwoHandDataset, mean_joints
from data.synthetic.batches import RenderedBatches
from main.build import (
    configured_hand_model,
    configured_loss,
    rendered_batches,
    starting_model,
    trained_model,
    training_dataset,
    validation_dataset,
)
from main.config import Config, TrainConfig, changes, config_from_dict, config_to_dict, refuse_changes
from main.engine.bad_samples import BadSamples
from main.engine.batches import (
    RenderingLoader,
    TrainingBatch,
    build_loader,
    dead_loaders_told,
    predict,
    training_batches,
)
from main.engine.evaluator import Evaluator
from main.engine.processes.launch import Process
from main.engine.processes.seeding import random_state, seed_everything, set_random_state
from main.engine.processes.signals import StopRequest
from main.engine.run.log import Recorder, start_log
from main.engine.run.snapshots import (
    Snapshot,
    check_space,
    load_latest,
    partial_path,
    remove_old_snapshots,
    save_snapshot,
    snapshot_path,
    snapshots_in,
)

log = logging.getLogger(__name__)
# What decides which samples the validation has and what its score means.
_SCORED_BY = {"data.trainset", "data.val_split", "data.val_samples", "data.filter", "data.box_source", "test.protocol"}


class Learned(NamedTuple):
    """What the batches of one step told, besides their gradients."""

    loss: Tensor                        # finite if the loss of each batch is
    figures: list[dict[str, Tensor]]    # to report, of each batch
    indices: list[Tensor]               # of each batch's samples
    faults: dict[int, int]              # as in TrainingBatch


class Trainer:
    """Trains a model on a dataset, alone or as one of several processes. Start at `fit`; `build` makes the parts.

    A step learns from `settings.accumulate` batches, one after the other, and takes the mean of their gradients. That
    is the gradient of one large batch, but for two things: batch normalisation sees each batch alone, and a loss term
    is a mean over what a batch annotates, so an annotation counts more in a batch that has fewer of them.

    loss: from (Stages, Targets) to scalar terms by name, `total` among them.
    max_bad_fraction: of the dataset's samples; when more have proved unusable, training stops.
    facts: what a snapshot tells about the run besides its state: config, hand_model, mean_joints.
    validator: makes the evaluator that scores the model after an epoch, see `_validates`; None: it is not scored.
    rendered: draws the dataset's samples anew, to train on instead of its files.
    """

    def __init__(self, model: nn.Module, loss: nn.Module, dataset: TwoHandDataset, *, settings: TrainConfig,
                 workers: int, max_bad_fraction: float, process: Process, output: Path, facts: dict[str, Any],
                 validator: Callable[[nn.Module], Evaluator] | None = None, rendered: RenderedBatches | None = None):
        # The loss is some two hundred small operations. No other mode: some reuse the memory that results are in.
        loss_mode = "default" if settings.compile else ""
        self.model = model.to(process.device)
        self.loss = accelerated(loss.to(process.device), channels_last=False, compile_mode=loss_mode)
        self.parallel = process.parallel(accelerated(self.model, channels_last=settings.channels_last,
                                                     compile_mode=settings.compile))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=settings.lr, fused=True)

        self.sampler = EpochSampler(len(dataset), seed=settings.seed, rank=process.rank, world_size=process.world_size)
        # A small last batch would upset batch normalisation; a set smaller than one batch is used whole.
        batching = {"batch_size": settings.batch_size, "device": process.device,
                    "drop_last": len(self.sampler) >= settings.batch_size}
        self.loader = (RenderingLoader(rendered, self.sampler, **batching) if rendered else
                       build_loader(dataset, self.sampler, workers=workers, **batching))
        self.batches_per_epoch = len(self.loader)

        self.dataset, self.settings, self.process, self.facts = dataset, settings, process, facts
        self.snapshots, self.log_folder = output / "model_dump", output / "log"
        self.step, self.epoch, self.batch = 0, 0, 0     # steps done; where training goes on
        self.waited_s = 0.0     # for data, in this process so far
        self.first = 0      # position in the epoch's order at which its batches begin: see `restore`
        self.bad, self.max_bad_fraction = BadSamples(dataset.reader, process), max_bad_fraction
        self.validator = validator
        self.best: tuple[int, float] | None = None      # the epoch with the lowest validation score, and that score

    @classmethod
    def build(cls, config: Config, process: Process, *, resume: bool) -> "Trainer":
        """The trainer that a configuration describes; `resume` continues its last snapshot, bit for bit on a CPU."""
        output = ROOT / config.output
        start_log(output / "log" / "train.log", is_main=process.is_main)
        seed_everything(config.train.seed, process.rank)
        hand_model = configured_hand_model(config)
        snapshot = _snapshot_to_continue(config, hand_model, output / "model_dump", process) if resume else None
        if not resume:
            _refuse_used_folder(output / "model_dump")

        dataset = training_dataset(config, hand_model)
        if snapshot:
            model = trained_model(config, hand_model, snapshot.model, where="the snapshot")
            baseline = snapshot.mean_joints
        else:
            model = starting_model(config, hand_model)
            baseline = mean_joints(dataset.reader)
        facts = {"config": config_to_dict(config), "hand_model": hand_model.identity, "mean_joints": baseline}
        trainer = cls(model, configured_loss(config, hand_model), dataset, settings=config.train,
                      workers=config.data.workers, max_bad_fraction=config.data.max_bad_fraction, process=process,
                      output=output, facts=facts, validator=_validator(config, hand_model, baseline, process),
                      rendered=rendered_batches(config, dataset, process.device))
        if snapshot:
            trainer.restore(snapshot)
        return trainer

    @dead_loaders_told()
    def fit(self) -> int:
        """Train to the last epoch. Exit code: 0, 3 if the loss or a gradient stopped being finite, 130 or 143 after
        SIGINT or SIGTERM, when the run can be continued. UserError if too many samples cannot be used, or if the disk
        takes no snapshot."""
        if self.epoch >= self.settings.epochs:
            log.info("This run is complete: %d of %d epochs.", self.epoch, self.settings.epochs)
            return EXIT_OK
        self._log_size()
        self._check_space()
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
        self.sampler.set_epoch(self.epoch, start=self._samples_done())
        self.batches_per_epoch = self.batch + self._whole_steps(len(self.loader))
        batches = training_batches(self.loader, self.process.device)
        with self._progress_bar() as bar:
            while self.batch < self.batches_per_epoch:
                learned = self._gradients(batches)
                grad_norm = self._grad_norm()
                diverged, stopped, met_bad = self._agree(learned.loss, grad_norm, stop, learned.faults)
                if diverged:
                    return self._report_divergence(learned, grad_norm)
                if met_bad:
                    self.bad.add(learned.faults)
                    self.bad.refuse_more_than(self.max_bad_fraction, len(self.dataset))

                self._update(grad_norm)
                self.step, self.batch = self.step + 1, self.batch + len(learned.figures)
                for figures in learned.figures:
                    self.recorder.add(figures)
                self.recorder.add({"grad_norm": grad_norm})
                self._report(bar)
                if self._partial_is_due(stopped):
                    self._save(partial_path(self.snapshots, self.epoch, self._samples_done()))
                    if stopped:
                        return 128 + stopped
        return self._end_epoch(stop, stopped)

    def _end_epoch(self, stop: StopRequest, stopped: int) -> int:
        score = None
        if self._validates():
            stopped, score = self._validate(stop)
            if stopped:
                return 128 + stopped
        if score is not None and (self.best is None or score < self.best[1]):
            self.best = (self.epoch, score)
        self.epoch, self.batch, self.first = self.epoch + 1, 0, 0
        self._save(snapshot_path(self.snapshots, self.epoch - 1), score)
        return 128 + stopped if stopped else EXIT_OK

    # ------------------------------------------------------------ one step

    def _whole_steps(self, batches: int) -> int:
        """How many of an epoch's remaining batches are used. As an incomplete last batch, an incomplete last step is
        left out: all learn from the same number of samples. Fewer than one step are used as they are."""
        used = batches // self.settings.accumulate * self.settings.accumulate
        return batches if used == self.batch == 0 else used

    def _gradients(self, batches: Iterator[TrainingBatch]) -> Learned:
        """Put the mean gradient of the next step's batches into the parameters."""
        self.optimizer.zero_grad(set_to_none=True)
        count = min(self.settings.accumulate, self.batches_per_epoch - self.batch)
        figures, indices, faults = [], [], {}
        for number in range(1, count + 1):
            batch, found, is_blank, waited_s = next(batches)
            # A blank batch leaves the statistics of batch normalisation alone. Its gradient of 0 enters the mean over
            # the processes, which wait for its step.
            if self.model.training == is_blank:
                self.model.train(not is_blank)
            with nullcontext() if number == count else self._unshared_gradients():
                figures.append(self._backward(batch, share=1 / count))
            indices.append(batch.index)
            faults |= found
            self.waited_s += waited_s
        return Learned(sum(each["loss/total"].detach() for each in figures), figures, indices, faults)

    def _unshared_gradients(self) -> AbstractContextManager:
        """Processes exchange the gradients of a step once, with its last batch."""
        return self.parallel.no_sync() if self.process.world_size > 1 else nullcontext()

    def _backward(self, batch: TwoHandBatch, share: float = 1.0) -> dict[str, Tensor]:
        """Add `share` of the gradient of the batch's loss. Its terms (`loss/…`) and the other figures to report."""
        use_bfloat16 = self.settings.precision == "bfloat16"
        with torch.autocast(self.process.device.type, dtype=torch.bfloat16, enabled=use_bfloat16):
            stages = predict(self.parallel, batch)
        terms = self.loss(stages, batch.targets)
        (share * terms["total"]).backward()

        figures = {f"loss/{name}": term for name, term in terms.items()}
        figures["mm/rough"] = joint_error_mm(stages.mesh, batch.targets)
        figures["mm/final"] = joint_error_mm(stages.final, batch.targets)
        return figures

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
            group["lr"] = learning_rate(self.settings, self.step, self.epoch + self.batch / self.batches_per_epoch)
        self.optimizer.step()

    # ------------------------------------------------------------ validation

    def _validates(self) -> bool:
        """Whether this epoch is scored when it ends; the last one always is."""
        done = self.epoch + 1
        return self.validator is not None and (done % self.settings.validate_every == 0 or done == self.settings.epochs)

    def _validate(self, stop: StopRequest) -> tuple[int, float | None]:
        """The signal that cut it short, 0 for none, and the MPJPE in mm: the same in every process. No random state is
        moved."""
        self.process.spread_buffers(self.model)
        evaluator = self.validator(self.model.eval())
        if evaluator.run(lambda: self._stop_signal(stop) > 0) is None:
            return self._stop_signal(stop), None
        scores = evaluator.scores()
        score, samples = scores["protocols"][scores["protocol"]]["mpjpe"], scores["counts"]["samples"]
        if score is None:
            log.warning("epoch %d  validation has no score: %s.", self.epoch, scores["counts"])
            return 0, None
        before = f"lowest so far {self.best[1]:.2f} mm, epoch {self.best[0]}" if self.best else "the first"
        log.info("epoch %d  validation MPJPE %.2f mm (protocol '%s', %d samples; %s)", self.epoch, score,
                 scores["protocol"], samples, before)
        self.recorder.write({"validation/mpjpe": score}, self.step)
        return 0, score

    def _stop_signal(self, stop: StopRequest) -> int:
        """The signal that any process was asked to stop by."""
        return int(self.process.maximum([float(stop.signal)])[0])

    # ------------------------------------------------------------ reports

    def _log_size(self) -> None:
        parameters = sum(p.numel() for p in self.model.parameters()) / 1e6
        batches = min(self.settings.accumulate, self.batches_per_epoch)
        log.info("%.1f M parameters; %d samples, %d epochs of %d steps, %d × %d samples in each; %s on %s",
                 parameters, len(self.dataset), self.settings.epochs, self.batches_per_epoch // batches,
                 self.process.world_size * batches, min(self.settings.batch_size, len(self.sampler)),
                 self.settings.precision, self.process.device)

    def _progress_bar(self) -> tqdm:
        # disable=None: none where the output is no terminal; the log's lines tell the progress there.
        self.window_start, self.window_step, self.window_waited_s = time.perf_counter(), self.step, self.waited_s
        return tqdm(total=self.batches_per_epoch, initial=self.batch, desc=f"epoch {self.epoch}", leave=False,
                    disable=None if self.process.is_main else True)

    def _report(self, bar: tqdm) -> None:
        bar.update(self.batch - bar.n)
        if self.step % self.settings.log_every and self.batch < self.batches_per_epoch:
            return
        now = time.perf_counter()
        seconds = (now - self.window_start) / (self.step - self.window_step)
        data_share = (self.waited_s - self.window_waited_s) / (now - self.window_start)
        self.window_start, self.window_step, self.window_waited_s = now, self.step, self.waited_s
        means = self.recorder.read(self.step, {"time/step_s": seconds, "time/data_share": data_share})
        shown = {"loss": f"{means['loss/total']:.4f}", "final": f"{means['mm/final']:.1f} mm",
                 "rough": f"{means['mm/rough']:.1f} mm"}
        bar.set_postfix(shown)
        log.info("epoch %d  step %d  %s  lr %.1e  %.2f s/step  data %.0f %%", self.epoch, self.step,
                 "  ".join(f"{name} {value}" for name, value in shown.items()),
                 self.optimizer.param_groups[0]["lr"], seconds, 100 * data_share)
        log.debug("step %d  %s", self.step, "  ".join(f"{name} {value:.5g}" for name, value in means.items()))

    def _report_divergence(self, learned: Learned, grad_norm: Tensor) -> int:
        """Name the samples and terms of every process in a file; the weights are those before this step."""
        batches = [{
            "loss_terms": {name.removeprefix("loss/"): str(value.item()) for name, value in figures.items()
                           if name.startswith("loss/")},
            "samples": [{"index": index, **self.dataset.reader.describe(index)} for index in indices.tolist()],
        } for figures, indices in zip(learned.figures, learned.indices, strict=True)]
        found = self.process.gather({"grad_norm": str(grad_norm.item()), "batches": batches})
        report = {"epoch": self.epoch, "step": self.step, "processes": found}
        path = self.log_folder / f"nonfinite_step_{self.step}.json"
        if self.process.is_main:
            log.error("The loss or its gradient is not finite at step %d. The weights were not changed; samples and "
                      "terms are in %s. A lower train.lr or train.max_grad_norm=1 may help.", self.step, path)
            try:
                write_atomically(path, lambda file: file.write(json.dumps(report, indent=2).encode()))
            except UserError as error:
                log.error("%s They are: %s", error, json.dumps(report))
        return EXIT_DIVERGED

    # ------------------------------------------------------------ snapshots

    def _check_space(self) -> None:
        """Refuse a disk without room for a snapshot: the weights and Adam's two moments of each."""
        if self.process.is_main:
            values = self.model.state_dict().values()
            size = sum(value.nbytes for value in values) + 2 * sum(p.nbytes for p in self.model.parameters())
            # Besides those of whole epochs: the best, the partial one, and the one being written.
            check_space(self.snapshots, size, self.settings.keep_snapshots + 3)

    def _partial_is_due(self, stopped: int) -> bool:
        """Whether the state is saved after this step, inside the epoch or before its validation, which takes long."""
        if self.batch == self.batches_per_epoch:
            return self._validates()
        return stopped > 0 or (self.settings.save_every > 0 and self.step % self.settings.save_every == 0)

    def _save(self, path: Path, score: float | None = None) -> None:
        states = self.process.gather(random_state())
        if not self.process.is_main:
            return
        snapshot = Snapshot(
            model=self.model.state_dict(), optimizer=self.optimizer.state_dict(), random_states=states,
            step=self.step, next_epoch=self.epoch, next_sample=self._samples_done(), score=score, best=self.best,
            torch_version=str(torch.__version__), world_size=self.process.world_size, **self.facts,
        )
        with self.process.saving:
            save_snapshot(snapshot, path)
            remove_old_snapshots(self.snapshots, self.settings.keep_snapshots, self.best and self.best[0])
        log.info("saved %s", path)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on where the snapshot stopped. The model holds its weights already."""
        try:
            self.optimizer.load_state_dict(snapshot.optimizer)
        except (ValueError, KeyError) as error:
            raise UserError(f"The optimiser of the snapshot does not fit this one: {error}.",
                            "Was it made with another model configuration?") from None
        _lay_out_moments(self.optimizer)
        self.step, self.epoch, self.best = snapshot.step, snapshot.next_epoch, snapshot.best
        # Where steps of another size stopped may be no multiple of this run's steps.
        self.batch, self.first = divmod(snapshot.next_sample, self._samples_per_batch())
        if snapshot.world_size == self.process.world_size:
            set_random_state(snapshot.random_states[self.process.rank])
        else:
            log.warning("The run had %d processes and has %d now: it goes on after the %d samples that epoch %d has "
                        "seen, in batches of %d × %d, but not with the same numbers.", snapshot.world_size,
                        self.process.world_size, snapshot.next_sample, self.epoch, self.process.world_size,
                        self.settings.batch_size)

    def _samples_per_batch(self) -> int:
        return self.settings.batch_size * self.process.world_size

    def _samples_done(self) -> int:
        """Position in the epoch's order, of all processes together, at which training goes on."""
        return self.first + self.batch * self._samples_per_batch()


def _lay_out_moments(optimizer: torch.optim.Optimizer) -> None:
    """Give Adam's moments the memory layout of their weights, which changes with `channels_last`: the fused step on a
    CPU pairs them place by place, whatever their strides."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter).copy_(value)


def learning_rate(settings: TrainConfig, step: int, epoch: float) -> float:
    """The rate of a step: a linear rise over `warmup_steps`, and a decay by `lr_decay`.  epoch: epochs done before it,
    with a fraction."""
    rise = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    if settings.lr_decay == "cosine":
        return settings.lr * rise * (1 + math.cos(math.pi * epoch / settings.epochs)) / 2
    return settings.lr * rise * 0.1 ** sum(epoch >= drop for drop in settings.lr_drops)


def joint_error_mm(prediction: HandPrediction, targets: Targets) -> Tensor:
    """Mean distance of the annotated wrist-relative joints in mm, unscaled: a figure to watch, no protocol."""
    with torch.no_grad():
        valid = targets.joints_valid > 0
        distance = (prediction.joints - targets.joints).norm(dim=-1)
        return 1000 * torch.where(valid, distance, 0.0).sum() / valid.sum().clamp(min=1)


def _validator(config: Config, hand_model: HandModel, mean_joints: Tensor, process: Process
               ) -> Callable[[nn.Module], Evaluator] | None:
    """From a model to its evaluator on the validation samples; None if training goes without."""
    if not config.train.validate_every:
        return None
    protocol_named(config.test.protocol)    # a mistake in it is told now and not after the first epoch
    dataset = validation_dataset(config, hand_model)
    return lambda model: Evaluator(partial(predict, model), dataset, mean_joints, settings=config.test,
                                   workers=config.data.workers, process=process)


def _refuse_used_folder(folder: Path) -> None:
    if snapshots_in(folder):
        raise UserError(f"{folder} already holds snapshots, the last of them {snapshots_in(folder)[-1].name}.",
                        "Use --continue to go on with that run, or --set output=FOLDER for a new one.")


def _snapshot_to_continue(config: Config, hand_model: HandModel, folder: Path, process: Process) -> Snapshot:
    """The last snapshot, if it is of the same model; what else has changed is named."""
    snapshot, path = load_latest(folder)
    process.refuse_difference("snapshot", f"{path.name} with sha256 {stored_sha256(path)[:12]}")
    before = config_from_dict(snapshot.config)
    refuse_changes(before, config, str(path))
    check_same_model(hand_model.identity, snapshot.hand_model, str(path))
    changed = changes(before, config)
    for key, change in changed.items():
        log.warning("Changed since the snapshot: %s %s.", key, change)
    if snapshot.best and changed.keys() & _SCORED_BY:
        log.warning("Epochs are scored in another way from now on: the best one is sought anew.")
        snapshot = dataclasses.replace(snapshot, best=None)
    log.info("Continuing %s at epoch %d, step %d.", path, snapshot.next_epoch, snapshot.step)
    return snapshot
