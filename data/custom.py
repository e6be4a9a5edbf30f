"""Prepare your own scans: images and labels in folders -> a data set with folds, described by one JSON file.

    python -m data.custom IMAGES LABELS data/MINE --organs liver=1 spleen=2
    python training.py with dataset=data/MINE/MINE.json

IMAGES holds NIfTI files, or a folder with a DICOM series for every scan; LABELS one NIfTI file per scan with whole
numbers, on the grid of its image. An image and a label belong together if their names are equal but for words such as
img, label, seg, or else if the only numbers are that tell the names of a folder apart. The pairs are shown. What is
guessed (spacing, CT or MR, folds) is said, and can be said otherwise: by the options, and in the JSON file.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.parts import command
from data.parts.convert import Converter
from data.parts.plans import INTENSITIES, guess_plan
from dataloaders.raw.preparation import Plan
from dataloaders.raw.sources import Source, find_series
from util.commands import guarded, named_label, parser
from util.dataset import from_file
from util.errors import UserError
from util.files import digest, write_text
from util.finding import VOLUMES, find_files, is_volume, others, stem, with_voxels
from util.manifest import Manifest
from util.names import distinct_labels

FOLDS = 5
SUPERVOXELS = 5000  # smallest supervoxel in voxels, as for the abdominal sets
WORDS = re.compile(r"(?<![a-z])(image|img|scan|label|seg|segmentation|mask|manual|gt|ct|mr|0000)(?![a-z])")

Files = Mapping[str, tuple[Path, ...]]  # by a name


def find(images: Path, labels: Path) -> tuple[dict[int, Source], list[str], list[str]]:
    """Pairs of images and labels by number: the one in the name if it is the only one, else counted.

    Returns:
        the scans; remarks, which show the pairs and what was left out; what could not be read.

    Raises:
        UserError: a folder is missing or empty, or names cannot be told apart or do not correspond.
    """
    (series, there), answers_there = find_series(images), find_files(labels, deep=False)
    volumes = [path for path in there.files if is_volume(path) and path.parent == images]
    scans = _named({path: with_voxels(path) for path in volumes} | series, images)
    answers = _named({path: with_voxels(path) for path in filter(is_volume, answers_there.files)}, labels)
    if not set(scans) & set(answers):  # no name fits: numbers alone may
        scans, answers = _by_number(scans), _by_number(answers)
        if not scans or set(scans) - set(answers):
            raise UserError(
                f"{images}, {labels}: the names of images and labels do not correspond; give image and label one name"
            )
    numbers = _numbers(scans)
    found = {}
    for name, number in numbers.items():
        problem = "" if name in answers else f"{scans[name][0]}: no label of this name in {labels}"
        found[number] = Source(scans[name], answers.get(name, ()), problem)
    remarks = [f"scan {n}: {' and '.join(_shown(files) for _, files in source.pair)}" for n, source in found.items()]
    remarks += [f"{answers[name][0]}: no image of this name, left out" for name in sorted(set(answers) - set(scans))]
    used = {parent for files in series.values() for file in files for parent in file.parents}
    folders = [path for path in (*find_files(images, deep=False).folders, *answers_there.folders) if path not in used]
    remarks += [f"{path}: a folder without DICOM series, left out" for path in folders]
    there.files = [path for path in there.files if set(folders).isdisjoint(path.parents)]
    for folder, taken in ((there, scans), (answers_there, answers)):
        remarks += folder.remarks + others(folder.files, [file for files in taken.values() for file in files])
    return found, remarks, there.lost + answers_there.lost


def _shown(files: tuple[Path, ...]) -> str:
    """A file, or the folder of a series, with the folder that it lies in."""
    path = files[0] if is_volume(files[0]) else files[0].parent
    return "/".join(path.parts[-2:])


def _named(files: Mapping[Path, tuple[Path, ...]], folder: Path) -> dict[str, tuple[Path, ...]]:
    """Files by what remains of their names without the words that only say what they are."""
    named: dict[str, tuple[Path, ...]] = {}
    for path, members in sorted(files.items()):
        whole = (stem(path) if is_volume(path) else path.name).lower()
        name = re.sub(r"[\W_]+", " ", WORDS.sub("", whole.replace("_", " "))).strip() or whole
        if name in named:
            raise UserError(f"{path} and {named[name][0]}: the names differ in nothing that counts; rename one")
        named[name] = members
    if not named:
        raise UserError(f"{folder}: holds neither volumes ({', '.join(VOLUMES)}) nor folders with DICOM series")
    return named


def _by_number(named: Files) -> dict[str, tuple[Path, ...]]:
    """The same by the only number that tells the names apart; empty where there is no such number.

    Of `pat1_session2` and `pat2_session1` nothing says which number is the patient's.
    """
    texts = {re.sub(r"\d+", "#", name) for name in named}
    numbers = [[int(digits) for digits in re.findall(r"\d+", name)] for name in named]
    if any(len(found) != 1 for found in numbers):
        if len(texts) > 1:
            return {}
        places = [at for at, values in enumerate(zip(*numbers, strict=True)) if len(set(values)) > 1]
        numbers = [[found[at] for at in places] for found in numbers]
    keys = [str(*found) if len(found) == 1 else "" for found in numbers]
    return dict(zip(keys, named.values(), strict=True)) if all(keys) and len(set(keys)) == len(keys) else {}


def _numbers(scans: Files) -> dict[str, int]:
    """Scan numbers by name: the only number of each name where all have one and none twice, else 1, 2, ..."""
    digits = [re.findall(r"\d+", name) for name in scans]
    own = [int(found[0]) for found in digits if len(found) == 1]
    unique = len(own) == len(set(own)) == len(scans)
    return dict(zip(scans, own if unique else range(1, len(scans) + 1), strict=True))


def guess_folds(numbers: Sequence[int]) -> list[dict]:
    """Every scan is a query once; the support of a fold is the first scan of the next, as in config.py."""
    count = min(FOLDS, len(numbers) // 2)
    parts = [part.tolist() for part in np.array_split(sorted(numbers), count)] if count > 1 else []
    return [{"support": parts[(at + 1) % count][0], "query": part} for at, part in enumerate(parts)]


def describe(folder: str, numbers: Sequence[int], plan: Plan, organs: Mapping[str, int], others: Mapping) -> dict:
    """The data set's JSON file, from what was prepared."""
    return {
        "images": folder,
        "modality": "MR" if plan.percentile else "CT",  # scaled values mean the same in every scan, too
        "supervoxel_size": SUPERVOXELS,
        "organs": dict(organs),
        "others": dict(others),
        "folds": guess_folds(numbers),
    }


