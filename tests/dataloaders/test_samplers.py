"""The sampler's table has the distribution that the papers' rejection loops produce."""

import functools
import itertools
import operator
from collections import Counter

import numpy as np
import pytest

from dataloaders.exclusion import excluded_slices, removal_table
from dataloaders.samplers import CropsSampler, NeighboursSampler, slice_areas, window_sums
from util.errors import UserError


def volume(seed: int, depth: int = 9) -> np.ndarray:
    """Random ids 0 to 4 in columns that are interrupted now and then, with areas around the limit."""
    generator = np.random.default_rng(seed)
    ids = np.zeros((depth, 12, 12), dtype=np.int32)
    for segment in range(1, 5):
        for z in np.flatnonzero(generator.random(depth) < 0.7):
            ids[z, 3 * (segment - 1) : 3 * segment, : generator.integers(1, 12)] = segment
    return ids


def published_draw(volumes, generator, min_size, size_of, runs) -> tuple:
    """The papers' loops, word for word: draw, and start again until accepted."""
    while True:
        scan = generator.integers(len(volumes))
        ids = volumes[scan]
        segments = [s for s in np.unique(ids) if s]
        while True:
            segment = generator.choice(segments)
            slices = np.flatnonzero((ids == segment).any((1, 2)))
            if len(slices) < 2:
                continue
            groups = [slices]
            if runs:
                groups = np.split(slices, np.flatnonzero(np.diff(slices) > 1) + 1)
                groups = [group for group in groups if len(group) > 1]
                if not groups:
                    break  # a new scan
            group = groups[generator.integers(len(groups))]
            start = generator.integers(len(group) - 1)
            pair = group[start], group[start + 1]
            areas = [(ids[z] == segment).sum() for z in pair]
            if (areas[0] if size_of == "first" else max(areas)) >= min_size:
                return scan, segment, *pair


@pytest.mark.parametrize(("size_of", "runs"), [("first", False), ("larger", True)])
def test_distribution_is_the_published_one(size_of, runs):
    volumes = [volume(1), volume(4), volume(7, depth=5)]
    sampler = NeighboursSampler(map(slice_areas, volumes), min_size=12, size_of=size_of, consecutive=runs)
    generator = np.random.default_rng(0)
    draws = 20_000
    published = Counter(tuple(map(int, published_draw(volumes, generator, 12, size_of, runs))) for _ in range(draws))
    choices = [sampler.draw(generator) for _ in range(draws)]
    ours = Counter((c.scan, c.segment, *sorted((c.support_slice, c.query_slices[0]))) for c in choices)
    assert ours.keys() == published.keys()
    for key, count in published.items():  # five standard deviations of the difference of two counts
        assert abs(ours[key] - count) < 5 * np.sqrt(2 * max(count, 10)), key


def pairs_by_loops(areas, min_size, size_of, runs) -> tuple[list, list]:
    """The acceptable pairs of one scan and their probabilities, one by one."""
    shown = {segment: np.flatnonzero(row) for segment, row in enumerate(areas) if segment}
    shown = {segment: slices for segment, slices in shown.items() if len(slices) >= 2}
    rows, weights, given_up = [], [], 0.0
    for segment, slices in shown.items():
        groups = np.split(slices, np.flatnonzero(np.diff(slices) > 1) + 1) if runs else [slices]
        groups = [list(itertools.pairwise(group)) for group in groups if len(group) >= 2]
        given_up += (not groups) / len(shown)
        for group in groups:
            for first, second in group:
                sizes = areas[segment, [first, second]]
                if (sizes[0] if size_of == "first" else sizes.max()) >= min_size:
                    rows.append([segment, int(first), int(second)])
                    weights.append(1 / len(shown) / len(groups) / len(group))
    share = functools.reduce(operator.add, weights, 0.0) + given_up
    return rows, [weight / share for weight in weights]


@pytest.mark.parametrize(("size_of", "runs"), [("first", False), ("larger", True), ("first", True), ("larger", False)])
def test_a_seed_chooses_what_plain_loops_choose(size_of, runs):
    """Bit by bit, or trainings could not be repeated."""
    tables = [slice_areas(volume(seed, depth=5 + seed % 20)) for seed in range(60)]
    tables = [table for table in tables if pairs_by_loops(table, 12, size_of, runs)[0]]
    loops = [pairs_by_loops(table, 12, size_of, runs) for table in tables]
    sampler = NeighboursSampler(tables, min_size=12, size_of=size_of, consecutive=runs)
    assert sampler.table.tolist() == [[scan, *row] for scan, (rows, _) in enumerate(loops) for row in rows]
    weights = [weight for _, weights in loops for weight in weights]
    assert (sampler._cumulative == np.cumsum(weights) / np.sum(weights)).all()


def test_a_fair_coin_reverses_the_pair():
    sampler = NeighboursSampler([slice_areas(volume(1))], min_size=12)
    generator = np.random.default_rng(0)
    reversed_pairs = sum((c := sampler.draw(generator)).support_slice > c.query_slices[0] for _ in range(2000))
    assert 900 < reversed_pairs < 1100


def test_scans_without_a_pair_are_never_drawn_and_no_pair_at_all_is_an_error():
    empty = np.zeros((4, 12, 12), dtype=np.int32)
    sampler = NeighboursSampler(map(slice_areas, [empty, volume(1)]), min_size=12)
    assert {sampler.draw(np.random.default_rng(seed)).scan for seed in range(50)} == {1}
    with pytest.raises(UserError, match=r"episode\.min_size=12"):
        NeighboursSampler([slice_areas(empty)], min_size=12)


