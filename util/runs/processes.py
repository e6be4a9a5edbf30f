"""What a training needs of the processes around it: those it trains with, and the one that asks it to stop."""

import contextlib
import os
import signal
from collections.abc import Iterator

import torch
import torch.distributed as distributed

from util.errors import UserError


def prepare_device(config: dict) -> torch.device:
    """The device of the configuration; also sets the number of CPU threads.

    Raises:
        UserError: the device is unknown or not there.
    """
    if config["threads"]:
        torch.set_num_threads(config["threads"])
    name = config["device"]
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name}: not available here ({str(error).splitlines()[0]}); try device=cpu") from error
    return device


def join_ranks(device: torch.device) -> tuple[int, int]:
    """(rank, ranks) of this process; torchrun sets the environment, else there is one."""
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if ranks > 1:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return int(os.environ.get("RANK", 0)), ranks


@contextlib.contextmanager
def stop_signals() -> Iterator[list]:
    """Ctrl-C and SIGTERM fill the list instead of killing the step; a second Ctrl-C kills as usual."""
    stop: list = []

    def note(number: int, frame) -> None:
        stop.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def held_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM interrupt only after the block."""
    with stop_signals() as stop:
        yield
    if stop:
        raise KeyboardInterrupt
