"""Segmenting one's own scans: the same organ on any grid, headers kept, mistakes as sentences, nothing done twice."""

import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import nibabel
import numpy as np
import pytest
import torch

import predict
from data.phantom_raw import SLOPE, write_series
from dataloaders.prediction.cleaning import cleaned
from dataloaders.prediction.sheet import draw_sheet
from dataloaders.raw.preparation import reordered
from tests.commands import only_run, train
from tests.dicom_files import pixels
from tests.dicom_files import write_series as write_dicom
from util import checkpoints
from util.volume import Geometry, Volume, read_volume, write_like, write_volume


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A run of three steps on the tiny phantom."""
    runs = tmp_path_factory.mktemp("runs")
    train(f"data_root={tiny}", f"runs={runs}")
    return only_run(runs)


@pytest.fixture
def scan(tiny):
    """Files by name, such as scan("image_4")."""
    return lambda name: tiny / "PHANTOM/phantom_MR_normalized" / f"{name}.nii.gz"


@pytest.fixture
def segment(run, scan):
    """`python predict.py` with the run and scan 4 as support, unless the call says otherwise; returns the status."""

    def call(out, *queries, **changes) -> int:
        options = {
            "checkpoint": run,
            "support_image": scan("image_4"),
            "support_label": scan("label_4"),
            "query": queries,
            "out": out,
            "threads": 1,
            **changes,
        }
        words = []
        for name, value in options.items():
            values = value if isinstance(value, list | tuple) else [value]
            words += [f"--{name.replace('_', '-')}", *(str(v) for v in values if v is not True)]
        return predict.main(words)

    return call


def record(out) -> dict:
    return json.loads((out / "predictions.json").read_text("utf-8"))


def failure(capsys) -> str:
    """The one line on stderr that says what is wrong."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:") or " failed: " in line]
    assert len(lines) == 1, lines
    return lines[0]


def test_the_same_voxels_stored_in_another_way_get_the_same_labels(segment, scan, tmp_path):
    """Flipped and swapped NIfTI, a DICOM series under shuffled names: only the order of voxels differs."""
    original = read_volume(scan("image_1"))
    ways = {"flipped": (False, (-1, -1, -1)), "swapped": (True, (1, -1, 1))}
    for name, way in ways.items():
        other = reordered(original, *way)
        write_volume(tmp_path / f"in/{name}.nii.gz", np.ascontiguousarray(other.array), other.geometry)
    reversed_slices = reordered(original, False, (-1, 1, 1))  # still right-handed, as DICOM is
    names = [f"slice{at}" for at in np.random.default_rng(0).permutation(len(original.array))]
    pixels = np.rint(reversed_slices.array / SLOPE)
    write_series(tmp_path / "in/patient/T2", names, pixels, reversed_slices.geometry, "1.2.3")
    shutil.copy(scan("image_1"), tmp_path / "in/as_it_is.nii.gz")
    assert segment(tmp_path / "out", tmp_path / "in") == 0
    expected = read_volume(tmp_path / "out/as_it_is.nii.gz")
    assert len(np.unique(expected.array)) > 2
    for name, way in (*ways.items(), ("patient_T2", (False, (-1, 1, 1)))):
        found = read_volume(tmp_path / f"out/{name}.nii.gz")
        there = reordered(expected, *way)
        np.testing.assert_array_equal(found.array, there.array)
        assert found.geometry.matches(there.geometry, 1e-4)
    assert (tmp_path / "out/patient_T2.png").read_bytes().startswith(b"\x89PNG")


def test_the_header_of_a_query_is_kept_bit_by_bit(segment, scan, tmp_path):
    source = nibabel.load(scan("image_1"))
    source.header.set_xyzt_units("mm", "sec")
    source.set_qform(source.affine, code=1)
    source.set_sform(source.affine @ np.diag([1, 1, 1, 1]), code=4)
    source.header["descrip"], source.header["cal_max"] = b"a scanner", 900
    nibabel.save(source, tmp_path / "query.nii")
    assert segment(tmp_path / "out", tmp_path / "query.nii", probabilities=True) == 0
    source = nibabel.load(tmp_path / "query.nii")
    for file in (tmp_path / "out/query.nii.gz", tmp_path / "out/probabilities/query_left_kidney.nii.gz"):
        result = nibabel.load(file)
        assert (result.affine == source.affine).all() and result.shape == source.shape
        for key in ("pixdim", "qform_code", "sform_code", "quatern_b", "qoffset_z", "srow_x", "xyzt_units"):
            assert np.array_equal(result.header[key], source.header[key]), key
    assert result.get_data_dtype() == np.float32


