"""Training scans on disk as memory maps: made once, then no training holds more of a scan than it looks at.

The folder holds, for every scan, the intensities as they were read, the supervoxels or superpixels in the smallest
integers, the pixels of each on every slice (what samplers want to know), and the organs that every slice shows (what
setting 2 wants to know). `maps.json` says what each was made from and what else is known of it. A file's name depends
on the content of its sources, so a training that runs keeps the files that it began with, whatever becomes of the scan.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from dataloaders.samplers import slice_areas
from dataloaders.scans import (
    Scan,
    joined_mean_and_std,
    moments,
    normalised,
    own_mean_and_std,
    read_label,
    read_segments,
)
from util.dataset import Dataset
from util.errors import UserError
from util.files import digest, whole_file, write_text
from util.locks import LOCK, Lock, claimed
from util.mapped import MappedArray
from util.parallel import Backend, each_scan
from util.volume import Geometry, Volume, read_volume

RECORD = "maps.json"
VERSION = 1  # raised whenever the same sources give other files
IN_USE = ".in_use"


@dataclass(frozen=True)
class Normalised:
    """Intensities `(D, H, W)` as float32 about 0, computed of what is looked at: `image[3]`, `image[[1, 4]]`."""

    stored: MappedArray
    mean: float
    deviation: float

    @property
    def shape(self) -> tuple[int, ...]:
        """`(D, H, W)`."""
        return self.stored.shape

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, key: Any) -> np.ndarray:
        return normalised(self.stored[key], self.mean, self.deviation)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.float32, copy=False)


@dataclass(frozen=True)
class MappedScan(Scan):
    """A scan whose arrays stay on disk. Its label is `(D, 1, K)`: for every slice the organ ids that it shows.

    Attributes:
        table: of `slice_areas`: `(N, 3)` segment, slice, pixels of all that are not 0.
    """

    table: MappedArray | None = None

    @property
    def areas(self) -> np.ndarray:
        """Pixels of every segment on every slice."""
        segments, slices, pixels = np.asarray(self.table).T
        areas = np.zeros((segments.max(initial=0) + 1, self.shape[0]), np.int64)
        areas[segments, slices] = pixels
        return areas


def maps_folder(dataset: Dataset, root: Path, maps: Path) -> Path:
    """Folder for the maps of a data set below the one for all."""
    images = (Path(root) / dataset.images).resolve()
    return maps / f"{images.parent.name}_{hashlib.sha256(os.fsencode(images)).hexdigest()[:8]}"


class Maps:
    """The maps of some scans; what is missing, or was made from other files than are there now, is made.

    Several processes may want the same at once: one makes it, the others wait. As long as the object lives the maps
    cannot be removed.

    Args:
        folder: of the maps.
        dataset, root, numbers: the scans.
        segments: "supervoxels" or "superpixels".
        labels: which organs a slice shows is wanted, too.
        jobs, backend: scans made at once, and by whom; default: a few threads.

    Raises:
        UserError: as `read_scan`, or the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        dataset: Dataset,
        root: Path,
        numbers: Sequence[int],
        segments: str,
        *,
        labels: bool = False,
        jobs: int | None = None,
        backend: Backend | None = None,
    ) -> None:
        self.folder, self.dataset, self.root, self.numbers = folder, dataset, Path(root), list(numbers)
        self.kinds = ("image", segments, *(["label"] if labels else []))
        self._lease = _lease(folder)
        self._record = _read(folder)
        if not all(self._fresh(number) for number in self.numbers):
            with claimed(folder, wait=True):
                self._record = _read(folder)
                stale = [number for number in self.numbers if not self._fresh(number)]
                self._make(stale, jobs or min(8, joblib.cpu_count()), backend or Backend("threading"))
                self._clean()

    def _key(self, number: int, kind: str) -> str:
        """Name of an entry in the record: its source, seen from the folder, so that both may move together."""
        file = source_file(self.dataset, self.root, number, kind)
        return f"{kind} {os.path.relpath(file.resolve(), self.folder.resolve())} {self.dataset.size or ''}".strip()

    def _entries(self, number: int) -> dict[str, Any]:
        """What is on record of a scan, by kind; None where nothing is."""
        return {kind: self._record.get(self._key(number, kind)) for kind in self.kinds}

    def _fresh(self, number: int) -> bool:
        """True if all of a scan's files look as when they were made: nothing needs to be read to know that."""
        entries = self._entries(number)
        return all(entries.values()) and all(
            entry["image"] in ("", entries["image"]["source"]["sha256"])
            and all(
                _seen(file) == known["stamp"]
                for file, known in _files(entry, source_file(self.dataset, self.root, number, kind), self.folder)
            )
            for kind, entry in entries.items()
        )

    def _make(self, numbers: Sequence[int], jobs: int, backend: Backend) -> None:
        place = (self.folder, self.dataset, self.root)
        calls = {number: (*place, number, self._entries(number)) for number in numbers}
        try:
            results = each_scan(
                map_scan, calls, jobs, "mapping scans", lambda *a: a[1].image_file(a[2], a[3]), backend=backend
            )
            for count, (number, done) in enumerate(results, start=1):
                if done.failure:
                    raise UserError(done.failure)
                self._record |= {self._key(number, kind): entry for kind, entry in done.result.items()}
                if count % 100 == 0:
                    self._write()
        finally:
            self._write()

    def _write(self) -> None:
        write_text(self.folder / RECORD, json.dumps({"version": VERSION, "entries": self._record}))

    def _clean(self) -> None:
        """Remove what no entry names, unless another process may still look at it."""
        if self._lease is None:
            return
        if self._lease.alone():
            named = {name for entry in self._record.values() for name in entry["arrays"]}
            for file in self.folder.glob("*.npy"):
                if file.name not in named:
                    file.unlink(missing_ok=True)
        self._lease.share()

    def mean_and_std(self) -> tuple[float, float]:
        """Mean and population standard deviation over all voxels of the scans [alpnet 4]."""
        return joined_mean_and_std([self._entries(number)["image"]["facts"]["moments"] for number in self.numbers])

    def scans(self, mean_and_std: tuple[float, float] | None = None) -> list[MappedScan]:
        """The scans, z-scored by the given mean and standard deviation, or each by its own."""
        return [self._scan(number, mean_and_std) for number in self.numbers]

    def _scan(self, number: int, mean_and_std: tuple[float, float] | None) -> MappedScan:
        image, segments, label = [*self._entries(number).values(), None][:3]
        facts = image["facts"]
        (stored,), (ids, table) = self._arrays(image), self._arrays(segments)
        own = np.float64(facts["mean"]), np.float64(facts["deviation"])
        return MappedScan(
            number=number,
            image=Normalised(stored, *(mean_and_std or own)),
            label=np.asarray(self._arrays(label)[0]) if label else None,
            segments=ids,
            geometry=_geometry(facts),
            shape=tuple(facts["shape"]),
            values=tuple(facts["values"]),
            table=table,
        )

    def _arrays(self, entry: Mapping) -> list[MappedArray]:
        try:
            return [MappedArray.of(self.folder / name) for name in entry["arrays"]]
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder}: is damaged ({error}); remove it, it is made anew") from error


