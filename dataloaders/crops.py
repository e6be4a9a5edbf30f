"""Training episodes of sub-volumes: cut from a warped volume, cropped around the supervoxel (spec adnet 5)."""

import functools
from collections.abc import Sequence

import numpy as np

from dataloaders.augmentation import Augmentation, Ranges, change_gamma
from dataloaders.episodes import TrainingEpisodes
from dataloaders.samplers import Choice, CropsSampler
from dataloaders.scans import Scan
from dataloaders.volume_augmentation import draw_affine, draw_column_slice
from util.errors import UserError

View = tuple[np.ndarray, np.ndarray]  # an image and its mask
WARPS = {"affine": draw_affine, "published": draw_column_slice}


class CropEpisodes(TrainingEpisodes):
    """Endless, numbered training episodes of one support and one query crop.

    Args:
        scans: the training scans, with segments.
        sampler: chooses scan, segment and crops.
        ranges: of the augmentation.
        seed: with the number of an episode it decides everything in it.
        augment: as in `TrainingEpisodes`; gamma always comes first.
        crop: slices, rows and columns of an image; smaller scans give what they have.
        warp: "affine": in 3D; "published": see `draw_column_slice`.

    Raises:
        UserError: the crop is not three numbers, or elastic displacements are asked for.
    """

    def __init__(
        self,
        scans: Sequence[Scan],
        sampler: CropsSampler,
        ranges: Ranges,
        seed: int,
        augment: str = "one",
        *,
        crop: Sequence[int] = (10, 215, 215),
        warp: str = "affine",
    ) -> None:
        super().__init__(scans, sampler, ranges, seed, augment)
        self.crop, self.draw_warp = tuple(crop), WARPS[warp]
        if len(crop) != 3 or min(crop) < 1:
            raise UserError(f"episode.crop={list(crop)}: slices, rows and columns are expected")
        if ranges.elastic:
            raise UserError(f"episode.elastic={ranges.elastic:g}: volumes are warped without it; set episode.elastic=0")

    @property
    def shapes(self) -> set[tuple[int, ...]]:
        """Shapes `(D, H, W)` of the images; more than one cannot be stacked to a batch."""
        return {tuple(map(min, scan.image.shape, self.crop)) for scan in self.scans}

    def _augmented(self, choice: Choice, generator: np.random.Generator) -> list[View]:
        """Support and query of a choice: image and mask `(D, H, W)`."""
        scan = self.scans[choice.scan]
        spacing = scan.geometry.spacing
        draw = lambda generator, shape, ranges: self.draw_warp(generator, spacing, ranges)  # noqa: E731
        changes = self.draw_changes(generator, scan.image.shape, self.ranges, draw=draw)
        support_place, query_place = generator.random((2, 2))
        view = functools.partial(self._view, scan, choice.segment)
        support = view(choice.support_slice, changes[0], support_place)
        if not support[1].any():  # warped out of its window: the paper then leaves it where it was
            support = view(choice.support_slice, Augmentation(changes[0].gamma), support_place)
        return [support, view(choice.query_slices[0], changes[1], query_place)]

    def _view(self, scan: Scan, segment: int, start: int, change: Augmentation, place: np.ndarray) -> View:
        """A window from slice `start` on, after the change, cropped where `place` (two numbers in [0, 1)) says.

        Only the voxels of the window are computed, those of the image only in the crop.
        """
        depth, height, width = map(min, scan.image.shape, self.crop)
        window = slice(start, start + depth)
        if change.warp is None:
            mask = scan.segments[window] == segment
        else:
            whole = (scan.segments == segment).view(np.uint8)
            mask = change.warp.window(whole, (start, 0, 0), (depth, *whole.shape[1:]), order=0)
        rows, columns = crop_origins(mask.any(0), (height, width), place)
        crop = (slice(None), slice(rows, rows + height), slice(columns, columns + width))
        image = scan.image if change.warp is not None else scan.image[window][crop]
        if change.gamma is not None:
            image = change_gamma(image, change.gamma, (scan.image.min(), scan.image.max()))
        if change.warp is not None:
            image = change.warp.window(image, (start, rows, columns), (depth, height, width), order=1)
        return image, mask[crop]


def crop_origins(shown: np.ndarray, size: tuple[int, int], place: Sequence[float]) -> tuple[int, ...]:
    """First row and column of a crop around what is shown: mask `(H, W)` -> two integers; (0, 0) where it is empty."""
    if not shown.any():
        return 0, 0
    origins = []
    for axis in (0, 1):
        seen = np.flatnonzero(shown.any(1 - axis))
        last = shown.shape[axis] - size[axis]
        low, high = crop_bounds(int(seen[0]), int(seen[-1]), size[axis], last)
        origins.append(low + int(place[axis] * (high - low + 1)))
    return tuple(origins)


def crop_bounds(lowest: int, highest: int, size: int, last: int) -> tuple[int, int]:
    """First and last allowed origin of a crop of `size` around labels from `lowest` to `highest` (spec adnet 5.3).

    `last` is the largest origin there is. (Published: one less, so that the last row and column never train, D15.)
    """
    if size > highest - lowest:
        return max(highest - size, 0), min(lowest, last)
    return lowest, min(highest - size, last)
