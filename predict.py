"""Segment your own scans, given one that is annotated.

    python predict.py --checkpoint runs/adnet_CHAOST2_fold0/1 --support-image S.nii.gz --support-label L.nii.gz \\
        --query SCANS --out OUT

Every label of the support is found in every query: NIfTI files or folders with DICOM series, of any spacing and
orientation. OUT/<name>.nii.gz lies on the grid of the query, OUT/<name>.png shows it, OUT/predictions.json says what
made it. Several checkpoints, and several supports, are averaged. A command that was stopped goes on where it was.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import config
import models
import supervoxels
from dataloaders.pairings import make_pairing
from dataloaders.prediction.cleaning import cleaned
from dataloaders.prediction.predictor import Predictor
from dataloaders.prediction.queries import RECORD, find_queries, image_files, jobs, read_support, save_on_grid_of
from dataloaders.prediction.sheet import draw_sheet
from dataloaders.raw.intensities import require_training_values
from dataloaders.raw.regrid import Preparation, along_axes
from dataloaders.raw.sources import read_image
from util import checkpoints
from util.checkpoints import TrainedMethod
from util.commands import at_least, guarded, named_label, parser, positive, warn
from util.dataset import Dataset
from util.errors import UserError
from util.files import digest
from util.finding import as_failures
from util.manifest import Job, Manifest, open_manifest
from util.names import distinct_labels, safe_names
from util.parallel import attempt
from util.runs import folders
from util.runs.experiment import with_dataset_file
from util.runs.processes import prepare_device
from util.volume import Volume

AXIAL = (1.0, 1.0, 1.0)  # columns run to the left, rows to the back, slices to the head


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


def predict(options: argparse.Namespace) -> dict[str, str]:
    """Segment every query that is not segmented yet; returns what went wrong, by name."""
    if len(options.support_image) != len(options.support_label):
        raise UserError("--support-image and --support-label: every annotated image needs its label, in the same order")
    distinct_labels(options.organs)
    queries, remarks, lost = find_queries(options.query, options.out)
    print(*remarks, sep="\n", end="\n" * bool(remarks))
    device = prepare_device({"device": options.device, "threads": options.threads})
    members = load_members(options.checkpoint, device)
    options.pairing = choose_pairing(options.pairing, members)
    preparation = preparation_of(members[0])
    supports = read_supports(options, preparation)
    organs = choose_organs(options, [label.array for _, label in supports], members[0])
    print(f"segmenting {', '.join(f'{name} ({i})' for i, name in organs.items())}; --organs NAME=ID names others")
    todo = jobs(queries, options.out, list(safe_names(organs.values()).values()) if options.probabilities else [])
    inputs = {file.resolve() for file in (*options.support_image, *options.support_label)}
    if taken := next((file for job in todo.values() for file in job.outputs if file.resolve() in inputs), None):
        raise UserError(f"{taken}: is an annotated scan, and a query would replace it; name another folder with --out")
    pairing = make_pairing(options.pairing, parts=options.parts, shots=options.shots)
    cut = supervoxels.partitions if options.voting else None
    predictor = Predictor(members, supports, organs, pairing, device, options.memory_gb, cut)
    existing = [file for job in todo.values() for file in job.outputs if file.exists()]
    facts = {"settings": settings(options, members, organs)}
    with open_manifest(options.out / RECORD, facts, todo, existing=existing, overwrite=options.overwrite) as manifest:
        failures, there = segment(predictor, todo, manifest, options)
    done = len(queries) - there - len(failures)
    print(f"{len(queries)} scans: {done} segmented, {there} were there, {len(failures)} failed")
    print(f"{manifest.file}, look at {options.out}/*.png")
    return {**failures, **as_failures(lost)}


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


def segment(
    predictor: Predictor, todo: Mapping[str, Job], manifest: Manifest, options: argparse.Namespace
) -> tuple[dict[str, str], int]:
    """Segment what is not on record; returns what went wrong by name, and how many scans were there."""
    failures: dict[str, str] = {}
    there, organs = 0, len(predictor.organs)
    with tqdm(total=len(todo) * organs, unit="organ", disable=None) as bar:
        for place, (name, job) in enumerate(todo.items(), start=1):
            bar.set_description(name)
            try:
                sources = job.digests()
                if job.is_done(manifest.scans.get(name), sources):
                    there += 1
                else:
                    manifest.forget(name, job)
                    volumes = one_query(predictor, job, options, bar)
                    manifest.add(name, job.record(sources, millilitres=volumes))
            except UserError as error:
                failures[name] = str(error)
            except MemoryError:
                failures[name] = f"{job.sources[0]}: not enough memory for this scan"
            except Exception as error:  # libraries fail in many ways; one bad scan must not cost the others
                failures[name] = f"{job.sources[0]}: unexpected {type(error).__name__}: {error}"
            if name in failures and name not in manifest.scans:
                job.remove()  # no part of a result
            bar.update(place * organs - bar.n)
    return failures, there


def one_query(predictor: Predictor, job: Job, options: argparse.Namespace, bar: tqdm) -> dict[str, float]:
    """Segment one scan and write all its files; returns the volume of every organ in ml.

    If several organs claim a voxel, the highest probability wins.
    """
    files = job.sources
    image, _ = read_image(files)
    preparation = predictor.preparation
    warn(f"{files[0]}: {doubt}" for doubt in image.doubts)
    require_training_values(image, preparation.plan, preparation.values, files[0], prepared=options.prepared)
    labels_file, picture, *probability_files = job.outputs
    best = np.full(image.array.shape, 0.5, np.float32)
    labels = np.zeros(image.array.shape, np.uint8 if max(predictor.organs) < 256 else np.int16)
    for place, (identifier, probability) in enumerate(predictor.probabilities(image, prepared=options.prepared)):
        if probability_files:
            save_on_grid_of(files, image, probability_files[place], probability)
        wins = probability > best
        labels[wins], best[wins] = identifier, probability[wins]
        bar.update()
    labels = cleaned(labels, largest_component=options.largest_component, fill_holes=options.fill_holes)
    shown = [Volume(array, image.geometry) for array in (image.array, labels)]
    if preparation.axial:  # other planes are shown as the method saw them
        shown = [along_axes(volume, AXIAL) for volume in shown]
    draw_sheet(picture, *shown, predictor.organs)
    save_on_grid_of(files, image, labels_file, labels)
    voxel = float(np.prod(image.geometry.spacing)) / 1000
    return {name: round(int((labels == i).sum()) * voxel, 3) for i, name in predictor.organs.items()}


def settings(options: argparse.Namespace, members: Sequence[TrainedMethod], organs: Mapping[int, str]) -> dict:
    """What the segmentations depend on, for predictions.json."""
    same = ("pairing", "parts", "shots", "voting", "largest_component", "fill_holes", "prepared", "trust_label_voxels")
    return {
        "checkpoints": [member.sha256 for member in members],
        "supports": [sorted(map(digest, image_files(file))) for file in options.support_image],
        "support labels": [digest(file) for file in options.support_label],
        "organs": {str(identifier): name for identifier, name in organs.items()},
        **{name: getattr(options, name) for name in same},
    }


def command_line() -> argparse.ArgumentParser:
    """The options."""
    command = parser(__doc__)
    several = {"type": Path, "nargs": "+", "required": True}
    command.add_argument(
        "--checkpoint", nargs="+", required=True, metavar="RUN", help="runs or checkpoints; several are averaged"
    )
    command.add_argument("--support-image", **several, metavar="FILE", help="annotated scans; several are averaged")
    command.add_argument(
        "--support-label", **several, metavar="FILE", help="their labels: whole numbers, 0 = background"
    )
    command.add_argument("--query", **several, metavar="PATH", help="scans to segment: files, or folders of any depth")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    command.add_argument("--organs", type=named_label, nargs="+", default=[], metavar="NAME=ID", help="(default: all)")
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
    command.add_argument("--prepared", action="store_true", help="intensities are the prepared training scans' already")
    command.add_argument(
        "--trust-label-voxels", action="store_true", help="labels lie on their images in spite of headers"
    )
    command.add_argument("--device", default="auto", help="cpu, cuda, cuda:1")
    command.add_argument("--threads", type=at_least(0), default=0, help="CPU threads (default: as many as cores)")
    command.add_argument("--memory-gb", type=float, default=0.0, help="3D methods: patches, so that this is enough")
    command.add_argument("--overwrite", action="store_true", help="segment again what OUT holds")
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = command_line().parse_args(arguments)
    return guarded(lambda: predict(options))


if __name__ == "__main__":
    sys.exit(main())
