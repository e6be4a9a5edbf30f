"""A series is what the files say it is, wherever they lie; what is not whole is refused, what is no slice is said."""

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from dataloaders.prediction.queries import one_scan
from dataloaders.raw import dicom
from dataloaders.raw.sources import find_series
from tests.dicom_files import STEP, change, one_slice, pixels, write, write_series
from util.errors import UserError

ARRAY = pixels()
LATER = {"EchoNumbers": 2, "EchoTime": 4.6}


def found(root: Path) -> dict[str, np.ndarray | str]:
    """What lies below a folder: scan -> its voxels, or why it is refused; what is said of it is printed."""
    series, left_out = dicom.find_series(sorted(path for path in root.rglob("*") if path.is_file()))
    print(*dicom.remarks(series, left_out, root), sep="\n")
    result = {}
    for name, scan in dicom.name_series(series, root).items():
        try:
            result[name] = dicom.read_series(scan.files)[0].array
        except UserError as error:
            result[name] = str(error)
    return result


def same(result: dict, **expected: np.ndarray) -> bool:
    return result.keys() == expected.keys() and all(np.array_equal(result[name], expected[name]) for name in expected)


def refusal(root: Path) -> str:
    """Why the only scan there is refused."""
    (sentence,) = found(root).values()
    assert isinstance(sentence, str), "was read"
    assert str(root) in sentence
    return sentence


def cut_preamble(file: Path) -> None:
    file.write_bytes(file.read_bytes()[132:])


def no_meta(file: Path) -> None:
    """Nothing but the data set, implicit VR, as old programs wrote it."""
    data = pydicom.dcmread(file)
    del data.file_meta
    data.save_as(file, implicit_vr=True, little_endian=True, overwrite=True)


# --------------------------------------------------------------------------------------- what belongs to a series


@pytest.mark.parametrize("lose", [cut_preamble, no_meta])
@pytest.mark.parametrize("which", [slice(-2, None), slice(None)])
def test_files_that_lost_their_beginning_are_read(tmp_path, lose, which):
    for file in write_series(tmp_path / "p", ARRAY, name="IM{:03d}")[which]:
        lose(file)
    assert same(found(tmp_path), p=ARRAY)


@pytest.mark.parametrize("changes", [{}, {"SOPInstanceUID": "1.2.3.4"}], ids=["sound", "one number for all slices"])
@pytest.mark.parametrize("moved", [slice(3, None), slice(1, None, 2)])
def test_a_series_in_two_folders_is_put_together(tmp_path, capsys, moved, changes):
    files = write_series(tmp_path / "p/one", ARRAY, **changes)
    (tmp_path / "p/two").mkdir()
    for file in files[moved]:
        file.rename(tmp_path / "p/two" / file.name)
    assert same(found(tmp_path), p=ARRAY)
    assert f"{tmp_path / 'p'}: one series lies in 2 folders and is put together" in capsys.readouterr().out
    (path,), _ = find_series(tmp_path)
    assert path == tmp_path / "p"


def test_a_slice_that_is_missing_between_two_folders_is_told(tmp_path):
    files = write_series(tmp_path / "p/one", ARRAY)
    (tmp_path / "p/two").mkdir()
    files[3].unlink()
    for file in files[4:]:
        file.rename(tmp_path / "p/two" / file.name)
    assert "a slice is missing between IM003.dcm and IM005.dcm (10.00 mm apart, the others 5.00 mm)" in refusal(
        tmp_path
    )


def test_copies_of_some_slices_are_left_out(tmp_path, capsys):
    files = write_series(tmp_path / "p/one", ARRAY)
    (tmp_path / "p/two").mkdir()
    for file in files[2:]:
        shutil.copy(file, tmp_path / "p/two")
    for file in files[4:]:
        file.unlink()
    assert same(found(tmp_path), p=ARRAY)
    assert "left out 2 x copy of a slice in another folder: p/two/IM003.dcm, p/two/IM004.dcm" in capsys.readouterr().out