def test_what_a_header_leaves_in_doubt_is_said_and_the_result_lies_where_viewers_show_the_scan(
    segment, scan, tmp_path, capsys
):
    """The same voxels under a sound header, one whose transforms exchange left and right, and as four dimensions."""
    sound = nibabel.load(scan("image_1"))
    voxels = np.asarray(sound.dataobj)
    shutil.copy(scan("image_1"), tmp_path / "sound.nii.gz")
    doubtful = nibabel.Nifti1Image(voxels, sound.affine)
    doubtful.set_sform(sound.affine, 1)
    doubtful.set_qform(np.diag([-1, 1, 1, 1]) @ sound.affine, 1)
    doubtful.to_filename(tmp_path / "doubtful.nii")
    nibabel.Nifti1Image(voxels[..., None], sound.affine).to_filename(tmp_path / "four.nii.gz")
    queries = [tmp_path / name for name in ("sound.nii.gz", "doubtful.nii", "four.nii.gz")]
    assert segment(tmp_path / "out", *queries) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning:" in line]
    assert len(warnings) == 1 and f"{tmp_path}/doubtful.nii: its qform is not its sform: one mirrors" in warnings[0]
    expected, mended, four = (nibabel.load(tmp_path / f"out/{name}.nii.gz") for name in ("sound", "doubtful", "four"))
    assert len(np.unique(expected.dataobj)) > 2 and four.shape == (*sound.shape, 1)
    for result in (mended, four):
        np.testing.assert_array_equal(np.asarray(result.dataobj).reshape(sound.shape), expected.dataobj)
        np.testing.assert_allclose(result.affine, sound.affine, atol=1e-4)
    np.testing.assert_allclose(mended.get_qform(), mended.get_sform(), atol=1e-4)


def test_prepared_looks_at_the_values_before_it_believes(segment, scan, tmp_path, capsys):
    volume = read_volume(scan("image_1"))
    scaled = (volume.array / volume.array.max()).astype(np.float32)
    write_volume(tmp_path / "scaled.nii.gz", scaled, volume.geometry)
    assert segment(tmp_path / "out", tmp_path / "scaled.nii.gz", prepared=True) == 1
    line = failure(capsys)
    assert "scaled failed: " in line and "has values from 0 to 1, the prepared training scans from 0 to" in line
    assert segment(tmp_path / "out2", scan("image_1"), prepared=True, organs="liver=1") == 0


def test_ensembles_average_and_the_highest_probability_wins(segment, run, scan, tmp_path, tiny):
    train(f"data_root={tiny}", f"runs={tmp_path / 'runs'}", "seed=5", "train.learning_rate=0.01")
    other = only_run(tmp_path / "runs")
    one, two = {}, {"support_image": scan("image_2"), "support_label": scan("label_2")}
    cases = {
        "a": one, "b": two, "c": {"checkpoint": other}, "d": {"checkpoint": other, **two},
        "all": {
            "checkpoint": [run, other],
            "support_image": [scan("image_4"), scan("image_2")],
            "support_label": [scan("label_4"), scan("label_2")],
        },
    }  # fmt: skip
    found = {}
    for name, changes in cases.items():
        assert segment(tmp_path / name, scan("image_1"), probabilities=True, no_voting=True, **changes) == 0
        files = [f"image_1_{organ}.nii.gz" for organ in ("liver", "right_kidney", "left_kidney", "spleen")]
        found[name] = np.stack([read_volume(tmp_path / name / "probabilities" / file).array for file in files])
    assert np.abs(found["a"] - found["d"]).max() > 0.05
    np.testing.assert_allclose(found["all"], np.mean([found[name] for name in "abcd"], axis=0), atol=1e-5)
    labels = read_volume(tmp_path / "all/image_1.nii.gz").array
    assert (np.where(found["all"].max(0) > 0.5, found["all"].argmax(0) + 1, 0) == labels).all()
    millilitres = record(tmp_path / "all")["scans"]["image_1"]["millilitres"]
    assert set(millilitres) == {"liver", "right kidney", "left kidney", "spleen"}


