"""What every preparation command shares: many scans side by side, none stopping the others, resumable, recorded.

A converter (`data.chaost2`, `data.sabs`, `data.cmr`, `data.custom`) knows where its download keeps the scans and which
plan prepares them. Here the plan is carried out: OUT/<folder>/image_N.nii.gz and label_N.nii.gz appear whole or not at
all; OUT/preparation.json says from which files (SHA-256), with which parameters and versions; OUT/montage.png shows
every scan. A scan whose sources, parameters and results are as recorded is not touched again.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data.parts.manifest import MANIFEST, claim, is_done, record, write_manifest
from data.parts.montage import Tile, draw_montage, make_tile
from dataloaders.raw.intensities import windowed
from dataloaders.raw.preparation import Plan, prepare
from dataloaders.raw.sources import Source, doubts, read_source
from util.errors import UserError
from util.files import digest
from util.parallel import each_scan
from util.volume import read_volume, write_volume

MONTAGE = "montage.png"
LEAST_LEFT = 25  # of 255 grey levels
RECIPE = 2  # raised whenever the same parameters give other voxels, so that old and new scans are not mixed


@dataclass(frozen=True)
class Converter:
    """One download.

    Attributes:
        name: of the data set, as in config.py.
        folder: for the scans, below OUT.
        expected: scan numbers of the complete download.
        find: RAW -> scan number -> its files, and remarks on what was left out.
        plan: how its scans are prepared.
        legacy: the same as published.
        ids: value in the raw labels -> id in the prepared ones; None keeps them all.
        organs: id -> name, those that should be there.
    """

    name: str
    folder: str
    expected: tuple[int, ...]
    find: Callable[[Path], tuple[dict[int, Source], list[str]]]
    plan: Plan
    legacy: Plan
    ids: Mapping[int, int] | None
    organs: Mapping[int, str]


@dataclass(frozen=True)
class Task:
    """One scan to prepare: everything the worker needs, and what an earlier run recorded of it."""

    number: int
    source: Source
    raw: Path
    folder: Path
    plan: Plan
    ids: Mapping[int, int] | None
    trust_voxels: bool
    accept_doubts: bool
    recorded: dict | None


@dataclass(frozen=True)
class Outcome:
    """What became of a scan: its line of the manifest and its picture, or why it failed."""

    record: dict | None = None
    tile: Tile | None = None
    fresh: bool = False
    failure: str = ""


def convert(
    converter: Converter,
    raw: Path,
    out: Path,
    plan: Plan,
    *,
    trust_voxels: bool = False,
    accept_doubts: bool = False,
    jobs: int = -1,
    overwrite: bool = False,
) -> dict[int, str]:
    """Prepare every scan of a download that is not prepared yet; print what was found and done.

    Returns:
        what went wrong: scan number -> sentence.

    Raises:
        UserError: RAW holds no scan, or OUT was made with other parameters.
    """
    if not raw.is_dir():
        raise UserError(f"{raw}: no such folder; name the folder the download was unpacked to")
    sources, remarks = converter.find(raw)
    if not sources:
        raise UserError(f"{raw}: holds no scan of {converter.name}; data/README.md shows what the tree looks like")
    for line in (counts(converter, sources), *remarks):
        print(line)
    parameters = {"recipe": RECIPE, **json.loads(json.dumps(asdict(plan))), "trust_label_voxels": trust_voxels}
    manifest = claim(out, converter.folder, converter.name, parameters, overwrite)
    write_manifest(out / MANIFEST, manifest)  # at once: a killed command must find its own folder again
    tasks = [
        Task(
            number,
            source,
            raw,
            out / converter.folder,
            plan,
            converter.ids,
            trust_voxels,
            accept_doubts,
            manifest["scans"].get(str(number)),
        )
        for number, source in sorted(sources.items())
    ]
    outcomes = run(tasks, out, manifest, converter.name, jobs)
    tiles = {number: outcome.tile for number, outcome in outcomes.items() if outcome.tile}
    if tiles:
        draw_montage(out / MONTAGE, f"{converter.name}, prepared", tiles)
    report(converter, out, outcomes)
    return {number: outcome.failure for number, outcome in outcomes.items() if outcome.failure}


def counts(converter: Converter, sources: Mapping[int, Source]) -> str:
    """Expected against found scans, in one line."""
    missing = sorted(set(converter.expected) - set(sources))
    line = f"{converter.name}: {len(sources)} scans found"
    if converter.expected:
        line += f", {len(converter.expected)} expected"
    return line + (f"; not there: {ranges(missing)}" if missing else "")


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in short: 1-3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def run(tasks: list[Task], out: Path, manifest: dict, name: str, jobs: int) -> dict[int, Outcome]:
    """Work on the scans side by side; the manifest grows with every one, so a killed command loses at most those."""
    outcomes = {}
    scans = {task.number: (task,) for task in tasks}
    for number, done in each_scan(one_scan, scans, jobs, name, lambda task: task.source.image[0]):
        outcome = outcomes[number] = done.result or Outcome(failure=done.failure)
        manifest["scans"].pop(str(number), None)
        if outcome.record:
            manifest["scans"][str(number)] = outcome.record
        write_manifest(out / MANIFEST, manifest)
    return outcomes


def one_scan(task: Task) -> Outcome:
    """Prepare one scan unless it is done.

    Raises:
        UserError: a file is damaged, or image and label do not fit together.
    """
    image, label = (task.folder / f"{kind}_{task.number}.nii.gz" for kind in ("image", "label"))
    try:
        sources = {file.relative_to(task.raw).as_posix(): digest(file) for file in task.source.files}
        if is_done(task.recorded, sources, (image, label)):
            return Outcome(task.recorded, make_tile(read_volume(image), read_volume(label)))
        scan = read_source(task.source, task.ids, task.trust_voxels)
        doubtful = doubts(task.source, scan, task.trust_voxels)
        if doubtful and not task.accept_doubts:
            raise UserError(f"{doubtful[0]}; look at it in a viewer, and if it is right use --accept-doubtful-headers")
        if task.plan.window and np.ptp(windowed(scan[0].array, task.plan)) < LEAST_LEFT:
            first, last = task.plan.window
            raise UserError(
                f"{task.source.image[0]}: has values from {scan[0].array.min():g} to {scan[0].array.max():g}, of which "
                f"the window {first:g} to {last:g} leaves next to nothing; prepare it apart from the others"
            )
        result = prepare(*scan, task.plan)
        for path, volume in zip((image, label), result, strict=True):
            write_volume(path, volume.array, volume.geometry)
        line = record(sources, (image, label), result) | ({"doubts": doubtful} if doubtful else {})
        return Outcome(line, make_tile(*result), fresh=True)
    except BaseException:
        for path in (image, label):  # no half of a scan, and none of sources that are no longer there
            path.unlink(missing_ok=True)
        raise


def report(converter: Converter, out: Path, outcomes: Mapping[int, Outcome]) -> None:
    """Say what was done, and which organs a scan does not show."""
    done = [outcome for outcome in outcomes.values() if outcome.record]
    fresh = sum(outcome.fresh for outcome in done)
    print(f"{converter.name}: {fresh} prepared, {len(done) - fresh} were ready, {len(outcomes) - len(done)} failed")
    for number, outcome in outcomes.items():
        if outcome.record:
            print(*(f"  scan {number}: {doubt}\n" for doubt in outcome.record.get("doubts", ())), sep="", end="")
            missing = [name for i, name in converter.organs.items() if str(i) not in outcome.record["label_voxels"]]
            if missing:
                print(f"  scan {number} does not show: {', '.join(missing)}")
    print(f"{out / converter.folder}, {out / MANIFEST}, look at {out / MONTAGE}")
