"""Pixels of DICOM slices mean what their headers say, in every transfer syntax; the voxels are checked by pydicom."""

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders import pyjpegls, pylibjpeg
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from dataloaders.raw.dicom import read_series
from tests.dicom_files import STEP, change, pixels, write, write_series
from util.errors import UserError

ARRAY = pixels(3)
HU = ARRAY.astype(np.int16) - 1000
CT = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1000}


def read(files: list[Path]) -> np.ndarray:
    return read_series(files)[0].array


def values(folder: Path, array: np.ndarray, **elements) -> np.ndarray:
    return read(write_series(folder, array, **elements))


def test_a_volume_lies_where_pydicom_says(tmp_path):
    files = write_series(tmp_path, ARRAY, name="{}", first=-7, RescaleSlope=2.5, RescaleIntercept=-5)
    shuffled = [file.rename(tmp_path / name) for file, name in zip(files, ("b", "c", "a"), strict=True)]
    volume, order = read_series(shuffled)
    headers = [pydicom.dcmread(file) for file in order]
    assert order == shuffled and volume.array.dtype == np.float32
    expected = np.stack([header.pixel_array * float(header.RescaleSlope) - 5 for header in headers])
    np.testing.assert_array_equal(volume.array, expected)
    assert volume.geometry.origin == tuple(headers[0].ImagePositionPatient)
    assert volume.geometry.spacing == (*reversed(headers[0].PixelSpacing), STEP)


# ----------------------------------------------------------------------------------------------------- padding


@pytest.mark.parametrize(
    ("padding", "dtype"),
    [(63536, np.uint16), (-2000, np.uint16), (-32768, np.int16), (32767, np.int16), (0, np.uint16)],
)
@pytest.mark.parametrize("elements", [CT, {}])
def test_padding_becomes_air_or_the_lowest_true_value(tmp_path, padding, dtype, elements):
    array = ARRAY.astype(dtype) + 1
    array[:, :2] = np.array(padding).astype(dtype)
    found = values(tmp_path, array, PixelPaddingValue=padding % 65536 if dtype == np.uint16 else padding, **elements)
    expected = array.astype(np.int32) + (-1000 if elements else 0)
    expected[:, :2] = -1024 if elements else array[:, 2:].min()
    np.testing.assert_array_equal(found, expected)


def test_padding_may_be_a_range_and_lie_outside_of_the_stored_bits(tmp_path):
    array = ARRAY.copy()
    array[:, 0], array[:, 1], array[:, 2] = 63536, 5000, 4100
    bits = {"BitsStored": 12, "HighBit": 11}
    found = values(tmp_path / "a", array, PixelPaddingValue=5000, PixelPaddingRangeLimit=4100, **bits)
    assert (found[:, 1:3] == found.min()).all() and (found[:, 3:] == ARRAY[:, 3:]).all()
    array[:, 1:3] = 63536 % 4096  # a true value that the lower bits of the padding are equal to
    found = values(tmp_path / "b", array, PixelPaddingValue=63536, **bits)
    assert (found[:, 0] == found.min()).all() and (found[:, 1:3] == 63536 % 4096).all()


def test_a_scan_of_nothing_but_padding_is_refused(tmp_path):
    with pytest.raises(UserError, match="every pixel has the PixelPaddingValue"):
        values(tmp_path, np.full_like(ARRAY, 7), PixelPaddingValue=7)


# ------------------------------------------------------------------------------------------ what values mean


def test_inverted_greys_are_turned_round(tmp_path):
    for name, highest in (("own", 900), ("bits", 65535)):
        found = values(tmp_path / name, highest - ARRAY, PhotometricInterpretation="MONOCHROME1")
        np.testing.assert_array_equal(found, ARRAY)
    with pytest.raises(UserError, match="MONOCHROME1, CT whose Hounsfield units may be inverted"):
        values(tmp_path / "ct", ARRAY, PhotometricInterpretation="MONOCHROME1", **CT)
    files = write_series(tmp_path / "some", ARRAY)
    change(files[1], PhotometricInterpretation="MONOCHROME1")
    with pytest.raises(UserError, match="MONOCHROME1, only some slices have inverted greys"):
        read(files)


