"""Prepare MS-CMRSeg 2019 cardiac MR (bSSFP) -> CMR [training 8.3].

    python -m data.cmr RAW data/CMR

RAW holds, at any level, patientN_C0.nii.gz with patientN_C0_manual.nii.gz or patientN_C0_gd.nii.gz. Label values stay
200 (left ventricle's muscle), 500 (its blood pool), 600 (right ventricle). Scans of this set are stored in different
orientations: rows, columns and slices are made to run the same way, unless --keep-orientation or --published.
"""

import re
import sys
from dataclasses import replace
from pathlib import Path

from data.parts import command
from data.parts.convert import Converter
from data.parts.plans import PLANS
from dataloaders.raw.sources import Source, left_out, one_of_each
from util.finding import find_files

NAME = re.compile(r"patient(\d+)_C0(_manual|_gd)?\.nii(\.gz)?", re.IGNORECASE)
ORGANS = {200: "LV myocardium", 500: "LV blood pool", 600: "right ventricle"}


def find(raw: Path) -> tuple[dict[int, Source], list[str], list[str]]:
    """Labelled scans by patient, remarks on what was left out, what cannot be read."""
    images: dict[int, list[Path]] = {}
    labels: dict[int, list[Path]] = {}
    there = find_files(raw)
    for path in there.files:
        if match := NAME.fullmatch(path.name):
            (labels if match[2] else images).setdefault(int(match[1]), []).append(path)
    found = {number: one_of_each(images[number], labels[number]) for number in sorted(set(images) & set(labels))}
    return found, left_out(there, images, labels), there.lost


CONVERTER = Converter(
    name="CMR",
    folder="cmr_MR_normalized",
    expected=tuple(range(1, 36)),
    find=find,
    plan=PLANS["CMR"],
    published=replace(PLANS["CMR"], orient=False, published=True),
    ids={0: 0, **{value: value for value in ORGANS}},
    organs=ORGANS,
    names="patientN_C0.nii.gz with patientN_C0_manual.nii.gz or patientN_C0_gd.nii.gz (the scans of MyoPS are another "
    "set, whose labels hold 1220, oedema, and 2221, scar, besides: python -m data.custom prepares them)",
)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return command.main(CONVERTER, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