def test_excluded_slices_are_never_drawn():
    excluded = np.arange(9) < 4
    sampler = NeighboursSampler([slice_areas(volume(1))], min_size=1, excluded=[excluded])
    assert sampler.table[:, 2:].min() >= 4


def published_windows(volumes, depth, min_size) -> list[tuple]:
    """Every window that ADNet 3D may draw, by counting: (scan, segment, first slice)."""
    found = []
    for scan, ids in enumerate(volumes):
        n = min(depth, len(ids))
        for segment in np.unique(ids[ids > 0]):
            sizes = [(ids[z : z + n] == segment).sum() for z in range(len(ids) - n + 1)]
            found += [(scan, int(segment), z) for z, size in enumerate(sizes) if size > min_size]
    return found


@pytest.mark.parametrize("min_size", [30, 55])
def test_windows_are_the_published_ones(min_size):
    """Scans of 9, 5 and 3 slices (the last with fewer than a window), every pair of windows, uniform over segments."""
    volumes = [volume(1), volume(4, depth=5), volume(7, depth=3)]
    expected = published_windows(volumes, 4, min_size)
    sampler = CropsSampler(map(slice_areas, volumes), depth=4, min_size=min_size)
    generator = np.random.default_rng(0)
    draws = 20_000
    choices = [sampler.draw(generator) for _ in range(draws)]
    ours = Counter((c.scan, c.segment, c.support_slice, *c.query_slices) for c in choices)
    pairs = {a + b[2:]: 0.0 for a in expected for b in expected if a[:2] == b[:2]}
    scans = {scan for scan, *_ in expected}
    for scan, segment, *windows in pairs:
        segments = {s for k, s, _ in expected if k == scan}
        count = sum((k, s) == (scan, segment) for k, s, _ in expected)
        pairs[scan, segment, *windows] = draws / len(scans) / len(segments) / count**2
    assert ours.keys() == pairs.keys()
    for key, mean in pairs.items():
        assert abs(ours[key] - mean) < 5 * np.sqrt(max(mean, 10)), key


def test_windows_stay_near_each_other_and_off_excluded_slices():
    ids = np.ones((40, 8, 8), dtype=np.int32)
    sampler = CropsSampler([slice_areas(ids)], depth=4, min_size=10, spread=3, excluded=[np.arange(40) % 20 == 10])
    generator = np.random.default_rng(0)
    choices = [sampler.draw(generator) for _ in range(2000)]
    assert {c.support_slice for c in choices} == {*range(7), *range(11, 27), *range(31, 37)}
    places = sorted({c.support_slice for c in choices})
    distances = [abs(places.index(c.support_slice) - places.index(c.query_slices[0])) for c in choices]
    assert max(distances) == 3 and min(distances) == 0
    with pytest.raises(UserError, match=r"make episode\.crop shallower"):
        CropsSampler([slice_areas(ids)], depth=21, min_size=10, excluded=[np.arange(40) % 20 == 10])
    with pytest.raises(UserError, match=r"episode\.min_size=99999"):
        CropsSampler([slice_areas(ids)], min_size=99_999)


def test_window_sums():
    counts = slice_areas(volume(3))
    for depth in (1, 4, 9, 30):
        n = min(depth, 9)
        expected = np.stack([counts[:, z : z + n].sum(1) for z in range(9 - n + 1)], axis=1)
        assert np.array_equal(window_sums(counts, depth), expected)


def test_areas():
    ids = volume(3)
    areas = slice_areas(ids)
    for segment in range(areas.shape[0]):
        assert np.array_equal(areas[segment], (ids == segment).sum((1, 2)))


def test_exclusion_counts_of_the_real_scans(chaost2):
    """[training 7]: slices that setting 2 removes from the 718 of CHAOST2."""
    import config
    from dataloaders.scans import read_scan

    dataset, root = config.DATASETS["CHAOST2"], chaost2.parent
    labels = [read_scan(dataset, root, number).label for number in dataset.scans(root)]
    assert sum(len(label) for label in labels) == 718
    for organs, rule, expected in [
        ((1, 2, 3, 4), "all", 88),
        ((1, 2, 3, 4), "any", 558),
        ((2, 3), "all", 261),
        ((2, 3), "any", 324),
        ((1, 4), "all", 272),
        ((1, 4), "any", 463),
    ]:
        assert sum(int(excluded_slices(label, organs, published=rule == "all").sum()) for label in labels) == expected


@pytest.mark.parametrize(("published", "removed", "leaking"), [(False, 3, 0), (True, 1, 2)])
def test_the_table_of_removed_slices_counts_those_that_leak(published, removed, leaking):
    label = np.zeros((5, 2, 2), int)
    label[:2, 0, 0], label[1:3, 1, 1] = 1, 2
    row, total = removal_table({7: label}, {"liver": 1, "spleen": 2}, published)
    counts = dict(slices=5, liver=2, spleen=2, removed=removed, leaking=leaking)
    assert (row, total) == ({"scan": 7, **counts}, {"scan": "all", **counts})


def test_without_a_spread_both_crops_are_the_same():
    sampler = CropsSampler([slice_areas(np.ones((9, 4, 4), int))], depth=2, min_size=1, spread=0)
    choices = [sampler.draw(np.random.default_rng(seed)) for seed in range(40)]
    assert all(choice.query_slices == (choice.support_slice,) for choice in choices)
    assert {choice.support_slice for choice in choices} == set(range(8))
