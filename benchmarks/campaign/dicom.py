"""DICOM series with changed elements, damaged bytes, files too few or too many; pydicom is the witness."""

import shutil
from pathlib import Path

import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut
from pydicom.uid import ImplicitVRLittleEndian, RLELossless

from benchmarks.campaign.mutations import Random, changed_bytes, changed_number, changed_text, pick
from benchmarks.campaign.trials import Kind, NoWitness
from data.phantom_raw import write_series
from dataloaders.raw.dicom import find_series, read_series
from util.errors import UserError
from util.volume import Geometry, Volume

SLICES, SIZE = 5, (8, 10)
STEP = 0.06  # of the distance between slices: that much may one be out of place
ELEMENTS = (
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "SeriesInstanceUID",
    "RescaleSlope", "RescaleIntercept", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "SamplesPerPixel", "PhotometricInterpretation", "PixelData", "Modality", "SOPClassUID", "InstanceNumber",
    "SliceThickness", "SpacingBetweenSlices", "PixelPaddingValue", "NumberOfFrames", "ImageType",
    "ImagesInAcquisition", "SOPInstanceUID", "StudyInstanceUID", "PatientID", "GantryDetectorTilt", "EchoTime",
)  # fmt: skip
WORDS = (
    "MONOCHROME1", "MONOCHROME2", "RGB", "PALETTE COLOR", "CT", "MR", "SEG", "ORIGINAL\\PRIMARY\\LOCALIZER", "1.2.3",
)  # fmt: skip


class Series(Kind):
    """One series of slices in a folder."""

    name, share = "dicom", 2.5

    def write(self, folder: Path, random: Random) -> None:
        """A sound series: plain, implicit or packed by run lengths; numbered or not."""
        turn = np.eye(3)[:, [0, 1, 2] if random.random() < 0.5 else [1, 2, 0]]
        geometry = Geometry((2.0, 1.5, 5.0), tuple(random.uniform(-90, 90, 3)), tuple(turn.ravel().tolist()))
        array = random.integers(0, 900, (SLICES, *SIZE))
        write_series(folder, [f"{z:03d}" for z in range(SLICES)], array, geometry, f"1.2.826.{random.integers(1, 99)}")
        syntax = pick(random, (None, None, ImplicitVRLittleEndian, RLELossless))
        for path in folder.iterdir() if syntax else ():
            file = pydicom.dcmread(path)
            if syntax == RLELossless:
                file.compress(RLELossless, generate_instance_uid=False)
            else:
                file.file_meta.TransferSyntaxUID = syntax
            file.save_as(path, enforce_file_format=True)

    def damage(self, folder: Path, random: Random) -> None:
        """Change elements or bytes of one slice or all, or the files of the folder."""
        files = sorted(folder.iterdir())
        file = pick(random, files)
        match pick(random, ("element", "element", "element", "all", "bytes", "bytes", "files")):
            case "element":
                _change_element([file], random)
            case "all":
                _change_element(files, random)
            case "bytes":
                file.write_bytes(changed_bytes(file.read_bytes(), random))
            case "files":
                _change_files(file, random)

    def read(self, folder: Path) -> tuple[list[tuple[Volume, list[Path]]], dict[Path, str]]:
        """All series that the index finds, each whole."""
        found, left_out = find_series(sorted(folder.rglob("*")))
        if not found:
            raise UserError(f"{folder}: holds no series")  # as all commands say
        return [read_series(series.files) for series in found], left_out

    def contradiction(self, folder: Path, result: tuple[list[tuple[Volume, list[Path]]], dict[Path, str]]) -> str:
        """Whether values and places of every slice are those of its file, and no file is missing without a word."""
        scans, left_out = result
        used = {file for _, files in scans for file in files}
        forgotten = [path.name for path in folder.rglob("*") if path.is_file() and path not in used | left_out.keys()]
        if forgotten:
            return f"silent: {forgotten} are in no volume"
        texts = [_contradiction(volume, files) for volume, files in scans]
        return next(filter(None, texts), "")


def _change_element(files: list[Path], random: Random) -> None:
    name = pick(random, ELEMENTS)
    how = pick(random, ("remove", "empty", "number", "number", "text", "word", "own", "tag"))
    seed = int(random.integers(2**32))
    for path in files:
        alike = np.random.default_rng(seed)  # the same change in all files
        file = pydicom.dcmread(path)
        if how == "tag":
            name = pick(alike, [element.keyword for element in file])
        value = file.get(name)
        try:
            if how in ("remove", "tag"):
                del file[name]
            elif how == "empty":
                setattr(file, name, None)
            else:
                setattr(file, name, _changed(value, how, alike))
            file.save_as(path, enforce_file_format=True)
        except Exception:  # pydicom does not write every value
            path.write_bytes(changed_bytes(path.read_bytes(), alike))


