"""Two predict.py on one --out, killed and started again at random: `python benchmarks/sharing.py --kills 20`.

A checkpoint of three steps on a small phantom segments copies of its scans. Two processes share them; at random moments
one of the two is killed (SIGKILL) and started again. At the end every scan must be there once, every line of
predictions.json, and every byte as one process alone writes it. The processes are forked from one that has loaded the
libraries, or most kills would hit the loading.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import predict
import training
from data import phantom
from supervoxels import generate

CONTEXT = multiprocessing.get_context("fork")
TRAINING = ("dataset=PHANTOM", "encoder=efficientnet_lite0", "threads=1", "workers=0", "episode.min_size=20",
            "train.steps=3")  # fmt: skip


def prepare(home: Path, scans: int) -> list[str]:
    """A checkpoint and scans; returns the call without --out."""
    data, images = home / "PHANTOM", home / "PHANTOM" / phantom.FOLDER
    phantom.main([str(data), "--scans", "6", "--size", "64", "--slices", "16", "--jobs", "1"])
    generate.main([str(images), str(data / "supervoxels_5000"), "--min-size", "300", "--jobs", "1"])
    words = ["training.py", "with", *TRAINING, f"data_root={home}", f"runs={home / 'runs'}"]
    training.experiment.run_commandline(words)
    (home / "queries").mkdir()
    for number in range(scans):
        shutil.copy(images / f"image_{1 + number % 6}.nii.gz", home / f"queries/scan_{number}.nii.gz")
    given = ["--support-image", images / "image_4.nii.gz", "--support-label", images / "label_4.nii.gz"]
    call = ["--checkpoint", home / "runs/adnet_PHANTOM_fold0/1", *given, "--query", home / "queries", "--threads", 1]
    return [str(word) for word in call]


def started(call: list[str], out: Path) -> multiprocessing.Process:
    """`predict.py` in a process of its own, which says nothing."""

    def run() -> None:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            sys.exit(predict.main([*call, "--out", str(out)]))

    process = CONTEXT.Process(target=run)
    process.start()
    return process


def files(folder: Path) -> dict[str, bytes]:
    """Name -> content."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def main() -> int:
    """Print what was done and found; returns 1 after any difference."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--kills", type=int, default=20)
    command.add_argument("--scans", type=int, default=24)
    command.add_argument("--seed", type=int, default=1)
    options = command.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        call = prepare(home, options.scans)
        began = time.monotonic()
        alone = started(call, home / "alone")
        alone.join()
        span = time.monotonic() - began
        rounds, kills, differing, done = 0, 0, 0, 0
        while kills < options.kills:
            out, rounds = home / f"both_{rounds}", rounds + 1
            pair = [started(call, out) for _ in range(2)]
            while any(process.is_alive() for process in pair):
                time.sleep(chance.random() * span)
                victim = chance.randrange(2)
                if kills < options.kills and pair[victim].is_alive():
                    os.kill(pair[victim].pid, signal.SIGKILL)
                    pair[victim].join()
                    kills += 1
                    record = out / predict.RECORD
                    done += len(json.loads(record.read_text("utf-8"))["scans"]) if record.is_file() else 0
                    pair[victim] = started(call, out)
            codes = [process.exitcode for process in pair]
            differing += codes != [0, 0] or files(out) != files(home / "alone")
        print(
            f"{options.scans} scans, {rounds} rounds of two processes, {kills} kills (with {done / kills:.1f} scans on "
            f"record on average): {rounds - differing} rounds as one process alone, {differing} not"
        )
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
