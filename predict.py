"""Segment your own scans, given one that is annotated.

    python predict.py --checkpoint runs/adnet_CHAOST2_fold0/1 --support-image S.nii.gz --support-label L.nii.gz \\
        --query SCANS --out OUT

Every label of the support is found in every query: NIfTI files or folders with DICOM series, of any spacing and
orientation. OUT/<name>.nii.gz lies on the grid of the query, <name>.dcm is a DICOM Segmentation on a query that is a
series (with highdicom), <name>.png and <name>.html show it, labels.txt and labels.ctbl tell names and colours to
ITK-SNAP and 3D Slicer, predictions.json says what made it. Several checkpoints, and several supports, are averaged. A
command that was stopped goes on where it was; the same command on several machines shares the scans.
"""

import argparse
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import torch
from tqdm import tqdm

import config
import models
import supervoxels
from dataloaders.pairings import make_pairing
from dataloaders.prediction.archive import Segmentation
from dataloaders.prediction.colours import write_colours
from dataloaders.prediction.predictor import Predictor
from dataloaders.prediction.queries import RECORD, find_queries, jobs, one_scan, read_support
from dataloaders.prediction.segmentation import hindrance
from dataloaders.raw.preparation import Plan
from dataloaders.raw.regrid import Preparation, observe, onto_training_grid
from dataloaders.raw.sources import is_series
from models.parts.base import FewShotMethod
from util import checkpoints, shipped
from util.checkpoints import TrainedMethod
from util.commands import add_backend, at_least, backend_of, guarded, named_label, parser, positive
from util.dataset import Dataset
from util.errors import UserError
from util.files import digest
from util.finding import as_failures
from util.manifest import Job, Manifest, share_manifest
from util.names import distinct_labels, safe_names
from util.parallel import PROCESSES, Backend, attempt, each_scan
from util.runs import folders
from util.runs.experiment import with_dataset_file
from util.runs.processes import prepare_device
from util.volume import Volume


def load_members(names: Sequence[str], device: torch.device) -> list[TrainedMethod]:
    """The methods of checkpoints, named as in `find_checkpoint`, on the device.

    Raises:
        UserError: a checkpoint cannot be read or used here, or the training scans of two were prepared differently.
    """
    files = [folders.find_checkpoint(name, "--checkpoint") for name in names]
    members = [models.restore(checkpoints.load_checkpoint(file), file) for file in files]
    for member in members:
        member.method.to(device)
        if member.preparation is None:
            raise UserError(
                f"{member.file}: an older version wrote it, it does not say how its training scans were prepared; "
                "train again"
            )
        if preparation_of(member) != preparation_of(members[0]):
            own, first = member.options["dataset"], members[0].options["dataset"]
            raise UserError(
                f"{member.file}: was trained on {own}, whose scans were prepared differently than those of "
                f"{members[0].file} ({first}); an ensemble needs one preparation"
            )
    return members


def preparation_of(member: TrainedMethod) -> Preparation:
    """How the training scans of a method were prepared.

    Raises:
        UserError: its checkpoint does not say it in a way that this version reads.
    """
    try:
        return Preparation.from_plain(member.preparation)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{member.file}: the preparation of its training scans cannot be read; train again") from error


def choose_pairing(pairing: str, members: Sequence[TrainedMethod]) -> str:
    """How slices meet; methods that see whole volumes know no single slices.

    Raises:
        UserError: --pairing asks such a method for what it cannot do.
    """
    volumes = [member for member in members if member.method.dims == 3]
    if volumes and pairing in ("similar", "propagate"):
        raise UserError(
            f"--pairing {pairing}: {volumes[0].file} sees whole volumes, no slices; choose volume, whole or position"
        )
    return pairing or ("volume" if volumes else "similar")


