"""scores.csv, the means over it, and its tables for the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas

from util.errors import UserError
from util.evaluation.metrics import COLUMNS
from util.tables import read_csv, text_table, write_csv

# what test.py shows of the scored slices; with ALPNet's recorder a score of 0/0 is not left out of a mean, as published
RECORDERS = {"plain": ("dice",), "alpnet": ("dice", "precision_slices", "recall_slices")}
SAMPLE = ("organ", "scan", "fold", "seed", "support")  # columns that tell the rows of a method apart

Rows = Sequence[Mapping[str, Any]]


def write_scores(file: Path, rows: Rows) -> None:
    """Write scores.csv: one row for every organ and scan; not-a-number is an empty field."""
    write_csv(file, rows, digits=6)


def read_scores(file: Path) -> list[dict[str, str]]:
    """Rows of a scores.csv.

    Raises:
        UserError: no such file, not one that test.py wrote, cut short, or with a score that cannot be.
    """
    rows = read_csv(file)
    missing = [name for name in ("organ", "scan", "dice") if rows and name not in rows[0]]
    if missing or not rows:
        what = f"has no column {missing[0]!r}" if missing else "has no rows"
        raise UserError(f"{file}: {what}; it is no scores.csv of test.py, or it was cut short; run test.py again")
    for line, row in enumerate(rows, 2):
        for name in COLUMNS.keys() & row.keys():
            try:
                is_score = not row[name] or COLUMNS[name].can_be(float(row[name]))
            except ValueError:
                is_score = False
            if not is_score:
                where = f"{file}: line {line}, column {name}"
                raise UserError(f"{where}: {row[name]!r} is not a number that this score can be; run test.py again")
    return rows


def as_frame(rows: Rows) -> pandas.DataFrame:
    """Rows of scores.csv with scores as numbers; of what an older file lacks, scores are NaN and the rest is ""."""
    frame = pandas.DataFrame(rows)
    frame = frame.reindex(columns=list(dict.fromkeys([*frame, *SAMPLE, *COLUMNS])))
    return frame.assign(
        **{name: pandas.to_numeric(frame[name]) for name in COLUMNS},
        **{name: frame[name].astype(object).fillna("") for name in SAMPLE},
    )


def organ_table(columns: Mapping[str, Rows], score: str = "dice", recorder: str = "plain") -> str:
    """A text table: one row per organ, one column per run, each cell mean ± standard deviation over n scans.

    A scan counts once for every support, and not at all without a score (nothing to find, nothing found). The last row
    is the mean over organs of their means, as the papers report it.
    """
    organs = list(dict.fromkeys(row["organ"] for rows in columns.values() for row in rows))
    cells = {}
    for name, rows in columns.items():
        scores = _by_organ(rows, score, recorder)
        texts = scores.agg(mean_and_deviation).astype(str) + " (n = " + scores.size().astype(str) + ")"
        cells[name] = [*texts.reindex(organs).fillna("-"), f"{overall_mean(rows, score, recorder):.3f}"]
    return pandas.DataFrame(cells, index=[*organs, "mean"]).rename_axis(columns=score).to_string()


def overall_mean(rows: Rows, score: str = "dice", recorder: str = "plain") -> float:
    """Mean over organs of the mean over scans; NaN if nothing was scored."""
    means = _by_organ(rows, score, recorder).agg(lambda values: values.mean(skipna=False))
    return float(means.mean(skipna=False))


def mean_and_deviation(values: pandas.Series) -> str:
    """`0.712 ± 0.034`; the deviation needs two values."""
    deviation = f" ± {values.std(skipna=False):.3f}" if len(values) > 1 else " " * 8
    return f"{values.mean(skipna=False):.3f}{deviation}"


def support_spread(rows: Rows) -> str:
    """A text table of what the choice of the support scan makes: one row per organ, over the means of each support."""
    means = as_frame(rows).dropna(subset=["dice"]).groupby(["organ", "support"], sort=False)["dice"].mean()
    return text_table(
        [
            {
                "organ": organ,
                "supports": len(own),
                "mean ± std over them": mean_and_deviation(own),
                "worst": f"{own.min():.3f} (scan {own.idxmin()[1]})",
                "best": f"{own.max():.3f} (scan {own.idxmax()[1]})",
            }
            for organ, own in means.groupby("organ", sort=False)
        ]
    )


def _by_organ(rows: Rows, score: str, recorder: str) -> Any:
    """Scores grouped by organ; not-a-number (nothing to find and nothing found) only counts in ALPNet's way."""
    values = as_frame(rows).set_index("organ")[score]
    return (values if recorder == "alpnet" else values.dropna()).groupby(level="organ", sort=False)
