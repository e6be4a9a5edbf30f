"""A DICOM series as one volume: slices in the order of their positions, whatever the files are called.

pydicom and not SimpleITK reads the slices: GDCM ignores the rescale slope of MR.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut, get_decoder, pixel_array
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dataloaders.raw.dicom.header import NotASlice, Slice, read_slice
from dataloaders.raw.dicom.stack import folder_of, in_order
from util.errors import UserError
from util.volume import Geometry, Volume

AIR = -1024  # HU
TISSUE = -200  # HU; below is air and lung, which every CT shows
# what the standard demands, for files that leave it out or empty
DEFAULTS = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "PixelRepresentation": 0}


@dataclass(frozen=True)
class Pixels:
    """Values `(H, W)` of a slice after rescaling; which of them are padding, if any is declared; what else they are."""

    values: np.ndarray
    padding: np.ndarray | None
    is_inverted: bool
    is_ct: bool
    says_scale: bool


def read_series(files: Sequence[Path]) -> tuple[Volume, list[Path]]:
    """The volume `(D, H, W)` of the files of one series, and the files in the order of their slices.

    Slices ascend along the normal of the plane; scouts are left out. The modality's table, or slope and intercept, are
    applied. Padding becomes -1024 in CT, else the lowest value; pictures with inverted greys are turned round.

    Raises:
        UserError: a file is unreadable; there is more than one series; sizes, spacings or orientations differ; slices
            are missing or there twice; there are colours; the values are unknown.
    """
    slices, step = in_order([_read_slice(file) for file in sorted(files)])
    array = _values([_pixels(piece) for piece in slices], folder_of(slices))
    first = slices[0]
    geometry = Geometry((*first.spacing, step), tuple(first.origin.tolist()), tuple(first.axes.ravel().tolist()))
    return Volume(array, geometry), [piece.file for piece in slices]


def _read_slice(file: Path) -> Slice:
    try:
        return read_slice(file)
    except NotASlice as error:
        raise UserError(f"{file}: is not a readable DICOM slice ({error}); fetch it again") from error


def _values(slices: Sequence[Pixels], folder: Path) -> np.ndarray:
    """Values `(D, H, W)`: integers if all are whole, else float32."""
    array, padding = np.stack([piece.values for piece in slices]), None
    if any(piece.padding is not None for piece in slices):
        none = np.zeros(array.shape[1:], bool)
        padding = np.stack([none if piece.padding is None else piece.padding for piece in slices])
    true = array if padding is None else array[~padding]
    _require_known(slices, true, folder)
    if slices[0].is_inverted:
        array, true = true.max() - array, true.max() - true
    if padding is not None:
        array[padding] = AIR if slices[0].is_ct else true.min()
    is_short = array.dtype == np.int32 and array.min() > -(2**15) and array.max() < 2**15
    return array.astype(np.int16) if is_short else array


def _require_known(slices: Sequence[Pixels], true: np.ndarray, folder: Path) -> None:
    """Refuse values of which nobody knows what they mean; `true` are those that are no padding."""
    if not true.size:
        raise UserError(f"{folder}: every pixel has the PixelPaddingValue, there is no image; fetch the series again")
    is_ct = slices[0].is_ct
    if len({piece.says_scale for piece in slices}) > 1:
        raise UserError(
            f"{folder}: RescaleSlope or RescaleIntercept is missing in some slices, so their values would not be those "
            "of the others; fetch the series again"
        )
    if is_ct and not slices[0].says_scale and true.min() >= TISSUE:
        raise UserError(
            f"{folder}: is CT without RescaleSlope or RescaleIntercept, and its values (from {true.min():g} on) are no "
            "Hounsfield units; fetch the series again"
        )
    inverted = sum(piece.is_inverted for piece in slices)
    if inverted and (is_ct or inverted < len(slices)):
        which = "CT whose Hounsfield units may be inverted" if is_ct else "only some slices have inverted greys"
        raise UserError(f"{folder}: PhotometricInterpretation says MONOCHROME1, {which}; export it as MONOCHROME2")


def _pixels(piece: Slice) -> Pixels:
    file = None
    try:
        file = _with_defaults(pydicom.dcmread(piece.file, force=True))
        _require_decoder(piece.file, file)
        stored = pixel_array(file, raw=True, correct_unused_bits=False)
        values = _value_bits(stored, file) if stored.dtype.kind in "iu" else stored
        padding = _is_padding(stored, values, file)
        pixels = Pixels(
            _rescaled(values, file),
            padding,
            file.PhotometricInterpretation == "MONOCHROME1",
            file.get("Modality") == "CT",
            _has_table(file) or None not in (_scale(file, "Slope"), _scale(file, "Intercept")),
        )
    except (UserError, MemoryError):
        raise
    except Exception as error:  # pydicom and the decoders fail in many ways on damaged files
        raise UserError(f"{piece.file}: its pixels cannot be read, {_cause(file, error)}") from error
    if stored.shape != piece.size[::-1]:
        raise UserError(
            f"{piece.file}: has pixels of shape {stored.shape}, one value on {piece.size[::-1]} is expected"
        )
    if not np.isfinite(pixels.values).all() or (_scale(file, "Slope") == 0 and not _has_table(file)):
        raise UserError(f"{piece.file}: its values are no numbers, or RescaleSlope is 0; fetch it again")
    return pixels


def _cause(file: pydicom.Dataset | None, error: Exception) -> str:
    """Why decoding failed; a decoder may read only some kinds of one compression."""
    syntax = _transfer_syntax(file) if file is not None and isinstance(error, RuntimeError) else None
    if syntax is not None and syntax.is_compressed:
        return f"the file is damaged, or compressed in an unusual way ({syntax.name}); {_remedy(syntax)}"
    return "the file is damaged or cut short; fetch it again"


def _with_defaults(file: pydicom.Dataset) -> pydicom.Dataset:
    """The file with what decoding needs, as far as that can be known if the file leaves it out."""
    for name, value in DEFAULTS.items():
        if file.get(name) in (None, ""):
            setattr(file, name, value)
    if not file.get("BitsStored"):
        file.BitsStored = file.BitsAllocated
    if "NumberOfFrames" in file:
        del file.NumberOfFrames  # 1, or empty
    return file


def _require_decoder(path: Path, file: pydicom.Dataset) -> None:
    syntax, kind = _transfer_syntax(file), file.PhotometricInterpretation
    if file.SamplesPerPixel != 1 or not kind.startswith("MONOCHROME"):
        raise UserError(f"{path}: holds colours ({kind}), not the values of a scan; remove it or export grey values")
    try:
        is_readable = get_decoder(syntax).is_available
    except NotImplementedError:
        is_readable = False
    if not is_readable:
        raise UserError(f"{path}: is compressed ({syntax.name}), which nothing installed reads; {_remedy(syntax)}")


def _remedy(syntax: pydicom.uid.UID) -> str:
    """What reads a compressed file, as pydicom knows it."""
    by_hand = "decompress the series first (gdcmconv --raw does)"
    try:
        lacking = get_decoder(syntax).missing_dependencies
    except NotImplementedError:
        return by_hand
    packages = re.findall(r"[\w-]+(?=>=)", lacking[-1]) if lacking else []
    return f"pip install {' '.join(packages)}, or {by_hand}" if packages else by_hand


def _transfer_syntax(file: pydicom.Dataset) -> pydicom.uid.UID:
    """As the file says; files that lost their beginning are as they were parsed."""
    if not file.file_meta.get("TransferSyntaxUID"):
        is_implicit, is_little = file.original_encoding
        explicit = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
        file.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else explicit
    return file.file_meta.TransferSyntaxUID


def _value_bits(stored: np.ndarray, file: pydicom.Dataset) -> np.ndarray:
    """The bits of the value alone: others may hold an overlay or anything else, in every transfer syntax."""
    allocated, bits = 8 * stored.dtype.itemsize, int(file.BitsStored)
    high = file.get("HighBit")
    high = bits - 1 if high in (None, "") or not bits - 1 <= high < allocated else int(high)
    if bits == allocated:
        return stored
    return (stored << (allocated - 1 - high)) >> (allocated - bits)  # the second keeps the sign


def _is_padding(stored: np.ndarray, values: np.ndarray, file: pydicom.Dataset) -> np.ndarray | None:
    """True for pixels with the declared padding value, or one of the declared range; None if there is none."""
    limits = [file.get(name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if limits[0] in (None, "") or stored.dtype.kind == "f":
        return None
    wrapped = np.array([int(value) for value in limits if value not in (None, "")]).astype(stored.dtype)
    low, high = wrapped.min(), wrapped.max()  # signed or not as the pixels are: 63536 is -2000
    return (stored >= low) & (stored <= high) | (values >= low) & (values <= high)


def _has_table(file: pydicom.Dataset) -> bool:
    return bool(file.get("ModalityLUTSequence"))


def _scale(file: pydicom.Dataset, name: str) -> float | None:
    value = file.get(f"Rescale{name}")
    return None if value in (None, "") else float(value)


def _rescaled(values: np.ndarray, file: pydicom.Dataset) -> np.ndarray:
    """What the pixels mean: int32 if slope and intercept are whole, else float32."""
    if _has_table(file):
        return apply_modality_lut(values, file).astype(np.int32)
    slope, intercept = _scale(file, "Slope"), _scale(file, "Intercept")
    slope, intercept = 1.0 if slope is None else slope, intercept or 0.0
    is_whole = slope.is_integer() and intercept.is_integer() and values.dtype.kind != "f"
    furthest = max(abs(float(values.min())), abs(float(values.max()))) * abs(slope) + abs(intercept)
    if is_whole and furthest < 2**31:
        return values.astype(np.int32) * np.int32(slope) + np.int32(intercept)
    return (values * np.float64(slope) + intercept).astype(np.float32)