def name_labels(scans: Mapping[str, Mapping], organs: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Tested organs, and what else the labels hold; without names every id is an organ.

    Raises:
        UserError: a named id is in no label.
    """
    ids = sorted({int(i) for scan in scans.values() for i in scan["label_voxels"]})
    absent = [name for name, identifier in organs.items() if identifier not in ids]
    if absent:
        raise UserError(f"--organs {absent[0]}={organs[absent[0]]}: no label holds this id; there are {ids}")
    rest = {f"label {i}": i for i in ids if i not in organs.values()}
    return (dict(organs), rest) if organs else (rest, {})


def write_description(file: Path, content: dict, manifest: Manifest) -> dict:
    """Write the JSON file, unless a person edited it; returns what is in it then.

    Raises:
        UserError: it was edited and describes no data set.
    """
    if file.exists() and manifest.notes.get(file.name) != digest(file):
        print(f"{file} is kept as it is, somebody edited it; remove it to have it guessed again")
        from_file(file)  # which refuses what is no description
        return json.loads(file.read_text("utf-8"))
    write_text(file, json.dumps(content, indent=1) + "\n")
    manifest.notes[file.name] = digest(file)
    manifest.write()
    return content


def prepare_own(options: argparse.Namespace) -> dict[int | str, str]:
    """Convert, describe, and say what was done; returns the failures."""
    named = distinct_labels(options.organs)
    sources, remarks, lost = find(options.images, options.labels)
    plan, guesses = guess_plan(sources, options.size or 256, "scaled" if options.window else options.intensities)
    plan = command.chosen_plan(options, plan, replace(plan, published=True, orient=False))
    if options.window:
        plan = replace(plan, window=tuple(options.window), percentile=None)
    name = options.out.resolve().name
    folder, file = f"{name.lower()}_normalized", options.out / f"{name}.json"
    organs_by_id = {identifier: organ for organ, identifier in named.items()}
    found = sources, remarks + guesses, lost
    converter = Converter(name, folder, (), lambda _: found, plan, plan, None, organs_by_id)

    def finish(manifest: Manifest) -> None:
        numbers = sorted(map(int, manifest.scans))
        content = describe(folder, numbers, plan, *name_labels(manifest.scans, named))
        say_what_is_there(file, folder, write_description(file, content, manifest))

    above = Path(os.path.commonpath([options.images, options.labels]))  # sources are recorded relative to it
    return command.work(options, converter, above, plan, finish)


def say_what_is_there(file: Path, folder: str, content: Mapping) -> None:
    """Organs and folds of the JSON file, and what to do next."""
    organs, folds, size = content["organs"], content["folds"], content["supervoxel_size"]
    print(f"organs {', '.join(f'{name} ({i})' for name, i in organs.items())}; {len(folds)} folds in {file}")
    if not folds:
        print("too few scans for folds: at least 4 are needed, or write your own into the file")
    print(
        f"edit {file} as you like, then:\n  python -m supervoxels.generate {file.parent / folder} "
        f"{file.parent / f'supervoxels_{size}'} --min-size {size}\n  python -m data.check {file}\n"
        f"  python training.py with dataset={file}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    own = parser(__doc__, "python -m data.custom")
    own.add_argument("images", metavar="IMAGES", type=Path, help="folder of NIfTI images or DICOM series")
    own.add_argument("labels", metavar="LABELS", type=Path, help="folder of NIfTI labels")
    own.add_argument("out", metavar="OUT", type=Path, help="folder to write to; its name is the data set's")
    help_text = "organs to test (default: every id of the labels)"
    own.add_argument("--organs", type=named_label, nargs="+", default=[], metavar="NAME=ID", help=help_text)
    values = own.add_mutually_exclusive_group()
    help_text = "intensities that become 0 and 255 (default: guessed)"
    values.add_argument("--window", type=float, nargs=2, metavar=("LOW", "HIGH"), help=help_text)
    help_text = "what the scans are, and so what is done to their values (default: guessed)"
    values.add_argument("--intensities", choices=tuple(INTENSITIES), default="", help=help_text)
    command.add_options(own)
    options = own.parse_args(arguments)
    if options.window and options.window[0] >= options.window[1]:
        own.error(f"--window {options.window[0]:g} {options.window[1]:g}: the first must be below the second")
    options.images, options.labels = options.images.resolve(), options.labels.resolve()
    return guarded(lambda: prepare_own(options))


if __name__ == "__main__":
    sys.exit(main())
