"""Whether slices make one whole volume: evenly spaced, nothing missing, nothing there twice.

A reader that takes any pile of files invents a spacing for a missing slice, and shortens a scan without a word.
"""

import os
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from dataloaders.raw.dicom.header import Slice
from util.errors import UserError

STEP_TOLERANCE = 0.05  # of the distance between slices
SAME_PLACE = 1e-3  # mm
SCOUTS = 3  # so many slices at most lie apart from the others as scouts, and at most one for three of the others
NUMBERED = 10**5  # from here on numbers do not count slices
FAR = 5  # distances between slices
ANYWAY = "or convert it to NIfTI (dcm2niix) if it is meant to be so"


def without_scouts(slices: Sequence[Slice]) -> tuple[list[Slice], dict[Path, str]]:
    """The slices of the scan, and what lies in its series beside it: file -> what it is."""
    if not slices:
        return [], {}
    stack = [piece for piece in slices if not piece.localizer] or list(slices)
    scouts = {piece.file: "scout (localizer)" for piece in slices if piece.localizer and not stack[0].localizer}
    for reason, is_scout in (("scout in another plane", _tilted), ("scout far from the other slices", _far)):
        apart = is_scout(stack)
        if 0 < len(apart) <= SCOUTS and 3 * len(apart) <= len(stack) - len(apart):
            scouts |= {piece.file: reason for piece in apart}
            stack = [piece for piece in stack if piece not in apart]
    return stack, scouts


def _tilted(stack: Sequence[Slice]) -> list[Slice]:
    rounded = [tuple(np.round(piece.axes.ravel(), 1) + 0.0) for piece in stack]
    usual = stack[rounded.index(Counter(rounded).most_common(1)[0][0])]
    return [piece for piece in stack if np.abs(piece.axes - usual.axes).max() > 0.2]


def _far(stack: Sequence[Slice]) -> list[Slice]:
    """Slices beyond a wide gap, unless the numbers of the slices say that just so many are missing there."""
    stack = sort_by_place(stack)
    steps = np.diff(places(stack))
    if not (steps > SAME_PLACE).any():
        return []
    usual = float(np.median(steps[steps > SAME_PLACE]))  # of several echoes, each place is there several times
    apart: list[Slice] = []
    for at in np.flatnonzero(steps > FAR * usual).tolist():
        before, after = stack[at].number, stack[at + 1].number
        if before is None or after is None or abs(after - before) == round(steps[at] / usual):
            return []
        apart += stack[: at + 1] if at + 1 <= len(stack) // 2 else stack[at + 1 :]
    return [piece for piece in stack if piece in apart]


def in_order(slices: Sequence[Slice]) -> tuple[list[Slice], float]:
    """The slices of one scan, ascending along the normal of their plane, and their distance in mm.

    Raises:
        UserError: more than one series; sizes, spacings or orientations differ; slices are missing, there twice or
            shifted against each other.
    """
    _require_one_series(slices)
    found, _ = without_scouts(slices)
    _require_one_grid(found)
    stack = sort_by_place(found)
    _require_one_each(stack)
    step = _step(stack)
    _require_whole(stack, slices, step)
    return stack, step


def places(slices: Sequence[Slice]) -> np.ndarray:
    """Positions in mm along the normal of the first slice."""
    return np.stack([piece.origin for piece in slices]) @ slices[0].axes[:, 2]


def sort_by_place(slices: Sequence[Slice]) -> list[Slice]:
    """The slices ascending along the normal."""
    return [slices[at] for at in np.argsort(places(slices), kind="stable")]


def folder_of(slices: Sequence[Slice]) -> Path:
    """The folder that holds all of them, at some depth."""
    return Path(os.path.commonpath([piece.file.parent for piece in slices]))


def _require_one_series(slices: Sequence[Slice]) -> None:
    series = Counter(piece.series for piece in slices)
    if len(series) == len(slices) > 1:
        raise UserError(
            f"{folder_of(slices)}: each of its {len(slices)} slices says that it is a series of its own; give them one "
            "PatientID, StudyInstanceUID and SeriesInstanceUID"
        )
    if len(series) > 1:
        counts = " and ".join(map(str, sorted(series.values(), reverse=True)))
        raise UserError(
            f"{folder_of(slices)}: holds {len(series)} DICOM series ({counts} slices); leave one series in a folder"
        )


