"""The record of a folder that a command fills scan by scan: what made it, from which files, and which files came out.

One process works in a folder at a time, or several share it, scan by scan. A scan is done where its sources and its
results are, byte by byte, those on record; so a command that was stopped goes on, and nothing that was damaged, edited
or exchanged passes for done.
"""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from util.errors import UserError
from util.files import TEMPORARY, digest, write_text
from util.finding import few
from util.locks import LOCK, Lock, claimed

CLAIM = r"\..+\.claim"  # names of files that say who works on a scan
SHOWN = 60  # characters of a parameter that fit into a sentence


@dataclass(frozen=True)
class Job:
    """A scan to make.

    Attributes:
        base: folder that the names of its sources are relative to.
        sources: files it is made from.
        home: folder that the names of its results are relative to.
        outputs: files it becomes.
    """

    base: Path
    sources: tuple[Path, ...]
    home: Path
    outputs: tuple[Path, ...]

    def digests(self) -> dict[str, str]:
        """SHA-256 of the sources by name.

        Raises:
            UserError: one cannot be read.
        """
        return {file.relative_to(self.base).as_posix(): digest(file) for file in self.sources}

    @property
    def names(self) -> dict[str, Path]:
        """The results by the names that are put on record."""
        return {file.relative_to(self.home).as_posix(): file for file in self.outputs}

    def is_done(self, recorded: Mapping | None, sources: Mapping[str, str]) -> bool:
        """True where these sources and the results that are there are those on record."""
        if recorded is None or recorded["sources"] != sources:
            return False
        known = recorded["outputs"]
        return all(file.is_file() and known.get(name) == digest(file) for name, file in self.names.items())

    def record(self, sources: Mapping[str, str], **facts: Any) -> dict:
        """What is put on record once the results are there."""
        outputs = {name: digest(file) for name, file in self.names.items()}
        return {"from": str(self.base.resolve()), "sources": dict(sources), "outputs": outputs, **facts}

    def remove(self, recorded: Mapping | None = None) -> None:
        """Remove the results, and those on record."""
        known = [self.home / name for name in (recorded or {}).get("outputs", {}) if ".." not in Path(name).parts]
        for file in {*self.outputs, *known}:
            file.unlink(missing_ok=True)


class Manifest:
    """A folder's record; open it with `open_manifest`, or with `share_manifest` if several processes fill it together.

    Attributes:
        file: it is written to.
        shared: others write to it, too; then each scan is claimed by one process.
        scans: name -> what `Job.record` gave.
        notes: what else is worth remembering; it may change freely.
    """

    def __init__(self, file: Path, facts: Mapping[str, Any], shared: bool = False) -> None:
        self.file, self.facts, self.shared = file, json.loads(json.dumps(facts)), shared
        self.scans: dict[str, dict] = {}
        self.notes: dict[str, Any] = {}

    def add(self, name: str, record: Mapping) -> None:
        """Put a scan on record, at once."""
        with self._merged():
            self.scans[name] = dict(record)
            self.write()

    def forget(self, name: str, job: Job) -> None:
        """Remove a scan's results and what is on record of it, so that no reader meets the old ones."""
        with self._merged():
            job.remove(self.scans.get(name))
            if self.scans.pop(name, None) is not None:
                self.write()

    def claim(self, name: str, *, wait: bool = False) -> Lock | None:
        """Have a scan for this process until `Lock.release`; None where another has it and nobody waits.

        The record is that of this moment. Who waits has it when the other process is done, or was killed.
        """
        try:
            lock = Lock(self.file.with_name(f".{name}.claim"), wait=wait, quiet=True)
        except UserError:
            return None
        with self._merged():
            return lock

    @contextlib.contextmanager
    def _merged(self) -> Iterator[None]:
        """What others wrote is taken over first, and nobody else writes until the end of the block."""
        if self.shared:
            with claimed(self.file.parent, name=".record", wait=True, quiet=True):
                self.read()
                yield
        else:
            yield

    def write(self) -> None:
        """Write the file: scans in the order of their numbers, the same bytes whatever the order of the work."""
        scans = dict(sorted(self.scans.items(), key=lambda item: (item[0].isdigit() and len(item[0]), item[0])))
        notes = {"notes": self.notes} if self.notes else {}
        write_text(self.file, json.dumps({**self.facts, **notes, "scans": scans}, indent=1) + "\n")

    def read(self) -> dict | None:
        """Take over what the file holds; returns the facts it was made with, None where there is no file.

        Raises:
            UserError: it is damaged.
        """
        try:
            content = json.loads(self.file.read_text("utf-8"))
            scans, notes = content.pop("scans", {}), content.pop("notes", {})
            for record in scans.values():
                record.setdefault("outputs", {}).keys(), record["sources"].keys()
            self.scans, self.notes = scans, dict(notes)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.file}: is damaged or cannot be read; choose another folder, or remove it and use --overwrite"
            ) from error
        return content


