"""Test protocols: which scan supports which, and which slices meet [adnet 7] [training 6].

`strict` (default): every scan is a query exactly once, the support scan is the fold's own, all slices of the query are
segmented, so the whole volume is scored beside the slices that show the organ. `published`: the published book-keeping:
neighbouring folds share a scan, the support is a position in the sorted test scans, and with `parts` slices without the
organ are never looked at.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from util.dataset import Fold
from util.errors import UserError
from util.evaluation.tasks import Annotated, Group, Task


def published_fold(fold: Fold, support_index: int, order: str = "sorted") -> Fold:
    """The published fold: the support at `support_index` of the test scans (ADNet -1, Q-Net family 2).

    They stand in ascending order, or in the circular order of ALPNet, where the last fold wraps to the first scan.

    Raises:
        UserError: no such position.
    """
    tested = sorted(fold.tested) if order == "sorted" else [*fold.query, fold.support]
    if not -len(tested) <= support_index < len(tested):
        raise UserError(f"the fold has no test scan number {support_index}, it has {len(tested)} test scans {tested}")
    support = tested[support_index]
    return Fold(support, tuple(scan for scan in tested if scan != support))


def fractions(parts: int) -> list[float]:
    """Relative positions of the support slices, in this order of operations: 1/(2n) + k/n rounds differently."""
    if parts == 1:
        return [0.5]
    return [1 / (2 * parts) + k * ((1 - 1 / parts) / (parts - 1)) for k in range(parts)]


def support_indices(count: int, parts: int) -> list[int]:
    """Positions, within the `count` slices that show the organ, of the annotated slices.

    Examples:
        >>> support_indices(12, parts=3)
        [2, 6, 10]
    """
    return [int(fraction * count) for fraction in fractions(parts)]


def chunk_borders(count: int, parts: int) -> list[int]:
    """The `parts + 1` borders of the chunks of `count` slices."""
    return np.linspace(0, count, parts + 1).astype(int).tolist()


@dataclass(frozen=True)
class Pairing:
    """How query slices meet annotated support slices: the `test.*` keys of these names.

    Attributes:
        kind: "parts" (EP1, VSS): the organ's extent in the query in `parts` chunks, each with its own part of the
            support; "propagate" (VSPS): the same chunks, walked outward from their middle; "whole" (EP2): one part for
            every slice; "volume": every slice that shows the organ in the support is annotated, for every slice. Two
            look at nothing of the query's truth and yet have parts: "position", by the slice's relative height in the
            scan; "similar", by what the slice looks like.
        parts: number of parts, each with its own annotated slices.
        shots: annotated slices per part, or annotated scans.
        shots_of: which of the two: "slices", "scans".
        part_rule: "chunks" of equal numbers of slices that show the organ; "extent": thirds of the distance between
            its first and last slice, all slices between which are scored (ALPNet); "unclamped": the same walked from
            the middles as VISA-FSS's code does, which loses the last slice or sees one twice [visa V7].
        anchored: "propagate": walks are held to what the annotated slices say (see `Group`).
        whole_volume: with "parts" and "propagate", also segment the slices outside the extent, with the nearest chunk.
    """

    kind: str = "parts"
    parts: int = 3
    shots: int = 1
    shots_of: str = "slices"
    part_rule: str = "chunks"
    anchored: bool = True
    whole_volume: bool = True

    def annotated(self, shown: Mapping[int, np.ndarray]) -> list[tuple[Annotated, ...]]:
        """The annotated slices of every part, given the slices that show the organ in every support scan."""
        if self.kind == "volume":
            return [tuple((scan, int(z)) for scan, slices in shown.items() for z in slices)]
        parts = 1 if self.kind == "whole" else self.parts
        shots = self.shots if self.shots_of == "slices" else 1
        chosen = {scan: slices[support_indices(len(slices), parts * shots)] for scan, slices in shown.items()}
        return [
            tuple((scan, int(z)) for scan, slices in chosen.items() for z in slices[k * shots : (k + 1) * shots])
            for k in range(parts)
        ]

    def groups(
        self,
        annotated: Sequence[tuple[Annotated, ...]],
        depth: int,
        extent: np.ndarray | None,
        depths: Mapping[int, int],
    ) -> tuple[Group, ...]:
        """The groups of a task.

        Args:
            annotated: support slices of every part.
            depth: slices of the query.
            extent: query slices that show the organ; only "parts" and "propagate" look at it. None = unknown: then
                "propagate" walks through the runs of similar slices.
            depths: slices of every support scan.
        """
        if self.kind in ("whole", "volume") or self.by_similarity(extent):
            runs = np.array_split(np.arange(depth), len(annotated))
        elif self.kind == "position":
            heights = [np.mean([(z + 0.5) / depths[scan] for scan, z in part]) for part in annotated]
            nearest = np.abs((np.arange(depth)[:, None] + 0.5) / depth - heights).argmin(1)
            runs = [np.flatnonzero(nearest == part) for part in range(len(annotated))]
        else:
            runs = self._chunks(extent, depth)
        groups = [
            Group(part, tuple(run.tolist()), anchored=self.anchored) for part, run in zip(annotated, runs, strict=True)
        ]
        if self.kind == "propagate":
            middles = [run[len(run) // 2] if len(run) else 0 for run in runs]
            pivots = middles if extent is None else extent[support_indices(len(extent), len(groups))]
            groups = [replace(g, pivot=_nearest(g.query_slices, z)) for g, z in zip(groups, pivots, strict=True)]
        return tuple(group for group in groups if group.query_slices)

    def by_similarity(self, extent: np.ndarray | None) -> bool:
        """True if the groups' query slices are found by what they look like (`Task.similar`)."""
        return self.kind == "similar" or (self.kind == "propagate" and extent is None)

    def _chunks(self, extent: np.ndarray, depth: int) -> list[np.ndarray]:
        if self.part_rule == "unclamped":
            return unclamped_walks(extent, self.parts)
        if self.part_rule == "extent":
            chunk_of = assign_extent(extent[0], extent[-1], depth, self.parts)
        else:
            chunk_of = assign_chunks(extent, depth, self.parts)
        looked_at = np.arange(depth) if self.whole_volume else extent
        return [looked_at[chunk_of[looked_at] == part] for part in range(self.parts)]


