"""Training speed and memory of every method: `python benchmarks/methods.py [--encoder resnet101] [--batch 1 4]`.

Every row is measured in a process of its own, on random episodes of one support and one query slice, forward, backward
and optimiser step. Memory is the peak of the process (CPU) or of the allocator (GPU). `CPU s` is the processor time of
the median step, which other work on the machine changes little.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def measure(
    method: str, encoder: str, batch: int, size: int, steps: int, device: str, threads: int
) -> dict[str, float]:
    """Steps a second, time and processor time of the median step in seconds, peak memory in GiB, of one method."""
    import torch

    import models
    from util.episode import Episode
    from util.memory import peak_gib

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    built = models.build(method, models.fitted(models.defaults(method), size), encoder=encoder, weights=None)
    built.to(device, memory_format=torch.channels_last).train()
    optimiser = torch.optim.SGD(built.parameters(), lr=1e-4, momentum=0.9)
    image = torch.randn(batch, 1, 1, size, size)
    mask = torch.zeros(batch, 1, size, size)
    mask[..., size // 4 : size // 2, size // 4 : size // 2] = 1
    episode = Episode(image, mask, image + 0.1 * torch.randn_like(image), mask.long()).to(device)
    seconds, busy = [], []
    for _ in range(steps + 1):
        start, worked = time.perf_counter(), time.process_time()
        built(episode).loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        busy.append(time.process_time() - worked)
    seconds = sorted(seconds[1:])  # the first step warms up
    return {
        "steps_per_second": len(seconds) / sum(seconds),
        "median": seconds[len(seconds) // 2],
        "cpu": sorted(busy[1:])[len(seconds) // 2],
        "peak": peak_gib(torch.device(device)),
        "parameters": sum(p.numel() for p in built.parameters()) / 1e6,
    }


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
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the measuring process
    options = parser.parse_args()
    fixed = (options.encoder, options.size, options.steps, options.device, options.threads)
    if options.one:
        encoder, size, steps, device, threads = fixed
        print(json.dumps(measure(options.one, encoder, options.batch[0], size, steps, device, threads)))
        return
    import models

    print(conditions(options))
    print(f"{'method':<14}{'batch':>6}{'steps/s':>10}{'median s':>10}{'CPU s':>8}{'peak GiB':>10}{'M parameters':>14}")
    for method in options.methods or [name for name in models.names() if models.method_class(name).dims == 2]:
        for batch in options.batch:
            command = [sys.executable, __file__, "--one", method, "--batch", str(batch)]
            for name in ("encoder", "size", "steps", "device", "threads"):
                command += [f"--{name}", str(getattr(options, name))]
            done = subprocess.run(command, capture_output=True, encoding="utf-8")
            if done.returncode:
                print(f"{method:<14}{batch:>6}  failed: {done.stderr.strip().splitlines()[-1]}")
                continue
            row = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{method:<14}{batch:>6}{row['steps_per_second']:>10.3f}{row['median']:>10.3f}{row['cpu']:>8.2f}"
                f"{row['peak']:>10.2f}{row['parameters']:>14.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
