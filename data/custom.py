"""Prepare your own scans: images and labels in folders -> a data set with folds, described by one JSON file.

    python -m data.custom IMAGES LABELS data/MINE --organs liver=1 spleen=2
    python training.py with dataset=data/MINE/MINE.json

IMAGES holds NIfTI files, or a folder with a DICOM series for every scan; LABELS one NIfTI file per scan with whole
numbers, on the grid of its image. An image and a label belong together if their names are equal but for words such
as img, label, seg, or else if the only numbers in them are. What is guessed (spacing, CT or MR, folds) is said, and
can be said otherwise: by the options, and in the JSON file.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.parts import command
from data.parts.convert import Converter, convert
from data.parts.guess import INTENSITIES, guess_plan
from data.parts.manifest import MANIFEST
from dataloaders.raw.preparation import Plan
from dataloaders.raw.sources import Source, find_series, find_volumes
from util.commands import guarded, named_label, parser
from util.errors import UserError
from util.files import write_text

FOLDS = 5
SUPERVOXELS = 5000  # smallest supervoxel in voxels, as for the abdominal sets
WORDS = re.compile(r"(?<![a-z])(image|img|scan|label|seg|segmentation|mask|manual|gt|ct|mr|0000)(?![a-z])")


def find(images: Path, labels: Path) -> tuple[dict[int, Source], list[str]]:
    """Pairs of images and labels by number: the one in the name if it is unique, else counted.

    Raises:
        UserError: a folder is missing, an image has no label, or names cannot be told apart.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; name one with the images and one with the labels")
    series, left_out = find_series(images)
    scans = _named({path: (path,) for path in find_volumes(images)} | series, images)
    answers = _named({path: (path,) for path in find_volumes(labels)}, labels)
    without = sorted(set(scans) - set(answers))
    if without and len(without) < len(scans):
        raise UserError(f"{scans[without[0]][0]}: no label of this name in {labels}; {len(without)} images lack one")
    if without:  # no name fits: numbers alone may
        scans, answers = _by_number(scans, images), _by_number(answers, labels)
        if set(scans) - set(answers):
            raise UserError(f"{images}, {labels}: the names of images and labels do not correspond; rename them alike")
    digits = [re.findall(r"\d+", name) for name in scans]
    own = all(len(found) == 1 for found in digits) and len({int(found[0]) for found in digits}) == len(scans)
    numbers = {
        name: int(found[0]) if own else place
        for place, (name, found) in enumerate(zip(scans, digits, strict=True), start=1)
    }
    remarks = [f"scan {number}: {scans[name][0].name}" for name, number in numbers.items()] if not own else []
    return {number: Source(scans[name], answers[name]) for name, number in numbers.items()}, left_out + remarks


def _named(files: Mapping[Path, tuple[Path, ...]], folder: Path) -> dict[str, tuple[Path, ...]]:
    """Files by what remains of their names without the words that only say what they are."""
    named: dict[str, tuple[Path, ...]] = {}
    for path, members in sorted(files.items()):
        whole = path.name.removesuffix(".gz").removesuffix(".nii").lower()
        name = re.sub(r"[\W_]+", " ", WORDS.sub("", whole.replace("_", " "))).strip() or whole
        if name in named:
            raise UserError(f"{path} and {named[name][0]}: the names differ in nothing that counts; rename one")
        named[name] = members
    if not named:
        raise UserError(f"{folder}: holds neither NIfTI files nor folders with DICOM series")
    return named


def _by_number(named: Mapping[str, tuple[Path, ...]], folder: Path) -> dict[str, tuple[Path, ...]]:
    """The same by the last number of the name."""
    found = {}
    for name, files in named.items():
        digits = re.findall(r"\d+", name)
        if not digits or str(int(digits[-1])) in found:
            raise UserError(f"{folder}: the names of images and labels do not correspond; rename them alike")
        found[str(int(digits[-1]))] = files
    return found


