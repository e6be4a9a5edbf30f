"""Answers that follow the anatomy: the supervoxels of a scan vote on what a method says.

A network answers in cells of 8 or 16 pixels; the image knows better where an organ ends. The scan is cut into
supervoxels of several sizes, each takes the mean foreground probability of its voxels, and the sizes join in a weighted
mean. Large pieces remove most mistakes, but a thin organ is no union of large pieces. So a size counts as far as it can
be trusted for the organ at hand: the annotated support slices say how much of their own mask survives its vote. A
threshold between the pieces that were called organ and those that were not replaces 0.5, and strays are dropped.

No label of the query is looked at. The numbers below were chosen on two phantoms and on CHAOST2 scans 1, 2, 3, 5, 8,
13, 19, 21, 31, 33, 36 and 38; only the largest size and the share of strays were compared on the scans of folds 0 to 3.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

from util.evaluation.tasks import Task

SIZES = (0.3, 0.6, 1.2, 2.4, 4.8, 9.6, 19.2, 38.4, 76.8)  # ml, smallest pieces of each partition
STRICTNESS = 8  # power of the Dice that says how far a size is trusted
ANSWER = 2.4  # ml: the answer itself counts as much as pieces of this size that keep all of the organ
FLOOR = 0.35  # what is below is no candidate, and does not move the threshold ...
BACKGROUND = 0.1  # ... but for this share of what is above, so that it parts an organ from its surroundings, not in two
STRAY = 0.5  # components with less than this share of the strongest one's evidence are dropped

# image (D, H, W) on 0..255, min_sizes in voxels, spacing in mm -> labels of each size, each nested in the next
Cut = Callable[..., Iterable[np.ndarray]]


class Pieces:
    """The supervoxels of a scan in all SIZES; every piece is a union of pieces of the size before.

    Args:
        grey: `(D, H, W)`, intensities on 0..255, as `stretched` gives them.
        spacing: mm along these axes.
        cut: makes the partitions, as `supervoxels.partitions` does.
    """

    def __init__(self, grey: np.ndarray, spacing: Sequence[float], cut: Cut) -> None:
        voxels = [max(round(size * 1000 / float(np.prod(spacing))), 1) for size in SIZES]
        partitions = iter(cut(grey, min_sizes=voxels, spacing=tuple(spacing)))
        self.finest = next(partitions)
        flat = self.finest.ravel()
        some_voxel = np.empty(flat.max() + 1, dtype=np.int64)
        some_voxel[flat] = np.arange(flat.size)
        self.parents = [np.arange(len(some_voxel)), *(labels.ravel()[some_voxel] for labels in partitions)]

    def means(self, values: np.ndarray, slices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Mean of `values` `(D, H, W)` over the pieces of every size, on some slices only.

        Returns:
            `(sizes, N)` for the N finest pieces, and the voxels `(N,)` that these have on the slices.
        """
        voxels, sums = np.zeros(self.parents[0].size, np.int64), np.zeros(self.parents[0].size)
        for z in slices:  # one by one: numbers of pieces become int64 on the way, and values float64
            labels = self.finest[z].ravel()
            voxels += np.bincount(labels, minlength=len(voxels))
            np.add.at(sums, labels, values[z].ravel().astype(np.float64))
        means = [
            (np.bincount(parent, sums) / np.maximum(np.bincount(parent, voxels), 1))[parent] for parent in self.parents
        ]
        return np.stack(means), voxels

    def survival(self, mask: np.ndarray, slices: Sequence[int]) -> np.ndarray:
        """Dice `(sizes,)`, on some slices, of a mask `(D, H, W)` with what the vote of each size makes of it."""
        shares, voxels = self.means(mask, slices)
        kept = np.where(shares > 0.5, voxels, 0)
        return 2 * (kept * shares[0]).sum(1) / (kept.sum(1) + (voxels * shares[0]).sum())