def test_supervoxels_vote_unless_they_are_told_not_to(segment, scan, tmp_path):
    for name, changes in {"voted": {}, "own": {"no_voting": True}}.items():
        assert segment(tmp_path / name, scan("image_1"), **changes) == 0
        assert record(tmp_path / name)["settings"]["voting"] is (name == "voted")
    voted, own = (read_volume(tmp_path / name / "image_1.nii.gz").array for name in ("voted", "own"))
    assert (voted != own).any()


def test_what_is_done_is_not_done_again(segment, scan, tmp_path, capsys):
    out = tmp_path / "out"
    assert segment(out, scan("image_1")) == 0
    before = (out / "image_1.nii.gz").stat().st_mtime_ns
    assert segment(out, scan("image_1"), scan("image_2")) == 0
    assert "2 scans: 1 segmented, 1 were there, 0 failed" in capsys.readouterr().out
    assert (out / "image_1.nii.gz").stat().st_mtime_ns == before
    assert segment(out, scan("image_1"), pairing="whole") == 1
    assert "made with other parameters (pairing similar and not whole); choose another folder" in failure(capsys)
    assert segment(out, scan("image_1"), pairing="whole", overwrite=True) == 0
    assert (out / "image_1.nii.gz").stat().st_mtime_ns > before
    (out / "image_1.png").unlink()
    assert segment(out, scan("image_1"), pairing="whole") == 0 and (out / "image_1.png").is_file()


@pytest.mark.parametrize("pairing", ["position", "whole", "propagate", "volume"])
def test_every_pairing(segment, scan, tmp_path, pairing):
    shots = {} if pairing == "volume" else {"shots": 2}
    assert segment(tmp_path, scan("image_1"), pairing=pairing, organs="spleen=4", **shots) == 0
    assert set(np.unique(read_volume(tmp_path / "image_1.nii.gz").array)) <= {0, 4}


def test_methods_that_see_whole_volumes(segment, run, scan, tmp_path, tiny, capsys):
    train(f"data_root={tiny}", f"runs={tmp_path}", "method=adnet3d", "episode.crop=[4,48,48]", "stride=8")
    volumes = tmp_path / "adnet3d_PHANTOM_fold0/1"
    assert segment(tmp_path / "alone", scan("image_1"), checkpoint=volumes, memory_gb=0.5) == 0
    assert segment(tmp_path / "both", scan("image_1"), checkpoint=[run, volumes]) == 0
    for name in ("alone", "both"):
        assert record(tmp_path / name)["settings"]["pairing"] == "volume"
        assert len(np.unique(read_volume(tmp_path / name / "image_1.nii.gz").array)) > 1
    capsys.readouterr()
    assert segment(tmp_path / "similar", scan("image_1"), checkpoint=volumes, pairing="similar") == 1
    assert "sees whole volumes, no slices" in failure(capsys)


