"""Make the supervoxels of a data set: one file per scan, in parallel, resumable [supervoxels 2.10].

    python -m supervoxels.generate CHAOST2 --data-root data
    python -m supervoxels.generate CHAOST2 --slices
    python -m supervoxels.generate data/CMR/cmr_MR_normalized data/CMR/supervoxels_1000 --min-size 1000 --jobs 4

Every `image_<N>.nii.gz` becomes a `superpix-MIDDLE_<N>.nii.gz` (int32, 0 = background) with the geometry of the scan.
Files appear whole or not at all; a second run makes only what is missing. `parameters.json` beside them says how they
were made, and a run with other parameters is refused: supervoxels of two kinds never mix.
"""

import argparse
import re
import sys
from pathlib import Path

from config import DATASETS
from supervoxels.folder import Parameters, SliceParameters, generate
from util.commands import guarded, parser, positive
from util.dataset import Dataset
from util.errors import UserError


def from_data_set(name: str) -> Dataset:
    """The row of config.py that describes a data set."""
    if name not in DATASETS:
        raise UserError(
            f"{name}: no such data set, config.py knows {', '.join(sorted(DATASETS))}; to use folders, "
            "give both IMAGES and OUT"
        )
    return DATASETS[name]


def byte_count(text: str) -> int:
    """`4G`, `500M`, `80000K` or plain bytes as a number."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount of memory such as 4G or 500M")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def command_line() -> argparse.ArgumentParser:
    """The options of `python -m supervoxels.generate`."""
    command = parser(__doc__, "python -m supervoxels.generate")
    command.add_argument(
        "images",
        metavar="IMAGES",
        help="folder of image_<N>.nii.gz; or, without OUT, the name of a data set in config.py, which then gives both "
        "folders and the minimum size",
    )
    command.add_argument("out", metavar="OUT", nargs="?", type=Path, help="folder for superpix-MIDDLE_<N>.nii.gz")
    command.add_argument(
        "--data-root",
        type=Path,
        default=Path("data"),
        metavar="FOLDER",
        help="with a data set's name: where CHAOST2/, SABS/, ... are (default: data)",
    )
    labels = command.add_argument_group("what is made")
    labels.add_argument(
        "--min-size",
        type=positive,
        metavar="VOXELS",
        help="smallest supervoxel; the papers use 5000 (abdomen) and 1000 (heart)",
    )
    labels.add_argument("--scale", type=float, default=1.0, help="hardly matters below some hundreds (default: 1)")
    labels.add_argument("--sigma", type=float, default=0.0, help="Gaussian smoothing first, in mm (default: 0, none)")
    labels.add_argument(
        "--fg-threshold",
        type=float,
        default=10.0,
        metavar="INTENSITY",
        help="the body is what is brighter, on a range of 0..255 (default: 10)",
    )
    labels.add_argument("--slices", action="store_true", help="2D superpixels of every slice instead, as ALPNet uses")
    labels.add_argument(
        "--patient-threshold",
        type=float,
        metavar="INTENSITY",
        help="with --slices: the patient is what is brighter: 50.0001 for MR, 0.0001 for windowed CT",
    )
    labels.add_argument(
        "--published",
        action="store_true",
        help="as the published scripts: ties broken by an unstable sort (slow); with --slices: numbers with gaps",
    )
    labels.add_argument("--overwrite", action="store_true", help="replace the supervoxel files OUT already holds")
    work = command.add_argument_group("how the work is done (same files in any case)")
    work.add_argument("--jobs", type=positive, metavar="N", help="scans at once (default: as many as processors)")
    work.add_argument("--threads", type=positive, default=1, metavar="N", help="threads within a scan (default: 1)")
    work.add_argument("--max-memory", type=byte_count, metavar="SIZE", help="as 4G: no more scans at once than fit")
    work.add_argument(
        "--backend",
        choices=("loky", "threading", "dask"),
        default="loky",
        help="processes, threads, or Dask (pip install distributed; default: loky)",
    )
    work.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="with dask: the scheduler of a running cluster that sees the same folders, such as "
        "tcp://host:8786 (default: a cluster on this machine)",
    )
    return command


def what_to_make(
    command: argparse.ArgumentParser, options: argparse.Namespace
) -> tuple[Path, Path, Parameters | SliceParameters]:
    """Folders and parameters, from the options alone or from the data set that they name."""
    size, threshold = options.min_size, options.patient_threshold
    if options.out is None:
        if size is not None:
            command.error("config.py says a data set's minimum size; for another give IMAGES, OUT and --min-size")
        facts = from_data_set(options.images)
        images, threshold = options.data_root / facts.images, facts.patient_threshold
        out = facts.segment_folder(options.data_root, "superpixels" if options.slices else "supervoxels")
        size = None if options.slices else facts.supervoxel_size
    else:
        images, out = Path(options.images), options.out
    if options.slices:
        if threshold is None:
            command.error("--patient-threshold is needed with folders: 50.0001 for MR, 0.0001 for windowed CT")
        return images, out, SliceParameters(threshold, size or SliceParameters.min_size, published=options.published)
    if size is None:
        command.error("--min-size is needed with folders: 5000 for the abdominal sets, 1000 for the cardiac one")
    order = "legacy" if options.published else "stable"
    return images, out, Parameters(size, options.scale, options.sigma, options.fg_threshold, order)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status is 0 if every scan has its supervoxels."""
    command = command_line()
    options = command.parse_args(arguments)

    def work() -> dict[int, str]:
        images, out, parameters = what_to_make(command, options)
        return generate(
            images,
            out,
            parameters,
            jobs=options.jobs,
            threads=options.threads,
            max_memory=options.max_memory,
            backend=options.backend,
            scheduler=options.scheduler,
            overwrite=options.overwrite,
        )

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
