"""`python -m util.report [NAME=]RUNS... [--out DIR]`: compare runs in a table, or in a whole report."""

import sys
from collections.abc import Sequence
from pathlib import Path

from util.commands import guarded, parser
from util.evaluation.metrics import COLUMNS
from util.report.gather import gather, named_folders
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
    options = command.parse_args(arguments)
    return guarded(lambda: _compare(options.runs, options.score, options.out))


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
