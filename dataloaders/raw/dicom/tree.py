"""Which DICOM series lie below a folder: by what the files say of themselves, not by names, endings and folders."""

import filecmp
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataloaders.raw.dicom.header import NO_DICOM, UNREADABLE, BadSlice, NotASlice, Slice, read_slice
from dataloaders.raw.dicom.stack import SAME_PLACE, places, without_scouts
from util.errors import UserError

Key = tuple[str, ...]
NO_SERIES = ("", "", "")
SHREDDED = 3  # so many series of one slice each that lie on each other are one scan


@dataclass(frozen=True)
class Series:
    """Files of one scan, damaged ones and scouts too: reading must stumble over those, and know of these.

    Attributes:
        folder: that holds them all, at some depth.
        files: sorted.
        number: of the series in its study.
    """

    folder: Path
    files: tuple[Path, ...]
    number: int | None = None


class Part:
    """What one folder holds of one series."""

    def __init__(self) -> None:
        self.slices: list[Slice] = []
        self.broken: list[Path] = []

    def series(self, folder: Path) -> Series:
        """The scan that this part is."""
        files = sorted([*(piece.file for piece in self.slices), *self.broken])
        return Series(folder, tuple(files), self.slices[0].series_number if self.slices else None)


Parts = dict[Path, Part]


def find_series(files: Iterable[Path]) -> tuple[list[Series], dict[Path, str]]:
    """The series among files, and what other DICOM files are, and what lies among the slices; scouts are in both.

    A series that is spread over several folders is put together if no slice lies in two of them. Slices on each other
    that are a series each, as careless anonymisers leave them, are one scan, which reading refuses.
    """
    found, left_out = _by_series(files)
    scans: list[Series] = []
    alone: dict[Path, list[Slice]] = defaultdict(list)
    for key, parts in found.items():
        parts = _joined(parts, left_out) if key[-1] else parts
        for folder, part in parts.items():
            left_out |= without_scouts(part.slices)[1]
            if not part.broken and all(piece.localizer for piece in part.slices):
                left_out |= {piece.file: "scout (localizer)" for piece in part.slices}
            else:
                scans.append(part.series(folder))
                alone[folder] += part.slices if len(scans[-1].files) == 1 else []
    for folder, slices in alone.items():
        if len(slices) >= SHREDDED and _is_one_stack(slices):
            files = tuple(piece.file for piece in slices)
            scans = [scan for scan in scans if scan.files[0] not in files] + [Series(folder, files)]
    return sorted(scans, key=lambda scan: scan.files), left_out


def name_series(scans: Iterable[Series], root: Path, *, short: bool = False) -> dict[str, Series]:
    """The scans by names that tell them apart.

    A name is made of the folders below `root`, and if need be of the series' number and its first file's name. If it is
    `short` the first folder is enough if no other scan lies in it.

    Raises:
        UserError: two would get one name.
    """
    waiting = [(scan, _names(scan, root)[0 if short else 1 :]) for scan in scans]
    result: dict[str, Series] = {}
    while waiting:
        counts = Counter(names[0] for _, names in waiting)
        for scan, names in waiting:
            if counts[names[0]] == 1 or len(names) == 1:
                if names[0] in result:
                    raise UserError(f"{scan.files[0]} and {result[names[0]].files[0]}: both would be called {names[0]}")
                result[names[0]] = scan
        waiting = [(scan, names[1:]) for scan, names in waiting if counts[names[0]] > 1 and len(names) > 1]
    return result


def _names(scan: Series, root: Path) -> list[str]:
    """Names for one scan, the short ones first."""
    folders = scan.folder.relative_to(root).parts or (root.resolve().name,)
    longer = [*folders] + ([f"series{scan.number}"] if scan.number is not None else [])
    return [folders[0], "_".join(folders), "_".join(longer), "_".join([*longer, scan.files[0].stem])]


def remarks(scans: Iterable[Series], left_out: Mapping[Path, str], root: Path) -> list[str]:
    """What is to be said of series below `root`: what is unusual, and a line for every kind of file left out."""
    lines, kinds = [], defaultdict(list)
    for scan in scans:
        if count := len({file.parent for file in scan.files}) - 1:
            lines.append(f"{scan.folder}: one series lies in {count + 1} folders and is put together")
        if len(scan.files) == 1:
            lines.append(f"{scan.files[0]}: is a series of a single file")
    for file, kind in sorted(left_out.items()):
        kinds[kind].append(str(file.relative_to(root)))
    return lines + [
        f"{root}: left out {len(names)} x {kind}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for kind, names in kinds.items()
    ]


