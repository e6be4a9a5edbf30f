"""Run the command lines as a user does, in this process or in one that can be killed."""

import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import DEVNULL

import pytest

import test as testing
import training
from tests.conftest import ROOT

# as small as a run can be: the tiny phantom on a small encoder
SMALL = (
    "dataset=PHANTOM",
    "encoder=efficientnet_lite0",
    "threads=1",
    "workers=0",
    "episode.min_size=20",
    "train.steps=3",
)


def train(*updates: str) -> None:
    """`python training.py with ...` in this process."""
    training.experiment.run_commandline(["training.py", "with", *SMALL, *updates])


def resume(run: Path, *updates: str) -> None:
    """`python training.py with resume=RUN ...`: everything else is as the run had it."""
    training.experiment.run_commandline(["training.py", "with", f"resume={run}", *updates])


def score(*updates: str) -> None:
    """`python test.py with ...` in this process."""
    testing.experiment.run_commandline(["test.py", "with", *SMALL, *updates])


def refused(capsys, command, *updates: str) -> str:
    """Run a command that must fail: exit status 1, one line on stderr that starts with `error:`. Returns that line."""
    with pytest.raises(SystemExit) as left:
        command(*updates)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert left.value.code == 1 and len(lines) == 1, lines
    return lines[0]


def start(program: str, *updates: str) -> subprocess.Popen:
    """The same in a process of its own."""
    command = [sys.executable, program, "with", *SMALL, *updates]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")


def kill_when(ready: Callable[[], bool], module: str, *arguments: str) -> None:
    """`python -m MODULE ...` in a process of its own, killed as soon as something is ready, or after a minute."""
    command, silent = [sys.executable, "-m", module, *arguments], {"stdout": DEVNULL, "stderr": DEVNULL}
    with subprocess.Popen(command, cwd=ROOT, **silent) as process:
        deadline = time.monotonic() + 60
        while not ready() and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()


def only_run(runs: Path, number: int = 1) -> Path:
    """Folder of a run below `runs`."""
    return runs / "adnet_PHANTOM_fold0" / str(number)


def at_once(*calls: tuple) -> list[int]:
    """Exit statuses of calls, each `(function, *arguments)`, in forked processes that run side by side."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=function, args=arguments) for function, *arguments in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    return [process.exitcode for process in processes]
