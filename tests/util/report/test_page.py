"""The page of a report in a real browser: it works, asks the network for nothing, and fits a phone."""

import base64
import re

import cv2
import numpy as np
import pytest

from tests.util.report.conftest import PHONE
from tests.util.report.scored_runs import make_study, truth_of
from util.pictures import pixel_size
from util.report.__main__ import main
from util.report.overlays import LARGEST, Display, _pictures, run_lengths
from util.volume import Geometry, Volume

DRAWN = ".viewer[data-drawn]"


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """report.html of three methods, two folds, one seed; the third is named so that it must be escaped."""
    root = tmp_path_factory.mktemp("report")
    runs = make_study(root, {"adnet": 3, "qnet": 1, "x</script><b>": 2}, seeds=1)
    assert main([str(runs), "--out", str(root / "out")]) == 0
    return root / "out/report.html"


def drawn(page, *words: object) -> None:
    """Wait until the viewer shows what these words say."""
    page.wait_for_selector(f'.viewer[data-drawn="{" ".join(map(str, words))}"]')


def coloured(page, panel: int) -> dict[str, int]:
    """How many pixels of a panel are blue, red and yellow rather than grey."""
    return page.evaluate(
        """panel => {
            const shown = document.querySelectorAll(".panels canvas")[panel], {width, height} = shown;
            const context = new OffscreenCanvas(width, height).getContext("2d", {willReadFrequently: true});
            context.drawImage(shown, 0, 0);
            const {data} = context.getImageData(0, 0, width, height);
            const count = {found: 0, extra: 0, missed: 0};
            for (let i = 0; i < data.length; i += 4) {
                const [r, g, b] = data.slice(i, i + 3);
                if (b > r + 40) count.found++;
                else if (r > g + 40) count.extra++;
                else if (r > b + 40) count.missed++;
            }
            return count;
        }""",
        panel,
    )


def test_the_slider_moves_the_slice(opened):
    page = opened()
    slider = page.locator(".viewer input")
    first, last = int(slider.get_attribute("min")), int(slider.get_attribute("max"))
    assert last > first
    for z in (first, last):
        slider.fill(str(z))
        drawn(page, "liver", "best", z, "map", "organ")
        assert page.locator("output").inner_text() == f"{z + 1} of 8"
    slider.press("ArrowLeft")
    drawn(page, "liver", "best", last - 1, "map", "organ")


def test_the_map_shows_what_was_found_too_much_and_missed(opened):
    """Predictions are truths moved to the right: missed on the left, too much on the right, more for a larger shift."""
    page = opened()
    assert page.locator(".panels figure").count() == 4  # the truth and three methods
    far, near = coloured(page, 1), coloured(page, 2)
    assert min(far.values()) > 0 and min(near.values()) > 0
    assert far["missed"] > near["missed"] and far["extra"] > near["extra"] and far["found"] < near["found"]
    assert sum(coloured(page, 0).values()) == coloured(page, 0)["missed"] > 0  # only the line around the truth
    page.get_by_role("button", name="image", exact=True).click()
    page.wait_for_selector('.viewer[data-drawn$="none organ"]')
    assert set(coloured(page, 1).values()) == {0}


def test_every_choice_can_be_made(opened):
    page = opened()
    page.get_by_role("button", name="left kidney").click()
    page.get_by_role("button", name=re.compile("^worst")).click()
    page.get_by_role("button", name="contours").click()
    page.get_by_role("button", name="whole slice").click()
    page.wait_for_selector('.viewer[data-drawn^="left kidney worst"][data-drawn$="contours slice"]')
    caption = page.locator(".panels figcaption").nth(1).inner_text()
    assert caption.startswith("adnet") and re.search(r"Dice 0\.\d{3}; Dice of this slice 0\.\d{3}", caption)
    page.get_by_role("button", name="HD95").click()
    assert (
        page.locator('.view[data-score="hd95"]').is_visible()
        and not page.locator('.view[data-score="dice"]').is_visible()
    )