def make_tasks(
    fold: Fold,
    organs: Mapping[str, int],
    label: Callable[[int], np.ndarray],
    pairing: Pairing = Pairing(),
    *,
    rotate: bool = False,
    spare: Sequence[int] = (),
) -> list[Task]:
    """All tasks of a fold: every query scan, every organ it shows.

    Args:
        fold: support and query scans.
        organs: name -> id.
        label: scan number -> labels `(D, H, W)`.
        pairing: how slices meet.
        rotate: every tested scan supports every other one in turn, not the fold's own support alone.
        spare: scans that may join as further shots after the tested ones: those that trained, without their labels.

    Raises:
        UserError: the fold's support scan does not show an organ, or there are fewer scans with it than shots.

    Examples:
        Two scans of 12 slices show the liver on slices 3 to 8; scan 8 is annotated, scan 1 is to be segmented:

        >>> label = np.zeros((12, 64, 64), dtype=int)
        >>> label[3:9, 20:40, 20:40] = 1
        >>> [task] = make_tasks(Fold(support=8, query=(1,)), {"liver": 1}, {8: label, 1: label}.get)
        >>> for group in task.groups:
        ...     print("(scan, slice)", group.support, "segments the slices", group.query_slices)
        (scan, slice) ((8, 4),) segments the slices (0, 1, 2, 3, 4)
        (scan, slice) ((8, 6),) segments the slices (5, 6)
        (scan, slice) ((8, 8),) segments the slices (7, 8, 9, 10, 11)
        >>> task.scored_slices
        (3, 4, 5, 6, 7, 8)
    """
    return list(_tasks(fold, organs, label, pairing, rotate, spare))