@pytest.mark.parametrize("kind", ["RGB", "PALETTE COLOR", "YBR_FULL"])
def test_colours_are_refused(tmp_path, kind):
    samples = 1 if kind.startswith("PALETTE") else 3
    array = ARRAY[:, :, :9].astype(np.uint8)
    with pytest.raises(UserError, match=rf"IM001.dcm: holds colours \({kind}\)"):
        values(
            tmp_path, array, PhotometricInterpretation=kind, SamplesPerPixel=samples, Columns=9 // samples,
            PlanarConfiguration=0,
        )  # fmt: skip


def test_the_table_of_the_modality_is_applied(tmp_path):
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [901, 0, 16], "US"
    table.LUTData = [3 * value + 1 for value in range(901)]
    table["LUTData"].VR = "US"
    np.testing.assert_array_equal(values(tmp_path, ARRAY, ModalityLUTSequence=[table]), 3 * ARRAY + 1)


def test_ct_without_hounsfield_units_is_refused(tmp_path):
    empty = {"Modality": "CT", "RescaleSlope": None, "RescaleIntercept": None}
    np.testing.assert_array_equal(values(tmp_path / "signed", HU, **empty), HU)
    with pytest.raises(
        UserError, match=r"is CT without RescaleSlope or RescaleIntercept, and its values \(from 0 on\)"
    ):
        values(tmp_path / "unsigned", ARRAY, **empty)


@pytest.mark.parametrize(("slope", "sentence"), [(0, "RescaleSlope is 0"), ("nan", "its values are no numbers")])
def test_a_senseless_slope_is_refused(tmp_path, slope, sentence):
    with pytest.raises(UserError, match=sentence):
        values(tmp_path, ARRAY, RescaleSlope=slope)


NEEDED = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")
HARMLESS = (
    "RescaleSlope", "RescaleIntercept", "PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence",
    "PhotometricInterpretation", "SamplesPerPixel", "PixelRepresentation", "BitsStored", "HighBit", "NumberOfFrames",
    "InstanceNumber", "SeriesNumber", "SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "PatientID", "ImageType",
    "SliceThickness", "SpacingBetweenSlices", "ImagesInAcquisition", "SeriesInstanceUID", "Modality",
)  # fmt: skip


@pytest.mark.parametrize("value", [None, ...])
@pytest.mark.parametrize("name", HARMLESS)
def test_an_element_that_is_empty_or_missing_has_its_default(tmp_path, name, value):
    files = write_series(tmp_path, ARRAY, **{name: None})
    if value is ...:
        for file in files:
            data = pydicom.dcmread(file)
            delattr(data, name)
            write(data, file)
    np.testing.assert_array_equal(read(files), ARRAY)


@pytest.mark.parametrize("name", [*NEEDED, "PixelData", "BitsAllocated"])
def test_an_element_without_which_nothing_can_be_read_is_named(tmp_path, name):
    files = write_series(tmp_path, ARRAY)
    change(files[1], **{name: None})
    with pytest.raises(UserError, match=f"IM002.dcm: .*({name} is missing or empty|pixels cannot be read)"):
        read(files)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PixelSpacing", [0, 1]),
        ("ImagePositionPatient", ["nan", 0, 0]),
        ("ImageOrientationPatient", [0] * 6),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]),
    ],
)
def test_an_impossible_place_is_named(tmp_path, name, value):
    with pytest.raises(UserError, match=f"IM001.dcm: is not a readable DICOM slice .*{name}"):
        values(tmp_path, ARRAY, **{name: value})


# ------------------------------------------------------------------------------------ bits and transfer syntaxes


def jpeg2000(files: list[Path]) -> None:
    for file in files:
        data, packed = pydicom.dcmread(file), io.BytesIO()
        stored = np.frombuffer(data.PixelData, "<u2").reshape(data.Rows, data.Columns)
        Image.fromarray(stored).save(packed, format="JPEG2000", irreversible=False, no_jp2=True)
        data.PixelData = encapsulate([packed.getvalue()])
        data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
        data.file_meta.TransferSyntaxUID = JPEG2000Lossless
        write(data, file)


def by_pydicom(syntax):
    def pack(files: list[Path]) -> None:
        for file in files:
            data = pydicom.dcmread(file)
            data.compress(syntax, generate_instance_uid=False)
            write(data, file)

    return pack


def deflated(files: list[Path]) -> None:
    for file in files:
        data = pydicom.dcmread(file)
        data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        write(data, file)


