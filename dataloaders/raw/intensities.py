"""What the values of a scan tell: CT or MR, scaled by somebody before, like those of the training scans or not."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataloaders.raw.preparation import Plan, window
from util.errors import UserError
from util.volume import Volume

HOUNSFIELD = -200  # MR has no values below; in CT air has -1000
AIR_OR_FAT = -50  # CT that was clipped still has much below; interpolated MR has a voxel here and there
SHIFT = 1024  # added to Hounsfield units by files that hold no negative numbers
FEW_VALUES = 30  # a label has no more; an image has hundreds
SOME = 1e-3  # share of the voxels; fewer are outliers, as interpolation leaves
PADDING = (-(2.0**15), 2.0**15 - 1, 2.0**16 - 1)  # the ends of 16 bits stand for what was not measured
SCALED = 30.0  # a smaller range of values was made by somebody: 0 to 1, -1 to 1, z-scores


def modality(array: np.ndarray) -> str:
    """What a scan of any shape is by its values: "ct", "shifted-ct", "scaled" (which hides what it was), "mr"."""
    low, high = float(array.min()), float(array.max())
    some = array[..., ::3, ::3]
    some = some[some > PADDING[0]]
    below = [np.count_nonzero(some < value) for value in (HOUNSFIELD, AIR_OR_FAT)]
    if below[0] > SOME * some.size or below[1] > 0.01 * some.size:
        return "ct"
    if high - low <= SCALED or (low, high) == (0, 255):
        return "scaled"
    tissue = some[some > SHIFT / 2]  # soft tissue of CT is narrow, MR spreads
    if tissue.size > 0.05 * some.size and np.percentile(tissue, 25) > 850 and np.percentile(tissue, 75) < 1300:
        return "shifted-ct"
    return "mr"


def is_label(array: np.ndarray) -> bool:
    """True if a scan of any shape has few values, whole numbers from 0, and next to a voxel mostly the same value."""
    some = np.unique(array[..., ::3, ::3])  # all are looked at only if these are few
    if not 1 < len(some) <= FEW_VALUES or some[0] < 0 or (some != np.floor(some)).any():
        return False
    return len(np.unique(array)) <= FEW_VALUES and alike(array) > 0.8


def alike(array: np.ndarray) -> float:
    """Share of the voxels above 0 that are equal to the next one in their row: in labels nearly all, in images few."""
    own, after = array[..., :-1], array[..., 1:]
    return float((own == after)[own > 0].mean()) if (own > 0).any() else 1.0


def value_range(arrays: Sequence[tuple[float, float]]) -> tuple[float, float, float, float]:
    """Lowest and highest minimum, lowest and highest maximum, of the (minimum, maximum) of several scans."""
    lows, highs = zip(*arrays, strict=True)
    return min(lows), max(lows), min(highs), max(highs)


def require_measured(array: np.ndarray, plan: Plan, file: Path) -> None:
    """Refuse a scan where padding would pass for a value: all but the lowest in CT, of which the window makes air.

    Raises:
        UserError: names the value.
    """
    for value in {float(array.min()), float(array.max())} & {*PADDING[plan.window is not None :]}:
        rest = array[array != value]
        share, low, high = 1 - rest.size / array.size, rest.min(initial=0), rest.max(initial=0)
        if share > SOME and max(-float(low), float(high)) < abs(value) / 2:
            raise UserError(
                f"{file}: {share:.1%} of its voxels have the value {value:g}, all others lie between {low:g} and "
                f"{high:g}: padding, where nothing was measured; give it the value of air first"
            )


def windowed(array: np.ndarray, plan: Plan) -> tuple[float, float]:
    """Lowest and highest value, 0 to 255, that the plan's window leaves of an array of any shape."""
    low, high = window(np.array([array.min(), array.max()]), *plan.window).tolist()
    return low, high


def require_training_values(
    image: Volume, plan: Plan, known: tuple[float, ...] | None, file: Path, *, prepared: bool = False
) -> None:
    """Refuse a scan that a method cannot know by its values: MR where CT was trained, 0..1 where 0..255 was.

    Args:
        plan: of the training scans.
        known: `value_range` of the prepared training scans; None where a checkpoint does not say it.
        prepared: the values are said to be as in the prepared training scans.

    Raises:
        UserError: they cannot be, or it is a label, or padded.
    """
    require_measured(image.array, plan, file)
    low, high = float(image.array.min()), float(image.array.max())
    reaches = f"{file}: has values from {low:g} to {high:g}"
    if is_label(image.array):
        raise UserError(f"{reaches}, few of them and large areas of each, as a label has; name its image")
    remedy = "use a checkpoint of its modality, or --prepared if its intensities are the training scans' already"
    if not prepared and plan.percentile is not None:
        if modality(image.array) == "ct":
            raise UserError(f"{reaches} as CT and the checkpoint was trained on MR; {remedy}")
        return  # every MR scan has its own scale
    if plan.window is not None:
        known = known or (0.0, 0.0, 255.0, 255.0)
        if not prepared:
            low, high = windowed(image.array, plan)
    if known is None or _alike(low, high, known):
        return
    if prepared or plan.window is None:
        raise UserError(
            f"{reaches}, the prepared training scans from {known[0]:g} to {known[3]:g}; scale it as they are"
            + (", or leave out --prepared if it is a scan as acquired" if prepared else "")
        )
    raise UserError(
        f"{reaches} and the checkpoint was trained on CT in Hounsfield units (its window makes {low:.3g} to {high:.3g} "
        f"of them, the training scans have {known[0]:.3g} to {known[3]:.3g}); {remedy}"
    )


def _alike(low: float, high: float, known: tuple[float, ...]) -> bool:
    """The range starts where those of the training scans do, and is half to twice as wide as them."""
    lowest, low_end, high_end, highest = known
    slack = (highest - lowest) / 4
    return lowest - slack <= low <= low_end + slack and (high_end - low_end) / 2 <= high - low <= 2 * (highest - lowest)
