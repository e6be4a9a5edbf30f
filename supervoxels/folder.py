"""The supervoxels or superpixels of a folder of scans: in parallel, resumable, within a given memory.

Files appear whole or not at all; a second run makes only what is missing. `parameters.json` beside them says how they
were made, and a run with other parameters is refused: labels of two kinds never mix.
"""

import contextlib
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import joblib
import numpy as np
import SimpleITK as sitk

from supervoxels.segmentation import supervoxels
from supervoxels.superpixels import superpixels
from util.errors import UserError
from util.files import write_text
from util.parallel import each_scan
from util.volume import Volume, read_volume, write_volume

IMAGE_NAME = re.compile(r"image_(\d+)\.nii\.gz")
OUTPUT_NAME = re.compile(r"superpix-MIDDLE_(\d+)\.nii\.gz")
# loaders pick up everything called super*, so this file must not be
MANIFEST = "parameters.json"

# peak memory of one scan, measured with benchmarks/supervoxels.py and rounded up; the rest is Python with its libraries
BYTES_PER_VOXEL = {"stable": 80, "legacy": 520, "slices": 40}
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
    backend: str = "loky",
    scheduler: str | None = None,
    overwrite: bool = False,
) -> dict[int, str]:
    """Make the missing supervoxels of every scan in `images` and return what went wrong: `{scan number: sentence}`.

    Raises
    ------
    UserError
        The folder holds no scan, `out` was made with other parameters, or one scan alone exceeds `max_memory`.
    """
    scans = numbered(images, IMAGE_NAME)
    if not scans:
        raise UserError(f"{images}: no image_<number>.nii.gz in this folder; prepare the data set first")
    claim_folder(out, parameters, overwrite)
    outputs = {number: out / f"superpix-MIDDLE_{number}.nii.gz" for number in scans}
    waiting = [number for number in scans if not is_done(scans[number], outputs[number])]
    if len(waiting) < len(scans):
        print(f"{out}: {len(scans) - len(waiting)} of {len(scans)} scans are done already", file=sys.stderr)
    if not waiting:
        return {}
    jobs = worker_count([scans[number] for number in waiting], parameters, jobs, threads, max_memory)
    with workers(backend, jobs, scheduler) as work:
        tasks = {number: (scans[number], outputs[number], parameters, threads) for number in waiting}
        return {number: done.failure for number, done in each_scan(work, tasks, jobs) if done.failure}


def generate_one(image: Path, output: Path, parameters: Parameters | SliceParameters, threads: int) -> None:
    """Make one file.

    Raises
    ------
    UserError
        The scan cannot be read or cut into supervoxels, or the file cannot be written.
    """
    scan = read_volume(image)
    try:
        labels = parameters.labels(scan, threads)
    except ValueError as error:
        raise UserError(f"{image}: {error}") from error
    write_volume(output, labels, scan.geometry)


def numbered(folder: Path, name: re.Pattern) -> dict[int, Path]:
    """Files of `folder` whose whole name matches, in increasing order of their number."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    matches = ((name.fullmatch(path.name), path) for path in folder.iterdir())
    return dict(sorted((int(match[1]), path) for match, path in matches if match))


def is_done(image: Path, output: Path) -> bool:
    """True where `output` is at least as new as `image` and its header tells the same shape.

    Headers are enough, because files appear whole or not at all.
    """
    try:
        return output.stat().st_mtime >= image.stat().st_mtime and shape(output) == shape(image)
    except (OSError, RuntimeError):
        return False


def shape(path: Path) -> tuple[int, ...]:
    """Size `(x, y, z)` of a volume, read from its header alone."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader.GetSize()


def claim_folder(out: Path, parameters: Parameters | SliceParameters, overwrite: bool) -> None:
    """Check that what `out` holds was made with `parameters`, and write them down if it is new or to be overwritten.

    Old files go before the new parameters are written: no interrupted run leaves one kind under the other's name.
    """
    manifest = out / MANIFEST
    existing = numbered(out, OUTPUT_NAME) if out.is_dir() else {}
    found = read_manifest(manifest)
    if overwrite:
        for path in existing.values():
            path.unlink()
    elif found is None and existing:
        raise UserError(
            f"{out}: holds {len(existing)} supervoxel file(s) without {MANIFEST}, so they were not made by "
            "this command; choose another folder, or replace them with --overwrite"
        )
    elif found is not None and found != asdict(parameters):
        wanted = asdict(parameters)
        differing = ", ".join(
            f"{key} {found.get(key)} and not {wanted.get(key)}"
            for key in sorted(found | wanted)
            if found.get(key) != wanted.get(key)
        )
        raise UserError(
            f"{out}: was made with other parameters ({differing}); choose another folder, or replace its "
            "files with --overwrite"
        )
    write_text(manifest, json.dumps(asdict(parameters), indent=2) + "\n")


def read_manifest(manifest: Path) -> dict | None:
    """The parameters a folder was made with, None if none are written down."""
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{manifest}: cannot be read ({error}); delete it and use --overwrite") from error
    return content if isinstance(content, dict) else {}


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
    try:
        x, y, z = shape(path)
    except (RuntimeError, ValueError):
        return 0
    return x * y * z


@contextlib.contextmanager
def workers(backend: str, jobs: int, scheduler: str | None) -> Iterator[Callable]:
    """Choose who runs the tasks: processes or threads of this machine, or a Dask cluster. Yields the task to run."""
    if backend == "dask":
        with dask_client(jobs, scheduler) as client, joblib.parallel_config(backend="dask", client=client):
            yield generate_one
        return
    with joblib.parallel_config(backend=backend, n_jobs=jobs):
        if backend == "loky":
            yield generate_one
            return
        places = threading.Semaphore(jobs)

        def in_a_place(*arguments):
            with places:
                return generate_one(*arguments)

        try:
            yield in_a_place
        except KeyboardInterrupt:
            # Python must not end while a thread is inside the kernel or a writer: let them finish, and no other begin
            for _ in range(jobs):
                places.acquire()
            raise


def dask_client(jobs: int, scheduler: str | None):
    """A client of the cluster at `scheduler`, or of a new one with `jobs` processes on this machine."""
    try:
        from distributed import Client
    except ImportError as error:
        raise UserError("--backend dask needs Dask: pip install distributed") from error
    if scheduler is None:
        return Client(n_workers=jobs, threads_per_worker=1, dashboard_address=None)
    try:
        return Client(scheduler, timeout=30)
    except (OSError, ValueError) as error:
        raise UserError(f"--scheduler {scheduler}: cannot be reached ({error})") from error