def _tasks(fold, organs, label, pairing, rotate, spare) -> Iterator[Task]:
    tested = [fold.support, *fold.query]
    for query, (organ, identifier), support in itertools.product(
        fold.query, organs.items(), tested if rotate else tested[:1]
    ):
        shown = slices_showing(label(support), identifier)
        if len(shown) == 0 and support == fold.support:
            raise UserError(
                f"scan {fold.support} is the support but shows no {organ} (id {identifier}); "
                "choose another support scan for this fold in config.py"
            )
        extent = slices_showing(label(query), identifier)
        if support == query or len(shown) == 0 or len(extent) == 0:
            continue  # nothing to score: the published protocols know only scans that show the organ
        if pairing.part_rule != "chunks":
            extent = np.arange(extent[0], extent[-1] + 1)
        further = [scan for scan in (*tested, *spare) if scan not in (support, query)]
        supports = _support_scans({support: shown}, further, label, organ, identifier, pairing)
        depths = {scan: len(label(scan)) for scan in supports}
        depth = len(label(query))
        groups = pairing.groups(pairing.annotated(supports), depth, extent, depths)
        if pairing.kind in ("whole", "volume"):
            scored = tuple(range(depth))
        elif pairing.part_rule == "unclamped":  # what is seen twice counts twice, what is lost does not
            scored = tuple(z for group in groups for z in group.query_slices)
        else:
            scored = tuple(extent.tolist())
        similar = pairing.by_similarity(extent)
        yield Task(organ, identifier, tuple(supports), query, groups, scored, similar)


def _support_scans(shown, further, label, organ, identifier, pairing) -> dict[int, np.ndarray]:
    """The support scans of a task with the slices that show the organ: as many as there are shots of scans."""
    wanted = pairing.shots if pairing.shots_of == "scans" else 1
    for scan in further:
        if len(shown) == wanted:
            break
        slices = slices_showing(label(scan), identifier)
        if len(slices):
            shown[scan] = slices
    if len(shown) < wanted:
        raise UserError(f"test.shots={wanted} scans: only {len(shown)} scans beside the query show the {organ}")
    return shown


def _nearest(slices: tuple[int, ...], z: int) -> int | None:
    return min(slices, key=lambda own: abs(own - int(z)), default=None)


def assign_chunks(extent: np.ndarray, depth: int, parts: int) -> np.ndarray:
    """Chunk `(D,)` of every slice: in the extent by its borders, elsewhere that of the nearest one below (or above)."""
    position = np.searchsorted(extent, np.arange(depth), side="right") - 1
    borders = chunk_borders(len(extent), parts)
    return np.searchsorted(borders, position.clip(min=0), side="right") - 1


def assign_extent(first: int, last: int, depth: int, parts: int) -> np.ndarray:
    """Part `(D,)` of every slice by its position between the first and last slice of the organ, clamped [alpnet 11]."""
    if first == last:
        return np.zeros(depth, dtype=int)
    return ((np.arange(depth) - first) // ((last - first) / parts)).astype(int).clip(0, parts - 1)


def unclamped_walks(extent: np.ndarray, parts: int) -> list[np.ndarray]:
    """Slices of every part as VISA-FSS's code walks them [visa 10]: from the part's middle up and down, as long as
    the part stays the same. Its index is not clamped, so the last slice often belongs to none.

    Args:
        extent: all slices from the first to the last that shows the organ.
        parts: how many.
    """
    height = (extent[-1] - extent[0]) / parts
    part_of = {int(z): int((z - extent[0]) / height) if height else 0 for z in extent}
    walks = []
    for part, index in enumerate(support_indices(len(extent), parts)):
        low = high = int(extent[index])
        while part_of.get(high + 1) == part:
            high += 1
        while part_of.get(low - 1) == part:
            low -= 1
        walks.append(np.arange(low, high + 1))
    return walks


def slices_showing(label: np.ndarray, identifier: int) -> np.ndarray:
    """Numbers of the slices of `(D, H, W)` that show an organ, ascending."""
    return np.flatnonzero((label == identifier).any((1, 2)))
