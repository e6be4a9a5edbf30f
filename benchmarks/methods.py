"""Training speed and memory of every method: `python benchmarks/methods.py [--encoder resnet101] [--batch 1 4]`.

Every row is measured in a process of its own, on random episodes of one support and one query slice: whole training
steps, from the forward pass to the update. Memory is the peak of the process (CPU) or of the allocator (GPU). `CPU s`
is the processor time of the median step, which other work on the machine changes little.

`--against FOLDER` compares with another checkout, an older one for example: a step there and a step here, in turn, from
the same weights. It prints both processor times, their ratio, and how far the losses of all steps are apart.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def make_trainer(method: str, encoder: str, size: int, device: str, threads: int = 0, settings: Sequence[str] = ()):
    """A `training.Trainer` of images with `size` rows and columns, without data and folder.

    `settings` are options as a user types them; those that the checkout does not know are left out. Only encoders whose
    weights are installed have any.
    """
    import torch
    from sacred.arg_parser import get_config_updates

    import models
    import training
    from util.runs.experiment import plain
    from util.runs.processes import Ranks, prepare_device

    weights = "imagenet" if encoder == "efficientnet_lite0" else "none"
    updates: dict[str, Any] = {"method": method, "encoder": encoder, "weights": weights, "device": device}
    updates["threads"] = threads
    known = training.experiment._create_run(config_updates=updates).config
    for key, value in get_config_updates(list(settings))[0].items():
        if key in known:
            section = isinstance(value, dict)
            updates[key] = {name: one for name, one in value.items() if name in known[key]} if section else value
    options = plain(training.experiment._create_run(config_updates=updates).config)
    chosen = prepare_device(options)
    options["model"] = models.fitted(options["model"], size)
    built = training.build_method(options, None).to(chosen)
    torch.manual_seed(options["seed"])
    return training.Trainer(built, None, options, {}, None, chosen, Ranks())


def make_episode(batch: int, size: int):
    """A batch of random images, the same at every call, each with a square for an organ."""
    import torch

    from util.episode import Episode

    generator = torch.Generator().manual_seed(0)
    image, noise = torch.randn(2, batch, 1, 1, size, size, generator=generator)
    mask = torch.zeros(batch, 1, size, size)
    mask[..., size // 4 : size // 2, size // 4 : size // 2] = 1
    return Episode(image, mask, image + 0.1 * noise, mask.long())


def serve(options: argparse.Namespace) -> None:
    """Make a training step for every line that comes in, and print a line about it."""
    import torch

    from util.memory import peak_gib

    fixed = (options.one, options.encoder, options.size, options.device, options.threads)
    trainer = make_trainer(*fixed, options.set)
    episode = make_episode(options.batch[0], options.size).to(trainer.device)
    parameters = sum(p.numel() for p in trainer.method.parameters()) / 1e6
    for _ in sys.stdin:
        start, worked = time.perf_counter(), time.process_time()
        losses = trainer.train_step(episode)
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()
        row = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - worked}
        row |= {"loss": losses["loss"].item(), "peak": peak_gib(trainer.device), "parameters": parameters}
        trainer.step += 1
        print(json.dumps(row), flush=True)


def measure(method: str, batch: int, options: argparse.Namespace, roots: Sequence[Path]) -> list[list[dict]]:
    """The steps of a method in each checkout, the first one (which warms up) left out.

    Raises:
        RuntimeError: one of them failed.
    """
    command = [sys.executable, __file__, "--one", method, "--batch", str(batch), "--set", *options.set]
    for name in ("encoder", "size", "device", "threads"):
        command += [f"--{name}", str(getattr(options, name))]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
    steps: list[list[dict]] = [[] for _ in roots]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        running = [
            subprocess.Popen([*command, "--root", str(root)], cwd=root, stderr=said, bufsize=1, **pipes)
            for root in roots
        ]
        try:
            for _ in range(options.steps + 1):
                for own, process in zip(steps, running, strict=True):
                    process.stdin.write("\n")
                    own.append(json.loads(process.stdout.readline()))
        except (ValueError, OSError) as error:
            said.seek(0)
            raise RuntimeError((said.read().strip().splitlines() or [str(error)])[-1]) from error
        finally:
            for process in running:
                process.kill()
                process.wait()
    return [own[1:] for own in steps]


def median(steps: Sequence[dict], name: str) -> float:
    """Of a column, the upper one of two."""
    return sorted(step[name] for step in steps)[len(steps) // 2]


def conditions(options: argparse.Namespace) -> str:
    """What the figures depend on, in a line."""
    import torch

    device = torch.cuda.get_device_name() if options.device != "cpu" else f"{options.threads} thread(s)"
    return (
        f"{options.encoder}, {options.size} x {options.size}, {options.device} ({device}), one support, one query; "
        f"{options.steps} step(s) after one to warm up; torch {torch.__version__}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f} before the start (0: nothing else runs)"
    )


def main() -> None:
    """Print one table over all methods."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", nargs="*", help="default: all for slices")
    parser.add_argument("--encoder", default="resnet101")
    parser.add_argument("--batch", nargs="*", type=int, default=[1], help="episodes per step")
    parser.add_argument("--size", type=int, default=256, help="rows and columns of the images")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="options of training.py")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout, to compare with")
    parser.add_argument("--root", help=argparse.SUPPRESS)  # whose code the measuring process runs
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the measuring process
    options = parser.parse_args()
    if options.one:
        sys.path.insert(0, options.root)
        return serve(options)
    import models

    print(conditions(options))
    head = f"{'steps/s':>10}{'median s':>10}{'CPU s':>8}{'peak GiB':>10}{'M parameters':>14}"
    if options.against:
        head = f"{'CPU s there':>13}{'here':>8}{'ratio':>8}{'losses differ by':>18}"
    print(f"{'method':<14}{'batch':>6}{head}")
    roots = [options.against.resolve(), ROOT] if options.against else [ROOT]
    for method in options.methods or [name for name in models.names() if models.method_class(name).dims == 2]:
        for batch in options.batch:
            try:
                *there, here = measure(method, batch, options, roots)
            except RuntimeError as error:
                print(f"{method:<14}{batch:>6}  failed: {error}", flush=True)
                continue
            cpu = median(here, "cpu")
            row = (
                f"{len(here) / sum(step['seconds'] for step in here):>10.3f}{median(here, 'seconds'):>10.3f}"
                f"{cpu:>8.2f}{here[-1]['peak']:>10.2f}{here[0]['parameters']:>14.2f}"
            )
            if there:
                pairs = [(one["loss"], other["loss"]) for one, other in zip(*there, here, strict=True)]
                apart = max(abs(one - other) / max(abs(one), 1e-3) for one, other in pairs)
                before = median(there[0], "cpu")
                row = f"{before:>13.3f}{cpu:>8.3f}{before / cpu:>8.2f}{apart:>18.1e}"
            print(f"{method:<14}{batch:>6}{row}", flush=True)


if __name__ == "__main__":
    main()