@pytest.mark.parametrize("packed", [lambda files: None, by_pydicom(RLELossless), jpeg2000, deflated])
@pytest.mark.parametrize("is_signed", [False, True])
def test_bits_that_are_not_of_the_value_are_cut_off(tmp_path, packed, is_signed):
    """12 bits are stored, in the others lies an old overlay."""
    true = ARRAY.astype(np.int16) - (450 if is_signed else 0)
    stored = (true & 0xFFF).astype(np.uint16) | np.uint16(1 << 14)
    files = write_series(tmp_path, stored, BitsStored=12, HighBit=11, PixelRepresentation=int(is_signed))
    packed(files)
    np.testing.assert_array_equal(read(files), true)


def test_the_value_may_lie_in_the_high_bits(tmp_path):
    for name, true in (("unsigned", ARRAY), ("signed", HU)):
        stored = (true.astype(np.int32) << 4 | 5).astype(true.dtype)
        np.testing.assert_array_equal(values(tmp_path / name, stored, BitsStored=12, HighBit=15), true)


def by_itk(compressor: str):
    def pack(files: list[Path]) -> None:
        for file in files:
            writer = SimpleITK.ImageFileWriter()
            writer.SetImageIO("GDCMImageIO")
            writer.KeepOriginalImageUIDOn()
            writer.UseCompressionOn()
            writer.SetCompressor(compressor)
            image = SimpleITK.ReadImage(str(file))
            writer.SetFileName(str(file))
            writer.Execute(image)

    return pack


@pytest.mark.parametrize(
    ("syntax", "pack"),
    [
        (JPEGLosslessSV1, by_itk("JPEG")),
        (JPEGLSLossless, by_pydicom(JPEGLSLossless)),
        (JPEG2000Lossless, jpeg2000),
        (RLELossless, by_pydicom(RLELossless)),
    ],
    ids=["JPEG", "JPEG-LS", "JPEG 2000", "RLE"],
)
def test_compressed_series_are_read_as_they_were(tmp_path, syntax, pack):
    if not get_decoder(syntax).is_available:
        pytest.skip("its decoder is not installed (requirements-dev.txt)")
    files = write_series(tmp_path, ARRAY)
    pack(files)
    assert {pydicom.dcmread(file).file_meta.TransferSyntaxUID for file in files} == {syntax}
    np.testing.assert_array_equal(read(files), ARRAY)


@pytest.mark.parametrize(
    ("syntax", "package"),
    [(JPEGLosslessSV1, "pylibjpeg-libjpeg"), (JPEGLSLossless, "pyjpegls"), (HTJ2KLossless, "pylibjpeg-openjpeg")],
)
def test_the_hint_names_what_reads_the_transfer_syntax(tmp_path, monkeypatch, syntax, package):
    plugin = pyjpegls if package == "pyjpegls" else pylibjpeg
    name = plugin.__name__.rpartition(".")[2]
    monkeypatch.setattr(get_decoder(syntax), "_available", {})  # whatever is installed here
    monkeypatch.setattr(get_decoder(syntax), "_unavailable", {name: plugin.DECODER_DEPENDENCIES[syntax]})
    files = write_series(tmp_path, ARRAY, PixelData=encapsulate([b"\xff\xd8\xff\xd9"]))
    for file in files:
        data = pydicom.dcmread(file)
        data.file_meta.TransferSyntaxUID = syntax
        data["PixelData"].is_undefined_length = True
        write(data, file)
    with pytest.raises(UserError, match=rf"which nothing installed reads; pip install .*{package}, or decompress"):
        read(files)


def test_pixels_that_cannot_be_decoded_are_refused(tmp_path):
    files = write_series(tmp_path, ARRAY)
    files[1].write_bytes(files[1].read_bytes()[:-60])
    with pytest.raises(UserError, match=r"IM002.dcm: its pixels cannot be read, the file is damaged or cut short"):
        read(files)
    files = write_series(tmp_path, ARRAY)
    jpeg2000(files)
    content = files[1].read_bytes()
    at = content.index(b"\xff\x4f\xff\x51") + 4
    files[1].write_bytes(content[:at] + bytes(40) + content[at + 40 :])
    with pytest.raises(UserError, match=r"damaged, or compressed in an unusual way \(JPEG 2000 .*decompress the"):
        read(files)
