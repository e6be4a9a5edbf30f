"""Own scans: names are paired, spacing, modality and folds guessed and told, and the result can be trained."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

import config
from data import custom, phantom_raw
from data.parts.plans import guess_plan
from dataloaders.raw.preparation import reordered
from dataloaders.raw.sources import Source
from supervoxels.generate import main as generate
from tests.commands import score, train
from util.dataset import from_file
from util.volume import Geometry, read_volume, write_volume


@pytest.fixture(scope="module")
def hearts(tmp_path_factory) -> Path:
    """Six tiny hearts under names of their own."""
    root = tmp_path_factory.mktemp("own")
    for index in range(6):
        phantom_raw.write_cardiac(root / "raw", 1, index, (8, 32, 32))
    for path in sorted((root / "raw").glob("*.nii.gz")):
        number, is_label = path.name.split("_")[0].removeprefix("patient"), path.name.count("_") > 1
        place = root / ("answers" if is_label else "images") / f"{'seg' if is_label else 'heart'}-{number}.nii.gz"
        place.parent.mkdir(exist_ok=True)
        shutil.copy(path, place)
    return root


def run(root: Path, out: Path, *options) -> int:
    values = (root / "images", root / "answers", out, "--jobs", 1, "--size", 32, *options)
    return custom.main([str(value) for value in values])


def test_own_scans_become_a_data_set_that_can_be_trained_and_tested(hearts, tmp_path, capsys):
    out = tmp_path / "HEARTS"
    assert run(hearts, out, "--organs", "LV=500", "right ventricle=600") == 0
    printed = capsys.readouterr().out
    assert "guessed MR" in printed and "guessed spacing 6.875 x 6.875 x 16.25 mm" in printed and "3 folds" in printed
    dataset, folds = from_file(out / "HEARTS.json")
    assert dataset.organs == {"LV": 500, "right ventricle": 600} and dataset.others == {"label 200": 200}
    assert dataset.scans(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert sorted(number for fold in folds for number in fold["query"]) == [1, 2, 3, 4, 5, 6]
    assert all(fold["support"] not in fold["query"] for fold in folds)
    assert (
        generate(
            [str(out / "hearts_normalized"), str(dataset.segment_folder(tmp_path)), "--min-size", "60", "--jobs", "1"]
        )
        == 0
    )
    updates = (f"dataset={out / 'HEARTS.json'}", f"runs={tmp_path / 'runs'}", "train.steps=1", "episode.min_size=5")
    train(*updates)
    score(*updates, "organs=LV")
    assert (tmp_path / "runs/adnet_HEARTS_fold0/2/scores.csv").is_file()
    config.DATASETS.pop(str(out / "HEARTS.json")), config.FOLDS.pop(str(out / "HEARTS.json"))


def test_the_file_is_not_written_over(hearts, tmp_path, capsys):
    assert run(hearts, tmp_path / "A") == 0
    file = tmp_path / "A/A.json"
    content = {**json.loads(file.read_text("utf-8")), "supervoxel_size": 77}
    file.write_text(json.dumps(content))
    assert run(hearts, tmp_path / "A") == 0
    assert (
        "is kept as it is, somebody edited it" in capsys.readouterr().out
        and json.loads(file.read_text("utf-8")) == content
    )


def test_dicom_series_are_accepted_as_images(tmp_path, capsys):
    """Also in two folders, with what was exported beside them."""
    phantom_raw.write_chaos(tmp_path / "raw", 1, 0, (8, 32, 32))
    folder = tmp_path / "raw/CHAOS_Train_Sets/Train_Sets/MR/1/T2SPIR"
    from dataloaders.raw.dicom import read_series

    image, _ = read_series(sorted((folder / "DICOM_anon").glob("*.dcm")))
    shutil.copytree(folder / "DICOM_anon", tmp_path / "images/case_7/one")
    (tmp_path / "images/case_7/two").mkdir()
    for file in sorted((tmp_path / "images/case_7/one").iterdir())[::2]:
        file.rename(tmp_path / "images/case_7/two" / file.stem)
    (tmp_path / "images/case_7/two/README.txt").write_text("hello")
    (tmp_path / "images/case_7/two/more.nii").write_text("no scan of its own")
    (tmp_path / "images/case_7").rename(tmp_path / "elsewhere")
    (tmp_path / "images/case_7").symlink_to(tmp_path / "elsewhere")
    write_volume(tmp_path / "answers/case_7_seg.nii.gz", (image.array > 300).astype(np.uint8), image.geometry)
    assert run(tmp_path, tmp_path / "out") == 0
    made = read_volume(tmp_path / "out/out_normalized/image_7.nii.gz")
    assert made.array.shape == (8, 32, 32)
    printed = capsys.readouterr().out
    assert "case_7: one series lies in 2 folders and is put together" in printed
    assert "left out 1 x no DICOM file: case_7/two/README.txt" in printed
    assert f"1 other file left out: {tmp_path}/images/case_7/two/more.nii" in printed
    assert "too few scans for folds" in printed


def test_negative_values_mean_ct(tmp_path, capsys):
    for number in (1, 2):
        phantom_raw.write_synapse(tmp_path / "raw", 1, number, (8, 32, 32))
    root = tmp_path / "raw/RawData/Training"
    (root / "img").rename(root / "images"), (root / "label").rename(root / "answers")
    assert run(root, tmp_path / "out") == 0
    assert "guessed CT" in capsys.readouterr().out
    image = read_volume(tmp_path / "out/out_normalized/image_2.nii.gz").array
    assert image.min() == 0 and image.max() == pytest.approx(255)


def test_what_is_guessed_of_an_image_needs_no_label_in_the_same_order(tmp_path):
    phantom_raw.write_synapse(tmp_path / "raw", 1, 1, (8, 32, 32))
    image, label = sorted((tmp_path / "raw/RawData/Training").rglob("*.nii.gz"))
    turned = reordered(read_volume(label), False, (1, -1, 1))
    write_volume(label, np.ascontiguousarray(turned.array), turned.geometry)
    plan, remarks = guess_plan({1: Source((image,), (label,))}, 32)
    assert plan.window == (-125, 275) and "guessed CT" in remarks[0] and "guessed spacing" in remarks[1]


def test_clipped_ct_is_still_ct_and_what_is_no_ct_is_not_windowed(tmp_path, capsys):
    for number in (1, 2, 3):
        phantom_raw.write_synapse(tmp_path / "raw", 1, number, (8, 32, 32))
    root = tmp_path / "raw/RawData/Training"
    (root / "img").rename(root / "images"), (root / "label").rename(root / "answers")
    *clipped, scaled = sorted((root / "images").iterdir())
    for file in clipped:
        volume = read_volume(file)
        write_volume(file, volume.array.clip(-160, 240), volume.geometry)
    volume = read_volume(scaled)
    write_volume(scaled, (volume.array.clip(-160, 240) / 400 + 0.4).astype(np.float32), volume.geometry)
    assert run(root, tmp_path / "out") == 1
    told = capsys.readouterr()
    assert "guessed CT: window -125 to 275 HU becomes 0 to 255 (values from -160 to 240, but 1 of 3 look" in told.out
    assert "has values from 0 to 1, of which the window -125 to 275 leaves next to nothing" in told.err
    assert run(root, tmp_path / "other", "--intensities", "scaled") == 0 and "guessed CT" not in capsys.readouterr().out


def test_a_scan_whose_place_is_in_doubt_is_prepared_only_if_that_is_accepted(hearts, tmp_path, capsys):
    for folder in ("images", "answers"):
        shutil.copytree(hearts / folder, tmp_path / folder)
    for file in (tmp_path / "images/heart-2.nii.gz", tmp_path / "answers/seg-2.nii.gz"):
        header = nibabel.load(file)
        header.set_sform(None, 0), header.set_qform(None, 0)
        nibabel.Nifti1Image(np.asarray(header.dataobj), None, header.header).to_filename(file)
    assert run(tmp_path, tmp_path / "out") == 1
    told = capsys.readouterr()
    assert "5 prepared, 0 were ready, 1 failed" in told.out
    assert "heart-2.nii.gz: nothing in its header tells the orientation" in told.err
    assert "if it is right use --accept-doubtful-headers" in told.err
    assert run(tmp_path, tmp_path / "out", "--accept-doubtful-headers") == 0
    told = capsys.readouterr()
    assert "1 prepared, 5 were ready" in told.out and "heart-2.nii.gz: nothing in its header tells" in told.out
    scans = json.loads((tmp_path / "out/preparation.json").read_text("utf-8"))["scans"]
    assert [number for number, line in scans.items() if "doubts" in line] == ["2"]
    made, source = (nibabel.load(tmp_path / f) for f in ("out/out_normalized/label_2.nii.gz", "answers/seg-2.nii.gz"))
    middles = [v.affine[:3] @ [*np.argwhere(np.asarray(v.dataobj) == 500).mean(0), 1] for v in (made, source)]
    np.testing.assert_allclose(*middles, atol=4)


def tiny_pair(root: Path, image: str, label: str, shift: float = 0.0, wide: int = 1) -> None:
    """An image and a label of 4 x 12 x 12 voxels at these names, with an organ at the left edge."""
    draw = np.random.default_rng(len(str(shift)))
    array = draw.integers(0, 300, (4, 12, 12 * wide)).astype(np.int16)
    organs = np.zeros(array.shape, np.uint8)
    organs[1:3, 3:9, 1:5], organs[1:3, 3:9, 6:9] = 1, 2
    geometry = Geometry((20.0, 20.0, 20.0), (shift, 0.0, 0.0))
    write_volume(root / "images" / f"{image}.nii.gz", array, geometry)
    write_volume(root / "answers" / f"{label}.nii.gz", organs, geometry)


def tiny_set(root: Path, *names: str, **options) -> Path:
    for at, name in enumerate(names):
        tiny_pair(root, name, name, float(at), **options)
    return root


def custom_run(root: Path, out: Path, *options) -> int:
    values = (root / "images", root / "answers", out, "--jobs", 1, "--size", 12, "--spacing", 20, 20, 20, *options)
    return custom.main([str(value) for value in values])


def prepared(out: Path) -> dict:
    return json.loads((out / "preparation.json").read_text("utf-8"))["scans"]


def test_one_number_that_does_not_fit_is_no_pairing(hearts, tmp_path, capsys):
    shutil.copytree(hearts / "images", tmp_path / "images")
    shutil.copytree(hearts / "answers", tmp_path / "answers")
    (tmp_path / "answers/seg-3.nii.gz").rename(tmp_path / "answers/seg-33.nii.gz")
    assert run(tmp_path, tmp_path / "out") == 1
    assert "do not correspond" in capsys.readouterr().err


def test_images_without_label_and_labels_without_image_are_said_and_the_others_done(tmp_path, capsys):
    tiny_set(tmp_path, "scan_1", "scan_2", "scan_3")
    (tmp_path / "answers/scan_2.nii.gz").rename(tmp_path / "answers/scan_5.nii.gz")
    assert custom_run(tmp_path, tmp_path / "out") == 1
    told = capsys.readouterr()
    assert f"scan 2 failed: {tmp_path}/images/scan_2.nii.gz: no label of this name" in told.err
    assert f"{tmp_path}/answers/scan_5.nii.gz: no image of this name, left out" in told.out
    assert set(prepared(tmp_path / "out")) == {"1", "3"}


@pytest.mark.parametrize(
    "pairs",
    [
        [("pat1_session2", "organs_pat1_rater1"), ("pat2_session1", "organs_pat2_rater2")],  # the last is not it
        [("pat1_visit2", "rater1_pat1"), ("pat2_visit1", "rater2_pat2")],
        [("a1_b2", "c1_d2"), ("a3_b4", "c3_d4")],
        [("anna", "one"), ("bert", "two")],
        [("x1", "y2"), ("x2", "y3")],
    ],
)
def test_names_with_several_numbers_are_never_guessed(tmp_path, capsys, pairs):
    for image, label in pairs:
        tiny_pair(tmp_path, image, label)
    assert custom_run(tmp_path, tmp_path / "out") == 1
    assert "do not correspond; give image and label one name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "pairs",
    [
        [("heart-1", "seg-of-01"), ("heart-2", "seg-of-02")],
        [("study2020_p07_t2", "r1_p07"), ("study2020_p11_t2", "r1_p11")],  # the others are the same in all
        [("CT pat1_visit2", "pat1_visit2_mask"), ("CT pat2_visit1", "pat2_visit1_mask")],  # the names are equal
    ],
)
def test_pairs_are_shown_before_the_work_and_recorded(tmp_path, capsys, pairs):
    for image, label in pairs:
        tiny_pair(tmp_path, image, label)
    assert custom_run(tmp_path, tmp_path / "out") == 0
    shown = capsys.readouterr().out
    for record, (image, label) in zip(prepared(tmp_path / "out").values(), pairs, strict=True):
        assert f"images/{image}.nii.gz and answers/{label}.nii.gz" in shown
        assert (record["image"], record["label"]) == (f"images/{image}.nii.gz", f"answers/{label}.nii.gz")


def test_organs_that_are_cropped_away_are_named_scan_by_scan(tmp_path, capsys):
    tiny_set(tmp_path, "scan_1", "scan_2")
    values = (tmp_path / "images", tmp_path / "answers", tmp_path / "out", "--jobs", 1, "--spacing", 20, 20, 20)
    assert custom.main([*map(str, values), "--size", "8", "--organs", "spleen=1", "liver=2"]) == 0
    assert "scan 1 keeps only 75% of spleen: outside of what is kept, or too small" in capsys.readouterr().out
    assert prepared(tmp_path / "out")["2"]["cut"] == {"1": 0.75}
    wide = tiny_set(tmp_path / "wide", "scan_1", "scan_2", wide=3)
    assert custom_run(wide, tmp_path / "none") == 1
    told = capsys.readouterr()
    assert told.err.count("nothing that it shows lies within the 12 x 12 pixels") == 2
    assert "folds" not in told.out and not (tmp_path / "none/none.json").exists()


def test_halves_of_a_data_set_come_together_and_a_second_cohort_is_refused(tmp_path, capsys):
    halves = [tiny_set(tmp_path / half, *names) for half, names in (("a", ("s_1", "s_2")), ("b", ("s_3", "s_4")))]
    out = tmp_path / "OUT"
    for half in halves:
        assert custom_run(half, out) == 0
    assert set(prepared(out)) == {"1", "2", "3", "4"}
    assert "OUT also holds scans of earlier calls: 1-2" in capsys.readouterr().out
    assert len(from_file(out / "OUT.json")[1]) == 2
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert custom_run(tiny_set(tmp_path / "c", "x_9", "s_5", "s_1"), out) == 1
    assert "already holds a scan 1, from" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_the_data_set_file_says_what_is_printed_until_somebody_edits_it(tmp_path, capsys):
    tiny_set(tmp_path, "scan_1", "scan_2", "scan_3", "scan_4")
    last, file = tmp_path / "images/scan_4.nii.gz", tmp_path / "OUT/OUT.json"
    whole = last.read_bytes()
    last.write_bytes(whole[:300])
    assert custom_run(tmp_path, tmp_path / "OUT", "--organs", "liver=1") == 1
    assert "0 folds" in capsys.readouterr().out and json.loads(file.read_text("utf-8"))["folds"] == []
    last.write_bytes(whole)
    assert custom_run(tmp_path, tmp_path / "OUT", "--organs", "spleen=2") == 0
    assert "organs spleen (2); 2 folds" in capsys.readouterr().out
    content = json.loads(file.read_text("utf-8"))
    assert len(content["folds"]) == 2 and content["organs"] == {"spleen": 2}
    file.write_text(json.dumps({**content, "organs": {"milt": 2}, "folds": []}))
    assert custom_run(tmp_path, tmp_path / "OUT", "--organs", "liver=1") == 0
    assert "organs milt (2); 0 folds" in capsys.readouterr().out


@pytest.mark.parametrize("organs", [("kidney=1", "kidney=2"), ("a=1", "b=1"), ("x/y=1", "x y=2"), ("..=1",)])
def test_names_that_are_not_distinct_are_refused_before_work(tmp_path, capsys, organs):
    assert custom_run(tiny_set(tmp_path, "scan_1"), tmp_path / "out", "--organs", *organs) == 1
    assert capsys.readouterr().err.startswith("error: ") and not (tmp_path / "out").exists()


def test_other_formats_and_folders_that_are_linked_or_gone(tmp_path, capsys):
    tiny_set(tmp_path, "scan_1", "scan_2")
    for kind in ("images", "answers"):
        volume = read_volume(tmp_path / kind / "scan_2.nii.gz")
        for number, ending in ((4, ".nrrd"), (5, ".mha")):
            write_volume(tmp_path / kind / f"scan_{number}{ending}", volume.array, volume.geometry)
        shutil.copy(tmp_path / kind / "scan_2.nii.gz", tmp_path / kind / "scan_3.NII.GZ")
        (tmp_path / kind / "notes.txt").write_text("x")
        (tmp_path / kind / "more").mkdir()
        shutil.copy(tmp_path / kind / "scan_1.nii.gz", tmp_path / kind / "more")
    (tmp_path / "images/scan_9.nii.gz").symlink_to("nowhere.nii.gz")
    assert custom_run(tmp_path, tmp_path / "out") == 1
    told = capsys.readouterr()
    assert set(prepared(tmp_path / "out")) == {"1", "2", "3", "4", "5"}
    assert f"1 other file left out: {tmp_path}/images/notes.txt" in told.out
    assert told.out.count("more: a folder without DICOM series, left out") == 2
    assert f"{tmp_path}/images/scan_9.nii.gz failed: is a link to nowhere.nii.gz" in told.err


def test_organs_that_no_label_shows_are_refused(hearts, tmp_path, capsys):
    assert run(hearts, tmp_path / "out", "--organs", "aorta=7") == 1
    assert "--organs aorta=7: no label holds this id" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(hearts, tmp_path / "out", "--organs", "aorta")
    assert "'aorta' is not a name with its label id" in capsys.readouterr().err