def _require_one_grid(slices: Sequence[Slice]) -> None:
    kinds = [(piece.size, *np.round(piece.spacing, 3), *np.round(piece.axes.ravel(), 3)) for piece in slices]
    usual = slices[kinds.index(Counter(kinds).most_common(1)[0][0])]  # the odd ones out are to be named
    for piece in slices:
        for name, value, other, tolerance in (
            ("size", piece.size, usual.size, 0),
            ("spacing", piece.spacing, usual.spacing, 1e-3),
            ("orientation", piece.axes, usual.axes, 1e-3),
        ):
            if not np.allclose(value, other, rtol=0, atol=tolerance):
                raise UserError(
                    f"{piece.file}: the {name} differs within the series ({np.round(value, 4).tolist()} against "
                    f"{np.round(other, 4).tolist()} in {usual.file.name}); remove what does not belong"
                )


def _require_one_each(stack: Sequence[Slice]) -> None:
    starts = [0, *(np.flatnonzero(np.diff(places(stack)) > SAME_PLACE) + 1).tolist(), len(stack)]
    here = [stack[a:b] for a, b in pairwise(starts)]
    fullest = max(here, key=len)
    if len(fullest) == 1:
        return
    if sum(len(pieces) > 1 for pieces in here) > len(here) / 2:
        raise UserError(
            f"{folder_of(stack)}: holds {len(fullest)} images of every place, {_difference(fullest)}; "
            "put the files of one of them into a folder of their own"
        )
    one, two = fullest[:2]
    copies = " as copies of one slice" if one.instance and one.instance == two.instance else ""
    raise UserError(
        f"{folder_of(stack)}: {one.file.name} and {two.file.name} lie at the same place{copies}; remove one"
    )


def _difference(pieces: Sequence[Slice]) -> str:
    """What tells images of one place apart."""
    for name in pieces[0].variant:
        values = dict.fromkeys(piece.variant.get(name, "") for piece in pieces)
        if len(values) > 1:
            return f"which differ in {name} ({', '.join(list(values)[:4])}{', ...' if len(values) > 4 else ''})"
    return "and nothing in their headers tells them apart"


