"""How query slices meet annotated support slices: one class for each value of `test.pairing` [adnet 7] [alpnet 11]."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from util.errors import UserError
from util.evaluation.tasks import Annotated, Group


@dataclass(frozen=True)
class Query:
    """What is known of the scan to segment.

    Attributes:
        depth: its slices.
        extent: those that show the organ, ascending; only "parts" and "propagate" look at it. None = unknown.
        depths: slices of every support scan.
    """

    depth: int
    extent: np.ndarray | None
    depths: Mapping[int, int]


Parted = Sequence[tuple[Annotated, ...]]  # the annotated slices of every part


@dataclass(frozen=True)
class Pairing:
    """What all pairings have in common: the `test.*` keys of these names.

    Attributes:
        parts: number of parts, each with its own annotated slices.
        shots: annotated slices per part, or annotated scans.
        shots_of: which of the two: "slices", "scans".
    """

    parts: int = 3
    shots: int = 1
    shots_of: str = "slices"

    def annotated(self, shown: Mapping[int, np.ndarray]) -> Parted:
        """The annotated slices of every part, given the slices that show the organ in every support scan."""
        shots = self.shots if self.shots_of == "slices" else 1
        chosen = {scan: slices[support_indices(len(slices), self.parts * shots)] for scan, slices in shown.items()}
        return [
            tuple((scan, int(z)) for scan, slices in chosen.items() for z in slices[k * shots : (k + 1) * shots])
            for k in range(self.parts)
        ]

    def groups(self, annotated: Parted, query: Query) -> tuple[Group, ...]:
        """The groups of a task."""
        pairs = zip(annotated, self.runs(annotated, query), strict=True)
        return tuple(Group(part, tuple(run.tolist())) for part, run in pairs if len(run))

    def runs(self, annotated: Parted, query: Query) -> list[np.ndarray]:
        """The query slices of every part."""
        return np.array_split(np.arange(query.depth), len(annotated))

    def scored(self, groups: Sequence[Group], query: Query) -> tuple[int, ...]:
        """Slices that count for the protocol's score: those that show the organ, or all of a scan that lacks it."""
        return tuple(query.extent.tolist()) if len(query.extent) else tuple(range(query.depth))

    def similar(self, query: Query) -> bool:
        """True if the groups' query slices are found by what they look like (`Task.similar`)."""
        return False


class Whole(Pairing):
    """EP2: the middle slice of the organ, for every slice of the query, all of which are scored."""

    def annotated(self, shown: Mapping[int, np.ndarray]) -> Parted:
        """As of one part."""
        return super(Whole, replace(self, parts=1)).annotated(shown)

    def scored(self, groups: Sequence[Group], query: Query) -> tuple[int, ...]:
        """All slices."""
        return tuple(range(query.depth))


class Volume(Whole):
    """Every slice that shows the organ in the support is annotated, for every slice of the query (ADNet 3D)."""

    def annotated(self, shown: Mapping[int, np.ndarray]) -> Parted:
        """One part of all these slices."""
        return [tuple((scan, int(z)) for scan, slices in shown.items() for z in slices)]


class Position(Pairing):
    """Every slice goes to the part whose annotated slices lie nearest in relative height; truth is not looked at."""

    def runs(self, annotated: Parted, query: Query) -> list[np.ndarray]:
        """By relative height in the scan."""
        heights = [np.mean([(z + 0.5) / query.depths[scan] for scan, z in part]) for part in annotated]
        nearest = np.abs((np.arange(query.depth)[:, None] + 0.5) / query.depth - heights).argmin(1)
        return [np.flatnonzero(nearest == part) for part in range(len(annotated))]


class Similar(Pairing):
    """Every slice goes to the part that it looks like; truth is not looked at."""

    def similar(self, query: Query) -> bool:
        """Always."""
        return True


@dataclass(frozen=True)
class Parts(Position):
    """EP1, VSS: the organ's extent in the query in chunks, each with its own part of the support.

    In a scan that lacks the organ there is no extent; its slices go by their relative height.

    Attributes:
        part_rule: "chunks" of equal numbers of slices that show the organ; "extent": thirds of the distance between
            its first and last slice, all slices between which are scored (ALPNet); "unclamped": the same walked from
            the middles as VISA-FSS's code does, which loses the last slice or sees one twice [visa V7].
        whole_volume: also segment the slices outside the extent, with the nearest chunk.
    """

    part_rule: str = "chunks"
    whole_volume: bool = True

    def shown(self, query: Query) -> np.ndarray:
        """Slices that are cut in parts: those that show the organ, or all from its first to its last."""
        extent = query.extent
        return extent if self.part_rule == "chunks" else np.arange(extent[0], extent[-1] + 1)

    def runs(self, annotated: Parted, query: Query) -> list[np.ndarray]:
        """Chunks of the extent."""
        if not len(query.extent):
            return super().runs(annotated, query)
        depth, extent = query.depth, self.shown(query)
        if self.part_rule == "unclamped":
            return unclamped_walks(extent, self.parts)
        if self.part_rule == "chunks":
            chunk_of = assign_chunks(extent, depth, self.parts)
        else:
            chunk_of = assign_extent(extent[0], extent[-1], depth, self.parts)
        looked_at = np.arange(depth) if self.whole_volume else extent
        return [looked_at[chunk_of[looked_at] == part] for part in range(self.parts)]

    def scored(self, groups: Sequence[Group], query: Query) -> tuple[int, ...]:
        """The extent; with "unclamped", what is seen twice counts twice, and what is lost does not count."""
        if self.part_rule == "unclamped":
            return tuple(z for group in groups for z in group.query_slices)
        return tuple(self.shown(query).tolist()) if len(query.extent) else super().scored(groups, query)


