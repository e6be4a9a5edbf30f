"""Figures of a report: box plots and training curves."""

import io
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from util.errors import UserError
from util.evaluation.metrics import COLUMNS
from util.files import whole_file
from util.pictures import caption
from util.report.gather import Comparison, RunGroup
from util.report.statistics import scored
from util.tables import read_csv

# told apart by colour-blind readers, on white and on black (Okabe and Ito); the seventh is grey
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8A8A8A")
# columns of metrics.csv that are drawn -> what the axis says
CURVES = {"loss": "loss", "t": "threshold t", "predicted": "share predicted", "gradient_norm": "norm of the gradient"}
INK = "#010203"  # stands for the colour of the page's text


def box_plot(comparison: Comparison, organ: str, score: str) -> Any:
    """A figure of one organ: a box a group over its scans, and every scan as a point."""
    values = [scored(group, organ, score)[score].to_numpy() for group in comparison.groups]
    figure, axis = _axis(height=0.9 + 0.32 * len(values))
    places = list(range(len(values), 0, -1))
    boxes = axis.boxplot(
        values, positions=places, orientation="horizontal", widths=0.55, showfliers=False, patch_artist=True
    )
    parts = zip(boxes["boxes"], boxes["medians"], itertools.cycle(PALETTE), strict=False)
    for at, (box, median, colour) in enumerate(parts):
        box.set(facecolor=f"{colour}40", edgecolor=colour)
        median.set(color=INK, linewidth=1.4)
        jitter = np.random.default_rng(at).uniform(-0.18, 0.18, len(values[at]))
        axis.plot(values[at], places[at] + jitter, "o", color=colour, markersize=2.6, alpha=0.8, markeredgewidth=0)
    for line in (*boxes["whiskers"], *boxes["caps"]):
        line.set(color=INK, linewidth=0.8)
    axis.set_yticks(places, [caption(group.label) for group in comparison.groups])
    axis.set_xlabel(COLUMNS[score].heading)
    axis.set_title(caption(organ), loc="left", fontsize=10, color=INK)
    return figure


def training_curves(comparison: Comparison) -> list[Any]:
    """Figures of CURVES of the training runs behind the checkpoints; groups of the same runs share them."""
    behind: dict[tuple[Path, ...], list[str]] = {}
    for group in comparison.groups:
        behind.setdefault(tuple(training_logs(group)), []).append(group.label)
    return [
        _curves(", ".join(labels), logs, column)
        for logs, labels in behind.items()
        for column in CURVES
        if any(len(read_curve(file, column)[0]) > 1 for file in logs)
    ]


def _curves(title: str, logs: Sequence[Path], column: str) -> Any:
    figure, axis = _axis(height=2.4)
    for file, colour in zip(logs, itertools.cycle(PALETTE), strict=False):
        steps, values = read_curve(file, column)
        name = f"{file.parent.parent.name}/{file.parent.name}"
        window = max(1, len(values) // 40)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid") if len(values) else values
        axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        axis.plot(steps[window - 1 :], smooth, color=colour, linewidth=1.4, label=caption(name))
    axis.set_xlabel("step")
    axis.set_ylabel(CURVES[column])
    if column == "gradient_norm":
        axis.set_yscale("log")
    axis.set_title(caption(title), loc="left", fontsize=10, color=INK)
    if len(logs) <= 6:
        axis.legend(fontsize=7, frameon=False, labelcolor=INK)
    return figure


def training_logs(group: RunGroup) -> list[Path]:
    """metrics.csv of the runs that made the group's checkpoints, those that are there."""
    names = {name for row in group.rows for name in (row.get("checkpoint") or "").split("+")}
    files = sorted({Path(name).parent.parent / "metrics.csv" for name in names if name.endswith(".pt")})
    return [file for file in files if file.is_file() and len(read_curve(file)[0]) > 1]


def read_curve(file: Path, column: str = "loss") -> tuple[np.ndarray, np.ndarray]:
    """Steps and losses of a metrics.csv; a last row that is not whole is left out (a run may be going on).

    Another column than the loss may be missing, for not every method has it: then both are empty.

    Raises:
        UserError: it is not a metrics.csv of training.py.
    """
    rows = read_csv(file, growing=True)
    if column != "loss":
        rows = [row for row in rows if column in row]
    try:
        return np.array([int(row["step"]) for row in rows]), np.array([float(row[column]) for row in rows])
    except (KeyError, ValueError) as error:
        raise UserError(f"{file}: is no metrics.csv of training.py, or damaged; move it away") from error


def save(file: Path, figures: Sequence[Any]) -> list[str]:
    """Write figures as pages of a PDF; return them as SVG elements for a page."""
    from matplotlib.backends.backend_pdf import PdfPages

    # named, for elements inside an SVG are found by ids, which must differ between the figures of a page
    elements = [svg(figure, f"{file.stem} {at}") for at, figure in enumerate(figures)]
    with whole_file(file) as temporary, PdfPages(temporary, metadata={"CreationDate": None}) as pages:
        for figure in figures:
            pages.savefig(figure)
    return elements


def svg(figure: Any, name: str) -> str:
    """The figure as an SVG element for a page: text in the page's font, ink in the colour of the page's text."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1)
    return text.replace(INK, "currentColor")


def _axis(height: float) -> tuple[Any, Any]:
    """A figure of 3.7 inches with one quiet axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.7, height), layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(colors=INK, labelsize=8.5, width=0.8)
    for side in (axis.xaxis, axis.yaxis):
        side.label.set(color=INK, fontsize=8.5)
    axis.grid(axis="x", color="#888888", alpha=0.25, linewidth=0.6)
    axis.set_axisbelow(True)
    for spine in axis.spines.values():
        spine.set(color=INK, linewidth=0.8)
    return figure, axis