def _by_series(files: Iterable[Path]) -> tuple[dict[Key, Parts], dict[Path, str]]:
    """Slices by series and folder; damaged ones belong to their series, or to all in their folder."""
    found: dict[Key, Parts] = defaultdict(lambda: defaultdict(Part))
    left_out: dict[Path, str] = {}
    broken: list[Path] = []
    for file in files:
        try:
            piece = read_slice(file)
            found[piece.series][file.parent].slices.append(piece)
        except BadSlice as error:
            if error.series is None:
                broken.append(file)
            else:
                found[error.series][file.parent].broken.append(file)
        except NotASlice as error:
            left_out[file] = str(error)
    broken += _forget(
        left_out, [piece.file for parts in found.values() for part in parts.values() for piece in part.slices]
    )
    for file in broken:
        series = [parts[file.parent] for parts in found.values() if file.parent in parts]
        for part in series or [found[NO_SERIES][file.parent]]:
            part.broken.append(file)
    return found, left_out


def _forget(left_out: dict[Path, str], slices: list[Path]) -> list[Path]:
    """Take what is no DICOM out of `left_out` unless slices lie beside it; returns what must have been a slice."""
    names, folders = {_pattern(file) for file in slices}, {file.parent for file in slices}
    others = [file for file, kind in left_out.items() if kind in (NO_DICOM, UNREADABLE)]
    lost = [file for file in others if file.suffix.lower() == ".dcm" or _pattern(file) in names]
    for file in {*lost, *(file for file in others if file.parent not in folders)}:
        del left_out[file]
    return lost


def _pattern(file: Path) -> Path:
    """The file's name without its numbers: slices differ in nothing else."""
    return file.with_name(re.sub(r"\d+", "#", file.name))


def _joined(parts: Parts, left_out: dict[Path, str]) -> Parts:
    """Parts of one series put together in the deepest folder that holds them."""
    above = Counter(parent for folder in parts for parent in (folder, *folder.parents))
    tried = set()
    for parent in sorted(above, key=lambda folder: len(folder.parts), reverse=True):
        below = {folder: part for folder, part in parts.items() if above[parent] > 1 and folder.is_relative_to(parent)}
        if len(below) > 1 and frozenset(below) not in tried:
            tried.add(frozenset(below))
            if whole := _whole(list(below.values()), left_out):
                parts = {folder: part for folder, part in parts.items() if folder not in below} | {parent: whole}
    return parts


def _whole(parts: list[Part], left_out: dict[Path, str]) -> Part | None:
    """The parts as one, without copies of slices; None if they are scans of their own."""
    whole = Part()
    copies: dict[Path, str] = {}
    known: dict[tuple, Slice] = {}
    stacks = [without_scouts(part.slices)[0] for part in parts]
    if len({frozenset(map(_identity, stack)) for stack in stacks}) == 1:
        return None  # the same scan several times, or a scan whose UIDs others have, too
    for piece in (piece for part in parts for piece in part.slices):
        first = known.setdefault(_identity(piece), piece)
        if first is piece:
            whole.slices.append(piece)
        elif filecmp.cmp(first.file, piece.file, shallow=False):
            copies[piece.file] = "copy of a slice in another folder"
        else:
            return None
    whole.broken = [file for part in parts for file in part.broken]
    if not _is_one_stack(without_scouts(whole.slices)[0]):
        return None
    left_out |= copies
    return whole


def _identity(piece: Slice) -> tuple:
    """What no other slice should have: its UID; and its place, for careless anonymisers give all slices one UID."""
    return (piece.instance, *np.round(piece.origin, 3)) if piece.instance else (piece.file,)


def _is_one_stack(slices: list[Slice]) -> bool:
    """True if they lie on each other, and no two at one place."""
    first, normal = slices[0], slices[0].axes[:, 2]
    if any(piece.size != first.size or not np.allclose(piece.axes, first.axes, rtol=0, atol=1e-3) for piece in slices):
        return False
    across = np.stack([piece.origin - first.origin for piece in slices])
    reach = float(np.ptp(across @ normal))
    if np.abs(across - np.outer(across @ normal, normal)).max() > max(1.0, 1e-2 * reach):
        return False
    steps, numbers = np.diff(np.sort(places(slices))), [piece.number for piece in slices]
    is_even = not steps.size or steps.max() < 1.5 * np.median(steps)
    return bool(steps.min(initial=1) > SAME_PLACE and (is_even or len({*numbers} - {None}) == len(slices)))
