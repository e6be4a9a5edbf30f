"""`python -m util.report [NAME=]RUNS... [--out DIR]`: compare runs in a table, or in a whole report."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from util.errors import UserError
from util.report.gather import gather, named_folders
from util.report.page import write_report
from util.report.scores import SCORES, organ_table, read_scores


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, or write the report; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m util.report", description="Compare what test.py scored.")
    parser.add_argument(
        "runs", nargs="+", metavar="[NAME=]RUNS", help="a run, or with --out a folder of runs, with a name if you like"
    )
    parser.add_argument("--score", default="dice", choices=SCORES, help="column of scores.csv (default: dice)")
    parser.add_argument("--out", type=Path, help="folder for tables, figures and report.html, instead of one table")
    options = parser.parse_args(arguments)
    try:
        if options.out is None:
            print(_table(options.runs, options.score))
            return 0
        comparisons, warnings = gather(options.runs)
        warnings += write_report(options.out, comparisons, options.score, warnings)
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
        print(f"{options.out / 'report.html'}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
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
