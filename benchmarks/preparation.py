"""Time and peak memory of `data.sabs` on 30 synthetic CT scans of the real set's sizes.

    python benchmarks/preparation.py --jobs 2

Six scans are drawn (512 x 512 x 84 to 198, on average 126 slices as in SABS) and each stands for five; their files are
as large as real ones because of the noise. Drawing them takes longer than preparing them.
"""

import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from joblib.externals.loky import get_reusable_executor
from scipy.ndimage import zoom

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data import sabs
from data.phantom_raw import ABDOMEN, IDS, MIDDLE, SIGNAL, centred, patient_of, sample
from util.commands import parser
from util.volume import write_volume

SLICES = (147, 139, 198, 90, 84, 100)
COARSE = 128  # rows and columns that are drawn; four times as many are written


def write_raw(raw: Path, scans: int, size: int) -> None:
    """Draw the scans; every sixth file is a link to the same one."""
    names = list(sabs.NUMBER_OF)[:scans]
    for index, name in enumerate(names):
        for kind in ("img", "label"):
            (raw / kind).mkdir(parents=True, exist_ok=True)
            if index >= len(SLICES):
                original = raw / kind / f"{kind}{names[index % len(SLICES)]:04d}.nii.gz"
                os.link(original, raw / kind / f"{kind}{name:04d}.nii.gz")
        if index < len(SLICES):
            write_scan(raw, f"{name:04d}", index, (SLICES[index], size, size))


def write_scan(raw: Path, name: str, index: int, shape: tuple[int, int, int]) -> None:
    """One scan: drawn coarsely, enlarged, with fine noise."""
    patient, generator = patient_of("sabs", 1, index)
    axes, coarse = np.diag([1.0, -1.0, 1.0]), (shape[0] // 4, COARSE, COARSE)
    signal, label = sample(patient, centred(MIDDLE, axes, ABDOMEN, coarse), coarse, SIGNAL["sabs"])
    factors = [fine / rough for fine, rough in zip(shape, coarse, strict=True)]
    image = zoom(signal, factors, order=1) + 12 * generator.standard_normal(shape, np.float32)
    geometry = centred(MIDDLE, axes, ABDOMEN, shape)
    write_volume(raw / f"img/img{name}.nii.gz", image.astype(np.int16), geometry)
    write_volume(raw / f"label/label{name}.nii.gz", IDS["sabs"][zoom(label, factors, order=0)], geometry)


def main() -> None:
    """Draw, prepare, print."""
    command = parser(__doc__)
    command.add_argument("--jobs", type=int, default=2, help="processes")
    command.add_argument("--scans", type=int, default=30, help="number of scans")
    command.add_argument("--size", type=int, default=512, help="rows and columns of the raw scans")
    options = command.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        write_raw(raw, options.scans, options.size)
        for extra in ((), ("--published",)):
            start = time.perf_counter()
            arguments = [str(raw), str(Path(folder) / f"out{len(extra)}"), "--jobs", str(options.jobs), *extra]
            assert sabs.main(arguments) == 0
            seconds = time.perf_counter() - start
            get_reusable_executor().shutdown(wait=True)  # only processes that ended are counted below
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
            name = "published" if extra else "default"
            print(
                f"{name}: {options.scans} scans, {options.jobs} processes: {seconds:.0f} s, "
                f"{seconds / options.scans:.1f} s per scan, peak of a process {peak:.0f} MiB"
            )


if __name__ == "__main__":
    main()
