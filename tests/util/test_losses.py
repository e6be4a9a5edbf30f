"""Losses of a run: means, one row for several steps, any number of writers."""

import csv

import pytest
import torch

from util.errors import UserError
from util.runs.losses import LossesLog, csv_rows, sacred_scalars


class Board:
    """A writer of one's own, and what Sacred calls a run."""

    def __init__(self) -> None:
        self.rows = {}

    def write(self, step, values) -> None:
        self.rows[step] = dict(values)

    def log_scalar(self, name, value, step) -> None:
        self.rows.setdefault(step, {})[name] = value


def losses(value: float) -> dict[str, torch.Tensor]:
    return {"loss": torch.tensor(value), "query": torch.tensor(value / 2)}


def test_every_writer_gets_the_means_of_every_row(tmp_path):
    board = Board()
    log = LossesLog([csv_rows(tmp_path / "metrics.csv"), board.write], every=2)
    written = [log.add(step, losses(step), 0.1, last=step == 5) for step in range(1, 6)]
    assert written == [False, True, False, True, True]
    assert {step: row["loss"] for step, row in board.rows.items()} == {2: 1.5, 4: 3.5, 5: 5.0}
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [(row["step"], row["query"], row["learning_rate"]) for row in rows] == [
        ("2", "0.75", "0.1"), ("4", "1.75", "0.1"), ("5", "2.5", "0.1"),
    ]  # fmt: skip
    assert log.text == "loss 5.000 query 2.500"


def test_sacred_gets_every_tenth_row():
    run = Board()
    log = LossesLog([sacred_scalars(run)], every=1)
    for step in range(1, 22):
        log.add(step, losses(step), 0.1)
    assert {step: row["loss"] for step, row in run.rows.items()} == {1: 1.0, 11: 11.0, 21: 21.0}


def test_a_loss_that_is_not_finite_is_named():
    log = LossesLog([], every=10)
    with pytest.raises(UserError, match=r"step 1: the loss became NaN or infinite \(query\)"):
        log.add(1, {"loss": torch.tensor(1.0), "query": torch.tensor(float("nan"))}, 0.1)


def test_rows_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match=r"metrics.csv: cannot be written"):
        LossesLog([csv_rows(tmp_path / "gone/metrics.csv")], every=1).add(1, losses(1), 0.1)
