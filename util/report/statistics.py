"""Means with their spread, and tests between methods that respect what depends on what."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas
from scipy import stats

from util.report.gather import RunGroup

ALL = "mean"  # stands for all organs: the mean over them
RESAMPLES = 9999
# two-sided, the smallest p that n differences can give is 2 ** (1 - n): below 6 no result could be significant
FEWEST = 6


@dataclass(frozen=True)
class Spread:
    """A mean of one group, one organ, one score.

    Attributes:
        mean: over runs (a fold with a seed), of their means over scans; NaN if nothing was scored.
        over_runs: standard deviation over runs, NaN for a single one.
        over_scans: standard deviation over scans (each the mean of all its rows), NaN for a single one.
        over_supports: standard deviation over support scans if these rotate, else NaN.
        runs, scans: how many.
    """

    mean: float
    over_runs: float
    over_scans: float
    over_supports: float
    runs: int
    scans: int


def spread(group: RunGroup, organ: str, score: str) -> Spread:
    """Mean and spread of a score over runs, scans and supports; organ "mean" is the mean over organs."""
    by_run, by_scan, by_support = (
        _means(group, organ, score, keys) for keys in (["fold", "seed"], ["fold", "scan"], ["support"])
    )
    rotating = "all" in group.identity.get("supports", "")
    over_supports = by_support.std() if rotating else math.nan
    return Spread(by_run.mean(), by_run.std(), by_scan.std(), over_supports, len(by_run), len(by_scan))


def _means(group: RunGroup, organ: str, score: str, keys: list[str]) -> pandas.Series:
    """A mean for every different value of the keys; of all organs, the mean over the organs' means."""
    by_organ = scored(group, organ, score).groupby([*keys, "organ"], sort=False)[score].mean()
    return by_organ.groupby(keys, sort=False).mean()


def scored(group: RunGroup, organ: str, score: str) -> pandas.DataFrame:
    """The group's rows of an organ, or of ALL, that have the score."""
    own = group.frame if organ == ALL else group.frame[group.frame["organ"] == organ]
    return own.dropna(subset=[score])


@dataclass(frozen=True)
class Difference:
    """First less second method.

    Attributes:
        first, second: labels of the groups.
        organ: its name, or "mean" for all.
        score: column of scores.csv.
        pairs: rows of the same organ, scan, fold and seed that both have.
        scans: different scans among them, the number of independent values.
        mean: over scans, NaN if there is no pair.
        low, high: of the 95 % bootstrap interval, NaN if there are too few scans.
        p: Wilcoxon's signed rank test, two-sided, NaN if there are too few scans.
        p_holm: p after Holm's correction over all comparisons of the same table.
    """

    first: str
    second: str
    organ: str
    score: str
    pairs: int
    scans: int
    mean: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    p_holm: float = math.nan


def compare(pairs: Iterable[tuple[RunGroup, RunGroup]], organs: Sequence[str], score: str) -> list[Difference]:
    """The groups of every pair for each of the organs; Holm's correction spans all of them."""
    found = [difference(first, second, organ, score) for first, second in pairs for organ in organs]
    return [replace(d, p_holm=p) for d, p in zip(found, holm([d.p for d in found]), strict=True)]


def difference(first: RunGroup, second: RunGroup, organ: str, score: str) -> Difference:
    """Compare two groups over the scans that both scored.

    Rows are paired by organ, scan, fold and seed. Organs, folds and seeds of one scan are not independent of each
    other, so their differences are averaged and each scan counts once, in the test and in the bootstrap.
    """
    sample = ["organ", "scan", "fold", "seed"]
    ours, theirs = (scored(group, organ, score).groupby(sample)[score].mean() for group in (first, second))
    pairs = (ours - theirs).dropna()
    values = pairs.groupby("scan").mean().to_numpy()
    mean = float(values.mean()) if len(values) else math.nan
    result = Difference(first.label, second.label, organ, score, len(pairs), len(values), mean)
    if len(values) < FEWEST:
        return result
    random = np.random.default_rng(0)
    found = stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=random)
    low, high = map(float, found.confidence_interval)
    p = float(stats.wilcoxon(values).pvalue) if values.any() else 1.0
    return replace(result, low=low, high=high, p=p)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values after Holm's step-down correction (Scand. J. Statist. 1979); NaN is no test and stays."""
    order = np.argsort(p_values)  # NaN comes last
    p = np.take(p_values, order)
    factors = np.count_nonzero(~np.isnan(p)) - np.arange(len(p))
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(np.minimum(p * factors, 1.0))
    return corrected.tolist()
