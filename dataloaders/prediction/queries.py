"""Scans to segment: finding them, reading the annotated ones, and the files that a segmentation becomes."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dataloaders.raw import dicom
from dataloaders.raw.intensities import require_training_values
from dataloaders.raw.regrid import Preparation, onto_training_grid
from dataloaders.raw.sources import Source, doubts, is_series, read_source
from util.commands import warn
from util.errors import UserError
from util.finding import RESULTS, Found, find_files, is_volume, others, stem, with_voxels
from util.manifest import Job
from util.names import require_distinct
from util.volume import Volume

RECORD = RESULTS[0]
PROBABILITIES = "probabilities"  # folder below OUT


def find_queries(paths: Sequence[Path], out: Path) -> tuple[dict[str, tuple[Path, ...]], list[str], list[str]]:
    """Scans by name -> files: volumes and DICOM series, in folders at any depth (`out` excepted).

    If image_N.nii.gz and label_N.nii.gz lie together as in a prepared data set, the labels are left out.

    Returns:
        the scans; remarks on what was left out; what could not be read and may be a scan.

    Raises:
        UserError: nothing is there, two scans would get one name, or results would replace a scan.
    """
    found: dict[str, tuple[Path, ...]] = {}
    remarks, lost = [], []
    for path in paths:
        scans, there = _scans_in(path, out) if path.is_dir() else ({stem(path): _one_file(path)}, Found())
        if not scans:
            why = "; ".join(["holds neither NIfTI files nor folders with DICOM series", *there.lost, *there.remarks])
            raise UserError(f"{path}: {why}")
        for name, files in scans.items():
            _add(found, name, files)
            if files[0].resolve().parent == out.resolve():
                raise UserError(f"{out}: holds the scans themselves; name another folder with --out")
        remarks, lost = remarks + there.remarks, lost + there.lost
    _require_whole(found.values())
    require_distinct({str(files[0]): name for name, files in found.items()}, "segmentations")
    return found, remarks, lost


def _require_whole(scans: Iterable[tuple[Path, ...]]) -> None:
    """Refuse the parts of one DICOM series that were named one by one."""
    series = [files for files in scans if is_series(files)]
    together, _ = dicom.find_series(file for files in series for file in files) if len(series) > 1 else ([], {})
    for scan in together:
        parts = [files[0].parent for files in series if not set(files).isdisjoint(scan.files)]
        if len(parts) > 1:
            raise UserError(f"{parts[0]} and {parts[1]}: hold parts of one series; name the folder above them")


def _one_file(path: Path) -> tuple[Path, ...]:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if not is_volume(path) or not path.is_file():
        raise UserError(f"{path}: is no NIfTI file (.nii, .nii.gz); of a DICOM series name the folder")
    return with_voxels(path)


def _scans_in(folder: Path, out: Path | None) -> tuple[dict[str, tuple[Path, ...]], Found]:
    found: dict[str, tuple[Path, ...]] = {}
    there = find_files(folder, besides=out)
    known = set(there.files)
    labels = [
        path for path in there.files if path.with_name(path.name.replace("label_", "image_", 1)) in known - {path}
    ]
    for file in filter(is_volume, there.files):
        if file not in labels:
            _add(found, "_".join((*file.parent.relative_to(folder).parts, stem(file))), with_voxels(file))
    series, left_out = dicom.find_series(file for file in there.files if not is_volume(file))
    for name, scan in dicom.name_series(series, folder).items():
        _add(found, name, scan.files)
    there.remarks += [f"{len(labels)} labels left out, such as {labels[0]}"] if labels else []
    there.remarks += dicom.remarks(series, left_out, folder)
    there.remarks += others(there.files, [*labels, *left_out, *(file for files in found.values() for file in files)])
    return found, there


def _add(found: dict[str, tuple[Path, ...]], name: str, files: tuple[Path, ...]) -> None:
    if name in found:
        raise UserError(f"{files[0]} and {found[name][0]}: both would be called {name}; rename one")
    found[name] = files


def jobs(
    queries: Mapping[str, tuple[Path, ...]], out: Path, organs: Sequence[str], objects: Collection[str] = ()
) -> dict[str, Job]:
    """What every scan becomes: OUT/<name>.nii.gz, its contact sheet, its page in three planes, the probabilities of
    organs by their file names, and of those named in `objects` a DICOM Segmentation.

    Raises:
        UserError: two of these files would have one name.
    """
    made = {}
    for name, files in queries.items():
        wanted = [out / PROBABILITIES / f"{name}_{organ}.nii.gz" for organ in organs]
        base = Path(os.path.commonpath([file.parent for file in files]))
        wanted += [out / f"{name}.dcm"] if name in objects else []
        made[name] = Job(base, files, out, (*(out / f"{name}{kind}" for kind in (".nii.gz", ".png", ".html")), *wanted))
    outputs = {f"{name}: {file.name}": str(file) for name, job in made.items() for file in job.outputs}
    require_distinct(outputs, "files")
    return made


def read_support(
    image_file: Path, label_file: Path, preparation: Preparation, *, trust_voxels: bool = False, prepared: bool = False
) -> tuple[Volume, Volume]:
    """An annotated scan on the grid of the training scans: image, and label int16.

    Args:
        image_file: NIfTI, or the folder of a DICOM series; `label_file`: NIfTI on the same grid.
        trust_voxels: the label lies on the image whatever its header says.
        prepared: intensities are as in the training scans already.

    Raises:
        UserError: a file cannot be read, image and label do not lie on one grid, or nothing is labelled.
    """
    files, left_out = one_scan(image_file)
    source = Source(files, _one_file(label_file))
    image, label = read_source(source, None, trust_voxels)
    warn([*left_out, *doubts(source, (image, label), trust_voxels)])
    require_training_values(image, preparation.plan, preparation.values, image_file, prepared=prepared)
    result = onto_training_grid(image, label, preparation, prepared=prepared)
    lost = set(np.unique(label.array).tolist()) - set(np.unique(result[1].array).tolist())
    if lost:
        raise UserError(
            f"{label_file}: label {min(lost)} is too small for the grid of the training scans, or outside of it; "
            "remove it from the label"
        )
    return result


def one_scan(path: Path) -> tuple[tuple[Path, ...], list[str]]:
    """The files of one image, itself or the DICOM series in a folder, and remarks on what else lies there.

    Raises:
        UserError: the folder holds several scans or none.
    """
    if not path.is_dir():
        return _one_file(path), []
    found, there = _scans_in(path, None)
    if len(found) != 1:
        raise UserError(f"{path}: holds {len(found)} scans, one is expected; name a file or the folder of a series")
    return next(iter(found.values())), there.remarks
