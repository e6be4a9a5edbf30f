"""Two predict.py on one --out, killed and started again at random: `python benchmarks/sharing.py --kills 20`.

A checkpoint of three steps on a small phantom segments copies of its scans. Two processes share them; at random moments
one of the two is killed (SIGKILL) and started again. At the end every scan must be there once, every line of
predictions.json, and every byte as one process alone writes it. The processes are forked from one that has loaded the
libraries, or most kills would hit the loading.
"""

import json
import random
import shutil
import sys
import tempfile
import time
from multiprocessing.context import ForkProcess
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import predict
from benchmarks.campaign import kills
from util.commands import parser


def prepare(home: Path, scans: int) -> list[object]:
    """A checkpoint and scans; returns the call without --out."""
    inputs = kills.Inputs(home)
    images = inputs.phantom() / "PHANTOM/phantom_MR_normalized"
    (home / "queries").mkdir()
    for number in range(scans):
        shutil.copy(images / f"image_{1 + number % 6}.nii.gz", home / f"queries/scan_{number}.nii.gz")
    given = ("--support-image", images / "image_4.nii.gz", "--support-label", images / "label_4.nii.gz")
    call = ("predict.py", "--checkpoint", inputs.checkpoint(), *given, "--query", home / "queries", "--threads", 1)
    return list(call)


def started(call: list[object], out: Path) -> ForkProcess:
    """`predict.py` in a process of its own."""
    return kills.start([*call, "--out", out], out.with_name("predict.log"))


def files(folder: Path) -> dict[str, bytes]:
    """Name -> content."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def main() -> int:
    """Print what was done and found; returns 1 after any difference."""
    command = parser(__doc__)
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
        rounds, killed, differing, done = 0, 0, 0, 0
        while killed < options.kills:
            out, rounds = home / f"both_{rounds}", rounds + 1
            pair = [started(call, out) for _ in range(2)]
            while any(process.is_alive() for process in pair):
                time.sleep(chance.random() * span)
                victim = chance.randrange(2)
                if killed < options.kills and pair[victim].is_alive():
                    kills.kill(pair[victim])
                    pair[victim].join()
                    killed += 1
                    record = out / predict.RECORD
                    done += len(json.loads(record.read_text("utf-8"))["scans"]) if record.is_file() else 0
                    pair[victim] = started(call, out)
            codes = [process.exitcode for process in pair]
            differing += codes != [0, 0] or files(out) != files(home / "alone")
        print(
            f"{options.scans} scans, {rounds} rounds of two processes, {killed} kills (with {done / killed:.1f} scans "
            f"on record on average): {rounds - differing} rounds as one process alone, {differing} not"
        )
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
