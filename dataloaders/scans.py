"""Scans in memory: read, checked against each other, normalised once."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from util.dataset import Dataset
from util.errors import UserError
from util.volume import Geometry, read_volume


@dataclass(frozen=True)
class Scan:
    """One scan.

    Attributes:
        number: its number in the data set.
        image: `(D, H, W)` float32, z-scored over the whole volume (population standard deviation).
        label: `(D, H, W)` int16 organ ids, or None where the scan has none.
        supervoxels: `(D, H, W)` int32, 0 = background, or None where they were not asked for.
        geometry: of the image file.
        shape: of the image file, before the cut to the data set's size.
    """

    number: int
    image: np.ndarray
    label: np.ndarray | None
    supervoxels: np.ndarray | None
    geometry: Geometry
    shape: tuple[int, int, int]

    def organ(self, identifier: int) -> np.ndarray:
        """Mask `(D, H, W)` of one organ."""
        return self.label == identifier


def read_scans(
    dataset: Dataset, root: Path, numbers: list[int], *, labels: bool = True, supervoxels: bool = False
) -> list[Scan]:
    """Read several scans, a few at a time (decompression releases the interpreter lock)."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(lambda n: read_scan(dataset, root, n, labels=labels, supervoxels=supervoxels), numbers))


def read_scan(dataset: Dataset, root: Path, number: int, *, labels: bool = True, supervoxels: bool = False) -> Scan:
    """Read one scan with what belongs to it.

    Raises:
        UserError: a file is missing or damaged, shapes or grids differ, labels are no integers, the scan is constant.
    """
    image_file = dataset.image_file(root, number)
    volume = read_volume(image_file)
    label = _read_label(dataset.label_file(root, number), volume, image_file) if labels else None
    segments = _read_supervoxels(dataset, root, number, volume, image_file) if supervoxels else None
    cut = (slice(None), slice(dataset.size), slice(dataset.size))
    return Scan(
        number=number,
        image=_z_score(volume.array, image_file)[cut],
        label=None if label is None else label[cut],
        supervoxels=None if segments is None else segments[cut],
        geometry=volume.geometry,
        shape=volume.array.shape,
    )


def _z_score(array: np.ndarray, file: Path) -> np.ndarray:
    mean, deviation = array.mean(dtype=np.float64), array.std(dtype=np.float64)
    if deviation == 0:
        raise UserError(f"{file}: every voxel has the value {mean:g}; there is nothing to see in this scan")
    return ((array - mean) / deviation).astype(np.float32)


def _read_label(file: Path, image, image_file: Path) -> np.ndarray:
    label = _read_beside(file, image, image_file)
    if not label.geometry.matches(image.geometry):
        raise UserError(
            f"{file}: lies on another grid than {image_file} (spacing, origin or direction differ: "
            f"{label.geometry.spacing} against {image.geometry.spacing} mm); resample it to the image"
        )
    return _integers(label.array, np.int16, file)


def _read_supervoxels(dataset: Dataset, root: Path, number: int, image, image_file: Path) -> np.ndarray:
    file = dataset.supervoxel_file(root, number)
    if not file.is_file():
        raise UserError(
            f"{file}: no supervoxels yet; make them with: "
            f"python -m supervoxels.generate {image_file.parent} {file.parent} "
            f"--min-size {dataset.supervoxel_size}"
        )
    # published supervoxel files carry no geometry (spec supervoxels 5.6), so only the shape is compared
    return _integers(_read_beside(file, image, image_file).array, np.int32, file)


def _read_beside(file: Path, image, image_file: Path):
    volume = read_volume(file)
    if volume.array.shape != image.array.shape:
        raise UserError(
            f"{file}: has shape {volume.array.shape} (slices, rows, columns) but {image_file} has "
            f"{image.array.shape}; both must be the same scan"
        )
    return volume


def _integers(array: np.ndarray, dtype: type, file: Path) -> np.ndarray:
    limits = np.iinfo(dtype)
    whole = np.issubdtype(array.dtype, np.integer) or np.array_equal(array, np.rint(array))
    if not whole or array.min() < 0 or array.max() > limits.max:
        raise UserError(
            f"{file}: labels must be whole numbers from 0 to {limits.max}; found {array.min():g} to "
            f"{array.max():g}{'' if whole else ' with fractions'}"
        )
    return array.astype(dtype)
