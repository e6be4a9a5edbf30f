"""Pictures are shown as radiologists look at a patient, however the scan is stored."""

import itertools

import numpy as np
import pytest

from dataloaders.raw.preparation import reordered
from util.pictures import as_shown, draw_contours, grey, pixel_size, upright
from util.volume import Geometry, Volume


@pytest.mark.parametrize("swap", [False, True])
def test_any_way_of_storing_a_scan_gives_the_same_picture(swap):
    array = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    angle = np.radians(20)  # tilted, so that no axis is exactly one of the patient's
    direction = (1, 0, 0, 0, np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle))
    scan = Volume(array, Geometry((1.0, 2.0, 7.7), direction=direction))
    for signs in itertools.product((1, -1), (1, -1), (1,)):
        stored = reordered(scan, swap, signs)
        np.testing.assert_array_equal(upright(stored.array, stored.geometry), array)
        np.testing.assert_array_equal(upright(stored.array[1], stored.geometry), array[1])
        np.testing.assert_array_equal(as_shown(stored), as_shown(scan))
        assert pixel_size(stored.geometry) == (1.0, 2.0)


def test_grey_spans_the_window_and_a_constant_image_is_black():
    values = grey(np.arange(1001, dtype=np.int16))
    assert values[10] == 0 and values[9] == 0 and values[995] == 255 and values[1000] == 255
    assert abs(int(values[502]) - 127) <= 1 and (np.diff(values.astype(int)) >= 0).all()
    assert not grey(np.full((4, 4), 7.0)).any()


def test_picture_appears(tmp_path):
    disc = np.hypot(*np.mgrid[-16:16, -16:16]) < 8
    draw_contours(tmp_path / "a.png", "liver", [("scan 1", disc * 1.0, disc, np.zeros_like(disc))])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
