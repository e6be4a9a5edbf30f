"""What a training needs of the processes around it: those it trains with, and the one that asks it to stop."""

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from util.errors import UserError

MIXED = {"bfloat16": torch.bfloat16, "float16": torch.float16}  # values of `precision`


def prepare_device(options: dict, section: str = "train") -> torch.device:
    """The device of the configuration; also sets the number of CPU threads, and how a GPU computes.

    `section` holds the `precision`. To be called before the first tensor is made.

    Raises:
        UserError: the device is unknown or not there.
    """
    # maps of 2 MB and more lie in large pages: a twentieth less time a step on a CPU, where each step asks for new ones
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    name = options["device"]
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name}: not available here ({str(error).splitlines()[0]}); try device=cpu") from error
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # slices of one training have one size: try all algorithms once
        tf32 = options.get(section, {}).get("precision") == "tf32"
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
    return device


def mixed_precision(precision: str, device: torch.device) -> torch.autocast:
    """Where operations of the device compute in bfloat16 or float16, if `precision` says so."""
    return torch.autocast(device.type, MIXED.get(precision), enabled=precision in MIXED)


@dataclass(frozen=True)
class Ranks:
    """The processes that train together: the number of this one, from 0, and how many there are."""

    rank: int = 0
    count: int = 1

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the mean of all gradients, which travel together: one message an update.

        Everything else of a method stays each process's own, such as the statistics of batch norms that train: no
        training step looks at them, and a checkpoint holds those of rank 0.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.count > 1 and gradients:
            together = self._sum(torch.cat([gradient.flatten() for gradient in gradients])) / self.count
            for gradient, mean in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(mean.view_as(gradient))

    def any(self, flag: bool, device: torch.device) -> bool:
        """True on every process if the flag is set on one of them."""
        if self.count == 1:
            return flag
        return self._sum(torch.tensor(float(flag), device=device)).item() > 0

    def gather(self, value: Tensor, device: torch.device) -> list[Tensor]:
        """The tensors of all processes by their rank, on the CPU; all have one shape."""
        if self.count == 1:
            return [value]
        values = [torch.empty_like(value, device=device) for _ in range(self.count)]
        with _lost_process():
            distributed.all_gather(values, value.to(device))
        return [value.cpu() for value in values]

    def _sum(self, value: Tensor) -> Tensor:
        with _lost_process():
            distributed.all_reduce(value)
        return value


@contextlib.contextmanager
def _lost_process() -> Iterator[None]:
    """The end of another process ends this one, too: it would wait for ever."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"another process of this training has ended ({reason}); go on with resume= from the last checkpoint"
        ) from error


def join_ranks(device: torch.device) -> Ranks:
    """The processes that torchrun started, which says so in the environment; else this one alone."""
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count > 1:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Ranks(int(os.environ.get("RANK", 0)), count)


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
