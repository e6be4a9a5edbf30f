"""A short form of the campaign of faults: some hundred damaged inputs of every kind, a few kills of a cheap command."""

import gzip
from pathlib import Path

import numpy as np

from benchmarks import faults
from benchmarks.campaign import kills
from benchmarks.campaign.nifti import Headers
from benchmarks.campaign.trials import FAULTS, Kind, run
from util.errors import UserError
from util.volume import Volume


def test_damaged_inputs_are_read_rightly_or_refused_in_a_sentence(tmp_path):
    trials = faults.try_inputs(tuple(faults.KINDS), 300, 1, 1, tmp_path)
    assert not [trial for trial in trials if trial.outcome in FAULTS]
    assert {trial.kind for trial in trials} == faults.KINDS.keys() and len(trials) >= 290
    outcomes = [trial.outcome for trial in trials]
    assert outcomes.count("accepted") > 60 and outcomes.count("refused") > 60  # it tries what is hard to tell apart
    assert not list(tmp_path.iterdir())


def test_a_killed_command_ends_with_the_bytes_of_an_undisturbed_one(tmp_path):
    (count,) = kills.run(["data.phantom"], 2, 2, tmp_path)
    assert count.kills == 2 and not count.faults


class Faulty(Kind):
    """A reader with four faults, by the number of the input."""

    name = "faulty"

    def write(self, folder: Path, random: np.random.Generator) -> None:
        (folder / folder.name).write_text("")

    def damage(self, folder: Path, random: np.random.Generator) -> None:
        pass

    def read(self, folder: Path) -> str:
        number = int(folder.name.split("_")[1])
        if number == 1:
            raise KeyError("nobody foresaw this")
        if number == 2:
            raise UserError("something is wrong somewhere")
        if number == 3:
            import os

            os._exit(11)  # as a library does that aborts
        return folder.name

    def contradiction(self, folder: Path, result: str) -> str:
        return "another" if result == "faulty_4" else ""


def test_the_campaign_notices_every_sort_of_fault_and_goes_on(tmp_path):
    trials = list(run([Faulty()], [range(1, 6)], 1, tmp_path))
    assert [trial.outcome for trial in trials] == ["crash", "unclear", "crash", "disagreement", "accepted"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faulty_1", "faulty_2", "faulty_3", "faulty_4"]
    assert "nobody foresaw this" in (tmp_path / "faulty_1/fault.txt").read_text("utf-8")


def test_the_witness_notices_a_mirrored_scan(tmp_path):
    kind = Headers()
    kind.write(tmp_path, np.random.default_rng(0))
    volume = kind.read(tmp_path)
    assert not kind.contradiction(tmp_path, volume)
    assert "other values" in kind.contradiction(tmp_path, Volume(volume.array[..., ::-1], volume.geometry))


def test_half_files_under_final_names_are_found(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"half")[:-3])
    (tmp_path / ".b.json").write_text("{")
    (tmp_path / "c.json").write_text("{")
    assert sorted(Path(text.split(" ")[0]).name for text in kills.half_files(tmp_path)) == ["a.nii.gz", "c.json"]
