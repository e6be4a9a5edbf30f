"""How the scans of a data set are prepared: the published sets', what is on record, or a guess from the scans."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data.parts.convert import MANIFEST
from dataloaders.raw.intensities import SHIFT, modality, value_range
from dataloaders.raw.preparation import Plan
from dataloaders.raw.sources import Source, read_image
from util.dataset import Dataset
from util.errors import UserError
from util.parallel import attempt

PLANS = {
    "CHAOST2": Plan(spacing=(1.25, 1.25, 7.7), size=256, percentile=99.5),
    # 512 pixels: 32 off at each side leave 448, a spacing 1.75 times as large leaves 256
    "SABS": Plan(size=256, window=(-125, 275), border=1 / 16, shrink=1.75),
    "CMR": Plan(spacing=(1.25, 1.25, 7.99), size=256, percentile=99.5),
}
# what scans are by their values -> what is done to these, and how it is told
INTENSITIES = {
    "ct": ({"window": (-125, 275)}, "CT: window -125 to 275 HU becomes 0 to 255"),
    "shifted-ct": ({"window": (899, 1299)}, f"CT with {SHIFT} added: window 899 to 1299 becomes 0 to 255"),
    "mr": ({"percentile": 99.5}, "MR: the brightest 0.5 % are cut"),
    "scaled": ({}, "already scaled, which hides whether it is CT or MR: left as it is"),
}
LOOKED_AT = 5  # scans, to guess from


def plan_of(name: str, dataset: Dataset, root: Path) -> Plan:
    """The plan of a data set.

    Args:
        name: as in config.py.
        dataset: its row; without a record and a row of PLANS its modality says what is usual.
        root: folder of the data sets; preparation.json lies beside the scans if a command of this project made them.

    Raises:
        UserError: preparation.json cannot be read.
    """
    file = (Path(root) / dataset.images).parent / MANIFEST
    if not file.is_file():
        return PLANS.get(name, Plan(**INTENSITIES[dataset.modality.lower()][0]))
    try:
        return Plan.from_plain(json.loads(file.read_text(encoding="utf-8"))["parameters"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: is damaged; prepare the data set again with --overwrite") from error


def guess_plan(sources: Mapping[int, Source], size: int, intensities: str = "") -> tuple[Plan, list[str]]:
    """Median spacing of the scans, coarser in the plane if a scan would not fit; CT, MR or neither by their values.

    Args:
        sources: files by scan number; a few are looked at.
        size: rows and columns of the prepared scans.
        intensities: a key of INTENSITIES that counts instead of a guess.
    """
    spacings, fields, kinds, ranges = [], [], [], []
    for source in list(sources.values())[:: max(1, len(sources) // LOOKED_AT)]:
        found = attempt(read_image, (source.image,), str(source.image[0]))
        if found.failure:
            continue  # told when it is converted
        image, _ = found.result
        spacings.append(image.geometry.spacing)
        _, rows, columns = image.array.shape
        fields.append(max(image.geometry.spacing[0] * columns, image.geometry.spacing[1] * rows))
        kinds.append(modality(image.array))
        ranges.append((float(image.array.min()), float(image.array.max())))
    if not spacings:
        return Plan(size=size), ["no scan can be read; nothing is guessed"]
    x, y, z = np.median(spacings, axis=0)
    plane = float(max(np.median([x, y]), np.median(fields) / size))
    spacing = tuple(float(f"{step:.4g}") for step in (plane, plane, z))
    remarks = ["guessed spacing {:g} x {:g} x {:g} mm".format(*spacing)]
    if not intensities:
        (intensities, _), *rest = Counter(kinds).most_common()
        others = "".join(f", but {count} of {len(kinds)} look like {kind}" for kind, count in rest)
        lowest, *_, highest = value_range(ranges)
        values = f"values from {lowest:g} to {highest:g}{others}"
        told = f"guessed {INTENSITIES[intensities][1]} ({values}); --intensities or --window says otherwise"
        remarks.insert(0, told)
    return Plan(spacing=spacing, size=size, **INTENSITIES[intensities][0]), remarks