def test_one_bad_file_does_not_stop_the_rest(segment, scan, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name in ("image_1", "label_1", "image_3"):  # the label is known as one and left out
        shutil.copy(scan(name), tmp_path / "in")
    (tmp_path / "in/image_2.nii.gz").write_bytes(scan("image_2").read_bytes()[:5000])
    write_dicom(tmp_path / "in/series", pixels())[2].unlink()
    assert segment(tmp_path / "out", tmp_path / "in") == 1
    printed = capsys.readouterr()
    assert "4 scans: 2 segmented, 0 were there, 2 failed" in printed.out
    assert f"series failed: {tmp_path}/in/series: a slice is missing between IM002.dcm and IM004.dcm" in printed.err
    assert f"image_2 failed: {tmp_path}/in/image_2.nii.gz: cannot be read, the file is damaged" in printed.err
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["image_1.nii.gz", "image_3.nii.gz"]
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (lambda a: a[0], "a 3D volume with one value per voxel is expected, this one has size (64, 64)"),
        (
            lambda a: np.stack([a, a]),
            "a 3D volume with one value per voxel is expected, this one has size (64, 64, 16, 2)",
        ),
        (
            lambda a: np.where(a == a.max(), np.nan, a).astype(np.float32),
            "voxel(s) are NaN or infinite; repair the scan",
        ),
        (lambda a: a - np.int16(1000), "as CT and the checkpoint was trained on MR"),
        (lambda a: a * 0, "every voxel has the value 0"),
    ],
)
def test_queries_that_cannot_be_segmented(segment, scan, tmp_path, capsys, array, expected):
    volume = read_volume(scan("image_1"))
    data = array(volume.array).T
    nibabel.save(nibabel.Nifti1Image(data, np.diag([-5.0, 5, 15.4, 1])), tmp_path / "bad.nii.gz")
    assert segment(tmp_path / "out", tmp_path / "bad.nii.gz") == 1
    line = failure(capsys)
    assert line.startswith("bad failed: ") and expected in line


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda v: (v.array * 0, v.geometry), "shows no organ at all; is it the right label?"),
        (
            lambda v: (v.array[:-1], v.geometry),
            "has shape (15, 64, 64) (slices, rows, columns), its image (16, 64, 64)",
        ),
        (lambda v: (v.array, Geometry((4.0, 5.0, 15.4), v.geometry.origin)), "its header places it elsewhere"),
        (lambda v: (v.array * 0.5, v.geometry), "holds the label value(s) 0.5"),
    ],
)
def test_supports_that_say_nothing(segment, scan, tmp_path, capsys, change, expected):
    write_volume(tmp_path / "label.nii.gz", *change(read_volume(scan("label_4"))))
    assert segment(tmp_path / "out", scan("image_1"), support_label=tmp_path / "label.nii.gz") == 1
    line = failure(capsys)
    assert line.startswith(f"error: {tmp_path}/label.nii.gz: ") and expected in line


