"""What every preparation command shares: many scans side by side, none stopping the others, resumable, recorded.

A converter (`data.chaost2`, `data.sabs`, `data.cmr`, `data.custom`) knows where its download keeps the scans and which
plan prepares them. Here the plan is carried out: OUT/<folder>/image_N.nii.gz and label_N.nii.gz appear whole or not at
all; OUT/preparation.json says from which files (SHA-256), with which parameters and versions; OUT/montage.png shows
every scan. A scan whose sources, parameters and results are as recorded is not touched again.
"""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from data.parts.montage import Example, draw_montage, make_example
from dataloaders.raw.intensities import require_measured, windowed
from dataloaders.raw.preparation import Plan, prepare
from dataloaders.raw.sources import Source, doubts, kept_shares, read_source
from util.errors import UserError
from util.finding import as_failures, few, find_files
from util.manifest import Job, Manifest, open_manifest
from util.parallel import Backend, each_scan
from util.volume import Volume, read_volume, write_volume

MANIFEST = "preparation.json"
MONTAGE = "montage.png"
LIBRARIES = ("numpy", "SimpleITK", "nibabel", "pydicom")
LEAST_LEFT = 25  # of 255 grey levels
VERSION = 2  # raised whenever the same parameters give other voxels, so that old and new scans are not mixed
KEPT = 0.8  # share of an organ's volume; if less is left after the preparation, it is said

Finish = Callable[[Manifest], None]


@dataclass(frozen=True)
class Converter:
    """One download.

    Attributes:
        name: of the data set, as in config.py.
        folder: for the scans, below OUT.
        expected: scan numbers of the complete download.
        find: RAW -> scan number -> its files; remarks on what was left out; what cannot be read and may be a scan.
        plan: how its scans are prepared.
        published: the same as published.
        ids: value in the raw labels -> id in the prepared ones; None keeps them all.
        organs: id -> name, those that should be there.
        names: what its files are called, for a message.
    """

    name: str
    folder: str
    expected: tuple[int, ...]
    find: Callable[[Path], tuple[dict[int, Source], list[str], list[str]]]
    plan: Plan
    published: Plan
    ids: Mapping[int, int] | None
    organs: Mapping[int, str]
    names: str = ""


@dataclass(frozen=True)
class Assignment:
    """One scan to prepare: everything the worker needs."""

    number: int
    source: Source
    job: Job
    plan: Plan
    ids: Mapping[int, int] | None
    trust_voxels: bool
    accept_doubts: bool


@dataclass(frozen=True)
class Outcome:
    """What became of a scan: its line of the manifest and its picture, or why it failed."""

    record: dict | None = None
    example: Example | None = None
    fresh: bool = False
    failure: str = ""


def convert(
    converter: Converter,
    raw: Path,
    out: Path,
    plan: Plan,
    *,
    trust_voxels: bool,
    accept_doubts: bool,
    jobs: int,
    backend: Backend,
    overwrite: bool,
    finish: Finish,
) -> dict[int | str, str]:
    """Prepare every scan of a download that is not prepared yet; print what was found and done.

    Args:
        converter, plan: what to prepare, and how.
        raw, out: folders.
        trust_voxels: labels lie on their images whatever their headers say.
        accept_doubts: prepare scans whose headers leave their place in doubt.
        jobs, backend: scans at once, and who works on them.
        overwrite: replace these scans.
        finish: called at the end where at least one scan is prepared, while no other command works in OUT.

    Returns:
        what went wrong: scan number, or a file -> sentence.

    Raises:
        UserError: RAW holds no scan, or OUT was made with other parameters or from other scans of these numbers.
    """
    if not raw.is_dir():
        raise UserError(f"{raw}: no such folder; name the folder the download was unpacked to")
    sources, remarks, lost = converter.find(raw)
    if not sources:
        names = [path.relative_to(raw).as_posix() for path in find_files(raw).files]
        found = [f"found {len(names)} other files: {few(names)}"] * bool(names) + lost[:1]
        raise UserError("; ".join([f"{raw}: holds no scan of {converter.name}", f"expected {converter.names}", *found]))
    for line in (counts(converter, sources), *remarks):
        print(line)
    facts = {
        "dataset": converter.name,
        "parameters": {"version": VERSION, **asdict(plan), "trust_label_voxels": trust_voxels},
    }
    folder = out / converter.folder
    tasks = [
        Assignment(
            number, source, job_of(number, source, raw, folder), plan, converter.ids, trust_voxels, accept_doubts
        )
        for number, source in sorted(sources.items())
    ]
    todo = {str(task.number): task.job for task in tasks}
    existing = folder.glob("*_*.nii.gz")
    with open_manifest(out / MANIFEST, facts, todo, existing=existing, overwrite=overwrite) as manifest:
        outcomes = run(tasks, manifest, converter.name, jobs, backend)
        examples = {number: outcome.example for number, outcome in outcomes.items() if outcome.example}
        if examples:
            draw_montage(out / MONTAGE, f"{converter.name}, prepared", examples, converter.organs)
        report(converter, out, manifest, outcomes)
        if examples:
            finish(manifest)
    failures = {number: outcome.failure for number, outcome in outcomes.items() if outcome.failure}
    return {**failures, **as_failures(lost)}


