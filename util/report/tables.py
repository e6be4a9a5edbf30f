"""Tables of a report, and how they are written: Markdown, LaTeX."""

import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from util.evaluation.metrics import COLUMNS
from util.report.gather import Comparison
from util.report.statistics import ALL, FEWEST, Difference, spread


@dataclass(frozen=True)
class Table:
    """A table of texts; the first column are words, the others numbers.

    Attributes:
        title: over it.
        note: what its numbers are.
        header: one text per column.
        rows: as many texts each.
        best: (row, column) of the best value of a column.
    """

    title: str
    note: str
    header: list[str]
    rows: list[list[str]]
    best: frozenset[tuple[int, int]] = frozenset()

    @property
    def words(self) -> set[int]:
        """Columns of words, which stand to the left; numbers stand to the right."""
        columns = enumerate(zip(*self.rows, strict=True))
        return {0} | {at for at, cells in columns if all(cell[:1].isalpha() for cell in cells)}

    def marked(self, escape: Callable[[str], str], bold: str) -> list[list[str]]:
        """The rows escaped, the best in bold."""
        return [
            [bold.format(escape(cell)) if (r, c) in self.best else escape(cell) for c, cell in enumerate(row)]
            for r, row in enumerate(self.rows)
        ]


def summary(comparison: Comparison) -> pandas.DataFrame:
    """Every mean: columns dataset, method, organ (the last is ALL), score, and those of `Spread`."""
    return pandas.DataFrame(
        {
            **{"dataset": comparison.dataset, "method": group.label, "organ": organ, "score": score},
            **asdict(spread(group, organ, score)),
        }
        for group in comparison.groups
        for score in comparison.scores
        for organ in [*comparison.organs, ALL]
    )


def organ_scores(means: pandas.DataFrame, score: str) -> Table:
    """One row per method, one column per organ; the last column is their mean. `means` is a `summary`."""
    own = means[means["score"] == score]
    return _grid(f"{COLUMNS[score].heading}, every organ", own, "method", own["organ"].unique())


def all_scores(means: pandas.DataFrame) -> Table:
    """One row per score, one column per method, each the mean over organs."""
    own = means[means["organ"] == ALL]
    return _grid("All scores, mean over organs", own, "score", own["method"].unique())


def _grid(title: str, means: pandas.DataFrame, by: str, columns: Sequence[str]) -> Table:
    """Means as text: one kind of spread in a table, over runs if all have several of them."""
    known = means[means["runs"] > 0]
    over_runs = (known["runs"] > 1).all()
    counts = known["runs" if over_runs else "scans"]
    number = "–".join(dict.fromkeys((str(counts.min()), str(counts.max()))))
    kind = f"{number} runs (a fold with a seed each)" if over_runs else f"{number} scan{'s' * (number != '1')}"
    parts = zip(means["mean"], means["over_runs" if over_runs else "over_scans"], means["score"], strict=True)
    cells = [_cell(*part) for part in parts]
    if counts.nunique() > 1:
        kind += ", how many in brackets"
        cells = [f"{cell} ({n})" for cell, n in zip(cells, means[counts.name], strict=True)]
    lines = means.assign(text=cells, best=_best(means)).groupby(by, sort=False)
    return Table(
        title,
        f"Mean ± standard deviation over {kind}; the best in bold.",
        [by, *columns],
        [[COLUMNS[name].heading if by == "score" else name, *line["text"]] for name, line in lines],
        frozenset((r, 1 + c) for r, (_, line) in enumerate(lines) for c in np.flatnonzero(line["best"])),
    )


def _cell(mean: float, deviation: float, score: str) -> str:
    digits = COLUMNS[score].digits
    if math.isnan(mean):
        return "–"
    text = f"{mean:.{digits}f}".replace("-", "−")
    return text if math.isnan(deviation) else f"{text} ± {deviation:.{digits}f}"


def _best(means: pandas.DataFrame) -> pandas.Series:
    """True for the best mean, as printed, of each score and organ; nowhere if there is nothing to compare."""
    metrics = [COLUMNS[name] for name in means["score"]]
    worth = means["mean"].copy()
    worth[:] = [metric.worth(round(mean, metric.digits)) for metric, mean in zip(metrics, worth, strict=True)]
    rivals = worth.groupby([means["score"], means["organ"]])
    return (worth == rivals.transform("max")) & (rivals.transform("count") > 1)


def differences(found: Sequence[Difference], score: str) -> Table:
    """One row per comparison: difference, interval, p before and after correction."""
    title = COLUMNS[score]
    rows = [
        [f"{d.first} − {d.second}", "all" if d.organ == ALL else d.organ, *_difference(d, title.digits)] for d in found
    ]
    tests = sum(not math.isnan(d.p) for d in found)
    note = (
        "Paired by organ, scan, fold and seed; the pairs of a scan depend on each other, so they are averaged and each "
        "scan counts once. 95 % bootstrap interval over scans; Wilcoxon signed rank test, two-sided; Holm's "
        f"correction over the {tests} test{'s' * (tests != 1)} of this table. Fewer than {FEWEST} scans cannot give "
        "p < 0.05 and are not tested."
    )
    header = ["difference", "organ", "pairs", "scans", "mean", "95 % interval", "p", "p (Holm)"]
    return Table(f"{title.heading}, differences between methods", note, header, rows)


