"""Kills: a command is killed at random moments and started again until it ends; an undisturbed one gives the same.

Commands start as copies of this process, which has loaded their libraries: that takes longer than the work.
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkProcess
from pathlib import Path

import nibabel
import numpy as np
import torch
from joblib.externals.loky import get_reusable_executor
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 900  # seconds for one start; more is a hang
IN_A_ROW = 5  # kills at most, before a command may end
SMALL = (
    "dataset=PHANTOM", "encoder=efficientnet_lite0", "weights=none", "threads=1", "workers=0", "episode.min_size=20",
    "train.save_every=1", "train.log_every=1",
)  # fmt: skip
STEPS = 8
Results = dict[str, bytes]


@dataclass(frozen=True)
class Inputs:
    """What the commands work on, made once in a folder."""

    folder: Path

    def run(self, *words: object) -> None:
        """Run a command that must succeed."""
        process = start(words, self.folder / "inputs.log")
        process.join()
        if process.exitcode:
            raise RuntimeError(f"{words}: {(self.folder / 'inputs.log').read_text('utf-8')}")

    def phantom(self) -> Path:
        """A data root with six tiny scans and their supervoxels."""
        root = self.folder / "data"
        if not root.exists():
            self.run("-m", "data.phantom", root / "PHANTOM", "--scans", 6, "--size", 64, "--slices", 16, "--jobs", 1)
            folders = root / "PHANTOM/phantom_MR_normalized", root / "PHANTOM/supervoxels_5000"
            self.run("-m", "supervoxels.generate", *folders, "--min-size", 300, "--jobs", 1)
        return root

    def separate(self) -> tuple[Path, Path]:
        """The images and the labels in folders of their own."""
        for kind in ("image", "label"):
            (self.folder / kind).mkdir(exist_ok=True)
            for file in (self.phantom() / "PHANTOM/phantom_MR_normalized").glob(f"{kind}_*"):
                shutil.copy(file, self.folder / kind)
        return self.folder / "image", self.folder / "label"

    def chaos(self) -> Path:
        """Raw DICOM series of three patients."""
        raw = self.folder / "raw"
        if not raw.exists():
            self.run("-m", "data.phantom_raw", "chaost2", raw, "--scans", 3, "--shape", 12, 48, 48, "--jobs", 1)
        return raw

    def checkpoint(self) -> Path:
        """Of three steps."""
        runs = self.folder / "runs"
        if not runs.exists():
            self.run("training.py", "with", *SMALL, f"data_root={self.phantom()}", f"runs={runs}", "train.steps=3")
        return runs / "adnet_PHANTOM_fold0/1/checkpoints/step_000003.pt"


def command_line(words: Sequence[str], log: Path) -> None:
    """`python WORDS`, in a process group of its own; what it says goes to the log."""
    os.setsid()
    torch.set_num_threads(1)
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), stream)
    os.environ["OMP_NUM_THREADS"], os.environ["PYTHONPATH"] = "1", str(ROOT)  # of the processes that it starts
    os.chdir(ROOT)
    sys.argv = list(words[1:] if words[0] == "-m" else words)
    try:
        if words[0] == "-m":
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")
    finally:  # as the end of Python does; the end of a copy would wait minutes for workers that idle
        get_reusable_executor(2, reuse=True).shutdown(kill_workers=True)


def start(words: Sequence[object], log: Path) -> ForkProcess:
    """The same, running."""
    log.write_text("")
    process = multiprocessing.get_context("fork").Process(target=command_line, args=(list(map(str, words)), log))
    process.start()
    return process


def kill(process: ForkProcess) -> None:
    """Kill it with its workers, as a machine that goes down."""
    with contextlib.suppress(ProcessLookupError):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has no group yet
            os.kill(process.pid, signal.SIGKILL)


def files(out: Path) -> Results:
    """All files but hidden ones by name; where they name their own folder, it has one name for all."""
    found = sorted(path for path in out.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(out)): path.read_bytes().replace(str(out).encode(), b"OUT") for path in found}


def newest(runs: Path, pattern: str) -> list[Path]:
    """Files of runs, those of the newest run last."""
    found = runs.glob(f"*_PHANTOM_fold0/*/{pattern}")
    return sorted(found, key=lambda path: (int(path.relative_to(runs).parts[1]), path.name))


def weights(runs: Path) -> Results:
    """Of the last checkpoint of the newest run."""
    content = torch.load(newest(runs, "checkpoints/step_*.pt")[-1], weights_only=True)
    assert content["step"] == STEPS
    return {name: value.numpy().tobytes() for name, value in content["model"].items()}


def scores(runs: Path) -> Results:
    """Of the newest test."""
    return {"scores.csv": newest(runs, "scores.csv")[-1].read_bytes()}


@dataclass(frozen=True)
class Command:
    """A long command.

    Attributes:
        words: of its command line, for its inputs and its folder; empty if all is done.
        results: what must be the same.
        share: of the kills.
    """

    name: str
    words: Callable[[Inputs, Path], Sequence[object]]
    results: Callable[[Path], Results] = files
    share: int = 1


def drawing(inputs: Inputs, out: Path) -> Sequence[object]:
    """Four phantoms."""
    return "-m", "data.phantom", out, "--scans", 4, "--size", 32, "--slices", 8, "--jobs", 1


def cutting(inputs: Inputs, out: Path) -> Sequence[object]:
    """Supervoxels of all scans."""
    return "-m", "supervoxels.generate", inputs.separate()[0], out, "--min-size", 300, "--jobs", 2


def training(inputs: Inputs, runs: Path) -> Sequence[object]:
    """From the start, or from the last checkpoint."""
    found = newest(runs, "checkpoints/step_*.pt")
    if not found:
        keys = (*SMALL, f"data_root={inputs.phantom()}", f"runs={runs}", f"train.steps={STEPS}")
        return "training.py", "with", *keys
    if found[-1].stem.endswith(f"{STEPS:06d}"):
        return ()
    return "training.py", "with", f"resume={found[-1].parents[1]}"


def testing(inputs: Inputs, runs: Path) -> Sequence[object]:
    """A test of the checkpoint."""
    keys = (f"data_root={inputs.phantom()}", f"runs={runs}", f"test.checkpoint={inputs.checkpoint()}")
    return "test.py", "with", "dataset=PHANTOM", "threads=1", *keys


def predicting(inputs: Inputs, out: Path) -> Sequence[object]:
    """All scans, with one of them as support."""
    scans, (queries, labels) = inputs.phantom() / "PHANTOM/phantom_MR_normalized", inputs.separate()
    call = ("predict.py", "--checkpoint", inputs.checkpoint(), "--support-image", scans / "image_4.nii.gz")
    call += ("--support-label", labels / "label_4.nii.gz", "--query", queries, "--out", out)
    return *call, "--threads", 1, "--prepared"


def reproducing(inputs: Inputs, runs: Path) -> Sequence[object]:
    """Training and test of a fold; asked again, it does what is missing."""
    keys = (*SMALL[1:], f"data_root={inputs.phantom()}", f"runs={runs}", f"train.steps={STEPS}")
    return "-m", "script.reproduce", "adnet", "PHANTOM", *keys, "--no-report"


COMMANDS = {
    command.name: command
    for command in (
        Command("data.phantom", drawing, share=3),
        Command("supervoxels.generate", cutting, share=3),
        Command("data.custom", lambda made, out: ("-m", "data.custom", *made.separate(), out, "--jobs", 1), share=3),
        Command("data.chaost2", lambda made, out: ("-m", "data.chaost2", made.chaos(), out, "--jobs", 1), share=3),
        Command("training", training, weights, share=3),
        Command("test", testing, scores),
        Command("predict", predicting, share=2),
        Command("reproduce", reproducing, lambda runs: weights(runs) | scores(runs)),
    )
}


@dataclass
class Count:
    """What became of one command's kills."""

    command: str
    kills: int = 0
    terminated: int = 0
    repeats: int = 0
    leftovers: int = 0
    faults: list[str] = field(default_factory=list)


