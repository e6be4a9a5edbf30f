"""What one DICOM file says of itself: a slice with its place in the patient, or what it is instead."""

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import UID, MediaStorageDirectoryStorage

from util.errors import UserError

NO_DICOM, UNREADABLE = "no DICOM file", "unreadable file"
VOLUMETRIC = ("CT", "MR", "PT", "NM")  # their images have a place in the patient, or are damaged
# how many files there should be
TOTALS = ("ImagesInAcquisition", "NumberOfSeriesRelatedInstances", "NumberOfSlices")
# what tells apart images of one place
VARIANTS = (
    "EchoTime", "EchoNumbers", "TemporalPositionIdentifier", "DiffusionBValue", "ImageType", "AcquisitionNumber",
    "InversionTime", "FlipAngle", "TriggerTime", "ConvolutionKernel", "AcquisitionTime", "ContentTime",
)  # fmt: skip
TAGS = [
    "SOPClassUID", "SOPInstanceUID", "Modality", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber",
    "InstanceNumber", "NumberOfFrames", "Rows", "Columns", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "ImagePositionPatient", "ImageOrientationPatient", "GantryDetectorTilt", *TOTALS, *VARIANTS,
]  # fmt: skip


class NotASlice(Exception):
    """The file is sound but shows no slice of a scan; the text says what it is."""


class BadSlice(UserError):
    """A slice that cannot be used; `series` is the series that lacks it, as far as that is known."""

    def __init__(self, sentence: str, series: tuple[str, ...] | None = None) -> None:
        super().__init__(sentence)
        self.series = series


@dataclass(frozen=True, eq=False)
class Slice:
    """One file's header.

    Attributes:
        file: where it was read from.
        series: patient, study and series; the series is empty if the file does not say.
        series_number, number: of the series in the study, of the slice in the series.
        instance: SOPInstanceUID.
        size, spacing: along x and y; voxels and mm.
        origin: first voxel's position in mm.
        axes: `(3, 3)`, columns x, y, normal.
        thickness, between: SliceThickness and SpacingBetweenSlices in mm, 0 if unknown.
        tilt: of the gantry in degrees.
        localizer: the file calls itself one.
        totals: number of files there should be, by the element that says so.
        variant: echo, time, b-value, ... by element.
    """

    file: Path
    series: tuple[str, ...]
    series_number: int | None
    number: int | None
    instance: str
    size: tuple[int, int]
    spacing: tuple[float, float]
    origin: np.ndarray
    axes: np.ndarray
    thickness: float
    between: float
    tilt: float
    localizer: bool
    totals: dict[str, int]
    variant: dict[str, str]


def read_slice(file: Path) -> Slice:
    """The header of one file; its pixels are not read.

    Raises:
        NotASlice: no DICOM file, or one that is no image of a scan.
        BadSlice: position, orientation or spacing are missing or impossible, or the file holds many frames.
    """
    try:
        about = file.stat()
    except OSError as error:
        raise NotASlice(UNREADABLE) from error
    return _read_slice(file, about.st_mtime_ns, about.st_size)


@functools.lru_cache(maxsize=10_000)  # what was found is read soon, unless it is another file by then
def _read_slice(file: Path, changed: int, size: int) -> Slice:
    series = None
    try:
        header = _header(file)
        series = tuple(str(header.get(name) or "") for name in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID"))
        _require_image(header)
        _require_one_frame(file, header, series)
        return _slice(file, header, series)
    except (NotASlice, BadSlice):
        raise
    except Exception as error:  # pydicom fails in many ways on damaged files
        why = error if isinstance(error, UserError) else "its header is damaged"
        raise BadSlice(
            f"{file}: is not a readable DICOM slice ({why}); fetch it again, or remove it if it is no slice", series
        ) from error


def _header(file: Path) -> pydicom.Dataset:
    try:
        with file.open("rb") as stream:
            if not _looks_like_dicom(stream.read(140)):
                raise NotASlice(NO_DICOM)
            stream.seek(0)
            return pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=TAGS, force=True)
    except OSError as error:
        raise NotASlice(UNREADABLE) from error


