"""Scans to look at: best, median and worst of each organ, every method's prediction against the truth.

A scan's slices are stored once, however many organs and methods are shown on it; masks are run lengths.
"""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from util.errors import UserError
from util.evaluation.metrics import COLUMNS
from util.pictures import grey, pixel_size, upright
from util.report.gather import Comparison
from util.report.viewer import write_viewer
from util.volume import Volume, read_volume

BUDGET = 10_000_000  # characters of all pictures of a page
LARGEST = 384  # pixels; larger slices are shown smaller
MARGIN = 12  # pixels around the organ and its predictions
PLACES = ("best", "median", "worst")


class NothingToShow(Exception):
    """A page without overlays: files are not there. The message says which."""


@dataclass(frozen=True)
class Case:
    """A scan chosen for an organ.

    Attributes:
        organ: its name.
        place: best, median, worst, or several of them if there are few scans.
        scan: its number.
        rows: of scores.csv, a group each that scored it.
    """

    organ: str
    place: str
    scan: str
    rows: dict[str, dict[str, str]]


def choose_cases(comparison: Comparison, score: str) -> list[Case]:
    """Best, median and worst scan of each organ by the mean over all methods, of the scans that most methods scored."""
    cases = []
    for organ in comparison.organs:
        shown: dict[tuple[str, str], dict[str, dict[str, str]]] = {}  # (scan, fold) -> group -> row
        for group in comparison.groups:
            rows = [row for row in group.rows if row["organ"] == organ and row.get(score)]
            for row in sorted(rows, key=_seed_and_support, reverse=True):  # the first stays
                shown.setdefault((row["scan"], row.get("fold", "")), {})[group.label] = row
        most = max(map(len, shown.values()), default=0)
        ranked = sorted(
            (scan for scan, rows in shown.items() if len(rows) == most),
            key=lambda scan: COLUMNS[score].worth(fmean(float(row[score]) for row in shown[scan].values())),
            reverse=True,
        )
        places: dict[tuple[str, str], list[str]] = {}
        for place, at in zip(PLACES, (0, len(ranked) // 2, -1), strict=True) if ranked else ():
            places.setdefault(ranked[at], []).append(place)
        cases += [Case(organ, ", ".join(names), scan[0], shown[scan]) for scan, names in places.items()]
    return cases


def _seed_and_support(row: dict[str, str]) -> tuple[int, str, str]:
    return len(row.get("seed", "")), row.get("seed", ""), row.get("support", "")


def overlays(comparison: Comparison, score: str, folder: Path) -> dict[str, Any]:
    """What the page's viewer draws, as plain values; a page in three planes for every scan is written into `folder`.

    Returns:
        cases: a list, each with what it shows, its slices, the crop around the organ and the masks.
        images: scan -> slice -> picture as a data URI.
        score, digits: the heading of the score and how it is printed.

    Raises:
        NothingToShow: a file is not there, with its name.
        UserError: a file is damaged, or a prediction has another shape than its scan.
    """
    cases = choose_cases(comparison, score)
    if not cases:
        raise NothingToShow(f"no scan has the score {score}")
    scans: dict[str, Display] = {}
    with tqdm(cases, unit="scan", desc="reading predictions") as progress:  # closed before an error is printed
        shown = [_read(case, score, scans) for case in progress]
    planes: dict[str, str] = {}
    for case, what in zip(cases, shown, strict=True):
        if what["image"] not in planes:
            planes[what["image"]] = _write_planes(folder, comparison, case, Path(what["image"]))
        what["planes"] = planes[what["image"]]
    wanted: dict[str, set[int]] = {}
    for case in shown:
        wanted.setdefault(case["image"], set()).update(range(case["first"], case["first"] + case["slices"]))
    return {
        "cases": shown,
        "images": _pictures(scans, wanted),
        "score": COLUMNS[score].heading,
        "digits": COLUMNS[score].digits,
    }


class Display:
    """A volume as it is shown: upright, not larger than LARGEST; `image` holds its grey values `(D, H, W)`, uint8."""

    def __init__(self, volume: Volume) -> None:
        self.shape, self.geometry = volume.array.shape, volume.geometry
        self.step = -(-max(self.shape[1:]) // LARGEST)  # every so many pixels are shown
        self.image = grey(self.turned(volume.array))

    def turned(self, array: np.ndarray) -> np.ndarray:
        """An array `(D, H, W)` of the file as it is shown."""
        return upright(array, self.geometry)[:, :: self.step, :: self.step]


def _read(case: Case, score: str, scans: dict[str, Display]) -> dict[str, Any]:
    """A case with truth and predictions on the slices where there is anything to see."""
    image_file, label_file, identifier = _sources(next(iter(case.rows.values())))
    if str(image_file) not in scans:
        scans[str(image_file)] = Display(_volume(image_file))
    scan = scans[str(image_file)]
    truth = _mask(label_file, scan, image_file) == identifier
    predictions = {label: _mask(_prediction_file(row), scan, image_file) > 0 for label, row in case.rows.items()}
    anything = np.logical_or.reduce([truth, *predictions.values()])
    first, last = _extent(anything.any((1, 2)), 1)
    rows, columns = (_extent(anything.any(axes), MARGIN) for axes in ((0, 2), (0, 1)))
    return {
        **{"organ": case.organ, "place": case.place, "scan": case.scan, "image": str(image_file)},
        **{"first": first, "slices": last - first, "depth": len(anything)},
        **{"size": anything.shape[:0:-1], "pixel": pixel_size(scan.geometry), "crop": [*columns, *rows]},
        "truth": list(map(run_lengths, truth[first:last])),
        "predictions": [
            {"label": label, "score": float(case.rows[label][score]), "runs": list(map(run_lengths, mask[first:last]))}
            for label, mask in predictions.items()
        ],
    }


def _prediction_file(row: dict[str, str]) -> Path:
    # older scores.csv do not name it
    name = row.get("prediction") or f"predictions/{row['organ'].replace(' ', '_')}_{row['scan']}.nii.gz"
    return Path(row["run"]) / name


def _sources(row: dict[str, str]) -> tuple[Path, Path, int]:
    """Files of image and label of a row's scan, and the organ's id in the label, from the run's scans.json."""
    file = Path(row["run"]) / "scans.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        files = content["scans"][row["scan"]]
        return Path(files["image"]), Path(files["label"]), content["organs"][row["organ"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NothingToShow(f"{file} does not say where scan {row['scan']} is; run test.py again to see it") from error


def _volume(file: Path) -> Volume:
    if not file.is_file():
        raise NothingToShow(f"{file} is not there")
    return read_volume(file)


def _mask(file: Path, scan: Display, image_file: Path) -> np.ndarray:
    return scan.turned(_array(file, scan.shape, image_file))


def _array(file: Path, shape: tuple[int, ...], image_file: Path) -> np.ndarray:
    array = _volume(file).array
    if array.shape != shape:
        raise UserError(f"{file}: has the shape {array.shape}, its scan {image_file} has {shape}; run test.py again")
    return array


def _write_planes(folder: Path, comparison: Comparison, case: Case, image_file: Path) -> str:
    """Write the scan of a case with all organs, the truth and every method's, in three planes; returns the link."""
    image, fold = _volume(image_file), next(iter(case.rows.values())).get("fold", "")
    names = dict(enumerate(comparison.organs, start=1))
    layers = {"truth": np.zeros(image.array.shape, np.uint8)}
    for group in comparison.groups:
        rows = [row for row in group.rows if (row["scan"], row.get("fold", "")) == (case.scan, fold)]
        found = {row["organ"]: row for row in sorted(rows, key=_seed_and_support, reverse=True)}
        for place, row in ((place, found[organ]) for place, organ in names.items() if organ in found):
            layer = layers.setdefault(group.label, np.zeros(image.array.shape, np.uint8))
            try:
                _, label_file, identifier = _sources(row)
                layer[_array(_prediction_file(row), layer.shape, image_file) > 0] = place
                layers["truth"][_array(label_file, layer.shape, image_file) == identifier] = place
            except NothingToShow:  # an organ that the report does not show here either
                continue
    file = folder / f"{comparison.dataset}_scan{case.scan}{f'_fold{fold}' if fold else ''}.html"
    write_viewer(file, f"{comparison.dataset}, scan {case.scan}", image, layers, names)
    return f"{folder.name}/{file.name}"


def _extent(shown: np.ndarray, margin: int) -> tuple[int, int]:
    """First index and end of what is shown, with a margin; everything if nothing is."""
    found = np.flatnonzero(shown)
    if not len(found):
        return 0, len(shown)
    return max(0, int(found[0]) - margin), min(len(shown), int(found[-1]) + 1 + margin)


def run_lengths(mask: np.ndarray) -> str:
    """Lengths of the runs of a mask `(H, W)` in row-major order, outside and inside in turn, the last left out.

    An empty mask is an empty text.
    """
    flat = np.concatenate([[False], mask.ravel()])
    return ",".join(map(str, np.diff(np.flatnonzero(flat[1:] != flat[:-1]), prepend=0)))


def _pictures(scans: dict[str, Display], wanted: dict[str, set[int]]) -> dict[str, dict[int, str]]:
    """Slices as data URIs, in the best quality that fits the page."""
    for quality in (85, 70, 50, 30, 10):
        found = {name: {z: _webp(scans[name].image[z], quality) for z in sorted(own)} for name, own in wanted.items()}
        if sum(len(text) for slices in found.values() for text in slices.values()) <= BUDGET:
            break
    return found


def _webp(image: np.ndarray, quality: int) -> str:
    encoded = cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, quality])[1]
    return "data:image/webp;base64," + base64.b64encode(encoded.tobytes()).decode()
