"""Trials: one input is read, and what comes of it is accepted, refused, or a fault.

The trials run in a process of their own under an alarm and a limit of memory: what aborts or hangs inside a library
is a fault of this one input, and the trials go on with the next.
"""

import contextlib
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import traceback
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from util.errors import UserError

SECONDS = 60  # for one input; thousands of them take some milliseconds each
MEMORY = 8 << 30  # bytes of address space, beyond what the process has at its start
SOUND = 20  # one of so many inputs is left as it is, and must be accepted
FAULTS = ("disagreement", "unclear", "crash", "hang")
OUTCOMES = ("accepted", "unwitnessed", "refused", *FAULTS)


class NoWitness(Exception):
    """The independent reader cannot read this input, so nobody can say whether the product read it rightly."""


class Hang(BaseException):
    """The alarm rang."""


class Kind(ABC):
    """A kind of input: how a sound one is written and damaged, how the product reads it, what a witness says of that.

    All methods get the folder of one input; `random` decides everything else.
    """

    name: str
    share = 1.0  # of the inputs, against the other kinds
    names_file = True  # a sentence must name the file or its folder

    @abstractmethod
    def write(self, folder: Path, random: np.random.Generator) -> None:
        """Write a sound input."""

    @abstractmethod
    def damage(self, folder: Path, random: np.random.Generator) -> None:
        """Change it."""

    @abstractmethod
    def read(self, folder: Path) -> Any:
        """Read it as the product does.

        Raises:
            UserError: it is refused; every other exception is a fault.
        """

    @abstractmethod
    def contradiction(self, folder: Path, result: Any) -> str:
        """What the witness says against the product's result; empty: nothing.

        Raises:
            NoWitness: it cannot read the input.
        """


@dataclass(frozen=True)
class Trial:
    """What came of one input: an outcome, and the sentence or the traceback with it."""

    kind: str
    number: int
    outcome: str
    text: str = ""


def run(kinds: Sequence[Kind], numbers: Sequence[range], seed: int, folder: Path) -> Iterator[Trial]:
    """Try inputs `numbers[i]` of `kinds[i]`, the kinds by turns.

    Inputs that show a fault stay in `folder`, with what was said of them.
    """
    turns = [
        (at / len(own), kind, number) for kind, own in zip(kinds, numbers, strict=True) for at, number in enumerate(own)
    ]
    waiting = [(kind, number) for _, kind, number in sorted(turns, key=lambda turn: turn[0])]
    processes = multiprocessing.get_context("fork")
    while waiting:
        here, there = processes.Pipe(duplex=False)
        child = processes.Process(target=_work, args=(waiting, seed, folder, there), daemon=True)
        child.start()
        there.close()
        done, silent = 0, False
        with contextlib.suppress(EOFError):  # the process has ended
            while done < len(waiting) and not silent:
                silent = not here.poll(2 * SECONDS)
                if not silent:
                    if isinstance(trial := here.recv(), str):
                        raise RuntimeError(trial)
                    yield trial
                    done += 1
        if silent:
            child.kill()
        child.join()
        if done < len(waiting):
            kind, number = waiting[done]
            text = f"no sign of life for {2 * SECONDS} s" if silent else f"the process ended with {child.exitcode}"
            yield _kept(Trial(kind.name, number, "hang" if silent else "crash", text), folder)
            done += 1
        waiting = waiting[done:]


def try_one(kind: Kind, number: int, seed: int, folder: Path) -> Trial:
    """One input. `folder` gets a folder of it, which stays only if there is a fault."""
    random = np.random.default_rng([seed, zlib.crc32(kind.name.encode()), number])
    place = folder / f"{kind.name}_{number}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    kind.write(place, random)
    is_sound = number % SOUND == 0
    if not is_sound:
        kind.damage(place, random)
    outcome, text = _outcome(kind, place, is_sound)
    trial = Trial(kind.name, number, outcome, text)
    if outcome in FAULTS:
        return _kept(trial, folder)
    shutil.rmtree(place)
    return trial


def _outcome(kind: Kind, place: Path, is_sound: bool) -> tuple[str, str]:
    try:
        with _alarm():
            result = kind.read(place)
    except UserError as error:
        text = str(error)
        if is_sound:
            return "disagreement", f"a sound input is refused: {text}"
        is_clear = (str(place) in text or not kind.names_file) and "Traceback" not in text and len(text) < 2000
        return "refused" if is_clear else "unclear", text
    except Hang:
        return "hang", traceback.format_exc()
    except BaseException:
        return "crash", traceback.format_exc()
    try:
        text = kind.contradiction(place, result)
    except NoWitness as error:
        return "unwitnessed", str(error)
    return ("disagreement" if text else "accepted"), text


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def ring(number: int, frame: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _kept(trial: Trial, folder: Path) -> Trial:
    place = folder / f"{trial.kind}_{trial.number}"
    place.mkdir(parents=True, exist_ok=True)
    (place / "fault.txt").write_text(f"{trial.outcome}: {trial.text}\n", "utf-8")
    return trial


def _work(tasks: Sequence[tuple[Kind, int]], seed: int, folder: Path, results: Connection) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # libraries complain on them
        os.dup2(silence, stream)
    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[0]) if sys.platform == "linux" else 0
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        for kind, number in tasks:
            results.send(try_one(kind, number, seed, folder))
    except Exception:  # the campaign's own
        results.send(traceback.format_exc())