def _changed(value, how: str, random: Random):
    if how == "text":
        return changed_text(str(value), random)
    if how == "word" or isinstance(value, bytes):
        return pick(random, WORDS)
    numbers = list(value) if isinstance(value, pydicom.multival.MultiValue) else [value or 0]
    at = int(random.integers(len(numbers)))
    try:
        number = changed_number(float(numbers[at]), random)
    except ValueError:  # a word
        return pick(random, (0, -1, 1, 16, 65535))
    numbers[at] = int(number) if isinstance(value, int) and np.isfinite(number) else float(f"{number:.8g}")
    return numbers if len(numbers) > 1 else numbers[0]


def _change_files(file: Path, random: Random) -> None:
    match pick(random, ("remove", "copy", "rename", "junk", "twin", "empty", "preamble")):
        case "remove":
            file.unlink()
        case "copy":
            shutil.copy(file, file.with_name(f"copy{file.suffix}"))
        case "rename":
            file.rename(file.with_name(pick(random, ("IM0001", "slice.ima", "DICOMDIR", "x.png"))))
        case "junk":
            file.with_name(pick(random, ("README", "notes.dcm", "a.pdf"))).write_bytes(random.bytes(500))
        case "twin":
            (file.parent / "below").mkdir()
            file.rename(file.parent / "below" / file.name)
        case "empty":
            file.write_bytes(b"")
        case "preamble":
            file.write_bytes(file.read_bytes()[132:])


def _contradiction(volume: Volume, files: list[Path]) -> str:
    try:
        slices = [pydicom.dcmread(file, force=True) for file in files]
        for piece, syntax in ((piece, piece.file_meta.get("TransferSyntaxUID")) for piece in slices):
            if syntax is None:
                piece.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        stored = np.stack([piece.pixel_array for piece in slices])
        values = np.stack([_rescaled(piece) for piece in slices])
        origins = np.array([[float(part) for part in piece.ImagePositionPatient] for piece in slices])
        x, y = np.array([float(part) for part in slices[0].ImageOrientationPatient]).reshape(2, 3)
        rows, columns = map(float, slices[0].PixelSpacing)
    except Exception as error:
        raise NoWitness(f"pydicom: {type(error).__name__}: {error}") from error
    return _other_values(volume, slices, stored, values) or _other_places(volume, origins, x * columns, y * rows)


def _rescaled(piece: pydicom.Dataset) -> np.ndarray:
    if piece.get("ModalityLUTSequence"):
        return apply_modality_lut(piece.pixel_array, piece).astype(float)
    slope, intercept = (piece.get(f"Rescale{name}") for name in ("Slope", "Intercept"))
    return piece.pixel_array * float(1 if slope in (None, "") else slope) + float(intercept or 0)


def _other_values(volume: Volume, slices: list[pydicom.Dataset], stored: np.ndarray, values: np.ndarray) -> str:
    if values.shape != volume.array.shape:
        return f"pydicom: shape {values.shape}, read as {volume.array.shape}"
    scaled = [piece.get("RescaleSlope") not in (None, "") for piece in slices]
    if len(set(scaled)) > 1:
        return f"silent: RescaleSlope is missing in {scaled.count(False)} of {len(slices)} slices"
    told = np.ones(values.shape, bool)
    for z, piece in enumerate(slices):  # padding becomes air
        if isinstance(padding := piece.get("PixelPaddingValue"), int):
            told[z] = stored[z] != np.asarray(padding).astype(stored.dtype)
    if any(piece.PhotometricInterpretation == "MONOCHROME1" for piece in slices):
        values = values[told].max(initial=0) - values
    wrong = told & ~np.isclose(values, volume.array, rtol=1e-5, atol=1e-4)
    if not wrong.any():
        return ""
    return f"pydicom: {int(wrong.sum())} other values in slices {np.unique(np.nonzero(wrong)[0])}"


def _other_places(volume: Volume, origins: np.ndarray, x: np.ndarray, y: np.ndarray) -> str:
    axes = np.reshape(volume.geometry.direction, (3, 3)) * volume.geometry.spacing
    if not np.allclose(axes[:, 0], x, atol=1e-3) or not np.allclose(axes[:, 1], y, atol=1e-3):
        return f"pydicom: rows and columns run by {x} and {y}, read as\n{axes}"
    places = np.array(volume.geometry.origin) + np.arange(len(origins))[:, None] * axes[:, 2]
    distance = np.linalg.norm(places - origins, axis=1).max() / np.linalg.norm(axes[:, 2])
    return f"pydicom: a slice lies {distance:.3g} steps away" if not distance < STEP else ""
