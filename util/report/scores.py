"""scores.csv, the means over it, and its tables for the terminal."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from util.errors import UserError
from util.files import whole_file

# what test.py shows of the scored slices; with ALPNet's recorder a score of 0/0 is not left out of a mean, as published
RECORDERS = {"plain": ("dice",), "alpnet": ("dice", "precision_slices", "recall_slices")}


@dataclass(frozen=True)
class Score:
    """How a column of scores.csv is shown.

    Attributes:
        title: in words.
        better: 1 if more is better, -1 if less is, 0 if nearer to 0 is.
        digits: after the decimal point.
        unit: "" if the score has none.
    """

    title: str
    better: int = 1
    digits: int = 3
    unit: str = ""

    @property
    def heading(self) -> str:
        """Title with unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


SCORES = {
    "dice": Score("Dice"),
    "iou": Score("IoU"),
    "precision_slices": Score("Precision, scored slices"),
    "recall_slices": Score("Recall, scored slices"),
    "dice_volume": Score("Dice, whole volume"),
    "iou_volume": Score("IoU, whole volume"),
    "precision": Score("Precision"),
    "recall": Score("Recall"),
    "volume_error": Score("Relative volume error", better=0),
    "hd95": Score("HD95", better=-1, digits=1, unit="mm"),
    "assd": Score("ASSD", better=-1, digits=2, unit="mm"),
    "nsd_2mm": Score("Surface Dice at 2 mm"),
    "nsd_4mm": Score("Surface Dice at 4 mm"),
}


def write_scores(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write scores.csv: one row per organ and scan; not-a-number is an empty field."""
    with whole_file(file) as temporary, open(temporary, "w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _field(value) for name, value in row.items()})


def read_scores(file: Path) -> list[dict[str, str]]:
    """Rows of a scores.csv.

    Raises:
        UserError: no such file, not one that test.py wrote, cut short, or with a score that is no number.
    """
    try:
        text = file.read_text()
    except OSError as error:
        raise UserError(f"{file}: no scores there ({error.strerror}); run test.py first") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not a text file; run test.py again") from error
    rows = list(csv.DictReader(text.splitlines()))
    missing = [name for name in ("organ", "scan", "dice") if rows and name not in rows[0]]
    if missing or not rows:
        what = f"has no column {missing[0]!r}" if missing else "has no rows"
        raise UserError(f"{file}: {what}; it is no scores.csv of test.py, or it was cut short; run test.py again")
    for line, row in enumerate(rows, 2):
        last = line == len(rows) + 1
        if None in row or None in row.values() or (last and not text.endswith("\n")):
            raise UserError(f"{file}: line {line} is not whole, the file was cut short or damaged; run test.py again")
        for name in SCORES.keys() & row.keys():
            _number(row[name], f"{file}: line {line}, column {name}")
    return rows


def organ_table(
    columns: Mapping[str, Sequence[Mapping[str, Any]]], score: str = "dice", recorder: str = "plain"
) -> str:
    """A text table: one row per organ, one column per run, each cell mean ± standard deviation over scans.

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
    """Mean over organs of the mean over scans; NaN if nothing was scored."""
    organs = dict.fromkeys(row["organ"] for row in rows)
    means = [fmean(values) for organ in organs if (values := _values(rows, organ, score, recorder))]
    return fmean(means) if means else math.nan


def mean_and_deviation(values: Sequence[float]) -> str:
    """`0.712 ± 0.034`; the deviation needs two values."""
    if not values:
        return "-"
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "        ")


def support_spread(rows: Sequence[Mapping[str, Any]], score: str = "dice") -> list[dict[str, Any]]:
    """What the choice of the support scan makes: one row per organ, over the means that each support scan gives."""
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


def _values(rows: Sequence[Mapping[str, Any]], organ: str, score: str, recorder: str = "plain") -> list[float]:
    """Scores of one organ; not-a-number (nothing to find and nothing found) does not count, except in ALPNet's way."""
    found = [float(row[score]) for row in rows if row["organ"] == organ and row[score] not in ("", None)]
    return found if recorder == "alpnet" else [value for value in found if not math.isnan(value)]


def _number(text: str, where: str) -> float:
    try:
        return float(text or "nan")
    except ValueError as error:
        raise UserError(f"{where}: {text!r} is not a number; run test.py again") from error


def _field(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6f}"
    return value