def test_patients_whose_anonymiser_gave_them_the_same_numbers_stay_apart(tmp_path):
    """Whole copies, too: they may be paired with labels of their own."""
    others = {f"p{seed}": pixels(seed=seed) for seed in range(3)}
    for name, array in others.items():
        write_series(tmp_path / name, array, PatientID="")
    shutil.copytree(tmp_path / "p0", tmp_path / "copy")
    assert same(found(tmp_path), copy=others["p0"], **others)


def test_several_series_in_a_folder_are_several_scans(tmp_path):
    one, two = pixels(seed=1), pixels(seed=2)
    write_series(tmp_path / "p/x", one, name="a{}", series="1.5", SeriesNumber=2)
    write_series(tmp_path / "p/x", two, name="b{}", series="1.6", SeriesNumber=3)
    write_series(tmp_path / "q", one, name="b{}", series="1.7")
    assert same(found(tmp_path), p_x_series2=one, p_x_series3=two, q=one)
    change(tmp_path / "p/x/a1", SeriesNumber=3)
    assert set(find_series(tmp_path)[0]) == {tmp_path / name for name in ("p_x_series3_a1", "p_x_series3_b1", "q")}
    with pytest.raises(UserError, match=r"p: holds 2 scans, one is expected"):
        one_scan(tmp_path / "p")


