"""Scans in memory: normalised, cut to size, refused if they cannot be what they are said to be."""

import numpy as np
import pytest

from dataloaders.scans import read_scan, training_mean_and_std, z_score
from util.dataset import Dataset
from util.errors import UserError
from util.volume import Geometry, write_volume

SHAPE = (3, 12, 10)
GEOMETRY = Geometry((2.0, 2.0, 6.0))
MINE = Dataset("MINE/images", modality="MR", supervoxel_size=5, organs={"liver": 1}, size=8)


@pytest.fixture
def root(tmp_path):
    """Scans 1 and 2 with labels."""
    for number in (1, 2):
        image = np.random.default_rng(number).integers(0, 100 * number, SHAPE).astype(np.int16)
        write_volume(MINE.image_file(tmp_path, number), image, GEOMETRY)
        write_volume(MINE.label_file(tmp_path, number), (image > 50).astype(np.int16), GEOMETRY)
    return tmp_path


def test_a_scan_is_normalised_as_a_whole_and_then_cut(root):
    scan = read_scan(MINE, root, 1)
    image = np.random.default_rng(1).integers(0, 100, SHAPE)
    np.testing.assert_allclose(scan.image, ((image - image.mean()) / image.std())[:, :8, :8], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(scan.label, image[:, :8, :8] > 50)
    assert scan.shape == SHAPE and scan.values == (image.min(), image.max())


def test_a_z_score_divides_by_the_deviation_of_the_population(tmp_path):
    np.testing.assert_array_equal(z_score(np.array([[[0, 2]]]), None, tmp_path), [[[-1, 1]]])
    np.testing.assert_array_equal(z_score(np.array([[[0, 2]]]), (1.0, 0.5), tmp_path), [[[-2, 2]]])


def test_intensities_of_the_training_are_those_of_all_voxels(root):
    images = np.stack([np.random.default_rng(number).integers(0, 100 * number, SHAPE) for number in (1, 2)])
    assert training_mean_and_std(MINE, root, [1, 2]) == pytest.approx((images.mean(), images.std()))


@pytest.mark.parametrize(("value", "found"), [(-1, "-1 to 1"), (32768, "0 to 32768"), (0.5, "with fractions")])
def test_labels_that_are_no_ids_are_refused(root, value, found):
    label = np.zeros(SHAPE, np.float32)
    label[0, 0, :2] = value, 1
    write_volume(MINE.label_file(root, 1), label, GEOMETRY)
    with pytest.raises(UserError, match=f"whole numbers from 0 to 32767.*{found}"):
        read_scan(MINE, root, 1)


def test_the_largest_id_that_fits_is_an_id(root):
    write_volume(MINE.label_file(root, 1), np.full(SHAPE, 32767, np.int32), GEOMETRY)
    assert (read_scan(MINE, root, 1).label == 32767).all()


def test_a_constant_scan_shows_nothing(root):
    write_volume(MINE.image_file(root, 1), np.full(SHAPE, 7, np.int16), GEOMETRY)
    with pytest.raises(UserError, match="every voxel has the value 7"):
        read_scan(MINE, root, 1, mean_and_std=(0.0, 1.0))
