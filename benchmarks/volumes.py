"""Time and memory of training ADNet 3D: `python benchmarks/volumes.py [--window 10 215 215] [--fit 11 24 80]`.

Measured are some steps on random windows. With --fit nothing is computed: the tensors of a training step are counted on
meta tensors (forward, backward, weights, gradients, momentum), and 3.5 GiB added for the program and what kernels need
beside, as measured on a CPU (12.4 GiB with 8.7 counted, with checkpointing 6.4 with 3.0). The table shows the largest
square window of so many slices that fits.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import models
from models.parts.base import FewShotMethod
from models.parts.recompute import recompute_blocks
from util.episode import Episode
from util.memory import GIB, counted_bytes, peak_gib

BESIDE = 3.5  # GiB


def build(options: argparse.Namespace, checkpointing: bool) -> FewShotMethod:
    """The method in training mode."""
    arguments = models.defaults("adnet3d")
    method = models.build("adnet3d", arguments, encoder=options.encoder, weights=None, stride=options.stride).train()
    if checkpointing:
        recompute_blocks(method.encoder)
    return method


def random_episode(window: tuple[int, ...]) -> Episode:
    """One support and one query window, with a block for a supervoxel."""
    image = torch.randn(1, 1, 1, *window)
    mask = torch.zeros(1, 1, *window)
    mask[..., window[1] // 4 : window[1] // 2, window[2] // 4 : window[2] // 2] = 1
    return Episode(image, mask, image + 0.1, mask.to(torch.uint8))


def measure(options: argparse.Namespace) -> None:
    """Print seconds per step and peak memory."""
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    method = build(options, options.checkpointing).to(device)
    torch.nn.utils.convert_conv2d_weight_memory_format(method, torch.channels_last)
    torch.nn.utils.convert_conv3d_weight_memory_format(method, torch.channels_last_3d)
    optimiser = torch.optim.SGD(method.parameters(), lr=1e-4, momentum=0.9)
    episode = random_episode(tuple(options.window)).to(device)
    for step in range(options.steps):
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=options.bfloat16):
            loss = method(episode).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        print(f"step {step}: loss {loss.item():.3f}, {time.perf_counter() - start:.1f} s, {peak_gib(device):.2f} GiB")


def step_gib(options: argparse.Namespace, window: tuple[int, ...], checkpointing: bool, dtype: torch.dtype) -> float:
    """GiB of a training step: tensors of both encodings, float32 weights, gradients, momentum; the head is small."""
    with torch.device("meta"):
        method = build(options, checkpointing).to(dtype)
        image = torch.empty(1, 1, *window, dtype=dtype)

        def step() -> None:
            (support,), (query,) = method.encode(image), method.encode(image)
            (support.sum() + query.sum()).backward()

        step()  # gradients are there, so that only activations are counted
        activations = counted_bytes(step)
    states = 3 * 4 * sum(p.numel() for p in method.parameters())
    return (activations + states) / GIB + BESIDE


def fit(options: argparse.Namespace) -> None:
    """Print the largest windows that fit."""
    depth = options.window[0]
    print(f"{options.encoder}: largest square window of {depth} slices, estimated")
    print(f"{'':<28}" + "".join(f"{gib:>8.0f} GiB" for gib in options.fit) + f"{f'{depth}x215x215':>14}")
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        for checkpointing in (False, True):
            # memory grows with the pixels of a slice: two sizes tell how
            small, large = (step_gib(options, (depth, side, side), checkpointing, dtype) for side in (128, 256))
            growth = (large - small) / (256**2 - 128**2)
            fixed = small - growth * 128**2
            sides = [int(((gib - fixed) / growth) ** 0.5) // 8 * 8 for gib in options.fit]
            title = f"{name}{', checkpointing' if checkpointing else ''}"
            columns = "".join(f"{f'{side} x {side}':>12}" for side in sides)
            print(f"{title:<28}{columns}{fixed + growth * 215**2:>10.1f} GiB", flush=True)


def main() -> None:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--encoder", default="resnext101_3d")
    parser.add_argument("--stride", type=int, default=0)
    parser.add_argument("--window", type=int, nargs=3, default=[10, 215, 215])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--fit", type=float, nargs="+", metavar="GIB")
    options = parser.parse_args()
    fit(options) if options.fit else measure(options)


if __name__ == "__main__":
    main()
