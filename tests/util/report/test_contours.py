"""Tables that add up, scores that survive a round trip."""

import math

import cv2
import numpy as np
import pytest

from dataloaders.scans import Scan
from tests.conftest import ROOT
from util import report
from util.pictures import WIDTH, rgb
from util.report.__main__ import main
from util.report.contours import COLOURS, PICTURED
from util.volume import Geometry, write_volume


def rows() -> list[dict]:
    values = {"liver": (0.5, 0.7), "spleen": (0.9, math.nan)}
    return [{"organ": o, "scan": i, "dice": d} for o, both in values.items() for i, d in enumerate(both)]


def test_means_are_over_organs_of_means_over_scans():
    assert report.overall_mean(rows()) == pytest.approx((0.6 + 0.9) / 2)
    table = report.organ_table({"ours": rows()}).splitlines()
    assert table[1].split() == ["liver", "0.600", "±", "0.141", "(n", "=", "2)"]
    assert table[2].split() == ["spleen", "0.900", "(n", "=", "1)"]
    assert table[-1].split() == ["mean", "0.750"]


def test_nothing_scored_is_shown_as_nothing():
    empty = [{"organ": "liver", "scan": 1, "dice": math.nan}]
    assert report.organ_table({"ours": empty}).splitlines()[1].split() == ["liver", "-"]
    assert math.isnan(report.overall_mean(empty))


def test_scores_survive_a_round_trip(tmp_path):
    report.write_scores(tmp_path / "scores.csv", rows())
    back = report.read_scores(tmp_path / "scores.csv")
    assert back[0]["dice"] == "0.500000" and back[-1]["dice"] == ""
    assert report.overall_mean(back) == pytest.approx(0.75)


def test_comparing_runs(tmp_path, capsys):
    report.write_scores(tmp_path / "scores.csv", rows())
    assert main([f"before={tmp_path}", f"after={tmp_path}"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["dice", "before", "after"]
    assert main([str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().err.startswith("error:")


@pytest.mark.parametrize("count", [2, 400])
def test_an_organ_has_a_picture_that_can_be_looked_at_however_many_scans_there_are(tmp_path, count):
    disc = np.stack([np.zeros((32, 32)), np.hypot(*np.mgrid[-16:16, -16:16])]) < np.array([0, 8]).reshape(2, 1, 1)
    write_volume(tmp_path / "predictions/disc.nii.gz", disc.astype(np.uint8), Geometry())
    facts = {"organ": "liver", "support": "9", "prediction": "predictions/disc.nii.gz"}
    scores = [{**facts, "scan": scan, "dice": scan / count if scan else math.nan} for scan in range(count)]
    read = []

    def read_scan(number: int) -> Scan:
        read.append(number)
        return Scan(number, disc * 1.0, disc.astype(np.int16), None, Geometry(), disc.shape)

    report.draw_contours(tmp_path, scores, {"liver": 1}, read_scan)
    picture = cv2.imread(str(tmp_path / "liver.png"))
    assert picture.shape[1] == 3 * WIDTH and picture.shape[0] == min(count, PICTURED) * WIDTH + 50
    first = picture[25 : 25 + WIDTH]
    green, orange = ((first[..., ::-1] == rgb(COLOURS[kind])).all(-1) for kind in ("truth", "prediction"))
    assert green[:, WIDTH : 2 * WIDTH].sum() == green.sum() > 100 and orange[:, 2 * WIDTH :].sum() == orange.sum() > 100
    # of many the worst, the best and some between, and none without a Dice
    assert read == [0, 1] if count == 2 else (read[0] == 1 and read[-1] == 399 and len(read) == PICTURED)


def test_readme_names_only_files_that_exist():
    """The map of the README is the tree."""
    tops = ("script/", "models/", "util/", "dataloaders/", "supervoxels/", "benchmarks/", "tests/")
    for word in set((ROOT / "README.md").read_text("utf-8").replace("`", " ").split()):
        path = word.rstrip(".,;:)")
        if path.startswith(tops) and not set(path) & set("*<{"):
            assert (ROOT / path).exists(), path
