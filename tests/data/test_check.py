"""data.check: sound data pass, every fault is a sentence, leaks are counted as the papers' slices were."""

import json
import re

import nibabel
import numpy as np
import pytest

import config
from data import check
from data.parts.integrity import direction_letters, explained
from dataloaders.exclusion import excluded_slices
from dataloaders.samplers import NeighboursSampler, slice_areas
from util.volume import Geometry, read_volume, write_volume

FOLDS = [{"support": 4, "query": [1, 2, 3]}, {"support": 1, "query": [4, 5, 6]}]


@pytest.fixture
def own(broken, tmp_path):
    """A copy of the tiny phantom, described by a file beside it."""
    content = {
        "images": "data/PHANTOM/phantom_MR_normalized",
        "supervoxels": "data/PHANTOM/supervoxels_5000",
        "superpixels": "data/PHANTOM/superpixels_400",
        "supervoxel_size": 300,
        "modality": "MR",
        "organs": dict(config.DATASETS["PHANTOM"].organs),
        "folds": FOLDS,
    }
    (tmp_path / "MINE.json").write_text(json.dumps(content))
    return tmp_path


def run(own, capsys) -> tuple[int, str, str]:
    status = check.main([str(own / "MINE.json"), "--jobs", "1"])
    return status, *capsys.readouterr()


def file(own, name: str, number: int = 2):
    folder = "supervoxels_5000" if name.startswith("superpix") else "phantom_MR_normalized"
    return own / f"data/PHANTOM/{folder}/{name}_{number}.nii.gz"


def change(path, array=lambda a: a, geometry=lambda g: g) -> None:
    volume = read_volume(path)
    write_volume(path, array(volume.array), geometry(volume.geometry))


def contradict(path) -> None:
    image = nibabel.load(path)
    image.set_qform(np.diag([-1, 1, 1, 1]) @ image.affine, 1)
    nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header).to_filename(path)


def put(value):
    def painted(array):
        array = array.copy()
        array[0, 0, 0] = value
        return array

    return painted


def test_sound_data_pass(own, capsys):
    status, printed, told = run(own, capsys)
    assert status == 0 and told == "" and "6 scans, 0 errors, 0 warnings" in printed
    assert re.search(r"^ +1 +16 +64 x 64 .* ok$", printed, re.MULTILINE)


def test_setting_2_leaves_no_slice_with_a_test_organ(tiny, own, capsys):
    """The table says so, and the sampler that training uses agrees."""
    _, printed, _ = run(own, capsys)
    rows = [line.split() for line in printed.splitlines() if re.match(r" +[01] +[14] ", line)]
    assert len(rows) == 2 and all(int(row[-2]) > 0 for row in rows)
    dataset = config.DATASETS["PHANTOM"]
    labels = [read_volume(dataset.label_file(tiny, number)).array for number in (5, 6)]
    segments = [read_volume(dataset.segment_file(tiny, number)).array for number in (5, 6)]
    excluded = [excluded_slices(label, dataset.organs.values()) for label in labels]
    sampler = NeighboursSampler(map(slice_areas, segments), min_size=5, excluded=excluded)
    for scan, _, *slices in sampler.table:
        assert not (labels[scan][slices] > 0).any()


def test_the_real_scans_pass_with_the_published_counts(chaost2, capsys):
    """[training 7]; their supervoxels are the published ones, without geometry and parameters."""
    assert check.main(["CHAOST2", "--data-root", str(chaost2.parent), "--jobs", "1"]) == 0
    printed, told = capsys.readouterr()
    for group, removed_by_any, removed_by_all in (("all", 558, 88), ("lower", 324, 261), ("upper", 463, 272)):
        assert re.search(rf"^{group} .* {removed_by_any} +{removed_by_all}$", printed, re.MULTILINE)
    assert "20 scans, 0 errors, 2 warnings" in printed and "unit spacing" in told and "parameters.json" in told


