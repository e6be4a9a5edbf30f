"""Medical volumes on disk: reading with checks, writing whole files, geometry kept.

Arrays are indexed `[z, y, x]` (slice, row, column); geometry is in SimpleITK's `(x, y, z)` order and in millimetres.
"""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from util.errors import UserError
from util.files import whole_file


@dataclass(frozen=True)
class Geometry:
    """Where the voxels lie in the patient: spacing and origin in mm `(x, y, z)`, direction as 9 row-major cosines."""

    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

    def matches(self, other: "Geometry", tolerance: float = 1e-3) -> bool:
        """True if both describe the same grid within `tolerance` (mm, and cosines)."""
        return all(
            np.allclose(getattr(self, name), getattr(other, name), rtol=0, atol=tolerance)
            for name in ("spacing", "origin", "direction")
        )


@dataclass(frozen=True)
class Volume:
    """A 3D array `(D, H, W)` with its geometry."""

    array: np.ndarray
    geometry: Geometry


def read_volume(path: str | Path) -> Volume:
    """Read one 3D volume (NIfTI or whatever else SimpleITK reads).

    Raises:
        UserError: the file is missing, unreadable or cut short, is sheared, is not 3D, or holds NaN or infinite values.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        header = sitk.ImageFileReader()
        header.SetFileName(str(path))
        header.ReadImageInformation()
        array = _nifti_voxels(path) if path.name.endswith((".nii", ".nii.gz")) else _other_voxels(path)
    except (RuntimeError, EOFError, OSError, ValueError, zlib.error, ImageFileError, HeaderDataError) as error:
        if "orthonormal" in str(error):
            raise UserError(
                f"{path}: its axes are not at right angles (a sheared affine); resample it onto a straight grid first"
            ) from error
        raise UserError(
            f"{path}: cannot be read, the file is damaged, cut short or not an image; fetch or write it again"
        ) from error
    if array.ndim != 3 or header.GetNumberOfComponents() != 1:
        raise UserError(
            f"{path}: a 3D volume with one value per voxel is expected, this one has size {header.GetSize()}"
        )
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        count = int(np.count_nonzero(~np.isfinite(array)))
        raise UserError(f"{path}: {count} voxel(s) are NaN or infinite; repair the scan before using it")
    return Volume(array, Geometry(decimal_spacing(header.GetSpacing()), header.GetOrigin(), header.GetDirection()))


def _nifti_voxels(path: Path) -> np.ndarray:
    """Voxels `(D, H, W)` exactly as stored.

    nibabel and not ITK: ITK's reader fills the missing part of a cut file with zeros and turns NaN into 0, silently.
    """
    if path.name.endswith(".gz"):
        with gzip.open(path) as stream:  # to the very end, where the length and the checksum stand
            while stream.read(1 << 22):
                pass
    array = np.asanyarray(nibabel.load(path).dataobj).T
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))  # ITK knows no other byte order


def _other_voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def decimal_spacing(spacing: tuple[float, ...]) -> tuple[float, ...]:
    """Spacing as the decimals a person would write: 7.7 and not the float32 neighbour 7.699999809265137.

    NIfTI headers hold float32; edge costs of the supervoxels depend on the last digit [supervoxels 2.10].
    """
    return tuple(float(str(np.float32(value))) for value in spacing)


def write_volume(path: str | Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write `array` `(D, H, W)` with `geometry`; the file appears whole or not at all.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    with whole_file(path) as temporary:
        try:
            sitk.WriteImage(image, str(temporary), useCompression=True)
        except RuntimeError as error:
            raise OSError(str(error).strip().splitlines()[-1]) from error


def write_like(path: str | Path, array: np.ndarray, like: str | Path) -> None:
    """Write `array` `(D, H, W)` as NIfTI with the geometry of the NIfTI file `like`, bit by bit: affine, codes, units.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    source = nibabel.load(like)
    header = source.header.copy()
    header.set_data_dtype(array.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"], header["cal_max"] = 0, 0  # the window of an image means nothing here
    header.extensions.clear()  # they may name the patient
    image = type(source)(array.T, None, header)
    with whole_file(path) as temporary:
        nibabel.save(image, temporary)