def _step(stack: Sequence[Slice]) -> float:
    if len(stack) == 1:
        return _thickness(stack[0])
    steps = np.diff(places(stack))
    usual = float(np.sort(steps)[(len(steps) - 1) // 2])  # a distance that is there, and not the mean of two
    odd = np.flatnonzero(np.abs(steps - usual) > STEP_TOLERANCE * usual)
    if odd.size:
        raise UserError(_unevenness(stack, steps, usual, odd))
    _require_straight(stack)
    return float(steps.mean())


def _require_straight(stack: Sequence[Slice]) -> None:
    across, normal = np.stack([piece.origin - stack[0].origin for piece in stack]), stack[0].axes[:, 2]
    shifts = np.linalg.norm(across - np.outer(across @ normal, normal), axis=1)
    if shifts.max() <= 1e-2 * np.linalg.norm(across[-1]):
        return
    if shifts[-1] < shifts.max() / 2:  # not more and more, as a gantry does
        piece = stack[int(shifts.argmax())]
        raise UserError(
            f"{piece.file}: lies {shifts.max():.4g} mm beside the slices before and after it; fetch the series again"
        )
    tilt = f" by {stack[0].tilt:g} degrees" if stack[0].tilt else ""
    raise UserError(
        f"{folder_of(stack)}: slices are shifted against each other (a tilted gantry{tilt}); straighten the scan "
        "first (dcm2niix does)"
    )


def _thickness(piece: Slice) -> float:
    if not (piece.between or piece.thickness):
        raise UserError(f"{piece.file}: is a single slice that does not say how thick it is; fetch the whole series")
    return piece.between or piece.thickness


def _unevenness(stack: Sequence[Slice], steps: np.ndarray, usual: float, odd: np.ndarray) -> str:
    """What is the matter if distances differ: slices are missing, or there are two spacings."""
    folder, at = folder_of(stack), int(odd[0])
    between = f"between {stack[at].file.name} and {stack[at + 1].file.name}"
    apart = f"({steps[at]:.2f} mm apart, the others {usual:.2f} mm)"
    numbers = [piece.number for piece in stack]
    jumps = None if None in numbers else np.abs(np.diff(numbers))[odd]
    in_a_row = odd.size > 1 and np.ptp(odd) == odd.size - 1
    is_one_spacing = np.ptp(steps[odd]) <= STEP_TOLERANCE * steps[at]
    if in_a_row and is_one_spacing and (jumps is None or (jumps == np.abs(np.median(np.diff(numbers)))).all()):
        return (
            f"{folder}: has two spacings, {usual:.2f} mm and {steps[at]:.2f} mm, which change at "
            f"{stack[at if odd[-1] == len(steps) - 1 else int(odd[-1]) + 1].file.name}; "
            "leave the slices of one spacing in the folder, or resample the scan first"
        )
    if steps[at] < usual:
        return f"{folder}: a slice too many lies {between} {apart}; remove what does not belong"
    if jumps is not None and (jumps == 1).all():
        return (
            f"{folder}: there is a gap {between} {apart}, although their numbers follow each other: two blocks of "
            "slices; leave one block in the folder"
        )
    missing = int(np.maximum(np.rint(steps[odd] / usual) - 1, 1).sum())
    many = f" ({missing} in all)" if missing > 1 else ""
    return f"{folder}: a slice is missing {between} {apart}{many}; fetch the series again"


def _require_whole(stack: Sequence[Slice], series: Sequence[Slice], step: float) -> None:
    """Missing slices within leave gaps; those at the ends are known by numbers only."""
    folder, count = folder_of(stack), len(series)
    numbers = [piece.number for piece in stack]
    strides = np.diff(numbers) if None not in numbers else np.array([])
    # 2 in series that alternate, as of two echoes, one of which is here
    stride = int(np.abs(np.median(strides))) if strides.size and (strides == strides[0]).all() else 1
    for name in stack[0].totals:
        expected = max(piece.totals.get(name, 0) for piece in series)
        if expected > max(count, stride * len(stack)):
            raise UserError(
                f"{folder}: {name} says {expected}, {count} slices are there, so {expected - count} are missing; "
                f"fetch the whole series, {ANYWAY}"
            )
    if len(stack) == 1:
        return
    first = stack[0]
    between = first.between if first.between >= first.thickness else 0  # below, it is the gap between two slices
    _require_every(folder, step / (between or (first.thickness if stride > 1 else 0) or step), stride)
    if strides.size and not _is_later(first) and len(set(numbers)) == len(stack):
        _require_first(folder, numbers, {piece.number for piece in series}, stride)


def _require_every(folder: Path, ratio: float, stride: int) -> None:
    if ratio > 1.5 and abs(ratio - round(ratio)) < STEP_TOLERANCE and stride in (1, round(ratio)):
        raise UserError(
            f"{folder}: slices lie {ratio:.0f} times as far apart as their headers say, so only one of {ratio:.0f} is "
            f"there; fetch the whole series, {ANYWAY}"
        )


def _require_first(folder: Path, numbers: list[int], found: set[int | None], stride: int) -> None:
    """Numbers count from 1, in the order of the slices or in that of the acquisition."""
    ordered = len({number > before for before, number in pairwise(numbers)}) == 1
    last = min(numbers) - 1 if ordered else max(numbers)
    missing = sorted(set(range(1, last + 1)) - found) if last < NUMBERED else []
    if len(missing) >= stride:
        named = ", ".join(map(str, missing[:4])) + (", ..." if len(missing) > 4 else "")
        raise UserError(
            f"{folder}: the slices with the numbers {named} (InstanceNumber) are missing; fetch the whole series, "
            f"{ANYWAY}"
        )


def _is_later(piece: Slice) -> bool:
    """True for a later echo or time: the numbers before are those of the earlier ones."""
    counted = ("EchoNumbers", "TemporalPositionIdentifier")
    return any(piece.variant.get(name, "1") not in ("1", "", "None") for name in counted)
