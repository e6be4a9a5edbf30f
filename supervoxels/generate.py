"""Make the supervoxels of a data set: one file a scan, in parallel, resumable (spec supervoxels 2.10).

    python -m supervoxels.generate CHAOST2 --data-root data
    python -m supervoxels.generate data/CMR/cmr_MR_normalized data/CMR/supervoxels_1000 --min-size 1000 --jobs 4

Every `image_<N>.nii.gz` becomes a `superpix-MIDDLE_<N>.nii.gz` (int32, 0 = background) with the geometry of the scan.
Files appear whole or not at all; a second run makes only what is missing. `parameters.json` beside them says how they
were made, and a run with other parameters is refused: supervoxels of two kinds never mix.
"""

import argparse
import contextlib
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import joblib
import SimpleITK as sitk
from tqdm import tqdm

from supervoxels.segmentation import supervoxels
from util.errors import UserError
from util.files import whole_file
from util.volume import read_volume, write_volume

IMAGE_NAME = re.compile(r"image_(\d+)\.nii\.gz")
OUTPUT_NAME = re.compile(r"superpix-MIDDLE_(\d+)\.nii\.gz")
# loaders pick up everything called super*, so this file must not be
MANIFEST = "parameters.json"

# peak memory of one scan, measured with benchmarks/supervoxels.py and rounded up; the rest is Python with its libraries
BYTES_PER_VOXEL = {"stable": 80, "legacy": 520}
BYTES_PER_WORKER = 250 << 20


@dataclass(frozen=True)
class Parameters:
    """Everything the labels depend on."""

    min_size: int
    scale: float = 1.0
    sigma: float = 0.0
    fg_threshold: float = 10.0
    order: str = "stable"


