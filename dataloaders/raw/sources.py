"""Raw files of one scan, and reading them: NIfTI, or a DICOM series; the label beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TypeVar

import numpy as np
import SimpleITK as sitk
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from dataloaders.raw import dicom
from dataloaders.raw.intensities import FEW_VALUES, alike
from util.errors import UserError
from util.files import utf8_name
from util.finding import Found, few, find_files, is_volume, others, with_voxels
from util.nifti import by, read_header
from util.volume import Geometry, Volume, read_volume

GEOMETRY_TOLERANCE = 1e-2  # mm and cosines; headers are float32 and written by many programs
GRID_TOLERANCE = 0.1  # voxels, between the corners of a label and of its image once it is turned
T = TypeVar("T", int, str)


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

    @property
    def pair(self) -> tuple[tuple[str, tuple[Path, ...]], ...]:
        """Image and label, as far as they are there, by these words."""
        return tuple((kind, files) for kind, files in (("image", self.image), ("label", self.label)) if files)


def one_of_each(images: Sequence[Path], labels: Sequence[Path]) -> Source:
    """The source of two NIfTI files; a problem if there are several candidates."""
    several = next((files for files in (images, labels) if len(files) > 1), None)
    problem = f"{several[0]}: there is also {several[1]}; leave one of them" if several else ""
    return Source(with_voxels(images[0]), with_voxels(labels[0]), problem)


def left_out(there: Found, images: Mapping[T, list[Path]], labels: Mapping[T, list[Path]]) -> list[str]:
    """Remarks on images without label, labels without image, and what else was found."""
    remarks = list(there.remarks)
    for one, other, what in ((images, labels, "scans without label"), (labels, images, "labels without scan")):
        if without := sorted(set(one) - set(other)):
            remarks.append(f"{len(without)} {what} left out: {', '.join(map(str, without))}")
    return remarks + others(there.files, (path for files in (*images.values(), *labels.values()) for path in files))


def read_source(source: Source, ids: Mapping[int, int] | None, trust_voxels: bool) -> tuple[Volume, Volume]:
    """Image and label `(D, H, W)` of one scan, voxel by voxel the same place, with the doubts of their own headers.

    Args:
        ids: value in the label files -> id in the prepared label; None keeps all values.
        trust_voxels: a label whose header says another place than the image's is taken to lie on the image.

    A label that its header places on the image's own grid, stored in another order, is put into the image's order.

    Raises:
        UserError: a file is damaged or missing, shapes or places differ, a label value is unknown or it is an image.
    """
    if source.problem:
        raise UserError(source.problem)
    image, slices = read_image(source.image)
    where = source.label[0]
    if where.suffix == ".png":
        where, label = where.parent, Volume(_read_pictures(source.label, slices, image), image.geometry)
    else:
        label = _read_label(source, image, trust_voxels)
    answer = Volume(_ids(label.array, ids, where), image.geometry, label.doubts)
    if np.array_equal(image.array, label.array):
        raise UserError(f"{source.image[0]}: has the same voxels as its label {where}; name the image")
    return image, answer


def read_image(files: tuple[Path, ...]) -> tuple[Volume, list[Path]]:
    """A scan `(D, H, W)` from one NIfTI file, or from the slices of a DICOM series, which come back in their order.

    Raises:
        UserError: a file is damaged or missing, or the files are no series.
    """
    if is_series(files):
        return dicom.read_series(files)
    return read_volume(files[0]), []


def find_series(folder: Path) -> tuple[dict[Path, tuple[Path, ...]], Found]:
    """DICOM series at any depth of a folder: a path below it that names each -> its files; and what else lies there.

    A path is that of the first folder below if no other series lies in it.
    """
    there = find_files(folder)
    series, left_out = dicom.find_series(path for path in there.files if not is_volume(path))
    named = dicom.name_series(series, folder, short=True)
    there.remarks += dicom.remarks(series, left_out, folder)
    there.files = [path for path in there.files if path not in left_out]
    return {folder / name: scan.files for name, scan in named.items()}, there


def is_series(files: tuple[Path, ...]) -> bool:
    """True for DICOM files; anything that is not named as a volume."""
    return not is_volume(files[0])


def doubts(source: Source, volumes: Sequence[Volume], trust_voxels: bool) -> list[str]:
    """What the headers of image and label leave in doubt, one sentence for each; a label that is trusted has none."""
    files = (source.image[0], source.label[0])[: 1 if trust_voxels else 2]
    return [f"{file}: {doubt}" for file, volume in zip(files, volumes, strict=False) for doubt in volume.doubts]


def kept_shares(before: Volume, after: Volume) -> dict[int, float]:
    """Label id -> share of its volume that is left of it; `before` on its own grid, `after` prepared."""
    volumes = []
    for volume in (before, after):
        ids, counts = np.unique(volume.array[volume.array > 0].astype(int), return_counts=True)
        size = float(np.prod(volume.geometry.spacing))
        volumes.append({i: count * size for i, count in zip(ids.tolist(), counts.tolist(), strict=True)})
    return {i: volumes[1].get(i, 0.0) / size for i, size in volumes[0].items()}


def _read_label(source: Source, image: Volume, trust_voxels: bool) -> Volume:
    file, label = source.label[0], read_volume(source.label[0])
    told = all(_tells_place(path) for path in (file, source.image[0]))
    turned = laid_onto(label, image) if told else None
    if label.array.shape == image.array.shape and label.geometry.matches(image.geometry, GEOMETRY_TOLERANCE):
        return label
    if turned is not None and trust_voxels:
        raise UserError(
            f"{file}: its header says that it lies on its image stored in another order, so --trust-label-voxels would "
            "turn it; leave the option out"
        )
    if turned is not None:
        return Volume(turned, image.geometry, label.doubts)
    if label.array.shape != image.array.shape:
        raise UserError(
            f"{file}: has shape {label.array.shape} (slices, rows, columns), its image {image.array.shape}; "
            "both must be the same scan"
        )
    if not trust_voxels:
        hint = "resample it onto the image" if told else "if the voxels do correspond, use --trust-label-voxels"
        raise UserError(
            f"{file}: its header places it elsewhere than the image (spacing {by(label.geometry.spacing, 3)} against "
            f"{by(image.geometry.spacing, 3)} mm, origin {by(label.geometry.origin, 3)} against "
            f"{by(image.geometry.origin, 3)}, or the direction); {hint}"
        )
    return label


def _tells_place(file: Path) -> bool:
    """False for a NIfTI header that carries neither of its two transforms, and for Analyze, which has none."""
    header = read_header(file) if is_volume(file) else None
    return header is None or any(header.get(f"{name}_code", 0) for name in ("sform", "qform"))


def laid_onto(label: Volume, image: Volume) -> np.ndarray | None:
    """The voxels of a label in the order of an image whose grid it lies on, stored in whatever order and directions;
    None where it lies elsewhere."""
    to_image = np.linalg.solve(_affine(image.geometry), _affine(label.geometry))  # voxel (x, y, z) -> voxel (x, y, z)
    order = io_orientation(to_image)
    array = apply_orientation(label.array.T, order).T
    if array.shape != image.array.shape:
        return None
    corners = np.array([(*corner, 1) for corner in product(*((0, n - 1) for n in array.shape[::-1]))]).T
    moved = to_image @ inv_ornt_aff(order, label.array.shape[::-1]) @ corners
    return np.ascontiguousarray(array) if np.abs(moved - corners).max() < GRID_TOLERANCE else None


def _affine(geometry: Geometry) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = geometry.axes.T * geometry.spacing
    affine[:3, 3] = geometry.origin
    return affine


def _read_pictures(files: tuple[Path, ...], slices: list[Path], image: Volume) -> np.ndarray:
    """One picture per slice, paired by the files' stems: the order of names says nothing about places [alpnet 3.3]."""
    pictures = {file.stem: file for file in files}
    folder, stems = files[0].parent, [file.stem for file in slices]
    without, alone = sorted(set(stems) - set(pictures)), sorted(set(pictures) - set(stems))
    if without or alone:
        raise UserError(
            f"{folder}: {len(pictures)} label pictures for {len(stems)} DICOM slices; "
            + (f"no picture for {few(without)}" if without else f"no slice for {few(alone)}")
            + "; unpack the download again"
        )
    return np.stack([_picture(pictures[stem], image.array.shape[1:]) for stem in stems])


