"""Rows of measured runs that are kept with the code: results/<data set>.csv, and the tables made of them.

A row is one method, fold, seed, organ and scan, with what its training cost. Rows are few columns of scores.csv, so a
report reads both.
"""

import contextlib
import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from util.errors import UserError
from util.evaluation.metrics import COLUMNS, HEADLINES
from util.files import write_text
from util.locks import claimed
from util.report import tables
from util.report.gather import Comparison, RunGroup
from util.report.scores import read_scores
from util.report.statistics import ALL, FEWEST, Difference, compare, spread
from util.report.tables import Table
from util.runs import folders
from util.tables import read_csv, write_csv

# what a row is of; a newer run of the same replaces it
KEY = ("dataset", "method", "encoder", "setting", "protocol", "pairing", "shots", "shots_of", "supports", "fold",
       "seed", "steps", "organ", "scan", "support")  # fmt: skip
COST = ("seconds", "cpu_seconds")  # of the training: by the clock, and of the processor
HEADER = (*KEY, *COST, "checkpoint_sha256", *HEADLINES)
SHOWN = ("dice", "voted_dice")  # scores whose means and differences a page shows


def keep(file: Path, runs: Iterable[Path]) -> int:
    """Add the rows of tested runs to the file, or replace them; returns how many there are. Several may do it at once.

    Raises:
        UserError: a run has no scores, or was not made by one checkpoint; the file is damaged.
    """
    added = [row for run in runs for row in rows_of(run)]
    with _alone(file):
        known = read_csv(file) if file.is_file() else []
        rows = {tuple(row[name] for name in KEY): row for row in [*known, *added]}
        write_csv(file, [rows[key] for key in sorted(rows, key=_in_order)])
    return len(rows)


def _alone(file: Path) -> contextlib.AbstractContextManager:
    """Nobody else changes the file meanwhile."""
    return claimed(file.parent, name=f".{file.name}.lock", wait=True, quiet=True)


def _in_order(key: Sequence[str]) -> list[tuple[int, str]]:
    """Numbers in the order of their size."""
    return [(len(text) if text.isdigit() else 0, text) for text in key]


def rows_of(run: Path) -> list[dict[str, str]]:
    """What is kept of a tested run."""
    found = []
    for row in read_scores(run / "scores.csv"):
        checkpoint = Path(row.get("checkpoint", ""))
        if not checkpoint.stem.startswith("step_"):
            raise UserError(f"{run}: tested {checkpoint or 'no checkpoint'}; rows are kept of single trainings")
        # what a command wrote is named from where it was typed, which holds the folder of the runs
        place = next(
            (home / checkpoint for home in (Path(), *run.parents) if (home / checkpoint).is_file()), checkpoint
        )
        cost = {"steps": str(int(checkpoint.stem.split("_")[1])), **cost_of(place.parent.parent)}
        found.append({name: {**row, **cost}.get(name) or "" for name in HEADER})
    return found


def cost_of(run: Path) -> dict[str, str]:
    """Seconds of a training, with those of the runs it went on from; empty where metrics.csv does not say."""
    seconds = processor = 0.0
    for part in _with_earlier(run):
        file = part / "metrics.csv"
        rows = read_csv(file, growing=True) if file.is_file() else []
        steps = [int(row["step"]) for row in rows]
        counts = [after - before for before, after in itertools.pairwise(steps)]
        counts = [*counts[:1], *counts] or steps  # the first row is of as many steps as the second
        seconds += sum(count / float(row["steps_per_second"]) for count, row in zip(counts, rows, strict=True))
        processor += float(rows[-1].get("cpu_seconds") or "nan") if rows else math.nan
    return {"seconds": f"{seconds:.0f}" if seconds else "", "cpu_seconds": f"{processor:.0f}".replace("nan", "")}


def _with_earlier(run: Path) -> Iterator[Path]:
    """A training run, and those that it went on from."""
    yield run
    while (run / "config.json").is_file() and (named := folders.configuration(run).get("resume")):
        path = Path(named)
        run = run.parent / (path.parent.parent if path.suffix == ".pt" else path).name
        yield run


def page_tables(comparison: Comparison) -> list[Table]:
    """What was run; then, of groups with the same runs, means of every organ, and paired tests of the best with every
    other where there are enough scans for one, of the method's own answers and of the voted ones."""
    found = [cost_table(comparison)]
    for where, part in side_by_side(comparison):
        means = tables.summary(part)
        known = [name for name in SHOWN if name in part.scores]
        shown = [tables.organ_scores(means, name) for name in known]
        tested = [(name, [d for d in with_the_best(part, name) if d.scans >= FEWEST]) for name in known]
        shown += [tables.differences(differences, name) for name, differences in tested if differences]
        found += [replace(table, title=f"{table.title}, {where}") for table in shown]
    return found


