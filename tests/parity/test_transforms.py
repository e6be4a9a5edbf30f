"""Gamma, affine and elastic changes against OpenCV and SciPy as the published code calls them."""

import dataclasses

import cv2
import numpy as np
import pytest

from dataloaders import augmentation
from dataloaders.augmentation import Warp

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def cases(golden):
    return golden("transforms")


def geometric(draw: dict) -> Warp:
    """A case's draws, with the elastic noise of its seed."""
    random = np.random.RandomState(draw["elastic_seed"])
    noise = np.stack((random.rand(256, 256), random.rand(256, 256)))
    return Warp(draw["rot"], (draw["tx"], draw["ty"]), draw["shear"], draw["zoom"], noise)


def test_gamma(cases, recipe):
    facts, arrays = cases
    pattern = recipe.test_pattern(256, 256)
    stack = np.stack((pattern, 0.7 * pattern + 0.1))
    for index, exponent in enumerate(facts["gamma"]["gammas"]):
        np.testing.assert_allclose(
            augmentation.Gamma(exponent).image(stack, (stack.min(), stack.max()))[:, ::8, ::8],
            arrays[f"gamma/{index}"],
            **TOLERANCE,
        )


def test_affine(cases, recipe):
    facts, arrays = cases
    pattern = recipe.test_pattern(256, 256)
    mask = recipe.ellipse(256, 256, *facts["geometry"]["mask_ellipse"]).astype(np.float64)
    still = augmentation.Warp(0.0, (0.0, 0.0), 0.0, 1.0)
    for index, draw in enumerate(facts["geometry"]["draws"]):
        warp = geometric(draw)
        key = f"geometry/{index}_"
        matrix = warp.matrix(pattern.shape)
        np.testing.assert_allclose(matrix, arrays[key + "matrix3x3"], rtol=1e-5, atol=1e-5)
        factors = [
            dataclasses.replace(still, **part).matrix(pattern.shape)
            for part in ({"rotation": warp.rotation}, {"shift": warp.shift}, {"shear": warp.shear}, {"zoom": warp.zoom})
        ]
        np.testing.assert_allclose(factors, arrays[key + "matrix_identity_order"], rtol=1e-5, atol=1e-5)
        for name, image in (("image", pattern), ("mask", mask)):
            warped = dataclasses.replace(warp, noise=None).image(image)
            np.testing.assert_allclose(warped[::4, ::4], arrays[f"{key}affine_{name}"], **TOLERANCE)


def test_elastic(cases, recipe):
    facts, arrays = cases
    pattern = recipe.test_pattern(256, 256)
    for index, draw in enumerate(facts["geometry"]["draws"]):
        key = f"geometry/{index}_"
        displacement = geometric(draw).displacement
        rows, columns = displacement
        np.testing.assert_allclose(rows[::2, ::2], arrays[key + "elastic_row_disp"], **TOLERANCE)
        np.testing.assert_allclose(columns[::2, ::2], arrays[key + "elastic_col_disp"], **TOLERANCE)
        moved = augmentation.sample(pattern, displacement, cv2.BORDER_REFLECT)
        np.testing.assert_allclose(moved[::4, ::4], arrays[key + "elastic_only_image"], **TOLERANCE)


def test_whole_transform(cases, recipe):
    """Affine, elastic, rounding of the mask: the transform of the ADNet lineage, in double precision as published."""
    facts, arrays = cases
    pattern = recipe.test_pattern(256, 256)
    mask = recipe.ellipse(256, 256, *facts["geometry"]["mask_ellipse"]).astype(np.float64)
    for index, draw in enumerate(facts["geometry"]["draws"]):
        key = f"geometry/{index}_full_"
        image, warped_mask = augmentation.apply_changes([geometric(draw)], pattern, mask)
        np.testing.assert_allclose(image[::4, ::4], arrays[key + "image"], **TOLERANCE)
        expected = np.unpackbits(arrays[key + "mask_bits"]).reshape(256, 256)
        assert np.array_equal(warped_mask, expected)
        assert warped_mask.sum() == arrays[key + "mask_count"]


def test_alpnet_transform(cases, recipe):
    """Warp, then gamma on the image alone, in single precision [alpnet 6]."""
    facts, arrays = cases
    pattern = recipe.test_pattern(256, 256).astype(np.float32)
    mask = recipe.ellipse(256, 256, *facts["geometry"]["mask_ellipse"])
    for index, draw in enumerate(facts["geometry"]["draws"]):
        changes = [geometric(draw), augmentation.Gamma(draw["alpnet_gamma"])]
        image, warped_mask = augmentation.apply_changes(changes, pattern, mask)
        np.testing.assert_allclose(image[::4, ::4], arrays[f"alpnet/{index}_image"], **TOLERANCE)
        expected = np.unpackbits(arrays[f"alpnet/{index}_mask_bits"]).reshape(256, 256)
        assert np.array_equal(warped_mask, expected)
        assert warped_mask.sum() == arrays[f"alpnet/{index}_mask_count"]


def test_single_precision_stays_close(cases, recipe):
    """Training warps in float32, where OpenCV interpolates exactly instead of in fixed point (margin of the README)."""
    facts, arrays = cases
    pattern = recipe.test_pattern(256, 256).astype(np.float32)
    for index, draw in enumerate(facts["geometry"]["draws"]):
        warped = geometric(draw).image(pattern)
        np.testing.assert_allclose(warped[::4, ::4], arrays[f"geometry/{index}_full_image"], atol=0.06)