def remove(folder: Path) -> int:
    """Remove all maps of a folder, and segments that could not lie beside the scans; returns how many files that were.

    Raises:
        UserError: a process uses them.
    """
    if not folder.is_dir():
        return 0
    segments = [below for below in folder.glob("super*") if below.is_dir()]
    with ExitStack() as locks:
        for place in (folder, *segments):
            locks.enter_context(claimed(place))
        locks.enter_context(claimed(folder, name=IN_USE))
        files = [*folder.glob("*.npy"), *folder.glob(f"*{RECORD}")]
        files += [file for place in segments for file in place.iterdir() if file.name != LOCK]
        for file in files:
            file.unlink(missing_ok=True)
    for place in (*segments, folder):
        with suppress(OSError):
            place.rmdir()
    return len(files)


def source_file(dataset: Dataset, root: Path, number: int, kind: str) -> Path:
    """File of the "image", the "label", the "supervoxels" or the "superpixels" of a scan."""
    whole = {"image": dataset.image_file, "label": dataset.label_file}
    return whole[kind](root, number) if kind in whole else dataset.segment_file(root, number, kind)


def map_scan(folder: Path, dataset: Dataset, root: Path, number: int, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Make the files of a scan that are missing or not those of its sources; returns its entries of the record.

    `entries`: what is on record by kind; None = nothing.

    Raises:
        UserError: as `read_scan`.
    """
    made: dict[str, Any] = {}
    for kind, entry in entries.items():
        file = source_file(dataset, root, number, kind)
        about = "" if kind == "image" else made["image"]["source"]["sha256"]
        if entry and entry["image"] == about and _unchanged(entry, file, folder):
            made[kind] = entry
            continue
        before = _seen(file)
        if kind == "image":
            arrays, facts = _image_arrays(dataset, root, number)
        else:
            facts = {}
            arrays = _beside_arrays(dataset, root, number, kind, made["image"]["facts"])
        source = {"stamp": before, "sha256": digest(file)}
        content = json.dumps([VERSION, kind, source["sha256"], about, dataset.size])
        mark = hashlib.sha256(content.encode()).hexdigest()[:12]
        known = {}
        for name, array in arrays.items():
            path = folder / f"{name}_{number}_{mark}.npy"
            with whole_file(path) as temporary:
                np.save(temporary, array)
            known[path.name] = {"stamp": _seen(path), "sha256": digest(path)}
        made[kind] = {"source": source, "image": about, "arrays": known, "facts": facts}
    return made


def _image_arrays(dataset: Dataset, root: Path, number: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Voxels of a scan as they are read, and what is known of it."""
    file = dataset.image_file(root, number)
    volume = read_volume(file)
    mean, deviation = own_mean_and_std(volume.array, file)
    facts = {
        "mean": float(mean),
        "deviation": float(deviation),
        "moments": moments(volume.array),
        "values": (float(volume.array.min()), float(volume.array.max())),
        "shape": volume.array.shape,
        "geometry": asdict(volume.geometry),
    }
    return {"image": _cut(volume.array, dataset)}, json.loads(json.dumps(facts))


def _beside_arrays(dataset: Dataset, root: Path, number: int, kind: str, facts: Mapping) -> dict[str, np.ndarray]:
    """Which organs every slice shows, or segments with the table of their areas."""
    image = Volume(np.broadcast_to(np.int16(0), facts["shape"]), _geometry(facts))  # only its grid is asked for
    if kind == "label":
        label = _cut(read_label(dataset, root, number, image), dataset)
        ids = np.unique(label)
        shown = np.stack([(label == i).any((1, 2)) for i in ids], axis=1)
        return {kind: (shown * ids).astype(np.int16)[:, None]}
    segments = _cut(read_segments(dataset, root, number, kind, image), dataset)
    areas = slice_areas(segments)
    where = np.nonzero(areas)
    table = np.stack((*where, areas[where]), axis=1).astype(np.int32)
    return {kind: segments.astype(np.min_scalar_type(segments.max())), f"{kind}_areas": table}


def _cut(array: np.ndarray, dataset: Dataset) -> np.ndarray:
    return np.ascontiguousarray(array[:, : dataset.size, : dataset.size])


def _geometry(facts: Mapping) -> Geometry:
    return Geometry(**{name: tuple(values) for name, values in facts["geometry"].items()})


def _lease(folder: Path) -> Lock | None:
    """Keeps the maps from being removed; where nothing can be written, nothing can be removed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return Lock(folder / IN_USE, shared=True, wait=True)
    except OSError:
        return None


def _read(folder: Path) -> dict[str, Any]:
    """The record; nothing where there is none, or an older version's, or a damaged one: all is made anew."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads((folder / RECORD).read_text("utf-8"))
        if content["version"] == VERSION:
            return dict(content["entries"])
    return {}


def _seen(file: Path) -> list[int] | None:
    """Size and times of a file; every change of its content changes them."""
    try:
        status = file.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _files(entry: Mapping, source: Path, folder: Path) -> list[tuple[Path, dict]]:
    """An entry's files with how each looked."""
    return [(source, entry["source"]), *((folder / name, known) for name, known in entry["arrays"].items())]


def _unchanged(entry: Mapping, source: Path, folder: Path) -> bool:
    """True if the files have the content on record; how they look now is put on record, for they may have moved."""
    for file, known in _files(entry, source, folder):
        now = _seen(file)
        if now != known["stamp"] and (now is None or digest(file) != known["sha256"]):
            return False
        known["stamp"] = now
    return True
