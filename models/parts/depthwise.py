"""Depthwise convolution that trains fast on a CPU.

oneDNN, which PyTorch uses there, has quick kernels for the gradients of depthwise convolutions, but not of all: with
weights wider than 3, or dilated ones, it falls back to a general one, 10 to 100 times slower. Here these gradients are
put together from quick ones. Everything else (a GPU, mixed precision, inference) is PyTorch's own convolution.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

WIDEST = 3  # columns of the weights that oneDNN's quick kernel for their gradient can have; rows may be more


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, dilation: int) -> Tensor:
    """`F.conv2d` of maps `(N, C, H, W)` with weights `(C, 1, k, k)`, k odd, padded by half their span on every side."""
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if plain and (weight.shape[-1] > WIDEST or dilation > 1) and min(stride, dilation) == 1:
        return _Depthwise.apply(x, weight, bias, stride, dilation)
    return F.conv2d(x, weight, bias, stride, _padding(weight, dilation), dilation, len(weight))


class _Depthwise(torch.autograd.Function):
    """The convolution with gradients of its own; either stride or dilation is 1."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.steps = stride, dilation
        return F.conv2d(x, weight, bias, stride, _padding(weight, dilation), dilation, len(weight))

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        stride, dilation = ctx.steps
        grad = grad.contiguous(memory_format=torch.channels_last)
        of_x, of_weight, of_bias, *_ = ctx.needs_input_grad
        return (
            _input_gradient(grad, x, weight, stride, dilation) if of_x else None,
            _weight_gradient(grad, x, weight, stride, dilation) if of_weight else None,
            grad.sum((0, 2, 3)) if of_bias else None,
            None,
            None,
        )


def _padding(weight: Tensor, dilation: int) -> int:
    return dilation * (weight.shape[-1] // 2)


def _input_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    padding = _padding(weight, dilation)
    if stride == 1:  # the transpose of such a convolution is the one with its weights turned by half a circle
        return F.conv2d(grad, weight.flip(-2, -1), None, 1, padding, dilation, len(weight))
    return _gradients(grad, x, weight, stride, padding, (True, False, False))[0]


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """At most WIDEST columns of the weights at once, each with the part of the images that it meets."""
    padding, side = _padding(weight, dilation), weight.shape[-1]
    rows, columns = (size + -size % dilation for size in grad.shape[-2:])
    grad = _phases(F.pad(grad, (0, columns - grad.shape[-1], 0, rows - grad.shape[-2])), dilation)
    spans = [(size - 1) * stride + 1 + 2 * padding for size in (rows, columns)]  # that the weights pass over
    below, right = (span - padding - size for span, size in zip(spans, x.shape[-2:], strict=True))
    x = F.pad(x, (padding, right, padding, below))
    x = _phases(x, dilation)
    last = (grad.shape[-1] - 1) * stride
    found = [
        _gradients(grad, x[..., first : last + first + part.shape[-1]], part, stride, 0, (False, True, False))[1]
        for first, part in zip(range(0, side, WIDEST), weight.split(WIDEST, -1), strict=True)
    ]
    return torch.cat(found, -1)


def _phases(maps: Tensor, dilation: int) -> Tensor:
    """Every `dilation`-th row and column as a map of its own: `(N, C, H, W)` -> `(N d d, C, H / d, W / d)`."""
    if dilation == 1:
        return maps
    apart = maps.unflatten(-1, (-1, dilation)).unflatten(-3, (-1, dilation))  # (N, C, h, d, w, d)
    together = apart.permute(0, 3, 5, 2, 4, 1).flatten(0, 2)  # (N d d, h, w, C): channels last, as they lie
    return together.permute(0, 3, 1, 2)


def _gradients(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, wanted: tuple[bool, bool, bool]):
    steps = [stride, stride], [padding, padding], [1, 1], False, [0, 0], len(weight)
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *steps, wanted)
