"""Names and colours of label ids for other programs: ITK-SNAP and 3D Slicer."""

from collections.abc import Mapping
from pathlib import Path

from util.files import write_text
from util.pictures import colour, rgb


def write_colours(folder: Path, names: Mapping[int, str]) -> None:
    """Write labels.txt (ITK-SNAP: Segmentation, Import Label Descriptions) and labels.ctbl (3D Slicer: Add Data).

    The order of `names` (id -> name) gives the colours, the same as in the pictures.
    """
    snap = ['0     0    0    0        0  0  0    "Clear Label"']
    slicer = ["# 3D Slicer colour table", "0 background 0 0 0 0"]
    for place, (identifier, name) in enumerate(names.items()):
        red, green, blue = rgb(colour(place))
        quoted = " ".join(name.split()).replace('"', "'")
        snap.append(f'{identifier:<5} {red:<4} {green:<4} {blue:<4}     1  1  1    "{quoted}"')
        slicer.append(f"{identifier} {'_'.join(name.split())} {red} {green} {blue} 255")
    about = ["################################################", "# ITK-SnAP Label Description File",
             "# IDX -R- -G- -B- -A-- VIS MSH LABEL", "################################################"]  # fmt: skip
    write_text(folder / "labels.txt", "\n".join([*about, *snap]) + "\n")
    write_text(folder / "labels.ctbl", "\n".join(slicer) + "\n")
