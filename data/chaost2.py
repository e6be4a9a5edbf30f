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
from data.parts.plans import PLANS
from dataloaders.raw.sources import Source
from util.finding import find_files

NUMBERS = (1, 2, 3, 5, 8, 10, 13, 15, 19, 20, 21, 22, 31, 32, 33, 34, 36, 37, 38, 39)


def find(raw: Path) -> tuple[dict[int, Source], list[str], list[str]]:
    """Patients with labels by number, remarks on what was left out (the challenge's test set), what cannot be read."""
    found: dict[int, Source] = {}
    there, unlabelled = find_files(raw), []
    folders = {parent for path in there.files for parent in path.parents if parent.name == "T2SPIR"}
    for folder in sorted(path for path in folders if path.parent.name.isdigit()):
        number, ground = int(folder.parent.name), folder / "Ground"
        if not ground.is_dir():
            unlabelled.append(number)
            continue
        slices, pictures = (
            tuple(path for path in there.files if path.parent == place and path.suffix.lower() == ending)
            for place, ending in ((folder / "DICOM_anon", ".dcm"), (ground, ".png"))
        )
        problem = ""
        if number in found:
            problem = f"{folder}: patient {number} is also in another folder; name the folder of one download"
        elif not slices or not pictures:
            problem = f"{folder}: {len(slices)} DICOM files, {len(pictures)} pictures; unpack the download again"
        found[number] = Source(slices, pictures, problem)
    without = [f"{len(unlabelled)} patients without labels left out: {unlabelled}"] if unlabelled else []
    return found, there.remarks + without, there.lost


CONVERTER = Converter(
    name="CHAOST2",
    folder="chaos_MR_T2_normalized",
    expected=NUMBERS,
    find=find,
    plan=PLANS["CHAOST2"],
    # the orientation is the published one: dcm2nii stores rows from back to front
    published=replace(PLANS["CHAOST2"], published=True),
    ids={0: 0, 63: 1, 126: 2, 189: 3, 252: 4},
    organs={1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen"},
    names="MR/<patient's number>/T2SPIR/DICOM_anon/*.dcm with T2SPIR/Ground/*.png",
)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return command.main(CONVERTER, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
