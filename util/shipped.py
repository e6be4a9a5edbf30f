"""A small checkpoint that ships with the project, for segmenting at once. `python -m util.shipped RUN ...` makes it.

Weights in half precision without the state of the training, the sum of its bytes, and a card that says what it is: all
in models/shipped/. `predict.py` takes it if no other is named.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from util import checkpoints
from util.commands import guarded, parser
from util.errors import UserError
from util.files import digest, write_text
from util.runs.folders import find_checkpoint

FOLDER = Path(__file__).resolve().parents[1] / "models/shipped"
SUMS, CARD = "SHA256SUMS", "README.md"
SAID = "no --checkpoint: taking the one that ships; scans unlike those of its card need a training"
OWN = ("dataset", "fold", "setting", "encoder", "seed")
CARD_TEXT = """# {name}: a checkpoint that ships

`predict.py` takes it if no `--checkpoint` is named. It finds what ONE annotated scan shows in other scans of its kind.

| what | |
|---|---|
| method | `{method}` on `{encoder}`, {parameters:.1f} million weights, half precision, {megabytes:.1f} MB |
| trained on | {data}: scans {scans}, no annotation used; fold {fold}, setting {setting} |
| licence of the data | {licence} |
| training | {steps} steps, seed {seed} |
| SHA-256 | `{sum}` |

## Scores

{scores}

## Not for

- Diagnosis or treatment: no clinical validation was made.
- Scans unlike those above (another body part, modality, contrast or resolution): train on scans of that kind, which
  needs no annotation either.
- Structures that are smaller than a few voxels, or that the annotated scan does not show.

## Make it again

```
python training.py with {options}
python -m util.shipped RUN --name {name} --data "{data}" --licence "{licence}" --scores TEST_RUNS
```
"""


def checkpoint() -> Path:
    """The checkpoint that ships, whole.

    Raises:
        UserError: none is there, or it is not the one its sum was made of.
    """
    sums = FOLDER / SUMS
    if not sums.is_file():
        raise UserError("no checkpoint ships with this version; train one (training.py) and name it with --checkpoint")
    expected, name = sums.read_text(encoding="utf-8").split()[:2]
    file = FOLDER / name
    if not file.is_file() or digest(file) != expected:
        raise UserError(f"{file}: is missing or damaged; fetch the project again, or name another with --checkpoint")
    return file


def halved(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a checkpoint for use alone: half precision, no state of the training, no places of a machine.

    Raises:
        UserError: a weight is too large for half precision.
    """
    weights = {
        name: value.half() if value.dtype == torch.float32 else value for name, value in content["model"].items()
    }
    if bad := [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise UserError(f"{bad[0]}: is too large for half precision, this checkpoint cannot be halved")
    options = {**content["config"], "runs": "runs", "data_root": "data", "resume": "", "log": "", "maps": ""}
    options["train"] = {**options["train"], "start": ""}
    options["dataset"] = Path(options["dataset"]).stem
    state = {"optimiser": {}, "scaler": {}, "random_states": []}
    return {**content, **state, "model": weights, "config": options}


def ship(run: str, name: str, data: str, licence: str, scores: Sequence[str], out: Path) -> Path:
    """Write checkpoint, sum and card into `out`; returns the checkpoint."""
    content = halved(checkpoints.load_checkpoint(find_checkpoint(run, "RUN")))
    file = out / f"{name}.pt"
    checkpoints.save_checkpoint(file, {key: value for key, value in content.items() if key != "format"})
    options = content["config"]
    said = [f"method={content['method']}", *(f"{key}={options[key]}" for key in OWN)]
    text = CARD_TEXT.format(
        **{key: options[key] for key in ("encoder", "fold", "setting", "seed")},
        **{"name": name, "data": data, "licence": licence, "method": content["method"], "steps": content["step"]},
        scans=", ".join(map(str, content["training_scans"])),
        parameters=sum(value.numel() for value in content["model"].values()) / 1e6,
        megabytes=file.stat().st_size / 1e6,
        sum=digest(file),
        scores=table_of(scores) or "None were given.",
        options=" ".join([*said, f"train.steps={content['step']}"]),
    )
    write_text(out / CARD, text)
    write_text(out / SUMS, f"{digest(file)}  {file.name}\n")
    return file


def table_of(runs: Sequence[str]) -> str:
    """Mean scores per fold and organ of tests, as a Markdown table."""
    from util.report.scores import read_scores

    rows = [row for run in runs for row in read_scores(Path(run) / "scores.csv")]
    shown = [name for name in ("dice", "voted_dice", "dice_volume", "voted_dice_volume") if rows and rows[0].get(name)]
    lines = [f"| data set, fold | organ | {' | '.join(shown)} |", "|---" * (2 + len(shown)) + "|"]
    for dataset, fold, organ in dict.fromkeys((row["dataset"], row["fold"], row["organ"]) for row in rows):
        own = [row for row in rows if (row["dataset"], row["fold"], row["organ"]) == (dataset, fold, organ)]
        means = [[float(row[name]) for row in own if row[name]] for name in shown]
        cells = [f"{sum(values) / len(values):.3f}" if values else "–" for values in means]
        lines.append(f"| {Path(dataset).stem}, fold {fold} | {organ} | {' | '.join(cells)} |")
    return "\n".join(lines) if rows else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    command = parser(f"Make a trained run the checkpoint that ships.\n\n{__doc__}", "python -m util.shipped")
    command.add_argument("run", metavar="RUN", help="a run or a checkpoint")
    command.add_argument("--name", default="abdomen", help="of the file")
    command.add_argument("--data", required=True, metavar="TEXT", help="what it was trained on, with attribution")
    command.add_argument("--licence", required=True, metavar="TEXT", help="of these data")
    command.add_argument("--scores", nargs="+", default=[], metavar="RUN", help="runs of test.py for the card")
    command.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help="folder to write to")
    options = command.parse_args(arguments)

    def work() -> int:
        print(ship(options.run, options.name, options.data, options.licence, options.scores, options.out))
        return 0

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
