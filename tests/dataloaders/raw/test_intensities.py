"""CT and MR are told by their values, scaled scans by their range; what is unlike the training scans is refused."""

from pathlib import Path

import numpy as np
import pytest

from dataloaders.raw.intensities import modality, require_training_values, value_range, windowed
from dataloaders.raw.preparation import Plan, clip_and_window
from util.errors import UserError
from util.volume import Geometry, Volume

CT, MR, SCALED = Plan(window=(-125, 275)), Plan(percentile=99.5), Plan()
ON_CT = (0.0, 0.0, 255.0, 255.0)
FILE = Path("scans/a.nii.gz")


def hounsfield() -> np.ndarray:
    """Air around fat, soft tissue and bone, float32."""
    draw = np.random.default_rng(0)
    array = np.full((8, 60, 60), -1000.0)
    array[:, 10:50, 10:50] = draw.normal(40, 30, (8, 40, 40))
    array[:, 10:15, 10:50] = draw.normal(-100, 15, (8, 5, 40))
    array[:, 30:34, 28:32] = draw.uniform(300, 1200, (8, 4, 4))
    return array.astype(np.float32)


def magnitudes() -> np.ndarray:
    """MR: noise about 0 around tissue of all brightnesses, float32."""
    draw = np.random.default_rng(1)
    array = np.abs(draw.normal(0, 15, (8, 60, 60)))
    array[:, 10:50, 10:50] = draw.gamma(4, 100, (8, 40, 40))
    return array.astype(np.float32)


def between(array: np.ndarray, low: float, high: float) -> np.ndarray:
    return (array.clip(low, high) - low) / (high - low)


RINGING = magnitudes()
RINGING[0, :5, :5] = -300 / 2
RINGING[0, 0, 0] = -900  # where a spline overshoots


def padded(array: np.ndarray, value: float) -> np.ndarray:
    """With a rim where nothing was measured."""
    return np.pad(array, ((0, 0), (2, 2), (2, 2)), constant_values=value)


SCANS = {
    "ct": hounsfield(),
    "ct, clipped": hounsfield().clip(-160, 240),
    "ct, clipped to the window": hounsfield().clip(-125, 275),
    "ct, without air": hounsfield()[:, 10:50, 10:50],
    "shifted-ct, 1024 added": hounsfield().clip(-1024, 3071) + 1024,
    "scaled, 0 to 1": between(hounsfield(), -160, 240),
    "scaled, -1 to 1": between(hounsfield(), -160, 240) * 2 - 1,
    "scaled, 8 bits": np.rint(between(hounsfield(), -160, 240) * 255),
    "scaled, z-scores": (magnitudes() - magnitudes().mean()) / magnitudes().std(),
    "mr": magnitudes(),
    "mr, another scale": magnitudes() * 8,
    "mr, interpolated": RINGING,
    "mr, padded below": padded(magnitudes(), -(2**15)),
    "ct, padded below": padded(hounsfield(), -(2**15)),
    "mr, padded above": padded(magnitudes(), 2**15 - 1),
}


@pytest.mark.parametrize("name", list(SCANS))
def test_a_scan_is_known_by_its_values(name):
    assert modality(SCANS[name]) == name.split(",")[0]


def test_what_the_window_leaves_is_told_without_making_it():
    for name in ("ct", "ct, clipped", "mr", "scaled, 0 to 1"):
        expected = clip_and_window(SCANS[name], CT)
        np.testing.assert_allclose(windowed(SCANS[name], CT), (expected.min(), expected.max()), atol=1e-3)


GOOD = [
    ("ct", CT, ON_CT, False),
    ("ct", CT, None, False),  # an older checkpoint
    ("ct, clipped", CT, ON_CT, False),
    ("ct, clipped to the window", CT, ON_CT, False),
    ("mr", MR, None, False),
    ("mr, another scale", MR, (0.0, 1.0, 400.0, 1200.0), False),
    ("mr", MR, (0.0, 1.0, 400.0, 1200.0), True),
    ("scaled, 8 bits", CT, ON_CT, True),
    ("ct, padded below", CT, ON_CT, False),
    ("scaled, 0 to 1", SCALED, (0.0, 0.0, 1.0, 1.0), False),
    ("scaled, 0 to 1", MR, None, True),  # an older checkpoint
]


@pytest.mark.parametrize(("name", "plan", "known", "prepared"), GOOD)
def test_scans_like_the_training_scans_pass(name, plan, known, prepared):
    require_training_values(Volume(SCANS[name], Geometry()), plan, known, FILE, prepared=prepared)


BAD = [
    ("ct", MR, None, False, "as CT and the checkpoint was trained on MR; use a checkpoint of its modality"),
    ("ct, clipped", MR, None, False, "as CT and the checkpoint was trained on MR"),
    ("mr", CT, ON_CT, False, "the checkpoint was trained on CT in Hounsfield units (its window makes 79."),
    ("scaled, 0 to 1", CT, ON_CT, False, "has values from 0 to 1 and the checkpoint was trained on CT in Hounsfield"),
    ("shifted-ct, 1024 added", CT, ON_CT, False, "the checkpoint was trained on CT in Hounsfield units"),
    ("scaled, 0 to 1", CT, ON_CT, True, "has values from 0 to 1, the prepared training scans from 0 to 255; scale it"),
    ("ct", CT, ON_CT, True, "the prepared training scans from 0 to 255; scale it as they are, or leave out --prepared"),
    ("scaled, z-scores", CT, ON_CT, True, "the prepared training scans from 0 to 255"),
    ("mr, another scale", MR, (0.0, 1.0, 400.0, 1200.0), True, "the prepared training scans from 0 to 1200"),
    ("mr, padded below", MR, None, False, "12.1% of its voxels have the value -32768, all others lie between 0 and"),
    ("mr, padded above", MR, None, False, "12.1% of its voxels have the value 32767, all others lie between 0 and"),
    ("ct", SCALED, (0.0, 0.0, 1.0, 1.0), False, "the prepared training scans from 0 to 1; scale it as they are"),
]


@pytest.mark.parametrize(("name", "plan", "known", "prepared", "words"), BAD)
def test_other_scans_are_refused(name, plan, known, prepared, words):
    with pytest.raises(UserError) as caught:
        require_training_values(Volume(SCANS[name], Geometry()), plan, known, FILE, prepared=prepared)
    assert str(caught.value).startswith("scans/a.nii.gz: ") and words in str(caught.value)


def test_the_ranges_of_training_scans_are_kept():
    assert value_range([(0.0, 800.0), (1.0, 400.0), (0.5, 1200.0)]) == (0.0, 1.0, 400.0, 1200.0)
