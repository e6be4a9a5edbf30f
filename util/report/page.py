"""A whole report: tables and figures as files, and one HTML page that needs nothing but a browser."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas
from tqdm import tqdm

from util.evaluation.metrics import COLUMNS, HEADLINES
from util.files import write_text
from util.report import figures, tables
from util.report.gather import Comparison
from util.report.overlays import NothingToShow, overlays
from util.report.statistics import ALL, Difference, compare
from util.report.viewer import rendered
from util.tables import write_csv

LARGEST = 15_000_000  # bytes of a page


def write_report(out: Path, comparisons: Sequence[Comparison], score: str, warnings: Sequence[str]) -> list[str]:
    """Write report.html, tables.md, tables.tex, summary.csv, comparisons.csv, figures/ and planes/ into `out`.

    The score ranks the scans that are shown, and its tables come first. The page repeats the warnings; returned are
    further ones.

    Raises:
        UserError: a prediction is damaged or of another shape than its scan, or `out` cannot be written.
    """
    sections, own_warnings, rows = [], [], []
    for comparison in comparisons:
        try:  # first: what is wrong with a file is better said at once
            shown = overlays(comparison, score, out / "planes")
        except NothingToShow as reason:
            shown = None
            own_warnings.append(f"{comparison.dataset}: the page has no overlays: {reason}")
        headlines = [name for name in dict.fromkeys([score, *HEADLINES]) if name in comparison.scores]
        # over all organs, and organ by organ: two tables, corrected each by itself
        found = {
            name: [
                compare(itertools.combinations(comparison.groups, 2), organs, name)
                for organs in ([ALL], comparison.organs)
            ]
            for name in headlines
        }
        rows += [asdict(difference) for both in found.values() for part in both for difference in part]
        sections.append({**_section(comparison, found, out / "figures"), "overlays": shown})
    write_csv(out / "summary.csv", pandas.concat([section["summary"] for section in sections]))
    write_csv(out / "comparisons.csv", rows)
    write_text(out / "tables.md", "\n".join(_all_tables(sections, tables.markdown, "## {}\n")))
    write_text(out / "tables.tex", "\n".join(_all_tables(sections, tables.latex, "% {}\n")))
    page = rendered(
        "page.html",
        [section["overlays"] for section in sections],
        sections=sections,
        warnings=[*warnings, *own_warnings],
        score=COLUMNS[score].title,
    )
    write_text(out / "report.html", page)
    if len(page) > LARGEST:
        own_warnings.append(f"{out / 'report.html'} weighs {len(page) / 1e6:.0f} MB; a lighter page has fewer methods")
    return own_warnings


def _section(comparison: Comparison, found: dict[str, list[list[Difference]]], folder: Path) -> dict[str, Any]:
    """All that the page shows of a data set but the overlays; the figures are written into `folder` too."""
    views, name, means = [], comparison.dataset, tables.summary(comparison)
    for score, (overall, by_organ) in tqdm(found.items(), unit="score", desc="drawing figures"):
        boxes = [figures.box_plot(comparison, organ, score) for organ in comparison.organs]
        views.append(
            {
                "score": score,
                "title": COLUMNS[score].title,
                "means": tables.organ_scores(means, score),
                "overall": tables.differences(overall, score) if overall else None,
                "by_organ": tables.differences(by_organ, score) if by_organ else None,
                "boxes": figures.save(folder / f"{name}_{score}.pdf", boxes),
            }
        )
    curves = figures.training_curves(comparison)
    return {
        "dataset": name,
        "groups": [
            {"label": g.label, "folds": g.values("fold"), "seeds": g.values("seed"), "scans": len(g.values("scan"))}
            for g in comparison.groups
        ],
        "views": views,
        "all_scores": tables.all_scores(means),
        "published": tables.beside_published(comparison),
        "provenance": tables.provenance(comparison),
        "summary": means,
        "curves": figures.save(folder / f"{name}_training.pdf", curves) if curves else [],
    }


def _all_tables(sections: Sequence[dict[str, Any]], write: Any, heading: str) -> list[str]:
    texts = []
    for section in sections:
        views = [view[kind] for view in section["views"] for kind in ("means", "overall", "by_organ")]
        found = [*views, section["all_scores"], section["published"], section["provenance"]]
        texts += [heading.format(section["dataset"]), *(write(table) for table in found if table)]
    return texts
