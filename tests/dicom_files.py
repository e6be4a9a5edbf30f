"""DICOM series written file by file, sound unless told otherwise."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

STEP = 5.0  # mm between slices


def pixels(count: int = 6, seed: int = 0) -> np.ndarray:
    """Slices `(count, 8, 10)` of whole numbers from 0 to 900, uint16; 0 and 900 are among them."""
    array = np.random.default_rng(seed).integers(0, 901, (count, 8, 10)).astype(np.uint16)
    array[0, 0, :2] = 0, 900
    return array


def one_slice(array: np.ndarray, place: float = 0.0, number: int = 1, series: str = "1.2.3", **changes) -> Dataset:
    """One slice `(H, W)` at `place` mm along z; None in `changes` empties an element, `...` takes it away."""
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    modality = changes.get("Modality", "MR")
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = f"{series}.{number}"
    file.Modality, file.PatientID, file.StudyInstanceUID, file.SeriesInstanceUID = modality, "P", "1.2", series
    file.SeriesNumber, file.InstanceNumber = 4, number
    file.ImagePositionPatient, file.ImageOrientationPatient = [-10.0, -20.0, place], [1, 0, 0, 0, 1, 0]
    file.PixelSpacing, file.SliceThickness = [2.0, 1.5], STEP
    file.Rows, file.Columns = array.shape
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated = file.BitsStored = 8 * array.dtype.itemsize
    file.HighBit, file.PixelRepresentation = file.BitsStored - 1, int(array.dtype.kind == "i")
    file.PixelData = array.tobytes()
    file["PixelData"].VR = "OW"
    for name, value in changes.items():
        if value is ...:
            delattr(file, name)
        else:
            setattr(file, name, value)
    return file


def write(file: Dataset, path: Path) -> Path:
    """Write one data set, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path, array: np.ndarray, *, name: str = "IM{:03d}.dcm", first: float = 0.0, **changes
) -> list[Path]:
    """Slices `(D, H, W)`, `STEP` mm apart from `first` mm on, numbered from 1; the files in their order."""
    return [
        write(one_slice(plane, first + z * STEP, z + 1, **changes), folder / name.format(z + 1))
        for z, plane in enumerate(array)
    ]


def change(path: Path, **changes) -> Path:
    """Change elements of a written file."""
    file = pydicom.dcmread(path)
    for name, value in changes.items():
        setattr(file, name, value)
    return write(file, path)
