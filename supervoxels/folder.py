"""The supervoxels or superpixels of a folder of scans: in parallel, resumable, within a given memory."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import joblib
import numpy as np
import SimpleITK as sitk

from supervoxels.segmentation import supervoxels
from supervoxels.superpixels import superpixels
from util.dataset import Dataset
from util.errors import UserError
from util.files import hindrance, utf8_name
from util.finding import as_failures, few, numbered
from util.manifest import Job, open_manifest
from util.parallel import PROCESSES, Backend, each_scan
from util.volume import Volume, read_volume, write_volume

OUTPUT = "superpix-MIDDLE"
# loaders pick up everything called super*, so this file must not be
MANIFEST = "parameters.json"

# peak memory of one scan, measured with benchmarks/supervoxels.py and rounded up; the rest is Python with its libraries
BYTES_PER_VOXEL = {"stable": 80, "published": 520, "slices": 40}
BYTES_PER_WORKER = 250 << 20


@dataclass(frozen=True)
class Parameters:
    """Everything the labels of supervoxels depend on."""

    min_size: int
    scale: float = 1.0
    sigma: float = 0.0
    fg_threshold: float = 10.0
    order: str = "stable"

    def labels(self, scan: Volume, threads: int) -> np.ndarray:
        """Supervoxels `(D, H, W)` of a scan."""
        x, y, z = scan.geometry.spacing
        return supervoxels(scan.array, **asdict(self), spacing=(z, x, y), threads=threads)


@dataclass(frozen=True)
class SliceParameters:
    """Everything the labels of 2D superpixels depend on [alpnet 3.6]."""

    threshold: float
    min_size: int = 400
    sigma: float = 1.0
    published: bool = False
    order: str = "slices"

    def labels(self, scan: Volume, threads: int) -> np.ndarray:
        """Superpixels `(D, H, W)` of every slice of a scan."""
        return superpixels(scan.array, self.threshold, self.min_size, self.sigma, self.published)


def generate(
    images: Path,
    out: Path,
    parameters: Parameters | SliceParameters,
    *,
    jobs: int | None = None,
    threads: int = 1,
    max_memory: int | None = None,
    backend: Backend = PROCESSES,
    overwrite: bool = False,
    wait: bool = False,
) -> dict[int | str, str]:
    """Make the missing supervoxels of every scan in `images` and return what went wrong: `{scan number: sentence}`.

    Args:
        images, out: folders.
        parameters: everything the labels depend on.
        jobs, threads, max_memory, backend: how the work is done.
        overwrite: replace what is there.
        wait: for another process that works there.

    Raises:
        UserError: the folder holds no scan, `out` was made with other parameters, or one scan exceeds `max_memory`.
    """
    scans, remarks, lost = numbered(images, "image")
    print(*remarks, sep="\n", end="\n" * bool(remarks), file=sys.stderr)
    if not scans:
        raise UserError(f"{images}: no image_<number>.nii.gz in this folder; prepare the data set first; {few(lost)}")
    todo = {str(n): Job(images, (scan,), out, (out / f"{OUTPUT}_{n}.nii.gz",)) for n, scan in scans.items()}
    existing, failures = out.glob(f"{OUTPUT}_*.nii.gz"), as_failures(lost)
    facts, how = asdict(parameters), {"existing": existing, "overwrite": overwrite, "wait": wait}
    with open_manifest(out / MANIFEST, facts, todo, **how) as manifest:
        sources: dict[str, dict[str, str]] = {}
        for name, job in todo.items():
            try:
                sources[name] = job.digests()
            except UserError as error:
                failures[int(name)] = str(error)
        waiting = {n: todo[n] for n in sources if not todo[n].is_done(manifest.scans.get(n), sources[n])}
        if len(waiting) < len(sources):
            print(f"{out}: {len(sources) - len(waiting)} of {len(scans)} scans are done already", file=sys.stderr)
        if not waiting:
            return failures
        jobs = worker_count([job.sources[0] for job in waiting.values()], parameters, jobs, threads, max_memory)
        for name, job in waiting.items():
            manifest.forget(name, job)
        tasks = {name: (job, sources[name], parameters, threads) for name, job in waiting.items()}
        title = "superpixels" if isinstance(parameters, SliceParameters) else "supervoxels"
        for name, done in each_scan(generate_one, tasks, jobs, title, lambda job, *_: job.sources[0], backend):
            if done.failure:
                failures[int(name)] = done.failure
            else:
                manifest.add(name, done.result)
    return failures


def parameters_of(dataset: Dataset, kind: str) -> Parameters | SliceParameters:
    """Those of a data set's "supervoxels" or "superpixels"."""
    if kind == "superpixels":
        return SliceParameters(dataset.patient_threshold)
    return Parameters(dataset.supervoxel_size)


