"""How query slices meet annotated support slices: one class for each value of `test.pairing` [adnet 7] [alpnet 11]."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from util.errors import UserError
from util.evaluation.tasks import Annotated, Group


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

    def annotated(self, shown: Mapping[int, np.ndarray]) -> list[tuple[Annotated, ...]]:
        """The annotated slices of every part, given the slices that show the organ in every support scan."""
        shots = self.shots if self.shots_of == "slices" else 1
        chosen = {scan: slices[support_indices(len(slices), self.parts * shots)] for scan, slices in shown.items()}
        return [
            tuple((scan, int(z)) for scan, slices in chosen.items() for z in slices[k * shots : (k + 1) * shots])
            for k in range(self.parts)
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
            extent: query slices that show the organ; only "parts" and "propagate" look at it. None = unknown.
            depths: slices of every support scan.
        """
        runs = self.runs(annotated, depth, extent, depths)
        pairs = zip(annotated, runs, strict=True)
        return tuple(Group(part, tuple(run.tolist())) for part, run in pairs if len(run))

    def runs(
        self,
        annotated: Sequence[tuple[Annotated, ...]],
        depth: int,
        extent: np.ndarray | None,
        depths: Mapping[int, int],
    ) -> list[np.ndarray]:
        """The query slices of every part; arguments as in `groups`."""
        return np.array_split(np.arange(depth), len(annotated))

    def scored(self, groups: Sequence[Group], depth: int, extent: np.ndarray) -> tuple[int, ...]:
        """Slices that count for the protocol's score: those that show the organ, or all of a scan that lacks it."""
        return tuple(extent.tolist()) if len(extent) else tuple(range(depth))

    def similar(self, extent: np.ndarray | None) -> bool:
        """True if the groups' query slices are found by what they look like (`Task.similar`)."""
        return False


class Whole(Pairing):
    """EP2: the middle slice of the organ, for every slice of the query."""

    def annotated(self, shown: Mapping[int, np.ndarray]) -> list[tuple[Annotated, ...]]:
        """As of one part."""
        return super(Whole, replace(self, parts=1)).annotated(shown)

    def scored(self, groups: Sequence[Group], depth: int, extent: np.ndarray) -> tuple[int, ...]:
        """All slices."""
        return tuple(range(depth))


class Volume(Whole):
    """Every slice that shows the organ in the support is annotated, for every slice of the query (ADNet 3D)."""

    def annotated(self, shown: Mapping[int, np.ndarray]) -> list[tuple[Annotated, ...]]:
        """One part of all these slices."""
        return [tuple((scan, int(z)) for scan, slices in shown.items() for z in slices)]


class Position(Pairing):
    """Every slice goes to the part whose annotated slices lie nearest in relative height; truth is not looked at."""

    def runs(
        self,
        annotated: Sequence[tuple[Annotated, ...]],
        depth: int,
        extent: np.ndarray | None,
        depths: Mapping[int, int],
    ) -> list[np.ndarray]:
        """By relative height in the scan."""
        heights = [np.mean([(z + 0.5) / depths[scan] for scan, z in part]) for part in annotated]
        nearest = np.abs((np.arange(depth)[:, None] + 0.5) / depth - heights).argmin(1)
        return [np.flatnonzero(nearest == part) for part in range(len(annotated))]


class Similar(Pairing):
    """Every slice goes to the part that it looks like; truth is not looked at."""

    def similar(self, extent: np.ndarray | None) -> bool:
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

    def runs(
        self,
        annotated: Sequence[tuple[Annotated, ...]],
        depth: int,
        extent: np.ndarray | None,
        depths: Mapping[int, int],
    ) -> list[np.ndarray]:
        """Chunks of the extent."""
        if not len(extent):
            return super().runs(annotated, depth, extent, depths)
        if self.part_rule == "chunks":
            chunk_of = assign_chunks(extent, depth, self.parts)
        else:
            extent = np.arange(extent[0], extent[-1] + 1)
            if self.part_rule == "unclamped":
                return unclamped_walks(extent, self.parts)
            chunk_of = assign_extent(extent[0], extent[-1], depth, self.parts)
        looked_at = np.arange(depth) if self.whole_volume else extent
        return [looked_at[chunk_of[looked_at] == part] for part in range(self.parts)]

    def scored(self, groups: Sequence[Group], depth: int, extent: np.ndarray) -> tuple[int, ...]:
        """The extent; with "unclamped", what is seen twice counts twice, and what is lost does not count."""
        if self.part_rule == "unclamped":
            return tuple(z for group in groups for z in group.query_slices)
        if self.part_rule == "extent" and len(extent):
            return tuple(range(extent[0], extent[-1] + 1))
        return super().scored(groups, depth, extent)


