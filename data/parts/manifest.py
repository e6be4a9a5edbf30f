"""What a preparation leaves on record: OUT/preparation.json with sources, results, parameters and versions.

It is what makes a preparation resumable, and what says years later where a data set came from.
"""

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np

from util.errors import UserError
from util.files import digest, write_text
from util.volume import Volume

MANIFEST = "preparation.json"
LIBRARIES = ("numpy", "SimpleITK", "nibabel", "pydicom")


def claim(out: Path, folder: str, dataset: str, parameters: dict, overwrite: bool) -> dict:
    """The manifest of OUT, or a new one; refuses scans of other parameters.

    Raises:
        UserError: OUT holds scans that were prepared otherwise, or its manifest cannot be read.
    """
    file, new = out / MANIFEST, {"dataset": dataset, "parameters": parameters, "scans": {}}
    existing = sorted((out / folder).glob("*_*.nii.gz"))
    if overwrite:
        for path in existing:
            path.unlink()
        return new
    if not file.is_file():
        if existing:
            raise UserError(
                f"{out / folder}: holds {len(existing)} volumes but {out} no {MANIFEST} that says how they "
                "were made; choose another folder, or replace them with --overwrite"
            )
        return new
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        wrong = {
            key: (found["parameters"].get(key), value)
            for key, value in {**parameters, "dataset": dataset}.items()
            if {**found["parameters"], "dataset": found["dataset"]}.get(key) != value
        }
        found["scans"].keys()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: is damaged; prepare everything again with --overwrite") from error
    if wrong:
        differing = ", ".join(f"{key} {was} and not {wanted}" for key, (was, wanted) in wrong.items())
        raise UserError(
            f"{out}: was made with other parameters ({differing}); choose another folder, or use --overwrite"
        )
    return found


def write_manifest(file: Path, manifest: dict) -> None:
    """Scans in the order of their numbers: the same bytes whatever the order of the work."""
    manifest["scans"] = dict(sorted(manifest["scans"].items(), key=lambda item: int(item[0])))
    write_text(file, json.dumps(manifest, indent=1) + "\n")


def is_done(recorded: dict | None, sources: Mapping[str, str], outputs: tuple[Path, ...]) -> bool:
    """True if an earlier run recorded exactly these sources and results."""
    return (
        recorded is not None
        and recorded["sources"] == sources
        and all(path.is_file() and recorded["outputs"].get(path.name) == digest(path) for path in outputs)
    )


def record(sources: Mapping[str, str], outputs: tuple[Path, ...], result: tuple[Volume, Volume]) -> dict:
    """A scan's line of the manifest."""
    image, label = result
    ids, voxels = np.unique(label.array, return_counts=True)
    return {
        "sources": dict(sources),
        "outputs": {path.name: digest(path) for path in outputs},
        "shape": list(image.array.shape),
        "spacing": list(image.geometry.spacing),
        "label_voxels": {str(int(i)): int(n) for i, n in zip(ids, voxels, strict=True) if i},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }
