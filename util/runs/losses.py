"""Losses of a training run: checked, averaged, written to metrics.csv, shown in the progress bar."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from util.errors import UserError
from util.tables import append_row


class LossesLog:
    """Collects the losses of every step and reports their means every `every` steps.

    Values stay on the device between reports, so a GPU is not made to wait; on a CPU every step is checked at once.

    Args:
        file: metrics.csv, or None to write nothing.
        every: steps between rows.
        log_scalar: called with (name, value, step) at a tenth of the rows; Sacred rewrites its file at every heartbeat.
    """

    def __init__(self, file: Path | None, every: int, log_scalar: Callable[[str, float, int], None]) -> None:
        self.file, self.every, self.log_scalar = file, every, log_scalar
        self.means: dict[str, float] = {}
        self._sums: dict[str, Tensor] = {}
        self._count, self._rows, self._start = 0, 0, time.perf_counter()

    def add(self, step: int, losses: Mapping[str, Tensor], learning_rate: float, last: bool = False) -> bool:
        """Take the losses of one step; True if a row was written.

        Raises:
            UserError: a loss is NaN or infinite.
        """
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        if next(iter(losses.values())).device.type == "cpu":
            self.check(step)
        if not last and step % self.every:
            return False
        self.check(step)
        self._write(step, learning_rate)
        return True

    def check(self, step: int) -> None:
        """Raise UserError if any loss since the last row was not finite."""
        if self._sums and not torch.isfinite(torch.stack(list(self._sums.values()))).all():
            bad = [name for name, value in self._sums.items() if not math.isfinite(value)]
            raise UserError(
                f"step {step}: the loss became NaN or infinite ({', '.join(bad)}); training stopped, the last good "
                "checkpoint stays; try a smaller train.learning_rate, or train.precision=float32"
            )

    @property
    def text(self) -> str:
        """The last means in a line."""
        return " ".join(f"{name} {value:.3f}" for name, value in self.means.items())

    def _write(self, step: int, learning_rate: float) -> None:
        now = time.perf_counter()
        self.means = {name: value.item() / self._count for name, value in self._sums.items()}
        row = {
            "step": step,
            **self.means,
            "learning_rate": learning_rate,
            "steps_per_second": self._count / (now - self._start),
        }
        if self.file is not None:
            append_row(self.file, row)
        if self._rows % 10 == 0:
            for name, value in self.means.items():
                self.log_scalar(name, value, step)
        self._sums, self._count, self._start, self._rows = {}, 0, now, self._rows + 1
