"""Thresholds in training and in evaluation: `python benchmarks/thresholds.py RUN ... --data-root DATA`.

A method of the Q-Net family reads the threshold t off the image. If t is one thing in training and another in
evaluation, the method predicts far too much or nothing. The picture shows t of every training (metrics.csv, the mean of
20 rows) and, for each of its checkpoints, t of the slices of the fold's query scans in evaluation mode: the mean and
the range of nine tenths of the slices.
"""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import config
import models
from dataloaders.scans import read_scan
from util import checkpoints
from util.commands import guarded, parser
from util.dataset import choose_fold
from util.errors import UserError
from util.report.figures import PALETTE, read_curve

ROWS = 20  # of metrics.csv, whose mean is drawn
FAMILY = ("qnet", "rpt", "pami")  # their `encode` gives the thresholds `(N,)` of the images at last


@torch.inference_mode()
def evaluated(file: Path, root: Path) -> tuple[int, np.ndarray]:
    """Step of a checkpoint, and its thresholds `(slices,)` of the query scans."""
    content = checkpoints.load_checkpoint(file)
    trained = models.restore(content, file)
    dataset, fold = trained.options["dataset"], trained.options["fold"]
    found = []
    for number in choose_fold(config.FOLDS, dataset, fold).query:
        slices = torch.from_numpy(read_scan(config.DATASETS[dataset], root, number).image)[:, None]
        found += [trained.method.encode(part)[-1] for part in slices.split(8)]
    return content["step"], torch.cat(found).numpy()


def draw(runs: Sequence[Path], root: Path, picture: Path) -> int:
    """Draw the runs, print the numbers; returns 0.

    Raises:
        UserError: a run has no thresholds, or too few rows.
    """
    figure = Figure(figsize=(6.4, 3.2), dpi=110, layout="constrained")
    axis = figure.subplots()
    for run, colour in zip(runs, itertools.cycle(PALETTE), strict=False):
        steps, values = read_curve(run / "metrics.csv", "t")
        if len(values) < ROWS:
            raise UserError(f"{run}: has {len(values)} rows with t; name longer trainings of {', '.join(FAMILY)}")
        smooth = np.convolve(values, np.ones(ROWS) / ROWS, mode="valid")
        method = run.resolve().parent.name.split("_")[0]
        axis.plot(steps[ROWS - 1 :], smooth, color=colour, label=f"{method}, training")
        for file in sorted((run / "checkpoints").glob("step_*.pt")):
            step, found = evaluated(file, root)
            low, high = np.quantile(found, (0.05, 0.95))
            axis.errorbar(step, found.mean(), [[found.mean() - low], [high - found.mean()]], fmt="o", color=colour)
            print(f"{method}, step {step}: t {values[-ROWS:].mean():.2f} in the last rows of training, in evaluation "
                  f"{found.mean():.2f} ({low:.2f} to {high:.2f})")  # fmt: skip
    axis.set(xlabel="step", ylabel="threshold t; points: evaluation")
    axis.legend(fontsize=8)
    figure.savefig(picture)
    print(picture)
    return 0


def main() -> int:
    """Command line."""
    command = parser(__doc__)
    command.add_argument("runs", type=Path, nargs="+", help="folders of trainings of " + ", ".join(FAMILY))
    command.add_argument("--data-root", type=Path, default=Path("data"), help="folder of the data")
    command.add_argument("--picture", type=Path, default=Path("thresholds.png"), help="PNG to write")
    options = command.parse_args()
    return guarded(lambda: draw(options.runs, options.data_root, options.picture))


if __name__ == "__main__":
    sys.exit(main())
