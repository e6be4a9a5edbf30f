"""PHANTOM: synthetic abdominal MR with labels, so that everything runs and can be tested without a download.

`data.parts.anatomy` draws a patient and says what lies where; here one acquisition is rendered, a T2-weighted,
fat-suppressed MR as in CHAOST2: contrast, thick slices, texture, blur, coil sensitivity, Rician noise.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from data.parts.anatomy import draw_patient, sample
from util.commands import add_backend, at_least, backend_of, guarded, jobs, parser
from util.manifest import Job, open_manifest
from util.parallel import PROCESSES, Backend, each_scan
from util.volume import Geometry, write_volume

FIELD_OF_VIEW = (320.0, 320.0, 246.4)  # mm (x, y, z): 256 x 256 x 32 voxels of 1.25 x 1.25 x 7.7 mm, as CHAOST2
MIDDLE = np.array([0.0, 0.0, 28.0])  # mm, of the field of view, in the frame of data.parts.anatomy
FOLDER = "phantom_MR_normalized"
MANIFEST = "phantom.json"
VERSION = 3  # raised whenever the same parameters give other voxels, so that old and new scans are not mixed

# signal of each tissue: mean, spread between patients, spread between its pieces; kidneys are about 0.7
MR_CONTRAST = {
    "air": (0.0, 0.0, 0.0), "subcutaneous fat": (0.21, 0.07, 0.0), "muscle": (0.25, 0.05, 0.03),
    "visceral fat": (0.14, 0.05, 0.0), "lung": (0.04, 0.015, 0.0), "heart": (0.30, 0.08, 0.0),
    "liver": (0.33, 0.05, 0.0), "vein": (0.60, 0.10, 0.12), "spleen": (0.62, 0.12, 0.0),
    "cortex": (0.64, 0.09, 0.0), "medulla": (0.74, 0.08, 0.0), "renal sinus": (0.30, 0.08, 0.05),
    "gallbladder": (0.95, 0.15, 0.0), "pancreas": (0.36, 0.06, 0.0), "bowel wall": (0.40, 0.07, 0.04),
    "bowel content": (0.45, 0.08, 0.26), "colon content": (0.28, 0.08, 0.15), "stomach content": (0.55, 0.15, 0.1),
    "vessel wall": (0.35, 0.05, 0.0), "blood": (0.12, 0.06, 0.05), "bone": (0.24, 0.06, 0.0),
    "disc": (0.42, 0.12, 0.12), "cortical bone": (0.06, 0.02, 0.0), "cerebrospinal fluid": (1.05, 0.1, 0.0),
    "cord": (0.45, 0.06, 0.0),
}  # fmt: skip


@dataclass(frozen=True)
class Scan:
    """Image int16 and label uint8, both `(D, H, W)`, on one grid."""

    image: np.ndarray
    label: np.ndarray
    geometry: Geometry


def phantom_scan(seed: int, number: int, size: int = 256, slices: int = 32) -> Scan:
    """Patient `number` of the data set `seed`, both 0 or more: always the same one, whatever else is computed.

    `size` rows and columns, `slices` slices; the field of view stays, so fewer voxels are larger voxels.
    """
    anatomy, acquisition = np.random.default_rng(np.random.SeedSequence([seed, number])).spawn(2)
    patient = draw_patient(anatomy)
    geometry = _position(size, slices, acquisition)
    values = {tissue: (max(mean + between * acquisition.normal(), 0.0), within)
              for tissue, (mean, between, within) in MR_CONTRAST.items()}  # fmt: skip
    signal, label = sample(patient, geometry, (slices, size, size), values)
    return Scan(_acquire(signal, geometry.spacing[::-1], acquisition), label, geometry)


def _position(size: int, slices: int, generator: np.random.Generator) -> Geometry:
    """A grid laid over the trunk not quite centred; rows run from back to front as in CHAOST2."""
    spacing = np.array(FIELD_OF_VIEW) / (size, size, slices)
    centre = MIDDLE + generator.normal(0, (4, 4, 8)).clip(-12, 12)
    origin = centre + np.array([-1, 1, -1]) * (np.array(FIELD_OF_VIEW) - spacing) / 2
    return Geometry(tuple(spacing.tolist()), tuple(origin.round(3).tolist()), (1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))


def _acquire(signal: np.ndarray, spacing: tuple[float, ...], generator: np.random.Generator) -> np.ndarray:
    """What the scanner makes of the signal `(D, H, W)`: texture, blur, coil, noise; spacing is z, y, x."""
    texture = sum(height * _smooth_noise(signal.shape, millimetres, spacing, generator)
                  for height, millimetres in ((0.09, 2.5), (0.09, 9.0)))  # fmt: skip
    signal = gaussian_filter(signal * (1 + texture), (2.0 / spacing[0], 0.9 / spacing[1], 0.9 / spacing[2]))
    waves = [np.cos(np.pi * np.outer(np.arange(4), (np.arange(n) + 0.5) / n)) for n in signal.shape]
    order = 1.0 + np.indices((4, 4, 4)).sum(0)
    coil = np.einsum("ijk,iz,jy,kx->zyx", generator.normal(0, 0.4 / order**1.5), *waves, optimize=True)
    signal = signal * np.exp(coil).astype(np.float32)
    noise = generator.uniform(0.012, 0.035)
    real, imaginary = generator.standard_normal((2, *signal.shape), np.float32) * np.float32(noise)
    image = np.maximum(np.hypot(signal + real, imaginary) - 2 * noise, 0)  # scanners cut the air's noise off
    image *= generator.uniform(600, 1000)
    return np.minimum(image, np.percentile(image, 99.5)).astype(np.int16)


def _smooth_noise(shape, millimetres: float, spacing, generator: np.random.Generator) -> np.ndarray:
    """Correlated noise `(D, H, W)` of unit spread."""
    noise = gaussian_filter(generator.standard_normal(shape, np.float32), [millimetres / step for step in spacing])
    return noise / noise.std()


def write_scans(
    folder: str | Path,
    scans: int,
    seed: int,
    size: int,
    slices: int,
    jobs: int,
    overwrite: bool = False,
    backend: Backend = PROCESSES,
) -> dict[int, str]:
    """Write the missing ones of scans 1..`scans` below `folder`, say how many; return what went wrong, by number.

    Raises:
        UserError: the folder holds a phantom of other parameters, or cannot be written.
    """
    folder, facts = Path(folder), {"version": VERSION, "seed": seed, "size": size, "slices": slices}
    todo = {}
    for number in range(1, scans + 1):
        files = tuple(folder / FOLDER / f"{kind}_{number}.nii.gz" for kind in ("image", "label"))
        todo[str(number)] = Job(folder, (), folder, files)
    existing, failures = (folder / FOLDER).glob("*.nii.gz"), {}
    with open_manifest(folder / MANIFEST, facts, todo, existing=existing, overwrite=overwrite) as manifest:
        missing = {n: job for n, job in todo.items() if not job.is_done(manifest.scans.get(n), {})}
        calls = {name: (job, seed, int(name), size, slices) for name, job in missing.items()}
        for name, done in each_scan(_write_scan, calls, jobs, "phantom", lambda job, *_: job.outputs[0], backend):
            if done.failure:
                failures[int(name)] = done.failure
            else:
                manifest.add(name, done.result)
    print(f"{folder}: {len(missing) - len(failures)} scan(s) written, {scans - len(missing)} were there")
    return failures


def _write_scan(job: Job, seed: int, number: int, size: int, slices: int) -> dict:
    scan = phantom_scan(seed, number, size, slices)
    for path, array in zip(job.outputs, (scan.image, scan.label), strict=True):
        write_volume(path, array, scan.geometry)
    return job.record({})


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    command = parser(
        "Generate synthetic abdominal MR scans with labels (1 liver, 2 right kidney, 3 left kidney, 4 spleen).\n\n"
        f"They are OUT/{FOLDER}/image_N.nii.gz and label_N.nii.gz, N = 1, 2, ... Scan N depends on seed, size and\n"
        "slices only; scans already there are kept, so an interrupted run goes on.",
        "python -m data.phantom",
    )
    help_text = "folder to write to (default: data/PHANTOM)"
    command.add_argument("out", metavar="OUT", nargs="?", default="data/PHANTOM", type=Path, help=help_text)
    command.add_argument("--scans", type=at_least(1), default=12, help="number of patients")
    command.add_argument("--seed", type=at_least(0), default=1, help="another seed, other patients")
    command.add_argument("--size", type=at_least(16), default=256, help="rows and columns over 320 x 320 mm")
    command.add_argument("--slices", type=at_least(4), default=32, help="slices over 246.4 mm")
    command.add_argument("--jobs", type=jobs, default=-1, help="scans computed at once (default: one per core)")
    command.add_argument("--overwrite", action="store_true", help="replace the scans OUT already holds")
    add_backend(command.add_argument)
    given = command.parse_args(arguments)
    options = {name: value for name, value in vars(given).items() if name not in ("out", "backend", "scheduler")}
    return guarded(lambda: write_scans(given.out, **options, backend=backend_of(given)))


if __name__ == "__main__":
    sys.exit(main())
