"""Training episodes of sub-volumes: cut from a warped volume, cropped around the supervoxel [adnet 5]."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dataloaders.augmentation import BiasField, Change, Gamma, Noise, draw_changes
from dataloaders.episodes import TrainingEpisodes, View
from dataloaders.samplers import Choice, CropsSampler
from dataloaders.scans import Scan
from dataloaders.volume_augmentation import Affine, ColumnSlice, Still
from util.errors import UserError

# the order in which changes are drawn and applied, by `episode.warp`
VOLUMES = {"affine": (Gamma, Affine, BiasField, Noise), "published": (Gamma, ColumnSlice, BiasField, Noise)}


class CropEpisodes(TrainingEpisodes):
    """Endless, numbered training episodes of one support and one query crop.

    Of the options, "crop" is the slices, rows and columns of an image; smaller scans give what they have. "warp" is a
    key of VOLUMES.

    Raises:
        UserError: the crop is not three numbers, or elastic displacements are asked for.
    """

    def __init__(self, scans: Sequence[Scan], sampler: CropsSampler, options: Mapping[str, Any], seed: int) -> None:
        super().__init__(scans, sampler, options, seed)
        self.crop, self.kinds = tuple(options["crop"]), VOLUMES[options["warp"]]
        if len(self.crop) != 3 or min(self.crop) < 1:
            raise UserError(f"episode.crop={list(self.crop)}: slices, rows and columns are expected")
        if options["on_device"]:
            raise UserError(
                "episode.on_device: changes slices; crops of volumes are changed by the processes that cut them"
            )
        if options["elastic"]:
            raise UserError(
                f"episode.elastic={options['elastic']:g}: volumes are warped without it; set episode.elastic=0"
            )

    @property
    def shapes(self) -> set[tuple[int, ...]]:
        """Shapes `(D, H, W)` of the images; more than one cannot be stacked to a batch."""
        return {tuple(map(min, scan.image.shape, self.crop)) for scan in self.scans}

    def _augmented(self, choice: Choice, generator: np.random.Generator) -> list[View]:
        """Support and query of a choice: image and mask `(D, H, W)`."""
        scan, segment = self.scans[choice.scan], choice.segment
        on_support, on_query = draw_changes(generator, scan, self.options, self.kinds)
        support_place, query_place = generator.random((2, 2))
        whole = np.asarray(scan.image), (np.asarray(scan.segments) == segment).view(np.uint8)
        support = self._view(*whole, choice.support_slice, on_support, support_place)
        if not support[1].any():  # warped out of its slices: the paper then leaves it where it was
            still = [change for change in on_support if not change.moves]
            support = self._view(*whole, choice.support_slice, still, support_place)
        return [support, self._view(*whole, choice.query_slices[0], on_query, query_place)]

    def _view(
        self, image: np.ndarray, whole: np.ndarray, start: int, changes: Sequence[Change], place: np.ndarray
    ) -> View:
        """A crop from slice `start` on of image and segment, after the changes, where `place` (two numbers in [0, 1))
        says.

        Only the voxels of its slices are computed, those of the image only in the crop.
        """
        depth, height, width = map(min, image.shape, self.crop)
        at = next((index for index, change in enumerate(changes) if change.moves), len(changes))
        before, (warp, *after) = changes[:at], changes[at:] or [Still()]
        mask = warp.region(whole, (start, 0, 0), (depth, *whole.shape[1:]), order=0)
        rows, columns = crop_origins(mask.any(0), (height, width), place)
        extremes = image.min(), image.max()
        for change in before:
            image = change.image(image, extremes)
        image = warp.region(image, (start, rows, columns), (depth, height, width), order=1)
        for change in after:
            image = change.image(image, extremes)
        return image, mask[:, rows : rows + height, columns : columns + width]


def crop_origins(shown: np.ndarray, size: tuple[int, int], place: Sequence[float]) -> tuple[int, ...]:
    """First row and column of a crop around what is shown: mask `(H, W)` -> two integers; (0, 0) if it is empty."""
    if not shown.any():
        return 0, 0
    origins = []
    for seen, whole, part, at in zip(np.nonzero(shown), shown.shape, size, place, strict=True):
        low, high = crop_bounds(int(seen.min()), int(seen.max()), part, whole - part)
        origins.append(low + int(at * (high - low + 1)))
    return tuple(origins)


def crop_bounds(lowest: int, highest: int, size: int, last: int) -> tuple[int, int]:
    """First and last allowed origin of a crop of `size` around labels from `lowest` to `highest` [adnet 5.3].

    `last` is the largest origin there is. Published: one less, so that the last row and column never train [adnet D15].
    """
    if size > highest - lowest:
        return max(highest - size, 0), min(lowest, last)
    return lowest, min(highest - size, last)
