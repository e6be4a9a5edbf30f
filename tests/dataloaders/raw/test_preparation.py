"""Preparation keeps every voxel at its place in the patient, and invents none."""

import itertools

import numpy as np
import pytest

from dataloaders.raw.preparation import (
    Plan,
    crop_border,
    crop_or_pad,
    cut_bright,
    label_onto,
    orient,
    output_size,
    prepare,
    reordered,
    resample,
    resample_label,
    window,
)
from util.volume import Geometry, Volume

TURN = np.linalg.qr(np.eye(3) + 0.15 * np.arange(9).reshape(3, 3) % 0.4)[0]
TURN *= np.sign(TURN.diagonal())
OBLIQUE = Geometry((1.5, 2.0, 6.0), (-31.0, 12.0, 5.0), tuple(TURN.ravel().tolist()))


def ramp(geometry: Geometry, shape=(6, 12, 14)) -> Volume:
    """Every voxel holds a linear function of its place in the world: interpolation must give it back anywhere."""
    return Volume(places(geometry, shape) @ np.array([1.0, -2.0, 0.5]) + 300, geometry)


def places(geometry: Geometry, shape: tuple[int, ...]) -> np.ndarray:
    """World positions `(D, H, W, 3)` of all voxels in mm."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)[..., ::-1]
    return index * geometry.spacing @ np.reshape(geometry.direction, (3, 3)).T + geometry.origin


def inner(array: np.ndarray) -> np.ndarray:
    """Without the outermost voxels, which may lie in the outer half of the scan's border voxels."""
    return array[1:-1, 1:-1, 1:-1]


@pytest.mark.parametrize("spacing", [(1.25, 1.25, 7.7), (3.0, 2.0, 3.0), (0.7, 1.1, 6.0)])
@pytest.mark.parametrize("published", [True, False])
def test_resampling_keeps_places(spacing, published):
    scan = ramp(OBLIQUE)
    result = resample(scan, spacing, published)
    expected = ramp(result.geometry, result.array.shape).array
    assert result.geometry.spacing == spacing
    near = inner(np.ones_like(expected, bool) & (result.array != 0)) if published else slice(None)
    np.testing.assert_allclose(inner(result.array)[near], inner(expected)[near], rtol=0, atol=8 if published else 4)
    middle = tuple(n // 2 for n in expected.shape)
    assert result.array[middle] == pytest.approx(expected[middle], abs=1e-4)


def test_by_default_no_sample_lies_outside_the_scan():
    random = np.random.default_rng(0)
    for _ in range(200):
        n, old, new = int(random.integers(1, 60)), *random.uniform(0.3, 9, 2)
        result = resample(Volume(np.ones((1, 2, n), np.float32), Geometry((old, 1, 1))), (new, 1, 1))
        assert result.array.min() == 1
        assert result.array.shape[2] == max(1, np.floor(n * old / new + 0.5))
        assert output_size(n, old, new, published=True) == int(n * old / new + 1)


@pytest.mark.parametrize(
    ("swap", "signs"), list(itertools.product([False, True], itertools.product([1, -1], repeat=3)))
)
def test_every_way_of_storing_is_oriented_into_one(swap, signs):
    scan = ramp(OBLIQUE)
    stored = reordered(scan, swap, signs)
    np.testing.assert_allclose(stored.array, ramp(stored.geometry, stored.array.shape).array, atol=1e-9)
    result, expected = orient(stored), orient(scan)
    np.testing.assert_array_equal(result.array, expected.array)
    assert result.geometry.matches(expected.geometry, 1e-9)
    axes = np.reshape(result.geometry.direction, (3, 3))
    assert axes[0, 0] > 0 and axes[1, 1] < 0 and axes[2, 2] > 0


@pytest.mark.parametrize("size", [6, 9, 12, 20, (5, 30)])
def test_crop_pad_and_border_keep_places(size):
    scan = ramp(OBLIQUE)
    for result in (crop_or_pad(scan, size, -1), crop_border(scan, 2)):
        inside = result.array != -1
        np.testing.assert_allclose(result.array[inside], ramp(result.geometry, result.array.shape).array[inside])
    assert crop_or_pad(scan, size, -1).array.shape[1:] == ((size, size) if isinstance(size, int) else size)


def test_labels_go_to_the_largest_share_and_published_ones_to_more_than_half():
    """Where three ids meet none may have half: published labels have holes there, ours do not."""
    labels = np.zeros((1, 4, 4), np.int16)
    labels[0, :2], labels[0, 2:, :2], labels[0, 2:, 2:] = 1, 2, 3
    scan = Volume(labels, Geometry())
    ours, theirs = (resample_label(scan, (0.8, 0.8, 1.0), published).array for published in (False, True))
    assert (ours > 0).all() and set(np.unique(ours)) == {1, 2, 3}
    assert (theirs[:, :4, :4] == 0).any()


@pytest.mark.parametrize(("pair", "winner"), [((0, 3), 0), ((3, 0), 0), ((5, 3), 3), ((3, 5), 3)])
def test_of_two_equal_shares_the_background_wins_and_then_the_smaller_id(pair, winner):
    """Published: half of a voxel is not enough for either."""
    scan, between = Volume(np.array([[pair]]), Geometry()), Geometry((2.0, 1.0, 1.0), (0.5, 0.0, 0.0))
    assert label_onto(scan, (1, 1, 1), between).array.item() == winner
    assert label_onto(scan, (1, 1, 1), between, published=True).array.item() == 0


@pytest.mark.parametrize("values", [(0, 3), (-3, 0), (0, 1000)])
def test_the_percentile_of_integers_is_cut_to_a_whole_number_and_of_fractions_is_not(values):
    limit = np.percentile(values, 99.5)
    assert cut_bright(np.array(values, np.int16)).max() == int(limit)
    assert cut_bright(np.array(values, np.float32)).max() == pytest.approx(limit)


def test_a_window_means_the_same_in_every_scan_but_for_published():
    array = np.array([-1000, -125, 75, 200], np.int16)
    np.testing.assert_allclose(window(array, -125, 275), [0, 0, 127.5, 207.1875])
    np.testing.assert_allclose(window(array, -125, 275, own_range=True), [0, 0, 156.9231, 255], rtol=1e-6)


def test_ct_of_512_pixels_becomes_256_wide():
    scan = Volume(np.full((2, 512, 512), 40, np.int16), Geometry((0.7, 0.7, 3.0)))
    plan = Plan(size=256, window=(-125, 275), border=1 / 16, shrink=1.75)
    image, label = prepare(scan, Volume((scan.array > 0).astype(np.int16), scan.geometry), plan)
    assert image.array.shape == label.array.shape == (2, 256, 256)
    assert image.geometry.spacing == pytest.approx((1.225, 1.225, 3.0))
    assert label.array.all() and image.array.min() == image.array.max() and image.array.dtype == np.float32


def test_half_a_sample_more_is_a_sample_more():
    assert [output_size(size, 1.0, 2.0) for size in (1, 3, 5, 7)] == [1, 2, 3, 4]


def test_a_scan_of_one_value_is_black_in_its_own_range():
    assert not window(np.full((2, 2), 40, np.int16), -125, 275, own_range=True).any()
