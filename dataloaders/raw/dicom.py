"""A DICOM series as one volume: slices in the order of their positions, whatever the files are called.

pydicom and not SimpleITK reads the slices: GDCM ignores the rescale slope of MR. What makes files a series is checked
here, because a reader that takes any pile of files invents a spacing for a missing slice.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from util.errors import UserError
from util.volume import Geometry, Volume

STEP_TOLERANCE = 0.05  # of the distance between slices
DAMAGE = (InvalidDicomError, OSError, EOFError, ValueError, AttributeError, KeyError, TypeError, NotImplementedError)


@dataclass(frozen=True)
class Slice:
    """One file's header: series, size `(x, y)`, spacing in mm, first voxel's position and axes in the patient."""

    file: Path
    series: str
    size: tuple[int, int]
    spacing: tuple[float, float]
    origin: np.ndarray
    axes: np.ndarray  # (3, 3), columns x, y, normal


def read_series(files: Sequence[Path]) -> tuple[Volume, list[Path]]:
    """The volume `(D, H, W)` of the files of one series, and the files in the order of their slices.

    The rescale slope and intercept are applied. Slices ascend along the normal of the plane.

    Raises:
        UserError: a file is unreadable; there is more than one series; sizes, spacings or orientations differ; a slice
            is missing or there twice.
    """
    slices = [_header(file) for file in sorted(files)]
    _require_one_series(slices)
    first = slices[0]
    normal = first.axes[:, 2]
    slices.sort(key=lambda piece: float(piece.origin @ normal))
    step = _step(slices, normal)
    array = np.concatenate([_pixels(piece) for piece in slices])
    if array.dtype == np.int32 and np.abs(array).max() < 2**15:
        array = array.astype(np.int16)
    geometry = Geometry((*first.spacing, step), tuple(slices[0].origin.tolist()), tuple(first.axes.ravel().tolist()))
    return Volume(array, geometry), [piece.file for piece in slices]


def _header(file: Path) -> Slice:
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True)
        x, y = np.reshape([float(value) for value in header.ImageOrientationPatient], (2, 3))
        row_spacing, column_spacing = (float(value) for value in header.PixelSpacing)
        return Slice(
            file,
            str(header.SeriesInstanceUID),
            (int(header.Columns), int(header.Rows)),
            (column_spacing, row_spacing),
            np.array([float(value) for value in header.ImagePositionPatient]),
            np.stack([x, y, np.cross(x, y)], axis=1),
        )
    except DAMAGE as error:
        raise UserError(
            f"{file}: is not a readable DICOM slice with series, position, orientation and spacing; fetch it again"
        ) from error


def _pixels(piece: Slice) -> np.ndarray:
    """Pixels `(1, H, W)` after rescaling: integers if slope and intercept are, else float32."""
    try:
        file = pydicom.dcmread(piece.file)
        array = file.pixel_array
    except DAMAGE as error:
        raise UserError(f"{piece.file}: its pixels cannot be read, the file is damaged or cut short") from error
    except RuntimeError as error:  # a compression that needs a decoder of its own
        raise UserError(
            f"{piece.file}: is compressed; pip install pylibjpeg pylibjpeg-libjpeg, or decompress it"
        ) from error
    if array.shape != piece.size[::-1]:
        raise UserError(f"{piece.file}: has pixels of shape {array.shape}, one value on {piece.size[::-1]} is expected")
    slope, intercept = float(file.get("RescaleSlope", 1)), float(file.get("RescaleIntercept", 0))
    whole = slope.is_integer() and intercept.is_integer()
    return (array[None] * np.float64(slope) + intercept).astype(np.int32 if whole else np.float32)


def _require_one_series(slices: Sequence[Slice]) -> None:
    folder = slices[0].file.parent
    series = Counter(piece.series for piece in slices)
    if len(series) > 1:
        counts = " and ".join(map(str, sorted(series.values(), reverse=True)))
        raise UserError(f"{folder}: holds {len(series)} DICOM series ({counts} slices); leave one series in a folder")
    kinds = [(piece.size, *np.round(piece.spacing, 3), *np.round(piece.axes.ravel(), 3)) for piece in slices]
    usual = slices[kinds.index(Counter(kinds).most_common(1)[0][0])]  # the odd ones out are to be named
    for piece in slices:
        for name, value, other, tolerance in (
            ("size", piece.size, usual.size, 0),
            ("spacing", piece.spacing, usual.spacing, 1e-3),
            ("orientation", piece.axes, usual.axes, 1e-3),
        ):
            if not np.allclose(value, other, rtol=0, atol=tolerance):
                raise UserError(
                    f"{piece.file}: the {name} differs within the series ({np.round(value, 4).tolist()} against "
                    f"{np.round(other, 4).tolist()} in {usual.file.name}); remove what does not belong"
                )


def _step(slices: Sequence[Slice], normal: np.ndarray) -> float:
    """Distance in mm between slices that are in order."""
    folder = slices[0].file.parent
    if len(slices) < 2:
        raise UserError(f"{folder}: one DICOM slice is no volume; fetch the whole series")
    places = np.stack([piece.origin for piece in slices])
    steps = np.diff(places @ normal)
    usual = float(np.median(steps))
    odd = np.flatnonzero(np.abs(steps - usual) > STEP_TOLERANCE * usual)
    if (steps < 1e-3).any():
        at = int(np.argmin(steps))
        raise UserError(
            f"{folder}: {slices[at].file.name} and {slices[at + 1].file.name} lie at the same place; remove one"
        )
    if odd.size:
        at = int(odd[0])
        raise UserError(
            f"{folder}: a slice is missing between {slices[at].file.name} and {slices[at + 1].file.name} "
            f"({steps[at]:.2f} mm apart, the others {usual:.2f} mm); fetch the series again"
        )
    across = places[-1] - places[0]
    if np.linalg.norm(across - (across @ normal) * normal) > 1e-2 * np.linalg.norm(across):
        raise UserError(f"{folder}: slices are shifted against each other (a tilted gantry); straighten the scan first")
    return float(steps.mean())
