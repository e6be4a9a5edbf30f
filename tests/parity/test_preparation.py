"""Resampling, percentile cut, crop and CT window of the published preparation, in published mode."""

import numpy as np
import pytest

from dataloaders.raw.preparation import (
    Plan,
    crop_border,
    crop_or_pad,
    cut_bright,
    output_size,
    prepare,
    resample,
    resample_label,
    window,
)
from util.volume import Geometry, Volume

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
ORIGIN = (-11.0, 5.0, 3.0)


@pytest.fixture(scope="module")
def cases(golden):
    return golden("transforms")


@pytest.fixture(scope="module")
def scan(cases, recipe) -> tuple[Volume, Volume]:
    """The synthetic volume of the fixtures' README with its label of three ellipses."""
    facts = cases[0]["prep"]
    x, y, z = facts["size_xyz"]
    drawn = recipe.draw(recipe.rng(facts["seed"]), (z, y, x), 60, 200)
    image = np.clip(np.rint(drawn), 0, None).astype(np.int16)
    image[0, 0, :3] = 2000
    label = np.zeros((z, y, x), np.uint8)
    for identifier, row, column, height, width in ((1, 0.4, 0.4, 9, 8), (3, 0.55, 0.6, 6, 7), (2, 0.75, 0.3, 4, 5)):
        label[1:-1, recipe.ellipse(y, x, row * y, column * x, height, width) > 0] = identifier
    geometry = Geometry(tuple(facts["spacing_xyz"]), ORIGIN)
    return Volume(image, geometry), Volume(label, geometry)


@pytest.fixture(scope="module")
def resampled(cases, scan) -> tuple[Volume, Volume]:
    spacing = tuple(cases[0]["prep"]["new_spacing"])
    image, label = scan
    cut = Volume(cut_bright(image.array), image.geometry)
    return resample(cut, spacing, published=True), resample_label(label, spacing, published=True)


def test_percentile_cut(cases, scan):
    arrays, (image, _) = cases[1], scan
    cut = cut_bright(image.array)
    assert cut.dtype == image.array.dtype and cut.max() == arrays["prep/percentile_clip_value"]
    np.testing.assert_array_equal(cut, arrays["prep/clipped"])


def test_resampling_of_image_and_label(cases, resampled):
    arrays, (image, label) = cases[1], resampled
    np.testing.assert_allclose(image.array, arrays["prep/resampled_image"], **TOLERANCE)
    np.testing.assert_array_equal(label.array, arrays["prep/resampled_label"])
    assert image.geometry.origin == label.geometry.origin == ORIGIN


@pytest.mark.parametrize("size", [(24, 24), (64, 64), (33, 70)])
def test_centre_crop_and_pad(cases, resampled, size):
    arrays, (image, label) = cases[1], resampled
    name = "prep/crop_{}x{}_".format(*size)
    cropped = crop_or_pad(image, size, image.array.min(), published=True).array
    np.testing.assert_allclose(cropped[::2], arrays[name + "image"], **TOLERANCE)
    np.testing.assert_array_equal(crop_or_pad(label, size, 0, published=True).array, arrays[name + "label"])


def test_size_rule_and_its_blank_samples(cases):
    for n, old, new, expected, blank in cases[1]["prep/size_rule_n_old_new_size_trailingzeros"]:
        assert output_size(int(n), old, new, published=True) == expected
        ones = Volume(np.ones((2, 2, int(n)), np.float32), Geometry((old, 1.0, 1.0)))
        line = resample(ones, (new, 1.0, 1.0), published=True).array[0, 0]
        assert np.count_nonzero(line == 0) == blank
        assert resample(ones, (new, 1.0, 1.0)).array.min() == pytest.approx(1)  # by default no sample is blank


def test_ct_window(cases):
    arrays = cases[1]
    np.testing.assert_allclose(window(arrays["ct/input"], -125, 275, own_range=True), arrays["ct/window"], **TOLERANCE)


def test_ct_border_and_resampling(cases, recipe):
    facts, arrays = cases
    pattern = recipe.test_pattern(512, 512)
    volume = np.stack((50 * pattern + 100, 50 * pattern + 101)).astype(np.float32)
    x, y, z = facts["ct"]["spacing"]
    cropped = crop_border(Volume(volume, Geometry((x, y, z))), 32, published=True)
    result = resample(cropped, (x * 1.75, y * 1.75, z), published=True).array
    assert list(result.shape) == arrays["ct/resampled_shape"].tolist()
    np.testing.assert_allclose(result[:, ::16, ::16], arrays["ct/resampled_257"], **TOLERANCE)
    assert result[-1].sum() == result[:, -1].sum() == result[:, :, -1].sum() == 0


def test_the_whole_plan_is_its_steps(cases, scan):
    arrays, facts = cases[1], cases[0]["prep"]
    plan = Plan(spacing=tuple(facts["new_spacing"]), size=64, percentile=99.5, orient=False, published=True)
    image, label = prepare(*scan, plan)
    assert image.array.dtype == np.float64
    np.testing.assert_allclose(image.array[::2], arrays["prep/crop_64x64_image"], **TOLERANCE)
    np.testing.assert_array_equal(label.array, arrays["prep/crop_64x64_label"])
