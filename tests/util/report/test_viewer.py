"""A scan in three planes in a real browser: offline, every control moves what it says, and it fits a phone."""

import numpy as np
import pytest

from tests.util.report.conftest import PHONE
from util.report.viewer import LARGEST, write_viewer
from util.volume import Geometry, Volume

DRAWN = "body[data-drawn]"
NAMES = {4: "liver", 9: "a</script><b>"}
RED, GREEN = (228, 26, 28), (77, 175, 74)  # the first two colours


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """24 slices of 40 x 60; the two organs are boxes at the patient's right front top and left back bottom."""
    image = np.random.default_rng(0).integers(100, 110, (24, 40, 60)).astype(np.float32)
    labels = np.zeros(image.shape, np.int16)
    labels[16:22, 4:16, 6:26] = 4
    labels[2:6, 26:36, 40:56] = 9
    file = tmp_path_factory.mktemp("viewer") / "scan.html"
    volume = Volume(image, Geometry((1.0, 1.0, 3.0)))
    write_viewer(file, "scan <1>", volume, {"truth": labels, "adnet": np.where(labels == 4, 4, 0)}, NAMES)
    return file


def pixel(page, plane: int, across: float, down: float) -> tuple[int, ...]:
    """Colour of a plane's picture at shares of its width and height."""
    return tuple(
        page.evaluate(
            """([plane, across, down]) => {
                const shown = document.querySelectorAll("canvas")[plane], {width, height} = shown;
                const copy = new OffscreenCanvas(width, height).getContext("2d", {willReadFrequently: true});
                copy.drawImage(shown, 0, 0);
                return [...copy.getImageData(across * width, down * height, 1, 1).data].slice(0, 3);
            }""",
            [plane, across, down],
        )
    )


def set_opacity(page, value: int) -> None:
    page.locator("#opacity").fill(str(value))


def place(page) -> list[int]:
    """x, y, z of the cross."""
    return list(map(int, page.get_attribute("body", "data-drawn").split()[:3]))


def test_an_organ_lies_in_all_three_planes_where_it_is(opened):
    page = opened()
    x, y, z = place(page)
    assert 6 <= x < 26 and 4 <= y < 16 and 16 <= z < 22  # where most is labelled
    set_opacity(page, 100)
    inside = [(0, 20 / 60, 12 / 40), (1, 20 / 60, 1 - 18.5 / 24), (2, 12 / 40, 1 - 18.5 / 24)]
    for plane, across, down in inside:  # front and head are up, the patient's right is left
        assert np.allclose(pixel(page, plane, across, down), RED, atol=12), plane
        assert not np.allclose(pixel(page, plane, 1 - across, 1 - down), RED, atol=60)
    set_opacity(page, 0)
    red, green, blue = pixel(page, *inside[0])
    assert red == green == blue


def test_a_click_moves_all_planes_and_names_what_is_there(opened):
    page = opened()
    axial, coronal = page.locator("canvas").nth(0).bounding_box(), page.locator("canvas").nth(1).bounding_box()
    page.mouse.click(coronal["x"] + coronal["width"] * 47.5 / 60, coronal["y"] + coronal["height"] * (1 - 4.5 / 24))
    assert place(page)[0] == 47 and place(page)[2] == 4
    page.mouse.click(axial["x"] + axial["width"] * 47.5 / 60, axial["y"] + axial["height"] * 30.5 / 40)
    assert place(page) == [47, 30, 4]
    assert page.locator("#here").inner_text() == "under the cross: a</script><b>"
    set_opacity(page, 100)
    assert np.allclose(pixel(page, 0, 44 / 60, 28 / 40), GREEN, atol=12)
    page.get_by_role("button", name="a</script><b>").click()  # hidden
    assert not np.allclose(pixel(page, 0, 44 / 60, 28 / 40), GREEN, atol=60)
    page.get_by_role("button", name="a</script><b>").click()
    page.get_by_role("button", name="adnet").click()  # which does not show it
    assert page.locator("#here").inner_text() == "under the cross: background"
    page.get_by_label("axial slice").fill("20")
    assert place(page) == [47, 30, 20] and "axial 21 of 24" in page.locator("figure").first.inner_text()
    page.mouse.move(axial["x"] + 20, axial["y"] + 20)
    page.mouse.wheel(0, -100)
    page.wait_for_selector('body[data-drawn^="47 30 19"]')


def test_millimetres_are_square(opened):
    page = opened()
    sizes = page.eval_on_selector_all("canvas", "all => all.map(c => c.width / c.height)")
    assert sizes == pytest.approx([60 / 40, 60 / 72, 40 / 72], rel=0.02)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(opened, scheme):
    page = opened(PHONE, color_scheme=scheme, is_mobile=True, has_touch=True, device_scale_factor=2)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    boxes = [page.locator("canvas").nth(at).bounding_box() for at in range(3)]
    assert all(box["width"] > 300 for box in boxes) and boxes[0]["y"] < boxes[1]["y"] < boxes[2]["y"]
    page.locator("canvas").first.tap(position={"x": boxes[0]["width"] / 2, "y": boxes[0]["height"] / 2})
    assert place(page)[:2] == [30, 20]


def test_scans_stored_in_other_orders_look_the_same_and_large_ones_are_thinned(tmp_path):
    """Without a browser: the same voxels, flipped in the file, make the same page."""
    image = np.random.default_rng(1).random((5, 6, 7)).astype(np.float32)
    labels = (image > 0.5).astype(np.uint8)
    pages = []
    for flip in ((1, 1, 1), (-1, 1, -1)):
        order = tuple(slice(None, None, sign) for sign in flip[::-1])
        volume = Volume(image[order], Geometry(direction=tuple(np.diag(flip).astype(float).ravel())))
        write_viewer(tmp_path / "page.html", "scan", volume, {"prediction": labels[order]}, {1: "liver"})
        pages.append((tmp_path / "page.html").read_text("utf-8"))
    assert pages[0] == pages[1]
    large = np.zeros((2, LARGEST[1] + 1, 3), np.uint8)
    write_viewer(tmp_path / "page.html", "scan", Volume(large, Geometry()), {"prediction": large}, {1: "liver"})
    assert f'"shape":[2,{LARGEST[1] // 2 + 1},3]' in (tmp_path / "page.html").read_text("utf-8")
