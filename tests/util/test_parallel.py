"""Scans side by side: what one of them does must not cost the others."""

import os
import signal
from pathlib import Path

from util.errors import UserError
from util.parallel import each_scan


def work(file: Path, what: str) -> str:
    if what == "bad":
        raise UserError(f"{file}: is bad")
    if what == "odd":
        raise KeyError("never foreseen")
    if what == "huge":
        raise MemoryError
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{file.name} is {what}"


def run(jobs: int, *kinds: str) -> dict[int, tuple]:
    scans = {number: (Path(f"image_{number}.nii.gz"), kind) for number, kind in enumerate(kinds)}
    return dict(each_scan(work, scans, jobs))


def test_a_failure_is_a_sentence_and_the_others_are_done():
    found = run(1, "good", "bad", "odd", "huge", "fine")
    assert list(found) == [0, 1, 2, 3, 4]
    assert (found[0].result, found[4].result) == ("image_0.nii.gz is good", "image_4.nii.gz is fine")
    assert found[1].failure == "image_1.nii.gz: is bad"
    assert "image_2.nii.gz: unexpected KeyError" in found[2].failure
    assert "image_3.nii.gz: not enough memory" in found[3].failure
    assert run(-1) == {}


def test_a_process_that_is_killed_costs_its_own_scan_only():
    found = run(2, "good", "killed", "fine", "killed", "well")
    assert {number: done.result for number, done in found.items() if not done.failure} == {
        0: "image_0.nii.gz is good",
        2: "image_2.nii.gz is fine",
        4: "image_4.nii.gz is well",
    }
    assert all("process was killed" in found[number].failure for number in (1, 3))
