"""What predict.py leaves for other programs: DICOM Segmentations, colours, pages; and the checkpoint that ships."""

import shutil

import numpy as np
import pydicom
import pytest
import torch

import predict
from data.phantom_raw import SLOPE, write_series
from dataloaders.prediction import segmentation
from dataloaders.raw import dicom
from tests.test_predict import failure, run, scan, segment  # noqa: F401  (fixtures)
from util import checkpoints, shipped
from util.runs import folders
from util.volume import Geometry, read_volume

TURN = np.radians(20)  # about two axes, so that no axis of the series is one of the patient
OBLIQUE = np.array([[np.cos(TURN), -np.sin(TURN), 0], [np.sin(TURN), np.cos(TURN), 0], [0, 0, 1]]) @ np.array(
    [[1, 0, 0], [0, np.cos(TURN / 2), -np.sin(TURN / 2)], [0, np.sin(TURN / 2), np.cos(TURN / 2)]]
)


@pytest.fixture
def series(scan, tmp_path):  # noqa: F811
    """Scan 1 as a DICOM series under shuffled names, straight or oblique; returns its folder."""

    def write(direction: np.ndarray) -> str:
        volume = read_volume(scan("image_1"))
        geometry = Geometry(volume.geometry.spacing, (-20.0, -30.0, 40.0), tuple(direction.ravel().tolist()))
        names = [f"s{at}" for at in np.random.default_rng(0).permutation(len(volume.array))]
        write_series(tmp_path / "in/patient", names, np.rint(volume.array / SLOPE), geometry, "1.2.3")
        return tmp_path / "in"

    return write


def unpacked(file) -> tuple[pydicom.Dataset, dict[tuple[int, str], np.ndarray]]:
    """A DICOM Segmentation read with pydicom alone: (segment, SOPInstanceUID of the slice) -> mask `(H, W)`."""
    data = pydicom.dcmread(file)
    size = data.Rows * data.Columns
    bits = np.unpackbits(np.frombuffer(data.PixelData, np.uint8), bitorder="little")[: size * data.NumberOfFrames]
    masks = {}
    for mask, frame in zip(
        bits.reshape(-1, data.Rows, data.Columns), data.PerFrameFunctionalGroupsSequence, strict=True
    ):
        segment_number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        source = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        masks[segment_number, source] = mask.astype(bool)
        masks[segment_number, source, "place"] = frame.PlanePositionSequence[0].ImagePositionPatient
    return data, masks


@pytest.mark.parametrize("direction", [np.eye(3), OBLIQUE], ids=["straight", "oblique"])
def test_a_dicom_series_gets_a_dicom_segmentation_voxel_by_voxel(segment, series, tmp_path, direction):  # noqa: F811
    pytest.importorskip("highdicom", reason="highdicom is not installed (requirements-dev.txt)")
    assert segment(tmp_path / "out", series(direction)) == 0
    labels = read_volume(tmp_path / "out/patient.nii.gz")
    data, masks = unpacked(tmp_path / "out/patient.dcm")
    slices = {file.SOPInstanceUID: file for file in map(pydicom.dcmread, (tmp_path / "in/patient").iterdir())}
    names = [item.SegmentLabel for item in data.SegmentSequence]
    assert names == ["liver", "right kidney", "left kidney", "spleen"] and len(np.unique(labels.array)) > 2
    kidney = data.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0]
    assert (kidney.CodeValue, kidney.CodingSchemeDesignator) == ("64033007", "SCT")
    assert kidney.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Right"
    assert data.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "fsmis adnet"
    first = next(iter(slices.values()))
    assert data.FrameOfReferenceUID == first.FrameOfReferenceUID and data.StudyInstanceUID == first.StudyInstanceUID
    orientation = data.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    np.testing.assert_allclose(orientation, first.ImageOrientationPatient, atol=1e-5)
    # where pydicom says a slice lies is where the NIfTI file, read by nibabel, has the same voxels
    axes = np.reshape(labels.geometry.direction, (3, 3))
    found = np.zeros_like(labels.array)
    for uid, file in slices.items():
        away = (np.array(file.ImagePositionPatient, float) - labels.geometry.origin) @ axes
        assert np.abs(away[:2]).max() < 1e-3
        z = round(away[2] / labels.geometry.spacing[2])
        for identifier in (1, 2, 3, 4):
            if (identifier, uid) in masks:
                found[z][masks[identifier, uid]] = identifier
                place = np.array(masks[identifier, uid, "place"], float)
                np.testing.assert_allclose(place, np.array(file.ImagePositionPatient, float), atol=1e-3)
    np.testing.assert_array_equal(found, labels.array)


def test_a_series_without_a_frame_of_reference_is_segmented_and_told(segment, series, tmp_path, capsys):  # noqa: F811
    pytest.importorskip("highdicom", reason="highdicom is not installed (requirements-dev.txt)")
    folder = series(np.eye(3))
    for file in (folder / "patient").iterdir():
        data = pydicom.dcmread(file)
        del data.FrameOfReferenceUID
        data.save_as(file)
    assert segment(tmp_path / "out", folder, organs="liver=1") == 0
    assert "patient: its slices name no frame of reference" in capsys.readouterr().out
    assert (tmp_path / "out/patient.nii.gz").is_file() and not (tmp_path / "out/patient.dcm").exists()


