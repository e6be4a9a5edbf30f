"""`python -m util.report [NAME=]RUNS... [--out DIR]`: compare runs in a table, or in a whole report.

RUNS may be a file of kept rows, such as results/CHAOST2.csv, which `--keep` adds to and `--into` makes tables of.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from util.commands import guarded, parser
from util.evaluation.metrics import COLUMNS
from util.report.gather import gather, named_folders
from util.report.kept import keep, write_into
from util.report.page import write_report
from util.report.scores import organ_table, read_scores


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, or write the report; returns the exit status."""
    command = parser(f"Compare what test.py scored.\n\n{__doc__}", "python -m util.report")
    command.add_argument(
        "runs", nargs="+", metavar="[NAME=]RUNS", help="a run, or with --out a folder of runs, with a name if you like"
    )
    command.add_argument("--score", default="dice", choices=COLUMNS, help="column of scores.csv (default: dice)")
    command.add_argument("--out", type=Path, help="folder for tables, figures and report.html, instead of one table")
    command.add_argument("--keep", type=Path, metavar="FILE", help="add the rows of the tested runs to this file")
    command.add_argument(
        "--into", type=Path, metavar="PAGE", help="write the tables into a Markdown page, at its marks"
    )
    options = command.parse_args(arguments)
    if options.keep:
        return guarded(lambda: _keep(options.runs, options.keep))
    if options.into:
        return guarded(lambda: write_into(options.into, gather(options.runs)[0], options.runs[0]))
    return guarded(lambda: _compare(options.runs, options.score, options.out))


def _keep(runs: Sequence[str], file: Path) -> None:
    tested = [scores.parent for _, folder in named_folders(runs) for scores in sorted(folder.rglob("scores.csv"))]
    print(f"{file}: {keep(file, tested)} rows")


def _compare(runs: Sequence[str], score: str, out: Path | None) -> int:
    """Print the table, or write the report; a warning is no failure."""
    if out is None:
        print(_table(runs, score))
        return 0
    comparisons, warnings = gather(runs)
    for warning in [*warnings, *write_report(out, comparisons, score, warnings)]:
        print(f"warning: {warning}", file=sys.stderr)
    print(out / "report.html")
    return 0


def _table(arguments: Sequence[str], score: str) -> str:
    """One column per run, mean ± standard deviation over its scans; of a folder of runs one column per method."""
    columns = {}
    for argument, (name, folder) in zip(arguments, named_folders(arguments), strict=True):
        if (folder / "scores.csv").is_file():
            columns[name or argument] = read_scores(folder / "scores.csv")
        else:
            columns |= {group.label: group.rows for comparison in gather([argument])[0] for group in comparison.groups}
    return organ_table(columns, score)


if __name__ == "__main__":
    sys.exit(main())
