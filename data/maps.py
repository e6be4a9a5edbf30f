"""Make or remove the memory maps of a data set's scans, which trainings otherwise make on first use.

    python -m data.maps CHAOST2 --data-root data
    python -m data.maps CHAOST2 --segments superpixels --labels
    python -m data.maps CHAOST2 --remove

A training reads slices from them, so its memory does not grow with the number of scans. They take the space of the
unpacked scans. Maps are made again where a scan has changed.
"""

import argparse
import sys
from pathlib import Path

from data.check import find
from dataloaders.maps import Maps, maps_folder, remove
from supervoxels.folder import complete
from util.commands import add_backend, backend_of, guarded, jobs, parser


def work(options: argparse.Namespace) -> int:
    """Make them, or remove them."""
    dataset, _ = find(options.dataset)
    folder = maps_folder(dataset, options.data_root, options.maps)
    if options.remove:
        print(f"{folder}: {remove(folder)} files removed")
        return 0
    numbers = dataset.scans(options.data_root)
    dataset = complete(dataset, options.data_root, options.segments, numbers, folder)
    how = {"jobs": options.jobs, "backend": backend_of(options)}
    Maps(folder, dataset, options.data_root, numbers, options.segments, labels=options.labels, **how)
    size = sum(file.stat().st_size for file in folder.glob("*.npy"))
    print(f"{folder}: {len(numbers)} scans, {size / 2**30:.2f} GiB")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    command = parser(__doc__, "python -m data.maps")
    command.add_argument("dataset", metavar="DATASET", help="a row of DATASETS in config.py, or a .json file")
    folder = {"type": Path, "metavar": "FOLDER"}
    help_text = "holds CHAOST2/, SABS/, ... (default: data)"
    command.add_argument("--data-root", default=Path("data"), help=help_text, **folder)
    help_text = "where trainings look for maps: their maps=..., or RUNS/maps (default: runs/maps)"
    command.add_argument("--maps", default=Path("runs/maps"), help=help_text, **folder)
    kinds = ("supervoxels", "superpixels")
    command.add_argument("--segments", choices=kinds, default="supervoxels", help="maps of which")
    command.add_argument("--labels", action="store_true", help="for setting=2: which organs a slice shows")
    command.add_argument("--jobs", type=jobs, default=-1, help="scans at once (default: one per core)")
    add_backend(command.add_argument)
    command.add_argument("--remove", action="store_true", help="remove all maps of this data set")
    options = command.parse_args(arguments)
    return guarded(lambda: work(options))


if __name__ == "__main__":
    sys.exit(main())
