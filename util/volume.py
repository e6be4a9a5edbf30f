"""Medical volumes on disk: reading with checks, writing whole files, geometry kept.

Arrays are indexed `[z, y, x]` (slice, row, column); geometry is in SimpleITK's `(x, y, z)` order and in millimetres.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.analyze import AnalyzeHeader
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError

from util.errors import UserError
from util.files import utf8_name, whole_file
from util.finding import NIFTI
from util.nifti import UNEVEN, by, place, read_header, read_nifti, require_volume

SMALLEST, LARGEST = 10.0, 3000.0  # mm; a field of view outside of them is a wrong spacing or unit, not a patient
LEFT_BACK = np.array([-1.0, -1.0, 1.0])  # NIfTI counts to the right and front, DICOM and ITK to the left and back


@dataclass(frozen=True)
class Geometry:
    """Where the voxels lie in the patient: spacing and origin in mm `(x, y, z)`, direction as 9 row-major cosines."""

    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

    @property
    def axes(self) -> np.ndarray:
        """`(3, 3)`: one row per array axis x, y, z, where it runs: to the patient's left, back and head."""
        return np.reshape(self.direction, (3, 3)).T

    def matches(self, other: "Geometry", tolerance: float = 1e-3) -> bool:
        """True if both describe the same grid within `tolerance` (mm, and cosines)."""
        return all(
            np.allclose(getattr(self, name), getattr(other, name), rtol=0, atol=tolerance)
            for name in ("spacing", "origin", "direction")
        )


@dataclass(frozen=True)
class Volume:
    """A 3D array `(D, H, W)` with its geometry, and sentences about what its file's header leaves in doubt of it."""

    array: np.ndarray
    geometry: Geometry
    doubts: tuple[str, ...] = ()


def read_volume(path: str | Path) -> Volume:
    """Read one 3D volume (NIfTI, Analyze, or whatever else SimpleITK reads), whatever its name.

    What its header does not say clearly is read as nibabel and viewers do, and told in the volume's `doubts`: training
    data refuse them, predict.py prints them, data.check counts them. Units of NIfTI (metre, micron) become mm.

    Raises:
        UserError: the file is missing, unreadable or cut short, is sheared, is not 3D, lies nowhere or in an
            impossible field of view, or holds NaN or infinite values.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        found = read_nifti(path)
        volume = _other_volume(path) if found is None else _nifti_volume(path, *found)
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, OverflowError, zlib.error, HeaderDataError) as error:
        raise UserError(
            f"{path}: cannot be read, the file is damaged, cut short or not an image; fetch or write it again"
        ) from error
    if np.issubdtype(volume.array.dtype, np.floating) and not np.isfinite(volume.array).all():
        count = int(np.count_nonzero(~np.isfinite(volume.array)))
        raise UserError(f"{path}: {count} voxel(s) are NaN or infinite; repair the scan before using it")
    field = np.multiply(volume.geometry.spacing, volume.array.shape[::-1])
    if not SMALLEST <= field.max() <= LARGEST or min(volume.geometry.spacing) < SMALLEST / 1000:
        raise UserError(
            f"{path}: its header says that it is {by(field, 6)} mm large; correct its spacing or unit of length"
        )
    return volume


def _nifti_volume(path: Path, header: AnalyzeHeader, array: np.ndarray) -> Volume:
    """Voxels `(x, y, z)` exactly as stored, with the place that nibabel gives them.

    nibabel and not ITK: ITK's reader fills the missing part of a cut file with zeros, turns NaN into 0, and may take
    the spacing from one transform and the directions from another, silently.
    """
    try:
        where = place(header)
    except ValueError as error:
        raise UserError(f"{path}: {error}; write its header again") from error
    axes = where.affine[:3, :3] / np.linalg.norm(where.affine[:3, :3], axis=0)
    if not np.allclose(axes.T @ axes, np.eye(3), atol=UNEVEN):
        raise UserError(
            f"{path}: its axes are not at right angles (a sheared affine); resample it onto a straight grid first"
        )
    direction, origin = LEFT_BACK[:, None] * axes, LEFT_BACK * where.affine[:3, 3]
    geometry = Geometry(decimal_spacing(where.spacing), tuple(origin.tolist()), tuple(direction.ravel().tolist()))
    return Volume(np.ascontiguousarray(array.T, array.dtype.newbyteorder("=")), geometry, where.doubts)


def _other_volume(path: Path) -> Volume:
    if sitk.ImageFileReader.GetImageIOFromFileName(utf8_name(path)).startswith("Nifti"):  # less strict than nibabel
        raise ValueError(path)
    image = sitk.ReadImage(str(path))
    require_volume(path, image.GetSize(), image.GetNumberOfComponentsPerPixel())
    geometry = Geometry(decimal_spacing(image.GetSpacing()), image.GetOrigin(), image.GetDirection())
    return Volume(sitk.GetArrayFromImage(image), geometry)


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
            sitk.WriteImage(image, utf8_name(temporary), useCompression=True)
            if read_nifti(temporary) is None and temporary.name.endswith(NIFTI):  # ITK is silent about a full disk
                raise EOFError(temporary)
        except (EOFError, ValueError, zlib.error) as error:
            raise OSError("no room for all of it") from error
        except RuntimeError as error:
            raise OSError(str(error).strip().splitlines()[-1]) from error


def write_like(path: str | Path, array: np.ndarray, geometry: Geometry, like: str | Path) -> None:
    """Write `array` `(D, H, W)` on the grid of the file `like`, of which `read_volume` told the `geometry`.

    If that is a NIfTI file its header is kept bit by bit: affine, codes, units, axes of length 1. Only if the header
    leaves in doubt where its voxels lie, sform and qform both become what `read_volume` used.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    source = read_header(Path(like))
    if not isinstance(source, Nifti1Header):
        return write_volume(path, array, geometry)
    kind = nibabel.Nifti2Image if isinstance(source, Nifti2Header) else nibabel.Nifti1Image
    header = kind.header_class(source.binaryblock, source.endianness, check=False)
    where = place(header)
    if where.doubts:
        header.set_qform(where.affine, where.code or "aligned")
        header.set_sform(where.affine, where.code or "aligned")
        header["xyzt_units"] = int(header["xyzt_units"]) & ~7 | 2  # mm
    header["magic"] = header.single_magic
    header.set_data_offset(0)
    header.set_data_dtype(array.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"], header["cal_max"] = 0, 0  # the window of an image means nothing here
    image = kind(array.T.reshape(header.get_data_shape()), None, header)
    with whole_file(path) as temporary:
        nibabel.save(image, temporary)
