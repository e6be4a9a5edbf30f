"""Scans to segment, and the folder where their segmentations gather: OUT/predictions.json says what made them."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataloaders.raw import dicom
from dataloaders.raw.intensities import require_training_values
from dataloaders.raw.regrid import Preparation, onto_training_grid
from dataloaders.raw.sources import Source, doubts, is_volume, read_source
from util.commands import warn
from util.errors import UserError
from util.files import digest, write_text
from util.volume import Volume, write_like

RECORD = "predictions.json"


def find_queries(paths: Sequence[Path], out: Path) -> dict[str, tuple[Path, ...]]:
    """Scans by name -> files: NIfTI files and DICOM series, in folders at any depth (`out` excepted).

    If image_N.nii.gz and label_N.nii.gz lie together as in a prepared data set, the labels are left out.

    Raises:
        UserError: nothing is there, two scans would get one name, or results would replace a scan.
    """
    found: dict[str, tuple[Path, ...]] = {}
    for path in paths:
        scans, left_out = _scans_in(path, out.resolve()) if path.is_dir() else ({_stem(path): _one_file(path)}, [])
        if not scans:
            why = "; ".join(["holds neither NIfTI files nor folders with DICOM series", *left_out])
            raise UserError(f"{path}: {why}")
        for line in left_out:
            print(line)
        for name, files in scans.items():
            if name in found:
                raise UserError(f"{files[0]} and {found[name][0]}: both would be called {name}; rename one")
            if files[0].resolve().parent == out.resolve():
                raise UserError(f"{out}: holds the scans themselves; name another folder with --out")
            found[name] = files
    return found


def _one_file(path: Path) -> tuple[Path, ...]:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if not is_volume(path):
        raise UserError(f"{path}: is no NIfTI file (.nii, .nii.gz); of a DICOM series name the folder")
    return (path,)


def _scans_in(folder: Path, out: Path) -> tuple[dict[str, tuple[Path, ...]], list[str]]:
    """Scans by name -> files, and what was left out."""
    found: dict[str, tuple[Path, ...]] = {}
    others: list[Path] = []
    for root, folders, names in os.walk(folder):
        here = Path(root)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and (here / name).resolve() != out)
        files = [here / name for name in sorted(names) if not name.startswith(".")]
        images = {file.name for file in files if file.name.startswith("image_")}
        place = here.relative_to(folder).parts
        for file in filter(is_volume, files):
            if file.name.replace("label_", "image_", 1) in images - {file.name}:
                continue
            _add(found, "_".join((*place, _stem(file))), (file,))
        others += [file for file in files if not is_volume(file) and file.is_file()]
    series, left_out = dicom.find_series(others)
    for name, scan in dicom.name_series(series, folder).items():
        _add(found, name, scan.files)
    return found, dicom.remarks(series, left_out, folder)


def _add(found: dict[str, tuple[Path, ...]], name: str, files: tuple[Path, ...]) -> None:
    if name in found:
        raise UserError(f"{files[0]} and {found[name][0]}: both would be called {name}; rename one")
    found[name] = files


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


class Record:
    """What OUT holds: the settings that made it, and one line per scan.

    Args:
        out: the folder.
        settings: plain values that the segmentations depend on.
        overwrite: forget what is there.

    Raises:
        UserError: `out` is a file, cannot be written, or holds segmentations that were made otherwise.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        if out.exists() and not out.is_dir():
            raise UserError(f"{out}: is a file; name a folder to write to")
        self.file, self.settings = out / RECORD, json.loads(json.dumps(settings))
        self.scans: dict[str, dict] = {}
        if self.file.is_file() and not overwrite:
            self._read(out)
        self.write()  # at once: a folder that cannot be written is to be known before hours of work

    def _read(self, out: Path) -> None:
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
            found, self.scans = dict(content["settings"]), dict(content["scans"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.file}: is damaged; segment everything again with --overwrite") from error
        if wrong := [key for key, value in self.settings.items() if found.get(key) != value]:
            raise UserError(
                f"{out}: holds segmentations made with other {' and '.join(wrong)}; "
                "choose another folder, or replace them with --overwrite"
            )

    def is_done(self, name: str, files: Sequence[Path], outputs: Sequence[Path]) -> bool:
        """True if these very files were segmented and the outputs are there."""
        known = self.scans.get(name)
        return known is not None and all(file.is_file() for file in outputs) and known["sources"] == digests(files)

    def add(self, name: str, files: Sequence[Path], millilitres: Mapping[str, float]) -> None:
        """Note a scan that was segmented, with the volume of every organ."""
        self.scans[name] = {"sources": digests(files), "millilitres": dict(millilitres)}
        self.write()

    def write(self) -> None:
        """Write predictions.json."""
        content = {"settings": self.settings, "scans": dict(sorted(self.scans.items()))}
        write_text(self.file, json.dumps(content, indent=1) + "\n")


def digests(files: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of files by their names below the folder that holds them all."""
    folder = Path(os.path.commonpath([file.parent for file in files]))
    return {file.relative_to(folder).as_posix(): digest(file) for file in files}


def read_support(
    image_file: Path, label_file: Path, preparation: Preparation, *, trust_voxels: bool = False, prepared: bool = False
) -> tuple[Volume, Volume]:
    """An annotated scan on the grid of the training scans: image, and label int16.

    Args:
        image_file: NIfTI, or the folder of a DICOM series; `label_file`: NIfTI on the same grid.
        preparation: of the training scans.
        trust_voxels: the label lies on the image whatever its header says.
        prepared: intensities are as in the training scans already.

    Raises:
        UserError: a file cannot be read, image and label do not lie on one grid, or nothing is labelled.
    """
    files, left_out = _one_scan(image_file)
    source = Source(files, (label_file,))
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


def image_files(path: Path) -> tuple[Path, ...]:
    """The files of one image: itself, or the DICOM series in a folder.

    Raises:
        UserError: the folder holds several scans or none.
    """
    return _one_scan(path)[0]


def _one_scan(path: Path) -> tuple[tuple[Path, ...], list[str]]:
    if not path.is_dir():
        return _one_file(path), []
    found, left_out = _scans_in(path, path / RECORD)
    if len(found) != 1:
        raise UserError(f"{path}: holds {len(found)} scans, one is expected; name a file or the folder of a series")
    return next(iter(found.values())), left_out


def save_on_grid_of(files: Sequence[Path], image: Volume, file: Path, array: np.ndarray) -> None:
    """Write a volume on the grid of a scan that came from `files`; the header of a sound NIfTI scan is kept."""
    write_like(file, array, image.geometry, files[0])
