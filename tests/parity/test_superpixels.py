"""ALPNet's superpixels against the published script [alpnet 3.6]."""

import numpy as np
import pytest

from supervoxels.segmentation import foreground_mask
from supervoxels.superpixels import relabel_dense, relabel_published, superpixels


@pytest.mark.parametrize(("kind", "threshold"), [("mr", 50.0001), ("ct", 1e-4)])
def test_superpixels(golden, kind, threshold):
    _, arrays = golden("transforms")
    image = arrays["superpixel/image"]
    if kind == "ct":
        image = np.where(image <= 60, 0, image)
    shape = image.shape
    expected_mask = np.unpackbits(arrays[f"superpixel/{kind}_fgmask_bits"], count=image.size).reshape(shape)
    assert np.array_equal(foreground_mask(image[None], threshold)[0], expected_mask)
    published = superpixels(image[None], threshold=threshold, published=True)[0]
    assert np.array_equal(published, arrays[f"superpixel/{kind}_final"])


def test_relabelling_rule(golden):
    _, arrays = golden("transforms")
    labels = arrays["superpixel/rule_in"]
    everywhere = np.ones(labels.shape, dtype=bool)
    assert np.array_equal(relabel_published(labels, everywhere), arrays["superpixel/rule_out_full"])
    mask = arrays["superpixel/rule_mask2"] > 0
    assert np.array_equal(relabel_published(labels, mask), arrays["superpixel/rule_out_mask2"])


def test_empty_slice(golden):
    _, arrays = golden("transforms")
    empty = arrays["superpixel/empty_fgmask"]
    assert np.array_equal(foreground_mask(np.zeros((1, *empty.shape)), 50)[0], empty)
    assert not superpixels(np.zeros((1, 30, 30)), threshold=50).any()


def test_dense_labels_keep_every_region_and_have_no_gaps():
    labels = np.array([[0, 0, 1, 1], [2, 2, 3, 3]])
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 0]], dtype=bool)
    assert np.array_equal(relabel_dense(labels, mask), [[1, 1, 0, 0], [2, 2, 3, 0]])
