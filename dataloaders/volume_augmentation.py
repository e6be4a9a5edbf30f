"""Affine changes of a volume, of which only a window of slices is computed (spec adnet 5.2)."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation

from dataloaders.augmentation import Ranges


@dataclass(frozen=True)
class VolumeWarp:
    """Where the voxels of the warped volume come from: `matrix @ p + shift`, p a voxel seen from the middle.

    Attributes:
        matrix: `(3, 3)` on (z, y, x).
        shift: `(3,)` voxels.
    """

    matrix: np.ndarray
    shift: np.ndarray

    def window(
        self, volume: np.ndarray, origin: tuple[int, int, int], size: tuple[int, int, int], order: int
    ) -> np.ndarray:
        """The voxels from `origin` on of the warped volume, `size` many; the volume is mirrored at its border.

        `order` 1 interpolates (images), 0 takes the nearest voxel (masks).
        """
        middle = (np.array(volume.shape) - 1) / 2
        offset = self.matrix @ (np.array(origin) - middle) + self.shift + middle
        return affine_transform(volume, self.matrix, offset, output_shape=size, order=order, mode="mirror")


def draw_affine(generator: np.random.Generator, spacing: tuple[float, float, float], ranges: Ranges) -> VolumeWarp:
    """An affine change in 3D: rotation about three axes, shear, shift and a scale an axis, in the published ranges.

    It turns millimetres: slices are six times as thick as pixels are wide, and in voxels a rotation would tear.

    Args:
        generator: of the random numbers.
        spacing: of the volume in mm, (x, y, z).
        ranges: shifts in voxels; `zoom` is the size of the part of the volume that is seen.
    """
    angles = generator.uniform(-ranges.rotation, ranges.rotation, size=3)
    shear = np.eye(3)
    shear[np.triu_indices(3, 1)] = generator.uniform(-1, 1, size=3) * np.deg2rad(ranges.shear)
    shift = generator.uniform(-1, 1, size=3) * (ranges.shift, ranges.shift, ranges.shift_slices)
    scale = generator.uniform(*ranges.zoom, size=3)
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ shear
    return _composed(turn * spacing / np.array(spacing)[:, None], shift, scale)


def draw_column_slice(generator: np.random.Generator, spacing: tuple[float, ...], ranges: Ranges) -> VolumeWarp:
    """The published change: a 2D affine in the plane of columns and slices, alike for every row (spec defect D10)."""
    angle = np.deg2rad(generator.uniform(-ranges.rotation, ranges.rotation))
    shear = generator.uniform(-1, 1, size=2) * np.deg2rad(ranges.shear)
    shift = generator.uniform(-ranges.shift, ranges.shift, size=2)
    return column_slice_warp(angle, shear, shift, generator.uniform(*ranges.zoom, size=2))


def column_slice_warp(angle: float, shear: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> VolumeWarp:
    """Rotation, shear factors, shift and scale of (column, slice), in radians and voxels; rows stay."""
    turn = np.eye(3)
    plane = np.ix_([0, 2], [0, 2])
    cosine, sine = np.cos(angle), np.sin(angle)
    turn[plane] = np.array([[cosine, -sine], [sine, cosine]]) @ np.array([[1, shear[0]], [shear[1], 1]])
    return _composed(turn, np.array([shift[0], 0, shift[1]]), np.array([scale[0], 1, scale[1]]))


def _composed(turn: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> VolumeWarp:
    """`turn (scale p + shift)` on (x, y, z), as a warp on (z, y, x)."""
    return VolumeWarp((turn * scale)[::-1, ::-1], (turn @ shift)[::-1])