def job_of(number: int, source: Source, raw: Path, folder: Path) -> Job:
    """A scan's files, before and after."""
    return Job(raw, source.files, folder, tuple(folder / f"{kind}_{number}.nii.gz" for kind in ("image", "label")))


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


def run(tasks: list[Assignment], manifest: Manifest, name: str, jobs: int, backend: Backend) -> dict[int, Outcome]:
    """Work on the scans side by side; the manifest grows with every one, so a killed command loses at most those."""
    outcomes = {}
    scans = {task.number: (task, manifest.scans.get(str(task.number))) for task in tasks}
    for number, done in each_scan(one_scan, scans, jobs, name, lambda task, _: task.source.image[0], backend):
        outcome = outcomes[number] = done.result or Outcome(failure=done.failure)
        if outcome.record:
            manifest.add(str(number), outcome.record)
        else:
            manifest.forget(str(number), scans[number][0].job)
    return outcomes


def one_scan(task: Assignment, recorded: dict | None) -> Outcome:
    """Prepare one scan unless it is done, by what an earlier run recorded of it.

    Raises:
        UserError: a file is damaged, or image and label do not fit together.
    """
    image, label = task.job.outputs
    try:
        sources = task.job.digests()
        if task.job.is_done(recorded, sources):
            return Outcome(recorded, make_example(read_volume(image), read_volume(label)))
        scan = read_source(task.source, task.ids, task.trust_voxels)
        doubtful = doubts(task.source, scan, task.trust_voxels)
        if doubtful and not task.accept_doubts:
            raise UserError(f"{doubtful[0]}; look at it in a viewer, and if it is right use --accept-doubtful-headers")
        require_measured(scan[0].array, task.plan, task.source.image[0])
        if task.plan.window and np.ptp(windowed(scan[0].array, task.plan)) < LEAST_LEFT:
            first, last = task.plan.window
            raise UserError(
                f"{task.source.image[0]}: has values from {scan[0].array.min():g} to {scan[0].array.max():g}, of which "
                f"the window {first:g} to {last:g} leaves next to nothing; prepare it apart from the others"
            )
        result = prepare(*scan, task.plan)
        shares = kept_shares(scan[1], result[1])
        if not any(shares.values()):
            size, spacing = result[1].array.shape[1:], result[1].geometry.spacing
            raise UserError(
                f"{task.source.label[0]}: nothing that it shows lies within the {size[0]} x {size[1]} pixels of "
                f"{spacing[0]:.3g} x {spacing[1]:.3g} mm that are kept; choose another --size or --spacing"
            )
        for path, volume in zip((image, label), result, strict=True):
            write_volume(path, volume.array, volume.geometry)
        facts = facts_of(task, result, shares) | ({"doubts": doubtful} if doubtful else {})
        return Outcome(task.job.record(sources, **facts), make_example(*result), fresh=True)
    except BaseException:
        task.job.remove()  # no half of a scan, and none of sources that are no longer there
        raise


def facts_of(task: Assignment, result: tuple[Volume, Volume], shares: Mapping[int, float]) -> dict:
    """What the manifest says of a scan besides its files."""
    image, label = result
    ids, voxels = np.unique(label.array, return_counts=True)
    return {
        **{kind: files[0].relative_to(task.job.base).as_posix() for kind, files in task.source.pair},
        "shape": list(image.array.shape),
        "spacing": list(image.geometry.spacing),
        "label_voxels": {str(int(i)): int(n) for i, n in zip(ids, voxels, strict=True) if i},
        "cut": {str(i): round(share, 3) for i, share in shares.items() if share < KEPT},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }


def report(converter: Converter, out: Path, manifest: Manifest, outcomes: Mapping[int, Outcome]) -> None:
    """Say what was done, and which organs a scan does not show, or not wholly."""
    done = {number: outcome.record for number, outcome in outcomes.items() if outcome.record}
    fresh = sum(outcome.fresh for outcome in outcomes.values())
    print(f"{converter.name}: {fresh} prepared, {len(done) - fresh} were ready, {len(outcomes) - len(done)} failed")
    for number, record in done.items():
        print(*(f"  scan {number}: {doubt}\n" for doubt in record.get("doubts", ())), sep="", end="")
        cut = {int(i): share for i, share in record.get("cut", {}).items()}
        known = {*map(int, record["label_voxels"]), *cut}
        if missing := [name for i, name in converter.organs.items() if i not in known]:
            print(f"  scan {number} does not show: {', '.join(missing)}")
        for i, share in cut.items():
            what, organ = f"keeps only {share:.0%} of" if share else "has lost", converter.organs.get(i, f"label {i}")
            print(f"  scan {number} {what} {organ}: outside of what is kept, or too small")
    if earlier := sorted(set(map(int, manifest.scans)) - set(outcomes)):
        print(f"{out} also holds scans of earlier calls: {ranges(earlier)}")
    picture = f", look at {out / MONTAGE}" if done else ""
    print(f"{out / converter.folder}, {out / MANIFEST}{picture}")
