"""Which episode: choices of numbers from tables computed once. Nothing is cut or drawn upon here.

Every sampler takes the `slice_areas` of the supervoxels or superpixels of the training scans, one after the other, so
that thousands need not be in memory at once; the smallest area `min_size`; and `excluded`: for every scan the slices,
booleans `(D,)`, that are never used (setting 2), or None.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from util.errors import UserError


@dataclass(frozen=True)
class Choice:
    """One training task: the same segment on two slices of one scan, several times on one slice, or in two crops.

    The number of a crop is that of its first slice.
    """

    scan: int  # position in the list of training scans
    segment: int  # supervoxel or superpixel id
    support_slice: int
    query_slices: tuple[int, ...]
    carried: bool = False  # the queries are other slices, where a superpixel does not lie until it is carried there


class Sampler(Protocol):
    """What chooses tasks."""

    def draw(self, generator: np.random.Generator) -> Choice:
        """One task."""


class NeighboursSampler:
    """Neighbouring slices that show the same supervoxel [adnet 3] [training 3].

    The papers draw scan, supervoxel and slice uniformly and start again while the supervoxel is too small. Here the
    distribution that this rejection produces is computed once, so a draw is one look into a table and always ends.

    Args:
        size_of: "first": min_size is asked of the first slice (ADNet); "larger": of the larger one (Q-Net family).
        consecutive: True pairs slices within runs of consecutive ones (Q-Net family); False pairs neighbours in the
            list, even if the supervoxel is interrupted between them [adnet D7].

    Raises:
        UserError: no scan offers a single pair.
    """

    def __init__(
        self,
        areas: Iterable[np.ndarray],
        *,
        min_size: int = 200,
        size_of: str = "first",
        consecutive: bool = False,
        excluded: Sequence[np.ndarray] | None = None,
    ) -> None:
        rows, weights = [], []
        for scan, usable in enumerate(_usable_areas(areas, excluded)):
            pairs, shares = _pairs(usable, min_size, size_of, consecutive)
            rows.append(np.insert(pairs, 0, scan, axis=1))
            weights.append(shares)
        if not any(map(len, rows)):
            raise UserError(
                f"no supervoxel of the training scans reaches episode.min_size={min_size} pixels on two "
                "neighbouring slices; lower episode.min_size, or make larger supervoxels"
            )
        self.table, weights = np.concatenate(rows), np.concatenate(weights)
        self._cumulative = np.cumsum(weights) / np.sum(weights)

    def draw(self, generator: np.random.Generator) -> Choice:
        """One task; which of the two slices is the support is a fair coin."""
        row = np.searchsorted(self._cumulative, generator.random(), side="right")
        scan, segment, first, second = self.table[min(row, len(self.table) - 1)].tolist()
        if generator.random() < 0.5:
            first, second = second, first
        return Choice(scan, segment, first, (second,))


class SliceSampler:
    """One slice and one of its superpixels; support and query are two views of it [alpnet 5].

    A slice is drawn uniformly among those with a superpixel, then a superpixel uniformly among those it shows. The
    papers' code draws a number below the largest one instead, vacant numbers included [alpnet D3].

    Raises:
        UserError: no slice is left.
    """

    def __init__(
        self, areas: Iterable[np.ndarray], *, min_size: int = 1, excluded: Sequence[np.ndarray] | None = None
    ) -> None:
        self._slices: list[tuple[int, int, np.ndarray]] = []
        self._depths = []
        for scan, usable in enumerate(_usable_areas(areas, excluded)):
            self._depths.append(usable.shape[1])
            large = usable[1:] >= max(min_size, 1)
            for z in np.flatnonzero(large.any(0)):
                self._slices.append((scan, int(z), (np.flatnonzero(large[:, z]) + 1).astype(np.int32)))
        if not self._slices:
            raise UserError(f"no superpixel of the training scans has episode.min_size={min_size} pixels; lower it")

    def draw(self, generator: np.random.Generator) -> Choice:
        """One task."""
        scan, z, segments = self._slices[generator.integers(len(self._slices))]
        return Choice(scan, int(generator.choice(segments)), z, (z,))


class NeighbouringSampler(SliceSampler):
    """A superpixel of a slice, asked for on neighbouring slices, or now and then on other views of the same slice
    [visa 6.2] [visa 7.2].

    Slices without a neighbour to ask are not drawn; a neighbour behind a removed slice is none: what carries the
    superpixel there would have to look at it.

    Args:
        realistic: probability of a task between neighbours; the others are synthetic, as in SliceSampler.
        reach: farthest neighbour, in slices (the paper's m).
        queries: "one": one neighbour, drawn uniformly; "all": the 2 reach neighbours, ascending; slices that lack one
            are not drawn. A synthetic task has as many queries.

    Raises:
        UserError: no slice is left.
    """

    def __init__(
        self,
        areas: Iterable[np.ndarray],
        *,
        min_size: int = 1,
        excluded: Sequence[np.ndarray] | None = None,
        realistic: float = 0.5,
        reach: int = 3,
        queries: str = "one",
    ) -> None:
        super().__init__(areas, min_size=min_size, excluded=excluded)
        self.realistic, self.together = realistic, queries == "all"
        self.count = 2 * reach if self.together else 1
        least = 0 if realistic == 0 and not self.together else self.count
        usable = [~removed for removed in excluded or [np.zeros(depth, bool) for depth in self._depths]]
        asked = [(*entry, neighbours(usable[entry[0]], entry[1], reach)) for entry in self._slices]
        self._asked = [entry for entry in asked if len(entry[-1]) >= least]
        if not self._asked:
            raise UserError(f"no slice of the training scans has its neighbours; lower episode.reach={reach}")

    def draw(self, generator: np.random.Generator) -> Choice:
        """One task."""
        scan, z, segments, around = self._asked[generator.integers(len(self._asked))]
        segment = int(generator.choice(segments))
        if generator.random() >= self.realistic:
            return Choice(scan, segment, z, (z,) * self.count)
        queries = around if self.together else (int(generator.choice(around)),)
        return Choice(scan, segment, z, tuple(queries), carried=True)


class CropsSampler:
    """Two crops of consecutive slices that hold enough of one supervoxel [adnet 5.1] [adnet 5.3].

    A scan, one of its supervoxels and a crop are drawn uniformly, then a second crop at most `spread` places from
    the first in the supervoxel's list of crops. (The paper draws first the one that is not warped; here it is a coin,
    which matters only in lists longer than `spread`.)

    Args:
        depth: slices of a crop; a scan with fewer is one crop.
        min_size: a crop holds more voxels of the supervoxel than this.

    Raises:
        UserError: no scan offers a single crop.
    """

    def __init__(
        self,
        areas: Iterable[np.ndarray],
        *,
        depth: int = 10,
        min_size: int = 200,
        spread: int = 50,
        excluded: Sequence[np.ndarray] | None = None,
    ) -> None:
        self.spread = spread
        # (scan, segments (N,), by segment the first slices of its crops (N, slices))
        self._scans: list[tuple[int, np.ndarray, np.ndarray]] = []
        for scan, table in enumerate(areas):
            fits = window_sums(table, depth) > min_size
            fits[0] = False
            if excluded is not None:
                fits &= window_sums(excluded[scan][None].astype(int), depth) == 0
            segments = np.flatnonzero(fits.any(1))
            if len(segments):
                self._scans.append((scan, segments, fits[segments]))
        if not self._scans:
            raise UserError(
                f"no crop of {depth} slices holds more than episode.min_size={min_size} voxels of a supervoxel"
                f"{'' if excluded is None else ' and no excluded slice'}; lower episode.min_size, or make "
                f"episode.crop shallower"
            )

    def draw(self, generator: np.random.Generator) -> Choice:
        """One task; both crops may be the same."""
        scan, segments, fits = self._scans[generator.integers(len(self._scans))]
        row = generator.integers(len(segments))
        segment, starts = int(segments[row]), np.flatnonzero(fits[row])
        place = generator.integers(len(starts))
        near = starts[max(place - self.spread, 0) : place + self.spread + 1]
        crops = [int(starts[place]), int(generator.choice(near))]
        support, query = crops if generator.random() < 0.5 else reversed(crops)
        return Choice(scan, segment, support, (query,))


def slice_areas(volume: np.ndarray) -> np.ndarray:
    """Pixels of every id on every slice: `(D, H, W)` integers -> `(ids, D)`, row 0 is the background."""
    count = int(volume.max()) + 1
    return np.stack([np.bincount(ids.ravel(), minlength=count) for ids in volume], axis=1)


def _usable_areas(areas: Iterable[np.ndarray], excluded: Sequence[np.ndarray] | None) -> Iterator[np.ndarray]:
    """Areas of every scan, 0 on excluded slices."""
    for scan, table in enumerate(areas):
        yield table if excluded is None else np.where(excluded[scan], 0, table)


def neighbours(usable: np.ndarray, z: int, reach: int) -> list[int]:
    """Slices within `reach` of z, ascending, with nothing but usable ones `(D,)` between."""
    found = []
    for step in (-1, 1):
        for other in range(z + step, z + step * (reach + 1), step):
            if not 0 <= other < len(usable) or not usable[other]:
                break
            found.append(other)
    return sorted(found)


def window_sums(counts: np.ndarray, depth: int) -> np.ndarray:
    """Sums over windows of `depth` (or all) consecutive slices: `(ids, D)` -> `(ids, D - depth + 1)`."""
    depth = min(depth, counts.shape[1])
    sums = np.pad(counts, ((0, 0), (1, 0))).cumsum(1)
    return sums[:, depth:] - sums[:, :-depth]


def _pairs(areas: np.ndarray, min_size: int, size_of: str, consecutive: bool) -> tuple[np.ndarray, np.ndarray]:
    """Acceptable pairs of one scan, `(N, 3)` int32 segment, first, second, with their probabilities, which sum to at
    most 1.

    The published code draws among the segments that two slices show, then among the runs of such a segment (one if runs
    are not split), then among the pairs of the run; it gives up the scan if a segment has no run. The scan is then
    drawn less often, by the factor accepted / (accepted + given up).
    """
    segments, slices = np.nonzero(areas[1:])
    first = np.flatnonzero(segments[1:] == segments[:-1])  # whose next entry is the same segment's
    drawn = np.unique(segments[first])
    if consecutive:
        first = first[np.diff(slices)[first] == 1]
    # a run of pairs ends where the segment does, or where the second slice of a pair is not the first of the next
    begins = np.ones(len(first), bool)
    begins[1:] = (segments[first[1:]] != segments[first[:-1]]) | ((np.diff(first) > 1) if consecutive else False)
    run = np.cumsum(begins) - 1
    runs_of = np.bincount(segments[first[begins]], minlength=len(areas))
    weights = 1 / len(drawn) / runs_of[segments[first]] / np.bincount(run)[run] if len(first) else np.zeros(0)
    sizes = areas[1:][segments[first], slices[first]]
    if size_of == "larger":
        sizes = np.maximum(sizes, areas[1:][segments[first], slices[first + 1]])
    large = sizes >= min_size
    rows = np.stack((segments[first] + 1, slices[first], slices[first + 1]), 1)[large].astype(np.int32)
    weights, given_up = weights[large], np.count_nonzero(runs_of[drawn] == 0)
    # summed one by one, not pairwise: a seed must choose what it always chose
    share = np.cumsum([0, *weights])[-1] + np.cumsum([0] + [1 / max(len(drawn), 1)] * given_up)[-1]
    return rows, weights / (share or 1.0)