class Killer:
    """Kills one command and starts it again.

    Args:
        command: what is killed.
        inputs: it works on.
        folder: for its results; what shows a fault stays there.
        seed: of the moments.
    """

    def __init__(self, command: Command, inputs: Inputs, folder: Path, seed: int) -> None:
        self.command, self.inputs, self.folder = command, inputs, folder
        self._log = folder / f"{command.name}.log"
        self.random = random.Random(f"{seed} {command.name}")
        self.count = Count(command.name)
        out = self._fresh("undisturbed")
        began = time.monotonic()
        process = self._start(out)
        self._until_first_file(process, out)
        first = time.monotonic()
        if self._end(process):
            raise RuntimeError(f"{command.name} fails undisturbed: {self._said()}")
        self.before, self.work = first - began, time.monotonic() - first
        self.expected = command.results(out)

    def kill(self, most: int) -> int:
        """Kill it up to `most` times in a row, let it end, compare; returns how often it was killed."""
        out = self._fresh(f"killed_{self.count.repeats}")
        self.count.repeats += 1
        faults, kills = [], 0
        for _ in range(self.random.randint(1, min(most, IN_A_ROW))):
            ended = self._start_and_kill(out)
            kills += ended is None
            faults += [f"a half file: {text}" for text in half_files(out)]
            if ended is not None:
                faults += [f"refused to start again: {self._said()}"] * bool(ended)
                break
        process = self._start(out)
        if process is not None and self._end(process):
            faults.append(f"refused to start again: {self._said()}")
        if not faults:
            faults = list(self._differences(out))
        self.count.kills += kills
        self.count.leftovers += sum(path.name.startswith(".") and path.is_file() for path in out.rglob("*"))
        self.count.faults += [f"{out}: {text}" for text in faults]
        if not faults:
            shutil.rmtree(out.parent)
        return kills

    def _start_and_kill(self, out: Path) -> int | None:
        """None if it was killed, else the exit status it had before."""
        process = self._start(out)
        if process is None:
            return 0
        moment, term = self.random.random(), self.random.random() < 0.25
        if self.random.random() < 0.15:
            time.sleep(moment * self.before)  # while it starts
        else:
            self._until_first_file(process, out)
            time.sleep(moment * self.work)
        if process.exitcode is not None:
            return process.exitcode
        if not term and self.random.random() < 0.5:
            kill(process)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM if term else signal.SIGKILL)
        self.count.terminated += term
        self._end(process)
        return None

    def _start(self, out: Path) -> ForkProcess | None:
        words = self.command.words(self.inputs, out)
        return start(words, self._log) if words else None

    def _end(self, process: ForkProcess) -> int:
        """Its exit status.

        Raises:
            TimeoutError: it hangs.
        """
        process.join(PATIENCE)
        if process.exitcode is None:
            kill(process)
            raise TimeoutError(f"{self.command.name} hangs")
        return process.exitcode

    def _until_first_file(self, process: ForkProcess, out: Path) -> None:
        known = set(out.rglob("*"))
        while process.exitcode is None and set(out.rglob("*")) <= known:
            time.sleep(0.02)

    def _fresh(self, name: str) -> Path:
        """A folder that is not there yet; its own name is always the same, for results may hold it."""
        place = self.folder / self.command.name / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        return place / "MINE"

    def _said(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing"

    def _differences(self, out: Path) -> Iterator[str]:
        found = self.command.results(out)
        for name in sorted(found.keys() | self.expected.keys()):
            if name not in found:
                yield f"{name} is missing"
            elif name not in self.expected:
                yield f"{name} is there, and not in the undisturbed folder"
            elif found[name] != self.expected[name]:
                yield f"{name} has other bytes"


def half_files(out: Path) -> Iterator[str]:
    """Files under their final names that are not whole."""
    for file in out.rglob("*"):
        if file.name.startswith(".") or not file.is_file():
            continue
        try:
            if file.name.endswith(".nii.gz"):
                np.asanyarray(nibabel.load(file).dataobj)
            elif file.suffix == ".png":
                Image.open(file).load()
            elif file.suffix == ".pt":
                assert zipfile.ZipFile(file).testzip() is None
            elif file.suffix == ".json" and "_sources" not in file.parts and not (file.parent / "run.json").exists():
                json.loads(file.read_text("utf-8"))  # Sacred's own are written again and again
        except Exception as error:
            yield f"{file} ({type(error).__name__}: {error})"


def run(names: Sequence[str], kills: int, seed: int, folder: Path, seconds: float = float("inf")) -> Iterator[Count]:
    """Kill the commands `kills` times in all, or as often as the time allows; a count for each, when it is done."""
    end = time.monotonic() + seconds
    for name in ("training", "test", "predict", "data.custom", "data.chaost2", "supervoxels.generate"):
        importlib.import_module(name)
    inputs = Inputs(folder / "inputs")
    inputs.folder.mkdir(parents=True, exist_ok=True)
    bounds = np.cumsum([0, *(COMMANDS[name].share for name in names)])
    for name, left in zip(names, np.diff(np.round(kills * bounds / bounds[-1]).astype(int)).tolist(), strict=True):
        if not left or time.monotonic() > end:
            continue
        killer, tries = Killer(COMMANDS[name], inputs, folder, seed), 0
        while left > 0 and tries < 3 * kills and time.monotonic() < end:  # a command may end before its moment comes
            left -= killer.kill(left)
            tries += 1
        yield killer.count
