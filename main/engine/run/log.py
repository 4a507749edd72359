"""Where a run reports: the console and a text file, from the main process only."""

import contextlib
import logging
import logging.handlers
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from common.files import cannot_write
from main.engine.progress import Progress

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)
_PACKAGES = ("common", "data", "main")      # whose messages are shown


class _ConsoleHandler(logging.Handler):
    """Prints above a progress bar instead of through it, and at once: into a file Python would hold lines back."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record))
        sys.stdout.flush()


class _FileHandler(logging.handlers.WatchedFileHandler):
    """Begins a new file if the old one is removed. A disk that takes no more is told of once and stops nothing."""

    is_failing = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.is_failing:
            self.is_failing = True      # before the line below, which comes here again
            log.warning("The log %s misses lines from here on: %s.", self.baseFilename, sys.exc_info()[1])


def start_log(file: Path, *, is_main: bool) -> None:
    """Show the log on the console and append it, with its details, to `file`.

    Other processes than the main one only report errors.
    """
    handlers: list[logging.Handler] = [_ConsoleHandler(logging.INFO)]
    if is_main:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handlers.append(_FileHandler(file, encoding="utf-8"))
        except OSError as error:
            raise cannot_write(file, error) from error
        handlers[-1].setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    for package in map(logging.getLogger, _PACKAGES):
        for old in list(package.handlers):
            package.removeHandler(old)
            old.close()
        package.setLevel(logging.DEBUG if is_main else logging.ERROR)
        for handler in handlers:
            package.addHandler(handler)


class StepLog:
    """What is told of training steps: a bar on a terminal, and every `every` steps a line of the log and TensorBoard's
    scalars, each the mean since the last time.

    Only the main process writes; under several processes the scalars are those of its own share of each batch.
    first_step: steps taken before.
    """

    def __init__(self, folder: Path, every: int, *, is_main: bool, first_step: int):
        self.every, self.is_main = every, is_main
        self.writer = _tensorboard_writer(folder, first_step) if is_main else None
        self.thread_hook, threading.excepthook = threading.excepthook, self._failed_thread
        self.rows: dict[tuple[str, ...], list[Tensor]] = defaultdict(list)

    def __enter__(self) -> "StepLog":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):      # of a full disk
            if self.writer:
                self.writer.close()
        threading.excepthook = self.thread_hook

    @contextlib.contextmanager
    def epoch(self, progress: Progress, batches: int, waited_s: float) -> Iterator[None]:
        """Within it, steps of one epoch are told of.  batches: of the epoch; waited_s: as in `report`."""
        self.batches, self.window = batches, (time.perf_counter(), progress.step, waited_s)
        # disable=None: none where the output is no terminal; the log's lines tell the progress there.
        with tqdm(total=batches, initial=progress.batch, desc=f"epoch {progress.epoch}", leave=False,
                  disable=None if self.is_main else True) as self.bar:
            yield

    def add(self, scalars: list[dict[str, Tensor]], grad_norm: Tensor) -> None:
        """Count in the scalars of a step's batches. They stay on their device: its work is not awaited."""
        for each in (*scalars, {"grad_norm": grad_norm}):
            self.rows[tuple(each)].append(torch.stack([value.detach() for value in each.values()]))

    def report(self, progress: Progress, waited_s: float, lr: float) -> None:
        """Tell of the steps since the last time, if it is time.  waited_s: that training has waited for data so far."""
        self.bar.update(progress.batch - self.bar.n)
        if progress.step % self.every and progress.batch < self.batches:
            return
        now, (start, step, waited_before_s) = time.perf_counter(), self.window
        self.window = (now, progress.step, waited_s)
        seconds, data_share = (now - start) / (progress.step - step), (waited_s - waited_before_s) / (now - start)
        means = self.means() | {"time/step_s": seconds, "time/data_share": data_share}
        self.write(means, progress.step)
        shown = {"loss": f"{means['loss/total']:.4f}", "final": f"{means['mm/final']:.1f} mm",
                 "coarse": f"{means['mm/coarse']:.1f} mm"}
        self.bar.set_postfix(shown)
        log.info("epoch %d  step %d  %s  lr %.1e  %.2f s/step  data %.0f %%", progress.epoch, progress.step,
                 "  ".join(f"{name} {value}" for name, value in shown.items()), lr, seconds, 100 * data_share)
        log.debug("step %d  %s", progress.step, "  ".join(f"{name} {value:.5g}" for name, value in means.items()))

    def write(self, values: dict[str, float], step: int) -> None:
        """Put values into TensorBoard, which goes without them, with a warning, where its file cannot be written."""
        if self.writer is None:
            return
        try:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
        except OSError as error:        # of its thread, at an earlier value
            log.warning("The curves for TensorBoard end at step %d: %s.", step, error)
            self.writer = None

    def means(self) -> dict[str, float]:
        """Of the scalars since the last call."""
        means: dict[str, float] = {}
        for names, rows in self.rows.items():
            means |= zip(names, torch.stack(rows).double().mean(dim=0).tolist(), strict=True)
        self.rows.clear()
        return means

    def _failed_thread(self, failure: threading.ExceptHookArgs) -> None:
        """TensorBoard's own thread would print a page; `write` meets its error too and tells it in a line."""
        if not type(failure.thread).__module__.startswith("tensorboard."):
            self.thread_hook(failure)


def _tensorboard_writer(folder: Path, first_step: int) -> "SummaryWriter | None":
    try:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and wanted by the trainer alone
    except ImportError:
        log.warning("TensorBoard is not installed: the curves are in the text log only.")
        return None
    try:
        return SummaryWriter(str(folder), purge_step=first_step + 1)    # rows of steps that are taken again go
    except OSError as error:
        raise cannot_write(folder, error) from None
