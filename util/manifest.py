"""The record of a folder that a command fills scan by scan: what made it, from which files, and which files came out.

One process works in a folder at a time. A scan is done where its sources and its results are, byte by byte, those on
record; so a command that was stopped goes on, and nothing that was damaged, edited or exchanged passes for done.
"""

import contextlib
import json
import os
import re
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from util.errors import UserError
from util.files import TEMPORARY, digest, write_text
from util.finding import few

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
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
    """A folder's record; open it with `open_manifest`.

    Attributes:
        file: it is written to.
        scans: name -> what `Job.record` gave.
        notes: what else is worth remembering; it may change freely.
    """

    def __init__(self, file: Path, facts: Mapping[str, Any]) -> None:
        self.file, self.facts = file, json.loads(json.dumps(facts))
        self.scans: dict[str, dict] = {}
        self.notes: dict[str, Any] = {}

    def add(self, name: str, record: Mapping) -> None:
        """Put a scan on record, at once."""
        self.scans[name] = dict(record)
        self.write()

    def forget(self, name: str, job: Job) -> None:
        """Remove a scan's results and what is on record of it, so that no reader meets the old ones."""
        job.remove(self.scans.get(name))
        if self.scans.pop(name, None) is not None:
            self.write()

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
    file: Path, facts: Mapping[str, Any], jobs: Mapping[str, Job], *, existing: Iterable[Path], overwrite: bool
) -> Iterator[Manifest]:
    """Claim a folder for some scans: it holds, and will hold, nothing that was made otherwise.

    Args:
        file: of the record, in that folder.
        facts: plain values that the results depend on.
        jobs: the scans by name.
        existing: files there that look like results; without a record they are somebody else's.
        overwrite: the results of these scans go; those of others stay, unless they were made with other facts.

    Raises:
        UserError: another process works there; what is there was made otherwise, or a name stands for another scan; the
            folder cannot be written.
    """
    with claimed(file.parent):
        manifest = Manifest(file, facts)
        found = manifest.read()
        differing = _differing(found, manifest.facts) if found is not None else ""
        existing = sorted(path for path in existing if not path.name.startswith("."))
        _require_ours(manifest, found, jobs, existing, differing, overwrite)
        for path in existing if differing else ():
            path.unlink(missing_ok=True)
        leaving = set(manifest.scans) - set(jobs) if differing else set()
        if leaving:
            print(f"{file.parent}: removed {few(sorted(leaving))}, made with other parameters ({differing})")
        for name in {*leaving, *(jobs if overwrite else ())}:
            (jobs.get(name) or replace(next(iter(jobs.values())), outputs=())).remove(manifest.scans.pop(name, None))
        for name, job in jobs.items():
            _require_own_name(manifest, name, job)
        for home in {job.home for job in jobs.values()}:  # what a killed process left
            for path in home.glob(".*"):
                if re.fullmatch(TEMPORARY, path.name):
                    path.unlink(missing_ok=True)
        manifest.write()  # at once: a killed command must find its own folder again
        yield manifest


def _require_ours(
    manifest: Manifest,
    found: dict | None,
    jobs: Mapping[str, Job],
    existing: list[Path],
    differing: str,
    overwrite: bool,
) -> None:
    file, folder = manifest.file, manifest.file.parent
    outputs = {path for job in jobs.values() for path in job.outputs}
    names = [path.name for path in existing if not overwrite or path not in outputs]
    if found is None and names:
        remedy = "remove them first" if overwrite else "replace them with --overwrite"
        raise UserError(
            f"{folder}: holds {few(names)} but no {file.name} that says how they were made; choose another folder, or "
            f"{remedy}"
        )
    if differing and not overwrite:
        raise UserError(
            f"{file}: what is there was made with other parameters ({differing}); choose another folder, or replace "
            "it with --overwrite"
        )


def _differing(found: Mapping, wanted: Mapping) -> str:
    """Parameters that are not the same, in words."""
    was, new = (
        {key: value for name, group in facts.items() for key, value in _group(name, group)} for facts in (found, wanted)
    )
    names = [key for key in (*new, *(set(was) - set(new))) if was.get(key) != new.get(key)]
    said = {name: f"{name} {was.get(name)} and not {new.get(name)}" for name in names}
    return ", ".join(text if len(text) < SHOWN else name for name, text in said.items())


def _group(name: str, group: Any) -> Iterable[tuple[str, Any]]:
    return group.items() if isinstance(group, dict) else [(name, group)]


def _require_own_name(manifest: Manifest, name: str, job: Job) -> None:
    """A scan of another folder under a name that is taken would make a mixture of two cohorts."""
    folder, base = manifest.file.parent, str(job.base.resolve())
    owners = {output: other for other, record in manifest.scans.items() for output in record["outputs"]}
    for output in job.names:
        if owners.get(output, name) != name:
            raise UserError(f"{job.sources[0]}: {folder / output} is the result of another scan, {owners[output]}")
    recorded = manifest.scans.get(name)
    if recorded and recorded.get("from", base) != base:
        with contextlib.suppress(UserError):  # what cannot be read is told when it is worked on
            if sorted(job.digests().values()) == sorted(recorded["sources"].values()):
                return
        raise UserError(
            f"{job.sources[0]}: {folder} already holds a scan {name}, from {recorded['from']}; choose another folder "
            "or rename the scan, or replace it with --overwrite"
        )


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Have a folder for this process alone. The system takes the lock from a process that ends, however it ends.

    Raises:
        UserError: another process has it, or the folder cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder to write to")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = None
        while handle is None:
            handle = _locked(folder / LOCK)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); check its permissions") from error
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        os.close(handle)


def _locked(file: Path) -> int | None:
    """The open lock file, None where its last holder has just removed it."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(handle, 500).decode() or "another process"
        os.close(handle)
        raise UserError(f"{file.parent}: {holder} works there; wait for its end, or choose another folder") from error
    except OSError as error:  # some network drives know no locks
        print(f"warning: {file.parent}: {error.strerror}; do not start a second command there", file=sys.stderr)
    try:
        held = os.fstat(handle).st_ino == file.stat().st_ino
    except FileNotFoundError:
        held = False
    if not held:
        os.close(handle)
        return None
    holder = f"process {os.getpid()} on {socket.gethostname()}, started {datetime.now():%d %B %H:%M:%S},"
    os.ftruncate(handle, 0)
    os.write(handle, holder.encode())
    return handle
