"""A scan and its labels in three planes, as one HTML file that needs nothing but a browser, online or not."""

import base64
import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from util.files import write_text
from util.pictures import colour, grey, pixel_size, upright
from util.volume import Volume

LARGEST = (128, 256, 256)  # slices, rows, columns; of larger scans every second, third, ... is shown


def write_viewer(
    file: Path, title: str, image: Volume, layers: Mapping[str, np.ndarray], names: Mapping[int, str]
) -> None:
    """Write the page of one scan.

    Args:
        file, title: of the HTML.
        image: `(D, H, W)`; slices are axial, or nearly, or else shown as they were acquired.
        layers: what it is called -> labels `(D, H, W)` on the grid of the image; one is shown at a time.
        names: label id -> name, at most 255; the order gives the colours.
    """
    steps = [-(-length // most) for length, most in zip(image.array.shape, LARGEST, strict=True)]
    back = image.geometry.axes[2, 2] < 0  # slices run to the feet

    def shown(array: np.ndarray) -> np.ndarray:
        array = upright(array, image.geometry)[:: -1 if back else 1]
        return np.ascontiguousarray(array[:: steps[0], :: steps[1], :: steps[2]])

    places = np.zeros(max(names) + 1, np.uint8)
    places[list(names)] = np.arange(1, len(names) + 1)
    pictures = {name: places[shown(labels)] for name, labels in layers.items()}
    array = grey(shown(image.array), image.array)
    spacing = [*pixel_size(image.geometry), image.geometry.spacing[2]]
    data = {
        "shape": array.shape,
        "spacing": [s * step for s, step in zip(spacing, steps[::-1], strict=True)],  # mm x, y, z
        "step": steps[0],
        "image": _packed(array),
        "layers": [{"name": name, "labels": _packed(labels)} for name, labels in pictures.items()],
        "organs": [{"name": name, "colour": colour(at)} for at, name in enumerate(names.values())],
    }
    write_text(file, rendered("viewer.html", data, title=title))


def rendered(template: str, data: Any, **values: Any) -> str:
    """A page of this folder as text; its script gets `data`, plain values."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    text = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")  # a script element ends at the first </script
    return environment.get_template(template).render(data=text, **values)


def _packed(array: np.ndarray) -> str:
    return base64.b64encode(gzip.compress(array.tobytes(), 6, mtime=0)).decode()
