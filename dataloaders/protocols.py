"""Test protocols: which scan supports which, and which slices meet (spec adnet 7, training_protocol 6).

`strict` (default): every scan is a query exactly once, the support scan is the fold's own, all slices of the query are
segmented, so the whole volume is scored beside the slices that show the organ. `legacy`: the published book-keeping:
neighbouring folds share a scan, the support is a position in the sorted test scans, and with `parts` slices without the
organ are never looked at.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from util.dataset import Fold
from util.errors import UserError
from util.evaluation import Group, Task


def legacy_fold(fold: Fold, support_index: int, order: str = "sorted") -> Fold:
    """The published fold: the support at `support_index` of the test scans (ADNet -1, Q-Net family 2).

    They stand in ascending order, or in the circular order of ALPNet, where the last fold wraps to the first scan.

    Raises:
        UserError: no such position.
    """
    tested = sorted(fold.tested) if order == "sorted" else [*fold.query, fold.support]
    if not -len(tested) <= support_index < len(tested):
        raise UserError(f"test.support_index={support_index}: the fold has {len(tested)} test scans {tested}")
    support = tested[support_index]
    return Fold(support, tuple(scan for scan in tested if scan != support))


def fractions(parts: int) -> list[float]:
    """Relative positions of the support slices, in this order of operations: 1/(2n) + k/n rounds differently."""
    if parts == 1:
        return [0.5]
    return [1 / (2 * parts) + k * ((1 - 1 / parts) / (parts - 1)) for k in range(parts)]


def support_indices(count: int, parts: int) -> list[int]:
    """Positions, within the `count` slices that show the organ, of the annotated slices."""
    return [int(fraction * count) for fraction in fractions(parts)]


def chunk_borders(count: int, parts: int) -> list[int]:
    """The `parts + 1` borders of the chunks of `count` slices."""
    return np.linspace(0, count, parts + 1).astype(int).tolist()


def make_tasks(
    fold: Fold,
    organs: Mapping[str, int],
    labels: Mapping[int, np.ndarray],
    *,
    match: str = "parts",
    parts: int = 3,
    part_rule: str = "chunks",
    whole_volume: bool = True,
) -> list[Task]:
    """All tasks of a fold: every query scan, every organ it shows.

    Args:
        fold: support and query scans.
        organs: name -> id.
        labels: scan number -> labels `(D, H, W)`.
        match: "parts" (EP1): the organ's extent in `parts` chunks, each with one support slice; "whole" (EP2): every
            slice with the middle support slice.
        parts: number of chunks.
        part_rule: "chunks" of equal numbers of slices that show the organ; "extent": thirds of the distance between
            its first and last slice, all slices between which are scored (ALPNet).
        whole_volume: with "parts", also segment the slices outside the extent, with the nearest chunk's support slice.

    Raises:
        UserError: the support scan does not show an organ.
    """
    return list(_tasks(fold, organs, labels, match, parts, part_rule, whole_volume))


def _tasks(fold, organs, labels, match, parts, part_rule, whole_volume) -> Iterator[Task]:
    for query in fold.query:
        for organ, identifier in organs.items():
            shown = _slices_showing(labels[fold.support], identifier)
            if len(shown) == 0:
                raise UserError(
                    f"scan {fold.support} is the support but shows no {organ} (id {identifier}); "
                    "choose another support scan for this fold in config.py"
                )
            depth = len(labels[query])
            extent = _slices_showing(labels[query], identifier)
            if len(extent) == 0:
                continue  # nothing to score: the published protocols know only scans that show the organ
            if match == "whole":
                middle = int(shown[support_indices(len(shown), 1)[0]])
                groups = (Group((middle,), tuple(range(depth))),)
                yield Task(organ, identifier, fold.support, query, groups, tuple(range(depth)))
            else:
                chosen = [int(shown[index]) for index in support_indices(len(shown), parts)]
                if part_rule == "extent":
                    extent = np.arange(extent[0], extent[-1] + 1)
                    chunk_of = assign_extent(extent[0], extent[-1], depth, parts)
                else:
                    chunk_of = assign_chunks(extent, depth, parts)
                looked_at = np.arange(depth) if whole_volume else extent
                chunks = [tuple(looked_at[chunk_of[looked_at] == part].tolist()) for part in range(parts)]
                groups = tuple(Group((z,), chunk) for z, chunk in zip(chosen, chunks, strict=True) if chunk)
                yield Task(organ, identifier, fold.support, query, groups, tuple(extent.tolist()))


def assign_chunks(extent: np.ndarray, depth: int, parts: int) -> np.ndarray:
    """Chunk `(D,)` of every slice: in the extent by its borders, elsewhere that of the nearest one below (or above)."""
    position = np.searchsorted(extent, np.arange(depth), side="right") - 1
    borders = chunk_borders(len(extent), parts)
    return np.searchsorted(borders, position.clip(min=0), side="right") - 1


def assign_extent(first: int, last: int, depth: int, parts: int) -> np.ndarray:
    """Part `(D,)` of every slice by its position between the first and last slice of the organ, clamped (alpnet 11)."""
    if first == last:
        return np.zeros(depth, dtype=int)
    return ((np.arange(depth) - first) // ((last - first) / parts)).astype(int).clip(0, parts - 1)


def _slices_showing(label: np.ndarray, identifier: int) -> np.ndarray:
    return np.flatnonzero((label == identifier).any((1, 2)))
