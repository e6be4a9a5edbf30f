"""Spreads and tests between methods: what is paired, what counts once, what is not tested."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from util.report.gather import RunGroup
from util.report.statistics import FEWEST, compare, difference, holm, spread


def group(label: str, dice, folds=(0,), seeds=(1,), scans=range(8), organs=("liver",), supports=("0",)) -> RunGroup:
    """A group whose Dice is `dice(organ, scan, fold, seed, support)`; NaN becomes an empty field."""
    rows = []
    for organ in organs:
        for scan in scans:
            for fold in folds:
                for seed in seeds:
                    for support in supports:
                        value = dice(organ, scan, fold, seed, support)
                        text = "" if math.isnan(value) else str(value)
                        sample = dict(organ=organ, scan=scan, fold=fold, seed=seed, support=support, dice=text)
                        rows.append({name: str(cell) for name, cell in sample.items()})
    return RunGroup(label, label, {"supports": "all" if len(supports) > 1 else "fold"}, rows)


def test_the_spread_over_runs_is_that_of_their_means():
    own = group("a", lambda organ, scan, fold, seed, support: 0.5 + 0.01 * scan + 0.1 * seed, seeds=(1, 2))
    found = spread(own, "liver", "dice")
    assert found.mean == pytest.approx(0.5 + 0.035 + 0.15)
    assert found.over_runs == pytest.approx(np.std([0.1, 0.2], ddof=1))
    assert found.over_scans == pytest.approx(np.std(0.01 * np.arange(8), ddof=1))
    assert (found.runs, found.scans) == (2, 8) and math.isnan(found.over_supports)


def test_the_mean_over_organs_weighs_organs_alike_and_leaves_out_what_was_not_scored():
    def dice(organ, scan, fold, seed, support):
        return 0.4 if organ == "liver" else (math.nan if scan else 0.8)

    assert spread(group("a", dice, organs=("liver", "spleen")), "mean", "dice").mean == pytest.approx(0.6)
    nothing = spread(group("a", lambda *sample: math.nan), "liver", "dice")
    assert math.isnan(nothing.mean) and nothing.runs == 0


def test_the_choice_of_the_support_has_its_own_spread():
    own = group("a", lambda organ, scan, fold, seed, support: 0.5 + 0.1 * int(support), supports=("1", "3"))
    assert spread(own, "liver", "dice").over_supports == pytest.approx(np.std([0.6, 0.8], ddof=1))


def test_seeds_and_organs_of_a_scan_count_once():
    """More seeds and organs make no more independent scans: n stays, and so does p where they agree."""
    rise = dict(zip(range(8), (0.01, 0.05, -0.02, 0.07, 0.03, 0.04, 0.06, -0.005), strict=True))
    few = [group("a", lambda o, scan, *_: 0.5 + rise[scan]), group("b", lambda *_: 0.5)]
    sizes = dict(seeds=(1, 2, 3), organs=("liver", "spleen"))
    many = [group("a", lambda o, scan, *_: 0.5 + rise[scan], **sizes), group("b", lambda *_: 0.5, **sizes)]
    one, other = difference(*few, "liver", "dice"), difference(*many, "mean", "dice")
    assert (one.pairs, one.scans, other.pairs, other.scans) == (8, 8, 48, 8)
    assert one.p == pytest.approx(other.p) == pytest.approx(stats.wilcoxon(list(rise.values())).pvalue)
    assert one.mean == pytest.approx(np.mean(list(rise.values()))) and one.low < one.mean < one.high


def test_only_pairs_that_both_have_are_compared():
    first = group("a", lambda o, scan, fold, seed, s: 0.6 if seed == 1 else 0.1, seeds=(1, 2))
    second = group("b", lambda o, scan, fold, seed, s: math.nan if scan == 3 else 0.5, seeds=(1, 9))
    found = difference(first, second, "liver", "dice")
    assert (found.pairs, found.scans) == (7, 7) and found.mean == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1) and found.high == pytest.approx(0.1)
    strangers = difference(first, group("c", lambda *_: 0.5, seeds=(7,)), "liver", "dice")
    assert strangers.pairs == 0 and math.isnan(strangers.mean) and math.isnan(strangers.p)


def test_too_few_scans_are_not_tested():
    for scans in (FEWEST - 1, FEWEST):
        best = 2.0 ** (1 - scans)  # the smallest p that exists: all differences on one side
        larger = group("a", lambda o, scan, *_: 0.4 + 0.01 * scan, scans=range(scans))
        groups = [larger, group("b", lambda *_: 0.2, scans=range(scans))]
        found = difference(*groups, "liver", "dice")
        if scans < FEWEST:
            assert best > 0.05 and math.isnan(found.p) and math.isnan(found.low) and not math.isnan(found.mean)
        else:
            assert best < 0.05 and found.p == pytest.approx(best) and found.low < found.high


def test_equal_methods_do_not_differ():
    same = [group(name, lambda o, scan, *_: 0.1 * scan) for name in "ab"]
    found = difference(*same, "liver", "dice")
    assert (found.mean, found.p, found.low, found.high) == (0, 1, 0, 0)


def test_holm_by_hand():
    """The example of Holm's paper's procedure: 0.01 x 4, 0.02 x 3, 0.03 x 2 and 0.04, never falling."""
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1, 1]
    corrected = holm([0.01, math.nan, 0.04])
    assert corrected[0] == pytest.approx(0.02) and math.isnan(corrected[1]) and corrected[2] == pytest.approx(0.04)


def test_the_correction_spans_all_comparisons_of_a_table():
    random = np.random.default_rng(1)
    values = {name: random.normal(at, 1, 8) for at, name in enumerate("abc")}
    groups = [group(name, lambda o, scan, *_, n=name: values[n][scan]) for name in values]
    found = compare(itertools.combinations(groups, 2), ["liver"], "dice")
    assert [(d.first, d.second) for d in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [d.p_holm for d in found] == pytest.approx(holm([d.p for d in found]))


def test_the_bootstrap_is_the_same_every_time_and_covers_the_mean():
    random = np.random.default_rng(0)
    first = random.normal(0.1, 0.05, 20)
    groups = [group("a", lambda o, scan, *_: first[scan], scans=range(20)), group("b", lambda *_: 0.0, scans=range(20))]
    one, again = (difference(*groups, "liver", "dice") for _ in range(2))
    assert (one.low, one.high) == (again.low, again.high)
    half = 1.96 * first.std() / math.sqrt(20)  # what the normal distribution says
    assert one.low == pytest.approx(first.mean() - half, abs=0.005)
    assert one.high == pytest.approx(first.mean() + half, abs=0.005)
