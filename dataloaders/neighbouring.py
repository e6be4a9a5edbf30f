"""Tasks between neighbouring slices: a superpixel and the slices it is carried to [visa 6.2] [visa 7.2]."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from dataloaders.samplers import Choice, SliceSampler
from util.errors import UserError


class NeighbouringSampler(SliceSampler):
    """A superpixel of a slice, asked for on neighbouring slices, or now and then on other views of the same slice.

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
        depths: list[int] = []
        super().__init__(_counted(areas, depths), min_size=min_size, excluded=excluded)
        self.realistic, self.together = realistic, queries == "all"
        self.count = 2 * reach if self.together else 1
        usable = [~removed for removed in excluded or [np.zeros(depth, bool) for depth in depths]]
        around = [neighbours(usable[scan], z, reach) for scan, z, _ in self._slices]
        keep = [len(found) >= self.count or (not self.together and realistic == 0) for found in around]
        self._slices = [entry for entry, kept in zip(self._slices, keep, strict=True) if kept]
        self._around = [found for found, kept in zip(around, keep, strict=True) if kept]
        if not self._slices:
            raise UserError(f"no slice of the training scans has its neighbours; lower episode.reach={reach}")

    def draw(self, generator: np.random.Generator) -> Choice:
        """One task."""
        position = generator.integers(len(self._slices))
        (scan, z, segments), around = self._slices[position], self._around[position]
        segment = int(generator.choice(segments))
        if generator.random() >= self.realistic:
            return Choice(scan, segment, z, (z,) * self.count)
        queries = around if self.together else (int(generator.choice(around)),)
        return Choice(scan, segment, z, tuple(queries), carried=True)


def _counted(areas: Iterable[np.ndarray], depths: list[int]) -> Iterator[np.ndarray]:
    """The same tables; the number of slices of each is put down on the way."""
    for table in areas:
        depths.append(table.shape[1])
        yield table


def neighbours(usable: np.ndarray, z: int, reach: int) -> list[int]:
    """Slices within `reach` of z, ascending, with nothing but usable ones `(D,)` between."""
    found = []
    for step in (-1, 1):
        for other in range(z + step, z + step * (reach + 1), step):
            if not 0 <= other < len(usable) or not usable[other]:
                break
            found.append(other)
    return sorted(found)
