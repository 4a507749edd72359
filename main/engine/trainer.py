"""Training: epochs of steps, a snapshot after each epoch, and stops that lose nothing."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.predict.fast import accelerated
from common.types import HandPrediction, Targets, TwoHandBatch
from common.weights import load_weights
from data.dataset import EpochSampler, mean_joints
from main.config import TrainConfig
from main.engine.bad_samples import BadSamples
from main.engine.batches import TrainingBatch, TrainingSamples, dead_loaders_told, predict
from main.engine.evaluator import Evaluator
from main.engine.processes.seeding import random_state, set_random_state
from main.engine.processes.signals import StopRequest
from main.engine.progress import Outcome, Progress
from main.engine.run.folder import RunFolder
from main.engine.run.log import StepLog
from main.engine.run.record import recorded
from main.engine.run.snapshots import Snapshot, partial_path, snapshot_path

log = logging.getLogger(__name__)
# From a model and the mean joints (2, 21, 3) of the training set to what scores the model.
Validation = Callable[[nn.Module, Tensor], Evaluator]


class Learned(NamedTuple):
    """Result of the backward passes of one optimiser step, besides the gradients."""

    loss: Tensor                        # finite if the loss of each batch is
    grad_norm: Tensor
    scalars: list[dict[str, Tensor]]    # to log, of each batch
    indices: list[Tensor]               # of each batch's samples
    faults: dict[int, int]              # as in TrainingBatch


class Trainer:
    """Trains a model, alone or as one of several processes, and resumes if `run` does. Start at `fit`.

    A step learns from `settings.accumulate` batches, one after the other, and takes the mean of their gradients. That
    is the gradient of one large batch, but for two things: batch normalisation sees each batch alone, and a loss term
    is a mean over what a batch annotates, so an annotation counts more in a batch that has fewer of them.

    loss: from (Stages, Targets) to scalar terms by name, `total` among them.
    validation: scores the model after epochs; None: it is not scored.
    on_step: called with the trainer after each optimiser step, before anything is saved.
    """

    def __init__(self, model: nn.Module, loss: nn.Module, samples: TrainingSamples, settings: TrainConfig,
                 run: RunFolder, validation: Validation | None = None,
                 on_step: Callable[["Trainer"], None] = lambda trainer: None):
        self.samples, self.settings, self.run, self.process = samples, settings, run, run.process
        device = self.process.device
        # The loss is some two hundred small operations. No other mode: some reuse the memory that results are in.
        loss_mode = "default" if settings.compile else ""
        self.model = model.to(device)
        self.loss = accelerated(loss.to(device), channels_last=False, compile_mode=loss_mode)
        self.parallel = self.process.parallel(accelerated(self.model, channels_last=settings.channels_last,
                                                          compile_mode=settings.compile))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=settings.lr, fused=True)

        self.sampler = EpochSampler(len(samples), seed=settings.seed, rank=self.process.rank,
                                    world_size=self.process.world_size)
        # A small last batch would upset batch normalisation; a set smaller than one batch is used whole.
        self.batches = samples.batches(self.sampler, batch_size=settings.batch_size, device=device,
                                       drop_last=len(self.sampler) >= settings.batch_size)
        self.batches_per_epoch = len(self.batches)
        self.bad = BadSamples(samples.reader, self.process)
        self.progress = Progress(settings.batch_size * self.process.world_size)
        self.waited_s = 0.0     # for data, in this process so far
        self.validation, self.on_step = validation, on_step
        self.mean_joints = run.snapshot.mean_joints if run.snapshot else mean_joints(samples.reader)

    def fit(self) -> Outcome:
        """Train to the last epoch, with start and end in the run's record. UserError if too many samples cannot be
        used, or if the disk takes no snapshot."""
        if self.run.snapshot:
            self.restore(self.run.snapshot)
        return recorded(self._train, self.run, self.samples.reader, self.progress)

    @dead_loaders_told()
    def _train(self) -> Outcome:
        progress, epochs = self.progress, self.settings.epochs
        if progress.epoch >= epochs:
            log.info("This run is complete: %d of %d epochs.", progress.epoch, epochs)
            return Outcome.COMPLETE
        self._log_size()
        self._check_space()
        with (StepLog(self.run.logs, self.settings.log_every, is_main=self.process.is_main,
                      first_step=progress.step) as self.step_log, StopRequest() as stop):
            while progress.epoch < epochs:
                outcome = self._train_epoch(stop)
                if outcome is not None:
                    log.info("Stopped after step %d; --continue goes on from the last snapshot.", progress.step)
                    return outcome
        log.info("Training is complete: %d epochs, %d steps. Last snapshot: %s", progress.epoch, progress.step,
                 snapshot_path(self.run.snapshots, progress.epoch - 1))
        return Outcome.COMPLETE

    def _train_epoch(self, stop: StopRequest) -> Outcome | None:
        """Train to the end of the epoch; None if it was reached and training goes on."""
        progress, stopped = self.progress, 0
        self.sampler.set_epoch(progress.epoch, start=progress.sample)
        self.batches_per_epoch = progress.batch + self._whole_steps(len(self.batches))
        batches = iter(self.batches)
        with self.step_log.epoch(progress, self.batches_per_epoch, self.waited_s):
            while progress.batch < self.batches_per_epoch:
                learned = self.gradients(batches)
                diverged, stopped = self.agree(learned, stop)
                if diverged:
                    return self._report_divergence(learned)
                self.update(learned.grad_norm)
                progress.step, progress.batch = progress.step + 1, progress.batch + len(learned.scalars)
                self.step_log.add(learned.scalars, learned.grad_norm)
                self.step_log.report(progress, self.waited_s, self.optimizer.param_groups[0]["lr"])
                self.on_step(self)
                if self._partial_is_due(stopped):
                    self.save(partial_path(self.run.snapshots, progress.epoch, progress.sample))
                    if stopped:
                        return Outcome.of_signal(stopped)
        return self._end_epoch(stop, stopped)

    def _end_epoch(self, stop: StopRequest, stopped: int) -> Outcome | None:
        score = None
        if self.validation is not None and self._validates():
            stopped, score = self._validate(self.validation, stop)
            if stopped:
                return Outcome.of_signal(stopped)
        self.progress.end_epoch(score)
        self.save(snapshot_path(self.run.snapshots, self.progress.epoch - 1), score)
        return Outcome.of_signal(stopped) if stopped else None

    # ------------------------------------------------------------ one step

    def _whole_steps(self, batches: int) -> int:
        """How many of an epoch's remaining batches are used. As an incomplete last batch, an incomplete last step is
        left out: all learn from the same number of samples. Fewer than one step are used as they are."""
        used = batches // self.settings.accumulate * self.settings.accumulate
        return batches if used == self.progress.batch == 0 else used

    def gradients(self, batches: Iterator[TrainingBatch]) -> Learned:
        """Put the mean gradient of the next step's batches into the parameters."""
        self.optimizer.zero_grad(set_to_none=True)
        count = min(self.settings.accumulate, self.batches_per_epoch - self.progress.batch)
        scalars, indices = [], []
        faults: dict[int, int] = {}
        for number in range(1, count + 1):
            start = time.perf_counter()
            batch, found, is_blank = next(batches)
            self.waited_s += time.perf_counter() - start
            # A blank batch leaves the statistics of batch normalisation alone. Its gradient of 0 enters the mean over
            # the processes, which wait for its step.
            if self.model.training == is_blank:
                self.model.train(not is_blank)
            with nullcontext() if number == count else self.unshared_gradients():
                scalars.append(self.backward(batch, share=1 / count))
            indices.append(batch.index)
            faults |= found
        loss = torch.stack([each["loss/total"].detach() for each in scalars]).sum()
        return Learned(loss, self.grad_norm(), scalars, indices, faults)

    def unshared_gradients(self) -> AbstractContextManager[object]:
        """Processes exchange the gradients of a step once, with its last batch."""
        parallel = self.parallel
        return parallel.no_sync() if isinstance(parallel, nn.parallel.DistributedDataParallel) else nullcontext()

    def backward(self, batch: TwoHandBatch, share: float = 1.0) -> dict[str, Tensor]:
        """Add `share` of the gradient of the batch's loss. Its terms (`loss/…`) and the other scalars to log."""
        use_bfloat16 = self.settings.precision == "bfloat16"
        with torch.autocast(self.process.device.type, dtype=torch.bfloat16, enabled=use_bfloat16):
            stages = predict(self.parallel, batch)
        terms = self.loss(stages, batch.targets)
        (share * terms["total"]).backward()

        scalars = {f"loss/{name}": term for name, term in terms.items()}
        scalars["mm/coarse"] = joint_error_mm(stages.mesh, batch.targets)
        scalars["mm/final"] = joint_error_mm(stages.final, batch.targets)
        return scalars

    def grad_norm(self) -> Tensor:
        return nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])

    def agree(self, learned: Learned, stop: StopRequest) -> tuple[bool, int]:
        """Whether any process met a number that is not finite, and the signal that any was asked to stop by. Unusable
        samples that any of them met are counted; UserError if they are too many."""
        is_finite = bool(torch.isfinite(learned.loss) & torch.isfinite(learned.grad_norm))
        mine = (not is_finite, stop.signal, self.bad.has_new(learned.faults))
        diverged, stopped, met_bad = self.process.maximum([float(value) for value in mine])
        if met_bad and not diverged:
            self.bad.add(learned.faults)
            self.bad.refuse_more_than(self.samples.max_bad_fraction, len(self.samples))
        return bool(diverged), int(stopped)

    def update(self, grad_norm: Tensor) -> None:
        """Take the optimiser's step."""
        progress = self.progress
        if self.settings.max_grad_norm > 0:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.settings.max_grad_norm, grad_norm)
        epochs_done = progress.epoch + progress.batch / self.batches_per_epoch
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, progress.step, epochs_done)
        self.optimizer.step()

    def _report_divergence(self, learned: Learned) -> Outcome:
        """Name the samples and terms of every process in a file; the weights are those before this step."""
        batches = [{
            "loss_terms": {name.removeprefix("loss/"): str(value.item()) for name, value in scalars.items()
                           if name.startswith("loss/")},
            "samples": [{"index": index, **self.samples.reader.describe(index)} for index in indices.tolist()],
        } for scalars, indices in zip(learned.scalars, learned.indices, strict=True)]
        found = self.process.gather({"grad_norm": str(learned.grad_norm.item()), "batches": batches})
        if self.process.is_main:
            step = self.progress.step
            self.run.report_divergence(step, {"epoch": self.progress.epoch, "step": step, "processes": found})
        return Outcome.DIVERGED

    # ------------------------------------------------------------ validation

    def _validates(self) -> bool:
        """Whether this epoch is scored when it ends; the last one always is."""
        done = self.progress.epoch + 1
        return self.validation is not None and (
            done % self.settings.validate_every == 0 or done == self.settings.epochs)

    def _validate(self, validation: Validation, stop: StopRequest) -> tuple[int, float | None]:
        """The signal that cut it short, 0 for none, and the MPJPE in mm: the same in every process. No random state is
        moved."""
        self.process.spread_buffers(self.model)
        evaluator = validation(self.model.eval(), self.mean_joints)
        if evaluator.run(lambda: self._stop_signal(stop) > 0) is None:
            return self._stop_signal(stop), None
        scores, epoch, best = evaluator.scores(), self.progress.epoch, self.progress.best
        score = scores.printed.mpjpe
        if score is None:
            log.warning("epoch %d  validation has no score: %s.", epoch, scores.counts)
            return 0, None
        before = f"lowest so far {best[1]:.2f} mm, epoch {best[0]}" if best else "the first"
        log.info("epoch %d  validation MPJPE %.2f mm (protocol '%s', %d samples; %s)", epoch, score,
                 scores.protocol, scores.counts.samples, before)
        self.step_log.write({"validation/mpjpe": score}, self.progress.step)
        return 0, score

    def _stop_signal(self, stop: StopRequest) -> int:
        """The signal that any process was asked to stop by."""
        return int(self.process.maximum([float(stop.signal)])[0])

    # ------------------------------------------------------------ snapshots

    def _log_size(self) -> None:
        parameters = sum(p.numel() for p in self.model.parameters()) / 1e6
        batches = min(self.settings.accumulate, self.batches_per_epoch)
        log.info("%.1f M parameters; %d samples, %d epochs of %d steps, %d × %d samples in each; %s on %s",
                 parameters, len(self.samples), self.settings.epochs, self.batches_per_epoch // batches,
                 self.process.world_size * batches, min(self.settings.batch_size, len(self.sampler)),
                 self.settings.precision, self.process.device)

    def _check_space(self) -> None:
        """Refuse a disk without room for a snapshot: the weights and Adam's two moments of each."""
        weights = sum(value.nbytes for value in self.model.state_dict().values())
        moments = 2 * sum(p.nbytes for p in self.model.parameters())
        self.run.check_space(weights + moments, self.settings.keep_snapshots)

    def _partial_is_due(self, stopped: int) -> bool:
        """Whether the state is saved after this step, inside the epoch or before its validation, which takes long."""
        if self.progress.batch == self.batches_per_epoch:
            return self._validates()
        return stopped > 0 or (self.settings.save_every > 0 and self.progress.step % self.settings.save_every == 0)

    def save(self, path: Path, score: float | None = None) -> None:
        """Save the state of all processes."""
        states, progress = self.process.gather(random_state()), self.progress
        if self.process.is_main:
            self.run.save(Snapshot(
                model=self.model.state_dict(), optimizer=self.optimizer.state_dict(), random_states=states,
                step=progress.step, next_epoch=progress.epoch, next_sample=progress.sample, score=score,
                best=progress.best, mean_joints=self.mean_joints, torch_version=str(torch.__version__),
                world_size=self.process.world_size, **self.run.metadata,
            ), path, self.settings.keep_snapshots)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on where the snapshot stopped: on a CPU and with as many processes, bit for bit."""
        load_weights(self.model, snapshot.model, where="the snapshot")
        try:
            self.optimizer.load_state_dict(snapshot.optimizer)
        except (ValueError, KeyError) as error:
            raise UserError(f"The optimiser of the snapshot does not fit this one: {error}.",
                            "Was it made with another model configuration?") from None
        lay_out_moments(self.optimizer)
        progress = self.progress
        progress.step, progress.epoch, progress.best = snapshot.step, snapshot.next_epoch, snapshot.best
        progress.go_on_at(snapshot.next_sample)
        if snapshot.world_size == self.process.world_size:
            set_random_state(snapshot.random_states[self.process.rank])
        else:
            log.warning("The run had %d processes and has %d now: it goes on after the %d samples that epoch %d has "
                        "seen, in batches of %d × %d, but not with the same numbers.", snapshot.world_size,
                        self.process.world_size, snapshot.next_sample, progress.epoch, self.process.world_size,
                        self.settings.batch_size)


def lay_out_moments(optimizer: torch.optim.Optimizer) -> None:
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
    """Mean distance of the annotated wrist-relative joints in mm, unscaled: a scalar to watch, no protocol."""
    with torch.no_grad():
        valid = targets.joints_valid > 0
        distance = (prediction.joints - targets.joints).norm(dim=-1)
        return 1000 * torch.where(valid, distance, 0.0).sum() / valid.sum().clamp(min=1)
