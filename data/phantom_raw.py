"""Synthetic patients as raw downloads: CHAOS DICOM and pictures, Synapse CT, MS-CMRSeg hearts.

    python -m data.phantom_raw chaost2 raw/CHAOS --scans 3

Everything that makes raw data tedious is here on purpose: DICOM slices under shuffled names with a rescale slope and
oblique planes, Hounsfield units, hearts stored in three orientations, label values of each download. `data.chaost2`,
`data.sabs` and `data.cmr` take the folders as they take the real ones.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from pydicom.valuerep import DSfloat
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from data.chaost2 import NUMBERS
from data.parts.anatomy import Patient, draw_patient, sample
from data.parts.heart import CENTRE, draw_heart, short_axis
from data.phantom import FIELD_OF_VIEW as ABDOMEN
from data.phantom import MIDDLE, MR_CONTRAST
from dataloaders.raw.preparation import reordered
from util.commands import guarded, jobs, parser
from util.parallel import each_scan
from util.volume import Geometry, Volume, write_volume

HEART = (220.0, 220.0, 130.0)  # field of view, mm
SLOPE = 0.5  # of the DICOM files
GREY = np.array([0, 63, 126, 189, 252], np.uint8)  # liver, right kidney, left kidney, spleen
# the anatomy's label -> id in the prepared data set
IDS = {
    "chaost2": np.array([0, 1, 2, 3, 4], np.int16),
    "sabs": np.array([0, 6, 2, 3, 1], np.int16),
    "cmr": np.array([0, 200, 500, 600, 0], np.int16),
}
# how a grid is stored: swap rows and columns, signs of x, y, z
STORED = ((False, (1, 1, 1)), (False, (-1, -1, 1)), (True, (1, -1, 1)))

# fmt: off
HOUNSFIELD = {
    "air": -1000, "subcutaneous fat": -100, "muscle": 55, "visceral fat": -105, "lung": -820, "heart": 130,
    "liver": 110, "vein": 160, "spleen": 122, "cortex": 190, "medulla": 165, "renal sinus": -10, "gallbladder": 8,
    "pancreas": 95, "bowel wall": 60, "bowel content": 20, "colon content": -40, "stomach content": 25,
    "vessel wall": 60, "blood": 170, "bone": 260, "disc": 90, "cortical bone": 650, "cerebrospinal fluid": 10,
    "cord": 35,
}
BSSFP = {
    "air": 0.0, "subcutaneous fat": 0.8, "muscle": 0.3, "visceral fat": 0.7, "lung": 0.06, "blood": 0.95,
    "myocardium": 0.33,
}
# fmt: on
# tissue -> signal and its spread, as data.parts.anatomy.paint takes them
SIGNAL = {
    "chaost2": {tissue: (mean, 0.0) for tissue, (mean, *_) in MR_CONTRAST.items()},
    "sabs": {tissue: (value, 0.0) for tissue, value in HOUNSFIELD.items()},
    "cmr": {tissue: (value, 0.0) for tissue, value in BSSFP.items()},
}


def patient_of(kind: str, seed: int, number: int) -> tuple[Patient, np.random.Generator]:
    """The anatomy of a raw scan, and the generator of its acquisition."""
    anatomy, acquisition = np.random.default_rng(np.random.SeedSequence([seed, number, len(kind)])).spawn(2)
    return (draw_heart if kind == "cmr" else draw_patient)(anatomy), acquisition


def truth(kind: str, seed: int, index: int, geometry: Geometry, shape: tuple[int, ...]) -> np.ndarray:
    """The label `(D, H, W)`, int16, that a preparation without any loss would give scan `index` on a grid."""
    patient, _ = patient_of(kind, seed, index)
    return IDS[kind][sample(patient, geometry, shape, SIGNAL[kind])[1]]


def centred(middle: np.ndarray, axes: np.ndarray, field: tuple[float, ...], shape: tuple[int, ...]) -> Geometry:
    """The grid of `shape` `(D, H, W)` over a field of view in mm about a point."""
    spacing = np.array(field) / shape[::-1]
    origin = middle - axes @ (spacing * (np.array(shape[::-1]) - 1) / 2)
    return Geometry(tuple(spacing.tolist()), tuple(origin.tolist()), tuple(axes.ravel().tolist()))


def write_chaos(out: Path, seed: int, index: int, shape: tuple[int, int, int]) -> None:
    """One patient of the CHAOS download: oblique slices under shuffled names."""
    patient, generator = patient_of("chaost2", seed, index)
    axes = Rotation.from_euler("zx", generator.uniform(4, 9, 2) * generator.choice([-1, 1], 2), degrees=True)
    grid = centred(MIDDLE, axes.as_matrix(), ABDOMEN, shape)
    signal, label = sample(patient, grid, shape, SIGNAL["chaost2"])
    image = np.hypot(signal + 0.02 * generator.standard_normal(shape), 0.02 * generator.standard_normal(shape)) * 800
    folder = out / f"CHAOS_Train_Sets/Train_Sets/MR/{NUMBERS[index]}/T2SPIR"
    names = [f"IMG-{index:04d}-{number + 1:05d}" for number in generator.permutation(len(image))]
    write_series(folder / "DICOM_anon", names, np.rint(image / SLOPE), grid, f"1.2.826.{seed}.{index + 1}")
    (folder / "Ground").mkdir(exist_ok=True)
    for name, picture in zip(names, GREY[label], strict=True):
        sitk.WriteImage(sitk.GetImageFromArray(picture), str(folder / "Ground" / f"{name}.png"))


def write_series(folder: Path, names: Sequence[str], array: np.ndarray, geometry: Geometry, series: str) -> None:
    """Slices `(D, H, W)` of whole numbers 0 to 65535 as MR files `names[z].dcm`; they mean `SLOPE` times as much."""
    folder.mkdir(parents=True, exist_ok=True)
    for z, name in enumerate(names):
        origin = np.array(geometry.origin) + geometry.axes[2] * geometry.spacing[2] * z
        file = Dataset()
        file.file_meta = FileMetaDataset()
        file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = MRImageStorage
        file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = f"{series}.{z + 1}"
        file.Modality, file.SeriesInstanceUID, file.StudyInstanceUID = "MR", series, f"{series}.0"
        file.InstanceNumber, file.FrameOfReferenceUID = z + 1, f"{series}.9"
        file.ImagePositionPatient = [DSfloat(value, auto_format=True) for value in origin]
        file.ImageOrientationPatient = [DSfloat(value, auto_format=True) for value in geometry.axes[:2].ravel()]
        file.PixelSpacing = [DSfloat(value, auto_format=True) for value in geometry.spacing[1::-1]]
        file.RescaleSlope, file.RescaleIntercept = SLOPE, 0
        file.set_pixel_data(array[z].astype(np.uint16), "MONOCHROME2", bits_stored=16, generate_instance_uid=False)
        file.save_as(folder / f"{name}.dcm", enforce_file_format=True)


def write_synapse(out: Path, seed: int, index: int, shape: tuple[int, int, int]) -> None:
    """One scan of the Synapse multi-atlas abdomen; three ways of storing the grid take turns."""
    patient, generator = patient_of("sabs", seed, index)
    grid = centred(MIDDLE, np.diag([1.0, -1.0, 1.0]), ABDOMEN, shape)
    signal, label = sample(patient, grid, shape, SIGNAL["sabs"])
    signal = gaussian_filter(signal, (0, 0.6, 0.6)) + 12 * generator.standard_normal(shape, np.float32)
    name = f"{index + 1 if index < 10 else index + 11:04d}"
    for kind, array in (("img", np.rint(signal).astype(np.int16)), ("label", IDS["sabs"][label])):
        write_stored(out / f"RawData/Training/{kind}/{kind}{name}.nii.gz", array, grid, index)


def write_cardiac(out: Path, seed: int, index: int, shape: tuple[int, int, int]) -> None:
    """One scan of MS-CMRSeg: short-axis slices; three ways of storing the grid take turns."""
    patient, generator = patient_of("cmr", seed, index)
    grid = centred(CENTRE, short_axis(), HEART, shape)
    signal, label = sample(patient, grid, shape, SIGNAL["cmr"])
    image = np.hypot(signal + 0.03 * generator.standard_normal(shape), 0.03 * generator.standard_normal(shape)) * 600
    name = f"patient{index + 1}_C0"
    ending = ("manual", "gd")[index % 2]
    write_stored(out / f"{name}.nii.gz", image.astype(np.int16), grid, index)
    write_stored(out / f"{name}_{ending}.nii.gz", IDS["cmr"][label], grid, index)


def write_stored(file: Path, array: np.ndarray, grid: Geometry, index: int) -> None:
    """A volume in one of the three ways of storing its grid."""
    volume = reordered(Volume(array, grid), *STORED[index % 3])
    write_volume(file, volume.array, volume.geometry)


WRITERS = {"chaost2": write_chaos, "sabs": write_synapse, "cmr": write_cardiac}
SCANS = {"chaost2": 20, "sabs": 30, "cmr": 35}  # as many as the downloads have
SHAPES = {"chaost2": (30, 256, 256), "sabs": (80, 512, 512), "cmr": (12, 240, 240)}


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    command = parser(__doc__, "python -m data.phantom_raw")
    command.add_argument("kind", choices=tuple(WRITERS), help="which download to imitate")
    command.add_argument("out", metavar="OUT", type=Path, help="folder to write to")
    command.add_argument("--scans", type=int, default=3, help="number of patients (default: 3)")
    command.add_argument("--seed", type=int, default=1, help="another seed, other patients (default: 1)")
    help_text = f"voxels of a scan (default: {', '.join(' '.join(map(str, shape)) for shape in SHAPES.values())})"
    command.add_argument("--shape", type=int, nargs=3, metavar=("SLICES", "ROWS", "COLUMNS"), help=help_text)
    command.add_argument("--jobs", type=jobs, default=-1, help="scans computed at once (default: one per core)")
    options = command.parse_args(arguments)
    if not 1 <= options.scans <= SCANS[options.kind]:
        command.error(f"--scans {options.scans}: 1 to {SCANS[options.kind]}")
    shape = tuple(options.shape or SHAPES[options.kind])
    scans = {index + 1: (options.out, options.seed, index, shape) for index in range(options.scans)}
    work = each_scan(WRITERS[options.kind], scans, options.jobs, options.kind)
    return guarded(lambda: {number: done.failure for number, done in work if done.failure})


if __name__ == "__main__":
    sys.exit(main())
