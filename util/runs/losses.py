"""Losses of a training run: checked, averaged, shown in the progress bar, and handed to writers.

Those of TensorBoard and its like are in util/runs/curves.py.
"""

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from util.errors import UserError
from util.tables import append_row

# takes the step and the values of one row: mean losses by name, learning rate, steps per second, processor time so far
Writer = Callable[[int, Mapping[str, float]], None]


def csv_rows(file: Path) -> Writer:
    """Appends every row to a CSV file; the first row brings the header."""
    return lambda step, values: append_row(file, {"step": step, **values})


def sacred_scalars(run: Any) -> Writer:
    """Gives every tenth row to Sacred, whose `run.log_scalar` writes all of them again at every heartbeat."""
    rows = itertools.count()

    def write(step: int, values: Mapping[str, float]) -> None:
        if next(rows) % 10 == 0:
            for name, value in values.items():
                run.log_scalar(name, value, step)

    return write


class LossesLog:
    """Collects the losses of every step and gives their means to the writers every `every` steps.

    Values stay on the device between rows, so a GPU is not made to wait. On a CPU every step is checked at once.
    """

    def __init__(self, writers: Sequence[Writer], every: int) -> None:
        self.writers, self.every = writers, every
        self.means: dict[str, float] = {}
        self._sums: dict[str, Tensor] = {}
        self._count, self._start = 0, time.perf_counter()

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
        now = time.perf_counter()
        self.means = {name: value.item() / self._count for name, value in self._sums.items()}
        speed = {"steps_per_second": self._count / (now - self._start), "cpu_seconds": time.process_time()}
        for writer in self.writers:
            writer(step, {**self.means, "learning_rate": learning_rate, **speed})
        self._sums, self._count, self._start = {}, 0, now
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
        """The last means in one line."""
        return " ".join(f"{name} {value:.3f}" for name, value in self.means.items())