def _require_one_frame(file: Path, header: pydicom.Dataset, series: tuple[str, ...]) -> None:
    frames = _whole(header, "NumberOfFrames") or 1
    if "MOSAIC" in str(header.get("ImageType") or "").upper():
        raise BadSlice(
            f"{file}: is a mosaic, all slices in one picture, which is not read; convert it to NIfTI (dcm2niix does)",
            (*series, str(file)),
        )
    if frames > 1 or "Enhanced" in _kind(header):
        raise BadSlice(
            f"{file}: is a multi-frame file ({_kind(header)}, {frames} frames), which is not read; convert it to "
            "NIfTI (dcm2niix does), or export single slices",
            (*series, str(file)),  # never part of a series of single slices
        )


def _looks_like_dicom(start: bytes) -> bool:
    """True with the mark, and without it if group 2 or 8 begins at once, as in files that lost their preamble."""
    if start[128:132] == b"DICM":
        return True
    group, element = start[:2], start[2:4]
    return len(start) > 8 and (
        (group in (b"\x02\x00", b"\x08\x00") and element[1:] == b"\x00")
        or (group == b"\x00\x08" and element[:1] == b"\x00")
    )


def _kind(header: pydicom.Dataset) -> str:
    """What the file is, in the words of the standard: MR Image, RT Structure Set."""
    return UID(str(header.get("SOPClassUID") or "")).name.removesuffix(" Storage")


def _require_image(header: pydicom.Dataset) -> None:
    meta = getattr(header, "file_meta", {})
    if meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        raise NotASlice("DICOMDIR")
    if not any(name in header for name in ("SOPClassUID", "Modality", "SeriesInstanceUID", "Rows")):
        raise NotASlice(NO_DICOM)
    kind, modality = _kind(header), str(header.get("Modality") or "")
    is_placed = bool(header.get("ImagePositionPatient") or header.get("ImageOrientationPatient"))
    if kind.endswith("Image") or "Image -" in kind:
        if not is_placed and ("Secondary Capture" in kind or modality not in VOLUMETRIC):
            raise NotASlice(f"{kind} without a place in the patient")
    elif kind[:1].isalpha():  # a number is a class of the maker's own, or one that is not known yet
        raise NotASlice(kind)
    elif "Rows" not in header and modality not in VOLUMETRIC:
        raise NotASlice(f"{modality or 'DICOM object'} without an image")


def _slice(file: Path, header: pydicom.Dataset, series: tuple[str, ...]) -> Slice:
    x, y = np.reshape(_numbers(header, "ImageOrientationPatient", 6), (2, 3))
    if not np.allclose([x @ x, y @ y, x @ y], [1, 1, 0], atol=1e-2):
        raise UserError("ImageOrientationPatient does not hold two directions at right angles")
    row_spacing, column_spacing = _numbers(header, "PixelSpacing", 2)
    rows, columns = (int(_numbers(header, name, 1)[0]) for name in ("Rows", "Columns"))
    if min(row_spacing, column_spacing) <= 0 or min(rows, columns) <= 0:
        raise UserError("PixelSpacing, Rows and Columns must be above 0")
    totals = {name: _whole(header, name) or 0 for name in TOTALS}
    return Slice(
        file,
        series,
        _whole(header, "SeriesNumber"),
        _whole(header, "InstanceNumber"),
        str(header.get("SOPInstanceUID") or ""),
        (columns, rows),
        (column_spacing, row_spacing),
        np.array(_numbers(header, "ImagePositionPatient", 3)),
        np.stack([x, y, np.cross(x, y)], axis=1),
        abs(_number(header, "SliceThickness")),
        abs(_number(header, "SpacingBetweenSlices")),
        _number(header, "GantryDetectorTilt"),
        "LOCALIZER" in str(header.get("ImageType") or "").upper(),
        totals,
        {name: str(header[name].value) for name in VARIANTS if name in header},
    )


def _numbers(header: pydicom.Dataset, name: str, count: int) -> list[float]:
    value = header.get(name)
    if value is None or value == "":
        raise UserError(f"{name} is missing or empty")
    values = [float(part) for part in (value if count > 1 else [value])]
    if len(values) != count or not all(map(math.isfinite, values)):
        raise UserError(f"{name} holds {value}")
    return values


def _number(header: pydicom.Dataset, name: str) -> float:
    """A number that may be missing; 0 then."""
    try:
        return _numbers(header, name, 1)[0]
    except (UserError, ValueError, TypeError):
        return 0.0


def _whole(header: pydicom.Dataset, name: str) -> int | None:
    """A whole number that may be missing."""
    try:
        return int(header.get(name))
    except (ValueError, TypeError, OverflowError):
        return None
