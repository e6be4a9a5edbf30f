"""What a GPU brings: steps and episodes a second of every method, in one process and a given time.

`bash benchmarks/gpu.sh` runs this among other things. A row is written as soon as it is measured, so what is there when
the time is over stays: `speed.csv` with precision float32, tf32 or bfloat16, plain or compiled, batches of 1, 4, 16;
`episodes.csv` with the episodes that so many processes cut and augment in a second.
"""

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

import models
import training
from dataloaders.episodes import episode_loader
from models.parts import encoders
from util.episode import Episode
from util.errors import UserError
from util.memory import peak_gib
from util.runs.experiment import plain
from util.runs.processes import Ranks, prepare_device
from util.tables import append_row


def rows(options: argparse.Namespace) -> Iterator[tuple[str, int, str, bool]]:
    """(method, batch, precision, compiled), what matters most first: all of ADNet, then every method, then the rest."""
    names = options.methods or [name for name in models.names() if models.method_class(name).dims == 2]
    batches = [1, 2] if options.small else [1, 4, 16]
    precisions = ["float32", "bfloat16"] if options.small else ["float32", "tf32", "bfloat16"]
    first = list(itertools.product(["adnet"], batches, precisions, [False, True]))
    second = [(name, 1, "float32", False) for name in names]
    third = [(name, batches[-1], "bfloat16", flag) for flag in (False, True) for name in names]
    rest = list(itertools.product(names, batches, precisions, [False, True]))
    return iter(dict.fromkeys([*first, *second, *third, *rest]))


def speed(name: str, batch: int, precision: str, compile_it: bool, options: argparse.Namespace) -> dict[str, object]:
    """One row of speed.csv; the time of the first step, which compiles and tries algorithms, is a column of its own."""
    torch._dynamo.reset()
    updates = {"method": name, "encoder": options.encoder, "weights": "none", "device": options.device, "threads": 0}
    updates["train"] = {"precision": precision, "compile": compile_it, "batch_size": batch}
    run = plain(training.experiment._create_run(config_updates=updates).config)
    device = prepare_device(run)
    torch.manual_seed(0)
    arguments = models.fitted(run["model"], options.size)
    method = models.build(name, arguments, encoder=options.encoder, weights=None, stride=run["stride"]).to(device)
    trainer = training.Trainer(method.train(), None, run, {}, None, device, Ranks())
    image = torch.randn(batch, 1, 1, options.size, options.size)
    mask = torch.zeros(batch, 1, options.size, options.size)
    mask[..., options.size // 4 : options.size // 2, options.size // 4 : options.size // 2] = 1
    given = Episode(image, mask, image + 0.1 * torch.randn_like(image), mask.long()).to(device)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds, losses = [], []
    for _ in range(3 + options.steps):
        start = time.perf_counter()
        losses.append(trainer.train_step(given)["loss"].clone())
        wait()
        seconds.append(time.perf_counter() - start)
    median = sorted(seconds[3:])[options.steps // 2]
    return {
        "method": name, "encoder": options.encoder, "batch": batch, "precision": precision, "compiled": compile_it,
        "first_step_s": round(seconds[0], 2), "steps_per_s": round(1 / median, 3),
        "episodes_per_s": round(batch / median, 3), "peak_gib": round(peak_gib(device), 2),
        "first_loss": round(losses[0].item(), 5), "last_loss": round(losses[-1].item(), 5),
    }  # fmt: skip


def cutting(root: str, dataset: str, workers: int, count: int) -> dict[str, object]:
    """One row of episodes.csv: of the first `count` episodes, those after the first tenth."""
    updates = {"dataset": dataset, "data_root": root, "encoder": "efficientnet_lite0"}
    episodes = training.read_data(plain(training.experiment._create_run(config_updates=updates).config)).episodes
    start, warm = time.perf_counter(), count // 10
    for number, _ in enumerate(episode_loader(episodes, first=0, last=count, workers=workers)):
        if number == warm:
            start = time.perf_counter()
    return {"workers": workers, "episodes_per_s": round((count - warm - 1) / (time.perf_counter() - start), 1)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write speed.csv and episodes.csv to a folder until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--encoder", default="resnet101", choices=sorted(encoders.ENCODERS))
    parser.add_argument("--methods", nargs="*")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--small", action="store_true", help="few and small rows, to rehearse")
    parser.add_argument("--data", help="data root for episodes.csv")
    parser.add_argument("--dataset", default="CHAOST2")
    options = parser.parse_args(arguments)
    end = time.monotonic() + options.seconds
    options.out.mkdir(parents=True, exist_ok=True)
    for workers in (0, 2, 8) if options.data and not options.small else (0,) if options.data else ():
        row = cutting(options.data, options.dataset, workers, 100 if options.small else 2000)
        append_row(options.out / "episodes.csv", row)
        print(row, flush=True)
    for row in rows(options):
        if time.monotonic() > end:
            print("the time is over; the rest was not measured")
            return
        try:
            found = speed(*row, options)
        except (RuntimeError, UserError) as error:  # too little memory, nothing that compiles: the others still count
            print(*row, "failed:", str(error).splitlines()[0], flush=True)
            continue
        append_row(options.out / "speed.csv", found)
        print(*found.values(), flush=True)


if __name__ == "__main__":
    main()
