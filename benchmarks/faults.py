"""Faults: thousands of damaged inputs and dozens of kills, and nothing may go wrong without a word.

    python benchmarks/faults.py --inputs 10000 --kills 50 --out FAULTS

Inputs: an input is read rightly or refused in one sentence that names the file. Another exception, a hang, and a result
that an independent reader contradicts (nibabel, pydicom, Pillow, ...) are faults. Kills: a command that is killed
and started again ends with the same bytes as an undisturbed one. What shows a fault stays in FAULTS; the same seed
makes the same inputs: `--kinds dicom --first 123 --inputs 1` tries one again. The exit status is 1 if there is a fault.
"""

import math
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from benchmarks.campaign import dicom, kills, nifti, tables
from benchmarks.campaign.trials import FAULTS, OUTCOMES, Kind, Trial, run
from util.commands import parser
from util.tables import text_table

KINDS = {
    kind.name: kind
    for kind in (
        nifti.Headers, nifti.Streams, nifti.Pairs, nifti.Prepared, dicom.Series, tables.Pictures, tables.Checkpoints,
        tables.DataSets, tables.Options, tables.Scores, tables.Records,
    )
}  # fmt: skip


def try_inputs(
    names: Sequence[str], count: int, first: int, seed: int, out: Path, seconds: float = float("inf")
) -> list[Trial]:
    """Try at least `count` inputs in all, numbered from `first` in every kind, or as many as the time allows."""
    end, trials = time.monotonic() + seconds, []
    kinds: list[Kind] = [KINDS[name]() for name in names]
    shares = [kind.share / sum(kind.share for kind in kinds) for kind in kinds]
    numbers = [range(first, first + math.ceil(share * count)) for share in shares]
    for trial in tqdm(run(kinds, numbers, seed, out), total=sum(map(len, numbers)), unit="input", disable=None):
        trials.append(trial)
        if time.monotonic() > end:
            break
    return trials


def table(trials: Sequence[Trial]) -> str:
    """A line for every kind of input, and one for all."""
    counts = Counter((trial.kind, trial.outcome) for trial in trials)
    kinds = list(dict.fromkeys(trial.kind for trial in trials))
    rows = [{"kind": kind, **{outcome: counts[kind, outcome] for outcome in OUTCOMES}} for kind in kinds]
    rows.append({"kind": "all", **{outcome: sum(row[outcome] for row in rows) for outcome in OUTCOMES}})
    return text_table([{"kind": row.pop("kind"), "inputs": sum(row.values()), **row} for row in rows])


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    command = parser(__doc__)
    add = command.add_argument
    add("--inputs", type=int, default=10000, help="damaged inputs in all")
    add("--kills", type=int, default=50, help="kills in all")
    add("--kinds", nargs="+", choices=tuple(KINDS), default=tuple(KINDS), help="of inputs (default: all)")
    commands = tuple(kills.COMMANDS)
    add("--commands", nargs="+", choices=commands, default=commands, help="to kill (default: all)")
    add("--first", type=int, default=0, help="number of the first input of every kind")
    add("--seed", type=int, default=1, help="another seed, other inputs and moments")
    add("--minutes", type=float, default=60, help="at most, for inputs and for kills; fewer are tried then")
    add("--out", type=Path, default=Path("faults"), help="folder for what shows a fault")
    options = command.parse_args(arguments)
    options.out = options.out.resolve()
    status, seconds = 0, 60 * options.minutes
    if options.kills:
        counts = []
        for count in kills.run(options.commands, options.kills, options.seed, options.out / "kills", seconds):
            counts.append({**vars(count), "faults": len(count.faults)})
            print(text_table([counts[-1]]), *(f"fault: {fault}" for fault in count.faults), sep="\n", flush=True)
            status |= bool(count.faults)
        print(text_table([*counts, {"command": "all", **{k: sum(c[k] for c in counts) for k in list(counts[0])[1:]}}]))
    if options.inputs:
        place = options.out / "inputs"
        trials = try_inputs(options.kinds, options.inputs, options.first, options.seed, place, seconds)
        print(table(trials))
        for trial in (trial for trial in trials if trial.outcome in FAULTS):
            print(f"{trial.outcome}: {options.out}/inputs/{trial.kind}_{trial.number}: {trial.text.splitlines()[-1]}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