def generate(
    images: Path,
    out: Path,
    parameters: Parameters,
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
    failures = {}
    with workers(backend, jobs, scheduler) as work:
        tasks = (joblib.delayed(work)(scans[n], outputs[n], parameters, threads) for n in waiting)
        # a generator: each result arrives when it is ready, which is what moves the bar
        results = joblib.Parallel(n_jobs=jobs, return_as="generator")(tasks)
        for number, failure in zip(waiting, tqdm(results, total=len(waiting), unit="scan", disable=None), strict=True):
            if failure:
                failures[number] = failure
    return failures


def generate_one(image: Path, output: Path, parameters: Parameters, threads: int) -> str | None:
    """Make one file. A failure is returned as a sentence: one bad scan must not stop the others."""
    try:
        scan = read_volume(image)
        x, y, z = scan.geometry.spacing
        options = asdict(parameters) | {"spacing": (z, x, y), "threads": threads}
        write_volume(output, supervoxels(scan.array, **options), scan.geometry)
    except UserError as error:
        return str(error)
    except ValueError as error:
        return f"{image}: {error}"
    except MemoryError:
        return f"{image}: not enough memory; run again with fewer --jobs or a --max-memory"
    return None


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


def claim_folder(out: Path, parameters: Parameters, overwrite: bool) -> None:
    """Check that what `out` holds was made with `parameters`, and write them down where it is new or to be overwritten.

    Old files go before the new parameters are written: no interrupted run leaves one kind under the other's name.
    """
    manifest = out / MANIFEST
    existing = numbered(out, OUTPUT_NAME) if out.is_dir() else {}
    found = read_manifest(manifest)
    if overwrite:
        for path in existing.values():
            path.unlink()
    elif found is None and existing:
        raise UserError(f"{out}: holds {len(existing)} supervoxel file(s) without {MANIFEST}, so they were not made by "
                        "this command; choose another folder, or replace them with --overwrite")  # fmt: skip
    elif found is not None and found != asdict(parameters):
        wanted = asdict(parameters)
        differing = ", ".join(f"{key} {found.get(key)} and not {wanted.get(key)}"
                              for key in sorted(found | wanted) if found.get(key) != wanted.get(key))  # fmt: skip
        raise UserError(f"{out}: was made with other parameters ({differing}); choose another folder, or replace its "
                        "files with --overwrite")  # fmt: skip
    with whole_file(manifest) as temporary:
        temporary.write_text(json.dumps(asdict(parameters), indent=2) + "\n")


def read_manifest(manifest: Path) -> dict | None:
    """The parameters a folder was made with, None where none are written down."""
    try:
        content = json.loads(manifest.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{manifest}: cannot be read ({error}); delete it and use --overwrite") from error
    return content if isinstance(content, dict) else {}


def worker_count(
    images: list[Path], parameters: Parameters, jobs: int | None, threads: int, max_memory: int | None
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


def from_data_set(name: str, data_root: Path) -> tuple[Path, Path, int]:
    """Folders and minimum size of a data set that config.py describes."""
    # The one place where supervoxels/ looks upwards: it is a library to config.py, and only the command line, when it
    # is given a name, asks config.py for the facts behind that name. Imported here so that the library never needs it.
    from config import DATASETS

    if name not in DATASETS:
        raise UserError(f"{name}: no such data set, config.py knows {', '.join(sorted(DATASETS))}; to use folders, "
                        "give both IMAGES and OUT")  # fmt: skip
    facts = DATASETS[name]
    return data_root / facts.images, data_root / facts.supervoxels, facts.supervoxel_size


def byte_count(text: str) -> int:
    """`4G`, `500M`, `80000K` or plain bytes as a number."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount of memory such as 4G or 500M")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def positive(text: str) -> int:
    """A whole number, 1 or larger."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 1 or larger")
    return int(text)


def command_line() -> argparse.ArgumentParser:
    """The options of `python -m supervoxels.generate`."""
    about, examples = __doc__.split("\n\n", 1)
    parser = argparse.ArgumentParser(
        prog="python -m supervoxels.generate", description=about, epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument(
        "images", metavar="IMAGES",
        help="folder of image_<N>.nii.gz; or, without OUT, the name of a data set in config.py, which then gives both "
        "folders and the minimum size")  # fmt: skip
    parser.add_argument("out", metavar="OUT", nargs="?", type=Path, help="folder for superpix-MIDDLE_<N>.nii.gz")
    parser.add_argument("--data-root", type=Path, default=Path("data"), metavar="FOLDER",
                        help="with a data set's name: where CHAOST2/, SABS/, ... are (default: data)")  # fmt: skip
    labels = parser.add_argument_group("what is made")
    labels.add_argument("--min-size", type=positive, metavar="VOXELS",
                        help="smallest supervoxel; the papers use 5000 (abdomen) and 1000 (heart)")  # fmt: skip
    labels.add_argument("--scale", type=float, default=1.0, help="hardly matters below some hundreds (default: 1)")
    labels.add_argument("--sigma", type=float, default=0.0, help="Gaussian smoothing first, in mm (default: 0, none)")
    labels.add_argument("--fg-threshold", type=float, default=10.0, metavar="INTENSITY",
                        help="the body is what is brighter, on a range of 0..255 (default: 10)")  # fmt: skip
    labels.add_argument(
        "--order",
        choices=("stable", "legacy"),
        default="stable",
        help="how ties are broken; legacy gives the published files, slowly (default: stable)",
    )
    labels.add_argument("--overwrite", action="store_true", help="replace the supervoxel files OUT already holds")
    work = parser.add_argument_group("how the work is done (same files in any case)")
    work.add_argument("--jobs", type=positive, metavar="N", help="scans at once (default: as many as processors)")
    work.add_argument("--threads", type=positive, default=1, metavar="N", help="threads within a scan (default: 1)")
    work.add_argument("--max-memory", type=byte_count, metavar="SIZE", help="as 4G: no more scans at once than fit")
    work.add_argument("--backend", choices=("loky", "threading", "dask"), default="loky",
                      help="processes, threads, or Dask (pip install distributed; default: loky)")  # fmt: skip
    work.add_argument("--scheduler", metavar="ADDRESS",
                      help="with dask: the scheduler of a running cluster that sees the same folders, such as "
                      "tcp://host:8786 (default: a cluster on this machine)")  # fmt: skip
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status is 0 where every scan has its supervoxels."""
    parser = command_line()
    options = parser.parse_args(arguments)
    try:
        if options.out is None:
            if options.min_size is not None:
                parser.error("config.py says a data set's minimum size; for another give IMAGES, OUT and --min-size")
            images, out, min_size = from_data_set(options.images, options.data_root)
        elif options.min_size is None:
            parser.error("--min-size is needed with folders: 5000 for the abdominal sets, 1000 for the cardiac one")
        else:
            images, out, min_size = Path(options.images), options.out, options.min_size
        parameters = Parameters(min_size, options.scale, options.sigma, options.fg_threshold, options.order)
        failures = generate(
            images, out, parameters, jobs=options.jobs, threads=options.threads, max_memory=options.max_memory,
            backend=options.backend, scheduler=options.scheduler, overwrite=options.overwrite)  # fmt: skip
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the files that are there are whole, run the same command to make the rest", file=sys.stderr)
        return 130
    for number, failure in failures.items():
        print(f"scan {number} failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
