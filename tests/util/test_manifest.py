"""One process works in a folder, or several share it; what counts as done is what is on record, byte by byte."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import at_once
from tests.conftest import ROOT
from util.errors import UserError
from util.locks import Lock, claimed
from util.manifest import Job, Manifest, open_manifest, share_manifest


@pytest.fixture
def folder(tmp_path) -> Path:
    for cohort in ("in", "other"):
        (tmp_path / cohort).mkdir()
        for name in ("1", "2", "3"):
            (tmp_path / cohort / name).write_text(f"{cohort} {name}")
    return tmp_path


def jobs(root: Path, *names: str, cohort: str = "in") -> dict[str, Job]:
    base, home = root / cohort, root / "out"
    return {name: Job(base, (base / name,), home, (home / f"{name}.txt",)) for name in names}


def work(todo: dict[str, Job], *, overwrite: bool = False, **facts) -> list[str]:
    """Do what is not done, as the commands do; returns what that was."""
    home, fresh = next(iter(todo.values())).home, []
    with open_manifest(home / "made.json", facts, todo, existing=home.glob("*.txt"), overwrite=overwrite) as manifest:
        for name, job in todo.items():
            sources = job.digests()
            if not job.is_done(manifest.scans.get(name), sources):
                manifest.forget(name, job)
                job.outputs[0].write_text(f"{facts} {job.sources[0].read_text('utf-8')}")
                manifest.add(name, job.record(sources))
                fresh.append(name)
    return fresh


def record(root: Path) -> dict:
    return json.loads((root / "out/made.json").read_text("utf-8"))


def test_only_what_is_missing_damaged_or_of_other_sources_is_made_again(folder):
    todo = jobs(folder, "1", "2", "3")
    assert work(todo, size=1) == ["1", "2", "3"] and work(todo, size=1) == []
    kept = todo["3"].outputs[0].stat()
    todo["1"].outputs[0].write_text("")
    todo["2"].sources[0].write_text("another scan")
    content = todo["3"].outputs[0].read_text("utf-8")
    assert work(todo, size=1) == ["1", "2"]
    todo["3"].outputs[0].write_text(content[::-1])  # same size, same date
    os.utime(todo["3"].outputs[0], ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert work(todo, size=1) == ["3"]
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["1.txt", "2.txt", "3.txt", "made.json"]


def test_scans_of_a_second_call_join_those_of_the_first_in_order(folder):
    assert work(jobs(folder, "3"), size=1) == ["3"]
    assert work(jobs(folder, "1", cohort="other"), size=1) == ["1"]
    assert list(record(folder)["scans"]) == ["1", "3"] and record(folder)["size"] == 1


def test_another_scan_of_the_same_name_is_refused_until_it_is_overwritten(folder):
    work(jobs(folder, "1", "2"), size=1)
    before = (folder / "out/1.txt").read_bytes()
    with pytest.raises(UserError, match=r"already holds a scan 1, from .*/in; choose another folder"):
        work(jobs(folder, "1", "3", cohort="other"), size=1)
    assert (folder / "out/1.txt").read_bytes() == before and set(record(folder)["scans"]) == {"1", "2"}
    (folder / "other/1").write_text("in 1")  # the same scan at another place is the same scan
    assert work(jobs(folder, "1", cohort="other"), size=1) == []
    (folder / "other/1").write_text("other 1")
    assert work(jobs(folder, "1", cohort="other"), size=1, overwrite=True) == ["1"]
    assert set(record(folder)["scans"]) == {"1", "2"}


def test_a_file_of_another_scan_is_not_replaced(folder):
    work(jobs(folder, "1"), size=1)
    todo = jobs(folder, "2")
    todo["2"] = Job(todo["2"].base, todo["2"].sources, todo["2"].home, jobs(folder, "1")["1"].outputs)
    with pytest.raises(UserError, match="is the result of another scan, 1"):
        work(todo, size=1)


def test_other_parameters_are_refused_and_overwriting_leaves_no_mixture(folder, capsys):
    work(jobs(folder, "1", "2"), size=1, plan={"spacing": [1, 2]})
    with pytest.raises(UserError, match=r"other parameters \(size 1 and not 2, spacing \[1, 2\] and not \[1, 3\]\)"):
        work(jobs(folder, "1"), size=2, plan={"spacing": [1, 3]})
    assert work(jobs(folder, "1"), size=2, plan={"spacing": [1, 2]}, overwrite=True) == ["1"]
    assert "removed 2, made with other parameters (size 1 and not 2)" in capsys.readouterr().out
    assert list(record(folder)["scans"]) == ["1"] and not (folder / "out/2.txt").exists()


def test_overwriting_one_scan_forgets_that_one_alone(folder):
    work(jobs(folder, "1", "2"), size=1)
    kept = record(folder)["scans"]["2"]
    assert work(jobs(folder, "1"), size=1, overwrite=True) == ["1"]
    assert record(folder)["scans"]["2"] == kept


def test_files_of_unknown_origin_and_damaged_records_are_refused(folder):
    (folder / "out").mkdir()
    (folder / "out/1.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds 1\.txt but no made\.json that says how they were made"):
        work(jobs(folder, "1"), size=1)
    with pytest.raises(UserError, match="remove them first"):
        work(jobs(folder, "2"), size=1, overwrite=True)
    assert (folder / "out/1.txt").read_text("utf-8") == "mine"
    for damage in ("{", "[]", '{"scans": []}', '{"scans": {"1": 2}}', '{"scans": {"1": {"sources": 3}}}'):
        (folder / "out/made.json").write_text(damage)
        with pytest.raises(UserError, match="is damaged"):
            work(jobs(folder, "1"), size=1)
    (folder / "file").write_text("")
    with pytest.raises(UserError, match="is a file; name a folder"), claimed(folder / "file"):
        pass


def test_a_record_leads_to_no_file_outside(folder):
    work(jobs(folder, "1"), size=1)
    content = record(folder)
    content["scans"]["1"]["outputs"]["../in/2"] = ""
    (folder / "out/made.json").write_text(json.dumps(content))
    work(jobs(folder, "1"), size=1, overwrite=True)
    assert (folder / "in/2").exists()


HOLDER = """
import sys, time
from pathlib import Path
from util.locks import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_one_that_was_killed_blocks_nobody(folder):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder / "out"], cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8"
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"process {holder.pid} on .* works there; wait for its end"):
            work(jobs(folder, "1"), size=1)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    (folder / "out/.0123abcd.1.txt").write_text("half a file")
    assert work(jobs(folder, "1"), size=1) == ["1"]
    assert not list((folder / "out").glob(".*"))


