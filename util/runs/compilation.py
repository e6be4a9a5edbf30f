"""A training step through torch.compile."""

from collections.abc import Callable
from typing import Any

import torch

from util.errors import UserError


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
