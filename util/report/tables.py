"""Tables of a report, and how they are written: Markdown, LaTeX, CSV."""

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from util.files import whole_file
from util.report import published
from util.report.gather import Comparison, Group
from util.report.scores import SCORES
from util.report.statistics import ALL, FEWEST, Difference, Spread, spread


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
    best: frozenset[tuple[int, int]] = field(default_factory=frozenset)

    @property
    def words(self) -> set[int]:
        """Columns of words, which stand to the left; numbers stand to the right."""
        return {0} | {
            at for at, cells in enumerate(zip(*self.rows, strict=True)) if all(c[:1].isalpha() for c in cells)
        }


def organ_scores(comparison: Comparison, score: str) -> Table:
    """One row per group, one column per organ; the last column is their mean."""
    organs = [*comparison.organs, ALL]
    cells = [[spread(group, organ, score) for organ in organs] for group in comparison.groups]
    texts, note = _texts(cells, [[score] * len(organs)] * len(cells))
    rows = [[group.label, *line] for group, line in zip(comparison.groups, texts, strict=True)]
    best = {(r, 1 + c) for c, column in enumerate(zip(*cells, strict=True)) for r in _best(column, score)}
    return Table(f"{SCORES[score].heading}, every organ", note, ["method", *organs], rows, frozenset(best))


def all_scores(comparison: Comparison) -> Table:
    """One row per score, one column per group; cells are means over organs."""
    cells = [[spread(group, ALL, score) for group in comparison.groups] for score in comparison.scores]
    texts, note = _texts(cells, [[score] * len(comparison.groups) for score in comparison.scores])
    rows = [[SCORES[score].heading, *line] for score, line in zip(comparison.scores, texts, strict=True)]
    best = {(r, 1 + c) for r, score in enumerate(comparison.scores) for c in _best(cells[r], score)}
    header = ["score", *(group.label for group in comparison.groups)]
    return Table("All scores, mean over organs", note, header, rows, frozenset(best))


def _texts(cells: list[list[Spread]], scores: list[list[str]]) -> tuple[list[list[str]], str]:
    """Cells as text, and what they are: one kind of spread in a table, over runs where all have several of them."""
    known = [cell for line in cells for cell in line if cell.runs]
    over_runs = all(cell.runs > 1 for cell in known)
    counts = sorted({cell.runs if over_runs else cell.scans for cell in known})
    number = "–".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
    kind = f"{number} runs (a fold with a seed each)" if over_runs else f"{number} scan{'s' * (number != '1')}"
    texts = [
        [_cell(cell, over_runs, SCORES[score].digits) for cell, score in zip(line, names, strict=True)]
        for line, names in zip(cells, scores, strict=True)
    ]
    return texts, f"Mean ± standard deviation over {kind}; the best in bold."


def _cell(value: Spread, over_runs: bool, digits: int) -> str:
    if math.isnan(value.mean):
        return "–"
    deviation = value.over_runs if over_runs else value.over_scans
    mean = f"{value.mean:.{digits}f}".replace("-", "−")
    return mean if math.isnan(deviation) else f"{mean} ± {deviation:.{digits}f}"


def _best(cells: Sequence[Spread], score: str) -> list[int]:
    """Places of the best mean as printed; none if there is nothing to compare."""
    better, digits = SCORES[score].better, SCORES[score].digits
    means = [round(cell.mean, digits) for cell in cells]
    worth = [better * mean if better else -abs(mean) for mean in means]
    known = [value for value in worth if not math.isnan(value)]
    return [at for at, value in enumerate(worth) if value == max(known)] if len(known) > 1 else []