def _difference(d: Difference, digits: int) -> list[str]:
    counts = [str(d.pairs), str(d.scans)]
    if not d.scans:
        return [*counts, "no pair in common", "–", "–", "–"]
    if math.isnan(d.p):
        return [*counts, _signed(d.mean, digits), "–", "too few scans", "–"]
    interval = f"{_signed(d.low, digits)} to {_signed(d.high, digits)}"
    p_texts = ("< 0.001" if p < 0.001 else f"{p:.3f}" for p in (d.p, d.p_holm))
    return [*counts, _signed(d.mean, digits), interval, *p_texts]


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def beside_published(comparison: Comparison) -> Table | None:
    """Our Dice in percent, each method's published rows below it; None if nothing was published on the data set."""
    settings = {group.identity["setting"] for group in comparison.groups}
    known = [
        row
        for row in published()["rows"]
        if row["dataset"] == comparison.dataset and (str(row["setting"]) in settings or "" in settings)  # "": not known
    ]
    if not known:
        return None
    organs, cited, rows = [*comparison.organs, ALL], {}, []
    methods = list(dict.fromkeys(group.method for group in comparison.groups))
    for method in [*methods, *dict.fromkeys(row["method"] for row in known if row["method"] not in methods)]:
        for group in comparison.groups:
            if group.method == method:
                means = [spread(group, organ, "dice").mean for organ in organs]
                cells = ["–" if math.isnan(mean) else f"{100 * mean:.2f}" for mean in means]
                rows.append([f"{group.label}, ours", group.identity["setting"] or "–", *cells, "ours"])
        found = [row for row in known if row["method"] == method]
        for row in found:
            numbers = ", ".join(f"[{cited.setdefault(name, len(cited) + 1)}]" for name in row["sources"])
            cells = [f"{row['dice'][organ]:.2f}" if organ in row["dice"] else "–" for organ in organs]
            rows.append([f"{row['name']}, published", str(row["setting"]), *cells, numbers])
        if not found:
            rows.append([f"{method}, published", "–", *["–"] * len(organs), "none found"])
    sources = "; ".join(f"[{number}] {published()['sources'][name]}" for name, number in cited.items())
    note = f"Dice in %. {published()['caveat']} Sources: {sources}."
    return Table("Beside published numbers", note, ["method", "setting", *organs, "source"], rows)


@functools.cache
def published() -> dict[str, Any]:
    """Published numbers, from published.json.

    `rows`: one of a published table each, with the method as we call it ("" if it is none of ours) and as the paper
    does, and the Dice that are known, organ or "mean" -> percent; `sources`: where each was found; `caveat`: why theirs
    and ours are not the same measurement.
    """
    return json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))


def provenance(comparison: Comparison) -> Table:
    """Where the numbers come from: one row per run."""
    columns = ("fold", "seed", "encoder", "protocol", "pairing", "checkpoint_sha256")
    rows = [
        [group.label, *(", ".join(group.values(column, run)) or "–" for column in columns), run]
        for group in comparison.groups
        for run in group.values("run")
    ]
    header = ["method", "fold", "seed", "encoder", "protocol", "pairing", "checkpoint", "run"]
    return Table("Runs", "The checkpoint is named by the first digits of its SHA-256.", header, rows)


def markdown(table: Table) -> str:
    """The table in GitHub's Markdown."""
    cells = table.marked(lambda cell: cell.replace("|", "\\|"), "**{}**")
    rule = ["---" if at in table.words else "---:" for at in range(len(table.header))]
    lines = ["| " + " | ".join(row) + " |" for row in (table.header, rule, *cells)]
    return "\n".join([f"### {table.title}", "", *lines, "", table.note, ""])


def latex(table: Table) -> str:
    """The table for LaTeX with booktabs."""
    return (
        pandas.DataFrame(table.marked(_tex, "\\textbf{{{}}}"), columns=[_tex(text) for text in table.header])
        .style.hide(axis="index")
        .to_latex(
            column_format="".join("l" if at in table.words else "r" for at in range(len(table.header))),
            caption=f"{_tex(table.title)}. {_tex(table.note)}",
            position_float="centering",
            hrules=True,
        )
    )


def _tex(text: str) -> str:
    replaced = {"\\": r"\textbackslash{}", "±": r"$\pm$", "−": r"$-$", "–": "--", "<": r"$<$", "²": r"$^2$"}
    replaced |= {character: f"\\{character}" for character in "&%$#_{}"}
    return "".join(replaced.get(character, character) for character in text)
