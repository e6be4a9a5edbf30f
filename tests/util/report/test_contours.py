"""An organ's picture can be looked at however many scans there are."""

import math

import cv2
import numpy as np
import pytest

from dataloaders.scans import Scan
from util.pictures import WIDTH, rgb
from util.report.contours import COLOURS, PICTURED, draw_contours
from util.volume import Geometry, write_volume


@pytest.mark.parametrize("count", [2, 400])
def test_a_row_shows_truth_and_prediction_of_a_scan_and_there_are_not_too_many(tmp_path, count):
    disc = np.stack([np.zeros((32, 32)), np.hypot(*np.mgrid[-16:16, -16:16])]) < np.array([0, 8]).reshape(2, 1, 1)
    write_volume(tmp_path / "predictions/disc.nii.gz", disc.astype(np.uint8), Geometry())
    facts = {"organ": "liver", "support": "9", "prediction": "predictions/disc.nii.gz"}
    rows = [{**facts, "scan": scan, "dice": scan / count if scan else math.nan} for scan in range(count)]
    read = []

    def read_scan(number: int) -> Scan:
        read.append(number)
        return Scan(number, disc * 1.0, disc.astype(np.int16), None, Geometry(), disc.shape)

    draw_contours(tmp_path, rows, {"liver": 1}, read_scan)
    picture = cv2.imread(str(tmp_path / "liver.png"))
    assert picture.shape[1] == 3 * WIDTH and picture.shape[0] == min(count, PICTURED) * WIDTH + 50
    first = picture[25 : 25 + WIDTH]
    green, orange = ((first[..., ::-1] == rgb(COLOURS[kind])).all(-1) for kind in ("truth", "prediction"))
    assert green[:, WIDTH : 2 * WIDTH].sum() == green.sum() > 100 and orange[:, 2 * WIDTH :].sum() == orange.sum() > 100
    # of many the worst, the best and some between, and none without a Dice
    assert read == [0, 1] if count == 2 else (read[0] == 1 and read[-1] == 399 and len(read) == PICTURED)