def differences(found: Sequence[Difference], score: str) -> Table:
    """One row per comparison: difference, interval, p before and after correction."""
    title = SCORES[score]
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
    return [*counts, _signed(d.mean, digits), interval, p_text(d.p), p_text(d.p_holm)]


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def p_text(p: float) -> str:
    """`0.031`, `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def beside_published(comparison: Comparison) -> Table | None:
    """Our Dice in percent, each method's published rows below it; None if nothing was published on the data set."""
    known = published.rows(comparison.dataset, {group.identity["setting"] for group in comparison.groups})
    if not known:
        return None
    organs, cited, rows = [*comparison.organs, ALL], {}, []
    methods = list(dict.fromkeys(group.method for group in comparison.groups))
    for method in [*methods, *dict.fromkeys(row.method for row in known if row.method not in methods)]:
        for group in comparison.groups:
            if group.method == method:
                means = [spread(group, organ, "dice").mean for organ in organs]
                cells = ["–" if math.isnan(mean) else f"{100 * mean:.2f}" for mean in means]
                rows.append([f"{group.label}, ours", group.identity["setting"] or "–", *cells, "ours"])
        found = [row for row in known if row.method == method]
        for row in found:
            numbers = ", ".join(f"[{cited.setdefault(name, len(cited) + 1)}]" for name in row.sources)
            cells = [f"{row.dice[organ]:.2f}" if organ in row.dice else "–" for organ in organs]
            rows.append([f"{row.name}, published", str(row.setting), *cells, numbers])
        if not found:
            rows.append([f"{method}, published", "–", *["–"] * len(organs), "none found"])
    sources = "; ".join(f"[{number}] {published.source(name)}" for name, number in cited.items())
    note = f"Dice in %. {published.caveat()} Sources: {sources}."
    return Table("Beside published numbers", note, ["method", "setting", *organs, "source"], rows)


def runs(comparison: Comparison) -> Table:
    """Where the numbers come from."""
    rows = []
    for group in comparison.groups:
        for run in dict.fromkeys(row["run"] for row in group.rows):
            own = Group(group.label, group.method, group.identity, [row for row in group.rows if row["run"] == run])
            columns = ("fold", "seed", "encoder", "protocol", "pairing", "checkpoint_sha256")
            rows.append([group.label, *(", ".join(own.values(column)) or "–" for column in columns), run])
    header = ["method", "fold", "seed", "encoder", "protocol", "pairing", "checkpoint", "run"]
    return Table("Runs", "The checkpoint is named by the first digits of its SHA-256.", header, rows)


def summary_rows(comparison: Comparison) -> list[dict]:
    """Every mean with its spreads, for summary.csv."""
    return [
        {
            **{"dataset": comparison.dataset, "method": group.label, "organ": organ, "score": score},
            **asdict(spread(group, organ, score)),
        }
        for group in comparison.groups
        for score in comparison.scores
        for organ in [*comparison.organs, ALL]
    ]


def write_csv(file: Path, rows: Sequence[dict]) -> None:
    """Write rows of plain values; not-a-number is an empty field."""
    with whole_file(file) as temporary, open(temporary, "w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]) if rows else ["nothing"])
        writer.writeheader()
        for row in rows:
            writer.writerow({name: "" if isinstance(v, float) and math.isnan(v) else v for name, v in row.items()})


def markdown(table: Table) -> str:
    """The table in GitHub's Markdown."""
    cells = [
        [f"**{cell}**" if (r, c) in table.best else cell.replace("|", "\\|") for c, cell in enumerate(row)]
        for r, row in enumerate(table.rows)
    ]
    rule = ["---" if at in table.words else "---:" for at in range(len(table.header))]
    lines = ["| " + " | ".join(row) + " |" for row in (table.header, rule, *cells)]
    return "\n".join([f"### {table.title}", "", *lines, "", table.note, ""])


def latex(table: Table) -> str:
    """The table for LaTeX with booktabs."""
    cells = [
        [f"\\textbf{{{_tex(cell)}}}" if (r, c) in table.best else _tex(cell) for c, cell in enumerate(row)]
        for r, row in enumerate(table.rows)
    ]
    lines = [" & ".join(row) + r" \\" for row in cells]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex(table.title)}. {_tex(table.note)}}}",
            rf"\begin{{tabular}}{{{''.join('l' if at in table.words else 'r' for at in range(len(table.header)))}}}",
            r"\toprule",
            " & ".join(map(_tex, table.header)) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _tex(text: str) -> str:
    replaced = {"\\": r"\textbackslash{}", "±": r"$\pm$", "−": r"$-$", "–": "--", "<": r"$<$", "²": r"$^2$"}
    replaced |= {character: f"\\{character}" for character in "&%$#_{}"}
    return "".join(replaced.get(character, character) for character in text)
