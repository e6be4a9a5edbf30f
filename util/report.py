"""From scores to what people look at: tables and pictures. `python -m util.report RUN [RUN ...]` compares runs."""

import argparse
import csv
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from util.errors import UserError
from util.files import whole_file

# what test.py shows of the scored slices; with ALPNet's recorder a score of 0/0 is not left out of a mean, as published
SCORES = {"plain": ("dice",), "alpnet": ("dice", "precision_slices", "recall_slices")}


def write_scores(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write scores.csv: one row an organ and scan; not-a-number is an empty field."""
    with whole_file(file) as temporary, open(temporary, "w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _field(value) for name, value in row.items()})


def read_scores(file: Path) -> list[dict[str, str]]:
    """Rows of a scores.csv.

    Raises:
        UserError: no such file.
    """
    try:
        with open(file, newline="") as handle:
            return list(csv.DictReader(handle))
    except OSError as error:
        raise UserError(f"{file}: no scores there ({error.strerror}); run test.py first") from error


def organ_table(
    columns: Mapping[str, Sequence[Mapping[str, Any]]], score: str = "dice", recorder: str = "plain"
) -> str:
    """A text table: a row an organ, a column a run, each cell mean ± standard deviation over scans.

    The last row is the mean over organs of their means, as the papers report it.
    """
    organs = list(dict.fromkeys(row["organ"] for rows in columns.values() for row in rows))
    cells = {name: {organ: _values(rows, organ, score, recorder) for organ in organs} for name, rows in columns.items()}
    width = max(len(organ) for organ in [*organs, "mean"])
    widths = {name: max(len(name), 13) for name in columns}
    lines = ["  ".join([f"{score:<{width}}", *(f"{name:>{widths[name]}}" for name in columns)])]
    for organ in organs:
        texts = [f"{mean_and_deviation(cells[name][organ]):>{widths[name]}}" for name in columns]
        lines.append("  ".join([f"{organ:<{width}}", *texts]))
    means = [f"{overall_mean(columns[name], score, recorder):>{widths[name]}.3f}" for name in columns]
    return "\n".join([*lines, "  ".join([f"{'mean':<{width}}", *means])])


def overall_mean(rows: Sequence[Mapping[str, Any]], score: str = "dice", recorder: str = "plain") -> float:
    """Mean over organs of the mean over scans; NaN where nothing was scored."""
    organs = dict.fromkeys(row["organ"] for row in rows)
    means = [fmean(values) for organ in organs if (values := _values(rows, organ, score, recorder))]
    return fmean(means) if means else math.nan


def mean_and_deviation(values: Sequence[float]) -> str:
    """`0.712 ± 0.034`; the deviation needs two values."""
    if not values:
        return "-"
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "        ")


def support_spread(rows: Sequence[Mapping[str, Any]], score: str = "dice") -> list[dict[str, Any]]:
    """What the choice of the support scan makes: an organ a row, over the means that each support scan gives."""
    table = []
    for organ in dict.fromkeys(row["organ"] for row in rows):
        own = [row for row in rows if row["organ"] == organ]
        means = {s: _values([r for r in own if r["support"] == s], organ, score) for s in {r["support"] for r in own}}
        by_support = sorted((fmean(values), support) for support, values in means.items() if values)
        if by_support:
            (low, worst), (high, best) = by_support[0], by_support[-1]
            spread = mean_and_deviation([mean for mean, _ in by_support])
            ends = {"worst": f"{low:.3f} (scan {worst})", "best": f"{high:.3f} (scan {best})"}
            table.append({"organ": organ, "supports": len(by_support), "mean ± std over them": spread, **ends})
    return table


def draw_contours(file: Path, title: str, rows: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]]) -> None:
    """A picture of one organ: a row a scan, columns image, truth, prediction.

    Args:
        file: PNG to write.
        title: over the picture.
        rows: (text, image `(H, W)`, truth `(H, W)`, prediction `(H, W)`) of one slice each.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(rows), 3, figsize=(9, 3 * len(rows)), squeeze=False, layout="constrained")
    for (text, image, truth, prediction), line in zip(rows, axes, strict=True):
        low, high = np.percentile(image, (1, 99.5))
        for axis, mask, colour in zip(line, (None, truth, prediction), (None, "lime", "orange"), strict=True):
            axis.imshow(image, cmap="gray", vmin=low, vmax=high)
            axis.set_axis_off()
            if mask is not None and mask.any():
                axis.contour(mask, levels=[0.5], colors=colour, linewidths=1.2)
        line[0].set_title(text, fontsize=9, loc="left")
        line[1].set_title("truth", fontsize=9, color="green")
        line[2].set_title("prediction", fontsize=9, color="darkorange")
    figure.suptitle(title, fontsize=11)
    with whole_file(file) as temporary:
        figure.savefig(temporary, dpi=110)
    pyplot.close(figure)


def _values(rows: Sequence[Mapping[str, Any]], organ: str, score: str, recorder: str = "plain") -> list[float]:
    """Scores of one organ; not-a-number (nothing to find and nothing found) does not count, except in ALPNet's way."""
    found = [float(row[score]) for row in rows if row["organ"] == organ and row[score] not in ("", None)]
    return found if recorder == "alpnet" else [value for value in found if not math.isnan(value)]


def _field(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6f}"
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the scores.csv of several runs in one table."""
    parser = argparse.ArgumentParser(
        prog="python -m util.report", description="Compare runs: mean ± std of every organ."
    )
    parser.add_argument(
        "runs", nargs="+", metavar="[NAME=]RUN", help="a folder with scores.csv, with a heading if you like"
    )
    parser.add_argument("--score", default="dice", help="column of scores.csv (default: dice)")
    options = parser.parse_args(arguments)
    try:
        named = [run.split("=", 1) if "=" in run else (run, run) for run in options.runs]
        print(organ_table({name: read_scores(Path(folder) / "scores.csv") for name, folder in named}, options.score))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