def choose_organs(options: argparse.Namespace, labels: Sequence[np.ndarray], member: TrainedMethod) -> dict[int, str]:
    """Id -> name of what is segmented: what --organs says, or all labels.

    Ids have the names of the checkpoint's data set only if every support is one of its own labels: elsewhere the same
    number may stand for another organ.

    Raises:
        UserError: --organs names an id that no support shows, or one name or id twice.
    """
    present = sorted(set().union(*(np.unique(label).tolist() for label in labels)) - {0})
    named = {identifier: name for name, identifier in distinct_labels(options.organs).items()}
    absent = [f"{name}={identifier}" for identifier, name in named.items() if identifier not in present]
    if absent:
        raise UserError(f"--organs {absent[0]}: no support shows this id; there are {present}")
    if named:
        return named
    dataset = member.options["dataset"]
    if dataset.endswith(".json") and Path(dataset).is_file():
        with_dataset_file({"dataset": dataset}, config)
    row = config.DATASETS.get(dataset)
    known = {}
    if row and all(is_label_of(file, row, Path(member.options["data_root"])) for file in options.support_label):
        known = {identifier: name for name, identifier in {**row.organs, **row.others}.items()}
    return {identifier: known.get(identifier, f"label {identifier}") for identifier in present}


def is_label_of(file: Path, dataset: Dataset, root: Path) -> bool:
    """True if the file is, byte by byte, the label of a scan of the data set."""
    folder = root / dataset.images
    size = file.stat().st_size
    alike = [path for path in sorted(folder.glob("label_*.nii.gz")) if path.stat().st_size == size]
    return bool(alike) and digest(file) in map(digest, alike)


def predict(options: argparse.Namespace, *, silent: bool = False) -> dict[str, str]:
    """Segment every query that is not segmented yet; returns what went wrong, by name."""
    say = (lambda *_, **how: None) if silent else print
    if len(options.support_image) != len(options.support_label):
        raise UserError("--support-image and --support-label: every annotated image needs its label, in the same order")
    distinct_labels(options.organs)
    backend = backend_of(options)
    if backend.name == "threading":
        raise UserError("--backend threading: processes share the scans; choose loky or dask")
    queries, remarks, lost = find_queries(options.query, options.out)
    say(*remarks, sep="\n", end="\n" * bool(remarks))
    device = prepare_device({"device": options.device, "threads": options.threads})
    if not options.checkpoint:
        options.checkpoint = [str(shipped.checkpoint())]
        say(f"{shipped.SAID} ({options.checkpoint[0]})")
    members = load_members(options.checkpoint, device)
    options.pairing = choose_pairing(options.pairing, members)
    preparation = preparation_of(members[0])
    supports = read_supports(options, preparation)
    organs = choose_organs(options, [label.array for _, label in supports], members[0])
    say(f"segmenting {', '.join(f'{name} ({i})' for i, name in organs.items())}; --organs NAME=ID names others")
    wanted = list(safe_names(organs.values()).values()) if options.probabilities else []
    objects, remarks = objects_of(queries) if options.dicom else ((), [])
    say(*remarks, sep="\n", end="\n" * bool(remarks))
    todo = jobs(queries, options.out, wanted, objects)
    inputs = {file.resolve() for file in (*options.support_image, *options.support_label)}
    if taken := next((file for job in todo.values() for file in job.outputs if file.resolve() in inputs), None):
        raise UserError(f"{taken}: is an annotated scan, and a query would replace it; name another folder with --out")
    existing = [file for job in todo.values() for file in job.outputs if file.exists()]
    facts = {"settings": settings(options, members, organs)}
    record = options.out / RECORD
    with share_manifest(record, facts, todo, existing=existing, overwrite=options.overwrite) as manifest:
        write_colours(options.out, organs)
        if options.jobs > 1 or backend.name != PROCESSES.name:
            failures, done = in_processes(options, backend, todo, manifest)
        else:
            pairing = make_pairing(options.pairing, parts=options.parts, shots=options.shots)
            cut = supervoxels.partitions if options.voting else None
            predictor = Predictor(members, supports, organs, pairing, device, options.memory_gb, cut)
            cleaning = {"largest_component": options.largest_component, "fill_holes": options.fill_holes}
            work = Segmentation(predictor, manifest, prepared=options.prepared, cleaning=cleaning, silent=silent)
            failures, done = work.run(todo)
    there = len(queries) - done - len(failures)
    say(f"{len(queries)} scans: {done} segmented, {there} were there, {len(failures)} failed")
    say(f"{manifest.file}, look at {options.out}/*.png, or *.html in a browser")
    return {**failures, **as_failures(lost)}


