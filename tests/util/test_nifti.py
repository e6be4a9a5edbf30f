"""Where a NIfTI scan lies is what nibabel says, whatever the header holds besides; or it is said why nothing tells."""

import gzip
import shutil

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from tests.util.headers import AFFINE, EXCHANGED, MIRRORED, ORGAN, SHAPE, SPACING, scan, write
from util.errors import UserError
from util.volume import Volume, read_volume, write_like, write_volume

NAN = float("nan")
TURNED = np.array([[0.8, 0.6, 0, 0], [-0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
SHEARED = AFFINE @ [[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def shifted(millimetres: float) -> np.ndarray:
    """The affine of a scan that lies further to the right."""
    return np.array([[1, 0, 0, millimetres], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ AFFINE


def affine_of(volume: Volume) -> np.ndarray:
    """From stored voxels (x, y, z) to mm to the right, front and head, `(3, 4)`."""
    axes = np.reshape(volume.geometry.direction, (3, 3)) * volume.geometry.spacing
    return np.column_stack([axes, volume.geometry.origin]) * [[-1], [-1], [1]]


def organ_of(volume: Volume) -> np.ndarray:
    """Middle of the organ in mm."""
    return affine_of(volume) @ [*np.argwhere(volume.array == 900).mean(0)[::-1], 1]


def organ_by(affine: np.ndarray) -> np.ndarray:
    """The same by an affine of the stored voxels, as nibabel counts."""
    return affine[:3, :3] @ [(part.start + part.stop - 1) / 2 for part in ORGAN] + affine[:3, 3]


SOUND = {
    "both": {},
    "only an sform": {"codes": (2, 0)},
    "only a qform": {"codes": (0, 1)},
    "turned": {"sform": TURNED @ AFFINE, "qform": TURNED @ AFFINE},
    "left-handed": {"sform": MIRRORED, "qform": MIRRORED},
    "qform's factor 0": {"codes": (0, 1), "qform": MIRRORED, "pixdim": (0.0, *SPACING, 0, 0, 0, 0)},
    "no unit": {"units": 0},
    "half a voxel apart": {"qform": shifted(2.9)},
    "rounded": {"sform": AFFINE * (1 + 3e-7)},
}


@pytest.mark.parametrize("name", list(SOUND))
def test_a_sound_scan_lies_where_nibabel_puts_it(tmp_path, name):
    file = write(tmp_path / "scan.nii", **SOUND[name])
    volume = read_volume(file)
    np.testing.assert_allclose(organ_of(volume), organ_by(nibabel.load(file).affine), atol=1e-3)
    assert volume.geometry.spacing == SPACING and volume.doubts == ()
    np.testing.assert_array_equal(volume.array.T, scan())


DOUBTFUL = {
    # what the header holds -> the affine that counts, the first words
    "axes exchanged in the sform": ({"sform": EXCHANGED}, EXCHANGED, "its qform is not its sform: one mirrors"),
    "left and right exchanged": ({"sform": MIRRORED}, MIRRORED, "its qform is not its sform: one mirrors the other"),
    "spacing": ({"qform": AFFINE * [1, 1, 1.1, 1]}, AFFINE, "its qform is not its sform: voxels of 7 x 6 x 9.9 mm"),
    "shift": ({"qform": shifted(4)}, AFFINE, "its qform is not its sform: voxels"),
    "pixdim": (
        {"codes": (1, 0), "pixdim": (1, 1, 1, 1, 0, 0, 0, 0)},
        AFFINE,
        "its pixdim is not its sform: voxels of 1 x 1 x 1 mm against 7 x 6 x 9",
    ),
    "no codes": ({"codes": (0, 0)}, None, "nothing in its header tells the orientation; as viewers do, columns are"),
    "pixdim zero": ({"pixdim": (1, 7, 6, 0, 0, 0, 0, 0)}, AFFINE, "its qform (pixdim 7 x 6 x 0) is zero, not"),
    "pixdim no number": ({"pixdim": (1, 7, 6, NAN, 0, 0, 0, 0)}, AFFINE, "its qform (pixdim 7 x 6 x nan) is zero"),
    "pixdim zero, no qform": (
        {"codes": (1, 0), "pixdim": (1, 7, 6, 0, 0, 0, 0, 0)},
        AFFINE,
        "its pixdim (pixdim 7 x 6 x 0) is zero",
    ),
    "no rotation": ({"quatern": (2, 2, 2)}, AFFINE, "its qform (pixdim 7 x 6 x 9) is zero, not finite or flat"),
    "sform no number": ({"srow": NAN}, AFFINE, "its sform (pixdim 7 x 6 x 9) is zero, not finite"),
    "sform flat": ({"srow": (7, 7, 0, 0, 0, 0, 6, 0, 0, 0, 9, 0)}, AFFINE, "its sform (pixdim 7 x 6 x 9) is zero"),
    "unit": ({"units": 7}, AFFINE, "its unit of length is none that NIfTI knows, mm is assumed"),
}


@pytest.mark.parametrize("name", list(DOUBTFUL))
def test_what_contradicts_itself_is_read_as_viewers_do_and_said(tmp_path, name):
    header, affine, words = DOUBTFUL[name]
    file = write(tmp_path / "scan.nii", **header)
    volume = read_volume(file)
    affine = nibabel.load(file).affine if affine is None else affine
    np.testing.assert_allclose(organ_of(volume), organ_by(affine), atol=1e-3)
    np.testing.assert_allclose(volume.geometry.spacing, np.linalg.norm(affine[:3, :3], axis=0), rtol=1e-6)
    assert len(volume.doubts) == 1 and volume.doubts[0].startswith(words), volume.doubts
    write_like(tmp_path / "result.nii.gz", volume.array, volume.geometry, file)
    result = nibabel.load(tmp_path / "result.nii.gz")
    np.testing.assert_allclose(organ_by(result.affine), organ_by(affine), atol=1e-3)
    np.testing.assert_allclose(result.get_qform(), result.get_sform(), atol=1e-4)
    assert result.header["qform_code"] == result.header["sform_code"] > 0
    assert read_volume(tmp_path / "result.nii.gz").doubts == ()


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"sform": np.zeros((4, 4)), "codes": (1, 0)}, "its sform (pixdim 7 x 6 x 9) is zero, not finite or flat"),
        ({"codes": (0, 0), "pixdim": (1, 7, 6, NAN, 0, 0, 0, 0)}, "its pixdim (pixdim 7 x 6 x nan) is zero, not"),
        ({"sform": SHEARED}, "its axes are not at right angles (a sheared"),
        ({"units": 1}, "its header says that it is 112000 x 84000 x 72000 mm large; correct its spacing or unit"),
        ({"units": 3}, "its header says that it is 0.112 x 0.084 x 0.072 mm large"),
        ({"sform": AFFINE * 1e-4, "qform": AFFINE * 1e-4}, "its header says that it is 0.0112 x"),
        ({"sform": AFFINE * [1, 1, 1000, 1], "codes": (1, 0)}, "its header says that it is 112 x 84 x 72000 mm large"),
    ],
)
def test_what_lies_nowhere_is_refused(tmp_path, header, words):
    with pytest.raises(UserError) as caught:
        read_volume(write(tmp_path / "scan.nii", **header))
    assert str(caught.value).startswith(f"{tmp_path}/scan.nii: ") and words in str(caught.value)


@pytest.mark.parametrize(("code", "millimetres"), [(1, 1000.0), (3, 0.001)])
def test_lengths_in_metres_and_microns_become_millimetres(tmp_path, code, millimetres):
    other = np.diag([1 / millimetres] * 3 + [1]) @ AFFINE
    file = write(tmp_path / "scan.nii", sform=other, qform=other, units=code)
    volume = read_volume(file)
    assert volume.geometry.spacing == SPACING and volume.doubts == ()
    np.testing.assert_allclose(organ_of(volume), organ_by(AFFINE), atol=1e-3)
    write_like(tmp_path / "result.nii.gz", volume.array, volume.geometry, file)
    assert read_volume(tmp_path / "result.nii.gz").geometry.matches(volume.geometry)


def test_spacing_and_place_of_the_real_scans_are_to_the_last_digit_those_of_itk(chaost2):
    """Edge costs of supervoxels depend on the last digit [supervoxels 2.10]."""
    files = sorted(chaost2.glob("*/image_*.nii.gz"))
    assert len(files) == 20
    for file in files:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(file))
        reader.ReadImageInformation()
        geometry = read_volume(file).geometry
        assert geometry.spacing == tuple(float(str(np.float32(step))) for step in reader.GetSpacing())
        assert (geometry.origin, geometry.direction) == (reader.GetOrigin(), reader.GetDirection())


def test_a_written_file_carries_both_transforms_alike(tmp_path):
    volume = read_volume(write(tmp_path / "scan.nii", sform=TURNED @ AFFINE, qform=TURNED @ AFFINE))
    write_volume(tmp_path / "result.nii.gz", volume.array, volume.geometry)
    result = nibabel.load(tmp_path / "result.nii.gz")
    np.testing.assert_allclose(result.get_qform(), result.get_sform(), atol=1e-4)
    assert result.header["qform_code"] == result.header["sform_code"] == 1


@pytest.mark.parametrize("axes", [1, 2])
def test_further_axes_of_length_1_are_none_and_the_result_has_them_again(tmp_path, axes):
    array = scan().reshape(*SHAPE, *[1] * axes)
    file = write(tmp_path / "scan.nii.gz", array)
    volume = read_volume(file)
    np.testing.assert_array_equal(volume.array.T, scan())
    write_like(tmp_path / "result.nii.gz", (volume.array == 900).astype(np.uint8), volume.geometry, file)
    result = nibabel.load(tmp_path / "result.nii.gz")
    np.testing.assert_array_equal(result.header["dim"], nibabel.load(file).header["dim"])
    np.testing.assert_array_equal(np.asarray(result.dataobj), array == 900)


def test_scaled_integers_have_the_values_that_nibabel_gives_them(tmp_path):
    image = nibabel.Nifti1Image(scan(), AFFINE)
    image.header.set_slope_inter(0.37, -1024)
    image.to_filename(tmp_path / "scan.nii.gz")
    expected = np.asanyarray(nibabel.load(tmp_path / "scan.nii.gz").dataobj).T
    found = read_volume(tmp_path / "scan.nii.gz").array
    assert found.dtype == expected.dtype and found.min() < -900
    np.testing.assert_array_equal(found, expected)


def ways_to_store(folder) -> list:
    """The same scan under names that do not say what it is, and in the other forms that the field has."""
    plain, packed = write(folder / "plain.nii"), write(folder / "packed.nii.gz")
    content = plain.read_bytes()
    shutil.copy(plain, folder / "plain_called.nii.gz")
    shutil.copy(packed, folder / "packed_called.nii")
    (folder / "more.nii.gz").write_bytes(packed.read_bytes() + b"junk")
    (folder / "members.nii.gz").write_bytes(gzip.compress(content[:500]) + gzip.compress(content[500:]))
    write(folder / "nifti2.nii.gz", kind=nibabel.Nifti2Image)
    write(folder / "pair.hdr", kind=nibabel.Nifti1Pair)
    sitk.WriteImage(sitk.ReadImage(str(plain)), str(folder / "scan.nrrd"))
    return [file for file in sorted(folder.iterdir()) if file.name != "pair.img"] + [folder / "pair.img"]


def test_a_sound_scan_is_read_whatever_its_name_and_form(tmp_path):
    files = ways_to_store(tmp_path / "in")
    assert len(files) == 10
    for file in files:
        volume = read_volume(file)
        np.testing.assert_array_equal(volume.array.T, scan(), err_msg=file.name)
        np.testing.assert_allclose(organ_of(volume), organ_by(AFFINE), atol=1e-3, err_msg=file.name)
        write_like(tmp_path / "result.nii.gz", volume.array, volume.geometry, file)
        assert read_volume(tmp_path / "result.nii.gz").geometry.matches(volume.geometry), file.name


def test_analyze_is_read_as_nibabel_does_and_its_orientation_is_in_doubt(tmp_path):
    image = nibabel.AnalyzeImage(scan(), None)
    image.header.set_zooms(SPACING)
    image.to_filename(tmp_path / "scan.img")
    volume = read_volume(tmp_path / "scan.hdr")
    np.testing.assert_array_equal(volume.array.T, scan())
    np.testing.assert_allclose(organ_of(volume), organ_by(nibabel.load(tmp_path / "scan.img").affine), atol=1e-3)
    assert "nothing in its header tells the orientation" in volume.doubts[0]
    (tmp_path / "scan.img").unlink()
    with pytest.raises(UserError, match=r"scan.hdr: its img file is missing; the two belong together"):
        read_volume(tmp_path / "scan.hdr")


COLOURS = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (COLOURS, "this one holds colours"),
        (scan().astype(np.complex64), "this one holds complex numbers"),
        (np.stack([scan()] * 3, -1), r"this one has size \(16, 14, 8, 3\); choose or write one of its volumes"),
        (scan()[..., 0], r"this one has size \(16, 14\)"),
    ],
)
def test_what_is_no_3d_volume_of_numbers_is_named_for_what_it_is(tmp_path, array, words):
    with pytest.raises(UserError, match=f"a 3D volume with one value per voxel is expected, {words}"):
        read_volume(write(tmp_path / "scan.nii.gz", array))


def test_damaged_headers_are_refused_or_read_as_nibabel_does(tmp_path):
    """One to three bytes of the header are changed: what is read without a doubt is what nibabel reads."""
    draw = np.random.default_rng(1)
    content = write(tmp_path / "scan.nii").read_bytes()
    refused = 0
    for _ in range(150):
        changed = bytearray(content)
        for at in draw.integers(0, 348, draw.integers(1, 4)):
            changed[at] = draw.integers(0, 256)
        (tmp_path / "scan.nii").write_bytes(bytes(changed))
        try:
            volume = read_volume(tmp_path / "scan.nii")
        except UserError:
            refused += 1
            continue
        if not volume.doubts:
            witness = nibabel.load(tmp_path / "scan.nii")
            np.testing.assert_array_equal(volume.array.T, np.asanyarray(witness.dataobj).squeeze())
            np.testing.assert_allclose(affine_of(volume), witness.affine[:3], rtol=1e-5, atol=1e-3)
    assert 10 < refused < 100
