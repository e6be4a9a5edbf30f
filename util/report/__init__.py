"""From scores to what people look at: tables, tests, figures, one page. `python -m util.report RUNS... --out DIR`."""

from util.report.contours import draw_contours
from util.report.scores import RECORDERS, organ_table, overall_mean, read_scores, support_spread, write_scores

__all__ = ["RECORDERS", "draw_contours", "organ_table", "overall_mean", "read_scores", "support_spread", "write_scores"]
