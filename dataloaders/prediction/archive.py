"""Many scans to segment: the next one is read and the last one written while one is segmented.

Memory does not grow with their number: at most one scan waits before and behind the networks. Several processes may
work on one archive: each scan is claimed by one of them, and another takes over what a killed process had claimed.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataloaders.prediction.cleaning import cleaned
from dataloaders.prediction.predictor import Predictor
from dataloaders.prediction.queries import PROBABILITIES
from dataloaders.prediction.segmentation import write_segmentation
from dataloaders.prediction.sheet import draw_sheet
from dataloaders.raw.intensities import require_training_values
from dataloaders.raw.preparation import along_axes
from dataloaders.raw.sources import read_image
from util.commands import warn
from util.locks import Lock
from util.manifest import Job, Manifest
from util.parallel import Done, attempt
from util.report.viewer import write_viewer
from util.volume import Volume, write_like

Ready = tuple[dict[str, str], Volume, list[Path]]  # digests of the sources, the scan, its DICOM files slice by slice
AXIAL = (1.0, 1.0, 1.0)  # columns run to the left, rows to the back, slices to the head


@dataclass
class Claim:
    """A scan that this process works on."""

    name: str
    job: Job
    lock: Lock
    read: Future


class Segmentation:
    """The work on one archive, with its progress and what went wrong.

    `prepared`: intensities are as in the training scans already; `cleaning`: what `cleaned` does to labels.
    """

    def __init__(
        self, predictor: Predictor, manifest: Manifest, *, prepared: bool, cleaning: Mapping, silent: bool
    ) -> None:
        self.predictor, self.manifest, self.prepared, self.cleaning = predictor, manifest, prepared, cleaning
        # a log file wants a line now and then, not a film
        self.bar = tqdm(unit="organ", smoothing=0, mininterval=0.1 if sys.stderr.isatty() else 60, disable=silent)
        self.failures: dict[str, str] = {}
        self.done = 0

    def run(self, todo: Mapping[str, Job]) -> tuple[dict[str, str], int]:
        """Segment what is not on record; returns what went wrong by name, and how many scans were segmented.

        Scans that another process has are left to it; at the end it is waited for, and what it did not finish is done.
        """
        organs = len(self.predictor.organs)
        with self.bar, ThreadPoolExecutor(1) as self.reader, ThreadPoolExecutor(1) as self.writer:
            self.bar.reset(len(todo) * organs)
            writing: Future | None = None
            for claim in self._claims(todo):
                self.bar.set_description(claim.name, refresh=False)
                before, done = self.bar.n, claim.read.result()
                ready = done.result
                if ready:
                    done = attempt(self._labels, (claim.job, ready[1]), str(claim.job.sources[0]))
                if writing:
                    writing.result()
                writing = self.writer.submit(self._finish, claim, ready, done)
                # of what was there, or failed, nothing is learnt about the time that the others take
                self.bar.total -= organs - (self.bar.n - before)
            if writing:
                writing.result()
        return self.failures, self.done

    def _claims(self, todo: Mapping[str, Job]) -> Iterator[Claim]:
        """The scans that nobody else has, one being read ahead; then one by one those that others did not finish."""
        waiting, ahead = {}, None
        for name, job in todo.items():
            lock = self.manifest.claim(name)
            if lock is None:
                waiting[name] = job
                continue
            claim = self._claim(name, job, lock)
            if ahead:
                yield ahead
            ahead = claim
        if ahead:
            yield ahead
        for name, job in waiting.items():
            self.bar.set_description(f"waiting for {name}, which another process has")
            yield self._claim(name, job, self.manifest.claim(name, wait=True))

    def _claim(self, name: str, job: Job, lock: Lock) -> Claim:
        return Claim(name, job, lock, self.reader.submit(attempt, self._read, (name, job), str(job.sources[0])))

    def _read(self, name: str, job: Job) -> Ready | None:
        """None if the scan is done."""
        sources = job.digests()
        if job.is_done(self.manifest.scans.get(name), sources):
            return None
        self.manifest.forget(name, job)
        image, slices = read_image(job.sources)
        warn(f"{job.sources[0]}: {doubt}" for doubt in image.doubts)
        known = self.predictor.preparation
        require_training_values(image, known.plan, known.values, job.sources[0], prepared=self.prepared)
        return sources, image, slices

    def _labels(self, job: Job, image: Volume) -> np.ndarray:
        """Organ ids `(D, H, W)` of a scan; probabilities are written if they are wanted."""
        probability_files = [file for file in job.outputs if file.parent.name == PROBABILITIES]

        def take(place: int, probability: np.ndarray) -> None:
            if probability_files:
                write_like(probability_files[place], probability, image.geometry, job.sources[0])
            self.bar.update()

        return self.predictor.labels(image, prepared=self.prepared, take=take)

    def _finish(self, claim: Claim, ready: Ready | None, done: Done) -> None:
        """Write and put on record, or note what went wrong; in any case others may have the scan."""
        try:
            if ready and not done.failure:
                done = attempt(self._write, (claim.name, claim.job, *ready, done.result), str(claim.job.sources[0]))
                self.done += not done.failure
            if done.failure:
                self.failures[claim.name] = done.failure
                if claim.name not in self.manifest.scans:
                    claim.job.remove()  # no part of a result
        finally:
            claim.lock.release()

    def _write(
        self, name: str, job: Job, sources: Mapping[str, str], image: Volume, slices: Sequence[Path], labels: np.ndarray
    ) -> None:
        labels_file, picture, page, *more = job.outputs
        organs, members = self.predictor.organs, self.predictor.members
        labels = cleaned(labels, **self.cleaning)
        shown = [Volume(array, image.geometry) for array in (image.array, labels)]
        if self.predictor.preparation.axial:  # other planes are shown as the method saw them
            shown = [along_axes(volume, AXIAL) for volume in shown]
        draw_sheet(picture, *shown, organs)
        write_viewer(page, name, shown[0], {"prediction": shown[1].array}, organs)
        for file in (file for file in more if file.suffix == ".dcm"):
            made_by = "+".join(str(member.options["method"]) for member in members)
            write_segmentation(file, slices, labels, organs, made_by, "+".join(member.sha256 for member in members))
        write_like(labels_file, labels, image.geometry, job.sources[0])
        voxel = float(np.prod(image.geometry.spacing)) / 1000
        millilitres = {organ: round(int((labels == i).sum()) * voxel, 3) for i, organ in organs.items()}
        self.manifest.add(name, job.record(sources, millilitres=millilitres))