@contextlib.contextmanager
def open_manifest(
    file: Path,
    facts: Mapping[str, Any],
    jobs: Mapping[str, Job],
    *,
    existing: Iterable[Path],
    overwrite: bool,
    wait: bool = False,
) -> Iterator[Manifest]:
    """Claim a folder for some scans: it holds, and will hold, nothing that was made otherwise.

    Args:
        file: of the record, in that folder.
        facts: plain values that the results depend on.
        jobs: the scans by name.
        existing: files there that look like results; without a record they are somebody else's.
        overwrite: the results of these scans go; those of others stay, unless they were made with other facts.
        wait: for another process that works there.

    Raises:
        UserError: another process works there; what is there was made otherwise, or a name stands for another scan; the
            folder cannot be written.
    """
    with claimed(file.parent, wait=wait):
        manifest = Manifest(file, facts)
        _begin(manifest, jobs, existing, overwrite)
        yield manifest


def _begin(manifest: Manifest, jobs: Mapping[str, Job], existing: Iterable[Path], overwrite: bool) -> None:
    """Make the folder hold nothing that was made otherwise, or refuse it."""
    folder, found = manifest.file.parent, manifest.read()
    existing = sorted(path for path in existing if not path.name.startswith("."))
    outputs = {path for job in jobs.values() for path in job.outputs}
    names = [path.name for path in existing if not overwrite or path not in outputs]
    if found is None and names:
        remedy = "remove them first" if overwrite else "replace them with --overwrite"
        raise UserError(
            f"{folder}: holds {few(names)} but no {manifest.file.name} that says how they were made; choose another "
            f"folder, or {remedy}"
        )
    differing = _differing(manifest, found, overwrite)
    for path in existing if differing else ():
        path.unlink(missing_ok=True)
    leaving = set(manifest.scans) - set(jobs) if differing else set()
    if leaving:
        print(f"{folder}: removed {few(sorted(leaving))}, made with other parameters ({differing})")
    for name in {*leaving, *(jobs if overwrite else ())}:
        (jobs.get(name) or replace(next(iter(jobs.values())), outputs=())).remove(manifest.scans.pop(name, None))
    _require_own_names(manifest, jobs)
    _remove_leftovers(manifest, jobs)
    manifest.write()  # at once: a killed command must find its own folder again


def _remove_leftovers(manifest: Manifest, jobs: Mapping[str, Job]) -> None:
    """Remove what killed processes left."""
    for folder in {manifest.file.parent, *(file.parent for job in jobs.values() for file in job.outputs)}:
        for path in folder.glob(".*"):
            if re.fullmatch(f"{TEMPORARY}|{CLAIM}", path.name):
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def share_manifest(
    file: Path, facts: Mapping[str, Any], jobs: Mapping[str, Job], *, existing: Iterable[Path], overwrite: bool
) -> Iterator[Manifest]:
    """As `open_manifest`, for this process and others that make scans there with the same facts at the same time.

    Raises:
        UserError: as there; or something is to be overwritten and others are at work.
    """
    manifest, folder = Manifest(file, facts, shared=True), file.parent
    with claimed(folder, name=".opening", wait=True, quiet=True):
        lock = Lock(folder / LOCK, shared=True, wait=True, quiet=True)
        if lock.alone():
            _begin(manifest, jobs, existing, overwrite)
        elif overwrite:
            raise UserError(f"{folder}: another process works there; --overwrite when it has ended, or leave it out")
        else:
            _differing(manifest, manifest.read(), overwrite)
            _require_own_names(manifest, jobs)
        lock.share()
    try:
        yield manifest
    finally:
        if lock.alone():
            _remove_leftovers(manifest, jobs)
        lock.release()


def _differing(manifest: Manifest, found: Mapping | None, overwrite: bool) -> str:
    """Parameters that differ from those on record, in words.

    Raises:
        UserError: some do, and nothing is to be overwritten.
    """
    if found is None:
        return ""
    was, new = {}, {}
    for flat, facts in ((was, found), (new, manifest.facts)):
        for name, group in facts.items():
            flat |= group if isinstance(group, dict) else {name: group}
    names = [key for key in (*new, *(set(was) - set(new))) if was.get(key) != new.get(key)]
    said = {name: f"{name} {was.get(name)} and not {new.get(name)}" for name in names}
    differing = ", ".join(text if len(text) < SHOWN else name for name, text in said.items())
    if differing and not overwrite:
        raise UserError(
            f"{manifest.file}: what is there was made with other parameters ({differing}); choose another folder, or "
            "replace it with --overwrite"
        )
    return differing


def _require_own_names(manifest: Manifest, jobs: Mapping[str, Job]) -> None:
    """A scan of another folder under a name that is taken would make a mixture of two cohorts."""
    folder = manifest.file.parent
    owners = {output: other for other, record in manifest.scans.items() for output in record["outputs"]}
    for name, job in jobs.items():
        for output in job.names:
            if owners.get(output, name) != name:
                raise UserError(f"{job.sources[0]}: {folder / output} is the result of another scan, {owners[output]}")
        recorded = manifest.scans.get(name)
        if recorded and not _is_same_scan(job, recorded):
            raise UserError(
                f"{job.sources[0]}: {folder} already holds a scan {name}, from {recorded['from']}; choose another "
                "folder or rename the scan, or replace it with --overwrite"
            )


def _is_same_scan(job: Job, recorded: Mapping) -> bool:
    """True for sources from the same folder, or with the same content."""
    base = str(job.base.resolve())
    if recorded.get("from", base) == base:
        return True
    with contextlib.suppress(UserError):
        return sorted(job.digests().values()) == sorted(recorded["sources"].values())
    return False
