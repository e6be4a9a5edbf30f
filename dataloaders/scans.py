"""Scans in memory: read, checked against each other, normalised once."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataloaders.samplers import slice_areas
from util.dataset import Dataset
from util.errors import UserError
from util.volume import Geometry, Volume, read_volume


@dataclass(frozen=True)
class Scan:
    """One scan.

    Attributes:
        number: its number in the data set.
        image: `(D, H, W)` float32, z-scored (population standard deviation).
        label: `(D, H, W)` int16 organ ids, or None if the scan has none.
        segments: supervoxels or superpixels `(D, H, W)` int32, 0 = none, or None if they were not asked for.
        geometry: of the image file.
        shape: of the image file, before the cut to the data set's size.
        values: lowest and highest in the image file.
    """

    number: int
    image: np.ndarray
    label: np.ndarray | None
    segments: np.ndarray | None
    geometry: Geometry
    shape: tuple[int, int, int]
    values: tuple[float, float] = (0.0, 0.0)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres along the axes of the arrays: slices, rows, columns."""
        return self.geometry.spacing[::-1]

    @property
    def areas(self) -> np.ndarray:
        """Pixels of every segment on every slice, `slice_areas` of the segments."""
        return slice_areas(self.segments)

    def organ(self, identifier: int) -> np.ndarray:
        """Mask `(D, H, W)` of one organ."""
        return self.label == identifier


class Scans:
    """The scans of a data set by their number, each read once and kept: `scans[3].image`.

    `mean_and_std` are those for the z-score; None = each scan's own.

    Raises:
        UserError: as `read_scan`, when a scan is asked for.
    """

    def __init__(self, dataset: Dataset, root: Path, mean_and_std: tuple[float, float] | None = None) -> None:
        self.dataset, self.root, self.mean_and_std = dataset, root, mean_and_std
        self._known: dict[int, Scan] = {}

    def __getitem__(self, number: int) -> Scan:
        if number not in self._known:
            self._known[number] = read_scan(self.dataset, self.root, number, mean_and_std=self.mean_and_std)
        return self._known[number]

    def keep(self, numbers: Collection[int]) -> None:
        """Forget all other scans."""
        self._known = {number: scan for number, scan in self._known.items() if number in numbers}

    def label(self, number: int) -> np.ndarray:
        """Organ ids `(D, H, W)` of a scan, which is not kept."""
        if number in self._known:
            return self._known[number].label
        image = read_volume(self.dataset.image_file(self.root, number))
        return read_label(self.dataset, self.root, number, image)[:, : self.dataset.size, : self.dataset.size]


def read_scan(
    dataset: Dataset,
    root: Path,
    number: int,
    *,
    labels: bool = True,
    segments: str | None = None,
    mean_and_std: tuple[float, float] | None = None,
) -> Scan:
    """Read one scan with its organ labels, and its `segments`: "supervoxels" or "superpixels".

    `mean_and_std` are those for the z-score; None = the scan's own.

    Raises:
        UserError: a file is missing or damaged, shapes or grids differ, labels are no integers, the scan is constant.
    """
    image_file = dataset.image_file(root, number)
    volume = read_volume(image_file)
    label = read_label(dataset, root, number, volume) if labels else None
    ids = read_segments(dataset, root, number, segments, volume) if segments else None
    cut = (slice(None), slice(dataset.size), slice(dataset.size))
    return Scan(
        number=number,
        image=z_score(volume.array, mean_and_std, image_file)[cut],
        label=None if label is None else label[cut],
        segments=None if ids is None else ids[cut],
        geometry=volume.geometry,
        shape=volume.array.shape,
        values=(float(volume.array.min()), float(volume.array.max())),
    )


def training_mean_and_std(dataset: Dataset, root: Path, numbers: list[int]) -> tuple[float, float]:
    """Mean and population standard deviation over all voxels of several scans [alpnet 4]."""
    return joined_mean_and_std([moments(read_volume(dataset.image_file(root, number)).array) for number in numbers])


def moments(array: np.ndarray) -> tuple[int, float, float]:
    """Number of voxels, their sum, the sum of their squares."""
    array = array.astype(np.float64)
    return array.size, float(array.sum()), float(np.square(array).sum())


def joined_mean_and_std(parts: Sequence[tuple[int, float, float]]) -> tuple[float, float]:
    """Mean and population standard deviation over all voxels of scans, given the `moments` of each."""
    count, total, squares = 0, np.float64(0), np.float64(0)
    for part in parts:
        count, total, squares = count + part[0], total + part[1], squares + part[2]
    mean = total / count
    return float(mean), float(np.sqrt(squares / count - mean**2))


def own_mean_and_std(array: np.ndarray, file: Path) -> tuple[np.float64, np.float64]:
    """Mean and population standard deviation of a scan `(D, H, W)`.

    Raises:
        UserError: the scan is constant; `file` names it.
    """
    mean, deviation = array.mean(dtype=np.float64), array.std(dtype=np.float64)
    if deviation == 0:
        raise UserError(f"{file}: every voxel has the value {mean:g}; there is nothing to see in this scan")
    return mean, deviation


def z_score(array: np.ndarray, mean_and_std: tuple[float, float] | None, file: Path) -> np.ndarray:
    """Intensities `(D, H, W)` as float32 about 0, by their own mean and standard deviation or by the given ones.

    Raises:
        UserError: the scan is constant; `file` names it.
    """
    own = own_mean_and_std(array, file)
    result = np.empty(array.shape, np.float32)
    for z, plane in enumerate(array):  # one by one, for they are float64 on the way
        result[z] = normalised(plane, *(mean_and_std or own))
    return result


def normalised(array: np.ndarray, mean: float, deviation: float) -> np.ndarray:
    """Any voxels of a scan as float32: the same numbers for a slice as for the whole."""
    return ((array - mean) / deviation).astype(np.float32)


def read_label(dataset: Dataset, root: Path, number: int, image: Volume) -> np.ndarray:
    """Organ ids `(D, H, W)` int16 of a scan.

    Raises:
        UserError: they are missing or damaged, lie on another grid than the image, or are no ids.
    """
    file, image_file = dataset.label_file(root, number), dataset.image_file(root, number)
    label = _read_beside(file, image, image_file)
    if not label.geometry.matches(image.geometry):
        raise UserError(
            f"{file}: lies on another grid than {image_file} (spacing, origin or direction differ: "
            f"{label.geometry.spacing} against {image.geometry.spacing} mm); resample it to the image"
        )
    return _integers(label.array, np.int16, file)


def read_segments(dataset: Dataset, root: Path, number: int, kind: str, image: Volume) -> np.ndarray:
    """Supervoxels or superpixels `(D, H, W)` int32 of a scan.

    Raises:
        UserError: they are missing or damaged, have another shape than the image, or are no ids.
    """
    file, image_file = dataset.segment_file(root, number, kind), dataset.image_file(root, number)
    if not file.is_file():
        options = f"--min-size {dataset.supervoxel_size}"
        if kind == "superpixels":
            options = f"--slices --patient-threshold {dataset.patient_threshold:g}"
        command = f"python -m supervoxels.generate {image_file.parent} {file.parent} {options}"
        raise UserError(f"{file}: no {kind} yet; make them with: {command}")
    # published files carry no geometry [supervoxels S6], so only the shape is compared
    ids = _integers(_read_beside(file, image, image_file).array, np.int32, file)
    if ids.max() > ids.size:  # tables have a row for every id
        raise UserError(f"{file}: holds the id {ids.max()} and has {ids.size} voxels; make it again")
    return ids


def _read_beside(file: Path, image: Volume, image_file: Path) -> Volume:
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
