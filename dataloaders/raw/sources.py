"""Raw files of one scan, and reading them: NIfTI, or a DICOM series; the label beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from dataloaders.raw import dicom
from util.errors import UserError
from util.volume import Volume, read_volume

GEOMETRY_TOLERANCE = 1e-2  # mm and cosines; headers are float32 and written by many programs


@dataclass(frozen=True)
class Source:
    """Files of one scan: one image file or the slices of a series, one label file or one picture per slice.

    `problem` is a sentence if it is known already that they cannot be read as one scan.
    """

    image: tuple[Path, ...]
    label: tuple[Path, ...]
    problem: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        return self.image + self.label


def one_of_each(images: Sequence[Path], labels: Sequence[Path]) -> Source:
    """The source of two NIfTI files; a problem if there are several candidates."""
    several = next((files for files in (images, labels) if len(files) > 1), None)
    problem = f"{several[0]}: there is also {several[1]}; leave one of them" if several else ""
    return Source((images[0],), (labels[0],), problem)


def read_source(source: Source, ids: Mapping[int, int] | None, trust_voxels: bool) -> tuple[Volume, Volume]:
    """Image and label `(D, H, W)` of one scan, voxel by voxel the same place, with the doubts of their own headers.

    Args:
        source: its files.
        ids: value in the label files -> id in the prepared label; None keeps all values.
        trust_voxels: a label whose header says another place than the image's is taken to lie on the image.

    Raises:
        UserError: a file is damaged or missing, shapes or places differ, a label value is unknown.
    """
    if source.problem:
        raise UserError(source.problem)
    image, slices = read_image(source.image)
    label = (
        Volume(_read_pictures(source.label, slices, image), image.geometry)
        if source.label[0].suffix == ".png"
        else _read_label(source.label[0], image, trust_voxels)
    )
    where = source.label[0] if len(source.label) == 1 else source.label[0].parent
    return image, Volume(_ids(label.array, ids, where), image.geometry, label.doubts)


def read_image(files: tuple[Path, ...]) -> tuple[Volume, list[Path]]:
    """A scan `(D, H, W)` from one NIfTI file, or from the slices of a DICOM series, which come back in their order.

    Raises:
        UserError: a file is damaged or missing, or the files are no series.
    """
    if is_series(files):
        return dicom.read_series(files)
    (file,) = files
    return read_volume(file), []


def find_volumes(folder: Path) -> list[Path]:
    """NIfTI files of a folder by name."""
    return sorted(path for path in folder.iterdir() if is_volume(path) and not path.name.startswith("."))


def find_series(folder: Path) -> tuple[dict[Path, tuple[Path, ...]], list[str]]:
    """DICOM series at any depth of a folder: a path below it that names each -> its files; and what was left out.

    A path is that of the first folder below if no other series lies in it.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not is_volume(path))
    series, left_out = dicom.find_series(path for path in paths if not path.name.startswith("."))
    named = dicom.name_series(series, folder, short=True)
    return {folder / name: scan.files for name, scan in named.items()}, dicom.remarks(series, left_out, folder)


def is_volume(file: Path) -> bool:
    """True for a file that is named as a NIfTI file."""
    return file.name.endswith((".nii", ".nii.gz"))


def is_series(files: tuple[Path, ...]) -> bool:
    """True for DICOM files; anything that is not named as a NIfTI file."""
    return not is_volume(files[0])


def doubts(source: Source, volumes: Sequence[Volume], trust_voxels: bool) -> list[str]:
    """What the headers of image and label leave in doubt, one sentence for each; a label that is trusted has none."""
    files = (source.image[0], source.label[0])[: 1 if trust_voxels else 2]
    return [f"{file}: {doubt}" for file, volume in zip(files, volumes, strict=False) for doubt in volume.doubts]


def _read_label(file: Path, image: Volume, trust_voxels: bool) -> Volume:
    label = read_volume(file)
    if label.array.shape != image.array.shape:
        raise UserError(
            f"{file}: has shape {label.array.shape} (slices, rows, columns), its image {image.array.shape}; "
            "both must be the same scan"
        )
    if not trust_voxels and not label.geometry.matches(image.geometry, GEOMETRY_TOLERANCE):
        raise UserError(
            f"{file}: its header places it elsewhere than the image (spacing {_text(label.geometry.spacing)} against "
            f"{_text(image.geometry.spacing)} mm, origin {_text(label.geometry.origin)} against "
            f"{_text(image.geometry.origin)}, or the direction); if the voxels do correspond, use --trust-label-voxels"
        )
    return label


def _read_pictures(files: tuple[Path, ...], slices: list[Path], image: Volume) -> np.ndarray:
    """One picture per slice, paired by the files' stems: the order of names says nothing about places [alpnet 3.3]."""
    pictures = {file.stem: file for file in files}
    folder, stems = files[0].parent, [file.stem for file in slices]
    without, alone = sorted(set(stems) - set(pictures)), sorted(set(pictures) - set(stems))
    if without or alone:
        raise UserError(
            f"{folder}: {len(pictures)} label pictures for {len(stems)} DICOM slices; "
            + (f"no picture for {_few(without)}" if without else f"no slice for {_few(alone)}")
            + "; unpack the download again"
        )
    return np.stack([_picture(pictures[stem], image.array.shape[1:]) for stem in stems])


def _picture(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(file), imageIO="PNGImageIO"))
    except RuntimeError as error:
        raise UserError(f"{file}: cannot be read, the picture is damaged; unpack the download again") from error
    if array.shape != shape:
        raise UserError(f"{file}: has shape {array.shape}, its DICOM slice {shape} (rows, columns)")
    return array


def _ids(label: np.ndarray, ids: Mapping[int, int] | None, where: Path) -> np.ndarray:
    values = np.unique(label)
    if ids is None:
        ids = {int(value): int(value) for value in values if 0 <= value <= 32767 and value == int(value)}
    strange = [f"{value:g}" for value in values if value not in ids and value != 0]
    if strange:
        raise UserError(
            f"{where}: holds the label value(s) {_few(strange)}; known are {', '.join(map(str, sorted(ids)))}"
        )
    if not label.any():
        raise UserError(f"{where}: shows no organ at all; is it the right label?")
    result = np.zeros(label.shape, np.int16)
    for value, identifier in ids.items():
        if value:
            result[label == value] = identifier
    return result


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _text(values: tuple[float, ...]) -> str:
    return " x ".join(f"{value:.3g}" for value in values)