@dataclass(frozen=True)
class Propagate(Parts):
    """VSPS: the chunks of `Parts`, walked outward from their middles; where the extent is unknown, similar slices.

    Attributes:
        anchored: walks are held to what the annotated slices say (see `Group`); published walks are not.
    """

    anchored: bool = True

    def groups(
        self,
        annotated: Sequence[tuple[Annotated, ...]],
        depth: int,
        extent: np.ndarray | None,
        depths: Mapping[int, int],
    ) -> tuple[Group, ...]:
        """Groups with a pivot."""
        if self.similar(extent):
            runs = np.array_split(np.arange(depth), len(annotated))
            pivots = [run[len(run) // 2] if len(run) else 0 for run in runs]
        else:
            runs = self.runs(annotated, depth, extent, depths)
            shown = extent if self.part_rule == "chunks" else np.arange(extent[0], extent[-1] + 1)
            pivots = shown[support_indices(len(shown), len(annotated))]
        walks = zip(annotated, runs, pivots, strict=True)
        return tuple(
            Group(part, tuple(run.tolist()), int(run[np.abs(run - pivot).argmin()]), self.anchored)
            for part, run, pivot in walks
            if len(run)
        )

    def similar(self, extent: np.ndarray | None) -> bool:
        """If nothing shows where the organ lies."""
        return extent is None or not len(extent)


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
    idle = {"parts": parts != 3} if kind in ("whole", "volume") else {}
    idle["shots"] = kind == "volume" and shots != 1 and shots_of == "slices"
    for name, said in idle.items():
        if said:
            raise UserError(f"{name}={locals()[name]}: has no effect with pairing={kind}; leave it away")
    return PAIRINGS[kind](parts=parts, shots=shots, shots_of=shots_of, **published)


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


def assign_chunks(extent: np.ndarray, depth: int, parts: int) -> np.ndarray:
    """Chunk `(D,)` of every slice: in the extent by its borders, elsewhere that of the nearest one below (or above)."""
    position = np.searchsorted(extent, np.arange(depth), side="right") - 1
    borders = chunk_borders(len(extent), parts)
    return np.searchsorted(borders, position.clip(min=0), side="right") - 1


def assign_extent(first: int, last: int, depth: int, parts: int) -> np.ndarray:
    """Part `(D,)` of every slice by its place between the organ's first and last slice, clamped [alpnet 11]."""
    if first == last:
        return np.zeros(depth, dtype=int)
    return part_of(np.arange(depth), first, last, parts).clip(0, parts - 1)


def unclamped_walks(extent: np.ndarray, parts: int) -> list[np.ndarray]:
    """Slices of every part as VISA-FSS's code walks them: from the part's middle up and down, as long as the part stays
    the same. Its index is not clamped, so the last slice may belong to none [visa 10].

    Args:
        extent: all slices from the first to the last that shows the organ.
        parts: how many.
    """
    first, last = int(extent[0]), int(extent[-1])
    numbers = dict(zip(extent.tolist(), part_of(extent, first, last, parts).tolist(), strict=True))
    walks = []
    for part, index in enumerate(support_indices(len(extent), parts)):
        low = high = int(extent[index])
        while numbers.get(high + 1) == part:
            high += 1
        while numbers.get(low - 1) == part:
            low -= 1
        walks.append(np.arange(low, high + 1))
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