def in_processes(
    options: argparse.Namespace, backend: Backend, todo: Mapping[str, Job], manifest: Manifest
) -> tuple[dict[str, str], int]:
    """The same command several times at once: on this machine or a cluster, each with a share of the scans."""
    threads = options.threads or max(1, joblib.cpu_count() // options.jobs)
    alone = {"jobs": 1, "backend": PROCESSES.name, "scheduler": None, "threads": threads, "overwrite": False}
    calls = dict.fromkeys(range(options.jobs), (argparse.Namespace(**{**vars(options), **alone}),))
    work = partial(predict, silent=True)  # which leaves warnings
    before, failures = set(manifest.scans), {}
    with progress(todo, manifest):
        for _, share in each_scan(work, calls, options.jobs, file=lambda _: options.out, backend=backend, silent=True):
            if share.failure:
                raise UserError(share.failure)
            failures |= {name: sentence for name, sentence in share.result.items() if name in todo}
    manifest.read()
    return failures, len((set(manifest.scans) & set(todo)) - before)


@contextmanager
def progress(todo: Mapping[str, Job], manifest: Manifest) -> Iterator[None]:
    """A bar that looks at the record now and then."""
    end = threading.Event()

    def watch() -> None:
        with tqdm(total=len(todo), unit="scan", mininterval=0.1 if sys.stderr.isatty() else 60) as bar:
            bar.total -= len(manifest.scans.keys() & todo.keys())
            known = len(manifest.scans)
            while not end.wait(1):
                manifest.read()
                bar.update(len(manifest.scans) - known - bar.n)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        end.set()
        watcher.join()


def objects_of(queries: Mapping[str, tuple[Path, ...]]) -> tuple[set[str], list[str]]:
    """Names of the DICOM series that get a DICOM Segmentation, and why others do not."""
    series = {name: hindrance(files[0]) for name, files in queries.items() if is_series(files)}
    remarks = []
    for why in dict.fromkeys(filter(None, series.values())):
        names = [name for name, own in series.items() if own == why]
        remarks.append(f"{names[0]}{f' and {len(names) - 1} others' if len(names) > 1 else ''}: {why}")
    return {name for name, why in series.items() if not why}, remarks


def read_supports(options: argparse.Namespace, preparation: Preparation) -> list[tuple[Volume, Volume]]:
    """Image and label of every annotated scan on the training grid.

    Raises:
        UserError: one cannot be read.
    """
    read = partial(read_support, trust_voxels=options.trust_label_voxels, prepared=options.prepared)
    pairs = list(zip(options.support_image, options.support_label, strict=True))
    supports = [attempt(read, (image, label, preparation), str(image)) for image, label in pairs]
    for support in supports:
        if support.failure:
            raise UserError(support.failure)
    return [support.result for support in supports]


def segment_volume(
    image: Volume,
    annotated: Volume,
    label: Volume,
    method: str | Path | FewShotMethod | None = None,
    *,
    device: str = "cpu",
    voting: bool = True,
) -> np.ndarray:
    """Labels `(D, H, W)` of a scan on its own grid, given an annotated one: predict.py for other programs.

    Args:
        image: to segment.
        annotated, label: the annotated scan, and whole numbers on its grid; 0 = background.
        method: a run or a checkpoint; None = the one that ships; or a method of one's own making, which then takes all
            scans on the grid of the annotated one, brightest values cut as usual for MR.
        device: cpu, cuda.
        voting: supervoxels vote on the answer.

    Raises:
        UserError: the checkpoint cannot be read, or the label shows nothing.
    """
    place = torch.device(device)
    if isinstance(method, FewShotMethod):
        grid = observe(Plan(percentile=99.5), [annotated.geometry], max(annotated.array.shape[1:]))
        members = [TrainedMethod(method.to(place).eval(), {}, preparation=grid.as_plain())]
    else:
        members = load_members([str(method or shipped.checkpoint())], place)
    ids = [int(identifier) for identifier in np.unique(label.array) if identifier]
    if not ids:
        raise UserError("the label shows no organ at all; 0 is the background")
    support = onto_training_grid(annotated, label, preparation_of(members[0]))
    pairing = make_pairing(choose_pairing("", members), parts=3, shots=1)
    cut = supervoxels.partitions if voting else None
    names = {identifier: f"label {identifier}" for identifier in ids}
    return Predictor(members, [support], names, pairing, place, cut=cut).labels(image)


def settings(options: argparse.Namespace, members: Sequence[TrainedMethod], organs: Mapping[int, str]) -> dict:
    """What the segmentations depend on, for predictions.json."""
    same = ("pairing", "parts", "shots", "voting", "largest_component", "fill_holes", "prepared", "trust_label_voxels")
    return {
        "checkpoints": [member.sha256 for member in members],
        "supports": [sorted(map(digest, one_scan(file)[0])) for file in options.support_image],
        "support labels": [digest(file) for file in options.support_label],
        "organs": {str(identifier): name for identifier, name in organs.items()},
        **{name: getattr(options, name) for name in same},
    }


def command_line() -> argparse.ArgumentParser:
    """The options."""
    command = parser(__doc__)
    several = {"type": Path, "nargs": "+", "required": True}
    command.add_argument(
        "--checkpoint", nargs="+", metavar="RUN", help="runs or checkpoints; several are averaged (default: what ships)"
    )
    command.add_argument("--support-image", **several, metavar="FILE", help="annotated scans; several are averaged")
    command.add_argument(
        "--support-label", **several, metavar="FILE", help="their labels: whole numbers, 0 = background"
    )
    command.add_argument("--query", **several, metavar="PATH", help="scans to segment: files, or folders of any depth")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    command.add_argument(
        "--organs", type=named_label, nargs="+", default=[], metavar="NAME=ID", help="only these (default: all)"
    )
    command.add_argument(
        "--pairing",
        choices=("similar", "position", "whole", "propagate", "volume"),
        default="",
        help="how query slices meet annotated ones: by what they look like (default), by their relative height, all "
        "with the middle one, walking from slice to slice, all with all (default of 3D methods)",
    )
    command.add_argument("--parts", type=positive, default=3, metavar="N", help="runs of query slices (default: 3) ...")
    command.add_argument("--shots", type=positive, default=1, metavar="N", help="... and annotated slices for each")
    command.add_argument("--largest-component", action="store_true", help="keep the largest piece of every organ")
    command.add_argument("--fill-holes", action="store_true", help="fill what an organ encloses")
    command.add_argument("--no-voting", dest="voting", action="store_false", help="the networks' own, coarse answer")
    command.add_argument("--probabilities", action="store_true", help="write those of every organ, too")
    command.add_argument("--no-dicom", dest="dicom", action="store_false", help="no DICOM Segmentation of a series")
    command.add_argument("--prepared", action="store_true", help="intensities are the prepared training scans' already")
    command.add_argument(
        "--trust-label-voxels", action="store_true", help="labels lie on their images in spite of headers"
    )
    command.add_argument("--device", default="auto", help="cpu, cuda, cuda:1")
    command.add_argument("--threads", type=at_least(0), default=0, help="CPU threads (default: as many as cores)")
    command.add_argument(
        "--memory-gb",
        type=float,
        default=0.0,
        help="3D methods: patches, so that this is enough (default: 0, no bound)",
    )
    command.add_argument("--overwrite", action="store_true", help="segment again what OUT holds")
    command.add_argument("--jobs", type=positive, default=1, metavar="N", help="processes that share the scans")
    add_backend(command.add_argument)
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = command_line().parse_args(arguments)
    return guarded(lambda: predict(options))


if __name__ == "__main__":
    sys.exit(main())
