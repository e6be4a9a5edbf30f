"""What voting gains and costs, from runs of test.py: own against voted answer, time and memory, a picture.

    bash script/reproduce.sh adnet CHAOST2 encoder=efficientnet_lite0 train.steps=3000
    python benchmarks/voting.py runs/adnet_CHAOST2_fold*/*
    python benchmarks/voting.py runs/odds_PHANTOM_fold0/3 --picture docs/voting.png --organ "left kidney"

Folders without a scores.csv are passed over. Time is processor time of one thread for the first scan of the first run.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas
import torch
from matplotlib.figure import Figure
from skimage.segmentation import find_boundaries

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from supervoxels import partitions
from util.commands import parser
from util.evaluation.metrics import VOTED
from util.evaluation.voting import SIZES, Pieces, stretched, vote
from util.files import whole_file
from util.memory import peak_gib
from util.pictures import grey, upright
from util.report.scores import as_frame, read_scores
from util.volume import Volume, read_volume

CPU = torch.device("cpu")
SHOWN = ("dice", "dice_volume", "hd95")
PIECES = 4.8  # ml, of the pieces in the picture


def gains(runs: list[Path]) -> pandas.DataFrame:
    """Own and voted scores: mean ± standard deviation over scans, and the mean over organs of the means."""
    frame = as_frame([row for run in runs for row in read_scores(run / "scores.csv")])
    columns = [kind + name for name in SHOWN for kind in ("", VOTED)]
    organs = frame.groupby("organ", sort=False)[columns]
    means, deviations = organs.mean(), organs.std()
    text = means.map("{:.3f}".format) + " ± " + deviations.map("{:.3f}".format)
    return pandas.concat([text, means.mean().map("{:.3f}".format).to_frame("mean").T])


def scored(run: Path, organ: str | None) -> tuple[pandas.Series, Volume, dict]:
    """The first row of a run, or of an organ; its scan; and the run's files."""
    rows = pandas.DataFrame(read_scores(run / "scores.csv"))
    row = rows[rows["organ"] == (organ or rows["organ"][0])].iloc[0]
    files = json.loads((run / "scans.json").read_text("utf-8"))
    return row, read_volume(Path(files["scans"][row["scan"]]["image"])), files


def cut(scan: Volume) -> Pieces:
    """The pieces of a scan that vote."""
    return Pieces(stretched(scan.array.astype(np.float32)), scan.geometry.spacing[::-1], partitions)


def cost(run: Path) -> str:
    """One sentence: what cutting a scan and voting on one organ take."""
    row, scan, _ = scored(run, None)
    probability = 0.2 + 0.6 * read_volume(run / row["prediction"]).array.astype(np.float32)
    start, before = time.process_time(), peak_gib(CPU)
    pieces = cut(scan)
    done = time.process_time()
    vote(probability[:, : scan.array.shape[1]], pieces, np.ones(len(SIZES)), range(len(scan.array)))
    end = time.process_time()
    return (
        f"{scan.array.shape} voxels: {done - start:.2f} s to cut the scan, {end - done:.2f} s to vote on an organ, "
        f"{peak_gib(CPU) - before:.2f} GB"
    )


def draw(run: Path, organ: str | None, file: Path) -> None:
    """Image, own answer, pieces, voted answer, truth, on the slice where the organ is largest."""
    row, scan, files = scored(run, organ)
    truth = read_volume(Path(files["scans"][row["scan"]]["label"])).array == files["organs"][row["organ"]]
    z = int(truth.sum((1, 2)).argmax())
    pieces = cut(scan)
    labels = pieces.parents[SIZES.index(PIECES)][pieces.finest[z]]
    own, voted = (read_volume(run / row[kind + "prediction"]).array[z] > 0 for kind in ("", VOTED))
    panels = {
        "image": None,
        f"own answer, Dice {float(row['dice']):.2f}": own,
        f"pieces of {PIECES} ml": find_boundaries(labels, mode="inner"),
        f"voted answer, Dice {float(row['voted_dice']):.2f}": voted,
        "truth": truth[z],
    }
    figure = Figure(figsize=(3 * len(panels), 3.3), layout="constrained")
    for axis, (title, mask) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axis.imshow(upright(grey(scan.array[z]), scan.geometry), cmap="gray")
        if mask is not None:
            shown = np.ma.masked_equal(upright(mask, scan.geometry), False)
            axis.imshow(shown, cmap="autumn", alpha=0.45, interpolation="nearest")
        axis.set_title(title, fontsize=11)
        axis.set_axis_off()
    with whole_file(file) as temporary:
        figure.savefig(temporary, dpi=64, format="png")


def main() -> None:
    """Command line."""
    command = parser(__doc__)
    command.add_argument("runs", nargs="+", type=Path, help="folders of test.py's runs")
    command.add_argument("--picture", type=Path, metavar="FILE", help="PNG to draw, of the first scan of the first run")
    command.add_argument("--organ", help="of the picture (default: the first)")
    options = command.parse_args()
    runs = [run for run in options.runs if (run / "scores.csv").is_file()]
    print(gains(runs).to_string())
    print(cost(runs[0]))
    if options.picture:
        draw(runs[0], options.organ, options.picture)


if __name__ == "__main__":
    main()
