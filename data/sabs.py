"""Prepare Synapse multi-atlas abdominal CT (BTCV) -> SABS [alpnet 3.4].

    python -m data.sabs RAW data/SABS

RAW is the unpacked download, at any level: img/img0001.nii.gz with label/label0001.nii.gz (scans 1-10 and 21-40 become
0-29), or averaged-training-images/DET0000101_avg.nii.gz with averaged-training-labels/DET0000101_avg_seg.nii.gz
(numbered 0, 1, ... in the order of names).
"""

import re
import sys
from dataclasses import replace
from pathlib import Path

from data.parts import command
from data.parts.convert import Converter
from data.parts.plans import PLANS
from dataloaders.raw.sources import Source, left_out, one_of_each
from util.errors import UserError
from util.finding import find_files

NUMBER_OF = {name: number for number, name in enumerate((*range(1, 11), *range(21, 41)))}
IMAGE = re.compile(r"(?:img(\d{4})|(DET\d+)_avg)\.nii(?:\.gz)?", re.IGNORECASE)
LABEL = re.compile(r"(?:label(\d{4})|(DET\d+)_avg_seg)\.nii(?:\.gz)?", re.IGNORECASE)
ORGANS = {
    1: "spleen",
    2: "right kidney",
    3: "left kidney",
    4: "gallbladder",
    5: "oesophagus",
    6: "liver",
    7: "stomach",
    8: "aorta",
    9: "inferior vena cava",
    10: "portal and splenic vein",
    11: "pancreas",
    12: "right adrenal gland",
    13: "left adrenal gland",
}


def find(raw: Path) -> tuple[dict[int, Source], list[str], list[str]]:
    """Labelled scans by number, remarks on what was left out, such as the challenge's test set; what cannot be read.

    Raises:
        UserError: files of both layouts, or one that is none of the training scans.
    """
    images: dict[str, list[Path]] = {}
    labels: dict[str, list[Path]] = {}
    there = find_files(raw)
    for path in there.files:
        if match := IMAGE.fullmatch(path.name):
            images.setdefault(match[1] or match[2], []).append(path)
        elif match := LABEL.fullmatch(path.name):
            labels.setdefault(match[1] or match[2], []).append(path)
    if len({name.isdigit() for name in images}) > 1:
        raise UserError(f"{raw}: holds images of both layouts, img0001 and DET0000101_avg; name the folder of one")
    labelled = sorted(set(images) & set(labels))
    strange = [name for name in labelled if name.isdigit() and int(name) not in NUMBER_OF]
    if strange:
        raise UserError(f"{images[strange[0]][0]}: is none of the 30 training scans img0001-img0010, img0021-img0040")
    numbers = {name: NUMBER_OF[int(name)] if name.isdigit() else place for place, name in enumerate(labelled)}
    found = {number: one_of_each(images[name], labels[name]) for name, number in numbers.items()}
    return found, left_out(there, images, labels), there.lost


CONVERTER = Converter(
    name="SABS",
    folder="sabs_CT_normalized",
    expected=tuple(range(30)),
    find=find,
    plan=PLANS["SABS"],
    # 257 wide, the last row and column blank
    published=replace(PLANS["SABS"], size=None, orient=False, published=True),
    ids={0: 0, **{identifier: identifier for identifier in ORGANS}},
    organs={identifier: ORGANS[identifier] for identifier in (1, 2, 3, 6)},
    names="img0001.nii.gz with label0001.nii.gz, or DET0000101_avg.nii.gz with DET0000101_avg_seg.nii.gz",
)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return command.main(CONVERTER, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