FAULTS = {
    "no label": (lambda own: file(own, "label").unlink(), "label_2.nii.gz: no such file"),
    "no image": (lambda own: file(own, "image", 6).unlink(), "labels without image: 6"),
    "shape": (lambda own: change(file(own, "label"), lambda a: a[1:]), "label_2.nii.gz: has shape (15, 64, 64)"),
    "grid": (
        lambda own: change(file(own, "label"), geometry=lambda g: Geometry((5, 5, 16), g.origin, g.direction)),
        "the label lies on another grid than the image",
    ),
    "transforms": (
        lambda own: contradict(file(own, "image")),
        "the image's header: its qform is not its sform: one mirrors the other",
    ),
    "id": (lambda own: change(file(own, "label"), put(9)), "the label holds the id(s) [9]"),
    "fractions": (lambda own: change(file(own, "label"), lambda a: a * 0.3), "label_2.nii.gz: holds fractions"),
    "not a number": (lambda own: change(file(own, "image"), lambda a: put(np.nan)(a.astype(float))), "are NaN"),
    "constant": (lambda own: change(file(own, "image"), np.zeros_like), "the image is constant"),
    "kidneys": (
        lambda own: change(file(own, "label"), lambda a: np.choose(a, [0, 1, 3, 2, 4]).astype(np.uint8)),
        "right and left kidney are swapped",
    ),
    "supervoxels missing": (lambda own: file(own, "superpix-MIDDLE").unlink(), "no supervoxels of scans 2; make them"),
    "supervoxels flipped": (
        lambda own: change(file(own, "superpix-MIDDLE"), lambda a: a[:, ::-1]),
        "the supervoxels fit the image better with reversed rows",
    ),
    "supervoxels of other shape": (
        lambda own: change(file(own, "superpix-MIDDLE"), lambda a: a[:, :-1]),
        "superpix-MIDDLE_2.nii.gz: has shape (16, 63, 64)",
    ),
    "supervoxels of impossible ids": (
        lambda own: change(file(own, "superpix-MIDDLE"), put(2**31 - 1)),
        "superpix-MIDDLE_2.nii.gz: holds negative ids, more ids than voxels",
    ),
    "no supervoxel": (lambda own: change(file(own, "superpix-MIDDLE"), np.zeros_like), "there is no supervoxel at all"),
    "organ missing in the support": (
        lambda own: change(file(own, "label", 4), lambda a: np.where(a == 4, 0, a).astype(np.uint8)),
        "fold 0: the support scan 4 does not show spleen",
    ),
    "sizes": (
        lambda own: [change(file(own, name), lambda a: a[:, 2:]) for name in ("image", "label", "superpix-MIDDLE")],
        "the scans have different sizes: 5 of (64, 64), 1 of (62, 64)",
    ),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_fault_is_told_and_ends_in_status_1(own, capsys, fault):
    damage, sentence = FAULTS[fault]
    damage(own)
    status, printed, told = run(own, capsys)
    assert status == 1 and any(line.startswith("error: ") and sentence in line for line in told.splitlines()), told
    assert "errors" in printed


@pytest.mark.parametrize(
    ("folds", "sentence"),
    [
        ([{"support": 4, "query": [1, 9]}], "error: fold 0: scans 9 are not there"),
        ([{"support": 4, "query": [1, 2]}, {"support": 1, "query": [2, 3]}], "error: scans 2 are queries of several"),
        ([{"support": 4, "query": [4]}], "cannot be support and query at once"),
        ([{"support": 1, "query": [2, 3, 4, 5, 6]}], "error: fold 0: no scan is left to train on"),
        (FOLDS[:1], "warning: scans 4-6 are in no fold's query"),
        ([], "warning: there are no folds"),
    ],
)
def test_folds_part_the_scans(own, capsys, folds, sentence):
    description = json.loads((own / "MINE.json").read_text("utf-8"))
    (own / "MINE.json").write_text(json.dumps({**description, "folds": folds}))
    status, _, told = run(own, capsys)
    assert sentence in told and status == sentence.count("error:") + ("cannot" in sentence)


def test_a_fold_keeps_its_number_beside_a_malformed_one(own, capsys):
    description = json.loads((own / "MINE.json").read_text("utf-8"))
    (own / "MINE.json").write_text(json.dumps({**description, "folds": [{"support": 4}, {"support": 4, "query": [9]}]}))
    status, printed, told = run(own, capsys)
    assert status == 1 and "error: fold 0 of FOLDS" in told and "error: fold 1: scans 9 are not there" in told
    assert re.search(r"^ +1 +4 +9 ", printed, re.MULTILINE)


def test_a_scan_without_an_organ_is_a_warning(own, capsys):
    change(file(own, "label"), lambda a: np.where(a == 4, 0, a).astype(np.uint8))
    status, _, told = run(own, capsys)
    assert status == 0 and told == "warning: spleen is not there (scan 2)\n"


def test_data_without_supervoxels_yet_are_told_the_command(own, capsys):
    for path in (own / "data/PHANTOM/supervoxels_5000").glob("*.nii.gz"):
        path.unlink()
    status, _, told = run(own, capsys)
    assert status == 0 and "python -m supervoxels.generate" in told


def test_unknown_data_sets_are_refused(tmp_path, capsys):
    assert check.main(["NOWHERE"]) == 1 and "no such data set" in capsys.readouterr().err
    assert check.main(["CMR", "--data-root", str(tmp_path)]) == 1 and "no such folder" in capsys.readouterr().err


def test_the_share_explained_falls_when_segments_are_reversed():
    image = np.arange(24.0).reshape(2, 3, 4)
    segments = np.arange(24).reshape(2, 3, 4)
    assert explained(image, segments)[1, 1, 1] == pytest.approx(1)
    assert explained(image, np.zeros_like(segments))[1, 1, 1] == pytest.approx(0)
    halves, quarters = explained(image, segments // 12), explained(image, segments // 6)
    assert halves[1, -1, 1] == pytest.approx(halves[1, 1, 1]) and halves[-1, 1, 1] == pytest.approx(halves[1, 1, 1])
    assert quarters[1, 1, -1] < quarters[1, 1, 1]


def test_directions_have_the_letters_of_the_field():
    assert direction_letters(Geometry(direction=(1, 0, 0, 0, -1, 0, 0, 0, 1))) == "LAS"