class SupervoxelVoter:
    """Lets the supervoxels of scans vote. A scan is cut once, for all organs, methods and supports.

    Args:
        read_scan: number -> scan with `image (D, H, W)`, `spacing`, and `organ(id)` if it is a support.
        cut: makes the partitions, as `supervoxels.partitions` does.
    """

    def __init__(self, read_scan: Callable[[int], Any], cut: Cut) -> None:
        self.read_scan, self.cut = read_scan, cut
        self._pieces: dict[int, Pieces] = {}
        self._survival: dict[tuple, np.ndarray] = {}

    def keep(self, scans: frozenset[int]) -> None:
        """Forget the pieces of all other scans."""
        self._pieces = {number: pieces for number, pieces in self._pieces.items() if number in scans}

    def pieces(self, number: int) -> Pieces:
        """Those of a scan, cut on first use."""
        if number not in self._pieces:
            scan = self.read_scan(number)
            grey, spacing = stretched(scan.image), scan.spacing
            del scan  # nobody else may hold its image, which is large
            self._pieces[number] = Pieces(grey, spacing, self.cut)
        return self._pieces[number]

    def vote(self, probability: np.ndarray, tasks: Sequence[Task]) -> np.ndarray:
        """What the pieces make of a foreground probability `(D, H, W)`, of tasks that differ in their supports only."""
        slices = sorted({z for group in tasks[0].groups for z in group.query_slices})
        return vote(probability, self.pieces(tasks[0].query), self.trust(tasks), slices)

    def trust(self, tasks: Sequence[Task]) -> np.ndarray:
        """How far every size can be trusted `(sizes,)`, 0 to 1: what survives of the annotated slices."""
        annotated: dict[int, set[int]] = {}
        for scan, z in (shot for task in tasks for group in task.groups for shot in group.support):
            annotated.setdefault(scan, set()).add(z)
        survivals = [self._survives(scan, tasks[0].identifier, sorted(slices)) for scan, slices in annotated.items()]
        return np.mean(survivals, axis=0)

    def _survives(self, scan: int, identifier: int, slices: list[int]) -> np.ndarray:
        key = (scan, identifier, *slices)
        if key not in self._survival:
            self._survival[key] = self.pieces(scan).survival(self.read_scan(scan).organ(identifier), slices)
        return self._survival[key]


def stretched(image: np.ndarray) -> np.ndarray:
    """Any intensities `(D, H, W)` on 0..255; computed as they are, then float64, of which a cut makes no copy."""
    grey = image - image.min()
    grey *= 255 / max(float(np.ptp(image)), 1e-9)
    return grey.astype(np.float64, copy=False)


def vote(probability: np.ndarray, pieces: Pieces, trust: np.ndarray, slices: Sequence[int]) -> np.ndarray:
    """Join the votes of all sizes; returns a probability `(D, H, W)` float32 that is above 0.5 in the organ.

    Args:
        probability: foreground, `(D, H, W)`.
        pieces: of the same scan.
        trust: of every size, 0 to 1.
        slices: those that were segmented; the answer is 0 elsewhere.
    """
    weights = np.array(SIZES) * trust**STRICTNESS
    means, _ = pieces.means(probability, slices)
    of_piece = (weights @ means).astype(np.float32)
    answer = np.zeros(probability.shape, dtype=np.float32)
    for z in slices:
        answer[z] = (of_piece[pieces.finest[z]] + ANSWER * probability[z]) / (weights.sum() + ANSWER)
    threshold = threshold_between(answer[slices] if len(slices) < len(answer) else answer)
    for z in slices:
        joined = answer[z]
        answer[z] = joined * (1 - threshold) / (joined * (1 - threshold) + (1 - joined) * threshold)  # -> 0.5
    return without_strays(answer)


def threshold_between(values: np.ndarray) -> float:
    """The threshold that parts values above FLOOR best (Otsu, IEEE Trans. SMC 1979)."""
    counts, edges = np.histogram(values, bins=128, range=(FLOOR, 1))
    counts[0] += math.ceil(BACKGROUND * counts.sum())
    if np.count_nonzero(counts) < 2:
        return 0.5
    return float(threshold_otsu(hist=(counts, edges[1:])))


def without_strays(answer: np.ndarray) -> np.ndarray:
    """The answer, at most 0.5 in components that are weak beside the strongest.

    What speaks for a component is the sum of its voxels' probabilities, each less 0.5: an organ is in one piece, and
    neither a large doubtful piece nor a small certain one elsewhere is it.
    """
    inside = answer > 0.5
    components, count = ndimage.label(inside)
    if count > 1:
        components, values = components[inside], answer[inside]
        evidence = np.bincount(components, values - 0.5)
        values[(evidence < STRAY * evidence.max())[components]] = 0.5
        answer[inside] = values
    return answer
