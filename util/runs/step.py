"""What a training step is made with: optimiser, learning rate, compiled code."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from util.errors import UserError


def make_optimiser(method: nn.Module, options: dict) -> torch.optim.Optimizer:
    """The optimiser of the `train.*` keys."""
    parameters = list(method.parameters())
    fused = parameters[0].device.type in ("cpu", "cuda")  # one kernel for all of them
    rates = {"lr": options["learning_rate"], "weight_decay": options["weight_decay"], "fused": fused}
    if options["optimiser"] == "adam":
        return torch.optim.Adam(parameters, betas=(options["momentum"], 0.999), **rates)
    return torch.optim.SGD(parameters, momentum=options["momentum"], **rates)


def learning_rate(step: int, options: dict) -> float:
    """The rate of update `step` (from 0): a decay at every k * decay_every but the last [training 2]."""
    every = options["decay_every"] or max(options["steps"] // 10, 1)
    milestones = max(options["steps"] // every - 1, 0)
    return options["learning_rate"] * options["decay"] ** min(step // every, milestones)


def compiled(forward: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """`forward`, and the backward pass of what it returns, as compiled code; on a GPU replayed as CUDA graphs.

    The first calls compile, which takes minutes. Random numbers are those that PyTorch draws without compiling.

    Raises:
        UserError: from the first call, if nothing here can compile.
    """
    from torch._dynamo.exc import TorchDynamoException  # here, as these take a second to import
    from torch._inductor import config as inductor

    inductor.fallback_random = True
    compiled_forward = torch.compile(forward, mode="reduce-overhead" if device.type == "cuda" else None)

    def call(*arguments: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # what the last step left may be overwritten
        try:
            return compiled_forward(*arguments)
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"train.compile=True: cannot compile here ({reason}); choose train.compile=False"
            ) from error

    return call
