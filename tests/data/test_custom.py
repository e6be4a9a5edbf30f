"""Own scans: names are paired, spacing, modality and folds guessed and told, and the result can be trained."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

import config
from data import custom, phantom_raw
from supervoxels.generate import main as generate
from tests.commands import score, train
from util.dataset import from_file
from util.volume import read_volume, write_volume


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
        generate([str(out / "hearts_normalized"), str(dataset.segment_folder(out)), "--min-size", "60", "--jobs", "1"])
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
    content = {**json.loads(file.read_text()), "supervoxel_size": 77}
    file.write_text(json.dumps(content))
    assert run(hearts, tmp_path / "A") == 0
    assert "is kept as it is" in capsys.readouterr().out and json.loads(file.read_text()) == content


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
    write_volume(tmp_path / "answers/case_7_seg.nii.gz", (image.array > 300).astype(np.uint8), image.geometry)
    assert run(tmp_path, tmp_path / "out") == 0
    made = read_volume(tmp_path / "out/out_normalized/image_7.nii.gz")
    assert made.array.shape == (8, 32, 32)
    printed = capsys.readouterr().out
    assert "case_7: one series lies in 2 folders and is put together" in printed
    assert "left out 1 x no DICOM file: case_7/two/README.txt" in printed
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
    scans = json.loads((tmp_path / "out/preparation.json").read_text())["scans"]
    assert [number for number, line in scans.items() if "doubts" in line] == ["2"]
    made, source = (nibabel.load(tmp_path / f) for f in ("out/out_normalized/label_2.nii.gz", "answers/seg-2.nii.gz"))
    middles = [v.affine[:3] @ [*np.argwhere(np.asarray(v.dataobj) == 500).mean(0), 1] for v in (made, source)]
    np.testing.assert_allclose(*middles, atol=4)


def test_names_that_do_not_correspond_are_refused(hearts, tmp_path, capsys):
    shutil.copytree(hearts / "images", tmp_path / "images")
    shutil.copytree(hearts / "answers", tmp_path / "answers")
    (tmp_path / "answers/seg-3.nii.gz").rename(tmp_path / "answers/seg-33.nii.gz")
    assert run(tmp_path, tmp_path / "out") == 1
    assert "do not correspond" in capsys.readouterr().err
    (tmp_path / "answers/seg-33.nii.gz").rename(tmp_path / "answers/heart-3.nii.gz")
    assert run(tmp_path, tmp_path / "out") == 1
    assert "no label of this name" in capsys.readouterr().err


def test_organs_that_no_label_shows_are_refused(hearts, tmp_path, capsys):
    assert run(hearts, tmp_path / "out", "--organs", "aorta=7") == 1
    assert "--organs aorta=7: no label holds this id" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(hearts, tmp_path / "out", "--organs", "aorta")
    assert "'aorta' is not a name with its label id" in capsys.readouterr().err