@dataclass(frozen=True)
class Propagate(Parts):
    """VSPS: the chunks of `Parts`, walked outward from their middles; where the extent is unknown, similar slices.

    Attributes:
        anchored: walks are held to what the annotated slices say (see `Group`); published walks are not.
    """

    anchored: bool = True

    def groups(self, annotated: Parted, query: Query) -> tuple[Group, ...]:
        """Groups with a pivot."""
        if self.similar(query):
            runs = Pairing.runs(self, annotated, query)
            pivots = [run[len(run) // 2] if len(run) else 0 for run in runs]
        else:
            runs = self.runs(annotated, query)
            shown = self.shown(query)
            pivots = shown[support_indices(len(shown), len(annotated))]
        return tuple(
            Group(part, tuple(run.tolist()), int(run[np.abs(run - pivot).argmin()]), self.anchored)
            for part, run, pivot in zip(annotated, runs, pivots, strict=True)
            if len(run)
        )

    def similar(self, query: Query) -> bool:
        """If nothing shows where the organ lies."""
        return query.extent is None or not len(query.extent)


PAIRINGS: dict[str, type[Pairing]] = {
    "parts": Parts,
    "whole": Whole,
    "propagate": Propagate,
    "volume": Volume,
    "position": Position,
    "similar": Similar,
}


def make_pairing(kind: str, *, parts: int = 3, shots: int = 1, shots_of: str = "slices", **published) -> Pairing:
    """The pairing `kind` of PAIRINGS; `published` are the further attributes of "parts" and "propagate".

    Raises:
        UserError: a number that this pairing would not use.
    """
    idle = {"parts": parts} if kind in ("whole", "volume") and parts != 3 else {}
    if kind == "volume" and shots_of == "slices" and shots != 1:
        idle["shots"] = shots
    for name, value in idle.items():
        raise UserError(f"{name}={value}: has no effect with pairing={kind}; leave it away")
    return PAIRINGS[kind](parts=parts, shots=shots, shots_of=shots_of, **published)


def support_indices(count: int, parts: int) -> list[int]:
    """Positions, within the `count` slices that show the organ, of the annotated slices.

    Examples:
        >>> support_indices(12, parts=3)
        [2, 6, 10]
    """
    if parts == 1:
        return [int(0.5 * count)]
    # in this order of operations: 1/(2n) + k/n rounds differently
    return [int((1 / (2 * parts) + k * ((1 - 1 / parts) / (parts - 1))) * count) for k in range(parts)]


def chunk_borders(count: int, parts: int) -> list[int]:
    """The `parts + 1` borders of the chunks of `count` slices."""
    return np.linspace(0, count, parts + 1).astype(int).tolist()


def assign_chunks(extent: np.ndarray, depth: int, parts: int) -> np.ndarray:
    """Chunk `(D,)` of every slice: in the extent by its borders, elsewhere that of the nearest one below (or above)."""
    position = np.searchsorted(extent, np.arange(depth), side="right") - 1
    return np.searchsorted(chunk_borders(len(extent), parts), position.clip(min=0), side="right") - 1


def assign_extent(first: int, last: int, depth: int, parts: int) -> np.ndarray:
    """Part `(D,)` of every slice by its place between the organ's first and last slice, clamped [alpnet 11]."""
    return part_of(np.arange(depth), first, last, parts).clip(0, parts - 1)


def unclamped_walks(extent: np.ndarray, parts: int) -> list[np.ndarray]:
    """Slices of every part as VISA-FSS's code walks them: from the part's middle up and down, as long as the part stays
    the same. Its index is not clamped, so the last slice may belong to none [visa 10].

    `extent` are all slices from the first to the last that shows the organ.
    """
    numbers = part_of(extent, extent[0], extent[-1], parts)
    walks = []
    for part, index in enumerate(support_indices(len(extent), parts)):
        other = np.flatnonzero(numbers != part)
        low = max(other[other < index], default=-1) + 1
        high = min(other[other > index], default=len(extent))
        walks.append(extent[low:high])
    return walks


def part_of(slices: np.ndarray, first: int, last: int, parts: int) -> np.ndarray:
    """Part of every slice, from 0: floor division by a third of the distance, which rounds otherwise than a quotient
    that is cut [visa 10]."""
    if first == last:
        return np.zeros(len(slices), dtype=int)
    return ((slices - first) // ((last - first) / parts)).astype(int)


def slices_showing(label: np.ndarray, identifier: int) -> np.ndarray:
    """Numbers of the slices of `(D, H, W)` that show an organ, ascending."""
    return np.flatnonzero((label == identifier).any((1, 2)))
