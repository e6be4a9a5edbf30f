"""What a GPU brings: steps and episodes a second of every method, in a given time.

`bash benchmarks/gpu.sh` runs this among other things. A row is written as soon as it is measured, so what is there when
the time is over stays: `speed.csv` with precision float32, tf32 or bfloat16, plain or compiled, batches of 1, 4, 16;
`episodes.csv` with the episodes that so many processes cut and augment in a second. Rows are measured in a process
beside this one; one that crashes it, or takes too long, costs that row alone.
"""

import argparse
import itertools
import multiprocessing
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

import models
import training
from benchmarks.methods import make_episode, make_trainer
from dataloaders.episodes import episode_loader
from models.parts import encoders
from util.memory import peak_gib
from util.runs.experiment import plain
from util.tables import append_row

Row = tuple[str, int, str, bool]  # method, batch, precision, compiled
LIMITS = {False: 60, True: 150}  # seconds for a row that is not compiled, and one that is


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """What matters most first: what a GPU is asked for, every method, ADNet in all ways, then the rest."""
    methods = [(name, models.method_class(name)) for name in models.names()]
    # registration sees the images themselves
    sliced = [name for name, method in methods if method.dims == 2 and method.default_encoder != "none"]
    names = options.methods or sliced
    batches = [1, 2] if options.small else [1, 4, 16]
    precisions = ["float32", "bfloat16"] if options.small else ["float32", "tf32", "bfloat16"]
    first = [("adnet", *rest) for rest in ((1, "float32", False), (batches[-1], "bfloat16", False))]
    first += [("adnet", 1, "float32", True)]
    second = [(name, 1, "float32", False) for name in names]
    third = [(name, batches[-1], "bfloat16", False) for name in names]
    fourth = list(itertools.product(["adnet"], batches, precisions, [False, True]))
    fifth = [(name, batches[-1], "bfloat16", True) for name in names]
    rest = list(itertools.product(names, batches, precisions, [False, True]))
    return iter(dict.fromkeys([*first, *second, *third, *fourth, *fifth, *rest]))


def speed(options: argparse.Namespace, name: str, batch: int, precision: str, compile_it: bool) -> dict[str, Any]:
    """One row of speed.csv; the time of the first step, which compiles and tries algorithms, is a column of its own."""
    torch._dynamo.reset()
    settings = [f"train.precision={precision}", f"train.compile={compile_it}"]
    trainer = make_trainer(name, options.encoder, options.size, options.device, settings=settings)
    device, given = trainer.device, make_episode(batch, options.size).to(trainer.device)
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


def cutting(options: argparse.Namespace, workers: int, on_device: bool, count: int) -> dict[str, Any]:
    """One row of episodes.csv: of the first `count` batches of 16, those after the first tenth."""
    updates = {"dataset": options.dataset, "data_root": options.data, "encoder": "efficientnet_lite0"}
    updates |= {"runs": str(options.out / "runs"), "episode": {"on_device": on_device}}
    episodes = training.read_data(plain(training.experiment._create_run(config_updates=updates).config)).episodes
    start, warm, device = time.perf_counter(), count // 10, torch.device(options.device)
    for number, batch in enumerate(episode_loader(episodes, first=0, last=count, batch_size=16, workers=workers)):
        batch.to(device).query_images[0, 0, 0, 0, 0].item()  # waits until it is there
        if number == warm:
            start = time.perf_counter()
    rate = 16 * (count - warm - 1) / (time.perf_counter() - start)
    return {"workers": workers, "on_device": on_device, "episodes_per_s": round(rate, 1)}


MEASURED = {"speed": speed, "cutting": cutting}


def measured(name: str, options: argparse.Namespace, arguments: tuple) -> dict[str, Any] | str:
    """A row of `MEASURED[name]`, or the reason why there is none."""
    try:
        return MEASURED[name](options, *arguments)
    except Exception as error:  # whatever it is: the next row is another one
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


class Measuring:
    """The process that measures; a new one takes its place when it has ended or takes too long."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.pool = options, None

    def ask(self, seconds: float, name: str, *arguments: Any) -> dict[str, Any] | str:
        """A row, or why there is none."""
        if self.pool is None:
            context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
            self.pool = ProcessPoolExecutor(1, context)
        try:
            return self.pool.submit(measured, name, self.options, arguments).result(seconds)
        except TimeoutError:
            reason = f"stopped after {seconds:.0f} s"
        except BrokenProcessPool:
            reason = "the process that measured it has ended"
        self.end()
        return reason

    def end(self) -> None:
        """Stop the process."""
        for process in multiprocessing.active_children():
            process.kill()
        if self.pool is not None:
            self.pool.shutdown()
            self.pool = None


def verdict(found: Mapping[Row, Mapping[str, Any]]) -> Iterator[str]:
    """What was asked of a GPU, against the rows."""
    asked = (("compiled, batch 1", (1, "float32", True), 2.0), ("batch 16 in bfloat16", (16, "bfloat16", False), 8.0))
    plain_row = found.get(("adnet", 1, "float32", False))
    for text, kind, ratio in asked:
        row = found.get(("adnet", *kind))
        if row and plain_row:
            times = row["episodes_per_s"] / plain_row["episodes_per_s"]
            yield f"asked: adnet, {text}: {times:.1f} times the episodes a second of plain float32 (asked {ratio:.0f})"
        else:
            yield f"asked: adnet, {text}: not measured"


def main() -> None:
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
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    options.out.mkdir(parents=True, exist_ok=True)
    measuring, found = Measuring(options), {}
    try:
        many = (0, 1, 8) if options.data and not options.small else (0,) if options.data else ()
        for workers, on_device in itertools.product(many, (False, True)):
            row = measuring.ask(30, "cutting", workers, on_device, 8 if options.small else 100)
            if isinstance(row, dict):
                append_row(options.out / "episodes.csv", row)
            print("episodes:", *(row.values() if isinstance(row, dict) else (workers, on_device, row)), flush=True)
        for kind in rows(options):
            left = end - time.monotonic()
            if left < 5:
                print("the time is over; the rest was not measured")
                break
            limit = min(left / 2 if kind[-1] else left, LIMITS[kind[-1]])  # what compiles must leave time for others
            row = measuring.ask(limit, "speed", *kind)
            if isinstance(row, dict):
                found[kind] = row
                append_row(options.out / "speed.csv", row)
            print(*(row.values() if isinstance(row, dict) else (*kind, "failed:", row)), flush=True)
    finally:
        measuring.end()
    print(*verdict(found), sep="\n")


if __name__ == "__main__":
    main()
