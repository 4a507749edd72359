"""Where a run reports: the console and a text file, from the main process only."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from tqdm import tqdm

from common.errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)
_PACKAGES = ("common", "data")      # whose messages are shown


class _ConsoleHandler(logging.Handler):
    """Prints above a progress bar instead of through it, and at once: into a file Python would hold lines back."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record))
        sys.stdout.flush()


def start_log(file: Path, *, is_main: bool) -> None:
    """Show the log on the console and append it, with its details, to `file`.

    Other processes than the main one only report errors.
    """
    handlers: list[logging.Handler] = [_ConsoleHandler(logging.INFO)]
    if is_main:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handlers.append(logging.FileHandler(file, encoding="utf-8"))
        except OSError as error:
            raise UserError(f"Cannot write {file}: {error.strerror}.", "Choose another folder with output.") from error
        handlers[-1].setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    for package in map(logging.getLogger, _PACKAGES):
        for old in list(package.handlers):
            package.removeHandler(old)
            old.close()
        package.setLevel(logging.DEBUG if is_main else logging.ERROR)
        for handler in handlers:
            package.addHandler(handler)


class Recorder:
    """Running means of named figures: to TensorBoard every time they are read, and back as numbers.

    Only the main process writes; under several processes the figures are those of its own share of each batch.
    """

    def __init__(self, folder: Path, *, is_main: bool, first_step: int):
        self.writer = _tensorboard_writer(folder, first_step) if is_main else None
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, figures: dict[str, Tensor]) -> None:
        """Count in one step's figures (scalar tensors on any device)."""
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().double()
        self.count += 1

    def read(self, step: int) -> dict[str, float]:
        """Means since the last call, written to TensorBoard at `step`."""
        means = {name: float(value) / self.count for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        if self.writer:
            for name, value in means.items():
                self.writer.add_scalar(name, value, step)
        return means

    def close(self) -> None:
        if self.writer:
            self.writer.close()


def _tensorboard_writer(folder: Path, first_step: int) -> "SummaryWriter | None":
    try:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and wanted by the trainer alone
    except ImportError:
        log.warning("TensorBoard is not installed: the curves are in the text log only.")
        return None
    return SummaryWriter(str(folder), purge_step=first_step)