def test_the_scores_on_the_page_are_those_of_the_masks(opened):
    """The page decodes the masks it was given: Dice of a slice by hand."""
    page = opened()
    scan = int(re.search(r"scan (\d+)", page.get_by_role("button", name=re.compile("^best")).inner_text()).group(1))
    z = int(page.locator(".viewer input").input_value())
    truth = truth_of(scan, "liver")
    prediction = np.roll(truth, 3 + (scan % 3 == 0) + 1, axis=2)[z]
    expected = 2 * (prediction & truth[z]).sum() / (prediction.sum() + truth[z].sum())
    assert page.locator(".panels figcaption").nth(1).inner_text().endswith(f"this slice {expected:.3f}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone(opened, scheme):
    page = opened(PHONE, color_scheme=scheme, is_mobile=True, has_touch=True, device_scale_factor=2)
    page.locator("details").first.evaluate("element => { element.open = true }")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(15, 18, 22)"}[scheme]
    sizes = page.eval_on_selector_all("button", "all => all.map(b => b.getBoundingClientRect().height)")
    assert min(size for size in sizes if size) >= 32  # a finger's worth


def test_every_scan_shown_opens_in_three_planes(opened, page_file):
    page = opened()
    links = set()
    for place in page.locator('[data-key="place"] button').all():
        place.click()
        links.add(page.get_attribute("a.planes", "href"))
    assert links and all((page_file.parent / link).is_file() for link in links)
    page.goto((page_file.parent / links.pop()).as_uri())
    page.wait_for_selector("body[data-drawn]")
    assert page.locator(".layers button").all_inner_texts() == ["truth", "adnet", "qnet", "x</script><b>"]
    assert "liver" in page.locator(".organs button").all_inner_texts()


def test_text_of_runs_cannot_break_the_page(opened):
    page = opened()
    assert page.locator(".groups b").all_inner_texts() == ["adnet", "qnet", "x</script><b>"]
    assert page.locator(".panels figcaption b").all_inner_texts()[1:] == ["adnet", "qnet", "x</script><b>"]


# ----------------------------------------------------------------------------------------------- without a browser


@pytest.mark.parametrize("density", [0, 0.2, 1])
def test_run_lengths_give_the_mask_back(density):
    mask = np.random.default_rng(0).random((7, 9)) < density
    lengths = [int(length) for length in run_lengths(mask).split(",") if length]
    values = np.arange(len(lengths) + 1) % 2
    np.testing.assert_array_equal(np.repeat(values, [*lengths, mask.size - sum(lengths)]), mask.ravel())


def test_scans_are_shown_front_up_and_not_too_large():
    ramp = np.arange(2 * 500 * 400, dtype=np.float32).reshape(2, 500, 400)
    for direction in ((1, 1), (-1, 1), (1, -1)):
        geometry = Geometry((1.0, 2.0, 5.0), direction=(direction[0], 0, 0, 0, direction[1], 0, 0, 0, 1))
        shown = Display(Volume(ramp, geometry))
        assert (
            shown.image.shape == (2, 250, 200)
            and max(shown.image.shape) <= LARGEST
            and pixel_size(shown.geometry) == (1.0, 2.0)
        )
        growing = np.sign(np.diff(shown.image[1].astype(int)[:, [0, -1]], axis=0).sum())
        assert growing == direction[1]
        assert (shown.turned(ramp)[0, 0, 0] < shown.turned(ramp)[0, 0, -1]) == (direction[0] == 1)


def test_pictures_keep_to_their_budget(monkeypatch):
    noise = np.random.default_rng(0).integers(0, 255, (6, 256, 256)).astype(np.uint8)
    scan = Display(Volume(noise, Geometry()))
    full = _pictures({"a": scan}, {"a": {1, 2, 3}})
    assert set(full["a"]) == {1, 2, 3}
    picture = np.frombuffer(base64.b64decode(full["a"][2].split(",")[1]), np.uint8)
    decoded = cv2.imdecode(picture, cv2.IMREAD_GRAYSCALE)
    assert np.abs(decoded.astype(int) - scan.image[2]).mean() < 12
    weight = sum(map(len, full["a"].values()))
    monkeypatch.setattr("util.report.overlays.BUDGET", weight * 2 // 3)
    assert sum(map(len, _pictures({"a": scan}, {"a": {1, 2, 3}})["a"].values())) <= weight * 2 // 3
