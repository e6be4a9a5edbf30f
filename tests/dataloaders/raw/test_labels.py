"""A label lies on its image by its header, whatever order it is stored in; an image is no label."""

import itertools

import nibabel
import numpy as np
import pytest

from data.phantom_raw import write_series
from dataloaders.raw.preparation import reordered
from dataloaders.raw.sources import Source, kept_shares, laid_onto, read_source
from util.errors import UserError
from util.volume import Geometry, Volume, write_volume

SHAPE = (5, 6, 8)
GEOMETRY = Geometry((12.0, 13.0, 30.0), (4.0, -50.0, 7.0))


@pytest.fixture
def scan(tmp_path):
    """An image and its label; `scan(label volume)` reads them, `scan.image` and `scan.label` are what is in them."""
    draw = np.random.default_rng(0)
    image = Volume(draw.integers(0, 900, SHAPE).astype(np.int16), GEOMETRY)
    label = Volume(np.repeat(draw.integers(0, 4, SHAPE[:2])[..., None], SHAPE[2], -1).astype(np.uint8), GEOMETRY)
    write_volume(tmp_path / "image.nii.gz", image.array, image.geometry)

    def read(stored: Volume, trust: bool = False, ids=None) -> np.ndarray:
        write_volume(tmp_path / "label.nii.gz", np.ascontiguousarray(stored.array), stored.geometry)
        return read_source(Source((tmp_path / "image.nii.gz",), (tmp_path / "label.nii.gz",)), ids, trust)[1].array

    read.image, read.label, read.folder = image, label, tmp_path
    return read


@pytest.mark.parametrize(
    "way", [(swap, signs) for swap in (False, True) for signs in itertools.product((1, -1), repeat=3)]
)
def test_a_label_stored_in_another_order_is_put_into_that_of_its_image(scan, way):
    assert np.array_equal(scan(reordered(scan.label, *way)), scan.label.array)


def test_slices_that_are_rows_are_put_in_order_too(scan):
    geometry = Geometry((30.0, 12.0, 13.0), GEOMETRY.origin, (0, 1, 0, 0, 0, 1, 1, 0, 0))
    assert np.array_equal(scan(Volume(scan.label.array.transpose(1, 2, 0), geometry)), scan.label.array)


def test_a_label_on_another_grid_is_refused_without_a_hint_as_the_header_tells(scan):
    for geometry in (Geometry((12.0, 13.0, 31.0), GEOMETRY.origin), Geometry(GEOMETRY.spacing, (10.0, -50.0, 7.0))):
        with pytest.raises(UserError, match="places it elsewhere") as told:
            scan(Volume(scan.label.array, geometry))
        assert "trust" not in str(told.value)
        moved = Volume(scan.label.array, geometry)
        assert laid_onto(moved, scan.image) is None


def test_voxels_are_trusted_only_if_headers_carry_nothing(scan):
    mirrored = reordered(scan.label, False, (1, -1, 1))
    with pytest.raises(UserError, match="--trust-label-voxels would turn it"):
        scan(mirrored, trust=True)
    nothing = nibabel.Nifti1Image(scan.label.array.T, None)
    nothing.header.set_zooms((12, 13, 30))
    nibabel.save(nothing, scan.folder / "bare.nii.gz")
    source = Source((scan.folder / "image.nii.gz",), (scan.folder / "bare.nii.gz",))
    with pytest.raises(UserError, match="if the voxels do correspond, use --trust-label-voxels"):
        read_source(source, None, False)
    assert np.array_equal(read_source(source, None, True)[1].array, scan.label.array)


def test_the_header_of_a_label_counts_whatever_its_name_says_of_its_form(scan):
    mirrored = reordered(scan.label, False, (1, -1, 1))
    write_volume(scan.folder / "packed.nii.gz", np.ascontiguousarray(mirrored.array), mirrored.geometry)
    named = (scan.folder / "packed.nii.gz").rename(scan.folder / "called.nii")
    source = Source((scan.folder / "image.nii.gz",), (named,))
    assert np.array_equal(read_source(source, None, False)[1].array, scan.label.array)


def test_a_label_of_a_dicom_series_with_rows_the_other_way_round(scan, tmp_path):
    names = [f"slice{at}" for at in range(SHAPE[0])]
    write_series(tmp_path / "series", names, scan.image.array, scan.image.geometry, "1.2.3")
    mirrored = reordered(scan.label, False, (1, -1, 1))
    write_volume(tmp_path / "label.nii.gz", np.ascontiguousarray(mirrored.array), mirrored.geometry)
    source = Source(tuple(sorted((tmp_path / "series").iterdir())), (tmp_path / "label.nii.gz",))
    assert np.array_equal(read_source(source, None, False)[1].array, scan.label.array)


def test_an_image_is_no_label(scan):
    noisy, smooth = scan.image, Volume(scan.image.array * 0.1, GEOMETRY)
    for image in (noisy, smooth):
        with pytest.raises(UserError, match="as an image has and no label; are image and label exchanged"):
            scan(image)
    parts = np.arange(1, 41).reshape(5, 8, 1).repeat(12, -1)  # many, but in pieces
    write_volume(scan.folder / "image.nii.gz", np.zeros(parts.shape, np.int16), GEOMETRY)
    assert len(np.unique(scan(Volume(parts.astype(np.int16), GEOMETRY)))) == 40


def test_a_label_named_as_its_own_image_is_refused(scan):
    scan(scan.label)
    label = scan.folder / "label.nii.gz"
    with pytest.raises(UserError, match="has the same voxels as its label"):
        read_source(Source((label,), (label,)), None, False)


def test_values_that_are_no_ids_are_named(scan):
    with pytest.raises(UserError, match=r"holds the label value.* -3"):
        scan(Volume(scan.label.array.astype(np.int16) - 3, GEOMETRY))
    strange = scan.label.array.astype(np.int16)
    strange[0, 0, :2] = 1220, 2221
    with pytest.raises(UserError, match="1220, 2221; known are 0, 1, 2, 3"):
        scan(Volume(strange, GEOMETRY), ids={i: i for i in range(4)})


def test_what_is_left_of_an_organ_is_a_share_of_its_volume():
    before = Volume(np.array([[[1, 1, 2, 2, 3]]]), Geometry((1.0, 1.0, 1.0)))
    after = Volume(np.array([[[1, 2, 0]]]), Geometry((2.0, 1.0, 0.5)))
    assert kept_shares(before, after) == {1: 0.5, 2: 0.5, 3: 0.0}
