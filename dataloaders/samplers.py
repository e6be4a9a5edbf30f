"""Which episode: choices of numbers from tables computed once. Nothing is cut or drawn upon here.

Every sampler takes the supervoxels or superpixels `(D, H, W)` of the training scans, the smallest area `min_size`, and
`excluded`: for every scan the slices, booleans `(D,)`, that are never used (setting 2), or None.
"""

import itertools
from collections.abc import Iterator, Sequence
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
        supervoxels: Sequence[np.ndarray],
        *,
        min_size: int = 200,
        size_of: str = "first",
        consecutive: bool = False,
        excluded: Sequence[np.ndarray] | None = None,
    ) -> None:
        rows, weights = [], []
        for scan, areas in enumerate(_usable_areas(supervoxels, excluded)):
            scan_rows, scan_weights = _pairs(areas, min_size, size_of, consecutive)
            rows += [(scan, *row) for row in scan_rows]
            weights += scan_weights
        if not rows:
            raise UserError(
                f"no supervoxel of the training scans reaches episode.min_size={min_size} pixels on two "
                "neighbouring slices; lower episode.min_size, or make larger supervoxels"
            )
        self.table = np.array(rows)
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
        self, superpixels: Sequence[np.ndarray], *, min_size: int = 1, excluded: Sequence[np.ndarray] | None = None
    ) -> None:
        self._slices: list[tuple[int, int, np.ndarray]] = []
        for scan, areas in enumerate(_usable_areas(superpixels, excluded)):
            large = areas[1:] >= max(min_size, 1)
            for z in np.flatnonzero(large.any(0)):
                self._slices.append((scan, int(z), np.flatnonzero(large[:, z]) + 1))
        if not self._slices:
            raise UserError(f"no superpixel of the training scans has episode.min_size={min_size} pixels; lower it")

    def draw(self, generator: np.random.Generator) -> Choice:
        """One task."""
        scan, z, segments = self._slices[generator.integers(len(self._slices))]
        return Choice(scan, int(generator.choice(segments)), z, (z,))


class CropsSampler:
    """Two crops of consecutive slices that hold enough of one supervoxel [adnet 5.1] [adnet 5.3].

    A scan, one of its supervoxels and a crop are drawn uniformly, then a second crop at most `spread` places from
    the first in the supervoxel's list of crops. (The paper draws first the one that is not warped; here it is a coin,
    which matters only in lists longer than `spread`.)

    Args:
        depth: slices of a crop; a scan with fewer is one crop.
        min_size: a crop holds more voxels of the supervoxel than this.
        spread: see above.

    Raises:
        UserError: no scan offers a single crop.
    """

    def __init__(
        self,
        supervoxels: Sequence[np.ndarray],
        *,
        depth: int = 10,
        min_size: int = 200,
        spread: int = 50,
        excluded: Sequence[np.ndarray] | None = None,
    ) -> None:
        self.spread = spread
        self._scans: list[tuple[int, list[tuple[int, np.ndarray]]]] = []  # (scan, [(segment, first slices)])
        for scan, volume in enumerate(supervoxels):
            fits = window_sums(slice_areas(volume), depth) > min_size
            fits[0] = False
            if excluded is not None:
                fits &= window_sums(excluded[scan][None].astype(int), depth) == 0
            segments = [(int(segment), np.flatnonzero(fits[segment])) for segment in np.flatnonzero(fits.any(1))]
            if segments:
                self._scans.append((scan, segments))
        if not self._scans:
            raise UserError(
                f"no crop of {depth} slices holds more than episode.min_size={min_size} voxels of a supervoxel"
                f"{'' if excluded is None else ' and no excluded slice'}; lower episode.min_size, or make "
                f"episode.crop shallower"
            )

    def draw(self, generator: np.random.Generator) -> Choice:
        """One task; both crops may be the same."""
        scan, segments = self._scans[generator.integers(len(self._scans))]
        segment, starts = segments[generator.integers(len(segments))]
        place = generator.integers(len(starts))
        near = starts[max(place - self.spread, 0) : place + self.spread + 1]
        crops = [int(starts[place]), int(generator.choice(near))]
        support, query = crops if generator.random() < 0.5 else reversed(crops)
        return Choice(scan, segment, support, (query,))


def slice_areas(volume: np.ndarray) -> np.ndarray:
    """Pixels of every id on every slice: `(D, H, W)` integers -> `(ids, D)`, row 0 is the background."""
    count = int(volume.max()) + 1
    depth = len(volume)
    keys = volume.reshape(depth, -1) + count * np.arange(depth)[:, None]
    return np.bincount(keys.ravel(), minlength=count * depth).reshape(depth, count).T


def _usable_areas(segments: Sequence[np.ndarray], excluded: Sequence[np.ndarray] | None) -> Iterator[np.ndarray]:
    """`slice_areas` of every scan, 0 on excluded slices."""
    for scan, volume in enumerate(segments):
        areas = slice_areas(volume)
        if excluded is not None:
            areas[:, excluded[scan]] = 0
        yield areas


def window_sums(counts: np.ndarray, depth: int) -> np.ndarray:
    """Sums over windows of `depth` (or all) consecutive slices: `(ids, D)` -> `(ids, D - depth + 1)`."""
    depth = min(depth, counts.shape[1])
    sums = np.pad(counts, ((0, 0), (1, 0))).cumsum(1)
    return sums[:, depth:] - sums[:, :-depth]


def _pairs(areas: np.ndarray, min_size: int, size_of: str, consecutive: bool) -> tuple[list, list]:
    """Acceptable (segment, first, second) of one scan with their probabilities, which sum to at most 1.

    The published code draws among the segments that two slices show, and gives up the scan if they are not consecutive.
    The scan is then drawn less often, by the factor accepted / (accepted + given up).
    """
    several = np.flatnonzero(np.count_nonzero(areas[1:], axis=1) >= 2) + 1
    pairs_of = {segment: _neighbours(np.flatnonzero(areas[segment]), consecutive) for segment in several.tolist()}
    rows, weights, given_up = [], [], 0.0
    for segment, groups in pairs_of.items():
        given_up += (not groups) / len(pairs_of)
        for group in groups:
            for first, second in group:
                sizes = areas[segment, [first, second]]
                if (sizes[0] if size_of == "first" else sizes.max()) >= min_size:
                    rows.append((segment, int(first), int(second)))
                    weights.append(1 / len(pairs_of) / len(groups) / len(group))
    share = sum(weights) + given_up
    return rows, [weight / share for weight in weights]


def _neighbours(slices: np.ndarray, consecutive: bool) -> list[list[tuple[int, int]]]:
    """Pairs of list neighbours, grouped by run (one group if runs are not split)."""
    groups = np.split(slices, np.flatnonzero(np.diff(slices) > 1) + 1) if consecutive else [slices]
    return [list(itertools.pairwise(group)) for group in groups if len(group) >= 2]
