"""Affine changes of a volume, of which only a window of slices is computed [adnet 5.2]."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation

from dataloaders.augmentation import Change
from dataloaders.scans import Scan


@dataclass(frozen=True)
class VolumeWarp(Change):
    """Where the voxels of the warped volume come from: `matrix @ p + shift`, p a voxel seen from the middle.

    Attributes:
        matrix: `(3, 3)` on (z, y, x).
        shift: `(3,)` voxels.
    """

    matrix: np.ndarray
    shift: np.ndarray
    moves = True

    def region(
        self, volume: np.ndarray, origin: tuple[int, int, int], size: tuple[int, int, int], order: int
    ) -> np.ndarray:
        """The voxels from `origin` on of the warped volume, `size` many; the volume is mirrored at its border.

        `order` 1 interpolates (images), 0 takes the nearest voxel (masks).
        """
        middle = (np.array(volume.shape) - 1) / 2
        offset = self.matrix @ (np.array(origin) - middle) + self.shift + middle
        return affine_transform(volume, self.matrix, offset, output_shape=size, order=order, mode="mirror")


class Still(VolumeWarp):
    """Moves nothing: regions are cut, not interpolated."""

    def __init__(self) -> None:
        super().__init__(np.eye(3), np.zeros(3))

    def region(
        self, volume: np.ndarray, origin: tuple[int, int, int], size: tuple[int, int, int], order: int
    ) -> np.ndarray:
        """A view of the volume."""
        return volume[tuple(slice(first, first + length) for first, length in zip(origin, size, strict=True))]


class Affine(VolumeWarp):
    """Rotation about three axes, shear, shift and a scale for each axis, in the published ranges.

    It turns millimetres: slices are six times as thick as pixels are wide, and in voxels a rotation would tear.
    """

    @classmethod
    def draw(cls, generator: np.random.Generator, scan: Scan, options: Mapping[str, Any]) -> Self:
        """From `episode.rotation`, `shear`, `shift`, `shift_slices` and `zoom`, the part of the volume that is seen."""
        angles = generator.uniform(-options["rotation"], options["rotation"], size=3)
        shear = np.eye(3)
        shear[np.triu_indices(3, 1)] = generator.uniform(-1, 1, size=3) * np.deg2rad(options["shear"])
        shift = generator.uniform(-1, 1, size=3) * (options["shift"], options["shift"], options["shift_slices"])
        scale = generator.uniform(*options["zoom"], size=3)
        turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ shear
        spacing = scan.geometry.spacing
        return cls(*_composed(turn * spacing / np.array(spacing)[:, None], shift, scale))


class ColumnSlice(VolumeWarp):
    """The published change: a 2D affine in the plane of columns and slices, alike for every row [adnet D10]."""

    @classmethod
    def draw(cls, generator: np.random.Generator, scan: Scan, options: Mapping[str, Any]) -> Self:
        """From `episode.rotation`, `shear`, `shift` and `zoom`."""
        angle = np.deg2rad(generator.uniform(-options["rotation"], options["rotation"]))
        shear = generator.uniform(-1, 1, size=2) * np.deg2rad(options["shear"])
        shift = generator.uniform(-options["shift"], options["shift"], size=2)
        return cls.of(angle, shear, shift, generator.uniform(*options["zoom"], size=2))

    @classmethod
    def of(cls, angle: float, shear: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> Self:
        """Rotation, shear factors, shift and scale of (column, slice), in radians and voxels; rows stay."""
        turn = np.eye(3)
        plane = np.ix_([0, 2], [0, 2])
        cosine, sine = np.cos(angle), np.sin(angle)
        turn[plane] = np.array([[cosine, -sine], [sine, cosine]]) @ np.array([[1, shear[0]], [shear[1], 1]])
        return cls(*_composed(turn, np.array([shift[0], 0, shift[1]]), np.array([scale[0], 1, scale[1]])))


def _composed(turn: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`turn (scale p + shift)` on (x, y, z), as matrix and shift on (z, y, x)."""
    return (turn * scale)[::-1, ::-1], (turn @ shift)[::-1]