def test_wrong_calls_are_one_sentence(segment, run, scan, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    content = checkpoints.load_checkpoint(run / "checkpoints/step_000003.pt")
    content["preparation"]["plan"]["spacing"] = (1.0, 1.0, 3.0)
    torch.save({**content, "config": {**content["config"], "dataset": "CHAOST2"}}, tmp_path / "other.pt")
    del content["preparation"]
    torch.save(content, tmp_path / "old.pt")
    shutil.copy(scan("image_1"), tmp_path / "empty/x.nii")
    query, twin = scan("image_1"), tmp_path / "image_4.nii.gz"
    shutil.copy(query, twin)
    for queries, changes, expected in (
        ([query], {"out": tmp_path / "file"}, f"{tmp_path}/file: is a file; name a folder to write to"),
        ([query], {"checkpoint": tmp_path / "foreign.pt"}, "foreign.pt: not a checkpoint of this program"),
        ([query], {"checkpoint": tmp_path / "old.pt"}, "does not say how its training scans were prepared"),
        ([query], {"checkpoint": [run, tmp_path / "other.pt"]}, "an ensemble needs one preparation"),
        ([query], {"checkpoint": tmp_path / "empty"}, "this folder holds no checkpoint"),
        ([query], {"support_image": [query, query]}, "every annotated image needs its label"),
        ([query], {"organs": "heart=9"}, "--organs heart=9: no support shows this id; there are [1, 2, 3, 4]"),
        ([query], {"device": "cuda:99"}, "not available here"),
        ([tmp_path / "nowhere"], {}, f"{tmp_path}/nowhere: no such file or folder"),
        ([run], {}, f"{run}: holds neither NIfTI files nor folders with DICOM series"),
        ([query, query], {}, "both would be called image_1; rename one"),
        ([query], {"out": query.parent}, "holds the scans themselves; name another folder with --out"),
        (
            [twin],
            {"out": query.parent, "overwrite": True},
            f"{scan('image_4')}: is an annotated scan, and a query would",
        ),
    ):
        assert segment(changes.pop("out", tmp_path / "out"), *queries, **changes) == 1, expected
        line = failure(capsys)
        assert line.startswith("error: ") and expected in line


def test_names_are_those_of_the_data_set_only_where_the_label_is_its_own(segment, scan, tmp_path, capsys):
    label = read_volume(scan("label_4"))
    write_volume(tmp_path / "label.nii.gz", label.array.astype(np.int16) * 300, label.geometry)
    assert segment(tmp_path / "out", scan("image_1"), support_label=tmp_path / "label.nii.gz") == 0
    assert "segmenting label 300 (300), label 600 (600)" in capsys.readouterr().out
    assert read_volume(tmp_path / "out/image_1.nii.gz").array.max() > 255


def test_names_that_are_not_distinct_are_refused_before_work(segment, scan, tmp_path, capsys):
    for organs in (["kidney=2", "kidney=3"], ["liver=1", "leber=1"], ["kidney/L=2", "kidney L=3"]):
        assert segment(tmp_path / "out", scan("image_1"), organs=organs, probabilities=True) == 1
        assert failure(capsys).startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_ids_of_a_label_that_is_not_the_data_sets_own_have_no_names(segment, scan, tmp_path, capsys):
    """1 and 2 may be spleen and liver in it; only a label that is known byte by byte is known."""
    label = read_volume(scan("label_4"))
    write_volume(tmp_path / "label.nii.gz", np.array([0, 2, 0, 0, 1], np.uint8)[label.array], label.geometry)
    assert segment(tmp_path / "out", scan("image_1"), support_label=tmp_path / "label.nii.gz") == 0
    assert "segmenting label 1 (1), label 2 (2)" in capsys.readouterr().out
    assert set(record(tmp_path / "out")["scans"]["image_1"]["millilitres"]) == {"label 1", "label 2"}


def test_supports_are_refused_if_image_and_label_are_exchanged_or_one(segment, scan, tmp_path, capsys):
    exchanged = {"support_image": scan("label_4"), "support_label": scan("image_4")}
    assert segment(tmp_path / "out", scan("image_1"), **exchanged) == 1
    assert "are image and label exchanged?" in failure(capsys)
    assert segment(tmp_path / "out", scan("image_1"), support_image=scan("label_4")) == 1
    assert "has the same voxels as its label" in failure(capsys)


def test_labels_beside_the_scans_are_named_and_not_segmented(segment, scan, tmp_path, capsys):
    for kind in ("image", "label"):
        (tmp_path / "in" / f"{kind}s").mkdir(parents=True)
        shutil.copy(scan(f"{kind}_1"), tmp_path / "in" / f"{kind}s/scan_1.nii.gz")
    assert segment(tmp_path / "out", tmp_path / "in", organs="spleen=4") == 1
    told = capsys.readouterr()
    assert "2 scans: 1 segmented" in told.out
    assert "labels_scan_1 failed: " in told.err and "few of them and large areas of each, as a label has" in told.err


def test_parts_of_a_series_that_are_named_one_by_one_are_refused(segment, tmp_path, capsys):
    files = write_dicom(tmp_path / "one", pixels())
    (tmp_path / "two").mkdir()
    for file in files[3:]:
        file.rename(tmp_path / "two" / file.name)
    assert segment(tmp_path / "out", tmp_path / "one", tmp_path / "two") == 1
    assert f"{tmp_path}/one and {tmp_path}/two: hold parts of one series" in failure(capsys)


def test_results_damaged_since_are_made_again_and_those_of_an_earlier_call_are_no_scans(
    segment, scan, tmp_path, capsys
):
    for number in (1, 2, 3):
        (tmp_path / "in").mkdir(exist_ok=True)
        shutil.copy(scan(f"image_{number}"), tmp_path / f"in/scan_{number}.nii.gz")
    out = tmp_path / "in/out"
    assert segment(out, tmp_path / "in", organs="spleen=4") == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (out / "scan_1.nii.gz").write_bytes(b"")
    (out / "scan_2.nii.gz").write_bytes(before[out / "scan_2.nii.gz"][:-30])
    changed = bytearray(before[out / "scan_3.nii.gz"])
    changed[len(changed) // 2] ^= 1
    (out / "scan_3.nii.gz").write_bytes(changed)
    assert segment(out, tmp_path / "in", organs="spleen=4") == 0
    assert "3 scans: 3 segmented, 0 were there" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert segment(tmp_path / "in/two", tmp_path / "in", organs="spleen=4", pairing="whole") == 0
    told = capsys.readouterr().out
    assert "3 scans: 3 segmented" in told and "out: holds results of an earlier call (predictions.json)" in told


def test_overwriting_one_scan_leaves_the_others_or_no_mixture(segment, scan, tmp_path, capsys):
    assert segment(tmp_path, scan("image_1"), scan("image_2"), organs="spleen=4") == 0
    kept = record(tmp_path)["scans"]["image_2"]
    assert segment(tmp_path, scan("image_1"), overwrite=True, organs="spleen=4") == 0
    assert record(tmp_path)["scans"]["image_2"] == kept
    assert segment(tmp_path, scan("image_1"), overwrite=True, organs="liver=1") == 0
    assert "removed image_2, made with other parameters" in capsys.readouterr().out
    assert set(record(tmp_path)["scans"]) == {"image_1"} and not (tmp_path / "image_2.nii.gz").exists()


def test_what_is_no_scan_is_named_and_a_scan_that_is_gone_fails(segment, scan, tmp_path, capsys):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(scan("image_1"), folder / "a.nii.gz")
    volume = read_volume(scan("image_2"))
    write_volume(folder / "deep/b.nrrd", volume.array, volume.geometry)
    (folder / "notes.txt").write_text("x")
    (folder / "gone.nii.gz").symlink_to("nowhere.nii.gz")
    os.mkfifo(folder / "pipe.nii.gz")
    assert segment(tmp_path / "out", folder, organs="spleen=4") == 1
    told = capsys.readouterr()
    assert "2 scans: 2 segmented" in told.out and "pipe.nii.gz: is a" in told.out
    assert [line for line in told.out.splitlines() if "notes.txt" in line and "left out" in line]
    assert "gone.nii.gz failed: is a link to nowhere.nii.gz" in told.err
    assert read_volume(tmp_path / "out/deep_b.nii.gz").geometry.matches(volume.geometry)


def test_two_commands_at_once_share_the_scans(segment, scan, tmp_path, capfd):
    scans = [scan(f"image_{number}") for number in (1, 2, 3, 5, 6)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: segment(tmp_path / "both", *scans), range(2))) == [0, 0]
    told = capfd.readouterr().out
    made = [int(count) for count in re.findall(r"5 scans: (\d) segmented, \d were there, 0 failed", told)]
    assert len(made) == 2 and sum(made) == 5
    assert segment(tmp_path / "alone", *scans) == 0
    both, alone = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("both", "alone"))
    assert both == alone and len(alone) == 18  # three files a scan, the record, two tables of colours


