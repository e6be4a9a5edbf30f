"""Volumes and whole files: geometry survives, damage is refused, nothing is left half done."""

import gzip
import os
import resource

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from util.errors import UserError
from util.files import whole_file
from util.volume import Geometry, read_volume, write_like, write_volume

OBLIQUE = Geometry((1.25, 1.25, 7.7), (-190.5, 200.25, -77.0), (0.8, 0.0, 0.6, 0.0, -1.0, 0.0, 0.6, 0.0, -0.8))


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1000, (5, 7, 9)).astype(np.int16)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_round_trip(tmp_path, array, name, dtype):
    write_volume(tmp_path / name, array.astype(dtype), OBLIQUE)
    back = read_volume(tmp_path / name)
    assert back.array.dtype == dtype and np.array_equal(back.array, array.astype(dtype))
    assert back.geometry.matches(OBLIQUE, tolerance=1e-4)
    assert back.geometry.spacing == (1.25, 1.25, 7.7)  # decimals, not float32's neighbours


def test_a_sheared_grid_is_refused_and_another_byte_order_is_not(tmp_path, array):
    affine = np.diag([-5.0, 5.0, 7.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(array.astype(">i2").T, affine), tmp_path / "big_endian.nii")
    back = read_volume(tmp_path / "big_endian.nii").array
    assert back.dtype.isnative and np.array_equal(back, array)
    affine[0, 1] = 2
    nibabel.save(nibabel.Nifti1Image(array.T, affine), tmp_path / "sheared.nii")
    with pytest.raises(UserError, match=r"sheared.nii: its axes are not at right angles \(a sheared affine\)"):
        read_volume(tmp_path / "sheared.nii")


@pytest.mark.parametrize("cut", [1, 9, 200])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_cut_files_are_refused(tmp_path, array, name, cut):
    file = tmp_path / name
    write_volume(file, array, OBLIQUE)
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(UserError, match="cut short"):
        read_volume(file)


def test_short_content_in_a_sound_gzip_is_refused(tmp_path, array):
    write_volume(tmp_path / "scan.nii", array, OBLIQUE)
    content = (tmp_path / "scan.nii").read_bytes()
    (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(content[:-2]))
    with pytest.raises(UserError, match="cut short"):
        read_volume(tmp_path / "scan.nii.gz")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8b\x08\x00garbage"])
def test_foreign_files_are_refused(tmp_path, content):
    (tmp_path / "scan.nii.gz").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        read_volume(tmp_path / "scan.nii.gz")


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_volume(tmp_path / "nothing.nii.gz")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_a_number_is_refused(tmp_path, array, bad):
    wrong = array.astype(np.float32)
    wrong[1, 2, 3] = bad
    write_volume(tmp_path / "scan.nii.gz", wrong, OBLIQUE)
    with pytest.raises(UserError, match=r"1 voxel\(s\) are NaN or infinite"):
        read_volume(tmp_path / "scan.nii.gz")


def test_four_dimensions_are_refused(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4, 5)), isVector=False), str(tmp_path / "scan.nii.gz"))
    with pytest.raises(UserError, match="3D volume with one value"):
        read_volume(tmp_path / "scan.nii.gz")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    file = tmp_path / "scores.csv"
    file.write_text("old")
    with pytest.raises(ValueError), whole_file(file) as temporary:
        temporary.write_text("half")
        raise ValueError
    assert file.read_text("utf-8") == "old" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("room", [0, 500, 30_000])
def test_a_full_disk_leaves_no_half_file(tmp_path, room):
    array, sound = np.random.default_rng(0).integers(0, 900, (8, 60, 60)).astype(np.int16), tmp_path / "sound.nii.gz"
    write_volume(sound, array, Geometry())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))  # which fails as a full disk does
    try:
        for write, more in ((write_volume, ()), (write_like, (sound,))):
            with pytest.raises(UserError, match="cannot be written"):
                write(tmp_path / "a.nii.gz", array, Geometry(), *more)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == [sound]


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd"])
def test_a_name_at_which_itk_ends_the_process_is_refused(tmp_path, array, ending):
    sound, bad = tmp_path / f"sound.{ending}", tmp_path / os.fsdecode(b"bad\xff." + ending.encode())
    with pytest.raises(UserError, match="not UTF-8 text; rename it"):
        write_volume(bad, array, OBLIQUE)
    write_volume(sound, array, OBLIQUE)
    sound.rename(bad)
    if ending == "nrrd":  # NIfTI is read without ITK
        with pytest.raises(UserError, match="not UTF-8 text; rename it"):
            read_volume(bad)
    else:
        assert np.array_equal(read_volume(bad).array, array)


def test_a_file_where_a_folder_is_wanted(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), whole_file(tmp_path / "file" / "x.csv") as temporary:
        temporary.write_text("")
