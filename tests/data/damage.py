"""Ways in which a raw download is damaged: functions of its folder, named after what they do."""

import gzip
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import SimpleITK as sitk


def first_patient(raw: Path) -> Path:
    return raw / "CHAOS_Train_Sets/Train_Sets/MR/1/T2SPIR"


def in_order(raw: Path) -> list[Path]:
    """Slices of the first patient by position."""
    slices = (first_patient(raw) / "DICOM_anon").glob("*.dcm")
    return sorted(slices, key=lambda file: pydicom.dcmread(file).ImagePositionPatient[2])


def lose_a_slice(raw: Path) -> None:
    file = in_order(raw)[3]
    file.unlink()
    (first_patient(raw) / "Ground" / f"{file.stem}.png").unlink()


def lose_a_picture(raw: Path) -> None:
    next((first_patient(raw) / "Ground").glob("*.png")).unlink()


def edit(file: Path, **values) -> None:
    content = pydicom.dcmread(file)
    for name, value in values.items():
        setattr(content, name, value)
    content.save_as(file)


def mix_series(raw: Path) -> None:
    edit(in_order(raw)[2], SeriesInstanceUID="1.2.3")


def mix_spacings(raw: Path) -> None:
    edit(in_order(raw)[2], PixelSpacing=[1.5, 1.5])


def double_a_slice(raw: Path) -> None:
    edit(in_order(raw)[2], ImagePositionPatient=pydicom.dcmread(in_order(raw)[3]).ImagePositionPatient)


def cut_a_slice(raw: Path) -> None:
    file = in_order(raw)[0]
    file.write_bytes(file.read_bytes()[:-500])


def no_dicom(raw: Path) -> None:
    in_order(raw)[0].write_text("<html>404</html>")


def strange_grey(raw: Path) -> None:
    picture = next((first_patient(raw) / "Ground").glob("*.png"))
    sitk.WriteImage(sitk.GetImageFromArray(np.full((32, 32), 77, np.uint8)), str(picture))


def broken_picture(raw: Path) -> None:
    picture = next((first_patient(raw) / "Ground").glob("*.png"))
    picture.write_bytes(picture.read_bytes()[:40])


def nifti(raw: Path, part: str) -> Path:
    return raw / f"RawData/Training/{part}/{part}0001.nii.gz"


def change(file: Path, array=lambda a: a, affine=lambda a: a) -> None:
    volume = nibabel.load(file)
    changed = nibabel.Nifti1Image(array(np.asarray(volume.dataobj)), affine(volume.affine))
    content = changed.to_bytes()
    file.write_bytes(gzip.compress(content))


def other_shape(raw: Path) -> None:
    change(nifti(raw, "label"), lambda array: array[:, :, 1:])


def other_spacing(raw: Path) -> None:
    change(nifti(raw, "label"), affine=lambda affine: affine @ np.diag([1, 1, 2, 1]))


def four_dimensions(raw: Path) -> None:
    change(nifti(raw, "img"), lambda array: np.stack([array, array], -1))


def truncated(raw: Path) -> None:
    file = nifti(raw, "img")
    file.write_bytes(file.read_bytes()[:-2000])


def no_image(raw: Path) -> None:
    nifti(raw, "img").write_text("this is no image")


def nothing_labelled(raw: Path) -> None:
    change(nifti(raw, "label"), np.zeros_like)


def twice(raw: Path) -> None:
    shutil.copytree(raw / "RawData/Training/img", raw / "copy/img")
