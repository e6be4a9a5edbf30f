"""torchvision, importable also beside a CPU-only torch; only when it is asked for, as it takes two seconds to load.

The registry's torchvision carries a C library built against CUDA. Beside a CPU torch that library does not load, its
operators stay undeclared, and `import torchvision` dies with "operator torchvision::nms does not exist". The networks
need none of these operators, so declaring their schemas is enough. It must happen only after the plain import failed:
if the library does load, declaring them first aborts the process.
"""

import functools
import importlib
import sys
from types import ModuleType

import torch


@functools.cache
def torchvision() -> ModuleType:
    """The package."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "nms does not exist" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    declared = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    module = importlib.import_module("torchvision")
    module._declared_operators = declared  # the declarations live as long as this object
    return module
