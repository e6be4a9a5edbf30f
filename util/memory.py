"""How much memory a computation takes: measured on this process or its GPU, or counted without running it."""

import resource
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GIB = 1 << 30


def peak_gib(device: torch.device) -> float:
    """Peak memory so far in GiB: of the GPU's tensors, or on a CPU of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def counted_bytes(compute: Callable[[], Any]) -> int:
    """The most bytes that tensors made within `compute` hold at once; with meta tensors nothing is computed.

    Scratch space of the kernels is not seen.
    """
    with _LiveBytes() as live:
        compute()
    return live.peak


def forward_bytes(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Bytes that a forward pass without gradients holds at once beside the weights, for an input of `shape`."""
    weights = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    phantom = {name: torch.empty_like(value, device="meta") for name, value in weights.items()}
    image = torch.empty(shape, device="meta")
    with torch.no_grad():
        return counted_bytes(lambda: torch.func.functional_call(network, phantom, (image,)))


class _LiveBytes(TorchDispatchMode):
    """Sums the storages of all tensors that operations return, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def freed(_, key: int = key, size: int = size) -> None:
            self._known.pop(key, None)
            self.now -= size

        self._known[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)
