"""Prepare CHAOS T2-SPIR MR: DICOM series and label pictures -> CHAOST2 [alpnet 3.3].

    python -m data.chaost2 RAW data/CHAOST2

RAW is the unpacked download, at any level: .../MR/<id>/T2SPIR/DICOM_anon/*.dcm and .../T2SPIR/Ground/*.png. A picture
belongs to the slice of the same stem; slices are ordered by their positions.
"""

import sys
from dataclasses import replace
from pathlib import Path

from data.parts import command
from data.parts.convert import Converter
from dataloaders.raw.preparation import Plan
from dataloaders.raw.sources import Source

NUMBERS = (1, 2, 3, 5, 8, 10, 13, 15, 19, 20, 21, 22, 31, 32, 33, 34, 36, 37, 38, 39)
PLAN = Plan(spacing=(1.25, 1.25, 7.7), size=256, percentile=99.5)


def find(raw: Path) -> tuple[dict[int, Source], list[str]]:
    """Patients with labels by number, and a remark on those without (the challenge's test set)."""
    found: dict[int, Source] = {}
    unlabelled = 0
    for folder in sorted(path for path in raw.rglob("T2SPIR") if path.is_dir() and path.parent.name.isdigit()):
        number, ground = int(folder.parent.name), folder / "Ground"
        if not ground.is_dir():
            unlabelled += 1
            continue
        slices, pictures = sorted((folder / "DICOM_anon").glob("*.dcm")), sorted(ground.glob("*.png"))
        problem = ""
        if number in found:
            problem = f"{folder}: patient {number} is also in another folder; name the folder of one download"
        elif not slices or not pictures:
            problem = f"{folder}: {len(slices)} DICOM files, {len(pictures)} pictures; unpack the download again"
        found[number] = Source(tuple(slices), tuple(pictures), problem)
    return found, [f"{unlabelled} patients without labels left out"] if unlabelled else []


CONVERTER = Converter(
    name="CHAOST2",
    folder="chaos_MR_T2_normalized",
    expected=NUMBERS,
    find=find,
    plan=PLAN,
    # the orientation is the published one: dcm2nii stores rows from back to front
    legacy=replace(PLAN, legacy=True),
    ids={0: 0, 63: 1, 126: 2, 189: 3, 252: 4},
    organs={1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen"},
)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return command.main(CONVERTER, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