def test_without_the_package_one_sentence_says_so(series, monkeypatch):
    monkeypatch.setattr(segmentation, "PACKAGE", "no_such_package")
    assert "pip install no_such_package" in segmentation.hindrance(next((series(np.eye(3)) / "patient").iterdir()))


def test_the_same_labels_make_the_same_object_and_others_another(series, tmp_path):
    pytest.importorskip("highdicom", reason="highdicom is not installed (requirements-dev.txt)")
    volume, slices = dicom.read_series(tuple((series(np.eye(3)) / "patient").iterdir()))
    labels, uids = np.zeros(volume.array.shape, np.uint8), []
    for z in (2, 2, 3):
        labels[:] = 0
        labels[z, 3:9, 4:8] = 7
        segmentation.write_segmentation(tmp_path / "s.dcm", slices, labels, {7: "a cyst"}, "adnet", "abc")
        uids.append(pydicom.dcmread(tmp_path / "s.dcm").SOPInstanceUID)
    assert uids[0] == uids[1] != uids[2]


def test_names_and_colours_for_other_programs(segment, scan, tmp_path):  # noqa: F811
    assert segment(tmp_path / "out", scan("image_1"), organs=["liver=1", 'left "kidney"=3']) == 0
    snap = (tmp_path / "out/labels.txt").read_text("utf-8").splitlines()
    rows = [line.split(None, 7) for line in snap if not line.startswith("#")]
    assert [row[0] for row in rows] == ["0", "1", "3"] and rows[2][7] == "\"left 'kidney'\""
    slicer = [line.split() for line in (tmp_path / "out/labels.ctbl").read_text("utf-8").splitlines()[1:]]
    assert all(len(row) == 6 for row in slicer) and [row[0] for row in slicer] == ["0", "1", "3"]
    assert [row[1:4] for row in rows[1:]] == [row[2:5] for row in slicer[1:]]
    page = (tmp_path / "out/image_1.html").read_text("utf-8")
    assert "DecompressionStream" in page and "://" not in page and page.count("</script>") == 2


# ----------------------------------------------------------------------------------------- the checkpoint that ships


def test_a_run_becomes_the_checkpoint_that_ships(segment, run, scan, tmp_path, capsys, monkeypatch):  # noqa: F811
    about = ["--data", "PHANTOM", "--licence", "MIT", "--out", str(tmp_path / "shipped")]
    assert shipped.main([str(run), "--name", "small", *about]) == 0
    file = tmp_path / "shipped/small.pt"
    whole = folders.latest_checkpoint(run)
    assert file.stat().st_size < whole.stat().st_size / 3.5  # no momentum, half of the bits
    card = (tmp_path / "shipped/README.md").read_text("utf-8")
    assert "`adnet` on `efficientnet_lite0`" in card and "scans 5, 6" in card and str(tmp_path) not in card
    content = checkpoints.load_checkpoint(file)
    assert str(run.parents[1]) not in str({key: value for key, value in content.items() if key != "model"})
    assert {value.dtype for value in content["model"].values()} == {torch.float16, torch.int64}

    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "shipped")
    segment(tmp_path / "named", scan("image_1"))
    capsys.readouterr()
    words = ["--support-image", scan("image_4"), "--support-label", scan("label_4"), "--query", scan("image_1")]
    assert predict.main([*map(str, words), "--out", str(tmp_path / "out"), "--threads", "1"]) == 0
    assert "taking the one that ships" in capsys.readouterr().out
    one, two = (read_volume(tmp_path / name / "image_1.nii.gz").array for name in ("named", "out"))
    assert (one == two).mean() > 0.99

    file.write_bytes(file.read_bytes()[:-1])
    assert predict.main([*map(str, words), "--out", str(tmp_path / "out2")]) == 1
    assert "small.pt: is missing or damaged" in failure(capsys)
    shutil.rmtree(tmp_path / "shipped")
    assert predict.main([*map(str, words), "--out", str(tmp_path / "out2")]) == 1
    assert "no checkpoint ships with this version" in failure(capsys)


def test_weights_too_large_for_half_precision_are_refused(run, tmp_path, capsys):  # noqa: F811
    content = checkpoints.load_checkpoint(folders.latest_checkpoint(run))
    name = next(iter(content["model"]))
    content["model"][name].flatten()[0] = 1e6
    checkpoints.save_checkpoint(tmp_path / "large.pt", {k: v for k, v in content.items() if k != "format"})
    words = [str(tmp_path / "large.pt"), "--data", "x", "--licence", "y", "--out", str(tmp_path / "shipped")]
    assert shipped.main(words) == 1
    assert f"{name}: is too large for half precision" in capsys.readouterr().err
    assert not (tmp_path / "shipped").exists()


# --------------------------------------------------------------------------------------------- for other programs


def test_volumes_are_segmented_without_files(segment, run, scan, tmp_path):  # noqa: F811
    assert segment(tmp_path / "out", scan("image_1")) == 0
    volumes = [read_volume(scan(name)) for name in ("image_1", "image_4", "label_4")]
    found = predict.segment_volume(*volumes, run)
    np.testing.assert_array_equal(found, read_volume(tmp_path / "out/image_1.nii.gz").array)
    method = predict.load_members([str(run)], torch.device("cpu"))[0].method
    own = predict.segment_volume(*volumes, method, voting=False)
    assert own.shape == found.shape and set(np.unique(own)) <= {0, 1, 2, 3, 4} and own.any()
