"""ADNet 3D's augmentation and crop against the published ones."""

import json

import numpy as np

from dataloaders.crops import crop_bounds
from dataloaders.volume_augmentation import ColumnSlice


def test_column_slice_affine(parity, recipe):
    """The published transform (parity/transforms, transform3d), in double precision; masks exactly."""
    cases = json.loads((parity / "transforms/cases_transform3d.json").read_text("utf-8"))
    arrays = np.load(parity / "transforms/transform3d.npz")
    for case in cases:
        depth, height, width = size = case["D"], case["H"], case["W"]
        image = recipe.draw(recipe.rng(case["seed"]), size).astype(np.float64)
        mask = np.repeat(recipe.ellipse(depth, width, *case["seg_ellipse_z_x"])[:, None], height, axis=1)
        warp = ColumnSlice.of(case["rotate"][0], case["shear"][:2], case["translate"][:2], case["scale"][:2])
        warped = warp.region(image, (0, 0, 0), size, order=1)
        np.testing.assert_allclose(warped[:, ::2], arrays[f"{case['name']}/image"], rtol=1e-5, atol=1e-5)
        labels = warp.region(mask.astype(np.uint8), (0, 0, 0), size, order=0)
        assert np.array_equal(labels, np.unpackbits(arrays[f"{case['name']}/seg_bits"])[: labels.size].reshape(size))
        # a window of it is the same as the whole, cut
        part = warp.region(image, (3, 2, 5), (4, 7, 20), order=1)
        np.testing.assert_allclose(part, warped[3:7, 2:9, 5:25], rtol=0, atol=1e-12)


def test_crop_bounds(golden):
    """Origins between which the published code draws, in scans of 256 pixels, the last of which it never reaches."""
    _, arrays = golden("protocol")
    for box, expected in zip(
        arrays["crop3d/boxes_y0y1x0x1"], arrays["crop3d/randint_bounds_ylo_yhi_xlo_xhi"], strict=True
    ):
        rows, columns = (crop_bounds(*box[axis], 215, 256 - 215 - 1) for axis in (slice(0, 2), slice(2, 4)))
        assert [*rows, *columns] == expected.tolist()
