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
from util.commands import add_backend, backend_of, guarded, parser, positive
from util.errors import UserError


def byte_count(text: str) -> int:
    """`4G`, `500M`, `80000K` or plain bytes as a number."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount of memory such as 4G or 500M")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def command_line() -> argparse.ArgumentParser:
    """The options of `python -m supervoxels.generate`."""
    command = parser(__doc__, "python -m supervoxels.generate")
    help_text = "folder of image_<N>.nii.gz; or, without OUT, a data set of config.py, which says the rest"
    command.add_argument("images", metavar="IMAGES", help=help_text)
    command.add_argument("out", metavar="OUT", nargs="?", type=Path, help="folder for superpix-MIDDLE_<N>.nii.gz")
    help_text = "with a data set's name: where CHAOST2/, SABS/, ... are (default: data)"
    command.add_argument("--data-root", type=Path, default=Path("data"), metavar="FOLDER", help=help_text)
    add = command.add_argument_group("what is made").add_argument
    help_text = "smallest supervoxel; the papers use 5000 (abdomen) and 1000 (heart)"
    add("--min-size", type=positive, metavar="VOXELS", help=help_text)
    add("--scale", type=float, default=1.0, help="hardly matters below some hundreds (default: 1)")
    add("--sigma", type=float, default=0.0, help="Gaussian smoothing first, in mm (default: 0, none)")
    help_text = "the body is what is brighter, on a range of 0..255 (default: 10)"
    add("--fg-threshold", type=float, default=10.0, metavar="INTENSITY", help=help_text)
    add("--slices", action="store_true", help="2D superpixels of every slice instead, as ALPNet uses")
    help_text = "with --slices: the patient is what is brighter: 50.0001 for MR, 0.0001 for windowed CT"
    add("--patient-threshold", type=float, metavar="INTENSITY", help=help_text)
    help_text = "as the published scripts: ties broken by an unstable sort (slow); with --slices: numbers with gaps"
    add("--published", action="store_true", help=help_text)
    add("--overwrite", action="store_true", help="replace the supervoxel files OUT already holds")
    add = command.add_argument_group("how the work is done (same files in any case)").add_argument
    add("--jobs", type=positive, metavar="N", help="scans at once (default: as many as processors)")
    add("--threads", type=positive, default=1, metavar="N", help="threads within a scan (default: 1)")
    add("--max-memory", type=byte_count, metavar="SIZE", help="as 4G: no more scans at once than fit")
    add_backend(add)
    return command


def what_to_make(
    command: argparse.ArgumentParser, options: argparse.Namespace
) -> tuple[Path, Path, Parameters | SliceParameters]:
    """Folders and parameters, from the options alone or from the data set that they name."""
    without_effect = {
        "data_root": options.out and "OUT",
        "patient_threshold": not (options.out and options.slices) and "a data set's name or without --slices",
        **dict.fromkeys(("scale", "sigma", "fg_threshold"), options.slices and "--slices"),
    }
    for name, where in without_effect.items():
        if where and getattr(options, name) != command.get_default(name):
            command.error(f"--{name.replace('_', '-')} has no effect with {where}")
    images, out, size, threshold = Path(options.images), options.out, options.min_size, options.patient_threshold
    if out is None:
        if size is not None:
            command.error("config.py says a data set's minimum size; for another give IMAGES, OUT and --min-size")
        if options.images not in DATASETS:
            known = ", ".join(sorted(DATASETS))
            raise UserError(
                f"{images}: no such data set, config.py knows {known}; to use folders, give both IMAGES and OUT"
            )
        dataset = DATASETS[options.images]
        images, threshold = options.data_root / dataset.images, dataset.patient_threshold
        out = dataset.segment_folder(options.data_root, "superpixels" if options.slices else "supervoxels")
        size = None if options.slices else dataset.supervoxel_size
    if options.slices:
        if threshold is None:
            command.error("--patient-threshold is needed with folders: 50.0001 for MR, 0.0001 for windowed CT")
        return images, out, SliceParameters(threshold, size or SliceParameters.min_size, published=options.published)
    if size is None:
        command.error("--min-size is needed with folders: 5000 for the abdominal sets, 1000 for the cardiac one")
    order = "published" if options.published else "stable"
    return images, out, Parameters(size, options.scale, options.sigma, options.fg_threshold, order)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status is 0 if every scan has its supervoxels."""
    command = command_line()
    options = command.parse_args(arguments)

    work = {name: getattr(options, name) for name in ("jobs", "threads", "max_memory", "overwrite")}
    return guarded(lambda: generate(*what_to_make(command, options), **work, backend=backend_of(options)))


if __name__ == "__main__":
    sys.exit(main())