def test_what_is_no_slice_is_left_out_and_said(tmp_path, capsys):
    write_series(tmp_path / "p", ARRAY)
    (tmp_path / "p/README.txt").write_text("hello")
    (tmp_path / "p/Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(600))
    kinds = {"481.3": "RT Structure Set", "88.11": "Basic Text SR", "11.1": "Grayscale Softcopy Presentation State"}
    for uid in kinds:
        other = Dataset()
        other.file_meta = one_slice(ARRAY[0]).file_meta
        other.SOPClassUID = other.file_meta.MediaStorageSOPClassUID = f"1.2.840.10008.5.1.4.1.1.{uid}"
        other.SeriesInstanceUID = "1.2.3"
        write(other, tmp_path / f"p/{uid}.dcm")
    lost = {"ImagePositionPatient": ..., "ImageOrientationPatient": ...}
    write(one_slice(ARRAY[0], SOPClassUID="1.2.840.10008.5.1.4.1.1.7", **lost), tmp_path / "p/screen.dcm")
    assert same(found(tmp_path), p=ARRAY)
    printed = capsys.readouterr().out
    for kind in (*kinds.values(), "Secondary Capture Image without a place in the patient"):
        assert f"left out 1 x {kind}: p/" in printed
    assert "left out 2 x no DICOM file: p/README.txt, p/Thumbs.db" in printed


@pytest.mark.parametrize(
    ("scout", "kind"),
    [
        (one_slice(ARRAY[0], 400, 99), "scout far from the other slices"),
        (one_slice(ARRAY[0], -400, 7), "scout far from the other slices"),
        (one_slice(ARRAY[0], 10, 7, ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "scout in another plane"),
        (one_slice(ARRAY[0], 10, 7, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "scout (localizer)"),
    ],
)
def test_scouts_in_the_series_are_left_out_and_said(tmp_path, capsys, scout, kind):
    write_series(tmp_path / "p", ARRAY, ImagesInAcquisition=7)  # they count
    write(scout, tmp_path / "p/SCOUT")
    assert same(found(tmp_path), p=ARRAY)
    assert f"left out 1 x {kind}: p/SCOUT" in capsys.readouterr().out


def test_a_series_of_scouts_alone_is_left_out(tmp_path, capsys):
    write_series(tmp_path / "p", ARRAY)
    write_series(tmp_path / "p", ARRAY[:3], name="S{}", series="1.9", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert same(found(tmp_path), p=ARRAY)
    assert "left out 3 x scout (localizer): p/S1, p/S2, p/S3" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"<html>404</html>"])
@pytest.mark.parametrize("name", ["IM{:03d}", "{}.dcm"])
def test_a_slice_that_is_no_dicom_any_more_is_not_forgotten(tmp_path, name, content):
    write_series(tmp_path, ARRAY, name=name)[-1].write_bytes(content)
    assert f"{name.format(6)}: is not a readable DICOM slice" in refusal(tmp_path)


# ----------------------------------------------------------------------------------------------- is it whole


def lose(*numbers: int):
    return lambda files: [files[number - 1].unlink() for number in numbers]


def each(**values):
    """Change elements: a list holds one value for each file."""

    def apply(files):
        for at, file in enumerate(files):
            change(file, **{name: value[at] for name, value in values.items()})

    return apply


def twice(files, **changes):
    for number, file in enumerate(files, start=len(files) + 1):
        copy = Path(shutil.copy(file, file.with_name(f"again{file.name}")))
        change(copy, SOPInstanceUID=f"1.9.{number}", InstanceNumber=number, **changes)


Z = [[-10.0, -20.0, z * STEP] for z in range(6)]
NOT_WHOLE = {
    "a slice within": (lose(3), "a slice is missing between IM002.dcm and IM004.dcm"),
    "one of four, of which three are left": (lose(3, 5, 6), "a slice is missing between IM002.dcm and IM004.dcm"),
    "the first slices": (lose(1, 2), "the slices with the numbers 1, 2 (InstanceNumber) are missing"),
    "the last slices": (each(ImagesInAcquisition=[9] * 6), "ImagesInAcquisition says 9, 6 slices are there"),
    "the last slices of PET": (each(NumberOfSlices=[8] * 6), "NumberOfSlices says 8, 6 slices are there, so 2 are"),
    "every second": (lose(2, 4, 6), "slices lie 2 times as far apart as their headers say"),
    "shuffled numbers": (
        each(InstanceNumber=[1, 4, 2, 7, 3, 6]), "the slices with the numbers 5 (InstanceNumber) are missing",
    ),
    "the same slice": (
        lambda f: shutil.copy(f[2], f[2].with_name("copy.dcm")),
        "IM003.dcm and copy.dcm lie at the same place as copies of one slice; remove one",
    ),
    "same place": (each(ImagePositionPatient=[*Z[:5], Z[4]]), "IM005.dcm and IM006.dcm lie at the same place; remove"),
    "copies that say nothing": (twice, "holds 2 images of every place, and nothing in their headers"),
    "times": (
        lambda f: (each(TemporalPositionIdentifier=[1] * 6)(f), twice(f, TemporalPositionIdentifier=2)),
        "holds 2 images of every place, which differ in TemporalPositionIdentifier (1, 2)",
    ),
    "b-values": (
        lambda f: (each(DiffusionBValue=[0.0] * 6)(f), twice(f, DiffusionBValue=800.0), f[-1].unlink()),
        "holds 2 images of every place, which differ in DiffusionBValue (0.0, 800.0)",
    ),
    "two spacings": (
        each(ImagePositionPatient=[[-10, -20, z] for z in (0, 2.5, 5, 7.5, 15, 22.5)]),
        "has two spacings, 2.50 mm and 7.50 mm, which change at IM004.dcm",
    ),
    "two blocks": (
        each(ImagePositionPatient=[[-10, -20, z] for z in (0, 5, 10, 23, 28, 33)]),
        "there is a gap between IM003.dcm and IM004.dcm (13.00 mm apart, the others 5.00 mm)",
    ),
    "tilt": (
        each(ImagePositionPatient=[[-10, -20 + z, z * STEP] for z in range(6)], GantryDetectorTilt=[11.3] * 6),
        "slices are shifted against each other (a tilted gantry by 11.3 degrees)",
    ),
    "a slice beside the others": (
        lambda f: change(f[2], ImagePositionPatient=[40, -20, 2 * STEP]),
        "IM003.dcm: lies 50 mm beside the slices before and after it",
    ),
    "a scale in some slices": (
        lambda f: (each(RescaleSlope=[0.5] * 6, RescaleIntercept=[0] * 6)(f), change(f[2], RescaleSlope=None)),
        "RescaleSlope or RescaleIntercept is missing in some slices",
    ),
    "multi-frame": (
        lambda f: (lose(*range(2, 7))(f), change(f[0], NumberOfFrames=6, PixelData=ARRAY.tobytes())),
        "is a multi-frame file (MR Image, 6 frames), which is not read; convert it to NIfTI",
    ),
    "a series for every slice": (
        each(SeriesInstanceUID=[f"1.2.{n}" for n in range(6)]),
        "each of its 6 slices says that it is a series of its own; give them one PatientID",
    ),
    "a patient for every slice": (each(PatientID=[f"P{n}" for n in range(6)]), "a series of its own; give them one"),
    "mosaic": (
        lambda f: (lose(*range(2, 7))(f), change(f[0], ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])),
        "IM001.dcm: is a mosaic, all slices in one picture, which is not read; convert it to NIfTI",
    ),
    "size": (lambda f: change(f[1], Rows=4), "the size differs within the series ([10, 4] against [10, 8] in"),
}  # fmt: skip


@pytest.mark.parametrize("what", NOT_WHOLE)
def test_a_series_that_is_not_whole_is_refused_with_its_cause(tmp_path, what):
    harm, sentence = NOT_WHOLE[what]
    harm(write_series(tmp_path, ARRAY))
    assert sentence in refusal(tmp_path)


SOUND = {
    "numbered downwards": each(InstanceNumber=range(6, 0, -1)),
    "numbered from 0": each(InstanceNumber=range(6)),
    "acquired alternately": each(InstanceNumber=[1, 4, 2, 5, 3, 6]),
    "without numbers": each(InstanceNumber=[None] * 6),
    "all of one number": each(InstanceNumber=[1] * 6),
    "a gap in the numbers, none between slices": each(InstanceNumber=[1, 2, 3, 5, 6, 7]),
    "one of two echoes that alternate": each(InstanceNumber=range(2, 13, 2), ImagesInAcquisition=[12] * 6),
    "the second of two echoes": each(InstanceNumber=range(7, 13), EchoNumbers=[2] * 6),
    "gaps between thick slices": each(SliceThickness=[2.5] * 6),
    "the gap as spacing between slices": each(SliceThickness=[4.0] * 6, SpacingBetweenSlices=[1.0] * 6),
}


@pytest.mark.parametrize("what", SOUND)
def test_a_whole_series_is_read(tmp_path, what):
    SOUND[what](write_series(tmp_path / "p", ARRAY))
    assert same(found(tmp_path), p=ARRAY)


def test_echoes_in_folders_of_their_own_are_scans_of_their_own(tmp_path):
    one, two = pixels(seed=1), pixels(seed=2)
    write_series(tmp_path / "p/first", one)
    for number, file in enumerate(write_series(tmp_path / "p/second", two, **LATER), start=7):
        change(file, SOPInstanceUID=f"1.9.{number}", InstanceNumber=number)
    assert same(found(tmp_path), p_first=one, p_second=two)


def test_a_single_slice_is_as_good_as_in_nifti(tmp_path, capsys):
    file = write(one_slice(ARRAY[0], number=13), tmp_path / "p/a.dcm")
    volume, _ = dicom.read_series(one_scan(tmp_path / "p")[0])
    assert volume.array.shape == (1, 8, 10) and volume.geometry.spacing == (1.5, 2.0, STEP)
    assert same(found(tmp_path), p=ARRAY[:1])
    assert "a.dcm: is a series of a single file" in capsys.readouterr().out
    change(file, SliceThickness=None)
    assert "does not say how thick it is" in refusal(tmp_path)
    change(file, SliceThickness=3, ImagesInAcquisition=20)
    assert "ImagesInAcquisition says 20, 1 slices are there" in refusal(tmp_path)