def _share(root: Path, names: list[str], fatal: str = "") -> None:
    """A process that makes what nobody else makes, and is killed in the midst of the scan `fatal`."""
    todo, home = jobs(root, *names), root / "out"
    how = {"existing": home.glob("*.txt"), "overwrite": False}
    with share_manifest(home / "made.json", {"size": 1}, todo, **how) as manifest:
        for name, lock in _claims(manifest, todo):
            sources = todo[name].digests()
            if not todo[name].is_done(manifest.scans.get(name), sources):
                manifest.forget(name, todo[name])
                (home / f".0123abcd.{name}.txt").write_text("half a file")
                time.sleep(0.01)
                if name == fatal:
                    os.kill(os.getpid(), signal.SIGKILL)
                (home / f".0123abcd.{name}.txt").rename(todo[name].outputs[0])
                with open(root / "log", "a") as log:
                    log.write(f"{name} ")
                manifest.add(name, todo[name].record(sources))
            lock.release()


def _claims(manifest: Manifest, names) -> Iterator[tuple[str, Lock]]:
    later = []
    for name in names:
        lock = manifest.claim(name)
        if lock:
            yield name, lock
        else:
            later.append(name)
    for name in later:
        yield name, manifest.claim(name, wait=True)


def test_processes_that_share_a_folder_make_every_scan_once_though_some_are_killed(folder):
    names = [str(number) for number in range(1, 25)]
    for name in names:
        (folder / "in" / name).write_text(name)
    deaths = [(_share, folder, names, str(1 + 7 * number)) for number in range(3)]
    codes = at_once(*deaths, *[(_share, folder, names)] * 2)
    assert codes[3:] == [0, 0] and set(codes[:3]) <= {0, -signal.SIGKILL}
    assert list(record(folder)["scans"]) == names
    assert sorted((folder / "log").read_text("utf-8").split(), key=int) == names
    assert not list((folder / "out").glob(".*"))  # the last one removes what killed ones left
    assert at_once((_share, folder, names)) == [0]
    assert sorted((folder / "log").read_text("utf-8").split(), key=int) == names
    assert work(jobs(folder, *names), size=1) == []


def test_who_shares_a_folder_must_do_the_same_and_remove_nothing(folder):
    todo, home = jobs(folder, "1", "2"), folder / "out"

    def share(overwrite: bool = False, size: int = 1):
        return share_manifest(home / "made.json", {"size": size}, todo, existing=[], overwrite=overwrite)

    with share() as first:
        with pytest.raises(UserError, match="another process works there; --overwrite when it has ended"), share(True):
            pass
        with pytest.raises(UserError, match="other parameters"), share(size=2):
            pass
        with pytest.raises(UserError, match="another process works there"):
            work(todo, size=1)
        with share() as second:
            mine = first.claim("1")
            assert mine and second.claim("1") is None
            todo["1"].outputs[0].write_text("one")
            first.add("1", todo["1"].record(todo["1"].digests()))
            todo["2"].outputs[0].write_text("two")
            second.add("2", todo["2"].record(todo["2"].digests()))
            mine.release()
    assert list(record(folder)["scans"]) == ["1", "2"] and not list(home.glob(".*"))


def _insist(root: Path, name: str) -> None:
    """A process that tries until it is let in."""
    for _ in range(2000):
        try:
            work(jobs(root, name), size=1)
            return
        except UserError as error:
            if "works there" not in str(error):
                raise
            time.sleep(0.002)


def test_many_processes_lose_no_record(folder):
    names = [str(number) for number in range(1, 9)]
    for name in names:
        (folder / "in" / name).write_text(name)
    assert at_once(*((_insist, folder, name) for name in names)) == [0] * len(names)
    assert list(record(folder)["scans"]) == names
