"""Golden numbers of the supervoxels: label-exact for every kernel and number of threads."""

import numpy as np
import pytest

from supervoxels import felzenszwalb, foreground_mask, rescale, supervoxels

VOLUMES = [
    "blobs_12x40x36_aniso",
    "blobs_20x64x64_aniso",
    "blobs_20x64x64_iso",
    "constant_5x16x16",
    "float_10x33x41",
    "ties_8x32x32_aniso",
    "ties_8x32x32_iso",
    "tiny_1x1x17",
    "tiny_1x24x30",
    "tiny_3x2x2",
    "tiny_6x1x9",
    "xy_spacing_8x30x34",
]
KERNELS = [("oracle", 1), ("fast", 1), ("fast", 2), ("fast", 3)]


def test_every_stored_volume_is_listed(parity):
    stored = {path.stem for path in (parity / "supervoxels").glob("*.npz")}
    assert stored == {*VOLUMES, "fg_mask_cases"}


@pytest.mark.parametrize(("kernel", "threads"), KERNELS)
@pytest.mark.parametrize("volume", VOLUMES)
def test_labels_equal_the_reference(parity, volume, kernel, threads):
    golden = np.load(parity / "supervoxels" / f"{volume}.npz")
    image = _image(golden)
    for case, (min_size, sigma, scale) in enumerate(golden["params"]):
        labels = felzenszwalb(
            image,
            scale=scale,
            sigma=sigma,
            min_size=int(min_size),
            spacing=golden["spacing"],
            threads=threads,
            kernel=kernel,
        )
        np.testing.assert_array_equal(labels, golden[f"labels_{case}"], err_msg=f"case {case}")


@pytest.mark.parametrize("volume", VOLUMES)
def test_smoothing_is_the_only_step_between_both_inputs(parity, volume):
    golden = np.load(parity / "supervoxels" / f"{volume}.npz")
    for case, (min_size, sigma, scale) in enumerate(golden["params"]):
        if sigma:
            labels = felzenszwalb(
                golden[f"smoothed_{sigma:g}"], scale=scale, min_size=int(min_size), spacing=golden["spacing"]
            )
            np.testing.assert_array_equal(labels, golden[f"labels_{case}"])


@pytest.mark.parametrize("volume", VOLUMES)
def test_masked_labels_equal_the_reference(parity, volume):
    golden = np.load(parity / "supervoxels" / f"{volume}.npz")
    np.testing.assert_array_equal(foreground_mask(_image(golden), float(golden["fg_thresh"])), golden["mask"] > 0)
    for case, (min_size, sigma, scale) in enumerate(golden["params"]):
        if golden["normalise"]:
            masked = supervoxels(
                golden["raw"].astype(np.float64),
                scale=scale,
                sigma=sigma,
                min_size=int(min_size),
                spacing=golden["spacing"],
                fg_threshold=float(golden["fg_thresh"]),
            )
            np.testing.assert_array_equal(masked, golden[f"masked_{case}"], err_msg=f"case {case}")


def test_mask_cases_equal_the_reference(parity):
    golden = np.load(parity / "supervoxels" / "fg_mask_cases.npz")
    np.testing.assert_array_equal(foreground_mask(golden["image"], float(golden["fg_thresh"])), golden["mask"] > 0)


def _image(golden):
    raw = golden["raw"].astype(np.float64)
    return rescale(raw) if golden["normalise"] else raw
