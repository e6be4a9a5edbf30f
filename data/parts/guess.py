"""How own scans are prepared if nobody says it: spacing and intensities, guessed from a few of them."""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from dataloaders.raw.intensities import SHIFT, modality, value_range
from dataloaders.raw.preparation import Plan
from dataloaders.raw.sources import Source, read_image
from util.parallel import attempt

LOOKED_AT = 5  # scans, to guess from
# what scans are by their values -> what is done to these, and how it is told
INTENSITIES = {
    "ct": ({"window": (-125, 275)}, "CT: window -125 to 275 HU becomes 0 to 255"),
    "shifted-ct": ({"window": (899, 1299)}, f"CT with {SHIFT} added: window 899 to 1299 becomes 0 to 255"),
    "mr": ({"percentile": 99.5}, "MR: the brightest 0.5 % are cut"),
    "scaled": ({}, "already scaled, which hides whether it is CT or MR: left as it is"),
}


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