@pytest.mark.parametrize("name", [os.fsdecode(b"bad\xff"), "a\nb", r"$\frac$", "日本", "x" * 200])
def test_any_name_can_be_drawn_and_written_as_nifti(tmp_path, name):
    volume, sound = Volume(pixels(), Geometry()), tmp_path / "sound.nii.gz"
    write_volume(sound, volume.array, volume.geometry)
    draw_sheet(tmp_path / f"{name}.png", volume, volume, {1: r"$\frac$"})
    write_like(tmp_path / f"{name}.nii.gz", volume.array, volume.geometry, sound)
    assert np.array_equal(read_volume(tmp_path / f"{name}.nii.gz").array, volume.array)
    assert (tmp_path / f"{name}.png").is_file()


def test_cleaning_up():
    labels = np.zeros((5, 12, 12), np.uint8)
    labels[0:5, 1:8, 1:8] = 1
    labels[2, 4, 4] = 0  # a hole
    labels[3, 3, 3] = 2  # another organ inside
    labels[2, 10, 10] = 1  # a speck
    labels[2, 8, 8] = 1  # touches by a corner
    largest = cleaned(labels, largest_component=True)
    assert largest[2, 10, 10] == 0 and largest[2, 8, 8] == 1 and largest[2, 4, 4] == 0 and largest[3, 3, 3] == 2
    filled = cleaned(labels, fill_holes=True)
    assert filled[2, 4, 4] == 1 and filled[3, 3, 3] == 2 and filled[2, 10, 10] == 1
    assert (cleaned(labels) == labels).all()