def with_the_best(comparison: Comparison, score: str) -> list[Difference]:
    """The differences between the group with the highest mean and every other."""
    best = max(comparison.groups, key=lambda group: spread(group, ALL, score).mean)
    return compare([(best, other) for other in comparison.groups if other is not best], [ALL], score)


def side_by_side(comparison: Comparison) -> list[tuple[str, Comparison]]:
    """Groups that differ in method and length alone, over the runs (fold, seed) that all of them have, the most runs
    first; and which runs these are. A group without any partner stands alone."""
    found = []
    conditions = [
        tuple(value for name, value in group.identity.items() if name != "steps") for group in comparison.groups
    ]
    for condition in dict.fromkeys(conditions):
        alike = [group for group, own in zip(comparison.groups, conditions, strict=True) if own == condition]
        for runs in sorted(dict.fromkeys(map(_runs, alike)), key=len, reverse=True):
            part = [
                replace(group, rows=[row for row in group.rows if (row["fold"], row["seed"]) in runs])
                for group in alike
                if _runs(group) >= runs
            ]
            if len(part) > 1 or len(alike) == 1:
                found.append((_named(part[0]), Comparison(comparison.dataset, part)))
    return found


def _runs(group: RunGroup) -> frozenset[tuple[str, str]]:
    return frozenset((row["fold"], row["seed"]) for row in group.rows)


def _named(group: RunGroup) -> str:
    """The setting, folds and seeds of a group's rows; folds with the same seeds stand together."""
    words = [f"setting {group.identity['setting']}"] if group.identity["setting"] else []
    seeds_of: dict[str, dict[str, None]] = {}
    for fold, seed in sorted(_runs(group)):
        seeds_of.setdefault(fold, {})[seed] = None
    for seeds in dict.fromkeys(map(tuple, seeds_of.values())):
        folds = [fold for fold, own in seeds_of.items() if tuple(own) == seeds]
        words += [f"{word}{'s' * (len(of) > 1)} {', '.join(of)}" for word, of in (("fold", folds), ("seed", seeds))]
    return ", ".join(words)


def cost_table(comparison: Comparison) -> Table:
    """One row per group: how much training is behind its rows, and its scores over whole volumes."""
    means = tables.summary(comparison)
    own = means[means["organ"] == ALL].set_index(["method", "score"])["mean"]
    volumes = [name for name in ("dice_volume", "voted_dice_volume") if name in comparison.scores]
    rows = [
        [
            group.label,
            *(", ".join(group.values(column)) or "–" for column in ("fold", "seed", "steps")),
            _minutes(group),
            *(f"{own[group.label, name]:.{COLUMNS[name].digits}f}" for name in volumes),
        ]
        for group in comparison.groups
    ]
    header = ["method", "folds", "seeds", "steps", "minutes", *(COLUMNS[name].heading for name in volumes)]
    note = "Minutes: processor time of one training, where it was recorded, else by the clock; the median over runs."
    return Table(f"What was run, {comparison.dataset}", note, header, rows)


def _minutes(group: RunGroup) -> str:
    known = {(row["fold"], row["seed"]): row.get("cpu_seconds") or row.get("seconds") for row in group.rows}
    seconds = [float(value) for value in known.values() if value]
    return f"{statistics.median(seconds) / 60:.0f}" if seconds else "–"


def write_into(page: Path, comparisons: Sequence[Comparison], source: str) -> None:
    """Write the tables between `<!-- tables of SOURCE -->` and `<!-- end of tables -->` of a Markdown page.

    Raises:
        UserError: the page has no such place.
    """
    begin, end = f"<!-- tables of {source} -->\n", "<!-- end of tables -->"
    made = "\n".join(
        tables.markdown(table).replace("### ", "#### ", 1) for one in comparisons for table in page_tables(one)
    )
    with _alone(page):
        head, found, rest = page.read_text(encoding="utf-8").partition(begin)
        if not found or end not in rest:
            raise UserError(f"{page}: has no place for them; write {begin.strip()} and {end} on lines of their own")
        write_text(page, f"{head}{begin}\n{made}\n{end}{rest.partition(end)[2]}")