def complete(dataset: Dataset, root: Path, kind: str, numbers: Sequence[int], spare: Path) -> Dataset:
    """Make the "supervoxels" or "superpixels" of a data set if some of these scans have none.

    Args:
        dataset, root, kind, numbers: what is wanted.
        spare: folder below which they are made if nothing can be written beside the scans.

    Returns:
        The data set, which knows where they are.

    Raises:
        UserError: a scan cannot be read or cut, or neither folder can be written.
    """
    folder = dataset.segment_folder(root, kind)
    elsewhere = replace(dataset, **{kind: str((spare / folder.name).resolve())})
    if not (missing := _missing(dataset, root, kind, numbers)):
        return dataset
    if not _missing(elsewhere, root, kind, numbers):
        return elsewhere
    said = f"{folder}: no {kind} of {missing} scans yet, making them"
    if why := hindrance(folder):
        dataset, folder = elsewhere, elsewhere.segment_folder(root, kind)
        said += f" in {folder}, for nothing can be written there ({why})"
    print(said, file=sys.stderr)
    failures = generate(root / dataset.images, folder, parameters_of(dataset, kind), wait=True)
    if lost := [number for number in numbers if number in failures]:
        raise UserError(failures[lost[0]])
    return dataset


def _missing(dataset: Dataset, root: Path, kind: str, numbers: Sequence[int]) -> int:
    """How many of the scans have no segments."""
    return sum(not dataset.segment_file(root, number, kind).is_file() for number in numbers)


def generate_one(job: Job, sources: Mapping[str, str], parameters: Parameters | SliceParameters, threads: int) -> dict:
    """Make one file; returns what is put on record.

    Raises:
        UserError: the scan cannot be read or cut into supervoxels, or the file cannot be written.
    """
    image, output = job.sources[0], job.outputs[0]
    scan = read_volume(image)
    try:
        labels = parameters.labels(scan, threads)
    except ValueError as error:
        raise UserError(f"{image}: {error}") from error
    if not labels.any():
        raise UserError(f"{image}: {_nothing(scan.array)}")
    write_volume(output, labels, scan.geometry)
    return job.record(sources)


def _nothing(image: np.ndarray) -> str:
    if image.min() == image.max():
        return f"every voxel has the value {image.min():g}, there is nothing to make supervoxels of"
    return f"its values, {image.min():g} to {image.max():g}, are nowhere above the threshold; no supervoxel is left"


def worker_count(
    images: list[Path], parameters: Parameters | SliceParameters, jobs: int | None, threads: int, max_memory: int | None
) -> int:
    """Number of scans worked on at once: what was asked for or the processor has, within the memory allowed."""
    count = min(len(images), jobs or max(1, joblib.cpu_count() // threads))
    if max_memory is None:
        return count
    need = BYTES_PER_WORKER + BYTES_PER_VOXEL[parameters.order] * max(map(voxel_count, images))
    if need > max_memory:
        raise UserError(f"--max-memory {max_memory / 2**20:.0f}M: the largest scan alone needs {need / 2**20:.0f}M")
    return min(count, max_memory // need)


def voxel_count(path: Path) -> int:
    """Number of voxels a header tells; 0 for a file that cannot be read, which fails cheaply later."""
    reader = sitk.ImageFileReader()
    try:
        reader.SetFileName(utf8_name(path))
        reader.ReadImageInformation()
    except (RuntimeError, UserError):
        return 0
    return math.prod(reader.GetSize())