def _picture(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = sitk.GetArrayFromImage(sitk.ReadImage(utf8_name(file), imageIO="PNGImageIO"))
    except RuntimeError as error:
        raise UserError(f"{file}: cannot be read, the picture is damaged; unpack the download again") from error
    if array.shape != shape:
        raise UserError(f"{file}: has shape {array.shape}, its DICOM slice {shape} (rows, columns)")
    return array


def _ids(label: np.ndarray, ids: Mapping[int, int] | None, where: Path) -> np.ndarray:
    values = np.unique(label)
    if len(values) > FEW_VALUES and alike(label) < 0.5:
        raise UserError(
            f"{where}: has {len(values)} values that differ from voxel to voxel, as an image has and no label; are "
            "image and label exchanged?"
        )
    known = "known are whole numbers up to 32767" if ids is None else f"known are {', '.join(map(str, sorted(ids)))}"
    if ids is None:
        ids = {int(value): int(value) for value in values if 0 <= value <= 32767 and value == int(value)}
    strange = [f"{value:.9g}" for value in values if value not in ids and value != 0]
    if strange:
        raise UserError(f"{where}: holds the label value(s) {few(strange)}; {known}")
    if not label.any():
        raise UserError(f"{where}: shows no organ at all; is it the right label?")
    result = np.zeros(label.shape, np.int16)
    for value, identifier in ids.items():
        if value:
            result[label == value] = identifier
    return result
