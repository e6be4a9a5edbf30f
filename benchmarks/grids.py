"""Does predict.py find the same organ on any grid? A synthetic patient, scanned on many grids.

    python -m benchmarks.grids --checkpoint runs/adnet_PHANTOM_fold0/1 --data data/PHANTOM --out GRIDS

Every scan is saved as a DICOM series (one as NIfTI), segmented with scan 4 as support, and compared with the anatomy,
which is known at every point: Dice on that very grid.
"""

import sys
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation
from tqdm import tqdm

import predict
from data.parts.anatomy import LABELS, draw_patient
from data.phantom_raw import ABDOMEN, MIDDLE, SIGNAL, SLOPE, centred, sample, write_series
from util.commands import parser
from util.evaluation.metrics import overlap
from util.tables import text_table
from util.volume import read_volume, write_volume

SUPPORT = 4
# name: (slices, rows, columns), field of view, turn about z, y, x in degrees
GRIDS = {
    "as trained, 1.25 x 1.25 x 7.7 mm": ((32, 256, 256), ABDOMEN, (0, 0, 0)),
    "1 x 1 x 4 mm": ((62, 320, 320), ABDOMEN, (0, 0, 0)),
    "2 x 2 x 5 mm": ((49, 160, 160), ABDOMEN, (0, 0, 0)),
    "rows and columns swapped": ((32, 256, 256), ABDOMEN, (90, 0, 0)),
    "upside down": ((32, 256, 256), ABDOMEN, (0, 180, 0)),
    "coronal slices of 4 mm": ((80, 160, 208), (246.4, 320.0, 320.0), (90, 0, 90)),
    "sagittal slices of 4 mm": ((80, 160, 208), (246.4, 320.0, 320.0), (0, 90, 0)),
    "oblique by 8 degrees": ((62, 256, 256), ABDOMEN, (0, 8, 0)),
    "turned in the plane by 35 degrees": ((32, 256, 256), ABDOMEN, (35, 0, 0)),
    "tilted by 30 degrees": ((62, 256, 256), ABDOMEN, (0, 0, 30)),
    "turned by 40, 25 and -20 degrees": ((62, 256, 256), ABDOMEN, (40, 25, -20)),
}
AS_NIFTI = "2 x 2 x 5 mm"
NOISE, VOXEL = 0.02, 1.25 * 1.25 * 7.7  # of the signal, in a voxel of so many mm3


def write_patient(out: Path, number: int) -> dict[str, np.ndarray]:
    """Write one patient on every grid; return the truth by the name of the query."""
    anatomy, acquisition = np.random.default_rng(np.random.SeedSequence([1, number])).spawn(2)
    patient, truths = draw_patient(anatomy), {}
    for place, (name, (shape, field, degrees)) in enumerate(tqdm(GRIDS.items(), desc=f"{number}", disable=None)):
        axes = Rotation.from_euler("zyx", degrees, degrees=True).as_matrix()
        geometry = centred(MIDDLE, axes, field, shape)  # right-handed, as DICOM is
        signal, truths[f"{number}_{place}"] = sample(patient, geometry, shape, SIGNAL["chaost2"])
        # thin and small voxels are noisier
        noise = NOISE * np.sqrt(VOXEL / np.prod(geometry.spacing)) * acquisition.standard_normal((2, *shape))
        image = np.rint(800 / SLOPE * np.hypot(signal + noise[0], noise[1]))
        if name == AS_NIFTI:
            write_volume(out / f"{number}_{place}.nii.gz", (image * SLOPE).astype(np.float32), geometry)
        else:
            names = [f"{at:04d}" for at in acquisition.permutation(len(image))]
            write_series(out / f"{number}_{place}", names, image, geometry, f"1.2.826.{number}.{place + 1}")
    return truths


def main() -> int:
    """Command line; returns the exit status of predict.py."""
    command = parser(__doc__, "python -m benchmarks.grids")
    command.add_argument("--checkpoint", required=True, nargs="+", help="trained on the phantom of seed 1")
    command.add_argument("--data", type=Path, default=Path("data/PHANTOM"), help="that phantom")
    command.add_argument("--out", type=Path, required=True, help="folder for the scans and results")
    help_text = "scan numbers that did not train"
    command.add_argument("--patients", type=int, nargs="+", default=[1, 2, 3], help=help_text)
    options, further = command.parse_known_args()
    truths = {}
    for number in options.patients:
        truths |= write_patient(options.out / "queries", number)
    images = options.data / "phantom_MR_normalized"
    call = ["--checkpoint", *options.checkpoint, "--support-image", images / f"image_{SUPPORT}.nii.gz"]
    call += ["--support-label", images / f"label_{SUPPORT}.nii.gz", "--query", options.out / "queries"]
    status = predict.main([*map(str, call), "--out", str(options.out / "results"), "--overwrite", *further])
    means = {}
    for place, name in enumerate(GRIDS):
        dice = []
        for number in options.patients:
            query = f"{number}_{place}"
            found = read_volume(options.out / "results" / f"{query}.nii.gz").array
            dice.append([overlap(found == organ, truths[query] == organ)[0] for organ in LABELS])
        means[name] = np.mean(dice, axis=0)
    first, rows = next(iter(means.values())).mean(), []
    for name, own in means.items():
        organs = {organ: f"{mean:.3f}" for organ, mean in zip(LABELS.values(), own, strict=True)}
        mean = own.mean()
        rows.append({"grid": name, **organs, "mean": f"{mean:.3f}", "against the first": f"{mean - first:+.3f}"})
    print(text_table(rows))
    return status


if __name__ == "__main__":
    sys.exit(main())
