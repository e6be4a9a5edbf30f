"""Finding files: all commands look into folders in the same way, and say what they leave out.

Links are followed once, pipes and devices are never opened, and what cannot be read is named, not passed over.
"""

import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from util.errors import UserError

NIFTI = (".nii.gz", ".nii")
VOLUMES = (*NIFTI, ".hdr", ".nrrd", ".mha", ".mhd")
VOXELS_OF = {".hdr": (".img",), ".mhd": (".raw", ".zraw")}  # these two keep their voxels in a second file
RESULTS = ("predictions.json", "preparation.json", "run.json")  # a folder with one of them was made by this project


@dataclass
class Found:
    """What lies in a folder.

    Attributes:
        files: regular files that can be read, folder by folder in the order of their names.
        folders: those below that were not looked into.
        remarks: sentences about what was left out and is no scan.
        lost: sentences about what could not be looked at and may be a scan.
    """

    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def find_files(folder: Path, *, deep: bool = True, besides: Path | None = None) -> Found:
    """Files of a folder and, if `deep`, of those below it; hidden ones and results of earlier calls are left out.

    So is the folder `besides`.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found, folders, links = Found(), [folder], []
    seen = {*folder.resolve().parents, *([besides.resolve()] if besides else [])} - {folder.resolve()}
    while folders or links:  # links last: where both lead to one folder, its own name counts
        here = (folders or links).pop(0)
        if here.resolve() in seen:
            if here.is_symlink():
                found.remarks.append(f"{here}: leads back to {here.resolve()}, not followed")
            continue
        seen.add(here.resolve())
        try:
            entries = sorted(here.iterdir())
        except OSError as error:
            found.lost.append(f"{here}: cannot be looked into ({error.strerror})")
            continue
        mark = next((path.name for path in entries if path.name in RESULTS), "")
        if mark and (here != folder or mark == RESULTS[0]):
            found.remarks.append(f"{here}: holds results of an earlier call ({mark}), no scans")
            continue
        for path in entries:
            kind = _kind(path, found)
            if kind == "file":
                found.files.append(path)
            elif kind == "folder" and deep:
                (links if path.is_symlink() else folders).append(path)
            elif kind == "folder":
                found.folders.append(path)
    return found


def _kind(path: Path, found: Found) -> str:
    """ "file", "folder", or "" where it is left out."""
    if path.name.startswith("."):
        if is_volume(path) and not path.name.startswith("._"):  # which are macOS's own
            found.remarks.append(f"{path}: is hidden, left out")
        return ""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        why = f"is a link to {os.readlink(path)}, which is not there" if path.is_symlink() else error.strerror
        (found.lost if is_volume(path) else found.remarks).append(f"{path}: {why}")
        return ""
    if stat.S_ISDIR(mode):
        return "folder"
    if not stat.S_ISREG(mode):
        found.remarks.append(f"{path}: is a pipe, a socket or a device, left out")
        return ""
    if not os.access(path, os.R_OK):
        found.lost.append(f"{path}: may not be read; change its permissions")
        return ""
    return "file"


def is_volume(file: Path) -> bool:
    """True for a file that is named as a volume that can be read."""
    return file.name.lower().endswith(VOLUMES)


def stem(file: Path) -> str:
    """The name of a volume without its ending."""
    ending = next((ending for ending in VOLUMES if file.name.lower().endswith(ending)), file.suffix)
    return file.name[: len(file.name) - len(ending)]


def with_voxels(file: Path) -> tuple[Path, ...]:
    """A volume with the second file that holds its voxels, if it has one."""
    endings = VOXELS_OF.get(file.suffix.lower(), ())
    beside = (file.with_suffix(change(ending)) for ending in endings for change in (str.lower, str.upper))
    return (file, *[path for path in beside if path.is_file()][:1])


def as_failures(lost: Sequence[str]) -> dict[str, str]:
    """File -> sentence, as `util.commands.guarded` prints failures."""
    return dict(line.split(": ", 1) for line in lost)


def others(files: Iterable[Path], taken: Iterable[Path]) -> list[str]:
    """A sentence about the files that were not taken, or none."""
    rest = sorted(set(files) - {part for file in taken for part in with_voxels(file)})
    few_of_them = few([str(path) for path in rest])
    return [f"{len(rest)} other file{'s' if len(rest) > 1 else ''} left out: {few_of_them}"] if rest else []


def few(names: Sequence[str]) -> str:
    """Three of the names, and how many there are besides."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def numbered(folder: Path, prefix: str) -> tuple[dict[int, Path], list[str], list[str]]:
    """`<prefix>_N.nii.gz` of a folder by N, ascending; remarks on files that are nearly named so; what is lost.

    Raises:
        UserError: there is no such folder, or two files have one number.
    """
    found, by_number = find_files(folder, deep=False), {}
    for path in found.files:
        match = re.fullmatch(rf"{re.escape(prefix)}_(\d+)", stem(path), re.IGNORECASE) if is_volume(path) else None
        if match:
            if (number := int(match[1])) in by_number:
                raise UserError(f"{path} and {by_number[number].name}: both are number {number}; remove or rename one")
            by_number[number] = path
    named = {number: path for number, path in sorted(by_number.items()) if path.name == f"{prefix}_{number}.nii.gz"}
    wrong = [f"{path} left out: only {prefix}_{n}.nii.gz is read" for n, path in by_number.items() if n not in named]
    return named, [*(line for line in found.remarks if prefix in line), *wrong], found.lost