def guess_folds(numbers: Sequence[int]) -> list[dict]:
    """Every scan is a query once; the support of a fold is the first scan of the next, as in config.py."""
    count = min(FOLDS, len(numbers) // 2)
    parts = [part.tolist() for part in np.array_split(sorted(numbers), count)] if count > 1 else []
    return [{"support": parts[(at + 1) % count][0], "query": part} for at, part in enumerate(parts)]


def describe(out: Path, folder: str, plan: Plan, organs: Mapping[str, int], others: Mapping[str, int]) -> dict:
    """The data set's JSON file, from what was prepared."""
    prepared = json.loads((out / MANIFEST).read_text(encoding="utf-8"))["scans"]
    return {
        "images": folder,
        "modality": "MR" if plan.percentile else "CT",  # scaled values mean the same in every scan, too
        "supervoxel_size": SUPERVOXELS,
        "organs": dict(organs),
        "others": dict(others),
        "folds": guess_folds([int(number) for number in prepared]),
    }


def name_labels(out: Path, organs: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Tested organs, and what else the labels hold; without names every id is an organ.

    Raises:
        UserError: a named id is in no label.
    """
    scans = json.loads((out / MANIFEST).read_text(encoding="utf-8"))["scans"]
    ids = sorted({int(i) for scan in scans.values() for i in scan["label_voxels"]})
    absent = [name for name, identifier in organs.items() if identifier not in ids]
    if absent:
        raise UserError(f"--organs {absent[0]}={organs[absent[0]]}: no label holds this id; there are {ids}")
    rest = {f"label {i}": i for i in ids if i not in organs.values()}
    return (dict(organs), rest) if organs else (rest, {})


def write_description(out: Path, content: dict) -> Path:
    """Write OUT/<OUT's name>.json unless it is there: it may have been edited."""
    file = out / f"{out.resolve().name}.json"
    if file.exists():
        print(f"{file} is kept as it is; remove it to have it guessed again")
    else:
        write_text(file, json.dumps(content, indent=1) + "\n")
    return file


def prepare_own(options: argparse.Namespace) -> dict[int, str]:
    """Convert, describe, and say what was done; returns the failures."""
    sources, remarks = find(options.images, options.labels)
    plan, guesses = guess_plan(sources, options.size or 256, "scaled" if options.window else options.intensities)
    plan = command.chosen_plan(options, plan, replace(plan, legacy=True, orient=False))
    if options.window:
        plan = replace(plan, window=tuple(options.window), percentile=None)
    name = options.out.resolve().name
    folder = f"{name.lower()}_normalized"
    raw = Path(*_common(options.images, options.labels))
    converter = Converter(name, folder, (), lambda _: (sources, remarks + guesses), plan, plan, None, {})
    failures = convert(
        converter,
        raw,
        options.out,
        plan,
        trust_voxels=options.trust_label_voxels,
        accept_doubts=options.accept_doubtful_headers,
        jobs=options.jobs,
        overwrite=options.overwrite,
    )
    if len(failures) == len(sources):
        return failures
    organs, others = name_labels(options.out, dict(options.organs))
    content = describe(options.out, folder, plan, organs, others)
    file = write_description(options.out, content)
    print(f"organs {', '.join(f'{name} ({i})' for name, i in organs.items())}; {len(content['folds'])} folds guessed")
    if not content["folds"]:
        print("too few scans for folds: at least 4 are needed, or write your own into the file")
    print(
        f"edit {file} as you like, then:\n  python -m supervoxels.generate {options.out / folder} "
        f"{options.out / f'supervoxels_{SUPERVOXELS}'} --min-size {SUPERVOXELS}\n  python -m data.check {file}\n"
        f"  python training.py with dataset={file}"
    )
    return failures


def _common(images: Path, labels: Path) -> tuple[str, ...]:
    """The folder above both; sources are recorded relative to it."""
    parts = []
    for one, other in zip(images.parts, labels.parts, strict=False):
        if one != other:
            break
        parts.append(one)
    return tuple(parts)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    own = parser(__doc__, "python -m data.custom")
    own.add_argument("images", metavar="IMAGES", type=Path, help="folder of NIfTI images or DICOM series")
    own.add_argument("labels", metavar="LABELS", type=Path, help="folder of NIfTI labels")
    own.add_argument("out", metavar="OUT", type=Path, help="folder to write to; its name is the data set's")
    own.add_argument(
        "--organs",
        type=named_label,
        nargs="+",
        default=[],
        metavar="NAME=ID",
        help="organs to test (default: every id of the labels)",
    )
    values = own.add_mutually_exclusive_group()
    values.add_argument(
        "--window",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="intensities that become 0 and 255 (default: guessed)",
    )
    values.add_argument(
        "--intensities",
        choices=tuple(INTENSITIES),
        default="",
        help="what the scans are, and so what is done to their values (default: guessed)",
    )
    command.add_options(own)
    options = own.parse_args(arguments)
    if options.window and options.window[0] >= options.window[1]:
        own.error(f"--window {options.window[0]:g} {options.window[1]:g}: the first must be below the second")
    options.images, options.labels = options.images.resolve(), options.labels.resolve()
    return guarded(lambda: prepare_own(options))


if __name__ == "__main__":
    sys.exit(main())
